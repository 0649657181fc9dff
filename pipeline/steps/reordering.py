"""Measuring, on some images of a run, how far calibration reorders the queue."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from db.engine import Database
from db.queries import scores as queries
from db.tables import ScoringRun
from pipeline.acquisition.budget import queue_budget
from pipeline.calibration.calibrators import Calibrators, Identity
from pipeline.calibration.reordering import compare_orders
from pipeline.config import Project
from pipeline.data.images import ImageRef
from pipeline.data.loading import Unreadable
from pipeline.model.checkpoints import ModelCard
from pipeline.scoring import ScoredImage, score_images
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.region_sources import region_source

MOST_IMAGES = 32

Region = tuple[int, int, int, int, int, str | None]
"""Image id, box and outline."""


def measure_reordering(
    project: Project, database: Database, *, run_id: int, predictor: Predictor, card: ModelCard
) -> dict[str, Any] | None:
    """Score at most 32 images of a run once more without calibrators, and compare the order of their regions
    by entropy. Written into the run's summary, once; None where nothing is calibrated, or nothing scored.

    Regions that exist only with, or only without, calibration (segments, where it changes labels), or whose
    rows were not kept, are left out.
    """
    calibrators = predictor.calibrators
    if all(isinstance(item, Identity) for item in (calibrators.deterministic, calibrators.sampled)):
        return None
    uncalibrated = copy.copy(predictor)
    uncalibrated.calibrators = Calibrators()
    with database.session(write=False) as session:
        summary = session.get_one(ScoringRun, run_id).summary or {}
        if "reordering" in summary:
            return summary["reordering"]
        scored = queries.image_columns(session, run_id=run_id, columns=("image_id", "regions"))
        ids = scored["image_id"].astype(int)
        some = ids[:: max(1, -(-len(ids) // MOST_IMAGES))].tolist()
        images = queries.images_by_id(session, image_ids=some)
        after = queries.region_entropies(session, run_id=run_id, image_ids=some)
    before: dict[Region, float] = {}

    def sink(item: ScoredImage | Unreadable) -> None:
        if isinstance(item, ScoredImage):
            rows = item.regions
            outlines = rows.outlines or (None,) * len(rows.index)
            for box, outline, entropy in zip(
                rows.boxes.tolist(), outlines, rows.measures["entropy"].tolist(), strict=True
            ):
                before[(item.id, *box, outline)] = entropy

    score_images(
        [ImageRef(row.id, project.path(row.uri), row.width, row.height) for row in images],
        predictor=uncalibrated,
        card=card,
        scoring=project.config.scoring,
        max_pixels=project.config.data.max_pixels,
        sink=sink,
        regions=region_source(project, project.config.scoring.regions),
    )
    shared = [region for region in after if region in before]
    if not shared:
        return None
    counts = scored["regions"].astype(np.int32)
    selection = project.config.selection
    available = len(counts) if selection.unit == "image" else int(counts.sum())
    found = compare_orders(
        np.array([before[region] for region in shared]),
        np.array([after[region] for region in shared]),
        share=queue_budget(selection, counts, available).total / available,
    )
    reordering = {
        "spearman": None if math.isnan(found.spearman) else found.spearman,
        "top_overlap": found.top_overlap,
        "top": found.top,
        "regions": found.regions,
        "images": len({region[0] for region in shared}),
    }
    with database.session() as session:
        queries.update_summary(session, run_id, reordering=reordering)
    return reordering


def in_words(reordering: dict[str, Any]) -> str:
    """One line for a report.

    >>> in_words({"spearman": 0.981, "top_overlap": 0.9, "top": 40, "regions": 800, "images": 17})
    'Calibration reorders the queue: rank correlation 0.981, 90 % of the top 40 of 800 regions stay.'
    """
    spearman = reordering["spearman"]
    correlation = "not defined" if spearman is None else f"{spearman:.3f}"
    return (
        f"Calibration reorders the queue: rank correlation {correlation}, "
        f"{100 * reordering['top_overlap']:.0f} % of the top {reordering['top']} of "
        f"{reordering['regions']} regions stay."
    )
