"""Where the time of `segcurate score` goes: each stage's share of one run, from files to rows.

Stages of one run overlap (files are decoded and rows written beside the network), so they add up to more
than the run itself.
"""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from db.engine import Database
from pipeline.data.project import Project
from pipeline.steps.score import score

STAGES: dict[str, str] = {
    "decode and normalise": "pipeline.data.loading._read",
    "trunk and plain logits": "pipeline.uncertainty.network.ScoringNetwork.run",
    "samples and their sums": "pipeline.uncertainty.predictor.sum_bands",
    "measures and regions": "pipeline.uncertainty.scoring.reduce_regions",
    "checkpoint": "pipeline.steps.score.scorer.open_model",
    "rows into the database": "pipeline.steps.score.writer.ShardWriter._commit",
}


def score_by_stage(project: Project, database: Database) -> tuple[dict[str, float], float, int]:
    """Score the pool.

    Returns:
        Seconds a stage, seconds of the whole run, and the number of images.
    """
    spent = dict.fromkeys(STAGES, 0.0)
    with _timed(spent):
        report = score(project, database)
    return spent, report.seconds, report.images


@contextmanager
def _timed(spent: dict[str, float]) -> Generator[None]:
    """Every stage's function measures itself."""
    patches = [mock.patch(target, _measured(target, name, spent)) for name, target in STAGES.items()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _measured(target: str, name: str, spent: dict[str, float]) -> Callable[..., Any]:
    original = pkgutil.resolve_name(target)

    def call(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - started

    return call
