"""Labels that exist in a labeling tool's format: `data.labels`, made into masks in the work folder.

A label file is read by the reader that `import` has for its format. Each mask is stored under the hash of its
content, and from there on it is one like those of `data.masks`. An unchanged file is not read again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from pipeline.config import IGNORE, LabelFile, content_hash
from pipeline.data.images import probe_image
from pipeline.data.labels import majority
from pipeline.data.masks import Mask, mask_sha256, read_mask, store_mask
from pipeline.data.project import Project
from pipeline.data.rendered_masks import RENDERED_FOLDER, mask_codec
from pipeline.data.sources import Found, find_images, is_text
from pipeline.errors import DataError
from pipeline.files import require_plain
from pipeline.format import agree, counted
from pipeline.labeling.encoding import VOID, LabelMap
from pipeline.labeling.exchange import Annotation, Rejected, UnknownClass, shown
from pipeline.labeling.names import OriginalNames, UnknownName
from pipeline.labeling.tools import tool_named
from pipeline.progress import Progress
from pipeline.steps.ingest.label_state import LabelState, content_of, files_of, signature_of

_VERSION = 1
"""Of what is made from label files: another one reads them again."""
_STATES = "files"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_LISTED = 8
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""That YAML reads as something else than text."""


@dataclass(frozen=True)
class FileLabel:
    """What a label file says of one image: its mask, or why it has none. `file` is what the store calls the
    label file."""

    file: str
    mask: Path | None = None
    problem: str = ""


@dataclass
class LabelFiles:
    """What all label files say.

    Attributes:
        labels: by the image's URI.
        rejected: subject and reason of what is not used.
        warnings: as text.
        unknown: the error for classes that the project does not have, of the first file with some.
    """

    labels: dict[str, list[FileLabel]] = field(default_factory=lambda: defaultdict(list))
    rejected: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unknown: DataError | None = None

    def of(self, uri: str) -> list[FileLabel]:
        """What they say of an image."""
        return self.labels.get(uri, [])


def read_label_files(project: Project, *, progress: Progress) -> LabelFiles:
    """Make the masks of `data.labels` that are not made yet.

    Raises:
        DataError: a label file is missing, or cannot be read to its end.
        UserError: the work folder cannot be written.
    """
    read = LabelFiles()
    config = project.config.data
    if not config.labels:
        return read
    images = {found.uri: found for found in find_images(project) if is_text(found.uri)}
    names, digest = OriginalNames(images), content_hash(sorted(images))
    for entry in config.labels:
        reader = _Reader(project, entry, images, names)
        state = reader.state(digest, progress)
        for uri, sha256 in state.masks.items():
            if uri in images:
                read.labels[uri].append(FileLabel(reader.name, mask=reader.mask_file(sha256)))
        for uri, problem in state.problems.items():
            if uri in images:
                read.labels[uri].append(FileLabel(reader.name, problem=problem))
        read.rejected += [(f"{reader.name}: {subject}", reason) for subject, reason in state.rejected]
        read.warnings += reader.warnings(state)
        if state.unknown and read.unknown is None:
            read.unknown = reader.unknown_classes()
    return read


@dataclass(frozen=True)
class _Drawn:
    """A stored mask of an image, by one annotator."""

    subject: str
    annotator: str | None
    labeled_at: datetime | None
    sha256: str


class _Reader:
    """Reads one entry of `data.labels`. `name` is what the store calls its file."""

    def __init__(
        self, project: Project, entry: LabelFile, images: Mapping[str, Found], names: OriginalNames
    ) -> None:
        self._project = project
        self._entry = entry
        self._images = images
        self._names = names
        self._folder = project.workdir / RENDERED_FOLDER
        self._path = project.path(entry.path)
        self._labels = LabelMap(project.config.data, aliases=entry.classes)
        self._tool = tool_named(entry.format)
        self._drawn: dict[str, list[_Drawn]] = defaultdict(list)
        self.name = project.uri(self._path)

    def mask_file(self, sha256: str) -> Path:
        """Where a mask is stored."""
        return self._folder / sha256[:2] / f"{sha256}.png"

    def state(self, images: str, progress: Progress) -> LabelState:
        """What the file holds, read as far as it is not known.

        Args:
            images: a hash of the names of the project's images.

        Raises:
            DataError: it is missing, or cannot be read to its end.
        """
        if not self._path.exists():
            raise DataError(
                f"`data.labels` names {self._entry.path!r}, and there is no file or folder {self._path}.",
                "Put it there, or correct the path.",
            )
        require_plain(self._path)
        file = self._folder / _STATES / f"{content_hash([self._entry.format, self.name])[:32]}.json"
        files = files_of(self._path, panoptic=self._entry.format == "coco-panoptic")
        settings, signature = self._settings(), signature_of(files)
        state = LabelState.load(file)
        unchanged = state.settings == settings and state.signature == signature
        content = state.content if unchanged else content_of(files)
        known = state.settings == settings and state.content == content
        if not known:
            state = LabelState(settings=settings)
        lost = [uri for uri, sha256 in state.masks.items() if not self.mask_file(sha256).exists()]
        for uri in lost:
            del state.masks[uri]
        if not known or lost or state.images != images:
            self._read(state, progress)
        state.signature, state.content, state.images = signature, content, images
        state.save(file)
        return state

    def warnings(self, state: LabelState) -> list[str]:
        """Images that the project does not have, and those of which nothing is drawn, as text."""
        found = []
        if state.absent:
            known = len(state.masks) + len(state.problems) + len(state.empty)
            annotated = counted(state.absent, "image")
            examples = ", ".join(map(shown, state.absent_names))
            own = "" if known else f" It has {', '.join(list(self._images)[:_LISTED])}."
            found.append(
                f"{annotated} that {self.name} annotates {agree(state.absent, 'is', 'are')} not among "
                f"`data.images`, such as {examples}.{own} Put {agree(state.absent, 'it', 'them')} there, or "
                "correct the names."
            )
        if state.empty:
            have = agree(len(state.empty), "has", "have")
            found.append(
                f"{counted(len(state.empty), 'image')} of {self.name} {have} nothing drawn, such as "
                f"{state.empty[0]}: not labeled."
            )
        return found

    def unknown_classes(self) -> DataError | None:
        """The error for the names in the file that mean no class; None where it lists none."""
        theirs = [item.name for item in self._tool.classes(self._path)] if self._tool.classes else []
        unknown = [name for name in theirs if name not in self._labels.meanings]
        if not unknown:
            return None
        ours = self._project.config.data.class_names
        meant = dict(self._entry.classes) | {name: _alike(name, ours) for name in unknown}
        line = ", ".join(f"{_yaml(key)}: {_yaml(name)}" for key, name in meant.items())
        return DataError(
            f"{self._path} has annotations of classes that `data.classes` does not have. Its classes are "
            f"{_listed(theirs)}; those of the project are {_listed(ours)}. Unknown: {_listed(unknown)}.",
            f"Say what each means, in its entry of `data.labels`: `classes: {{{line}}}`, where null is not "
            "labeled. Or add them to `data.classes`.",
        )

    def _settings(self) -> str:
        entry = self._entry.model_dump(mode="json", exclude={"path"})
        return content_hash([_VERSION, entry, self._project.config.data.class_names])

    def _read(self, state: LabelState, progress: Progress) -> None:
        """Read the annotations of the images that the state does not have."""
        state.begin_again()
        known = {*state.masks, *state.problems, *state.empty}
        try:
            for done, annotation in enumerate(self._tool.read(self._path, self._labels), start=1):
                progress("labels", done, None)
                if isinstance(annotation, Rejected):
                    state.rejected.append((annotation.subject, annotation.reason))
                elif not annotation.skipped:
                    self._take(annotation, state, known)
        except DataError as error:
            problem = error.problem.removeprefix(f"{self._path}: ")
            raise DataError(f"{self._path}, of `data.labels`: {problem}", error.remedy) from error
        for uri, drawn in self._drawn.items():
            try:
                state.masks[uri] = self._agreed(uri, drawn)
            except DataError as error:
                state.problems[uri] = str(error)
            else:
                if uri in state.problems:
                    state.rejected.append((uri, state.problems.pop(uri)))

    def _take(self, annotation: Annotation, state: LabelState, known: set[str]) -> None:
        """Store the mask of an annotation, or note why it is not used."""
        name = annotation.name or str(annotation.image)
        try:
            uri = self._names.image_of(name)
        except UnknownName:
            state.note_absent(name)
            return
        except DataError as error:
            state.rejected.append((annotation.subject, str(error)))
            return
        if uri in known:
            return
        try:
            info = probe_image(self._images[uri].path, max_pixels=self._project.config.data.max_pixels)
        except DataError:
            return  # the image itself is reported
        try:
            decoded = annotation.read(info.width, info.height).mask
        except DataError as error:
            state.problems.setdefault(uri, str(error))
            state.unknown += _is_unknown_class(error)
            return
        if (decoded == IGNORE).all():
            state.empty.append(uri)
            return
        _, sha256 = store_mask(self._folder, self._filled(decoded))
        self._drawn[uri].append(
            _Drawn(annotation.subject, annotation.annotator, annotation.labeled_at, sha256)
        )

    def _filled(self, decoded: Mask) -> Mask:
        """A mask in which pixels where nothing is drawn are what `unlabeled` says."""
        mask = decoded.copy()
        if self._entry.unlabeled != "ignore":
            mask[decoded == IGNORE] = self._labels.names.index(self._entry.unlabeled)
        if VOID in self._labels.aliases.values():
            mask[decoded == VOID] = IGNORE
        return mask

    def _agreed(self, uri: str, drawn: list[_Drawn]) -> str:
        """The SHA-256 of the one mask of an image: of several annotators, what most of them drew last.

        Raises:
            DataError: it has several masks, and no annotator is named.
        """
        newest: dict[str | None, _Drawn] = {}
        for one in drawn:
            before = newest.get(one.annotator)
            if before is not None and one.annotator is None and before.sha256 != one.sha256:
                raise DataError(
                    f"It has two masks: in {before.subject}, and in {one.subject}.", "Leave one of them."
                )
            if before is None or (before.labeled_at or _LONG_AGO) <= (one.labeled_at or _LONG_AGO):
                newest[one.annotator] = one
        if len(newest) == 1:
            return next(iter(newest.values())).sha256
        codec = mask_codec(self._project)
        votes = np.stack([read_mask(self.mask_file(one.sha256), codec, size=None) for one in newest.values()])
        mask = majority(votes)
        store_mask(self._folder, mask)
        return mask_sha256(mask)


def _is_unknown_class(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, UnknownClass):
            return True
        error = error.__cause__
    return False


def _alike(name: str, ours: list[str]) -> str | None:
    """The class whose name is most like this one; None where none is."""
    by_lower = {own.lower(): own for own in reversed(ours)}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.75)
    return by_lower[close[0]] if close else None


def _yaml(name: str | None) -> str:
    """A name as YAML on one line."""
    if name is not None and _PLAIN.fullmatch(name) and name.lower() not in _WORDS:
        return name
    return json.dumps(name, ensure_ascii=False)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(shown, names[:_LISTED])) + more
