"""What a simulation plays, and which settings of the project decide its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from db.queries.simulations import FULL, INITIAL, CellKey
from db.tables import Image
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import ProjectConfig, content_hash
from pipeline.config.scoring import SAMPLED_MEASURES
from pipeline.data.project import Project
from pipeline.errors import ConfigError
from pipeline.files import file_sha256
from pipeline.steps.train import RESULT_NEUTRAL

FORMAT = 1
"""Raised where the code computes other numbers from the same settings."""


@dataclass(frozen=True)
class Simulated:
    """What is asked for.

    Attributes:
        strategies: in the order of the table.
        budgets: labels, ascending; the first ones are drawn at random.
        reference: whether a model is trained on all labels for each seed.
    """

    strategies: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    reference: bool = False

    @property
    def cells(self) -> list[CellKey]:
        """Every cell, seed by seed."""
        return [key for seed in range(self.seeds) for key in self.cells_of(seed)]

    def cells_of(self, seed: int) -> list[CellKey]:
        """The cells of a seed."""
        arms = [key for name in self.strategies for key in self.cells_of_arm(name, seed)]
        full = [CellKey(FULL, seed, 0)] if self.reference else []
        return [CellKey(INITIAL, seed, self.budgets[0]), *arms, *full]

    def cells_of_arm(self, strategy: str, seed: int) -> list[CellKey]:
        """The cells of one strategy and seed, without the shared first one."""
        return [CellKey(strategy, seed, budget) for budget in self.budgets[1:]]


def parse_strategies(text: str, config: ProjectConfig) -> tuple[str, ...]:
    """Names, separated by commas.

    Raises:
        ConfigError: there is no such strategy, one is named twice, or one cannot be used with the sampler.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(f"There is no strategy {name!r}.", f"Choose of {', '.join(STRATEGIES)}.")
        if STRATEGIES[name].measure in SAMPLED_MEASURES and config.scoring.sampler == "none":
            raise ConfigError(
                f"`{name}` needs samples, and `scoring.sampler` is `none`.", "Set another sampler."
            )
    if len(set(names)) < len(names) or len(names) < 1:
        raise ConfigError(f"Expected different strategies, but got {text!r}.", "Name each of them once.")
    return names


def parse_budgets(text: str, available: int, *, unit: str) -> tuple[int, ...]:
    """Budgets in labels, ascending, from numbers and shares such as `1%,2%,300`.

    Args:
        available: regions, or images, that have a mask.

    >>> parse_budgets("1%, 2.5%,300", 2000, unit="region")
    (20, 50, 300)

    Raises:
        ConfigError: a budget is no number, they do not ascend, or there are not so many labels.
    """
    found: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        share = part.endswith("%")
        try:
            number = float(part.removesuffix("%"))
        except ValueError:
            raise ConfigError(
                f"{part!r} is no budget.", "Write numbers or shares, such as `--budgets 1%,2%,4%,8%`."
            ) from None
        found.append(max(1, round(number / 100 * available)) if share else int(number))
    if len(found) < 2 or any(now <= before for before, now in pairwise(found)):
        raise ConfigError(
            f"`--budgets {text}` means {', '.join(map(str, found))} of {available} {unit}s: two or more are "
            "needed, and each must be larger than the one before.",
            "Write larger budgets, such as `--budgets 10%,20%,40%`.",
        )
    if found[0] < 1 or found[-1] > available:
        raise ConfigError(
            f"`--budgets {text}` means {', '.join(map(str, found))} {unit}s, and {available} have a mask.",
            "Write budgets between 1 and that number.",
        )
    return tuple(found)


def settings_document(project: Project, budgets: Sequence[int], images: Sequence[Image]) -> dict[str, Any]:
    """Everything that decides the numbers of a cell besides its strategy and its seed, as JSON."""
    config = project.config
    weights = project.path(config.model.encoder_weights)
    scoring = config.scoring.provenance()
    scoring.pop("seed", None)
    rows = [
        [
            *(row.id, row.uri, row.sha256, row.mask_sha256 or row.mask_uri),
            *(row.group_name, row.position, row.split, row.split_version),
        ]
        for row in images
    ]
    return {
        "format": FORMAT,
        "unit": config.selection.unit,
        "budgets": list(budgets),
        "classes": config.data.class_names,
        "channels": config.data.channels,
        "independent": config.data.independent,
        "images": content_hash(rows),
        "model": config.model.model_dump(mode="json"),
        "encoder_weights_sha256": file_sha256(weights) if weights.is_file() else None,
        "training": config.training.model_dump(mode="json", exclude={*RESULT_NEUTRAL, "seed"}),
        "calibration": config.calibration.model_dump(mode="json"),
        "evaluation": config.evaluation.model_dump(
            mode="json", include={"bins", "block", "resamples", "confidence"}
        ),
        "scoring": scoring,
        "selection": config.selection.model_dump(
            mode="json", include={"per_image_cap", "no_touching", "min_gap", "noise_beta"}
        ),
    }
