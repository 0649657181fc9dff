"""The parts that all formats' writers share: the exported folder with images, overlays and manifest."""

from __future__ import annotations

from pathlib import Path

from pipeline.labeling.image_files import write_image
from pipeline.labeling.manifest import IMAGES, OVERLAYS, ManifestWriter
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.pictures import write_overlay
from pipeline.labeling.unchanged import ProposalList


class QueueWriter:
    """Writes a queue into a folder that exists, is empty, and has no other writer. A format adds its images,
    its masks and its README.

    Attributes:
        images: the name of the folder of images.
        overlays: the name of the folder of overlays; None for a format without.
        parts: the names of its other folders.
    """

    images: str = IMAGES
    overlays: str | None = OVERLAYS
    parts: tuple[str, ...] = ()

    def __init__(self, folder: Path, queue: OutgoingQueue) -> None:
        self.folder = folder
        self.queue = queue
        self.manifest = ManifestWriter(folder)
        self.proposals = ProposalList(folder)
        if not queue.overlays:
            self.overlays = None
        for part in (self.images, self.overlays, *self.parts):
            if part is not None:
                (folder / part).mkdir(parents=True)

    def add(self, image: OutgoingImage) -> None:
        """Write one image.

        Raises:
            DataError: its file cannot be read; the image is left out then.
            UserError: the folder cannot be written, or the disk is full.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write the regions as CSV, the label map and the annotator's README."""
        self.manifest.finish(label_map=self.queue.labels.document(), readme=self.readme())

    def readme(self) -> str:
        """The annotator's README."""
        raise NotImplementedError

    def write_image(self, image: OutgoingImage) -> str:
        """Write the image's file; return its path in the folder."""
        name = write_image(
            image.source,
            self.folder / self.images,
            name=image.name,
            size=(image.width, image.height),
            how=self.queue.how,
            root=self.queue.root,
        )
        return f"{self.images}/{name}"

    def write_overlay(self, image: OutgoingImage) -> str | None:
        """Write the picture of where to look; return its path in the folder, None without overlays."""
        if self.overlays is None:
            return None
        file = f"{self.overlays}/{image.name}.png"
        write_overlay(self.folder / file, image)
        return file
