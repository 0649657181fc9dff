"""The settings of the first queue, which is chosen before there is a model: without any score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import RegionConfig, SelectionConfig
from pipeline.data.project import Project
from pipeline.errors import UserError

WITHOUT_SCORES = ("random", "strided", "coverage")
"""The strategies that need no prediction."""
_HOW = {
    "random": "at random (`random`)",
    "strided": "in even steps through each sequence of images (`strided`)",
    "coverage": "to stand for all others, by k-means of the pretrained encoder's features (`coverage`)",
}


@dataclass(frozen=True)
class FirstQueue:
    """How the first queue is chosen.

    Attributes:
        regions: the cells of a grid, or whole images.
        notes: what differs from the configuration, as sentences.
    """

    config: SelectionConfig
    regions: RegionConfig
    notes: tuple[str, ...]


def first_queue(project: Project, config: SelectionConfig, overrides: Mapping[str, Any]) -> FirstQueue:
    """The settings of `selection` as far as they can be followed without a model.

    A strategy that ranks by predictions gives way to `selection.first_queue`: by default `strided`, or
    `random` where neighbours do not look alike. Regions that are found in the pixels or in a prediction give
    way to the cells of a grid.

    Args:
        overrides: the keys of `selection` that were asked for in this call.

    Raises:
        UserError: a strategy was asked for that ranks by predictions.
    """
    if config.strategy not in WITHOUT_SCORES and "strategy" in overrides:
        raise UserError(
            f"`{config.strategy}` ranks by a model's predictions, and there is no model yet.",
            "Choose the first queue with `--strategy random`, `strided` or `coverage`.",
        )
    notes: list[str] = []
    if config.strategy in WITHOUT_SCORES:
        notes.append(f"There is no model yet: the queue is chosen {_HOW[config.strategy]}.")
    else:
        instead = config.first_queue
        if instead == "auto":
            instead = "random" if project.config.data.independent else "strided"
        notes.append(
            f"There is no model yet, which `{config.strategy}` needs: the queue is chosen {_HOW[instead]}."
        )
        config = config.model_copy(update={"strategy": instead})
    regions = project.config.scoring.regions
    if config.unit == "image" or regions.kind == "image":
        return FirstQueue(config, RegionConfig(kind="image"), tuple(notes))
    if regions.kind != "grid":
        notes.append(
            f"Its regions are cells of {regions.cell} × {regions.cell} pixels; `{regions.kind}` regions come "
            "with the first scores."
        )
    return FirstQueue(config, RegionConfig(cell=regions.cell), tuple(notes))
