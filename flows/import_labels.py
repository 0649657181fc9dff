"""The import flow: `segcurate import`, with an event for new labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from pydantic import Field

from db.queries.models import count_new_labels
from db.tables import Identity
from flows.automations import LABELS_IMPORTED, resource_id
from flows.runner import Done, FlowRunner, rename_run, run_flow
from pipeline.errors import UserError
from pipeline.ownership import identity_of
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.step import ImportReport
from pipeline.steps.sync import pull


@flow(name="import-labels", flow_run_name="import {folder}", persist_result=False)
def import_labels_flow(
    config: Path,
    folder: Path | None = None,
    annotator: Annotated[str, Field(max_length=200)] | None = None,
    close: bool = False,
    tool: str | None = None,
) -> State[Any]:
    """Import labels. Importing the same masks twice changes nothing.

    New labels emit the event `segcurate.labels.imported`.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        folder: The exported folder with the masks in it, any folder of masks, or a file that a labeling tool
            has exported; a relative one is inside the project's folder. Empty: from the tool's server.
        annotator: The annotator of masks that do not name one.
        close: Close the round with the labels that have been imported.
        tool: The tool whose format or server it is; where it is empty, it is detected, or is `labeling.tool`.
    """

    def work(runner: FlowRunner) -> Done:
        project = runner.project
        if folder is None:
            pulled = runner.run(pull, tool=tool or project.config.labeling.tool, close=close)
            reports = pulled.imported
        else:
            source = project.root / folder
            reports = [
                runner.run(import_labels, source=source, tool=tool or None, annotator=annotator, close=close)
            ]
        imported = sum(report.imported for report in reports)
        unchanged = sum(report.unchanged for report in reports)
        rejected = sum(len(report.rejected) + report.rejected_more for report in reports)
        if rejected and not (imported or unchanged):
            raise UserError(
                f"Nothing could be imported from {folder or 'the server'}.", "Correct what the log lists."
            )
        with runner.database.session(write=False) as session:
            new_labels = count_new_labels(session)
        names = ", ".join(report.queue for report in reports)
        rename_run(f"import {names or 'nothing new'}", f"{imported} masks")
        identity = identity_of(project, runner.database)
        for report in reports:
            if report.imported or report.closed:
                _emit_labels_imported(identity, report, new_labels)
        what = f"{names}: {imported} masks imported, {unchanged} unchanged, {rejected} rejected"
        unusable = (f"{rejected} masks could not be imported: the log lists them.",) if rejected else ()
        return Done(
            f"{what if reports else 'Nothing new'}; {new_labels} labeled regions wait for a model.", unusable
        )

    return run_flow(config, work, title="import")


def _emit_labels_imported(identity: Identity, report: ImportReport, new_labels: int) -> None:
    emit_event(
        LABELS_IMPORTED,
        resource={"prefect.resource.id": resource_id(identity.id), "prefect.resource.name": identity.name},
        payload={
            "queue": report.queue,
            "imported": report.imported,
            "labeled_pixels": report.labeled_pixels,
            "open_items": report.open_items,
            "closed": report.closed,
            "new_labels": new_labels,
        },
    )
