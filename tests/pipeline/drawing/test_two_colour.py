"""Both halves of the uncertainty in one picture: which colour says what, also to colour-blind people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.drawing.heatmaps import (
    SMALLEST_INFORMATION_SPAN,
    TWO_COLOUR_CORNERS,
    information_span,
    two_colour,
    write_two_colour,
)
from tests.colour_vision import DEFICIENCIES, distances, lab


def shown(aleatoric: float, epistemic: float) -> npt.NDArray[np.int64]:
    """The colour of one pixel where both spans are 1."""
    maps = (np.full((1, 1), value, dtype=np.float32) for value in (aleatoric, epistemic))
    return two_colour(*maps, mutual_information_span=1, expected_entropy_span=1)[0, 0].astype(np.int64)


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
    apart = distances(TWO_COLOUR_CORNERS.reshape(4, 3), seen_with=deficiency)
    assert apart[np.triu_indices(4, 1)].min() > 25  # 2.3 is a just noticeable difference


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
