"""The commands between a queue and its labels: to the labeling tool and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import ROUND, Heatmaps, exit_with_warnings, opened_runner, print_next, require
from pipeline.errors import UserError

commands = typer.Typer()

Url = Annotated[
    str | None, typer.Option("--url", help="The tool's server, instead of the one in `labeling`.")
]
Queue = Annotated[
    str | None, typer.Option("--queue", help="A queue by name, such as review-01; the round's by default.")
]
Close = Annotated[
    bool, typer.Option("--close", help="Close the round with the labels that have been imported.")
]


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
    heatmaps: Heatmaps = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Write files only, even if the tool's server is configured.")
    ] = False,
) -> None:
    """Write the queue for a labeling tool, with the model's masks to correct; send it to its server."""
    if url is not None and files_only:
        raise UserError("`--url` and `--files-only` exclude each other.", "Leave one of them out.")
    from pipeline.steps.ready import model_of_queue, queue_to_export

    with opened_runner() as runner:
        require(runner, lambda _, session: model_of_queue(session, queue_to_export(session, queue)[1]))
        from pipeline.labeling.tools import tool_named

        labeling = runner.project.config.labeling
        tool = to or labeling.tool
        tool_named(tool)  # an unknown one is an error before torch is imported
        from pipeline.steps.export import export as step
        from pipeline.steps.sync import open_server, push

        sends = not files_only and (url is not None or labeling.server_of(tool) is not None)
        if sends:
            # a missing token is an error before the export
            open_server(runner.project, runner.database, tool, url)
        report = runner.run(step, queue=queue, folder=folder, to=to, heatmaps=heatmaps)
        if sends:
            runner.run(push, folder=report.folder, tool=tool, url=url, queue=queue)
        print_next(runner.database, queue=queue)


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
        str | None, typer.Option("--from", help="The tool whose format or server it is; detected by default.")
    ] = None,
    url: Url = None,
    annotator: Annotated[
        str | None, typer.Option(help="The annotator of masks that do not name one.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", help="The queue of labels that do not name one.")
    ] = None,
    close: Close = False,
) -> None:
    """Import labels. Importing the same masks twice changes nothing.

    The exit code is 3 where some masks could not be imported.
    """
    if sources and url is not None:
        raise UserError("`--url` and files exclude each other.", "Leave one of them out.")
    from pipeline.steps.ready import server_access

    with opened_runner() as runner:
        if not sources:
            labeling = runner.project.config.labeling
            server_access(labeling, tool or labeling.tool, url)
        from pipeline.operation.labels import take_labels

        labels = take_labels(
            runner,
            sources=sources or [],
            tool=tool,
            url=url,
            annotator=annotator,
            queue=queue,
            close=close,
        )
        print_next(runner.database)
    exit_with_warnings(labels.warnings)


@commands.command(rich_help_panel=ROUND)
def sync(
    tool: Annotated[
        str | None, typer.Option("--tool", help="label-studio or cvat; `labeling.tool` by default.")
    ] = None,
    url: Url = None,
    close: Close = False,
) -> None:
    """Pull finished labels from the labeling tool's server, and push the active queue to it.

    The exit code is 3 where some masks could not be imported.
    """
    from pipeline.steps.ready import server_access

    with opened_runner() as runner:
        named = tool or runner.project.config.labeling.tool
        server_access(runner.project.config.labeling, named, url)
        from pipeline.operation import delivery
        from pipeline.operation.labels import ImportedLabels

        pulled, _ = delivery.sync(runner, tool=named, url=url, close=close)
        print_next(runner.database)
    exit_with_warnings(() if pulled is None else ImportedLabels(pulled.imported).warnings)
