"""The import flow: what `segcurate import` does, and an event when labels have come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from pydantic import Field

from db.queries.operation import count_new_labels
from flows.automations import LABELS_IMPORTED
from flows.tasks import as_task, ended, opened, rename_run, say
from pipeline.config import Project
from pipeline.errors import UserError
from pipeline.steps.import_labels import ImportReport, import_labels


@dataclass(frozen=True)
class ImportSummary:
    """What has come back. `new_labels` counts all labeled regions that no model was trained on yet."""

    summary: str
    queue: str
    imported: int
    refused: int
    open_items: int
    closed: bool
    new_labels: int


def resource_id(project_name: str) -> str:
    """Whom the event is about."""
    return f"segcurate.project.{project_name}"


@flow(name="import-labels", flow_run_name="import {folder}", persist_result=False)
def import_labels_flow(
    config: Path,
    folder: Path,
    annotator: Annotated[str, Field(max_length=200)] | None = None,
    close: bool = False,
) -> State[Any]:
    """Take labels back. Importing the same masks twice changes nothing.

    When anything new has come, the event `segcurate.labels.imported` says so.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        folder: The exported folder with the masks in it, or any folder of masks; a relative one is inside the
            project's folder.
        annotator: Who drew the masks.
        close: End the round with the labels that are there.
    """

    def work() -> ImportSummary:
        with opened(config) as (project, database):
            report = as_task(
                import_labels,
                project,
                database,
                folder=project.root / folder,
                annotator=annotator,
                close=close,
            )
            for line in report.lines():
                say(line)
            if report.refused and not report.imported and not report.unchanged:
                raise UserError(
                    f"Nothing could be imported from {folder}.", "Mend the files that the log names."
                )
            with database.session(write=False) as session:
                new_labels = count_new_labels(session)
            rename_run(f"import {report.queue}", f"{report.imported} masks")
            if report.imported or report.closed:
                _tell(project, report, new_labels)
            return ImportSummary(
                summary=f"{report.queue}: {report.imported} masks imported, {report.unchanged} unchanged, "
                f"{len(report.refused)} refused; {new_labels} labeled regions wait for a model.",
                queue=report.queue,
                imported=report.imported,
                refused=len(report.refused),
                open_items=report.open_items,
                closed=report.closed,
                new_labels=new_labels,
            )

    return ended(work)


def _tell(project: Project, report: ImportReport, new_labels: int) -> None:
    name = project.config.name
    emit_event(
        LABELS_IMPORTED,
        resource={"prefect.resource.id": resource_id(name), "prefect.resource.name": name},
        payload={
            "queue": report.queue,
            "imported": report.imported,
            "labeled_pixels": report.labeled_pixels,
            "open_items": report.open_items,
            "closed": report.closed,
            "new_labels": new_labels,
        },
    )
