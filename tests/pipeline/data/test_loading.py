"""Batches of files: sizes apart, bad files aside, memory bounded."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import loading
from pipeline.data.image_info import ImageRef
from pipeline.data.images import probe_image, read_image
from pipeline.data.loading import Batch, Unreadable, load_batches, resize_image
from tests.factories import draw_images


def refs_of(paths: list[Path]) -> list[ImageRef]:
    found: list[ImageRef] = []
    for number, path in enumerate(paths):
        info = probe_image(path, max_pixels=10**9)
        found.append(ImageRef(id=number, path=path, width=info.width, height=info.height))
    return found


def loading_of(refs: Iterable[ImageRef], **changes: Any) -> Generator[Batch | Unreadable]:
    settings: dict[str, Any] = {"channels": 3, "max_pixels": 10**8, "input_scale": 1.0, "workers": 2}
    settings |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "batch_size": 4}
    return load_batches(refs, **(settings | changes))


def load(refs: Iterable[ImageRef], **changes: Any) -> list[Batch | Unreadable]:
    return list(loading_of(refs, **changes))


def noting(refs: Iterable[ImageRef], taken: list[int]) -> Generator[ImageRef]:
    """The same images; the id of each is appended to `taken` when it is taken."""
    for ref in refs:
        taken.append(ref.id)
        yield ref


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_image_comes_once_normalised_and_with_its_own_size(tmp_path: Path, workers: int) -> None:
    sizes = [(40, 30), (24, 24), (40, 30), (24, 24), (40, 30), (64, 8), (40, 30), (40, 30)]
    refs = refs_of(draw_images(tmp_path, sizes))
    batches = [item for item in load(refs, workers=workers) if isinstance(item, Batch)]

    seen = [
        (image_id, size) for batch in batches for image_id, size in zip(batch.ids, batch.sizes, strict=True)
    ]
    assert sorted(seen) == [(n, (height, width)) for n, (width, height) in enumerate(sizes)]
    for batch in batches:
        assert len(batch.ids) <= 4
        assert len(set(batch.sizes)) == 1
        for row, image_id in enumerate(batch.ids):
            pixels = read_image(refs[image_id].path, channels=3, max_pixels=10**8) / 255
            expected = torch.from_numpy((pixels - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).permute(2, 0, 1)
            torch.testing.assert_close(batch.image_BKHW[row].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_bad_file_comes_out_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, [(32, 32)] * 6)
    refs = refs_of(paths)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[3].write_text("not an image")
    Image.new("RGB", (16, 16)).save(paths[4])
    paths[5].unlink()
    items = load(refs)
    bad = {item.id: item.reason for item in items if isinstance(item, Unreadable)}
    assert sorted(bad) == [1, 3, 4, 5]
    assert all(str(paths[number]) in reason for number, reason in bad.items())
    assert "16×16" in bad[4]
    assert [item.ids for item in items if isinstance(item, Batch)] == [(0, 2)]


def test_images_are_resized_for_the_network_but_keep_their_size_on_record(tmp_path: Path) -> None:
    (batch,) = load(refs_of(draw_images(tmp_path, [(41, 30)])), input_scale=0.5)
    assert isinstance(batch, Batch)
    assert batch.sizes == ((30, 41),)
    assert batch.image_BKHW.shape == (1, 3, 15, 20)


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_resizing_averages_every_channel(channels: int) -> None:
    image = np.random.default_rng(0).uniform(0, 1, (16, 24, channels)).astype(np.float32)
    half = resize_image(image, 0.5)
    expected = image.reshape(8, 2, 12, 2, channels).mean(axis=(1, 3))
    np.testing.assert_allclose(half, expected, atol=1e-6)


def test_large_images_make_small_batches(tmp_path: Path) -> None:
    batches = load(refs_of(draw_images(tmp_path, [(40, 40)] * 5)), max_batch_pixels=2 * 40 * 40 + 1)
    assert [len(batch.ids) for batch in batches if isinstance(batch, Batch)] == [2, 2, 1]


def test_a_rare_size_does_not_wait_for_the_end(tmp_path: Path) -> None:
    refs = refs_of(draw_images(tmp_path, [(24, 24)] + [(32, 32)] * 60))
    order = [image_id for item in load(refs, batch_size=2) for image_id in item.ids]  # pyright: ignore[reportAttributeAccessIssue]
    assert order.index(0) < 24
    assert sorted(order) == list(range(61))


def test_reading_stays_only_a_little_ahead(tmp_path: Path) -> None:
    refs = refs_of(draw_images(tmp_path, [(32, 32)] * 60))
    taken: list[int] = []
    batches = loading_of(noting(refs, taken))
    next(batches)
    assert len(taken) <= 20
    batches.close()


def test_pixels_ahead_are_bounded_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PIXELS_AHEAD", 3 * 32 * 32)
    refs = refs_of(draw_images(tmp_path, [(32, 32)] * 20))
    taken: list[int] = []
    batches = loading_of(noting(refs, taken), batch_size=8)
    first = next(batches)
    assert isinstance(first, Batch)
    assert len(first.ids) < 8
    assert len(taken) < 16
    assert len(first.ids) + sum(len(item.ids) for item in batches if isinstance(item, Batch)) == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_a_shard_are_the_same_whatever_comes_before_and_after_it(
    tmp_path: Path, workers: int
) -> None:
    refs = refs_of(draw_images(tmp_path, [(32, 32), (24, 24), (32, 32)] * 5))
    shards = [[replace(ref, shard=part) for ref in refs[part * 5 : part * 5 + 5]] for part in range(3)]

    def batches(order: list[int]) -> set[tuple[int, ...]]:
        together = [ref for part in order for ref in shards[part]]
        return {item.ids for item in load(together, workers=workers) if isinstance(item, Batch)}

    apart = [batches([part]) for part in range(3)]
    assert apart[0] == {(0, 2, 3), (1, 4)}
    for order in ([0, 1, 2], [2, 0, 1], [1, 2]):
        assert batches(order) == set().union(*(apart[part] for part in order))
