"""The export flow: what `segcurate export` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.artifacts import link_export, show_queue
from flows.tasks import as_task, ended, opened, rename_run
from pipeline.steps.export import export


@dataclass(frozen=True)
class ExportSummary:
    """Where a queue lies now."""

    summary: str
    folder: Path


@flow(name="export-queue", flow_run_name="export {queue}", persist_result=False)
def export_queue(
    config: Path, queue: str | None = None, folder: Path | None = None, to: str | None = None
) -> State[Any]:
    """Write a queue for a labeling tool: images, the model's masks to correct, pictures of where to look.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        queue: A queue by name, such as review-01; the round's where it is empty.
        folder: Where it is written, instead of a folder below `export.folder`; a relative one is inside the
            project's folder.
        to: The tool: folder, label-studio, cvat, cvat-masks, coco, coco-panoptic or voc; what `labeling.tool`
            says where it is empty.
    """

    def work() -> ExportSummary:
        with opened(config) as (project, database):
            target = None if folder is None else project.root / folder
            written = as_task(export, project, database, queue=queue or None, folder=target, to=to or None)
            link_export(project, written)
            show_queue(project, database)
            rename_run(f"export {queue or written.name}")
            return ExportSummary(summary=f"Exported to {written}.", folder=written)

    return ended(work)
