"""Ingest: files become rows, and their masks the first labels."""

from pipeline.steps.ingest.step import ingest

__all__ = ["ingest"]
