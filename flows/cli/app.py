"""The command line's root: the options before every command, and what the commands share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from db.errors import StoreError
from flows.cli.display import console, errors, literal, progress_bar
from flows.import_path import SAFE_PATH
from pipeline.errors import UserError
from pipeline.files import CONFIG_FILE
from pipeline.progress import Report

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from db.engine import Database
    from pipeline.data.project import Project
    from pipeline.operation.runner import Runner
    from pipeline.rounds import Step

app = typer.Typer(
    name="segcurate",
    help="Choose the images and regions to label next, so that a segmentation model improves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show the configuration.", no_args_is_help=True)
db_app = typer.Typer(help="Maintain the database.", no_args_is_help=True)

PROJECT, ROUND, TRUST, LOOK = "Project", "One round, in this order", "Can the uncertainty be trusted?", "Show"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Heatmaps = Annotated[
    Literal["quarter", "full"] | None,
    typer.Option("--heatmaps", help="One pixel of a heat map for 4 × 4 of the image, or for each."),
]
WARNED = 3
"""The exit code where a part was not done, or some files were not used. A failure has 1."""
INTERRUPTED = 130
"""The exit code of a command that was stopped with Ctrl-C."""


Ready: TypeAlias = "Callable[[Project, Session], object]"
"""Asks what a step needs before it begins, without torch; raises `UserError` where that is missing."""


@dataclass
class State:
    """The options before the command."""

    config_file: Path = Path(CONFIG_FILE)


state = State()


def main() -> None:
    """The console script: runs a command, and prints a user's mistake as two plain lines."""
    # torch's idle threads spin by default: on a busy machine that makes small networks ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(SAFE_PATH)  # of all processes that a command starts
    try:
        app()
    except (UserError, StoreError) as error:
        errors.print(f"[bold red]error:[/] {literal(error.problem)}")
        if error.remedy:
            errors.print(f"[bold]to do:[/] {literal(error.remedy)}")
        sys.exit(1)
    except Exception as error:
        from sqlalchemy.exc import OperationalError

        if not isinstance(error, OperationalError):
            raise
        errors.print(f"[bold red]error:[/] the database failed: {literal(str(error.orig))}")
        errors.print("[bold]to do:[/] Check the disk's free space and `database.url`; then run it again.")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("Stopped. Run the same command again to continue.")
        raise


@app.callback()
def _root(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="SEGCURATE_CONFIG", help="The project's YAML file.")
    ] = Path(CONFIG_FILE),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the steps do.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda v: _version(v)),
    ] = False,
) -> None:
    state.config_file = config
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for package in ("flows", "pipeline", "db") if verbose else ():
        logging.getLogger(package).setLevel(logging.INFO)  # Alembic's lines tell users nothing


def configured_project() -> Project:
    """The project of the configuration that the options name."""
    from pipeline.data.project import load_project

    return load_project(state.config_file)


@contextmanager
def opened_project() -> Generator[tuple[Project, Database]]:
    """The configured project and its database, which is closed at the end."""
    from pipeline.ownership import open_database

    project = configured_project()
    database = open_database(project)
    try:
        with explained(database.engine):
            yield project, database
    finally:
        database.close()


@contextmanager
def explained(engine: Engine) -> Generator[None]:
    """Turn an error of the database that the user can correct into a `StoreError`."""
    from sqlalchemy.exc import DBAPIError

    from db.engine import explain

    try:
        yield
    except DBAPIError as error:
        known = explain(engine, error)
        if known is None:
            raise
        raise known from error


@contextmanager
def opened_session() -> Generator[tuple[Project, Session]]:
    """The configured project and a session that only reads."""
    with opened_project() as (project, database), database.session(write=False) as session:
        yield project, session


@contextmanager
def opened_runner() -> Generator[Runner]:
    """A runner on the configured project that prints its log, and shows progress on a terminal."""
    from pipeline.operation.runner import Runner

    with opened_project() as (project, database), progress_bar() as progress:
        yield Runner(project, database, log=print_line, progress=progress)


def run_step(name: str, *, ready: Ready | None = None, then_next: bool = False, **options: Any) -> None:
    """Run the step of this name on the configured project and print its report.

    Args:
        ready: what the step needs before it begins, asked before what it imports, which takes seconds.
        then_next: print at the end the command that comes next.
    """
    with opened_runner() as runner:
        if ready is not None:
            require(runner, ready)
        runner.run(step_named(name), **options)
        if then_next:
            print_next(runner.database)


def step_named(name: str) -> Callable[..., Report]:
    """The function of a step, from the module of `pipeline.steps` with its name."""
    return getattr(import_module(f"pipeline.steps.{name}"), name)


def require(runner: Runner, ready: Ready) -> None:
    """Ask what a step needs before it begins.

    Raises:
        UserError: it cannot run.
    """
    with runner.database.session(write=False) as session:
        ready(runner.project, session)


def in_turn(step: Step) -> Ready:
    """What a step needs that runs in its turn only."""

    def ready(_: Project, session: Session) -> None:
        from pipeline import rounds

        rounds.require(session, step)

    return ready


def add_step_command(commands: typer.Typer, name: Step, panel: str, explanation: str) -> None:
    """Add the command of a round's step without options, which prints the next command at its end."""

    @commands.command(name, rich_help_panel=panel, help=explanation)
    def _run() -> None:
        run_step(name, ready=in_turn(name), then_next=True)


def print_line(line: str) -> None:
    """Print a line of a report; a warning stands out."""
    text = literal(line)
    console.print(f"[yellow]{text}[/]" if line.startswith("warning:") else text)


def print_next(database: Database, *, queue: str | None = None) -> None:
    """Print the command that comes next: of an exported queue its import, if its name is given."""
    from pipeline.summaries.project import import_command, project_status

    with database.session(write=False) as session:
        command = None if queue is None else import_command(session, queue)
        command = command or project_status(session).next_command
    console.print(f"Next: [bold]{literal(command)}[/]")


def exit_with_warnings(warnings: Sequence[str]) -> None:
    """Print the warnings of a command's whole work.

    Raises:
        typer.Exit: there are some.
    """
    for warning in warnings:
        print_line(f"warning: {warning}")
    if warnings:
        raise typer.Exit(WARNED)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"segcurate {version('segcurate')}")
        raise typer.Exit
