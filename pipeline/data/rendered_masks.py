"""The masks that `ingest` has made from label files: class indices, each under the hash of its content."""

from __future__ import annotations

from dataclasses import replace

from pipeline.data.masks import MaskCodec
from pipeline.data.project import Project

RENDERED_FOLDER = "rendered"
"""Below the work folder."""


def mask_codec(project: Project) -> MaskCodec:
    """The codec of a project's masks, of the user's files and of those that were made from label files."""
    return replace(MaskCodec.from_config(project.config.data), rendered=project.workdir / RENDERED_FOLDER)
