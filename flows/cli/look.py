"""Commands that only look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import LOOK, Json, opened_project
from flows.display import console, literal, print_json, table
from flows.listings import show_models, show_rounds, show_status

commands = typer.Typer()


@commands.command(rich_help_panel=LOOK)
def status(as_json: Json = False) -> None:
    """Where the project stands, and the one command that comes next."""
    from pipeline.status import project_status

    with opened_project() as (project, database), database.session(write=False) as session:
        now = project_status(session)
    if as_json:
        print_json({"project": project.config.name, **vars(now)})
    else:
        show_status(project.config.name, now)


@commands.command(rich_help_panel=LOOK)
def failures(as_json: Json = False) -> None:
    """Files that could not be used, and why."""
    from db.queries.images import list_failures

    with opened_project() as (_, database), database.session(write=False) as session:
        rows = [(row.step, row.subject, row.reason) for row in list_failures(session)]
    if as_json:
        print_json([dict(zip(("step", "file", "reason"), row, strict=True)) for row in rows])
    else:
        table(
            f"{len(rows)} files",
            ("step", "file", "reason"),
            [[literal(cell) for cell in row] for row in rows],
        )


@commands.command(name="rounds", rich_help_panel=LOOK)
def list_rounds(as_json: Json = False) -> None:
    """Each round: labels, model, mIoU and calibration with their intervals."""
    from pipeline.history import round_history

    with opened_project() as (project, database), database.session(write=False) as session:
        rows = round_history(session, sampler=project.config.scoring.sampler)
    if as_json:
        print_json(rows)
        return
    show_rounds(project.config.name, rows)


@commands.command(name="models", rich_help_panel=LOOK)
def list_models(as_json: Json = False) -> None:
    """Each model: parent, seed, labels, and why it was promoted or refused."""
    from pipeline.history import model_history

    with opened_project() as (project, database), database.session(write=False) as session:
        rows = model_history(session)
    if as_json:
        print_json(rows)
        return
    show_models(project.config.name, rows)


@commands.command(rich_help_panel=LOOK)
def report(
    folder: Annotated[Path | None, typer.Option(help="Instead of the `report` folder of `workdir`.")] = None,
) -> None:
    """Write one page that says where the project stands, and can be passed on as it is."""
    from pipeline.steps.report import report as step

    with opened_project() as (project, database):
        written = step(project, database, folder=folder)
    console.print(f"Open {literal(str(written / 'report.html'))}.")
