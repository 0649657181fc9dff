"""CVAT: images with the model's masks go out as "CVAT for images 1.1", and come back so."""

from pipeline.labeling.cvat.answers import image_names, read_answers, recognises
from pipeline.labeling.cvat.document import CvatWriter
from pipeline.labeling.exchange import Tool

CVAT = Tool(
    name="cvat",
    title="CVAT",
    writer=CvatWriter,
    read=read_answers,
    names=image_names,
    recognises=recognises,
)

__all__ = ["CVAT", "CvatWriter"]
