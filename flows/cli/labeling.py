"""The commands between a queue and its labels: to the labeling tool and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import ROUND, opened_project, say, say_next
from flows.cli.display import console, literal, progress_bar
from pipeline.errors import UserError

commands = typer.Typer()

Url = Annotated[
    str | None, typer.Option("--url", help="The tool's server, instead of the one of `labeling`.")
]
Queue = Annotated[
    str | None, typer.Option("--queue", help="A queue by name, such as review-01; the round's by default.")
]
Close = Annotated[bool, typer.Option("--close", help="End the round with the labels that are there.")]


@commands.command(rich_help_panel=ROUND)
def export(
    to: Annotated[
        str | None,
        typer.Option(
            help="folder, label-studio, cvat, cvat-masks, coco, coco-panoptic or voc. "
            "Without it: `labeling.tool`.",
        ),
    ] = None,
    url: Url = None,
    queue: Queue = None,
    folder: Annotated[Path | None, typer.Option(help="Instead of a folder below `export.folder`.")] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Write files, even if the tool's server is known.")
    ] = False,
) -> None:
    """Write the queue for a labeling tool, with the model's masks to correct; send it to its server."""
    from pipeline.steps.export import export as step
    from pipeline.steps.sync import open_server, push

    if url is not None and files_only:
        raise UserError("`--url` and `--files-only` exclude each other.", "Leave one of them out.")
    with opened_project() as (project, database), progress_bar() as progress:
        tool = to or project.config.labeling.tool
        sends = not files_only and (url is not None or project.config.labeling.server_of(tool) is not None)
        if sends:
            open_server(project, tool, url)  # a missing token is said now, not after the export
        written = step(project, database, queue=queue, folder=folder, to=to, progress=progress)
        console.print(f"Exported to {literal(str(written))}.")
        if sends:
            say(push(project, database, folder=written, tool=tool, url=url, queue=queue, progress=progress))
    say_next()


@commands.command(name="import", rich_help_panel=ROUND)
def import_(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The exported folder, any folder of masks, or files that a labeling tool has exported. "
            "Without any: from the tool's server.",
        ),
    ] = None,
    tool: Annotated[
        str | None, typer.Option("--from", help="Whose format or server it is; found out by default.")
    ] = None,
    url: Url = None,
    annotator: Annotated[
        str | None, typer.Option(help="Who drew the masks, where they do not say themselves.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", help="A queue by name, for labels that do not say themselves.")
    ] = None,
    close: Close = False,
) -> None:
    """Take labels back. Importing the same masks twice changes nothing."""
    with opened_project() as (project, database), progress_bar() as progress:
        if not sources:
            from pipeline.steps.sync import pull

            named = tool or project.config.labeling.tool
            say(pull(project, database, tool=named, url=url, queue=queue, close=close, progress=progress))
        else:
            from pipeline.steps.import_labels import import_labels as step

            if url is not None:
                raise UserError("`--url` and files exclude each other.", "Leave one of them out.")
            report = step(
                project,
                database,
                source=sources,
                tool=tool,
                annotator=annotator,
                close=close,
                queue=queue,
                progress=progress,
            )
            say(report)
            if report.rejected and not report.imported and not report.unchanged:
                named = ", ".join(map(str, sources))
                raise UserError(f"Nothing could be imported from {named}.", "Mend what is listed above.")
    say_next()


@commands.command(rich_help_panel=ROUND)
def sync(
    tool: Annotated[
        str | None, typer.Option("--tool", help="label-studio or cvat; `labeling.tool` by default.")
    ] = None,
    url: Url = None,
    close: Close = False,
) -> None:
    """Fetch finished labels from the labeling tool's server, and send the queue there if it is out."""
    from pipeline.steps.sync import sync as step

    with opened_project() as (project, database), progress_bar() as progress:
        named = tool or project.config.labeling.tool
        say(step(project, database, tool=named, url=url, close=close, progress=progress))
    say_next()
