"""What existing masks hold, before a project has a configuration: its values, colours, and file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.config import IGNORE, ClassConfig, DataConfig, ProjectConfig
from pipeline.data.images import open_image
from pipeline.data.mask_names import infer_names
from pipeline.data.masks import check_mask, mask_colors, mask_values, pack, unpack
from pipeline.data.project import Project
from pipeline.data.sources import Found, find_images, mask_path
from pipeline.errors import ConfigError, DataError
from pipeline.format import agree, count, counted, out_of, percent

MOST_READ = 200
"""Masks that are read, spread over all."""

MOST_NAMED = 40
"""Colours that a person is asked to name."""
_MOST_NAMES = 100_000
_MOST_VALUES = 255
_LISTED = 12
_TEMPLATES = (
    ("{parent}/{stem}.png", ""),
    ("{parent}/{stem}.tif", ""),
    ("{parent}/{stem}.tiff", ""),
    ("{parent}/{stem}.bmp", ""),
    ("{parent}/{stem}_mask.png", ""),
    ("{parent}/{name}.png", ""),
    ("{stem}.png", ""),
    ("{parent}/{stem}_gtFine_labelTrainIds.png", "_leftImg8bit"),
    ("{parent}/{stem}_gtFine_labelIds.png", "_leftImg8bit"),
)
"""Names of masks that are tried in this order, with the suffix of the images' names that the masks lack."""


@dataclass(frozen=True)
class MaskSurvey:
    """What was found.

    Attributes:
        template, suffix: `data.mask_template` and `data.image_suffix` by which most images have a mask.
        images, masks: files that were found.
        values: pixels of each value of the index masks that were read.
        colors: pixels of each packed colour of the coloured masks. Where there are any, a mask saved as RGB
            that is grey throughout, such as a tile of background, is one of them.
        palette: the packed colour of each value of palette masks, where all masks agree on it.
        problem: why a mask could not be read; empty where all could.
    """

    template: str = _TEMPLATES[0][0]
    suffix: str = ""
    images: int = 0
    masks: int = 0
    values: Counter[int] = field(default_factory=Counter)
    colors: Counter[int] = field(default_factory=Counter)
    palette: dict[int, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_rgb(self) -> bool:
        """Whether all masks that were read have colours."""
        return bool(self.colors) and not self.values

    def lines(self) -> list[str]:
        """What was found, as text."""
        if not self.masks:
            return [f"No mask is called after its image ({counted(self.images, 'image')} looked at)."]
        stem = f", where the stem is the image's name without `{self.suffix}`" if self.suffix else ""
        lines = [
            f"{out_of(self.masks, self.images, 'image')} {agree(self.masks, 'has', 'have')} a mask "
            f"`{self.template}`{stem}."
        ]
        for what, found in (("values", self.values), ("colours", self.colors)):
            total = sum(found.values())
            ranked = [
                f"{unpack(value) if what == 'colours' else value} ({percent(pixels / total)})"
                for value, pixels in found.most_common(_LISTED)
            ]
            more = f" and {count(len(found) - _LISTED)} more" if len(found) > _LISTED else ""
            if ranked:
                lines.append(f"The masks' {what}: {', '.join(ranked)}{more}.")
        return lines + ([f"A mask cannot be read: {self.problem}"] if self.problem else [])


@dataclass(frozen=True)
class Proposal:
    """Classes as the masks suggest them, and what means "not labeled"."""

    classes: list[ClassConfig]
    ignore_index: list[int]
    ignore_color: list[tuple[int, int, int]] = field(default_factory=list)


def survey_masks(root: Path, *, images: str, masks: str) -> MaskSurvey:
    """Look for the masks of images, and read up to `MOST_READ` of them. Where the usual names do not give
    each image its mask, other names are inferred from the files.

    Args:
        root: the folder that the paths are relative to.

    Raises:
        DataError: the images or the folder of the masks do not exist.
    """
    project = _project(root, images, masks, *_TEMPLATES[0])
    found = list(islice(find_images(project), _MOST_NAMES))
    best: tuple[str, str] = _TEMPLATES[0]
    paths: list[Path] = []
    for template in _TEMPLATES:
        beside = _masks(_project(root, images, masks, *template), found)
        if len(beside) > len(paths):
            best, paths = template, beside
    folder = project.path(project.config.data.masks or masks)
    if len(paths) < len(found) and (inferred := infer_names(folder, found)) is not None:
        beside = _masks(_project(root, images, masks, *inferred), found)
        if len(beside) > len(paths):
            best, paths = inferred, beside
    if best != _TEMPLATES[0]:  # masks that lie among the images are no longer counted as images
        found = list(islice(find_images(_project(root, images, masks, *best)), _MOST_NAMES))
    survey = MaskSurvey(template=best[0], suffix=best[1], images=len(found), masks=len(paths))
    problem = ""
    grey: Counter[int] = Counter()  # of masks saved as RGB; a grey is a colour where others are coloured
    palettes: list[dict[int, int]] = []
    for path in paths[:: max(1, len(paths) // MOST_READ)][:MOST_READ]:
        try:
            with open_image(path, max_pixels=DataConfig.model_fields["max_pixels"].default) as image:
                check_mask(path, image, size=None)
                values = mask_values(image)
                in_color = image.info.channels - image.info.alpha >= 3 and not image.is_palette
                colors = mask_colors(path, image) if values is None or image.is_palette else None
        except DataError as error:
            problem = problem or str(error)
            continue
        if values is None and colors is not None:
            _count(survey.colors, colors)
        elif values is not None and in_color and values.dtype == np.uint8:
            _count(grey, values)
        elif values is not None:
            _count(survey.values, values)
            if colors is not None:
                _, first = np.unique(values, return_index=True)
                palettes.append(
                    dict(zip(values.flat[first].tolist(), colors.flat[first].tolist(), strict=True))
                )
    if survey.colors:
        survey.colors.update({pack((value, value, value)): pixels for value, pixels in grey.items()})
    else:
        survey.values.update(grey)
    merged = {value: color for palette in palettes for value, color in palette.items()}
    same = all(merged[value] == color for palette in palettes for value, color in palette.items())
    distinct = len(set(merged.values())) == len(merged)
    palette = merged if same and distinct and set(merged) == set(survey.values) else {}
    return replace(survey, palette=palette, problem=problem)


def propose(survey: MaskSurvey, names: Sequence[str]) -> Proposal:
    """Classes for the values or colours that were found.

    255 means "not labeled" where two other values remain; otherwise it is a class.

    Args:
        names: of the classes, in the order of their values; without any, they are named after the values.

    Raises:
        ConfigError: the masks have more or fewer values than there are names, so that nobody can say which
            is which; or they have one value, or are coloured, and names are given.
    """
    if survey.colors:
        if names or len(survey.colors) > _MOST_VALUES or len(survey.colors) < 2 or survey.values:
            raise ConfigError(
                f"The masks are coloured. {survey.lines()[-1]}",
                "Say which colour means which class in a `--label-map` of lines `r g b name`.",
            )
        return Proposal(
            [
                ClassConfig(name=_called("colour", color), color=unpack(color))
                for color in sorted(survey.colors)
            ],
            [IGNORE],
        )
    found = sorted(survey.values)
    ignored = [value for value in (IGNORE, 65535) if value in found]
    rest = [value for value in found if value not in ignored]
    if len(rest) < 2:
        rest, ignored = found, []
    if not names and 2 <= len(rest) <= _MOST_VALUES:
        names = [_called("class", value) for value in rest]
    fits = set(rest) <= set(range(len(names)))
    if not fits and len(rest) != len(names):
        listed = ", ".join(map(str, found[:_LISTED])) + (" and more" if len(found) > _LISTED else "")
        raise ConfigError(
            f"The masks have the values {listed}, and {len(names)} classes are named.",
            'Say which value means which class in a `--label-map`, such as `{"road": 0, "car": 255}`.',
        )
    ids = list(range(len(names))) if fits else rest
    return Proposal(
        [
            ClassConfig(
                name=name, id=id_, color=unpack(survey.palette[id_]) if id_ in survey.palette else None
            )
            for name, id_ in zip(names, ids, strict=True)
        ],
        sorted({IGNORE, *ignored} - set(ids)),
    )


def colors_to_name(survey: MaskSurvey) -> list[int]:
    """The packed colours that a person can name one by one, the most frequent first; none where the masks
    have values, or too many colours."""
    if survey.values or not 2 <= len(survey.colors) <= MOST_NAMED:
        return []
    return [color for color, _ in survey.colors.most_common()]


def name_colors(names: Mapping[int, str]) -> Proposal:
    """Classes from the name of each packed colour; one without a name means "not labeled"."""
    return Proposal(
        [ClassConfig(name=name, color=unpack(color)) for color, name in names.items() if name],
        [IGNORE],
        [unpack(color) for color, name in names.items() if not name],
    )


def _called(what: str, value: int) -> str:
    if value == 0:
        return "background"
    return "colour {} {} {}".format(*unpack(value)) if what == "colour" else f"class {value}"


def _count(counts: Counter[int], pixels: np.ndarray) -> None:
    values, numbers = np.unique(pixels, return_counts=True)
    if len(counts) + len(values) <= 65_536:
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))


def _masks(project: Project, found: Sequence[Found]) -> list[Path]:
    return [path for image in found if (path := mask_path(project, image)) is not None]


def _project(root: Path, images: str, masks: str, template: str, suffix: str) -> Project:
    data = DataConfig(
        images=[images],
        masks=masks,
        classes=[ClassConfig(name="a"), ClassConfig(name="b")],
        mask_template=template,
        image_suffix=suffix,
    )
    return Project(config=ProjectConfig(name="survey", data=data), root=root)
