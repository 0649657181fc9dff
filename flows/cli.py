"""`segcurate …`: each command opens the project, calls one step, and says what came of it.

Heavy imports (torch, matplotlib) stay inside the commands, so that `--help` and a mistyped key answer at
once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from sqlalchemy.exc import OperationalError

from db.engine import Database
from db.errors import StoreError
from flows.display import console, errors, literal, print_json, progress_bar, table
from flows.listings import show_models, show_rounds, show_status
from pipeline.config import CONFIG_FILE, Project, ProjectConfig, load_project
from pipeline.errors import ConfigError, UserError

app = typer.Typer(
    name="segcurate",
    help="Which images, and which regions of them, to label next so that a segmentation model improves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
db_app = typer.Typer(help="Look after the database.", no_args_is_help=True)
app.add_typer(config_app, name="config", rich_help_panel="Project")
app.add_typer(db_app, name="db", rich_help_panel="Project")

PROJECT, ROUND, LOOK = "Project", "One round, in this order", "Look"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has stopped."""
_config_file = Path(CONFIG_FILE)


def main() -> None:
    """The console script: runs a command, and turns a user's mistake into two plain lines."""
    # torch's idle threads spin by default: on a busy machine that makes small networks ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (UserError, StoreError) as error:
        errors.print(f"[bold red]error:[/] {literal(error.problem)}")
        if error.remedy:
            errors.print(f"[bold]to do:[/] {literal(error.remedy)}")
        sys.exit(1)
    except OperationalError as error:
        errors.print(f"[bold red]error:[/] the database refused: {literal(str(error.orig))}")
        errors.print("[bold]to do:[/] Check the disk's free space and `database.url`; then run it again.")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("Stopped. Run the same command again to go on from here.")
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
    global _config_file
    _config_file = config
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )


@app.command(rich_help_panel=PROJECT)
def init(
    images: Annotated[str | None, typer.Option(help="Folder or glob of the images.")] = None,
    masks: Annotated[str | None, typer.Option(help="Folder of the masks that exist already.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names, separated by commas.")] = None,
    label_map: Annotated[Path | None, typer.Option(help="Label map: JSON, YAML, CSV or text.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the project.")] = None,
    architecture: Annotated[str, typer.Option(help="Decoder of segmentation-models-pytorch.")] = "fpn",
    encoder: Annotated[str, typer.Option(help="Encoder; `tu-` before a timm name.")] = "resnet34",
    encoder_weights: Annotated[str, typer.Option(help="imagenet, none, or a safetensors file.")] = "imagenet",
    cell: Annotated[int, typer.Option(help="Side of a region in image pixels.")] = 64,
    neighbours_alike: Annotated[
        bool | None,
        typer.Option(
            "--neighbours-alike/--independent",
            help="Whether images beside each other look alike (frames, slices, tiles).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a configuration that is there.")] = False,
) -> None:
    """Write a commented configuration. Asks for what the options do not say."""
    from pipeline.files import atomic_write_bytes
    from pipeline.starter import read_label_map, starter_config

    if _config_file.exists() and not force:
        raise ConfigError(f"{_config_file} is there already.", "Edit it, or replace it with `--force`.")
    interactive = sys.stdin.isatty()
    if images is None:
        if not interactive:
            raise ConfigError("No images are named.", "Add `--images FOLDER`.")
        images = str(typer.prompt("Folder or glob of the images", default="images"))
    if masks is None and interactive:
        masks = (
            typer.prompt("Folder of the masks that exist (empty: none)", default="", show_default=False)
            or None
        )
    if label_map is not None:
        class_list = read_label_map(label_map)
    else:
        if classes is None and interactive:
            classes = typer.prompt("Class names, separated by commas")
        names = [part.strip() for part in (classes or "").split(",") if part.strip()]
        if len(names) < 2:
            raise ConfigError(
                "At least two classes are needed.", "Add `--classes road,car` or `--label-map FILE`."
            )
        class_list = _classes(names)
    if neighbours_alike is None:
        neighbours_alike = not interactive or typer.confirm(
            "Do images beside each other look alike (frames, slices, tiles)?", default=True
        )
    text = starter_config(
        name=name or Path.cwd().name or "project",
        images=[images],
        masks=masks,
        classes=class_list,
        architecture=architecture,
        encoder=encoder,
        encoder_weights=encoder_weights,
        cell=cell,
        neighbours_alike=neighbours_alike,
    )
    atomic_write_bytes(_config_file, text.encode())
    load_project(_config_file)
    console.print(f"Wrote {_config_file}. Next: [bold]segcurate ingest[/]")


@config_app.command("show")
def config_show(as_json: Json = False) -> None:
    """Print every setting as it is in force, with defaults and environment overrides."""
    import yaml

    document = load_project(_config_file).config.model_dump(mode="json")
    if as_json:
        print_json(document)
    else:
        sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


@config_app.command("schema")
def config_schema() -> None:
    """Print the configuration's JSON schema: every key, its type, default and meaning."""
    print_json(TypeAdapter(ProjectConfig).json_schema())


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to this version's revision."""
    from db import migrations
    from db.engine import connect

    engine = connect(load_project(_config_file).database_url)
    before, after = migrations.upgrade(engine)
    console.print(f"The database is at revision {after}" + (f" (was {before})." if before != after else "."))


@app.command(rich_help_panel=PROJECT)
def ingest() -> None:
    """Register images, masks and splits. Run it again when there are new files."""
    from pipeline.steps.ingest import ingest as step

    with _project() as (project, database), progress_bar() as progress:
        report = step(project, database, progress=progress)
    _say(report)
    _next()


@app.command(rich_help_panel=ROUND)
def train() -> None:
    """Train this round's model on every label. A killed run goes on from its last checkpoint."""
    from pipeline.steps.train import train as step

    with _project() as (project, database), progress_bar() as progress:
        model = step(project, database, progress=progress)
    console.print(f"Trained {model.name}: {model.iterations} iterations, seed {model.seed}.")
    _next()


@app.command(rich_help_panel=ROUND)
def calibrate() -> None:
    """Fit the temperatures on the calibration split, so that softmax scores become probabilities."""
    from pipeline.steps.calibrate import calibrate as step

    with _project() as (project, database), progress_bar() as progress:
        fitted = step(project, database, progress=progress)
    for row in fitted:
        temperature = row.parameters.get("temperature", 1.0)
        console.print(
            f"{row.sampler}: {row.calibrator} {temperature:.3f} from {row.images} images; "
            f"NLL {_number(row.nll_before)} → {_number(row.nll_after)}"
        )
        if row.warning:
            errors.print(f"[yellow]warning:[/] {literal(row.warning)}")
    _next()


@app.command(rich_help_panel=ROUND)
def evaluate() -> None:
    """Measure the model on held-out images, each number with its interval; promote or refuse it."""
    from pipeline.steps.evaluate import evaluate as step

    with _project() as (project, database), progress_bar() as progress:
        report = step(project, database, progress=progress)
    _say(report)
    _next()


@app.command(rich_help_panel=ROUND)
def score() -> None:
    """Score what the promoted model has not scored yet."""
    from pipeline.steps.score import score as step

    with _project() as (project, database), progress_bar() as progress:
        report = step(project, database, progress=progress)
    _say(report)
    _next()


@app.command(rich_help_panel=ROUND)
def select(
    strategy: Annotated[str | None, typer.Option(help="Instead of `selection.strategy`.")] = None,
    unit: Annotated[str | None, typer.Option(help="region or image.")] = None,
    budget: Annotated[int | None, typer.Option(help="Instead of `selection.budget`.")] = None,
    budget_unit: Annotated[str | None, typer.Option(help="regions or images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of `selection.seed`.")] = None,
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
    with _project() as (project, database), progress_bar() as progress:
        preview = step(project, database, dry_run=dry_run, overrides=overrides, progress=progress)
    if as_json:
        print_json(preview)
        return
    _say(preview)
    if dry_run:
        console.print("Dry run: nothing was written.")
    else:
        _next()


@app.command(rich_help_panel=ROUND)
def export(
    folder: Annotated[Path | None, typer.Option(help="Instead of a folder below `export.folder`.")] = None,
) -> None:
    """Write the queue as a folder: images, the model's masks to correct, overlays, a manifest."""
    from pipeline.steps.export import export as step

    with _project() as (project, database), progress_bar() as progress:
        written = step(project, database, folder=folder, progress=progress)
    console.print(f"Exported to {literal(str(written))}.")
    _next()


@app.command(name="import", rich_help_panel=ROUND)
def import_(
    folder: Annotated[Path, typer.Argument(help="The exported folder, or any folder of masks.")],
    annotator: Annotated[str | None, typer.Option(help="Who drew the masks.")] = None,
    close: Annotated[
        bool, typer.Option("--close", help="End the round with the labels that are there.")
    ] = False,
) -> None:
    """Take labels back. Importing the same masks twice changes nothing."""
    from pipeline.steps.import_labels import import_labels as step

    with _project() as (project, database), progress_bar() as progress:
        report = step(project, database, folder=folder, annotator=annotator, close=close, progress=progress)
    _say(report)
    if report.refused and not report.imported and not report.unchanged:
        raise UserError(f"Nothing could be imported from {folder}.", "Mend the files listed above.")
    _next()


@app.command(rich_help_panel=ROUND)
def loop(
    rounds: Annotated[int, typer.Option(help="Number of the last round.")],
    annotator: Annotated[str, typer.Option(help="`masks`: existing masks play the annotator.")] = "masks",
) -> None:
    """Run whole rounds without a person. A killed loop that is started again goes on from there."""
    from pipeline.loop import loop as run

    if annotator != "masks":
        raise UserError(f"There is no annotator {annotator!r}.", "Write `--annotator masks`.")
    with _project() as (project, database), progress_bar() as progress:
        run(
            project,
            database,
            rounds=rounds,
            announce=lambda number, step: console.print(f"round {number}: {step}"),
            progress=progress,
        )
    list_rounds()


@app.command(rich_help_panel=LOOK)
def status(as_json: Json = False) -> None:
    """Where the project stands, and the one command that comes next."""
    from pipeline.status import project_status

    with _project() as (project, database), database.session(write=False) as session:
        now = project_status(session)
    if as_json:
        print_json({"project": project.config.name, **vars(now)})
    else:
        show_status(project.config.name, now)


@app.command(rich_help_panel=LOOK)
def failures(as_json: Json = False) -> None:
    """Files that could not be used, and why."""
    from db.queries.images import list_failures

    with _project() as (_, database), database.session(write=False) as session:
        rows = [(row.step, row.subject, row.reason) for row in list_failures(session)]
    if as_json:
        print_json([dict(zip(("step", "file", "reason"), row, strict=True)) for row in rows])
    else:
        table(
            f"{len(rows)} files",
            ("step", "file", "reason"),
            [[literal(cell) for cell in row] for row in rows],
        )


@app.command(name="rounds", rich_help_panel=LOOK)
def list_rounds(as_json: Json = False) -> None:
    """Each round: labels, model, mIoU and calibration with their intervals."""
    from pipeline.history import round_history

    with _project() as (project, database), database.session(write=False) as session:
        rows = round_history(session, sampler=project.config.scoring.sampler)
    if as_json:
        print_json(rows)
        return
    show_rounds(project.config.name, rows)


@app.command(name="models", rich_help_panel=LOOK)
def list_models(as_json: Json = False) -> None:
    """Each model: parent, seed, labels, and why it was promoted or refused."""
    from pipeline.history import model_history

    with _project() as (project, database), database.session(write=False) as session:
        rows = model_history(session)
    if as_json:
        print_json(rows)
        return
    show_models(project.config.name, rows)


@app.command(rich_help_panel=LOOK)
def report(
    folder: Annotated[Path | None, typer.Option(help="Instead of the `report` folder of `workdir`.")] = None,
) -> None:
    """Draw the learning curve, reliability diagrams and a gallery of the most uncertain regions."""
    from pipeline.steps.report import report as step

    with _project() as (project, database):
        written = step(project, database, folder=folder)
    console.print(f"Drawn in {literal(str(written))}.")


@app.command(rich_help_panel=PROJECT)
def demo(
    folder: Annotated[Path, typer.Argument(help="A new folder for the demo's project.")] = Path("demo"),
    rounds: Annotated[int, typer.Option(help="Number of the last round.")] = 3,
) -> None:
    """Three rounds on slices of the MNI brain template, from a handful of labels. Needs the extra `demo`."""
    from flows.demo import write_demo

    global _config_file
    _config_file = write_demo(folder)
    ingest()
    loop(rounds=rounds, annotator="masks")
    report(folder=folder / "report")


@contextmanager
def _project() -> Generator[tuple[Project, Database]]:
    project = load_project(_config_file)
    database = Database(project.database_url)
    try:
        yield project, database
    finally:
        database.close()


def _classes(names: list[str]) -> list[Any]:
    from pipeline.config import ClassConfig

    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"`--classes` names {', '.join(twice)} twice.", "Name each class once.")
    return [ClassConfig(name=name) for name in names]


def _say(report: Any) -> None:
    """Print what a step reports of itself."""
    for line in report.lines():
        console.print(literal(line))


def _next() -> None:
    from pipeline.status import project_status

    with _project() as (_, database), database.session(write=False) as session:
        now = project_status(session)
    console.print(f"Next: [bold]{literal(now.next_command)}[/]")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"segcurate {installed_version('segcurate')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
