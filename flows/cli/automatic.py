"""Commands that run several steps in a row, as their schedules do."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from flows.automations import WITH_WARNINGS
from flows.cli.app import WARNED, exit_with_warnings, opened_runner, print_line, state
from flows.cli.look import list_rounds
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.operation.nightly import NightlyReport
    from pipeline.operation.retrain import RetrainReport

AUTOMATIC = "Automatic"
AsFlow = Annotated[bool, typer.Option("--prefect", help="As a flow run, which the Prefect server shows.")]

commands = typer.Typer()


@commands.command(rich_help_panel=AUTOMATIC)
def nightly(prefect: AsFlow = False) -> None:
    """Ingest and score new images, train a model that is due, and update the queue.

    The exit code is 3 where a part could not be done, or some files could not be used.
    """
    if prefect:
        _run_flow("nightly")
        return
    from pipeline.operation.nightly import run_nightly

    with opened_runner() as runner:
        _print_report(run_nightly(runner))


@commands.command(rich_help_panel=AUTOMATIC)
def retrain(
    force: Annotated[
        bool, typer.Option("--force", help="Even with fewer labels than `retrain.min_new_labels`.")
    ] = False,
    then_nightly: Annotated[
        bool,
        typer.Option("--then-nightly/--model-only", help="Score with the model and export the next queue."),
    ] = True,
    prefect: AsFlow = False,
) -> None:
    """Train and evaluate a model once there are enough new labels; score with it and export a queue."""
    if prefect:
        _run_flow("retrain", force=force, then_nightly=then_nightly)
        return
    from pipeline.operation.retrain import run_retrain

    with opened_runner() as runner:
        _print_report(run_retrain(runner, force=force, then_nightly=then_nightly))


@commands.command(rich_help_panel=AUTOMATIC)
def loop(
    rounds: Annotated[int, typer.Option(help="Number of the last round.")],
    annotator: Annotated[str, typer.Option(help="`masks`: existing masks are the labels.")] = "masks",
) -> None:
    """Run whole rounds without an annotator. Started again, a killed loop continues."""
    from pipeline.steps.ready import require_positive

    if annotator != "masks":
        raise UserError(f"There is no annotator {annotator!r}.", "Write `--annotator masks`.")
    require_positive("--rounds", rounds)
    from pipeline.operation.played_labels import play_rounds

    with opened_runner() as runner:
        play_rounds(runner, rounds=rounds)
    list_rounds()


def _print_report(report: NightlyReport | RetrainReport) -> None:
    """Print the summary and the warnings."""
    print_line(report.summary)
    exit_with_warnings(report.warnings)


def _run_flow(name: str, **parameters: bool) -> None:
    """Run one of segcurate's flows in this process, under the configured Prefect server."""
    from flows.prefect_server import require_server

    require_server()
    flow = getattr(import_module(f"flows.{name}"), name)
    ended = flow(config=state.config_file.absolute(), return_state=True, **parameters)
    ended.result()  # raises what failed the run
    if ended.name == WITH_WARNINGS:
        raise typer.Exit(WARNED)
