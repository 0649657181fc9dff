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
from pipeline.format import agree, counted
from pipeline.operation.labels import take_labels
from pipeline.ownership import identity_of
from pipeline.steps.import_labels.report import ImportReport


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
        sources = [] if folder is None else [runner.project.root / folder]
        labels = take_labels(runner, sources=sources, tool=tool or None, annotator=annotator, close=close)
        with runner.database.session(write=False) as session:
            new_labels = count_new_labels(session)
        names = ", ".join(report.queue for report in labels.reports)
        rename_run(f"import {names or 'nothing new'}", counted(labels.imported, "mask"))
        identity = identity_of(runner.project, runner.database)
        for report in labels.reports:
            if report.imported or report.closed:
                _emit_labels_imported(identity, report, new_labels)
        imported = counted(labels.imported, "mask")
        counts = f"{imported} imported, {labels.unchanged} unchanged, {labels.rejected} rejected"
        what = f"{names}: {counts}" if labels.reports else "Nothing new"
        waiting = f"{counted(new_labels, 'labeled region')} {agree(new_labels, 'waits', 'wait')}"
        return Done(f"{what}; {waiting} for a model.", labels.warnings)

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
