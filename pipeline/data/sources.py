"""Finding images: folders, globs and single files, here or in an object store, streamed in natural order.

Names are sorted a folder at a time; a folder of more names than memory should hold is sorted on disk.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pipeline.data.images import IMAGE_ENDINGS
from pipeline.data.project import Project
from pipeline.data.remote import ImageCache, ImageFile, RemoteFile, is_remote, kind, listed
from pipeline.errors import DataError
from pipeline.format import agree, counted

SORTED_IN_MEMORY = 10_000
"""Names of one folder that are sorted in memory; more are sorted in files."""

SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"}
)
"""Folders in which file servers and desktops keep thumbnails, snapshots and what was deleted."""

_LISTED = 8
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """A file that `data.images` names.

    Attributes:
        path: where it is.
        uri: how the store calls it.
        below: its path below its image folder, POSIX: what lists and CSV files may call it.
    """

    path: ImageFile
    uri: str
    below: str

    @property
    def parent(self) -> str:
        """Its folder below its image folder; empty at the top."""
        return self.below.rpartition("/")[0]

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Skipped:
    """What lies in the image folders and is not read: files by their ending, and folders by their name."""

    endings: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """One line each, where there are any."""
        files = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
        listed = ", ".join(f"{number} {ending or 'without an ending'}" for ending, number in files)
        more = " and others" if len(self.endings) > _LISTED else ""
        folders = ", ".join(name for name, number in sorted(self.folders.items()) if number)
        total = self.endings.total()
        were = agree(total, "is no image and was", "are no images and were")
        skipped = f"{counted(total, 'file')} {were} skipped"
        lines = [f"{skipped}: {listed}{more}."] if files else []
        return lines + ([f"Folders of the system were skipped: {folders}."] if folders else [])


@dataclass(frozen=True)
class _Folder:
    """An entry of `data.images`: what lies below `base` and matches `pattern`, or everything there."""

    base: Path
    pattern: re.Pattern[str] | None
    depth: int | None

    def below(self, file: ImageFile) -> str | None:
        """The path of a file below the folder, POSIX; None where the entry does not name it."""
        absolute = None if isinstance(file, RemoteFile) else Path(os.path.abspath(file))
        if absolute is None or not absolute.is_relative_to(self.base):
            return None
        path = absolute.relative_to(self.base).as_posix()
        return path if self.pattern is None or self.pattern.fullmatch(path) else None

    def walk(self, excluded: set[str], skipped: Skipped) -> Iterator[ImageFile]:
        """Its image files, depth first; the folder itself is never excluded."""
        stack: list[tuple[Path, int, frozenset[str]]] = [
            (self.base, 1, frozenset({os.path.realpath(self.base)}))
        ]
        while stack:
            folder, depth, ancestors = stack.pop()
            folders: list[str] = []
            with _sorted_names(_names(folder, folders=folders, skipped=skipped), key=natural_key) as names:
                for name in names:
                    path = folder / name
                    if self.pattern is None or self.below(path) is not None:
                        yield path
            if self.depth is not None and depth >= self.depth:
                continue
            for name in sorted(folders, key=natural_key, reverse=True):
                real = os.path.realpath(folder / name)
                if real not in excluded and real not in ancestors:
                    stack.append((folder / name, depth + 1, ancestors | {real}))


@dataclass(frozen=True)
class _Prefix:
    """The same in an object store; `base` is a URI."""

    base: str
    pattern: re.Pattern[str] | None
    cache: ImageCache

    def below(self, file: ImageFile) -> str | None:
        if not isinstance(file, RemoteFile) or not file.uri.startswith(self.base + "/"):
            return None
        path = file.uri[len(self.base) + 1 :]
        return path if self.pattern is None or self.pattern.fullmatch(path) else None

    def walk(self, excluded: set[str], skipped: Skipped) -> Iterator[ImageFile]:
        """Its image files, in the order in which a folder is walked. Only this machine's are excluded."""
        files = (name for name in listed(self.base, self.cache.options) if _is_image(name))
        matching = (name for name in files if self.pattern is None or self.pattern.fullmatch(name))
        with _sorted_names(matching, key=_walking_order) as names:
            for name in names:
                yield RemoteFile(f"{self.base}/{name}", self.cache)


def find_images(project: Project, skipped: Skipped | None = None) -> Iterator[Found]:
    """Every image file that `data.images` names, once, in natural order within its folder.

    The project's own folders, the mask folder, hidden files and the masks that lie among the images are
    left out, and so are the folders of file servers and desktops; links to folders are followed.

    Args:
        skipped: counts what is no image in the folders of this machine.

    Raises:
        DataError: an entry of `data.images` does not exist.
    """
    sources = [_source(project, entry) for entry in project.config.data.images]
    excluded = _excluded(project)
    is_mask = _mask_test(project)
    for number, source in enumerate(sources):
        for path in source.walk(excluded, skipped or Skipped()):
            if any(earlier.below(path) is not None for earlier in sources[:number]) or is_mask(path):
                continue
            yield Found(path=path, uri=project.uri(path), below=source.below(path) or path.name)


def mask_path(project: Project, found: Found) -> Path | None:
    """The existing mask of an image, by `data.masks`, `mask_template` and `image_suffix`, or None. Accents
    may be composed in one of the names and decomposed, as macOS writes them, in the other."""
    config = project.config.data
    if config.masks is None:
        return None
    stem = found.stem.removesuffix(config.image_suffix)
    relative = config.mask_template.format(parent=found.parent, stem=stem, name=found.name)
    forms = {relative: None} | {unicodedata.normalize(form, relative): None for form in ("NFC", "NFD")}
    for name in forms:
        path = Path(os.path.normpath(project.path(config.masks) / name.lstrip("/")))
        if path != found.path and path.exists() and not path.is_dir():
            return path
    return None


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8, so that it can be stored."""
    return as_text(name) == name


def as_text(name: str) -> str:
    """A file name that can be stored: the name itself where it is valid UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class FoldersAbove:
    """What lies above an image: its folder below the entry of `data.images` that names it, `{parent}` of a
    template.

    Raises:
        DataError: an entry of `data.images` does not exist.
    """

    def __init__(self, project: Project) -> None:
        self._sources = [_source(project, entry) for entry in project.config.data.images]

    def parent(self, image: ImageFile) -> str:
        """POSIX, and empty at the top, or where no entry names the image any more."""
        for source in self._sources:
            below = source.below(image)
            if below is not None:
                return below.rpartition("/")[0]
        return ""


def natural_key(name: str) -> str:
    """A text that sorts as people count: the number in `img10` after the one in `img9`.

    >>> sorted(["img10", "img9", "Img1"], key=natural_key)
    ['Img1', 'img9', 'img10']
    """
    # A run of digits sorts by its length, then by its digits: both are in the text.
    return re.sub(r"0*([0-9]+)", lambda run: f"{len(run[1]):03d}{run[1]}", name.casefold()) + "\0" + name


def _source(project: Project, entry: str) -> _Folder | _Prefix:
    if is_remote(entry):
        return _prefix(project, entry)
    absolute = Path(os.path.abspath(project.path(entry)))
    if absolute.is_dir():
        return _Folder(base=absolute, pattern=None, depth=None)
    if absolute.is_file():
        return _Folder(base=absolute.parent, pattern=re.compile(re.escape(absolute.name)), depth=1)
    parts = absolute.parts
    fixed = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), None)
    base = Path(*parts[:fixed]) if fixed is not None else absolute
    if fixed is None or not base.is_dir():
        raise DataError(f"`data.images` names {entry!r}, and there is no {base}.", "Correct the path.")
    tail = parts[fixed:]
    depth = None if "**" in tail else len(tail)
    return _Folder(base=base, pattern=glob_pattern("/".join(tail)), depth=depth)


def _prefix(project: Project, entry: str) -> _Prefix:
    file = project.image(entry)
    if not isinstance(file, RemoteFile):
        raise ValueError(f"Expected a URI, but got {entry!r}.")
    options = file.cache.options
    what = kind(file.uri, options)
    if what == "directory":
        return _Prefix(file.uri, None, file.cache)
    if what == "file":
        return _Prefix(file.uri.rpartition("/")[0], re.compile(re.escape(file.name)), file.cache)
    parts = file.uri.split("/")  # scheme, an empty one, the bucket, and what lies in it
    fixed = next((index for index, part in enumerate(parts) if index > 2 and _MAGIC.search(part)), None)
    base = "/".join(parts[:fixed])
    if fixed is None or kind(base, options) != "directory":
        raise DataError(
            f"`data.images` names {entry!r}, and there is nothing at {base}.",
            "Correct the bucket or the prefix, or the endpoint (AWS_ENDPOINT_URL).",
        )
    return _Prefix(base, glob_pattern("/".join(parts[fixed:])), file.cache)


def _is_image(path: str) -> bool:
    """Whether a path below an image folder is that of an image, and hidden nowhere."""
    hidden = path.startswith(".") or "/." in path or not SYSTEM_FOLDERS.isdisjoint(path.split("/"))
    return not hidden and os.path.splitext(path)[1].lower() in IMAGE_ENDINGS


def _walking_order(path: str) -> tuple[str, ...]:
    """Sorts paths as folders are walked: in each folder first its files, then its folders."""
    *folders, name = path.split("/")
    return (*("1" + natural_key(folder) for folder in folders), "0" + natural_key(name))


def glob_pattern(glob: str) -> re.Pattern[str]:
    """The expression that a whole POSIX path must match. `*` stays inside a folder, `**` does not.

    >>> [bool(glob_pattern(glob).fullmatch("a/b/c.png")) for glob in ("**/*.png", "a/*.png")]
    [True, False]
    """
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", glob, flags=re.DOTALL)
    spelled = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            spelled.get(token) or (_set(token) if len(token) > 1 else re.escape(token)) for token in tokens
        ),
        flags=re.DOTALL,
    )


def _set(token: str) -> str:
    inside = token[1:-1].replace("\\", "\\\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"


def _excluded(project: Project) -> set[str]:
    """Folders of the project's own, and of masks, wherever the walk meets them."""
    config = project.config
    own = [project.workdir, project.path(config.export.folder)]
    if config.data.masks is not None:
        masks = project.path(config.data.masks)
        if not masks.is_dir():
            raise DataError(
                f"`data.masks` is {config.data.masks!r}, and there is no folder {masks}.",
                "Make it, or correct the path.",
            )
        own.append(masks)
    for entry in config.data.labels:
        labels = project.path(entry.path)
        own += [labels / "SegmentationClass", labels / "SegmentationObject"]
        if entry.format == "coco-panoptic" and labels.suffix:
            own.append(labels.with_suffix(""))
    if config.scoring.regions.folder is not None:
        own.append(project.path(config.scoring.regions.folder))
    return {os.path.realpath(path) for path in own}


def _mask_test(project: Project) -> Callable[[ImageFile], bool]:
    """Whether a file that lies in the mask folder is the mask of an image beside it.

    Only asked where masks and images share a folder (the mask folder is an entry of `data.images`).
    """
    config = project.config.data
    if config.masks is None:
        return lambda path: False
    folder = Path(os.path.abspath(project.path(config.masks)))
    stem_at = config.mask_template.rpartition("/")[2]
    shape = re.escape(stem_at).replace(r"\{stem\}", "(?P<stem>.+)").replace(r"\{name\}", "(?P<name>.+)")
    pattern = re.compile(shape.replace(r"\{parent\}", ".*"))

    def is_mask(path: ImageFile) -> bool:
        if isinstance(path, RemoteFile):
            return False
        match = pattern.fullmatch(path.name) if path.is_relative_to(folder) else None
        if match is None:
            return False
        named = match.groupdict()
        if "name" in named:
            return (path.parent / named["name"]).is_file() and named["name"] != path.name
        stem = named.get("stem", "")
        stems = {stem, stem + config.image_suffix}
        images = (path.with_name(of + ending) for of in stems for ending in sorted(IMAGE_ENDINGS))
        return any(image != path and image.is_file() for image in images)

    return is_mask


def _names(folder: Path, *, folders: list[str], skipped: Skipped) -> Iterator[str]:
    """Image files of a folder, unsorted; its folders are put into `folders`, the others into `skipped`."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    skipped.folders[".Trash"] += entry.name.startswith(".Trash")
                    continue
                ending = os.path.splitext(entry.name)[1].lower()
                if _is_folder(entry):
                    if entry.name in SYSTEM_FOLDERS:
                        skipped.folders[entry.name] += 1
                    else:
                        folders.append(entry.name)
                elif ending in IMAGE_ENDINGS:
                    yield entry.name
                else:
                    skipped.endings[ending] += 1
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be read: {error.strerror}.", "Give yourself permission."
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; a link that leads nowhere or to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


@contextmanager
def _sorted_names(names: Iterator[str], *, key: Callable[[str], Any]) -> Generator[Iterator[str]]:
    """Names in natural order; beyond `SORTED_IN_MEMORY` they are sorted in temporary files and merged."""
    with ExitStack() as files:
        runs: list[IO[str]] = []
        while chunk := sorted(islice(names, SORTED_IN_MEMORY), key=key):
            if not runs and len(chunk) < SORTED_IN_MEMORY:
                yield iter(chunk)
                return
            run = files.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape")
            )
            run.writelines(json.dumps(name) + "\n" for name in chunk)
            run.seek(0)
            runs.append(run)
        yield heapq.merge(*((json.loads(line) for line in run) for run in runs), key=key)
