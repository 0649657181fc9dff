from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.config import IGNORE, DataConfig
from pipeline.data.masks import (
    MaskCodec,
    former_palette,
    mask_sha256,
    palette,
    read_mask,
    store_mask,
    write_mask,
)
from pipeline.errors import DataError, UserError
from tests.colour_vision import DEFICIENCIES, distances

PLAIN: list[Any] = ["sky", "road", "car"]
COLORED: list[Any] = [
    {"name": "sky", "color": [0, 0, 255]},
    {"name": "road", "color": [100, 100, 100]},
    {"name": "car", "color": [255, 0, 0]},
]
INDEX = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)


def codec(classes: list[Any] | None = None, **options: Any) -> MaskCodec:
    return MaskCodec.from_config(DataConfig(images=["images"], classes=classes or PLAIN, **options))


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_index_masks_become_class_indices(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", INDEX)
    np.testing.assert_array_equal(read_mask(path, codec(), size=(3, 2)), INDEX)


def test_a_bilevel_mask_holds_the_classes_0_and_1(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.array([[True, False]]))
    assert read_mask(path, codec(), size=None).tolist() == [[1, 0]]


def test_class_ids_and_several_ignored_values_are_mapped(tmp_path: Path) -> None:
    classes = [{"name": "sky", "id": 7}, {"name": "road", "id": 3}]
    path = saved(tmp_path / "a.png", np.array([[7, 3, 11, 255]], dtype=np.uint8))
    mask = read_mask(path, codec(classes, ignore_index=[11, 255]), size=None)
    assert mask.tolist() == [[0, 1, IGNORE, IGNORE]]


def test_16_bit_masks_keep_large_ids(tmp_path: Path) -> None:
    classes = [{"name": "sky", "id": 1000}, {"name": "road", "id": 40_000}]
    ids = np.array([[1000, 40_000, 65_535]], dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(ids))
    tifffile.imwrite(tmp_path / "b.tif", ids)
    for name in ("a.png", "b.tif"):
        mask = read_mask(tmp_path / name, codec(classes, ignore_index=65_535), size=(3, 1))
        assert mask.dtype == np.uint8
        assert mask.tolist() == [[0, 1, IGNORE]]


@pytest.mark.parametrize("encoding", ["auto", "palette", "index"])
def test_palette_masks_are_read_by_index_not_by_colour(tmp_path: Path, encoding: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 1, 1, 1, 5, 5, 5])
    image.save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png", codec(COLORED, mask_encoding=encoding), size=None)
    assert mask.tolist() == [[0, 1, 2]]


def test_palette_encoding_refuses_a_file_without_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", INDEX)
    with pytest.raises(DataError, match="no palette"):
        read_mask(path, codec(mask_encoding="palette"), size=None)


@pytest.mark.parametrize(
    ("mode", "encoding"), [("RGB", "auto"), ("RGB", "rgb"), ("RGBA", "auto"), ("RGBA", "rgb"), ("P", "rgb")]
)
def test_colour_masks_become_class_indices(tmp_path: Path, mode: str, encoding: str) -> None:
    rgb = np.array([[[0, 0, 255], [100, 100, 100], [255, 0, 0], [0, 0, 0]]], dtype=np.uint8)
    Image.fromarray(rgb).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    options = codec(COLORED, mask_encoding=encoding, ignore_color=[[0, 0, 0]])
    assert read_mask(tmp_path / "a.png", options, size=(4, 1)).tolist() == [[0, 1, 2, IGNORE]]


def test_a_grey_mask_saved_as_rgb_is_an_index_mask_where_classes_have_no_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.repeat(INDEX[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(read_mask(path, codec(), size=None), INDEX)


def test_unknown_ids_are_listed_with_their_counts(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.array([[0, 9, 9, 30]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"no class id: 9 \(2 px\), 30 \(1 px\)") as caught:
        read_mask(path, codec(), size=None)
    assert str(path) in caught.value.problem
    assert "data.classes" in caught.value.remedy


def test_unknown_colours_are_listed_and_the_list_is_bounded(tmp_path: Path) -> None:
    rgb = np.array([[[0, 0, 255]] + [[1, 2, n] for n in range(20)]], dtype=np.uint8)
    path = saved(tmp_path / "a.png", rgb)
    with pytest.raises(DataError, match=r"\(1, 2, 0\) \(1 px\).* and 12 more"):
        read_mask(path, codec(COLORED), size=None)


def test_colours_without_class_colours_name_the_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.array([[[0, 0, 255]]], dtype=np.uint8))
    with pytest.raises(DataError, match="no class in `data.classes` has a `color`"):
        read_mask(path, codec(), size=None)
    with pytest.raises(DataError, match="is coloured, but `data.mask_encoding` is `index`"):
        read_mask(path, codec(COLORED, mask_encoding="index"), size=None)


def test_another_size_than_the_image_is_refused_before_decoding(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:80])  # the header, and few of the pixels
    with pytest.raises(DataError, match=r"has 30×20 pixels, its image 20×30"):
        read_mask(path, codec(), size=(20, 30))
    with pytest.raises(DataError, match="not a readable image"):
        read_mask(path, codec(), size=(30, 20))


def test_a_mask_with_an_orientation_is_turned_like_an_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert read_mask(tmp_path / "a.png", codec(), size=(1, 3)).tolist() == [[0], [1], [2]]


def test_a_huge_mask_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", INDEX)
    with pytest.raises(DataError, match="more than `data.max_pixels`"):
        read_mask(path, codec(max_pixels=5), size=None)


def test_stored_masks_are_named_by_content_and_written_once(tmp_path: Path) -> None:
    path, digest = store_mask(tmp_path, INDEX)
    assert path == tmp_path / digest[:2] / f"{digest}.png"
    assert Image.open(path).mode == "L"
    np.testing.assert_array_equal(read_mask(path, codec(), size=(3, 2)), INDEX)
    before = path.stat().st_mtime_ns
    assert store_mask(tmp_path, np.asfortranarray(INDEX)) == (path, digest)
    assert path.stat().st_mtime_ns == before


def test_the_hash_tells_shapes_apart() -> None:
    assert mask_sha256(INDEX) != mask_sha256(INDEX.reshape(3, 2))


def test_a_full_disk_leaves_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        write_mask(tmp_path / "a.png", INDEX)
    assert list(tmp_path.iterdir()) == []


def test_palettes_keep_given_colours_and_never_repeat_one() -> None:
    classes = [{"name": "first", "color": [230, 25, 75]}, *(f"class {n}" for n in range(254))]
    colors = palette(DataConfig.model_validate({"images": ["images"], "classes": classes}))
    assert colors.shape == (255, 3)
    assert colors[0].tolist() == [230, 25, 75]
    assert len({tuple(color) for color in colors.tolist()}) == 255


@pytest.mark.parametrize("deficiency", [None, *DEFICIENCIES])
def test_colour_blind_people_tell_the_default_colours_of_eight_classes_apart(deficiency: str | None) -> None:
    classes = [f"class {n}" for n in range(8)]
    colors = palette(DataConfig.model_validate({"images": ["images"], "classes": classes}))
    apart = distances(colors, seen_with=deficiency)
    assert apart[np.triu_indices(8, 1)].min() > 15  # 2.3 is a just noticeable difference
    assert len(set(colors[0].tolist())) == 1  # the first class is grey


def test_a_mask_of_many_channels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    tifffile.imwrite(
        path,
        np.zeros((64, 64, 3000), dtype=np.uint8),
        compression="zlib",
        photometric="minisblack",
        planarconfig="contig",
    )
    tracemalloc.start()
    with pytest.raises(DataError, match="has 3000 channels; a mask has at most 4"):
        read_mask(path, codec(), size=(64, 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def permuted(path: Path) -> Path:
    """Sky, road and car by their colours; road, car and sky by their indices."""
    image = Image.fromarray(np.array([[1, 2, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255, 100, 100, 100])
    image.save(path)
    return path


def test_the_colours_of_a_permuted_palette_decide_where_every_class_has_one(tmp_path: Path) -> None:
    path = permuted(tmp_path / "a.png")
    assert read_mask(path, codec(COLORED), size=None).tolist() == [[0, 1, 2]]
    assert read_mask(path, codec(COLORED, mask_encoding="index"), size=None).tolist() == [[1, 2, 0]]
    assert read_mask(path, codec(), size=None).tolist() == [[1, 2, 0]]
    with pytest.raises(DataError, match="values of .* mean other classes than its colours"):
        read_mask(path, codec([*COLORED, "none"]), size=None)


def test_a_palette_with_a_class_colour_at_another_index_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match="other classes than its colours") as caught:
        read_mask(tmp_path / "a.png", codec(COLORED), size=None)
    assert "`data.mask_encoding: index`" in caught.value.remedy


def transparent(kind: str, path: Path) -> None:
    values = np.zeros((2, 3), dtype=np.uint8)
    alpha = np.full((2, 3), 255, dtype=np.uint8)
    alpha[0, 0] = 0
    if kind == "RGBA":
        Image.fromarray(np.dstack([values, values, values, alpha])).save(path)
    elif kind == "LA":
        Image.fromarray(np.dstack([values, alpha]), mode="LA").save(path)
    elif kind == "tRNS of grey":
        Image.fromarray(values).save(path, transparency=0)
    elif kind == "tRNS of RGB":
        Image.fromarray(np.dstack([values] * 3)).save(path, transparency=(0, 0, 0))
    elif kind == "tRNS of a palette":
        image = Image.fromarray(values).convert("P")
        image.save(path, transparency=0)
    else:
        tifffile.imwrite(
            path, np.dstack([values, alpha]), photometric="minisblack", extrasamples=["unassalpha"]
        )


@pytest.mark.parametrize(
    "kind", ["RGBA", "LA", "tRNS of grey", "tRNS of RGB", "tRNS of a palette", "TIFF with alpha"]
)
def test_transparent_pixels_are_no_labels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.tif" if kind.startswith("TIFF") else "a.png")
    transparent(kind, path)
    with pytest.raises(DataError, match="has transparent pixels"):
        read_mask(path, codec(), size=(3, 2))


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    alpha = np.full_like(INDEX, 255)
    path = saved(tmp_path / "a.png", np.dstack([INDEX, INDEX, INDEX, alpha]))
    np.testing.assert_array_equal(read_mask(path, codec(), size=None), INDEX)


def test_pages_are_no_mask(tmp_path: Path) -> None:
    half = np.arange(16 * 18).reshape(16, 18) < 70
    index = half.astype(np.uint8)
    tifffile.imwrite(tmp_path / "two.tif", np.stack([~half, half]).astype(np.uint8))
    tifffile.imwrite(tmp_path / "three.tif", np.stack([index] * 3), photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as tiff:
        tiff.write(index)
        tiff.write(index[:8])
    for name in ("two.tif", "three.tif", "sizes.tif"):
        with pytest.raises(DataError, match="is a stack of [23] pages, not one mask"):
            read_mask(tmp_path / name, codec(), size=(18, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photometric": "ycbcr"}, "colours of the kind YCBCR"),
        ({"photometric": "cielab"}, "colours of the kind CIELAB"),
    ],
)
def test_other_colour_spaces_are_no_mask(tmp_path: Path, options: Any, message: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, 3), dtype=np.uint8), **options)
    with pytest.raises(DataError, match=message):
        read_mask(tmp_path / "a.tif", codec(), size=(3, 2))


def test_a_fax_and_a_lossy_file_are_no_mask(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "fax.tif", INDEX, photometric="miniswhite")
    with pytest.raises(DataError, match="from white to black"):
        read_mask(tmp_path / "fax.tif", codec(), size=None)
    for name in ("a.jpg", "a.webp"):
        with pytest.raises(DataError, match="may be lossy"):
            read_mask(saved(tmp_path / name, INDEX), codec(), size=None)


@pytest.mark.parametrize("given", [{}, {3: (230, 25, 75)}, {0: (230, 159, 0), 2: (72, 72, 72)}])
def test_no_default_colour_is_one_that_an_earlier_version_gave_to_another_class(
    given: dict[int, tuple[int, int, int]],
) -> None:
    classes = [{"name": str(n), "color": given[n]} if n in given else {"name": str(n)} for n in range(255)]
    config = DataConfig.model_validate({"images": ["images"], "classes": classes})
    colors = [tuple(color) for color in palette(config).tolist()]
    chosen = {color for n, color in enumerate(colors) if n not in given}
    former = {color for n, color in enumerate(former_palette(config)) if n not in given}
    assert not chosen & former
    assert len(set(colors)) == 255
