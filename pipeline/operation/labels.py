"""Import of labels by a command or a flow: from files, or from the labeling tool's server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.format import counted
from pipeline.operation.runner import Runner
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.report import ImportReport
from pipeline.steps.sync import pull


@dataclass(frozen=True)
class ImportedLabels:
    """The reports of an import, one a queue; none where a server had nothing new."""

    reports: Sequence[ImportReport]

    @property
    def imported(self) -> int:
        """Masks that are new."""
        return sum(report.imported for report in self.reports)

    @property
    def unchanged(self) -> int:
        """Masks that were imported before."""
        return sum(report.unchanged for report in self.reports)

    @property
    def rejected(self) -> int:
        """Files, tasks or lines that were not taken."""
        return sum(report.rejections for report in self.reports)

    @property
    def outside(self) -> int:
        """Masks of images that are in none of the queues."""
        return sum(report.outside for report in self.reports)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Says that something was not taken."""
        if not self.rejected:
            return ()
        return (f"{counted(self.rejected, 'mask')} could not be imported, see `rejected:` above.",)


def take_labels(
    runner: Runner,
    *,
    sources: Sequence[Path] = (),
    tool: str | None = None,
    url: str | None = None,
    annotator: str | None = None,
    queue: str | None = None,
    close: bool = False,
) -> ImportedLabels:
    """Import labels from files, or without any from the server of a labeling tool.

    Args:
        tool: whose format or server it is. None: the format is detected, and the server is that of
            `labeling.tool`.
        url, annotator, queue, close: see `pipeline.steps.sync.pull` and
            `pipeline.steps.import_labels.import_labels`.

    Raises:
        UserError: the import failed, or no mask could be taken.
    """
    if sources:
        one = runner.run(
            import_labels, source=list(sources), tool=tool, annotator=annotator, close=close, queue=queue
        )
        labels = ImportedLabels([one])
    else:
        named = tool or runner.project.config.labeling.tool
        labels = ImportedLabels(runner.run(pull, tool=named, url=url, queue=queue, close=close).imported)
    if labels.rejected and not (labels.imported or labels.unchanged):
        where = ", ".join(map(str, sources)) or "the server"
        raise UserError(
            f"Nothing could be imported from {where}.",
            "Correct what the lines `rejected:` name, then import it again.",
        )
    if labels.outside and not (labels.imported or labels.unchanged):
        names = ", ".join(report.queue for report in labels.reports)
        raise UserError(
            f"No mask is of an image of {names}.",
            "Name the masks' queue with `--queue`. Masks of images that no queue has go into the folder of "
            "`data.masks`; `segcurate ingest` takes them.",
        )
    return labels
