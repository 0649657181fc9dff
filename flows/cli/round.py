"""The commands of a round, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import ROUND, Json, opened_project, say, say_next
from flows.cli.look import list_rounds
from flows.display import console, literal, print_json, progress_bar
from flows.listings import show_calibrations
from pipeline.errors import UserError

commands = typer.Typer()


@commands.command(rich_help_panel=ROUND)
def train() -> None:
    """Train this round's model on every label. A killed run goes on from its last checkpoint."""
    from pipeline.steps.train import train as step

    with opened_project() as (project, database), progress_bar() as progress:
        model = step(project, database, progress=progress)
    console.print(f"Trained {model.name}: {model.iterations} iterations, seed {model.seed}.")
    say_next()


@commands.command(rich_help_panel=ROUND)
def calibrate() -> None:
    """Fit every calibrator on held-out labels; the one that passes makes softmax scores probabilities."""
    from pipeline.steps.calibrate import calibrate as step

    with opened_project() as (project, database), progress_bar() as progress:
        fitted = step(project, database, progress=progress)
    show_calibrations(fitted)
    say_next()


@commands.command(rich_help_panel=ROUND)
def evaluate() -> None:
    """Measure the model on held-out images, each number with its interval; promote or refuse it."""
    from pipeline.steps.evaluate import evaluate as step

    with opened_project() as (project, database), progress_bar() as progress:
        report = step(project, database, progress=progress)
    say(report)
    say_next()


@commands.command(rich_help_panel=ROUND)
def score() -> None:
    """Score what the promoted model has not scored yet."""
    from pipeline.steps.score import score as step

    with opened_project() as (project, database), progress_bar() as progress:
        report = step(project, database, progress=progress)
    say(report)
    say_next()


@commands.command(rich_help_panel=ROUND)
def select(
    strategy: Annotated[str | None, typer.Option(help="Instead of `selection.strategy`.")] = None,
    unit: Annotated[str | None, typer.Option(help="region or image.")] = None,
    budget: Annotated[int | None, typer.Option(help="Instead of `selection.budget`.")] = None,
    budget_unit: Annotated[str | None, typer.Option(help="regions or images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of `selection.seed`.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Rank by mutual information even if it has not passed its gate.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the queue, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Pick the queue: what to label next, and why."""
    from pipeline.steps.select import select as step

    given = {
        "strategy": strategy,
        "unit": unit,
        "budget": budget,
        "budget_unit": budget_unit,
        "seed": seed,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    if unit is not None:
        overrides.setdefault("budget_unit", None)
    with opened_project() as (project, database), progress_bar() as progress:
        preview = step(
            project, database, dry_run=dry_run, overrides=overrides, force=force, progress=progress
        )
    if as_json:
        print_json(preview)
        return
    say(preview)
    if dry_run:
        console.print("Dry run: nothing was written.")
    else:
        say_next()


@commands.command(rich_help_panel=ROUND)
def export(
    queue: Annotated[
        str | None, typer.Option(help="A queue by name, such as review-01; the round's by default.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Instead of a folder below `export.folder`.")] = None,
) -> None:
    """Write the queue as a folder: images, the model's masks to correct, overlays, a manifest."""
    from pipeline.steps.export import export as step

    with opened_project() as (project, database), progress_bar() as progress:
        written = step(project, database, queue=queue, folder=folder, progress=progress)
    console.print(f"Exported to {literal(str(written))}.")
    say_next()


@commands.command(name="import", rich_help_panel=ROUND)
def import_(
    folder: Annotated[Path, typer.Argument(help="The exported folder, or any folder of masks.")],
    annotator: Annotated[str | None, typer.Option(help="Who drew the masks.")] = None,
    close: Annotated[
        bool, typer.Option("--close", help="End the round with the labels that are there.")
    ] = False,
) -> None:
    """Take labels back. Importing the same masks twice changes nothing."""
    from pipeline.steps.import_labels import import_labels as step

    with opened_project() as (project, database), progress_bar() as progress:
        report = step(project, database, folder=folder, annotator=annotator, close=close, progress=progress)
    say(report)
    if report.refused and not report.imported and not report.unchanged:
        raise UserError(f"Nothing could be imported from {folder}.", "Mend the files listed above.")
    say_next()


@commands.command(rich_help_panel=ROUND)
def loop(
    rounds: Annotated[int, typer.Option(help="Number of the last round.")],
    annotator: Annotated[str, typer.Option(help="`masks`: existing masks play the annotator.")] = "masks",
) -> None:
    """Run whole rounds without a person. A killed loop that is started again goes on from there."""
    from pipeline.loop import loop as run

    if annotator != "masks":
        raise UserError(f"There is no annotator {annotator!r}.", "Write `--annotator masks`.")
    with opened_project() as (project, database), progress_bar() as progress:
        run(
            project,
            database,
            rounds=rounds,
            announce=lambda number, step: console.print(f"round {number}: {step}"),
            progress=progress,
        )
    list_rounds()
