"""The loop as a flow: what `segcurate loop` does, with each step as a task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.artifacts import show_round
from flows.nightly import perform_night
from flows.tasks import ended, opened, say
from pipeline.operation.simulation import loop


@dataclass(frozen=True)
class LoopSummary:
    """How far the loop has come."""

    summary: str
    rounds: int


@flow(name="loop", flow_run_name="loop to round {rounds}", persist_result=False)
def loop_flow(config: Path, rounds: Annotated[int, Field(ge=1)] = 3) -> State[Any]:
    """Run whole rounds without a person: masks that exist already play the annotator.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        rounds: The number of the last round.
    """

    def work() -> LoopSummary:
        with opened(config) as (project, database):
            loop(
                project,
                database,
                rounds=rounds,
                announce=lambda number, step: say(f"round {number}: {step}"),
                perform=perform_night("loop"),
            )
            show_round(project, database)
        return LoopSummary(summary=f"Round {rounds} is evaluated, and its queue exported.", rounds=rounds)

    return ended(work)
