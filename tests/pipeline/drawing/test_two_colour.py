"""Both halves of the uncertainty in one picture: which colour says what, also to colour-blind people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage.color import rgb2lab

from pipeline.drawing.heatmaps import (
    SMALLEST_INFORMATION_SPAN,
    TWO_COLOUR_CORNERS,
    information_span,
    two_colour,
    write_two_colour,
)

DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""How linear RGB looks at severity 1 (Machado, Oliveira and Fernandes 2009)."""


def shown(aleatoric: float, epistemic: float) -> npt.NDArray[np.int64]:
    """The colour of one pixel where both spans are 1."""
    maps = (np.full((1, 1), value, dtype=np.float32) for value in (aleatoric, epistemic))
    return two_colour(*maps, mutual_information_span=1, expected_entropy_span=1)[0, 0].astype(np.int64)


def lab(colors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """CIE L*a*b* of sRGB colours [N, 3] in 0 to 1, without the product's code."""
    return rgb2lab(colors[None])[0]


def test_the_corners_have_their_colours_and_the_middle_is_grey() -> None:
    assert [shown(0, 0).tolist(), shown(1, 0).tolist(), shown(0, 1).tolist(), shown(1, 1).tolist()] == (
        TWO_COLOUR_CORNERS[[0, 1, 0, 1], [0, 0, 1, 1]].tolist()
    )
    middle = shown(0.5, 0.5)
    assert middle.max() - middle.min() <= 14


def test_more_of_either_uncertainty_is_lighter_and_no_two_equal_steps_differ_much() -> None:
    for fixed in (0.0, 0.5, 1.0):
        for colors in (
            np.array([shown(value, fixed) for value in np.linspace(0, 1, 9)]),
            np.array([shown(fixed, value) for value in np.linspace(0, 1, 9)]),
        ):
            steps = np.diff(lab(colors / 255), axis=0)
            assert (steps[:, 0] > 0).all()
            lengths = np.linalg.norm(steps, axis=1)
            assert lengths.max() < 2.2 * lengths.min()


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colour_blind_people_tell_the_corners_apart(deficiency: str) -> None:
    encoded = TWO_COLOUR_CORNERS.reshape(4, 3) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(DEFICIENCIES[deficiency]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    apart = np.linalg.norm(lab(seen)[:, None] - lab(seen)[None], axis=-1)
    assert apart[~np.eye(4, dtype=bool)].min() > 25  # 2.3 is a just noticeable difference


def test_spans_scale_each_half_alone_and_what_is_beyond_is_full() -> None:
    entropy = np.array([[0.0, 0.25, 0.5, 0.9]], dtype=np.float32)
    nothing = np.zeros_like(entropy)
    picture = two_colour(entropy, nothing, mutual_information_span=0.1, expected_entropy_span=0.5)
    assert picture[0, 2].tolist() == picture[0, 3].tolist() == TWO_COLOUR_CORNERS[1, 0].tolist()
    assert abs(picture[0, 1].astype(int) - shown(0.5, 0)).max() <= 2
    picture = two_colour(nothing, entropy / 5, mutual_information_span=0.1)
    assert picture[0, 2].tolist() == TWO_COLOUR_CORNERS[0, 1].tolist()


def test_samples_that_agree_everywhere_do_not_fill_the_scale() -> None:
    faint = np.full((9, 9), 0.001, dtype=np.float32)
    assert information_span(faint) == SMALLEST_INFORMATION_SPAN
    picture = two_colour(np.zeros_like(faint), faint, mutual_information_span=information_span(faint))
    assert abs(picture.astype(int) - TWO_COLOUR_CORNERS[0, 0]).max() <= 12


def test_the_file_is_a_picture_with_its_spans_and_no_map_to_measure(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    entropy, information = generator.random((2, 20, 30), dtype=np.float32)
    path = tmp_path / "maps" / "7_two_colour.png"
    write_two_colour(path, entropy, information, mutual_information_span=0.25)
    with Image.open(path) as file:
        assert (file.mode, file.size) == ("RGB", (30, 20))
        assert file.info["measure"] == "two_colour"
        assert (file.info["expected_entropy_span"], file.info["mutual_information_span"]) == ("0.5", "0.25")
        pixels = np.asarray(file)
    assert np.array_equal(pixels, two_colour(entropy, information, mutual_information_span=0.25))


@pytest.mark.parametrize("shape", [(3, 4, 1), (4, 3)])
def test_maps_must_fit_each_other(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        two_colour(np.zeros((3, 4)), np.zeros(shape), mutual_information_span=1)
