"""What a step needs before it begins. Nothing here imports torch, which takes seconds.

The steps ask these functions, and so do the commands before they import a step: a command that cannot run is
refused at once, with the sentence of its step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from sqlalchemy.orm import Session

from db.queries import evaluations, models, queues, simulations
from db.queries import rounds as round_queries
from db.queries.models import TrainingImage
from db.queries.runs import newest_run
from db.tables import Model, Queue, Round, ScoringRun
from pipeline import rounds
from pipeline.config import LabelingConfig, Measure, ProjectConfig, Sampler, SelectionConfig
from pipeline.errors import ConfigError, UserError
from pipeline.summaries.queues import queue_or_newest

TOKENS = {"label-studio": "LABEL_STUDIO_API_KEY", "cvat": "CVAT_ACCESS_TOKEN"}
"""The tools with servers, and the environment variable of each one's token."""


def evaluated_samplers(config: ProjectConfig) -> tuple[Sampler, ...]:
    """The samplers that every round calibrates and evaluates: none, MC dropout, and the configured one."""
    return tuple(dict.fromkeys(("none", "mc_dropout", config.scoring.sampler)))


def chosen_model(session: Session, name: str | None) -> Model:
    """The model of this name; without a name the promoted one, or the newest trained one where none is.

    Raises:
        UserError: there is no such model, or its training has not ended.
    """
    trained = [model for model in models.list_models(session) if model.status != "training"]
    if name is not None:
        trained = [model for model in trained if model.name == name]
    if not trained:
        raise UserError(
            "No model has been trained yet." if name is None else f"There is no trained model `{name}`.",
            "Run `segcurate train`." if name is None else "`segcurate models` lists them.",
        )
    return (models.promoted_model(session) if name is None else None) or trained[-1]


def model_of_round(session: Session, current: Round) -> Model:
    """The model that the current round has trained.

    Raises:
        UserError: there is none.
    """
    model = models.round_model(session, current.id)
    if model is None or model.status == "training":
        raise UserError(f"Round {current.number} has no trained model.", "Run `segcurate train`.")
    return model


def serving_model(session: Session) -> Model:
    """The promoted model.

    Raises:
        UserError: there is none.
    """
    model = models.promoted_model(session)
    if model is None:
        raise UserError("No model has been promoted yet.", "Run `segcurate evaluate`.")
    return model


def scored_run(session: Session) -> ScoringRun:
    """The newest finished scoring run of the serving model.

    Raises:
        UserError: there is none.
    """
    model = models.promoted_model(session)
    run = None if model is None else newest_run(session, model.id, finished=True)
    if run is None:
        raise UserError("The serving model has no finished scores yet.", "Run `segcurate score`.")
    return run


def reviewed_labels(session: Session) -> list[TrainingImage]:
    """The labeled images of the pool.

    Raises:
        UserError: nothing is labeled.
    """
    images = models.training_labels(session)
    if not images:
        raise UserError("No image of the pool has a label.", "Import labels with `segcurate import`.")
    return images


def is_evaluated(session: Session) -> bool:
    """Whether a model has been evaluated."""
    return any(evaluations.model_evaluations(session, model.id) for model in models.list_models(session))


def require_drawable(session: Session) -> None:
    """Refuse to draw a report before a model has been evaluated or a simulation has begun.

    Raises:
        UserError: there is neither.
    """
    if not is_evaluated(session) and simulations.newest_simulation(session) is None:
        raise UserError(
            "There is nothing to draw: no model has been evaluated, and nothing simulated.",
            "Run `segcurate status`.",
        )


def require_held_out_classes(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse to hold out a class that the project does not have, or so many that fewer than two are left.

    Raises:
        UserError: a class is unknown, or too many are named.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"There is no class `{unknown[0]}`.", f"The classes are {', '.join(known)}.")
    left = [name for name in known if name not in names]
    if names and len(left) < 2:
        raise UserError(
            f"Without {', '.join(names)} the second model has "
            f"{f'only the class {left[0]}' if left else 'no class'} to learn: it has nothing to tell apart.",
            f"Name fewer classes, so that two of {', '.join(known)} are left."
            if len(known) > 2
            else "Run `segcurate novelty` without `--classes`: holding one out needs three.",
        )


def require_positive(option: str, value: int) -> None:
    """Refuse a number of items below 1.

    Raises:
        UserError: it is.
    """
    if value < 1:
        raise UserError(f"Expected `{option}` to be at least 1, but got {value}.", f"Write `{option} 5`.")


def model_of_queue(session: Session, queue: Queue) -> Model | None:
    """The serving model, whose masks a queue goes out with; None for a queue of held-out
    images, and for one that was chosen without a model.

    Raises:
        UserError: the queue was chosen by a model, and none serves.
    """
    if queue.kind == "held_out":
        return None
    return models.promoted_model(session) if queue.run_id is None else serving_model(session)


def server_access(labeling: LabelingConfig, tool: str, url: str | None) -> tuple[str, str]:
    """The address of a labeling tool's server, and the token for it from the environment.

    Args:
        url: instead of the configured address.

    Raises:
        ConfigError: the tool has no server, or no address or token is set.
    """
    if tool not in TOKENS:
        raise ConfigError(
            f"`{tool}` is no tool with a server.",
            f"Name one of {', '.join(TOKENS)}, or leave the server out.",
        )
    address = url or labeling.server_of(tool)
    if address is None:
        raise ConfigError(
            f"The address of the {tool} server is not known.",
            f"Add `--url`, or set `labeling.{tool.replace('-', '_')}.url`.",
        )
    token = os.environ.get(TOKENS[tool], "")
    if not token:
        raise ConfigError(f"There is no token for {address}.", f"Set {TOKENS[tool]} in the environment.")
    return address, token


def selection_to_make(
    session: Session, config: ProjectConfig, overrides: Mapping[str, Any], *, preview: bool
) -> tuple[Round, SelectionConfig]:
    """The current round, whose next step is the selection, and the selection's settings for this queue.

    Args:
        overrides: keys of `selection` that replace those of the configuration.
        preview: the queue is only shown, also where it is out.

    Raises:
        NotYourTurn: another step comes next.
        ConfigError: an override is not valid.
    """
    try:
        selection = SelectionConfig.model_validate({**config.selection.model_dump(), **overrides})
    except ValidationError as error:
        problems = "; ".join(
            ".".join(["selection", *map(str, problem["loc"])])
            + ": "
            + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors()
        )
        raise ConfigError(f"The queue cannot be chosen like this: {problems}") from error
    return rounds.require(session, "select", preview=preview), selection


def queue_to_export(session: Session, name: str | None) -> tuple[Round | None, Queue]:
    """The queue of this name, and the current round where the queue is the round's own.

    Raises:
        UserError: there is no such queue.
        NotYourTurn: without a name, another step comes next.
    """
    queue = None if name is None else queue_or_newest(session, name)
    current = round_queries.current_round(session)
    if queue is not None and (current is None or queue.round_id != current.id):
        return None, queue
    current = rounds.require(session, "export")
    queue = queues.round_queue(session, current.id)
    if queue is None:
        raise UserError(f"Round {current.number} has no queue.", "Run `segcurate status`.")
    return current, queue


def measures_named(text: str) -> list[Measure]:
    """The measures of a list with commas.

    >>> measures_named(" entropy, margin")
    ['margin', 'entropy']

    Raises:
        ConfigError: there is no such measure.
    """
    names = {part.strip() for part in text.split(",") if part.strip()}
    known: tuple[Measure, ...] = get_args(Measure)
    unknown = sorted(names - set(known))
    if unknown:
        raise ConfigError(f"There is no measure {unknown[0]!r}.", f"Choose of {', '.join(known)}.")
    return [name for name in known if name in names]
