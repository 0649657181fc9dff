"""The labeling tools that queues are exported to and imported from."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import DataError
from pipeline.labeling.coco import COCO
from pipeline.labeling.coco_panoptic import COCO_PANOPTIC
from pipeline.labeling.cvat import CVAT
from pipeline.labeling.exchange import Tool
from pipeline.labeling.folder import FOLDER
from pipeline.labeling.label_studio import LABEL_STUDIO
from pipeline.labeling.voc import CVAT_MASKS, VOC

TOOLS: dict[str, Tool] = {
    tool.name: tool for tool in (FOLDER, LABEL_STUDIO, CVAT, CVAT_MASKS, COCO, COCO_PANOPTIC, VOC)
}
"""By name. Where several tools recognise a source, the last of them reads it."""


def tool_named(name: str) -> Tool:
    """The tool of this name.

    Raises:
        DataError: there is none.
    """
    if name not in TOOLS:
        raise DataError(f"There is no labeling tool {name!r}.", f"Write one of {', '.join(TOOLS)}.")
    return TOOLS[name]


def recognise(source: Path) -> Tool:
    """The tool that can read these files.

    Raises:
        DataError: there is no such file or folder, or no tool recognises it.
    """
    if not source.exists():
        raise DataError(
            f"There is no file or folder {source}.",
            "Name the exported folder, a folder of masks, or what the labeling tool has exported.",
        )
    for tool in reversed(TOOLS.values()):
        if tool.recognises(source):
            return tool
    raise DataError(
        f"{source} is in none of the formats that segcurate reads.",
        f"Name its format with `--from`: {', '.join(TOOLS)}.",
    )
