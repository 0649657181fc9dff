from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.mask_survey import MaskSurvey, colors_to_name, name_colors, propose, survey_masks
from pipeline.data.masks import pack, unpack
from pipeline.errors import ConfigError


def surveyed(root: Path, masks: dict[str, np.ndarray], *, mask_name: str = "{}.png") -> MaskSurvey:
    for stem, pixels in masks.items():
        for folder, name, content in (
            ("images", f"{stem}.png", np.zeros((*pixels.shape[:2], 3), np.uint8)),
            ("masks", mask_name.format(stem.removesuffix("_leftImg8bit")), pixels),
        ):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(content).save(root / folder / name)
    return survey_masks(root, images="images", masks="masks")


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def grey(*values: int) -> np.ndarray:
    return np.array([values], dtype=np.uint8)


@pytest.mark.parametrize(
    ("values", "names", "classes", "ignored"),
    [
        ((0, 1, 255), ["a", "b"], [("a", 0), ("b", 1)], [255]),
        ((0, 255), ["a", "b"], [("a", 0), ("b", 255)], []),
        ((1, 2), ["a", "b"], [("a", 1), ("b", 2)], [255]),
        ((0, 2, 255), ["a", "b", "c"], [("a", 0), ("b", 1), ("c", 2)], [255]),
        ((0, 255), [], [("background", 0), ("class 255", 255)], []),
        ((3, 7, 255), [], [("class 3", 3), ("class 7", 7)], [255]),
    ],
)
def test_classes_are_proposed_from_the_values(
    tmp_path: Path,
    values: tuple[int, ...],
    names: list[str],
    classes: list[tuple[str, int]],
    ignored: list[int],
) -> None:
    proposal = propose(surveyed(tmp_path, {"a": grey(*values), "b": grey(*values)}), names)
    assert [(item.name, item.id) for item in proposal.classes] == classes
    assert proposal.ignore_index == ignored


def test_more_values_than_names_are_refused(tmp_path: Path) -> None:
    survey = surveyed(tmp_path, {"a": grey(1, 2, 3)})
    assert survey.lines() == [
        "1 of 1 image has a mask `{parent}/{stem}.png`.",
        "The masks' values: 1 (33 %), 2 (33 %), 3 (33 %).",
    ]
    with pytest.raises(ConfigError, match="have the values 1, 2, 3, and 2 classes are named"):
        propose(survey, ["a", "b"])


def test_coloured_masks_propose_colours_and_palettes_give_theirs(tmp_path: Path) -> None:
    colored = np.array([[[0, 0, 0], [128, 64, 0]]], dtype=np.uint8)
    proposal = propose(surveyed(tmp_path, {"a": colored}), [])
    assert [(item.name, item.color) for item in proposal.classes] == [
        ("background", (0, 0, 0)),
        ("colour 128 64 0", (128, 64, 0)),
    ]
    survey = surveyed(tmp_path, {"a": colored})
    assert [unpack(color) for color in colors_to_name(survey)] == [(0, 0, 0), (128, 64, 0)]
    named = name_colors({0: "", pack((128, 64, 0)): "road", pack((1, 2, 3)): "car"})
    assert [(item.name, item.color) for item in named.classes] == [("road", (128, 64, 0)), ("car", (1, 2, 3))]
    assert named.ignore_color == [(0, 0, 0)]
    with pytest.raises(ConfigError, match="The masks are coloured"):
        propose(surveyed(tmp_path, {"a": colored}), ["a", "b"])
    indexed = Image.fromarray(grey(0, 1))
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    indexed.save(tmp_path / "masks" / "a.png")
    proposal = propose(survey_masks(tmp_path, images="images", masks="masks"), ["a", "b"])
    assert [(item.id, item.color) for item in proposal.classes] == [(0, (9, 9, 9)), (1, (200, 0, 0))]


def test_a_grey_rgb_mask_is_one_of_the_coloured_ones(tmp_path: Path) -> None:
    colored = np.array([[[0, 0, 0], [128, 64, 0]]], dtype=np.uint8)
    background = np.zeros((1, 2, 3), dtype=np.uint8)
    survey = surveyed(tmp_path, {"a": colored, "b": background})
    assert (survey.is_rgb, survey.values) == (True, {})
    assert survey.colors == {0: 3, pack((128, 64, 0)): 1}
    assert [item.color for item in propose(survey, []).classes] == [(0, 0, 0), (128, 64, 0)]
    survey = surveyed(tmp_path, {"a": background + np.uint8(1), "b": background})
    assert (survey.is_rgb, survey.values, survey.colors) == (False, {0: 2, 1: 2}, {})


@pytest.mark.parametrize(
    ("stem", "mask_name", "template", "suffix"),
    [
        ("a", "{}_mask.png", "{parent}/{stem}_mask.png", ""),
        (
            "aachen_000_leftImg8bit",
            "{}_gtFine_labelIds.png",
            "{parent}/{stem}_gtFine_labelIds.png",
            "_leftImg8bit",
        ),
    ],
)
def test_names_of_masks_are_found(
    tmp_path: Path, stem: str, mask_name: str, template: str, suffix: str
) -> None:
    survey = surveyed(tmp_path, {stem: grey(0, 1)}, mask_name=mask_name)
    assert (survey.template, survey.suffix, survey.masks) == (template, suffix, 1)


@pytest.mark.parametrize(
    ("images", "masks", "template", "suffix"),
    [
        ("images/{}_img.png", "masks/{}_mask.png", "{parent}/{stem}_mask.png", "_img"),
        ("all/{}_img.png", "all/{}_mask.png", "{parent}/{stem}_mask.png", "_img"),
        ("images/{}_rgb.png", "masks/{}.png", "{parent}/{stem}.png", "_rgb"),
        ("images/{}.png", "masks/{}-annotation.tif", "{parent}/{stem}-annotation.tif", ""),
        ("all/{}.image.png", "all/{}.labels.png", "{parent}/{stem}.labels.png", ".image"),
        (
            "images/city/{}_leftImg8bit.png",
            "masks/city/{}_gtCoarse_labelIds.png",
            "{parent}/{stem}_gtCoarse_labelIds.png",
            "_leftImg8bit",
        ),
        ("images/city/{}_0001_img.png", "masks/{}_0001_mask.png", "{stem}_mask.png", "_img"),
    ],
)
def test_names_of_masks_and_suffixes_of_images_are_inferred(
    tmp_path: Path, images: str, masks: str, template: str, suffix: str
) -> None:
    for stem in ("a", "ab", "a_1", "b"):
        write(tmp_path / images.format(stem), np.zeros((1, 2, 3), np.uint8))
        if stem != "b":
            write(tmp_path / masks.format(stem), grey(0, 1))
            write(tmp_path / masks.format(stem).replace("_mask", "_depth"), grey(0, 1))
    write(tmp_path / masks.partition("/")[0] / "unrelated_0001.png", grey(0, 1))
    pattern = images.replace("{}", "*") if images.startswith("all") else "images"
    survey = survey_masks(tmp_path, images=pattern, masks=masks.partition("/")[0])
    assert (survey.template, survey.suffix, survey.masks, survey.images) == (template, suffix, 3, 4)


def test_of_images_and_masks_in_one_folder_the_masks_are_those_that_are_called_so(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        write(tmp_path / "all" / f"{stem}_img.png", np.zeros((1, 2, 3), np.uint8))
        write(tmp_path / "all" / f"{stem}_mask.png", grey(0, 1))
    survey = survey_masks(tmp_path, images="all", masks="all")
    assert survey.lines()[0].startswith("3 of 3 images have a mask `{parent}/{stem}_mask.png`")
    assert survey.lines()[0].endswith(", where the stem is the image's name without `_img`.")


def test_numbers_of_frames_are_no_suffix(tmp_path: Path) -> None:
    for stem in ("a_0001", "b_0001", "a_0002", "b_0002"):
        write(tmp_path / "images" / f"{stem}.png", np.zeros((1, 2, 3), np.uint8))
    for stem in ("a", "b"):
        write(tmp_path / "masks" / f"{stem}_mask.png", grey(0, 1))
    survey = survey_masks(tmp_path, images="images", masks="masks")
    assert (survey.suffix, survey.masks) == ("", 0)
