"""Commands that do several steps by themselves, as their schedules do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import opened_project, state
from flows.cli.display import console, literal, progress_bar
from flows.cli.look import list_rounds
from pipeline.errors import UserError

AUTOMATIC = "By itself"
AsFlow = Annotated[bool, typer.Option("--prefect", help="As a flow run, which the Prefect server shows.")]

commands = typer.Typer()


@commands.command(rich_help_panel=AUTOMATIC)
def nightly(prefect: AsFlow = False) -> None:
    """Ingest and score what is new, and bring the queue up to date. With nothing new it only looks."""
    if prefect:
        from flows.nightly import nightly as flow
        from flows.prefect_server import require_server

        require_server()
        flow(config=_config())
        return
    from pipeline.operation.nightly import run_nightly
    from pipeline.operation.runner import Runner

    with opened_project() as (project, database), progress_bar() as progress:
        report = run_nightly(Runner(project, database, log=_say, progress=progress))
    _say(report.summary)


@commands.command(rich_help_panel=AUTOMATIC)
def retrain(
    force: Annotated[
        bool, typer.Option("--force", help="Even with fewer labels than `retrain.min_new_labels`.")
    ] = False,
    then_nightly: Annotated[
        bool,
        typer.Option(
            "--then-nightly/--model-only", help="Score with the model and bring the next queue out."
        ),
    ] = True,
    prefect: AsFlow = False,
) -> None:
    """Train and judge a model once enough labels have come; score with it, and bring the next queue out."""
    if prefect:
        from flows.prefect_server import require_server
        from flows.retrain import retrain as flow

        require_server()
        flow(config=_config(), force=force, then_nightly=then_nightly)
        return
    from pipeline.operation.retrain import run_retrain
    from pipeline.operation.runner import Runner

    with opened_project() as (project, database), progress_bar() as progress:
        runner = Runner(project, database, log=_say, progress=progress)
        report = run_retrain(runner, force=force, then_nightly=then_nightly)
    _say(report.summary)


@commands.command(rich_help_panel=AUTOMATIC)
def loop(
    rounds: Annotated[int, typer.Option(help="Number of the last round.")],
    annotator: Annotated[str, typer.Option(help="`masks`: existing masks play the annotator.")] = "masks",
) -> None:
    """Run whole rounds without a person. A killed loop that is started again goes on from there."""
    from pipeline.operation.runner import Runner
    from pipeline.operation.simulation import run_simulation

    if annotator != "masks":
        raise UserError(f"There is no annotator {annotator!r}.", "Write `--annotator masks`.")
    with opened_project() as (project, database), progress_bar() as progress:
        run_simulation(Runner(project, database, log=_say, progress=progress), rounds=rounds)
    list_rounds()


def _config() -> Path:
    return state.config_file.absolute()


def _say(line: str) -> None:
    console.print(literal(line))
