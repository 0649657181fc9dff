"""A queue that was exported for CVAT, in the parts that a server gets: images, and their annotations."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import open_plain, read_plain, writing
from pipeline.labeling.cvat.document import ANNOTATIONS, END, LABELS
from pipeline.labeling.manifest import MANIFEST, BadLine, read_manifest
from pipeline.labeling.untrusted.xml_elements import Element, iter_elements

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ExportedQueue:
    """The parts of a queue's folder that a push needs.

    Attributes:
        name: of the queue.
        images: the files by their names in CVAT, in the order of their ranks.
        labels: as CVAT's form takes them.
        elements: begin and end of each image's element in the annotations; `head` bytes are before them.
    """

    folder: Path
    name: str
    images: dict[str, Path]
    labels: list[dict[str, Any]]
    elements: dict[str, tuple[int, int]]
    head: int

    @classmethod
    def of(cls, folder: Path) -> ExportedQueue:
        """Read an exported folder.

        Raises:
            DataError: it was not exported for CVAT, is incomplete, or empty.
        """
        missing = [part for part in (MANIFEST, ANNOTATIONS, LABELS) if not (folder / part).is_file()]
        if missing:
            raise _unfit(folder, f"it has no {missing[0]}")
        name, images = "", dict[str, Path]()
        for entry in read_manifest(folder / MANIFEST):
            if isinstance(entry, BadLine):
                raise _unfit(folder, f"line {entry.number} of {MANIFEST} cannot be read")
            name, path = entry.queue, folder / entry.image
            images[path.name] = path
        if not images:
            raise _unfit(folder, "it has no image")
        starts: dict[str, int] = {}
        with open_plain(folder / ANNOTATIONS) as stream:
            for element in iter_elements(stream, frozenset({"image"})):
                if isinstance(element, Element):
                    starts[element.attributes.get("name", "")] = element.start
        ends = [*list(starts.values())[1:], (folder / ANNOTATIONS).stat().st_size - len(END)]
        elements = {key: (start, end) for (key, start), end in zip(starts.items(), ends, strict=True)}
        if not images.keys() <= elements.keys():
            raise _unfit(folder, f"{ANNOTATIONS} lacks images")
        try:
            labels = json.loads(read_plain(folder / LABELS))
        except ValueError:
            raise _unfit(folder, f"{LABELS} is no JSON") from None
        return cls(folder, name, images, labels, elements, head=next(iter(starts.values())))

    @contextmanager
    def staged(self, names: Sequence[str]) -> Generator[list[Path]]:
        """The images as files of their own, until the block ends: CVAT's client follows links, and would
        send the names of their targets.

        Raises:
            DataError: an image is missing.
            UserError: the folder of temporary files is full.
        """
        with tempfile.TemporaryDirectory(prefix="segcurate-") as folder:
            paths: list[Path] = []
            for name in names:
                source, path = self.images[name].resolve(), Path(folder) / name
                if not source.is_file():
                    raise DataError(f"{self.images[name]} is missing.", "Export the queue again.")
                try:
                    os.link(source, path)
                except OSError:  # another file system, or one without hard links
                    with writing(path):
                        shutil.copyfile(source, path)
                paths.append(path)
            yield paths

    @contextmanager
    def annotations(self, names: Sequence[str]) -> Generator[Path]:
        """A document with the annotations of some images, until the block ends.

        Raises:
            UserError: the folder of temporary files is full.
        """
        with tempfile.TemporaryDirectory(prefix="segcurate-") as folder:
            path = Path(folder) / ANNOTATIONS
            with writing(path), open_plain(self.folder / ANNOTATIONS) as source, path.open("wb") as copy:
                for start, end in ((0, self.head), *(self.elements[name] for name in names)):
                    source.seek(start)
                    for at in range(start, end, _CHUNK):
                        copy.write(source.read(min(_CHUNK, end - at)))
                copy.write(END.encode())
            yield path


def _unfit(folder: Path, why: str) -> DataError:
    return DataError(f"{folder} cannot be pushed to CVAT: {why}.", "Run `segcurate export --to cvat` again.")
