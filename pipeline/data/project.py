"""A project: its settings, the folder that its paths are relative to, and the files that it names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError
from pydantic_settings import SettingsError

from pipeline.config import ProjectConfig
from pipeline.config.errors import explain, explain_override, read_yaml
from pipeline.config.project import NESTED, PREFIX, SQLITE
from pipeline.data.bounded_folder import BoundedFolder
from pipeline.data.image_info import ImageRef
from pipeline.data.remote import ImageCache, ImageFile, RemoteFile, canonical, is_remote
from pipeline.errors import ConfigError

LABELS_FOLDER = "labels"
"""Below the work folder: every label, under the hash of its content."""


class StoredImage(Protocol):
    """An image as the store describes it: a row of `image`, or as much of one as reading needs.

    `id`, `width` and `height` are int, `uri` is str; a checker sees a column of a table as another type.
    """

    @property
    def id(self) -> Any: ...
    @property
    def uri(self) -> Any: ...
    @property
    def width(self) -> Any: ...
    @property
    def height(self) -> Any: ...


@dataclass(frozen=True)
class Project:
    """A configuration, the folder that its paths are relative to, and the file that it was read from.

    Attributes:
        caches: the folder of what can be fetched or computed again; None for the workdir.
    """

    config: ProjectConfig
    root: Path
    file: Path | None = None
    caches: Path | None = None

    @property
    def database_url(self) -> str:
        """`database.url`, with a relative SQLite path made absolute."""
        url = self.config.database.url
        if url.startswith(SQLITE) and not url.startswith(SQLITE + "/") and url != SQLITE + ":memory:":
            return SQLITE + f"{self.root}/".replace("%", "%25").replace("?", "%3F") + url.removeprefix(SQLITE)
        return url

    @property
    def workdir(self) -> Path:
        return self.root / self.config.workdir

    def path(self, uri: str) -> Path:
        """The file on this machine behind a URI of the store, or behind a path of the configuration.

        Raises:
            ConfigError: it is in an object store.
        """
        if is_remote(uri):
            raise ConfigError(
                f"{uri} is in an object store, where only `data.images` may lie.",
                "Copy it to a folder, or mount it, and name that.",
            )
        return self.root / uri

    def is_label(self, uri: str) -> bool:
        """Whether a mask is a label that an import has stored, as class indices; else it is a file of the
        user's, whose values mean what the configuration says."""
        return self.path(uri).is_relative_to(self.workdir / LABELS_FOLDER)

    def image(self, uri: str) -> ImageFile:
        """The image behind a URI of the store, or behind an entry of `data.images`."""
        if not is_remote(uri):
            return self.root / uri
        data = self.config.data
        limit = int(data.cache_gib * 2**30)
        return RemoteFile(canonical(uri), ImageCache(self._cache("cache"), limit, data.storage_options))

    @property
    def encoder_maps(self) -> BoundedFolder:
        """Where the maps of a frozen encoder are kept."""
        return BoundedFolder(self._cache("features"), int(self.config.model.cache_gib * 2**30))

    def _cache(self, name: str) -> Path:
        return (self.caches or self.workdir) / name

    def ref(self, row: StoredImage, *, shard: int | None = None) -> ImageRef:
        """What is needed to read an image of the store.

        Args:
            shard: the first image id of the shard that it is scored in.
        """
        return ImageRef(row.id, self.image(row.uri), row.width, row.height, shard)

    def uri(self, file: ImageFile) -> str:
        """A file as the store calls it: relative to the project's folder where it lies inside it."""
        if isinstance(file, RemoteFile):
            return file.uri
        absolute = Path(os.path.abspath(file))
        if absolute.is_relative_to(self.root):
            return absolute.relative_to(self.root).as_posix()
        return absolute.as_posix()


def load_project(path: Path) -> Project:
    """Read and check a project's YAML, with the environment's overrides.

    Raises:
        ConfigError: the file is missing, is not YAML, or a key or value in it is wrong.
        DataError: it is no plain file, or has more than `LARGEST_TEXT` bytes.
    """
    if not path.exists():
        raise ConfigError(
            f"There is no configuration at {path}.",
            "Run `segcurate init`, or name one with `--config`.",
        )
    document = read_yaml(path, remedy="Name a configuration with `--config`.")
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings.", "Run `segcurate init` to write one.")
    try:
        config = ProjectConfig(**{str(key): value for key, value in document.items()})
    except ValidationError as error:
        raise ConfigError(explain(error, ProjectConfig, path=path, prefix=PREFIX, nested=NESTED)) from error
    except SettingsError as error:  # an override that is not JSON where JSON is needed
        raise ConfigError(*explain_override(error, prefix=PREFIX)) from None  # its cause quotes the value
    file = Path(os.path.abspath(path))
    return Project(config=config, root=file.parent, file=file)
