"""Commands that show something, and change nothing of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from flows.cli.app import (
    LOOK,
    Json,
    exit_with_warnings,
    opened_runner,
    opened_session,
    require,
    run_step,
)
from flows.cli.display import print_json, table
from flows.cli.tables import (
    show_failures,
    show_model_classes,
    show_models,
    show_queue,
    show_queues,
    show_round_classes,
    show_rounds,
    show_runs,
    show_status,
)
from pipeline.format import counted

if TYPE_CHECKING:
    from pipeline.data.project import Project

Row = TypeVar("Row")
Classes = Annotated[bool, typer.Option("--classes", help="List the IoU and recall of each class.")]
commands = typer.Typer()


@commands.command(rich_help_panel=LOOK)
def status(as_json: Json = False) -> None:
    """The project's state, the running processes, and the command that comes next."""
    from pipeline.summaries.project import (
        masks_to_take,
        project_status,
        running_processes,
        scoring_status,
    )

    with opened_session() as (project, session):
        now, scoring = project_status(session), scoring_status(session)
        running, masks = running_processes(session), masks_to_take(session, project)
    if as_json:
        found = {"at_work": running, "scoring": scoring, "masks_to_take": masks}
        print_json({"project": project.config.name, **vars(now), **found})
    else:
        show_status(project.config.name, now, running, scoring, masks)


@commands.command(rich_help_panel=LOOK)
def failures(
    everything: Annotated[bool, typer.Option("--all", help="List each file.")] = False,
    as_json: Json = False,
) -> None:
    """The files that could not be used, by reason; each of them with `--all` or `--json`."""
    from db.queries.failures import list_failures
    from pipeline.summaries.failures import grouped_failures

    with opened_session() as (_, session):
        listed = list_failures(session)
        rows = [(row.step, row.subject, row.reason) for row in listed]
        groups = grouped_failures(listed)
    if as_json:
        print_json([dict(zip(("step", "file", "reason"), row, strict=True)) for row in rows])
    elif everything:
        table(counted(len(rows), "file"), ("step", "file", "reason"), rows)
    else:
        show_failures(groups, len(rows))


@commands.command(name="rounds", rich_help_panel=LOOK)
def list_rounds(classes: Classes = False, as_json: Json = False) -> None:
    """Each round: labels, model, mIoU, worst class and calibration with their intervals."""
    from pipeline.summaries.rounds import round_history

    with opened_session() as (project, session):
        config = project.config
        rows = round_history(session, sampler=config.scoring.sampler, class_names=config.data.class_names)
    _show(rows, show_round_classes if classes else show_rounds, project, as_json=as_json)


@commands.command(name="models", rich_help_panel=LOOK)
def list_models(classes: Classes = False, as_json: Json = False) -> None:
    """Each model: parent, seed, labels, mIoU, worst class, and why it was promoted or refused."""
    from pipeline.summaries.models import model_history

    with opened_session() as (project, session):
        rows = model_history(
            session, class_names=project.config.data.class_names, sampler=project.config.scoring.sampler
        )
    _show(rows, show_model_classes if classes else show_models, project, as_json=as_json)


@commands.command(name="runs", rich_help_panel=LOOK)
def list_runs(as_json: Json = False) -> None:
    """Each scoring run: scorer, images, shards, workers, speed and warnings."""
    from pipeline.summaries.runs import run_history

    with opened_session() as (project, session):
        rows = run_history(session)
    _show(rows, show_runs, project, as_json=as_json)


@commands.command(name="queue", rich_help_panel=LOOK)
def show_one_queue(
    name: Annotated[str | None, typer.Argument(help="Such as `round-03`; the newest by default.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="List every queue.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="First items to list.")] = 10,
    as_json: Json = False,
) -> None:
    """A queue: its counts by class, status and choice, and its first items with the reason of each."""
    from db.queries.queues import list_queues
    from pipeline.summaries.queues import queue_or_newest, queue_summary

    with opened_session() as (project, session):
        names = project.config.data.class_names
        if show_all:
            rows = [
                queue_summary(session, queue, class_names=names, head=0) for queue in list_queues(session)
            ]
        else:
            queue = queue_or_newest(session, name)
            rows = [queue_summary(session, queue, class_names=names, head=limit)]
    if show_all:
        _show(rows, show_queues, project, as_json=as_json)
    elif as_json:
        print_json(rows[0])
    else:
        show_queue(rows[0])


@commands.command(rich_help_panel=LOOK)
def report(
    folder: Annotated[Path | None, typer.Option(help="Instead of the `report` folder of `workdir`.")] = None,
) -> None:
    """Write the report: one HTML page on labels, models and uncertainty that needs no other file."""
    from pipeline.steps.ready import require_drawable

    run_step("report", ready=lambda _, session: require_drawable(session), folder=folder)


@commands.command(rich_help_panel=LOOK)
def predict(
    images: Annotated[str, typer.Argument(help="Folder, glob or file; they need not belong to the project.")],
    out: Annotated[Path, typer.Option(help="A new folder for the results.")] = Path("predictions"),
    maps: Annotated[
        str, typer.Option(help="Measures to map, separated by commas: entropy,mutual_information.")
    ] = "",
    per_class: Annotated[bool, typer.Option("--per-class", help="Also a map of each class.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Its name; by default the promoted one, else the newest.")
    ] = None,
) -> None:
    """Write masks, and maps of uncertainty or of each class, for any images.

    The exit code is 3 where some images could not be read.
    """
    from pipeline.steps.ready import chosen_model, measures_named

    with opened_runner() as runner:
        require(runner, lambda _, session: chosen_model(session, model))
        options = {"source": images, "folder": out, "measures": measures_named(maps), "per_class": per_class}
        from pipeline.steps.predict import predict as predict_images

        found = runner.run(predict_images, **options, model=model)
    exit_with_warnings(found.warnings)


def _show(
    rows: Sequence[Row], show: Callable[[str, Sequence[Row]], None], project: Project, *, as_json: bool
) -> None:
    if as_json:
        print_json(rows)
    else:
        show(project.config.name, rows)
