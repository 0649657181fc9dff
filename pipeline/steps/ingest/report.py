"""What a run of `ingest` says."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class IngestReport:
    """What one run of `ingest` found and did.

    Attributes:
        found: image files; `added` of them are new.
        splits: usable images by split, in the whole project; exact copies under `duplicate`.
        failures: files that could not be used, images and masks; recorded with their reasons.
        labeled_images, labeled_regions: initial labels that this run recorded.
        unmasked: held-out images without a mask, by split: they cannot be evaluated.
        classes: a table of the classes in the masks that this run has read.
        skipped: what lies in the image folders and is no image, as text.
        read_again: why all masks were read again, as text.
        grown: the new versions of held-out splits, as sentences.
    """

    found: int = 0
    added: int = 0
    failures: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    masks: int = 0
    labeled_images: int = 0
    labeled_regions: int = 0
    unmasked: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    read_again: str = ""
    grown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as text."""
        splits = ", ".join(f"{images} {name}" for name, images in sorted(self.splits.items()))
        lines = [
            f"Found {self.found} image files, {self.added} of them new; {self.masks} images have a mask.",
            f"Images: {splits or 'none'}.",
            *self.skipped,
            *([self.read_again] if self.read_again else []),
            *self.classes,
            *self.grown,
        ]
        if self.labeled_images:
            lines.append(f"Initial labels: {self.labeled_regions} regions of {self.labeled_images} images.")
        if self.failures:
            lines.append(f"{self.failures} files could not be used: `segcurate failures` says why.")
        for split, without in sorted(self.unmasked.items()):
            lines.append(f"Warning: {without} {split} images have no mask and cannot be evaluated.")
        return lines + [f"Warning: {text}" for text in self.warnings]
