"""How annotators' browsers get at the images of a queue: what a task's data says in their place."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import quote, unquote

from pipeline.errors import DataError
from pipeline.labeling.label_studio.config import HEATMAPS, IMAGE
from pipeline.labeling.label_studio.tasks import LOCAL_FILES
from pipeline.labeling.servers.base import ServerError
from pipeline.labeling.servers.label_studio_api import LabelStudioApi

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class ImagePlacer(Protocol):
    """Puts a task's images where browsers find them."""

    def placed(self, data: dict[str, Any]) -> dict[str, Any]:
        """A task's data, with the addresses that the server's pages can show."""
        ...


def placer(
    api: LabelStudioApi, project: int, folder: Path, *, images: str, document_root: Path | None
) -> ImagePlacer:
    """The way that is called `upload`, `local`, or an address that URIs are put after.

    Raises:
        ServerError: there is no such way, or the server does not show the folder's files.
    """
    if images == "upload":
        return Uploads(api, project, folder)
    if images == "local":
        return LocalFiles(api, project, folder, document_root)
    if _REMOTE.match(images):
        return Prefixed(Uploads(api, project, folder), images)
    raise ServerError(
        f"{images!r} is no way to bring images to Label Studio.",
        "Write `upload`, `local`, or an address such as `https://…/` or `s3://…/`.",
    )


class Uploads:
    """Files are sent to the server, under a name made of their content: none is sent twice."""

    def __init__(self, api: LabelStudioApi, project: int, folder: Path) -> None:
        self._api = api
        self._project = project
        self._folder = folder
        self._there: dict[str, str] | None = None

    def placed(self, data: dict[str, Any]) -> dict[str, Any]:
        """Send the image and its heat map, where they are not there yet."""
        return data | self.uploaded(data, (IMAGE, HEATMAPS))

    def uploaded(self, data: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        """The addresses of what these members of a task's data name."""
        if self._there is None:
            listed = self._api.uploads(self._project)
            self._there = {path.rpartition("/")[2].partition("-")[2]: path for path in listed}
        return {key: self._each(data[key], self._there) for key in keys if key in data}

    def _each(self, value: Any, there: dict[str, str]) -> Any:
        if isinstance(value, list):
            return [self._each(one, there) for one in value]
        path = self._folder / _below(value)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read.", "Export the queue again.") from error
        name = hashlib.sha256(content).hexdigest()[:32] + path.suffix
        if name not in there:
            there[name] = self._api.upload(self._project, name, content)
        return f"/data/{there[name]}"


class LocalFiles:
    """The server reads the exported folder, below its document root."""

    def __init__(self, api: LabelStudioApi, project: int, folder: Path, document_root: Path | None) -> None:
        folder = folder.absolute()
        root = folder if document_root is None else document_root.absolute()
        if not folder.is_relative_to(root):
            raise ServerError(
                f"{folder} is not below the server's document root {root}.", "Export the queue there."
            )
        self._below_root = PurePosixPath(folder.relative_to(root).as_posix())
        # a storage may not be the root itself
        shown = [folder] if folder != root else [path for path in sorted(folder.iterdir()) if path.is_dir()]
        there = api.local_storages(project)
        for path in shown:
            if str(path) not in there:
                api.add_local_storage(project, path)

    def placed(self, data: dict[str, Any]) -> dict[str, Any]:
        """Name the files below the document root."""
        return data | {key: self._each(data[key]) for key in (IMAGE, HEATMAPS) if key in data}

    def _each(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._each(one) for one in value]
        return LOCAL_FILES + quote(str(self._below_root / _below(value)))


class Prefixed:
    """Images have an address already, or one that begins with a prefix; only heat maps are sent."""

    def __init__(self, uploads: Uploads, prefix: str) -> None:
        self._uploads = uploads
        self._prefix = prefix

    def placed(self, data: dict[str, Any]) -> dict[str, Any]:
        """Name the image by its URI."""
        uri = str(data["uri"])
        address = uri if _REMOTE.match(uri) else self._prefix + self._quoted(uri)
        return data | {IMAGE: address} | self._uploads.uploaded(data, (HEATMAPS,))

    def _quoted(self, uri: str) -> str:
        """Keys of object stores are names, not addresses: only the web's need quoting."""
        return quote(uri) if self._prefix.lower().startswith("http") else uri


def _below(reference: object) -> PurePosixPath:
    """The path below the exported folder that a task names."""
    path = PurePosixPath(unquote(str(reference).removeprefix(LOCAL_FILES)))
    if not str(reference).startswith(LOCAL_FILES) or path.is_absolute() or ".." in path.parts:
        raise DataError(f"A task names {reference!r}, no file of its folder.", "Export the queue again.")
    return path
