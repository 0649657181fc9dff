"""Brush masks against Label Studio's own converter, and against a slow reading of the format."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import DataError
from pipeline.labeling.label_studio import brush
from tests.pipeline.labeling.annotators_tools import unpacked

# written by label_studio_sdk.converter.brush.mask2rle (SDK 2.1.2)
RING_RLE = [
    *(0, 0, 1, 212, 57, 27, 254, 23, 0, 143, 255, 19, 128, 97, 63, 252, 54, 1, 134, 255, 240, 184, 4, 255),
    *(246, 192, 39, 255, 194, 96, 22, 255, 237, 128, 91, 255, 194, 96, 19, 255, 219, 0, 159, 255, 11, 128),
    *(97, 191, 252, 54, 1, 132, 255, 241, 56, 4, 127, 248, 92, 0),
]
LONG_RUN_RLE = [0, 1, 4, 0, 57, 27, 255, 255, 255, 255, 224, 127, 255, 224]


def ring() -> npt.NDArray[np.bool_]:
    rows, columns = np.mgrid[:9, :13]
    squared = (columns - 6) ** 2 + (rows - 4) ** 2
    return (squared < 17) & (squared > 3)


def packed(bits: str) -> list[int]:
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def header(count: int, *, value_bits: int = 8, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> str:
    return f"{count:032b}{value_bits - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)


@pytest.mark.parametrize(
    ("mask", "rle"),
    [(ring(), RING_RLE), (np.ones((130, 128), dtype=bool), LONG_RUN_RLE)],
    ids=["ring", "longer than a run"],
)
def test_masks_are_written_and_read_as_the_sdk_writes_them(
    mask: npt.NDArray[np.bool_], rle: list[int]
) -> None:
    assert brush.encode(mask) == rle
    np.testing.assert_array_equal(brush.decode(rle, width=mask.shape[1], height=mask.shape[0]), mask)


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_any_mask_comes_back(mask: npt.NDArray[np.bool_]) -> None:
    rle = brush.encode(mask)
    np.testing.assert_array_equal(unpacked(rle).reshape(*mask.shape, 4)[:, :, 3] == 255, mask)
    np.testing.assert_array_equal(brush.decode(rle, width=mask.shape[1], height=mask.shape[0]), mask)


@given(st.data())
def test_any_runs_are_read_as_the_format_says(data: st.DataObject) -> None:
    """Also runs of different values, which browsers write, and other run sizes."""
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    sizes = tuple(data.draw(st.lists(st.integers(1, 16), min_size=4, max_size=4)))
    left = width * height * 4
    bits = header(left, sizes=sizes)
    while left:
        index = data.draw(st.integers(0, 3))
        length = data.draw(st.integers(1, min(left, 2 ** sizes[index])))
        same = data.draw(st.booleans())
        values = data.draw(st.binary(min_size=1 if same else length, max_size=1 if same else length))
        bits += f"{int(same)}{index:02b}{length - 1:0{sizes[index]}b}"
        bits += "".join(f"{value:08b}" for value in values)
        left -= length
    rle = packed(bits)
    alpha = unpacked(rle).reshape(height, width, 4)[:, :, 3]
    np.testing.assert_array_equal(brush.decode(rle, width=width, height=height), alpha >= 128)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, "not a list of bytes"),
        (10**12, "not a list of bytes"),
        ({"0": 1}, "not a list of bytes"),
        ([1, "2"], "not a list of bytes"),
        ([[1]], "not a list of bytes"),
        ([256], "not a list of bytes"),
        ([-1], "not a list of bytes"),
        ([1.5], "not a list of bytes"),
        ([], "cut off"),
        ([0] * 6, "cut off"),
        (packed(header(2**32 - 1)), "4294967295 values, where an image of 4×2 pixels has 32"),
        (packed(header(32, value_bits=16)), "values of 16 bits"),
        (packed(header(32)), "cut off"),
        (packed(header(32) + "111" + f"{32:016b}" + "11111111"), "past the end"),
        (packed(header(32) + "011" + f"{31:016b}" + "1" * 100), "cut off"),
        (packed(header(32) + "111" + f"{30:016b}" + "11111111"), "cut off"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(rle: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        brush.decode(rle, width=4, height=2)


def test_a_mask_of_a_megapixel_takes_milliseconds() -> None:
    rows, columns = np.mgrid[:1024, :1024]
    mask = np.hypot(rows % 128 - 64, columns % 128 - 64) < 40
    start = time.perf_counter()
    rle = brush.encode(mask)
    np.testing.assert_array_equal(brush.decode(rle, width=1024, height=1024), mask)
    assert time.perf_counter() - start < 1  # 20 ms, on a machine with nothing else to do
