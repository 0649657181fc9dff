"""CVAT: exports and imports images with masks as "CVAT for images 1.1"."""

from pipeline.labeling.cvat.annotations import declared_classes, read_annotations, recognises
from pipeline.labeling.cvat.document import CvatWriter
from pipeline.labeling.exchange import Tool

CVAT = Tool(
    name="cvat",
    title="CVAT",
    writer=CvatWriter,
    read=read_annotations,
    recognises=recognises,
    classes=declared_classes,
)

__all__ = ["CVAT", "CvatWriter"]
