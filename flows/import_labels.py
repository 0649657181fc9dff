"""The import flow: what `segcurate import` does, and an event when labels have come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from pydantic import Field

from db.queries.models import count_new_labels
from flows.automations import LABELS_IMPORTED
from flows.tasks import as_task, ended, opened, rename_run, say
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.step import ImportReport
from pipeline.steps.sync import pull


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
    folder: Path | None = None,
    annotator: Annotated[str, Field(max_length=200)] | None = None,
    close: bool = False,
    tool: str | None = None,
) -> State[Any]:
    """Take labels back. Importing the same masks twice changes nothing.

    When anything new has come, the event `segcurate.labels.imported` says so.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        folder: The exported folder with the masks in it, any folder of masks, or a file that a labeling tool
            has exported; a relative one is inside the project's folder. Empty: from the tool's server.
        annotator: Who drew the masks, where they do not say themselves.
        close: End the round with the labels that are there.
        tool: Whose format or server it is; found out, or what `labeling.tool` says, where it is empty.
    """

    def work() -> ImportSummary:
        with opened(config) as (project, database):
            if folder is None:
                named = tool or project.config.labeling.tool
                pulled = as_task(pull, project, database, tool=named, close=close)
                reports, lines = pulled.imported, pulled.lines()
            else:
                report = as_task(
                    import_labels,
                    project,
                    database,
                    source=project.root / folder,
                    tool=tool or None,
                    annotator=annotator,
                    close=close,
                )
                reports, lines = [report], report.lines()
            for line in lines:
                say(line)
            refused = sum(len(report.rejected) + report.rejected_more for report in reports)
            if refused and not any(report.imported or report.unchanged for report in reports):
                raise UserError(
                    f"Nothing could be imported from {folder or 'the server'}.",
                    "Mend what the log names.",
                )
            with database.session(write=False) as session:
                new_labels = count_new_labels(session)
            summary = _summary(reports, refused, new_labels)
            rename_run(f"import {summary.queue or 'nothing new'}", f"{summary.imported} masks")
            for report in reports:
                if report.imported or report.closed:
                    _tell(project, report, new_labels)
            return summary

    return ended(work)


def _summary(reports: Sequence[ImportReport], refused: int, new_labels: int) -> ImportSummary:
    names = ", ".join(report.queue for report in reports)
    imported = sum(report.imported for report in reports)
    unchanged = sum(report.unchanged for report in reports)
    words = f"{names}: {imported} masks imported, {unchanged} unchanged, {refused} refused"
    return ImportSummary(
        summary=f"{words if reports else 'Nothing new'}; {new_labels} labeled regions wait for a model.",
        queue=names,
        imported=imported,
        refused=refused,
        open_items=sum(report.open_items for report in reports),
        closed=any(report.closed for report in reports),
        new_labels=new_labels,
    )


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
