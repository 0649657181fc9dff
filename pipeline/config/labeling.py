"""Settings of the labeling tools, which receive queues and return labels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import FilePath, Positive, Section


def _server(url: str | None) -> str | None:
    if url is None:
        return None
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest:
        raise ValueError(f"Expected an address such as https://labels.example.org, but got {url!r}.")
    if "@" in rest.split("/")[0]:
        raise ValueError("Credentials do not belong in an address: put the token into the environment.")
    return url.rstrip("/")


class LabelStudioConfig(Section):
    url: str | None = None
    """The server, such as http://localhost:8080. Its token is read from LABEL_STUDIO_API_KEY."""
    project: str | None = None
    """The title of the project there; the name of this one by default."""
    images: str = "upload"
    """How the server gets the images. `upload`: they are sent to it. `local`: the server reads them from
    `document_root`, which it may serve. A prefix such as `https://images.example.org/` or
    `s3://bucket/frames/`: images are addressed below it by their path relative to this file; images of an
    object store keep their own address."""
    document_root: FilePath | None = None
    """With `images: local`, the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT; `export.folder` is below."""
    masks: Literal["auto", "bitmask", "brush"] = "auto"
    """The format of masks. `bitmask`: PNGs. `brush`: brush strokes, which every version supports. `auto`:
    PNGs where the server supports them."""
    sampling: Literal["sequential", "uncertainty"] = "sequential"
    """How the server selects the next task; both keep the queue's order."""

    _check_url = field_validator("url")(_server)

    @field_validator("images")
    @classmethod
    def _way(cls, images: str) -> str:
        if images not in ("upload", "local") and "://" not in images:
            raise ValueError(f"Expected upload, local, or a prefix such as s3://bucket/, but got {images!r}.")
        return images


class CvatConfig(Section):
    url: str | None = None
    """The server, such as https://app.cvat.ai. Its token is read from CVAT_ACCESS_TOKEN."""
    batch: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Images a task."""

    _check_url = field_validator("url")(_server)


class LabelingConfig(Section):
    tool: Literal["folder", "label-studio", "cvat", "cvat-masks", "coco", "coco-panoptic", "voc"] = "folder"
    """The format of `segcurate export` and nightly runs. `folder`: images, masks, a folder for labels."""
    sync: bool = False
    """Each nightly run pulls finished labels from the tool's server, and pushes the queue to it."""
    label_studio: LabelStudioConfig = LabelStudioConfig()
    cvat: CvatConfig = CvatConfig()
    timeout_seconds: Positive = 60
    """Timeout of one request to a server."""

    @model_validator(mode="after")
    def _sync_has_a_server(self) -> Self:
        if self.sync and self.server_of(self.tool) is None:
            servers = "`tool: label-studio` with `label_studio.url`, or `tool: cvat` with `cvat.url`"
            raise ValueError(f"`sync` needs a server: set {servers}.")
        return self

    def server_of(self, tool: str) -> str | None:
        """The address of a tool's server, where it has one."""
        return {"label-studio": self.label_studio.url, "cvat": self.cvat.url}.get(tool)
