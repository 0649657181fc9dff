"""A frozen encoder's maps in files: what is kept, when an entry is another one, what happens to bad ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.calibration.calibrators import Calibrators
from pipeline.config import ScoringConfig
from pipeline.data.bounded_folder import BoundedFolder
from pipeline.errors import ConfigError, UserError
from pipeline.model import encoder_cache
from pipeline.model.encoder_cache import CachedEncoder, Window, map_layouts
from pipeline.model.segmenter import Segmenter
from pipeline.uncertainty.drawn_pixels import draw_pixels
from pipeline.uncertainty.predictor import Predictor
from tests.pipeline.model.test_segmenter import tiny

CPU = torch.device("cpu")
TWO_PROCESSES = """
import sys, torch
from pathlib import Path
from tests.pipeline.model.test_encoder_cache import cache_of, frozen, photographs
torch.set_num_threads(1)
cache = cache_of(frozen(), Path(sys.argv[1]), limit=60_000)
for _ in range(3):
    for image in photographs(6).split(1):
        print([float(one.sum()) for one in cache.maps(image)])
"""


def frozen(architecture: str = "fpn", **changes: Any) -> Segmenter:
    torch.manual_seed(0)
    return tiny(architecture, freeze_encoder=True, **changes).eval()


def cache_of(segmenter: Segmenter, folder: Path, *, limit: int = 10**8) -> CachedEncoder:
    return CachedEncoder(segmenter, map_layouts(segmenter), BoundedFolder(folder, limit), device=CPU)


def photographs(count: int = 2, size: tuple[int, int] = (70, 90)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("??/*") if not path.name.startswith("."))


@pytest.mark.parametrize(
    ("architecture", "changes", "strides"),
    [
        ("fpn", {}, [4, 8, 16, 32]),
        ("unet", {}, [2, 4, 8, 16, 32]),
        ("deeplabv3", {}, [8]),
        ("deeplabv3", {"heads": 2}, [4, 8]),
    ],
)
def test_only_maps_that_reach_the_logits_are_kept(
    architecture: str, changes: dict[str, Any], strides: list[int]
) -> None:
    layouts = map_layouts(tiny(architecture, freeze_encoder=True, **changes))
    assert sorted({layout.stride for layout in layouts if layout.read}) == strides
    assert not layouts[0].read  # the image itself


def test_an_encoder_that_gives_tokens_cannot_be_cached() -> None:
    with pytest.raises(ConfigError, match="cache_features: never"):
        map_layouts(tiny("dpt", freeze_encoder=True))


@pytest.mark.parametrize("architecture", ["fpn", "unet", "deeplabv3plus"])
@pytest.mark.parametrize("sampler", ["none", "mc_dropout", "head_ensemble"])
@torch.inference_mode()
def test_predictions_with_the_cache_are_those_without_it_within_float16(
    architecture: str, sampler: str, tmp_path: Path
) -> None:
    segmenter = frozen(architecture, heads=2)
    scoring = ScoringConfig.model_validate({"sampler": sampler, "samples": 3, "resolution": "logits"})
    cache = cache_of(segmenter, tmp_path)
    plain = Predictor(segmenter, scoring=scoring, calibrators=Calibrators(), device=CPU)
    cached = Predictor(segmenter, scoring=scoring, calibrators=Calibrators(), device=CPU, cache=cache)
    images = photographs()
    expected, computed, read = plain.predict(images), cached.predict(images), cached.predict(images)
    assert cache.computed == len(images)
    spread = float(expected.logits.std())
    assert float((read.logits - expected.logits).abs().max()) < 0.01 * spread
    assert torch.equal(read.logits, computed.logits)
    for name, maps in expected.measures().items():
        close = torch.isclose(read.measures()[name], maps, atol=5e-3, rtol=5e-3)
        # A vote of one of three samples may change where two classes are as likely
        assert close.float().mean() > 0.97 if name == "variation_ratio" else close.all(), name
        assert torch.equal(read.measures()[name], computed.measures()[name])


def test_calibration_reads_what_scoring_has_computed(tmp_path: Path) -> None:
    segmenter = frozen()
    cache = cache_of(segmenter, tmp_path)
    scoring = ScoringConfig.model_validate({"sampler": "none", "resolution": "logits"})
    predictor = Predictor(segmenter, scoring=scoring, calibrators=Calibrators(), device=CPU, cache=cache)
    image = photographs(1)
    predictor.predict(image)

    label = torch.zeros(70, 90, dtype=torch.uint8)
    with torch.inference_mode():
        drawn = draw_pixels(predictor, image, label, pixels=10, generator=np.random.default_rng(0))
    assert len(drawn.labels) == 10
    assert cache.computed == 1


def test_a_window_is_a_part_of_the_whole_images_maps(tmp_path: Path) -> None:
    segmenter = frozen()
    cache = cache_of(segmenter, tmp_path)
    image = segmenter.pad(photographs(1))
    whole = cache.maps(image)
    size = image.shape[-2], image.shape[-1]
    window = Window(cache.name(image[0]), size, slice(32, 96), slice(0, 64), (0, False))
    parts = cache.windows([window, window], lambda _: image)
    for part, of_all, layout in zip(parts, whole, cache.layouts, strict=True):
        cells = of_all[:, :, 32 // layout.stride : 96 // layout.stride, : 64 // layout.stride]
        assert torch.equal(part, cells.expand_as(part))


def test_another_image_view_size_or_encoder_is_another_entry(tmp_path: Path) -> None:
    segmenter = frozen()
    cache = cache_of(segmenter, tmp_path)
    image = photographs(1)[0]
    changed = image.clone()
    changed[0, 5, 5] += 1e-3
    other = frozen()
    with torch.no_grad():
        next(other.part("encoder").parameters()).view(-1)[0] += 1e-3
    names = {
        cache.name(image),
        cache.name(image.flip(-1)),
        cache.name(changed),
        cache.name(image[:, :64]),
        cache_of(other, tmp_path).name(image),
        cache_of(frozen(heads=2, architecture="deeplabv3"), tmp_path).name(image),
        cache_of(frozen("deeplabv3"), tmp_path).name(image),
    }
    assert len(names) == 7
    assert cache_of(frozen(dropout=0.5), tmp_path).name(image) == cache.name(image)
    assert cache.name(image.contiguous(memory_format=torch.contiguous_format)) == cache.name(image)


def test_a_new_decoder_on_the_same_encoder_computes_no_map_again(tmp_path: Path) -> None:
    first, second = frozen(), frozen()
    with torch.no_grad():
        for parameter in second.part("decoder").parameters():
            parameter.add_(0.1)
    images = photographs()
    cache_of(first, tmp_path).maps(images)
    again = cache_of(second, tmp_path)
    again.maps(images)
    assert again.computed == 0


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "empty", "removed"])
def test_a_damaged_entry_is_computed_again(damage: str, tmp_path: Path) -> None:
    segmenter = frozen()
    image = photographs(1)
    expected = cache_of(segmenter, tmp_path).maps(image)
    (path,) = files_of(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-7], "flipped bit": content, "empty": b""}.get(damage, content))
    if damage == "removed":
        path.unlink()
    again = cache_of(segmenter, tmp_path)
    for maps in (again.maps(image), again.maps(image)):
        assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))
    assert again.computed == 1


def test_the_folder_stays_within_its_limit_and_results_do_not_change(tmp_path: Path) -> None:
    segmenter = frozen()
    images = photographs(8)
    expected = cache_of(segmenter, tmp_path / "large").maps(images)
    entry = files_of(tmp_path / "large")[0].stat().st_size
    small = cache_of(segmenter, tmp_path / "small", limit=3 * entry)
    found = [small.maps(image) for image in images.split(1)]
    assert 0 < sum(path.stat().st_size for path in files_of(tmp_path / "small")) <= 3 * entry
    for index, maps in enumerate(expected):
        assert torch.equal(torch.cat([each[index] for each in found]), maps)
    none = cache_of(segmenter, tmp_path / "none", limit=10)
    assert torch.equal(none.maps(images)[4], expected[4])
    assert not files_of(tmp_path / "none")


def test_a_folder_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = frozen()
    (tmp_path / "file").write_text("in the way")
    cache = cache_of(segmenter, tmp_path / "file")
    cache.maps(photographs(2))
    assert "not kept" in caplog.text
    assert caplog.text.count("not kept") == 1


def test_two_processes_share_a_small_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], found
    lines = found[0][0].splitlines()
    assert lines == found[1][0].splitlines()
    assert lines[:6] == lines[6:12] == lines[12:]
    assert len(set(lines[:6])) == 6


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    segmenter = frozen()
    with pytest.raises(UserError, match="too large for float16"):
        cache_of(segmenter, tmp_path).maps(photographs(1) * 1e9)


def test_entries_are_float16(tmp_path: Path) -> None:
    segmenter = frozen()
    cache_of(segmenter, tmp_path).maps(photographs(1))
    cells = [(96 // one.stride) ** 2 * one.channels for one in map_layouts(segmenter) if one.read]
    assert files_of(tmp_path)[0].stat().st_size == 2 * sum(cells) + encoder_cache.CHECKSUM_BYTES
