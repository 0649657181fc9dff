"""Pascal VOC's segmentations, and CVAT's "Segmentation mask 1.1", a zip archive of the same files."""

from pipeline.labeling.exchange import Tool
from pipeline.labeling.voc.annotations import declared_classes, read_annotations, recognises
from pipeline.labeling.voc.layout import CvatMasksWriter, VocWriter

VOC = Tool(
    name="voc",
    title="Pascal VOC",
    writer=VocWriter,
    read=read_annotations,
    recognises=recognises,
    classes=declared_classes,
)
CVAT_MASKS = Tool(
    name="cvat-masks",
    title="CVAT, as segmentation masks",
    writer=CvatMasksWriter,
    read=read_annotations,
    recognises=recognises,
    classes=declared_classes,
)

__all__ = ["CVAT_MASKS", "VOC", "CvatMasksWriter", "VocWriter"]
