"""The export flow: `segcurate export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.artifacts import link_export, show_queue
from flows.runner import Done, FlowRunner, rename_run, run_flow
from pipeline.format import counted
from pipeline.steps.export import export


@flow(name="export-queue", flow_run_name="export {queue}", persist_result=False)
def export_queue(
    config: Path, queue: str | None = None, folder: Path | None = None, to: str | None = None
) -> State[Any]:
    """Write a queue for a labeling tool: images, the model's masks to correct, overlays of the regions.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        queue: A queue by name, such as review-01; the round's where it is empty.
        folder: Where it is written, instead of a folder below `export.folder`; a relative one is inside the
            project's folder.
        to: The tool: folder, label-studio, cvat, cvat-masks, coco, coco-panoptic or voc; `labeling.tool`
            where it is empty.
    """

    def work(runner: FlowRunner) -> Done:
        target = None if folder is None else runner.project.root / folder
        exported = runner.run(export, queue=queue or None, folder=target, to=to or None)
        written, failed = exported.folder, len(exported.failed)
        link_export(runner.project, runner.database, written)
        show_queue(runner.project, runner.database)
        rename_run(f"export {queue or written.name}")
        words = f"{counted(failed, 'image')} could not be exported: `segcurate failures` says why."
        unusable = (words,) if failed else ()
        return Done(f"Exported to {written}.", unusable)

    return run_flow(config, work, title="export")
