"""What an import did."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.format import agree, counted
from pipeline.labeling.exchange import Rejected

MOST_LINES = 1000
"""Rejected parts that a report lists; it counts the rest."""

_EXAMPLES = 3


@dataclass
class ImportReport:
    """What an import did. `imported` and `unchanged` count masks."""

    queue: str
    """Its name; of several, all names."""
    imported: int = 0
    unchanged: int = 0
    labeled_pixels: int = 0
    """Of the imported masks."""
    skipped: int = 0
    """Images that an annotator would not label: their regions are not asked for again."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """Files, tasks or lines that were not taken, each with its reason; the first thousand of them."""
    rejected_more: int = 0
    outside: int = 0
    """Masks of images of the project that are in none of these queues."""
    outside_examples: list[str] = field(default_factory=list)
    """The first three of them: files, or tasks or lines of a file."""
    overlapping: list[tuple[str, int]] = field(default_factory=list)
    """Masks in which shapes of different classes overlap, and by how many pixels: the later shape won."""
    missing: list[str] = field(default_factory=list)
    """Images of the queue that have no label."""
    classes: set[int] = field(default_factory=set)
    """The indices of the classes that the masks show."""
    gaps: int = 0
    """Masks that leave pixels of a queued region without a class."""
    unclear: str = ""
    """Why the masks may mean something else; empty where nothing points to it."""
    unpainted: list[str] = field(default_factory=list)
    """Queued regions that their image's mask leaves more than half unpainted: they stay queued."""
    open_items: int = 0
    """Queue items that still wait for a label."""
    released: int = 0
    """Queue items that went back to the pool because the round was closed without them."""
    unlabeled: int = 0
    """Held-out images that stay without a mask because their queue was ended without them."""
    held_out: bool = False
    """Whether the labels that still wait are of held-out images: their queue belongs to no round."""
    grown: tuple[str, ...] = ()
    """The new versions of held-out splits, as sentences."""
    reopened: bool = False
    """Whether the round goes on with another queue, because no image has a label."""
    closed: bool = False
    """Whether the round is closed, and the next one open."""

    @property
    def rejections(self) -> int:
        """How many parts were not taken, with those that have no line."""
        return len(self.rejected) + self.rejected_more

    def reject(self, rejected: Rejected) -> None:
        """Note what was not taken."""
        if len(self.rejected) < MOST_LINES:
            self.rejected.append((rejected.subject, rejected.reason))
        else:
            self.rejected_more += 1

    def leave_out(self, subject: str) -> None:
        """Note a mask of another image of the project: it is no mistake, and nothing is done with it."""
        self.outside += 1
        if len(self.outside_examples) < _EXAMPLES:
            self.outside_examples.append(subject)

    def lines(self) -> list[str]:
        """The report as text; every file that was not taken has a line."""
        lines = [f"{self.queue}: {counted(self.imported, 'mask')} imported, {self.unchanged} unchanged."]
        lines += [f"rejected: {subject}: {reason}" for subject, reason in self.rejected]
        if self.rejected_more:
            lines.append(f"rejected: {self.rejected_more} more.")
        if self.unclear:
            lines.append(f"warning: {self.unclear}")
        if self.outside:
            lines.append(
                f"{counted(self.outside, 'mask')} {agree(self.outside, 'belongs', 'belong')} to no image of "
                f"{self.queue} and {agree(self.outside, 'is', 'are')} left out: {_listed(self)}."
            )
        lines += [
            f"overlapping: {subject}: {counted(pixels, 'pixel')} of several classes; "
            "the later shape has them."
            for subject, pixels in self.overlapping
        ]
        lines += [f"unpainted: {region}" for region in self.unpainted]
        if self.skipped:
            lines.append(
                f"{counted(self.skipped, 'image')} {agree(self.skipped, 'was', 'were')} skipped by their "
                f"annotator, and {agree(self.skipped, 'is', 'are')} not asked for again."
            )
        if self.missing:
            lines.append(
                f"{counted(len(self.missing), 'image')} of the queue "
                f"{agree(len(self.missing), 'has', 'have')} no mask yet, first {self.missing[0]}."
            )
        if self.released:
            lines.append(f"{counted(self.released, 'region')} went back to the pool without a label.")
        if self.unlabeled:
            images = counted(self.unlabeled, "held-out image")
            lines.append(f"{images} {agree(self.unlabeled, 'stays', 'stay')} without a mask.")
        lines += self.grown
        if self.reopened:
            lines.append("No image has a label yet, so the round goes on with another queue.")
        elif self.closed:
            lines.append("The round is closed, and the next one is open.")
        elif self.open_items:
            lines.append(
                f"{counted(self.open_items, 'image' if self.held_out else 'region')} still "
                f"{agree(self.open_items, 'waits', 'wait')} for a label; `--close` ends "
                f"the {'queue' if self.held_out else 'round'} with what is there."
            )
        return lines


def _listed(report: ImportReport) -> str:
    examples = ", ".join(report.outside_examples)
    return examples if report.outside == len(report.outside_examples) else f"{examples}, …"
