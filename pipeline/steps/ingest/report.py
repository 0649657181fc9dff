"""What a run of `ingest` says."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.format import agree, counted, split_counts


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
        lines = [
            f"Found {counted(self.found, 'image file')}, {self.added} of them new; "
            f"{counted(self.masks, 'image')} {agree(self.masks, 'has', 'have')} a mask.",
            f"Images: {split_counts(self.splits)}.",
            *self.skipped,
            *([self.read_again] if self.read_again else []),
            *self.classes,
            *self.grown,
        ]
        if self.labeled_images:
            regions, images = counted(self.labeled_regions, "region"), counted(self.labeled_images, "image")
            lines.append(f"Initial labels: {regions} of {images}.")
        if self.failures:
            failed = counted(self.failures, "file")
            lines.append(f"{failed} could not be used: `segcurate failures` says why.")
        for split, without in sorted(self.unmasked.items()):
            images, have = counted(without, f"{split} image"), agree(without, "has", "have")
            lines.append(f"Warning: {images} {have} no mask and cannot be evaluated.")
        return lines + [f"Warning: {text}" for text in self.warnings]
