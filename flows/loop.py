"""The loop flow: `segcurate loop`, with each step as a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.artifacts import show_round
from flows.runner import Done, FlowRunner, run_flow
from pipeline.operation.played_labels import play_rounds


@flow(name="loop", flow_run_name="loop to round {rounds}", persist_result=False)
def loop_flow(config: Path, rounds: Annotated[int, Field(ge=1)] = 3) -> State[Any]:
    """Run whole rounds without an annotator: existing masks are the labels.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        rounds: The number of the last round.
    """

    def work(runner: FlowRunner) -> Done:
        play_rounds(runner, rounds=rounds)
        show_round(runner.project, runner.database)
        return Done(f"Round {rounds} is evaluated, and its queue exported.")

    return run_flow(config, work, title="loop")
