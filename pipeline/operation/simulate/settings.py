"""What a simulation plays, and which settings of the project decide its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml
from pydantic import ValidationError

from db.queries.simulations import CLICK, FULL, INITIAL, OTHER_INITIAL, CellKey
from db.tables import Image
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import ProjectConfig, SelectionConfig, content_hash
from pipeline.config.scoring import SAMPLED_MEASURES
from pipeline.data.project import Project
from pipeline.errors import ConfigError
from pipeline.files import file_sha256
from pipeline.format import agree
from pipeline.steps.select.first import WITHOUT_SCORES
from pipeline.steps.train import RESULT_NEUTRAL

FORMAT = 1
"""Raised where the code computes other numbers from the same settings."""
CLICKS = "clicks"
"""How a budget ends that counts clicks."""
OWN_KEYS = (
    *("noise_beta", "max_similarity", "class_power", "cost_power"),
    *("per_image_cap", "no_touching", "min_gap"),
)
"""The settings of `selection` that a strategy of a simulation may have for itself."""
LONGEST_NAME = 48
"""Characters of a strategy with its settings, as a cell is stored."""


@dataclass(frozen=True)
class Simulated:
    """What is asked for.

    Attributes:
        strategies: in the order of the table.
        budgets: labels, ascending; or the clicks that drawing them takes, with `in_clicks`.
        reference: whether a model is trained on all labels for each seed.
        cold_starts: how the first labels are chosen: all strategies start from those of the first one, and
            the others are only measured.
        audit: whether every queue has the project's audit slice.
    """

    strategies: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    reference: bool = False
    cold_starts: tuple[str, ...] = ("random",)
    audit: bool = False
    in_clicks: bool = False

    @property
    def first_arms(self) -> tuple[str, ...]:
        """The arms that make first labels: that of the shared ones, then the others."""
        return (INITIAL, *(OTHER_INITIAL + name for name in self.cold_starts[1:]))

    def selections(self, config: SelectionConfig) -> list[SelectionConfig]:
        """The settings of every queue: those of the strategies, and of the first labels."""
        first = [config.model_copy(update={"strategy": name}) for name in self.cold_starts]
        return [*(selection_of(name, config) for name in self.strategies), *first]

    def cold_start(self, arm: str) -> str | None:
        """How an arm's first labels are chosen; None for the arm of all labels."""
        if arm == FULL:
            return None
        return arm.removeprefix(OTHER_INITIAL) if arm.startswith(OTHER_INITIAL) else self.cold_starts[0]

    @property
    def cells(self) -> list[CellKey]:
        """Every cell, seed by seed."""
        return [key for seed in range(self.seeds) for key in self.cells_of(seed)]

    def cells_of(self, seed: int) -> list[CellKey]:
        """The cells of a seed."""
        arms = [key for name in self.strategies for key in self.cells_of_arm(name, seed)]
        full = [CellKey(FULL, seed, 0)] if self.reference else []
        return [*(CellKey(name, seed, self.budgets[0]) for name in self.first_arms), *arms, *full]

    def cells_of_arm(self, strategy: str, seed: int) -> list[CellKey]:
        """The cells of one strategy and seed, without the shared first one."""
        return [CellKey(strategy, seed, budget) for budget in self.budgets[1:]]


def parse_strategies(text: str, config: ProjectConfig) -> tuple[str, ...]:
    """Strategies, separated by commas, each with settings of its own where it has some (see `selection_of`).

    Raises:
        ConfigError: there is no such strategy, one is named twice, one cannot be used with the sampler, or a
            setting is wrong.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        strategy = selection_of(name, config.selection).strategy
        if STRATEGIES[strategy].measure in SAMPLED_MEASURES and config.scoring.sampler == "none":
            raise ConfigError(
                f"`{strategy}` needs samples, and `scoring.sampler` is `none`.", "Set another sampler."
            )
    if len(set(names)) < len(names) or len(names) < 1:
        raise ConfigError(f"Expected different strategies, but got {text!r}.", "Name each of them once.")
    return names


def selection_of(name: str, config: SelectionConfig) -> SelectionConfig:
    """The settings of a strategy that is named as `strategy` or `strategy:key=value:key=value`.

    >>> selection_of("entropy:noise_beta=4:no_touching=false", SelectionConfig()).noise_beta
    4.0

    Raises:
        ConfigError: there is no such strategy, a key is none of `OWN_KEYS`, or its value is wrong.
    """
    strategy, *settings = name.split(":")
    if strategy not in STRATEGIES:
        raise ConfigError(f"There is no strategy {strategy!r}.", f"Choose of {', '.join(STRATEGIES)}.")
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"{name!r} is longer than {LONGEST_NAME} characters.", "Give fewer settings.")
    changes: dict[str, Any] = {"strategy": strategy}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in OWN_KEYS or not equals:
            raise ConfigError(
                f"{setting!r} is no setting of a strategy.",
                f"Write `{strategy}:key=value`, with a key of {', '.join(OWN_KEYS)}.",
            )
        changes[key] = yaml.safe_load(value)
    try:
        return SelectionConfig.model_validate({**config.model_dump(), **changes})
    except (ValidationError, yaml.YAMLError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is no value"
        raise ConfigError(f"{name!r} is no strategy with its settings: {problem}.", "Correct it.") from None


def parse_cold_starts(text: str) -> tuple[str, ...]:
    """Ways to choose the first labels, separated by commas.

    Raises:
        ConfigError: there is no such way, or one is named twice.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or len(set(names)) < len(names) or not set(names) <= set(WITHOUT_SCORES):
        raise ConfigError(
            f"`--cold-start {text}` names no ways to choose the first labels.",
            f"Name one or more of {', '.join(WITHOUT_SCORES)}, each once.",
        )
    return names


def counts_clicks(text: str) -> bool:
    """Whether budgets are clicks, as `200clicks,400clicks`.

    Raises:
        ConfigError: some are, and others are not.
    """
    parts = [part.strip() for part in text.split(",")]
    with_clicks = [part.endswith(CLICKS) for part in parts]
    if any(with_clicks) and not all(with_clicks):
        raise ConfigError(
            f"`--budgets {text}` mixes clicks with other budgets.",
            f"Write each of them with `{CLICKS}`, such as `--budgets 200{CLICKS},400{CLICKS}`.",
        )
    return with_clicks[0]


def parse_budgets(text: str, available: int, *, unit: str) -> tuple[int, ...]:
    """Budgets, ascending: labels, from numbers and shares such as `1%,2%,300`, or clicks, such as
    `200clicks,400clicks`.

    Args:
        available: regions, or images, that have a mask.

    >>> parse_budgets("1%, 2.5%,300", 2000, unit="region")
    (20, 50, 300)

    Raises:
        ConfigError: a budget is no number, they do not ascend, or there are not so many labels.
    """
    if counts_clicks(text):
        return _parse_clicks(text)
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
            f"`--budgets {text}` means {', '.join(map(str, found))} {unit}s, and "
            f"{available} {agree(available, 'has', 'have')} a mask.",
            "Write budgets between 1 and that number.",
        )
    return tuple(found)


def _parse_clicks(text: str) -> tuple[int, ...]:
    """Budgets of clicks; how many the pool takes is known only to its masks."""
    numbers = [part.strip().removesuffix(CLICKS).strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ConfigError(
            f"`--budgets {text}` are no budgets in clicks.",
            f"Write whole numbers, such as `--budgets 200{CLICKS},400{CLICKS}`.",
        )
    found = tuple(map(int, numbers))
    if len(found) < 2 or found[0] < 1 or any(now <= before for before, now in pairwise(found)):
        raise ConfigError(
            f"`--budgets {text}` has no two or more clicks that ascend.",
            f"Make each larger than the one before, such as `--budgets 200{CLICKS},400{CLICKS}`.",
        )
    return found


def settings_document(project: Project, asked: Simulated, images: Sequence[Image]) -> dict[str, Any]:
    """Everything that decides the numbers of a cell besides its strategy and its seed, as JSON.

    What was added to it later is left out where it has its default, so that older simulations are found."""
    config = project.config
    selection = config.selection
    later = {
        "cold_start": asked.cold_starts[0] if asked.cold_starts[0] != "random" else None,
        "audit_fraction": selection.audit_fraction if asked.audit else None,
        "budget_unit": CLICK if asked.in_clicks else None,
        "max_similarity": selection.max_similarity,
        "class_power": selection.class_power or None,
        "cost_power": selection.cost_power or None,
    }
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
        "budgets": list(asked.budgets),
        "classes": config.data.class_names,
        "channels": config.data.channels,
        "independent": config.data.independent,
        "images": content_hash(rows),
        "model": config.model.provenance(),
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
        **{name: value for name, value in later.items() if value is not None},
    }
