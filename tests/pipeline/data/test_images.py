from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pipeline.data.images import ImageArray, probe_image, read_image, read_pixels, read_window, unit_float
from pipeline.errors import DataError
from tests.pipeline.claiming_png import claiming_png

MANY = 10**6


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> ImageArray:
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, endpoint=True)
    return values.astype(np.uint8 if dtype is np.uint8 else np.uint16)


def read(path: Path, channels: int = 3) -> ImageArray:
    image = read_image(path, channels=channels, max_pixels=MANY)
    info = probe_image(path, max_pixels=MANY)
    assert image.shape == (info.height, info.width, channels)
    return image


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp", "webp"])
def test_lossless_formats_come_back_as_they_were(tmp_path: Path, ending: str) -> None:
    pixels = noise(13, 17, 3)
    path = tmp_path / f"a.{ending}"
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(pixels).save(path, **options)
    np.testing.assert_array_equal(read(path), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_orientation_is_honoured_as_pillow_does(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(noise(20, 30, 3)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read(path), expected)


def test_16_bit_colour_png_keeps_its_depth(tmp_path: Path) -> None:
    pixels = noise(9, 11, 3, dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(pixels))
    np.testing.assert_array_equal(read(path), pixels)
    assert probe_image(path, max_pixels=MANY).bits == 16


def test_16_bit_grey_png_is_repeated_for_three_channels(tmp_path: Path) -> None:
    pixels = noise(9, 11, 1, dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(pixels[:, :, 0].copy()))
    np.testing.assert_array_equal(read(path, 1), pixels)
    np.testing.assert_array_equal(read(path, 3), np.repeat(pixels, 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_tiff_of_five_channels_in_every_layout(
    tmp_path: Path, dtype: type, compression: str | None, layout: str
) -> None:
    pixels = noise(24, 18, 5, dtype=dtype)
    path = tmp_path / "a.tif"
    stored = pixels if layout == "contig" else np.moveaxis(pixels, -1, 0)
    options: dict[str, Any] = {} if layout == "pages" else {"planarconfig": layout}
    tifffile.imwrite(path, stored, photometric="minisblack", compression=compression, **options)
    np.testing.assert_array_equal(read(path, 5), pixels)


def test_palette_colours_and_unwanted_alpha(tmp_path: Path) -> None:
    pixels = noise(8, 8, 4)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read(tmp_path / "rgba.png"), pixels[:, :, :3])
    np.testing.assert_array_equal(read(tmp_path / "rgba.png", 4), pixels)
    indexed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.save(tmp_path / "palette.png")
    assert read(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    tifffile.imwrite(tmp_path / "alpha.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read(tmp_path / "alpha.tif"), pixels[:, :, :3])


def test_a_bilevel_image_is_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(tmp_path / "a.png")
    Image.fromarray(bits).save(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "white_is_zero.tif", ~bits, photometric="miniswhite")
    for name in ("a.png", "b.tif", "white_is_zero.tif"):
        assert read(tmp_path / name, 1)[:, :, 0].tolist() == [[255, 0], [0, 255]]


def test_a_single_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_that_do_not_fit_are_an_error_that_names_the_file(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "colour.png"
    Image.fromarray(noise(4, 4, 3)).save(path)
    with pytest.raises(DataError, match="has 3 channels") as caught:
        read_image(path, channels=channels, max_pixels=MANY)
    assert str(path) in caught.value.problem
    assert "data.channels" in caught.value.remedy


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(noise(80, 60, 3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError) as caught:
        read_image(path, channels=3, max_pixels=MANY)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_lost_its_last_strips_is_not_filled_with_zeros(
    tmp_path: Path, compression: str | None
) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, noise(80, 60, 3), compression=compression, rowsperstrip=8, photometric="rgb")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 300])
    with pytest.raises(DataError, match="truncated"):
        read_image(path, channels=3, max_pixels=MANY)


@pytest.mark.parametrize("name", ["text.png", "text.jpg", "text.tif", "text.webp", "text.bmp"])
def test_a_text_file_with_an_image_ending_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("I am no image.\n" * 10)
    with pytest.raises(DataError, match=f"{name} is not a readable image"):
        probe_image(tmp_path / name, max_pixels=MANY)


def test_a_missing_file_and_a_stack_and_large_integers_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        probe_image(tmp_path / "none.png", max_pixels=MANY)
    tifffile.imwrite(tmp_path / "stack.tif", noise(2, 3, 16, 16), photometric="minisblack")
    with pytest.raises(DataError, match="stack"):
        probe_image(tmp_path / "stack.tif", max_pixels=MANY)
    tifffile.imwrite(tmp_path / "large.tif", np.zeros((4, 4), dtype=np.uint32))
    with pytest.raises(DataError, match="uint32"):
        probe_image(tmp_path / "large.tif", max_pixels=MANY)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tiff_of_floats_is_an_image_as_it_is_but_no_mask(tmp_path: Path, dtype: type) -> None:
    values = np.linspace(-1, 16, 4 * 5 * 3).reshape(4, 5, 3).astype(dtype)
    tifffile.imwrite(tmp_path / "float.tif", values, photometric="rgb")
    assert probe_image(tmp_path / "float.tif", max_pixels=MANY).bits == 32
    image = read_image(tmp_path / "float.tif", channels=3, max_pixels=MANY)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(unit_float(image), values.astype(np.float32))
    with pytest.raises(DataError, match="floating-point pixels"):
        read_pixels(tmp_path / "float.tif", size=(5, 4))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 5), dtype=np.float32)
    values[2, 3] = value
    tifffile.imwrite(tmp_path / "nan.tif", values)
    with pytest.raises(DataError, match="no finite numbers"):
        read_image(tmp_path / "nan.tif", channels=1, max_pixels=MANY)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(claiming_png(60_000, 60_000))
    for call in (probe_image, lambda path, max_pixels: read_image(path, channels=3, max_pixels=max_pixels)):
        with pytest.raises(DataError, match="60000×60000 pixels, more than") as caught:
            call(tmp_path / "bomb.png", max_pixels=200_000_000)
        assert "bomb.png" in caught.value.problem


def test_the_limit_is_the_configured_one_and_not_pillows(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(claiming_png(20_000, 9_500))
    assert probe_image(tmp_path / "large.png", max_pixels=200_000_000).width == 20_000
    Image.new("L", (10, 10)).save(tmp_path / "small.png")
    assert read_image(tmp_path / "small.png", channels=1, max_pixels=100).shape == (10, 10, 1)
    with pytest.raises(DataError, match="more than"):
        read_image(tmp_path / "small.png", channels=1, max_pixels=99)


def test_unit_float_reaches_one_at_the_largest_number() -> None:
    for dtype in (np.uint8, np.uint16):
        values = unit_float(np.array([[[0, np.iinfo(dtype).max]]], dtype=dtype))
        assert values.dtype == np.float32
        assert values.ravel().tolist() == [0.0, 1.0]


def test_three_pages_are_no_colours(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, noise(3, 16, 18), photometric="minisblack")
    with pytest.raises(DataError, match="a stack of 3 pages with the axes QYX, not a colour image"):
        read_image(path, channels=3, max_pixels=MANY)


@pytest.mark.parametrize("space", ["ycbcr", "cielab"])
def test_stored_colours_other_than_rgb_are_not_read_as_rgb(tmp_path: Path, space: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(16, 18, 3), photometric=space)
    with pytest.raises(DataError, match=f"colours of the kind {space.upper()}"):
        read_image(tmp_path / "a.tif", channels=3, max_pixels=MANY)


def test_the_ycbcr_of_a_jpeg_in_a_tiff_becomes_rgb(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), (200, 30, 40), dtype=np.uint8)
    as_jpeg: Any = {"compression": "jpeg", "compressionargs": {"outcolorspace": "ycbcr"}}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **as_jpeg)
    assert tifffile.TiffFile(tmp_path / "a.tif").pages.first.photometric == tifffile.PHOTOMETRIC.YCBCR
    assert np.abs(read(tmp_path / "a.tif").astype(int) - pixels).max() < 6


TILED: dict[str, tuple[tuple[int, ...], type, dict[str, Any]]] = {
    "colour": ((70, 90, 3), np.uint8, {"compression": "deflate"}),
    "grey, 16 bits": ((70, 90), np.uint16, {}),
    "five channels": ((70, 90, 5), np.uint16, {"photometric": "minisblack", "planarconfig": "contig"}),
    "JPEG": ((64, 96, 3), np.uint8, {"compression": "jpeg", "photometric": "rgb"}),
}


@pytest.mark.parametrize("kind", TILED)
def test_a_window_of_a_file_in_tiles_is_that_of_the_whole_image(tmp_path: Path, kind: str) -> None:
    shape, dtype, settings = TILED[kind]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(*shape, dtype=dtype), tile=(32, 48), **settings)
    channels, size = shape[2] if len(shape) == 3 else 3, (shape[1], shape[0])
    whole = read(path, channels)
    for rows, columns in [
        (slice(0, 1), slice(0, 1)),
        (slice(30, 64), slice(40, 90)),
        (slice(0, 64), slice(5, 9)),
    ]:
        window = read_window(path, channels=channels, size=size, rows=rows, columns=columns)
        assert window is not None
        assert np.array_equal(window, whole[rows, columns])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tile": (32, 32), "photometric": "miniswhite"},
        {"tile": (32, 32), "extratags": [(274, 3, 1, 6, True)]},
    ],
    ids=["strips", "white is zero", "turned"],
)
def test_any_other_file_has_no_windows(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), **settings)
    assert read_window(path, channels=1, size=(64, 64), rows=slice(0, 8), columns=slice(0, 8)) is None


def test_a_tile_that_is_cut_off_is_an_error_only_where_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), tile=(32, 32))
    path.write_bytes(path.read_bytes()[:-600])
    first = read_window(path, channels=1, size=(64, 64), rows=slice(0, 32), columns=slice(0, 32))
    assert first is not None
    with pytest.raises(DataError, match="truncated"):
        read_window(path, channels=1, size=(64, 64), rows=slice(40, 64), columns=slice(40, 64))


def test_a_film_is_no_image(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="a film of 2 pictures"):
        probe_image(tmp_path / "a.png", max_pixels=MANY)


def chunk(name: bytes, content: bytes, *, checksum: int = 0) -> bytes:
    """A chunk of a PNG; a `checksum` is added to the right one."""
    right = (zlib.crc32(name + content) + checksum) & 0xFFFFFFFF
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", right)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"eXIf", b"garbage"),
        chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0", checksum=1),
        chunk(b"pHYs", b"1"),
        chunk(b"gAMA", b""),
        chunk(b"iCCP", b"x\0\0garbage"),
        chunk(b"tEXt", b"a\0b", checksum=1),
    ],
)
def test_damaged_metadata_refuses_no_pixel(
    tmp_path: Path, damaged: bytes, at_the_end: bool, bits: int
) -> None:
    pixels = noise(9, 11, 3, dtype=np.uint8 if bits == 8 else np.uint16)
    content = imagecodecs.png_encode(pixels)
    place = content.rindex(b"IEND") - 4 if at_the_end else content.index(b"IHDR") + 21
    path = tmp_path / "a.png"
    path.write_bytes(content[:place] + damaged + content[place:])
    np.testing.assert_array_equal(read(path), pixels)


@pytest.mark.parametrize(
    ("marker", "damaged"),
    [
        (0xE0, b"JFIF\0\x01"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\x05\x02garbage"),
        (0xEE, b"Adobe"),
        (0xEE, b"Adobe\0d"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff\xff"),
    ],
)
def test_damaged_segments_of_a_photograph_refuse_no_pixel(
    tmp_path: Path, marker: int, damaged: bytes
) -> None:
    Image.fromarray(noise(9, 11, 3)).save(tmp_path / "a.jpg")
    expected, content = read(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()
    segment = bytes([0xFF, marker]) + struct.pack(">H", 2 + len(damaged)) + damaged
    (tmp_path / "b.jpg").write_bytes(content[:2] + segment + content[2:])
    np.testing.assert_array_equal(read(tmp_path / "b.jpg"), expected)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_channels_that_lie_one_after_the_other_are_those_of_an_image(
    tmp_path: Path, photometric: Any
) -> None:
    pixels = noise(20, 30, 3)
    planes = np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric=photometric, planarconfig="separate")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), pixels)


def test_damaged_exif_of_a_webp_means_upright(tmp_path: Path) -> None:
    pixels = noise(9, 11, 3)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(read(tmp_path / "a.webp"), pixels)


def test_the_preview_behind_a_photograph_is_passed_over(tmp_path: Path) -> None:
    photograph = Image.new("RGB", (64, 48), (10, 20, 30))
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (32, 24))])
    pixels = read(tmp_path / "a.jpg")
    assert pixels.shape == (48, 64, 3)
    assert abs(pixels.reshape(-1, 3).mean(axis=0) - (10, 20, 30)).max() < 3


def test_an_empty_file_and_a_link_to_itself_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "self.png").symlink_to("self.png")
    for name, reason in (
        ("empty.png", "is empty: the file"),
        ("self.png", "a link that leads back to itself"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            read_image(tmp_path / name, channels=3, max_pixels=100)
        assert caught.value.remedy == "Replace the file, or remove it."
