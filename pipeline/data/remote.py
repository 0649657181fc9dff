"""Images in object stores: named by URI, listed and fetched with fsspec, kept in a bounded folder.

A `RemoteFile` stands where a path would. Whoever reads it calls `opened`: the object is fetched at that
moment, in that thread, and later readings find it in the cache. Credentials come from where the store's own
tools look for them (environment, configuration files), never from segcurate's settings.
"""

from __future__ import annotations

import errno
import importlib
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pipeline.data.bounded_folder import BoundedFolder
from pipeline.errors import ConfigError, DataError
from pipeline.files import open_plain

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the attempts to reach a store."""
AWAY_SECONDS = 30.0
"""For so long after a store could not be reached, the next object is asked for once, not again and again."""
_S3_LIMITS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1, "mode": "standard"}}

_REMOTE = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ON_THIS_MACHINE = ("file", "local")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_away_until: dict[str, float] = {}

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageCache:
    """Fetched objects in a folder, the least recently read of them leaving when it is full.

    Attributes:
        folder: is made when the first object is fetched.
        limit: bytes that the finished files may have together. An object larger than that is fetched each
            time that it is read.
        options: of the fsspec file system, without secrets.
    """

    folder: Path
    limit: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, uri: str) -> BufferedReader:
        """The object's content, from the folder or from the store.

        Raises:
            DataError: there is no such object, it may not be read, or the store cannot be reached.
            UserError: the disk is full, or the folder cannot be written.
        """

        def fetch(name: str) -> None:
            _reaching(uri, lambda: _filesystem(uri, self.options).get_file(uri, name))

        found = self._files.open(uri)
        return self._files.put(uri, fetch) if found is None else found

    def forget(self, uri: str) -> None:
        """Fetch the object anew when it is read next."""
        self._files.forget(uri)

    def path_of(self, uri: str) -> Path:
        """The file that holds the object."""
        return self._files.path_of(uri)

    @property
    def _files(self) -> BoundedFolder:
        return BoundedFolder(self.folder, self.limit)


@dataclass(frozen=True)
class RemoteFile:
    """An object of a store, where a path would stand.

    Attributes:
        uri: `<scheme>://<bucket>/<key>`, the key as the store lists it, with nothing escaped.
    """

    uri: str
    cache: ImageCache = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix


ImageFile = Path | RemoteFile
"""A file of an image, on this machine or in a store."""


def is_remote(text: str) -> bool:
    """Whether a path of the configuration, or a URI of the store, is to be read with fsspec.

    >>> is_remote("s3://bucket/frames"), is_remote("/data/frames"), is_remote("C:/frames")
    (True, False, False)
    """
    return _REMOTE.match(text) is not None


def canonical(uri: str) -> str:
    """A URI as it is kept: scheme in small letters, no slash at the end.

    >>> canonical("S3://bucket/frames/"), canonical("memory:///frames"), canonical("file:///data")
    ('s3://bucket/frames', 'memory://frames', 'file:///data')
    """
    scheme, name = _split(uri)
    return _uri(scheme, name.rstrip("/"))


@contextmanager
def opened(file: ImageFile) -> Generator[BufferedReader]:
    """The content of a file. Of a remote one, what the block cannot use is not kept: a damaged object that is
    replaced later is fetched anew.

    Raises:
        OSError: a file of this machine cannot be opened.
        DataError: it is no plain file.
        DataError, UserError: as `ImageCache.open`.
    """
    if isinstance(file, Path):
        with open_plain(file) as stream:
            yield stream
        return
    with file.cache.open(file.uri) as stream:
        try:
            yield stream
        except Exception:
            file.cache.forget(file.uri)
            raise


def kind(uri: str, options: Mapping[str, Any]) -> str | None:
    """What a URI names: `file`, `directory` (also a bucket, or a prefix), or None where there is nothing.

    Raises:
        DataError: the store cannot be reached, or may not be read.
        ConfigError: there is no such kind of store, or its package is not installed.
    """
    files = _filesystem(uri, options)
    try:
        return _reaching(uri, lambda: files.info(uri))["type"]
    except _Missing:
        return None


def listed(uri: str, options: Mapping[str, Any]) -> Iterator[str]:
    """The paths of all objects below a prefix, relative to it, in the store's order.

    Raises:
        DataError, ConfigError: as `kind`.
    """
    scheme, _ = _split(uri)
    files = _filesystem(uri, options)
    start = len(canonical(uri)) + 1
    names: list[str] = _reaching(uri, lambda: files.find(uri))
    return (_uri(scheme, name)[start:] for name in names)


class _Missing(DataError):
    """There is no such object, prefix or bucket."""


def _split(uri: str) -> tuple[str, str]:
    scheme, _, name = uri.partition("://")
    return scheme.lower(), name


def _uri(scheme: str, name: str) -> str:
    return f"{scheme}://{name if scheme in _ON_THIS_MACHINE else name.lstrip('/')}"


def _filesystem(uri: str, options: Mapping[str, Any]) -> Any:
    """The fsspec file system of a URI: one a process, made anew after a fork."""
    scheme, _ = _split(uri)
    fsspec = importlib.import_module("fsspec")
    limits = {"config_kwargs": _S3_LIMITS} if _EXTRAS.get(scheme) == "s3" else {}
    try:
        files = fsspec.filesystem(scheme, **{"use_listings_cache": False, **limits, **options})
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"Run `pip install 'segcurate[{extra}]'`." if extra else f"{error}."
        raise ConfigError(f"Reading {scheme}:// needs a package that is not installed.", remedy) from error
    except ValueError as error:
        raise ConfigError(
            f"`data.images` names {uri!r}, and there is no way to read {scheme}://.",
            "Name a folder, or a prefix such as s3://bucket/frames.",
        ) from error
    except TypeError as error:
        raise ConfigError(
            f"`data.storage_options` does not fit {scheme}://: {error}.", "Correct its keys."
        ) from error
    if hasattr(files, "retries"):
        files.retries = 1  # they are repeated here: inside of that, its own would multiply
    return files


def _reaching(uri: str, work: Callable[[], Result]) -> Result:
    """`work`, repeated while the store cannot be reached.

    Raises:
        DataError: it could not be reached, or it refused.
        OSError: this machine's disk is full.
    """
    bucket = canonical(uri).split("/")[2]
    away = time.monotonic() < _away_until.get(bucket, 0.0)
    for pause in (None,) if away else (*PAUSES, None):
        try:
            result = work()
        except FileNotFoundError as error:
            raise _Missing(f"There is no {uri}.", "Put it back, or run `segcurate ingest` again.") from error
        except PermissionError as error:
            raise DataError(
                f"{uri} may not be read with the credentials that were found.",
                "Give them permission, or name others in the environment.",
            ) from error
        except Exception as error:  # each store has errors of its own
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            if "Credentials" in type(error).__name__:
                raise DataError(
                    f"{uri} cannot be read: no credentials were found.",
                    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
                    "`data.storage_options: {anon: true}`.",
                ) from error
            if pause is None:
                _away_until[bucket] = time.monotonic() + AWAY_SECONDS
                raise DataError(
                    f"{uri} cannot be fetched: {_reason(error)}.",
                    "Check the network and the endpoint, then run the command again.",
                ) from error
            time.sleep(pause)
        else:
            _away_until.pop(bucket, None)
            return result
    raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    """The first line of an error, without what follows the `?` of an address: it may be signed."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = re.sub(r"\?[^\s\"']*", "", re.sub(r"//[^/\s@]*@", "//", line))
    return line[:200].rstrip(".") or type(error).__name__
