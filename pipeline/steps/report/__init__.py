"""Report: everything stored becomes one page."""

from pipeline.steps.report.step import report

__all__ = ["report"]
