"""Select: region scores become a queue."""

from pipeline.steps.select.step import select

__all__ = ["select"]
