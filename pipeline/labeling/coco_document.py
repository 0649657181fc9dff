"""The JSON file that COCO's formats share, written and read as a stream."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from pipeline.config import ClassConfig
from pipeline.errors import DataError
from pipeline.files import open_plain, writing
from pipeline.format import counted
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, check_size, classes_of, shown
from pipeline.labeling.manifest import IMAGES
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.queue_writer import QueueWriter
from pipeline.labeling.unchanged import without_unchanged
from pipeline.labeling.untrusted.archives import Files, is_zip, open_files
from pipeline.labeling.untrusted.coco_index import CocoImage, CocoIndex, categories

ANNOTATIONS = "annotations"

Paint = Callable[[CocoIndex, CocoImage, int, int], DecodedMask]
"""Makes an image's mask from its annotations, given its width and height."""

LONGEST_DOCUMENT = 4 << 30
"""Bytes of a JSON file in an archive."""
MOST_DOCUMENTS = 100
"""In an archive."""

_HEAD = 1 << 16
_PLAIN = re.compile("[^A-Za-z0-9._-]")
_FIRST = re.compile(rb'\s*\{\s*"(info|licenses|images|categories|annotations|type)"\s*:')
_LISTS = re.compile(rb'"(file_name|image_id|category_id|supercategory|segmentation)"\s*:')


class CocoDocument:
    """Writes the images and annotations of a COCO file one by one, and joins them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = {name: path.with_name(f"{path.stem}.{name}.part") for name in (IMAGES, ANNOTATIONS)}
        self._counts = dict.fromkeys(self._parts, 0)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for part in self._parts.values():
                part.touch()

    def add_image(self, image: OutgoingImage, queue: OutgoingQueue, *, file_name: str) -> int:
        """Write an image's entry; return its id."""
        id_ = self._counts[IMAGES] + 1
        entry = {
            "id": id_,
            "file_name": file_name,
            "width": image.width,
            "height": image.height,
            "rank": image.rank,
            "score": image.regions[0].score if image.regions else None,
            "segcurate_image_id": image.image_id,
            "sha256": image.sha256,
            "queue": queue.name,
        }
        self._append(IMAGES, [entry])
        return id_

    def add_annotations(self, annotations: Iterable[dict[str, Any]]) -> None:
        """Write annotations. An `id` of None becomes the next number, from 1 on."""
        first = self._counts[ANNOTATIONS] + 1
        self._append(
            ANNOTATIONS,
            ({**item, "id": id_} if "id" in item else item for id_, item in enumerate(annotations, first)),
        )

    def finish(self, queue: OutgoingQueue, *, of_category: dict[str, Any]) -> None:
        """Join the parts of the file. Categories are the classes, with ids from 1 on."""
        categories = [
            {"id": index + 1, "name": name, "supercategory": "", **of_category}
            for index, name in enumerate(queue.labels.names)
        ]
        head = {
            "info": {"description": f"{queue.project}: {queue.name}", "version": "1.0"},
            "licenses": [],
            "categories": categories,
        }
        with writing(self.path), self.path.open("wb") as document:
            document.write(json.dumps(head)[:-1].encode())
            for name, part in self._parts.items():
                document.write(f', "{name}": [\n'.encode())
                with part.open("rb") as content:
                    shutil.copyfileobj(content, document)
                document.write(b"]")
                part.unlink()
            document.write(b"}\n")

    def _append(self, name: str, items: Iterable[dict[str, Any]]) -> None:
        part = self._parts[name]
        with writing(part), part.open("a", encoding="ascii") as stream:
            for item in items:
                stream.write(",\n" * (self._counts[name] > 0) + json.dumps(item, allow_nan=False))
                self._counts[name] += 1


class CocoQueueWriter(QueueWriter):
    """Writes a queue with a COCO file.

    Attributes:
        file: the COCO file, in the folder.
        of_category: fields of a category beside its id and name.
        text: the README, to be formatted.
    """

    overlays = None
    file: str
    of_category: ClassVar[dict[str, Any]] = {}
    text: str

    def __init__(self, folder: Path, queue: OutgoingQueue) -> None:
        super().__init__(folder, queue)
        self.document = CocoDocument(folder / self.file)

    def add(self, image: OutgoingImage) -> None:
        """Write one image, its annotations, and its line of the manifest."""
        placed = self.write_image(image)
        id_ = self.document.add_image(image, self.queue, file_name=placed.removeprefix(f"{IMAGES}/"))
        self.document.add_annotations(self.annotations(image, id_))
        self.manifest.add(image.entry(self.queue, image=placed))

    def annotations(self, image: OutgoingImage, image_id: int) -> Iterable[dict[str, Any]]:
        """The COCO annotations of the image with this id. A format also writes its mask files here."""
        raise NotImplementedError

    def finish(self) -> None:
        """Join the parts of the COCO file, and write the small files beside it."""
        self.document.finish(self.queue, of_category=self.of_category)
        self.proposals.add(self.document.path)
        super().finish()

    def readme(self) -> str:
        """The annotator's README."""
        what = "the model's proposals" if self.queue.model is not None else "empty masks"
        what = "the labels as they are now" if self.queue.kind == "review" else what
        return self.text.format(
            name=self.queue.name,
            regions=counted(self.manifest.regions, "region"),
            images=counted(self.manifest.images, "image"),
            file=self.file,
            start=what,
            annotated=f"{what} as annotations, one for each connected part of a class"
            if self.queue.model is not None
            else "no annotation yet",
            images_folder=IMAGES,
        )


def read_documents(paths: list[Path], paint: Paint) -> Iterator[Annotation | Rejected]:
    """The annotations of COCO files; of several files, one that cannot be read is yielded as `Rejected`."""
    for path in paths:
        try:
            yield from _annotations(path, paint)
        except DataError as error:
            if len(paths) == 1:
                raise DataError(f"{path}: {error.problem}", error.remedy) from error
            yield Rejected(shown(path.name), str(error))


def declared_classes(source: Path, *, panoptic: bool) -> list[ClassConfig]:
    """The categories of the files of a source, with their colours where they have any.

    Raises:
        DataError: it is not a COCO file, or is an unchanged export.
    """
    colors: dict[str, tuple[int, int, int] | None] = {}
    with unpacked(source) as files:
        for path in documents(files, panoptic=panoptic):
            for name, color in categories(path):
                colors.setdefault(name, color)
    return classes_of(colors)


def documents(source: Path, *, panoptic: bool) -> list[Path]:
    """The COCO files of a source: the file itself, or the files of a folder, without links.

    Raises:
        DataError: there are none, or they are unchanged exports.
    """
    found = list(_coco_files(source, panoptic=panoptic))
    if not found:
        raise DataError(f"There is no COCO file in {source}.", "Name the exported JSON file.")
    return without_unchanged(
        source, found, folder=source if source.is_dir() else source.absolute().parent.parent
    )


@contextmanager
def unpacked(source: Path) -> Generator[Path]:
    """A folder with the JSON files of a zip archive, until the block ends; any other source as it is.

    Raises:
        DataError: the archive is damaged, or too large.
    """
    if not is_zip(source):
        yield source
        return
    with open_files(source) as files, tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(_documents_in(files)):
            path = Path(folder) / f"{number}_{_PLAIN.sub('_', PurePosixPath(name).name)[-100:]}"
            with files.open(name, longest=LONGEST_DOCUMENT) as member, path.open("wb") as copy:
                shutil.copyfileobj(member, copy)
        yield Path(folder)


def is_coco_zip(source: Path) -> bool:
    """Whether an archive has a file that begins like a COCO file."""
    if not is_zip(source):
        return False
    with suppress(DataError), open_files(source) as files:
        for name in _documents_in(files):
            with files.open(name, longest=LONGEST_DOCUMENT) as member:
                if _begins_like_coco(member):
                    return True
    return False


def _documents_in(files: Files) -> list[str]:
    """The JSON files at the top of an archive, or in its `annotations`."""
    names = [name for name in files.names if name.removeprefix(f"{ANNOTATIONS}/").count("/") == 0]
    return [name for name in names if name.lower().endswith(".json")][:MOST_DOCUMENTS]


def recognises(source: Path, *, panoptic: bool) -> bool:
    """Whether a source is, or contains, a COCO file of this kind."""
    if source.is_dir():
        return next(_coco_files(source, panoptic=panoptic), None) is not None
    return source.suffix.lower() == ".json" and _is_coco(source, panoptic=panoptic)


def _coco_files(source: Path, *, panoptic: bool) -> Iterator[Path]:
    """The source itself where it is a file, or the files of this kind in a folder."""
    if not source.is_dir():
        yield source
        return
    for folder in (source / ANNOTATIONS, source):
        if folder.is_dir() and not (folder.is_symlink() and folder != source):
            for path in sorted(folder.glob("*.json")):
                if path.is_file() and not path.is_symlink() and _is_coco(path, panoptic=panoptic):
                    yield path


def _is_coco(path: Path, *, panoptic: bool) -> bool:
    """Whether a file begins like COCO and is of this kind. A panoptic file has the folder of its masks beside
    it, with the same name."""
    folder = path.with_suffix("")
    with open_plain(path) as stream:
        return _begins_like_coco(stream) and (folder.is_dir() and not folder.is_symlink()) == panoptic


def _begins_like_coco(stream: BinaryIO) -> bool:
    head = stream.read(_HEAD).removeprefix(b"\xef\xbb\xbf")
    return _FIRST.match(head) is not None and _LISTS.search(head) is not None


def _annotations(path: Path, paint: Paint) -> Iterator[Annotation | Rejected]:
    index = CocoIndex(path)
    yield from index.scan()
    for image in index.images():
        if isinstance(image, Rejected):
            yield image
        else:
            yield Annotation(
                subject=f"{shown(path.name)}: {shown(image.key)}",
                image=image.key,
                name=image.name,
                read=partial(_read, index, image, paint),
                queue=image.queue,
                sha256=image.sha256,
            )


def _read(index: CocoIndex, image: CocoImage, paint: Paint, width: int, height: int) -> DecodedMask:
    check_size((image.width, image.height), width, height)
    return paint(index, image, width, height)
