"""Commands that set a project up."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import (
    PROJECT,
    Json,
    config_app,
    configured_project,
    db_app,
    explained,
    print_line,
    run_step,
    state,
)
from flows.cli.automatic import loop
from flows.cli.display import console, literal, print_json, progress_bar
from flows.cli.look import report
from flows.cli.trust import assess, novelty, simulate, stress
from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.config import ClassConfig
    from pipeline.data.mask_survey import MaskSurvey, Proposal

commands = typer.Typer()
DEMO_STRESSED = 10
"""Held-out images of the demo's stress test, which take about a minute."""
DEMO_BUDGETS = "8,28"
"""Of the demo's simulation: its first labels, and one queue more."""
DEMO_ITERATIONS = 60
"""Of a training there; those of the demo's own rounds have 400."""


@commands.command(rich_help_panel=PROJECT)
def init(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="Labels that exist already, as a labeling tool has exported them: a file, a zip archive or "
            "a folder. The classes, and the folder of the images, are read from it."
        ),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option("--from", help="The tool whose format the labels have; detected by default."),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder or glob of the images.")] = None,
    masks: Annotated[str | None, typer.Option(help="Folder of the masks that exist already.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names, separated by commas.")] = None,
    label_map: Annotated[
        Path | None,
        typer.Option(
            help="Classes with ids or colours. JSON or YAML: {name: id}, or a list of {name, id, color}; "
            "CSV: name,id,r,g,b; text: lines `r g b name`, or CVAT's labelmap.txt."
        ),
    ] = None,
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
    force: Annotated[bool, typer.Option(help="Replace an existing configuration.")] = False,
) -> None:
    """Write a commented configuration. Asks for values that the options do not give."""
    from pipeline.config import IGNORE, ClassConfig
    from pipeline.config.starter import read_label_map, starter_config
    from pipeline.data.mask_survey import colors_to_name, propose
    from pipeline.files import atomic_write_bytes

    if state.config_file.exists() and not force:
        raise ConfigError(f"{state.config_file} exists already.", "Edit it, or replace it with `--force`.")
    interactive = sys.stdin.isatty()
    begun = _labels_that_exist(source, tool, images)
    if begun is not None:
        images = images or begun.images_path
    if images is None:
        if not interactive:
            raise ConfigError("No folder of images is given.", "Add `--images FOLDER`.")
        images = str(typer.prompt("Folder or glob of the images", default="images"))
    if masks is None and begun is None and interactive:
        masks = (
            typer.prompt("Folder of the masks that exist (empty: none)", default="", show_default=False)
            or None
        )
    survey = _survey(images, masks)
    for line in survey.lines() if survey is not None else ():
        console.print(literal(line))
    names = [part.strip() for part in (classes or "").split(",") if part.strip()]
    ignore_index: Sequence[int] = (IGNORE,)
    ignore_color: Sequence[tuple[int, int, int]] = ()
    if label_map is not None:
        class_list: Sequence[ClassConfig] = read_label_map(label_map)
    elif begun is not None and not names:
        class_list = begun.classes
    elif not names and interactive and survey is not None and colors_to_name(survey):
        proposal = _ask_for_colors(survey)
        class_list, ignore_color = proposal.classes, proposal.ignore_color
    else:
        if not names and interactive:
            names = _ask_for_classes(survey)
        if len(names) < 2 and (names or survey is None or not survey.masks):
            raise ConfigError(
                "At least two classes are needed.", "Add `--classes road,car` or `--label-map FILE`."
            )
        _name_once(names)
        if survey is not None and survey.values | survey.colors:
            proposal = propose(survey, names)
            class_list, ignore_index = proposal.classes, proposal.ignore_index
        else:
            class_list = [ClassConfig(name=class_name) for class_name in names]
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
        ignore_index=ignore_index,
        ignore_color=ignore_color,
        mask_encoding="rgb" if survey is not None and survey.is_rgb else "auto",
        labels=None if begun is None else begun.entry,
        **({} if survey is None else {"mask_template": survey.template, "image_suffix": survey.suffix}),
    )
    atomic_write_bytes(state.config_file, text.encode())
    configured_project()
    console.print(f"Wrote {state.config_file}. Next: [bold]segcurate ingest[/]")


@config_app.command("show")
def config_show(as_json: Json = False) -> None:
    """Print every setting in force, with defaults and environment overrides."""
    import yaml

    document = configured_project().config.model_dump(mode="json")
    if as_json:
        print_json(document)
    else:
        sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


@config_app.command("schema")
def config_schema() -> None:
    """Print the configuration's JSON schema: every key, its type, default and meaning."""
    from pydantic import TypeAdapter

    from pipeline.config import ProjectConfig

    print_json(TypeAdapter(ProjectConfig).json_schema())


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Upgrade the database to this version's revision."""
    from db import migrations
    from db.engine import connect

    engine = connect(configured_project().database_url)
    with explained(engine):
        before, after = migrations.upgrade(engine)
    console.print(f"The database is at revision {after}" + (f" (was {before})." if before != after else "."))


@db_app.command("rename")
def db_rename(
    copied: Annotated[
        bool, typer.Option("--copied", help="The database is a copy: give it an id of its own, too.")
    ] = False,
) -> None:
    """Give the database's project the name that the configuration has now."""
    from contextlib import closing

    from db.engine import Database
    from pipeline.ownership import rename

    project = configured_project()
    with closing(Database(project.database_url)) as database:
        before, after = rename(project, database, copied=copied)
    console.print(literal(f"The database belongs to the project {after!r} (was {before!r})."))


@commands.command(rich_help_panel=PROJECT)
def ingest() -> None:
    """Register images, masks and splits. Run it again for new files."""
    run_step("ingest", then_next=True)


@commands.command(rich_help_panel=PROJECT)
def doctor(
    seconds: Annotated[
        float, typer.Option(min=0, help="Of the measurement of images/s; 0 to leave it out.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """What this machine and this project offer, what is missing, and how long scoring the pool takes here."""
    from pipeline.steps.doctor import doctor as examine

    project = configured_project() if state.config_file.exists() else None
    with progress_bar() as progress:
        found = examine(project, seconds=seconds, progress=progress)
    if as_json:
        print_json(found.document())
        return
    for line in found.lines():
        print_line(line)


@commands.command(rich_help_panel=PROJECT)
def demo(
    folder: Annotated[Path, typer.Argument(help="A new folder for the demo's project.")] = Path("demo"),
    rounds: Annotated[int, typer.Option(help="Number of the last round.")] = 3,
) -> None:
    """Three rounds on slices of the MNI brain template, from a handful of labels, and a small simulation.
    Needs the extra `demo`."""
    from flows.demo import write_demo

    state.config_file = write_demo(folder)
    ingest()
    loop(rounds=rounds, annotator="masks")
    assess()
    stress(images=DEMO_STRESSED)
    novelty()
    console.print("Does selecting beat chance? A small simulation, with short trainings:")
    simulate(strategies="stratified,random", seeds=2, budgets=DEMO_BUDGETS, iterations=DEMO_ITERATIONS)
    report(folder=folder / "report")
    command = f"segcurate --config {state.config_file} simulate --seeds 10 --budgets 1%,2%,4%"
    console.print(f"The same with whole trainings, for hours: [bold]{literal(command)}[/]")


@dataclass(frozen=True)
class _Begun:
    """The labels that a project begins with. `entry` is what `data.labels` says of them; `images_path` is the
    folder of their images as the configuration names it."""

    entry: dict[str, str]
    classes: list[ClassConfig]
    images_path: str | None


def _labels_that_exist(source: Path | None, tool: str | None, images: str | None) -> _Begun | None:
    """What a file of labels says; None where no file is named."""
    if source is None:
        if tool is not None:
            raise ConfigError("`--from` names a format, and no file.", f"Write `--from {tool} FILE`.")
        return None
    from pipeline.labeling.beginning import BACKGROUND, look_at

    found = look_at(source, tool=tool)
    if images is None and found.images is None:
        example = f", such as {found.example}," if found.example else ""
        raise ConfigError(
            f"The images of {source}{example} are not in a folder beside it.", "Add `--images FOLDER`."
        )
    names = [item.name for item in found.classes]
    console.print(literal(f"{found.tool.title} with {len(names)} classes: {', '.join(names)}."))
    if found.unlabeled == BACKGROUND:
        console.print(literal(f"Pixels where nothing is drawn are {BACKGROUND}."))
    entry = {"format": found.tool.name, "path": _as_configured(source), "unlabeled": found.unlabeled}
    return _Begun(entry, found.classes, None if found.images is None else _as_configured(found.images))


def _as_configured(path: Path) -> str:
    """A path as the configuration names it: relative to its folder where it lies inside it."""
    folder, absolute = Path(os.path.abspath(state.config_file)).parent, Path(os.path.abspath(path))
    text = absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)
    return text.replace("$", "$$")


def _survey(images: str, masks: str | None) -> MaskSurvey | None:
    """What the masks hold; None where there are none yet, or the images are in an object store."""
    from pipeline.data.mask_survey import survey_masks
    from pipeline.data.remote import is_remote

    if masks is None or is_remote(images):
        return None
    try:
        return survey_masks(Path(os.path.abspath(state.config_file)).parent, images=images, masks=masks)
    except DataError as error:
        console.print(literal(f"The masks were not looked at: {error}"))
        return None


def _ask_for_colors(survey: MaskSurvey) -> Proposal:
    """A name for each colour of the masks."""
    from pipeline.data.mask_survey import colors_to_name, name_colors
    from pipeline.data.masks import unpack
    from pipeline.format import percent

    console.print("Name the class of each colour. An empty answer means: not labeled.")
    total = sum(survey.colors.values())
    names: dict[int, str] = {}
    for color in colors_to_name(survey):
        question = f"{unpack(color)}, {percent(survey.colors[color] / total)} of the pixels"
        names[color] = typer.prompt(question, default="", show_default=False).strip()
    proposal = name_colors(names)
    if len(proposal.classes) < 2:
        raise ConfigError("At least two classes are needed.", "Name two colours or more.")
    _name_once([item.name for item in proposal.classes])
    return proposal


def _ask_for_classes(survey: MaskSurvey | None) -> list[str]:
    """The names of the classes, as one answer; with masks, those that their values suggest are offered."""
    from pipeline.data.mask_survey import propose

    offered = ""
    if survey is not None:
        with suppress(ConfigError):
            offered = ",".join(item.name for item in propose(survey, []).classes)
    answer = typer.prompt(
        "Class names in the order of their values, separated by commas", default=offered or None
    )
    return [part.strip() for part in answer.split(",") if part.strip()]


def _name_once(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"`--classes` names {', '.join(twice)} twice.", "Name each class once.")
