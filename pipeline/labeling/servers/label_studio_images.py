"""The URLs of a queue's images in Label Studio, which replace the names of files in a task's data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from pipeline.errors import DataError
from pipeline.files import read_plain
from pipeline.labeling.label_studio.config import HEATMAPS, IMAGE
from pipeline.labeling.label_studio.tasks import LOCAL_FILES
from pipeline.labeling.servers.base import ServerError
from pipeline.labeling.servers.label_studio_api import LabelStudioApi

Data = dict[str, Any]

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def image_urls(
    api: LabelStudioApi, project: int, folder: Path, *, images: str, document_root: Path | None
) -> Callable[[Data], Data]:
    """A function that replaces the files of a task's data with URLs that the server's pages can show.

    Args:
        images: `upload` sends files to the server, `local` lets it read the exported folder, and a URL is the
            prefix of each image's URI.
        document_root: of the server, for `local`.

    Raises:
        ServerError: `images` is none of these, or the server does not serve the folder's files.
    """
    upload = _Uploads(api, project, folder)
    if images in ("local", "upload"):
        local = images == "local"
        url = _local_urls(api, project, folder.absolute(), document_root) if local else upload
        return lambda data: data | _urls(data, (IMAGE, HEATMAPS), url)
    if not _REMOTE.match(images):
        raise ServerError(
            f"{images!r} is no way to bring images to Label Studio.",
            "Write `upload`, `local`, or an address such as `https://…/` or `s3://…/`.",
        )

    def prefixed(data: Data) -> Data:
        uri = str(data["uri"])
        if not _REMOTE.match(uri):  # keys of object stores are plain names: only URLs need quoting
            uri = images + (quote(uri) if images.lower().startswith("http") else uri)
        return data | {IMAGE: uri} | _urls(data, (HEATMAPS,), upload)

    return prefixed


def _urls(data: Data, keys: tuple[str, ...], url: Callable[[PurePosixPath], str]) -> Data:
    """A task's data, with a URL for each file that these members name."""

    def replaced(value: Any) -> Any:
        return [replaced(one) for one in value] if isinstance(value, list) else url(_below(value))

    return {key: replaced(data[key]) for key in keys if key in data}


LARGEST_UPLOAD = 1 << 30
"""Bytes of a file that is sent."""


class _Uploads:
    """Sends files to the server under a name with a hash of their content, so that none is sent twice."""

    def __init__(self, api: LabelStudioApi, project: int, folder: Path) -> None:
        self._api = api
        self._project = project
        self._folder = folder
        self._sent: dict[str, str] | None = None

    def __call__(self, file: PurePosixPath) -> str:
        """The URL of a file of the folder; the file is sent if it is not on the server yet."""
        if self._sent is None:
            listed = self._api.uploads(self._project)
            self._sent = {path.rpartition("/")[2].partition("-")[2]: path for path in listed}
        path = self._folder / file
        try:
            content = read_plain(path, longest=LARGEST_UPLOAD)
        except OSError as error:
            raise DataError(f"{path} cannot be read.", "Export the queue again.") from error
        name = hashlib.sha256(content).hexdigest()[:32] + path.suffix
        if name not in self._sent:
            self._sent[name] = self._api.upload(self._project, name, content)
        return f"/data/{self._sent[name]}"


def _local_urls(
    api: LabelStudioApi, project: int, folder: Path, document_root: Path | None
) -> Callable[[PurePosixPath], str]:
    """Let the server read the exported folder; return a function for its files' URLs."""
    root = folder if document_root is None else document_root.absolute()
    if not folder.is_relative_to(root):
        raise ServerError(
            f"{folder} is not below the server's document root {root}.", "Export the queue below it."
        )
    below_root = PurePosixPath(folder.relative_to(root).as_posix())
    # a storage may not be the root itself
    shown = [folder] if folder != root else [path for path in sorted(folder.iterdir()) if path.is_dir()]
    known = api.local_storages(project)
    for path in shown:
        if str(path) not in known:
            api.add_local_storage(project, path)
    return lambda file: LOCAL_FILES + quote(str(below_root / file))


def _below(reference: object) -> PurePosixPath:
    """The path below the exported folder that a task names."""
    path = PurePosixPath(unquote(str(reference).removeprefix(LOCAL_FILES)))
    if not str(reference).startswith(LOCAL_FILES) or path.is_absolute() or ".." in path.parts:
        raise DataError(f"A task names {reference!r}, no file of its folder.", "Export the queue again.")
    return path
