"""Import: annotations that come back become labels."""

from pipeline.steps.import_labels.step import import_labels

__all__ = ["import_labels"]
