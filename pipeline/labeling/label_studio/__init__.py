"""Label Studio: exports tasks with the model's masks, and imports its JSON export."""

from pipeline.labeling.exchange import Tool
from pipeline.labeling.label_studio.annotations import declared_classes, read_annotations, recognises
from pipeline.labeling.label_studio.tasks import TasksWriter

LABEL_STUDIO = Tool(
    name="label-studio",
    title="Label Studio",
    writer=TasksWriter,
    read=read_annotations,
    recognises=recognises,
    classes=declared_classes,
)

__all__ = ["LABEL_STUDIO", "TasksWriter"]
