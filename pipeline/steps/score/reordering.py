"""Measuring, on some images of a run, how far calibration reorders the queue."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images as image_queries
from db.queries import runs, scores
from db.queries.scores import ScoredRegion
from db.tables import ScoringRun
from pipeline.acquisition.budget import queue_budget
from pipeline.calibration.calibrators import Calibrators, Identity
from pipeline.calibration.reordering import compare_orders
from pipeline.config import RegionConfig
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project, StoredImage
from pipeline.format import counted
from pipeline.regions.outlines import decode_outline
from pipeline.regions.shapes import RegionMap, map_regions
from pipeline.uncertainty.scoring import ScoredImage, score_images
from pipeline.uncertainty.served_model import ServedModel

MOST_IMAGES = 32


def measure_reordering(
    project: Project, database: Database, *, run_id: int, model: ServedModel
) -> dict[str, Any] | None:
    """Score at most 32 images of a run once more without calibrators, over the regions that were stored, and
    compare the order of these by entropy.

    Written into the run's summary, once; None where nothing is calibrated, or nothing scored.
    """
    calibrators = model.predictor.calibrators
    if all(isinstance(item, Identity) for item in (calibrators.deterministic, calibrators.sampled)):
        return None
    run = database.transact(lambda session: session.get_one(ScoringRun, run_id), write=False)
    summary = run.summary or {}
    if "reordering" in summary:
        return summary["reordering"]

    def read(
        session: Session,
    ) -> tuple[dict[str, npt.NDArray[Any]], Sequence[StoredImage], Sequence[ScoredRegion]]:
        scored = scores.image_columns(session, run_id=run_id, columns=("image_id", "regions"))
        ids = scored["image_id"].astype(int)
        some = ids[:: max(1, -(-len(ids) // MOST_IMAGES))].tolist()
        images = image_queries.images_by_id(session, some)
        return scored, images, scores.scored_regions(session, run_id=run_id, image_ids=some)

    scored, images, stored = database.transact(read, write=False)
    before = _uncalibrated_entropies(project, model, images, stored)
    both = [
        (before[key], row.entropy) for row in stored if (key := (row.image_id, row.region_index)) in before
    ]
    if not both:
        return None
    counts = scored["regions"].astype(np.int32)
    selection = project.config.selection
    available = len(counts) if selection.unit == "image" else int(counts.sum())
    found = compare_orders(
        *np.array(both).T, share=queue_budget(selection, float(np.mean(counts)), available).total / available
    )
    reordering = {
        "spearman": None if math.isnan(found.spearman) else found.spearman,
        "top_overlap": found.top_overlap,
        "top": found.top,
        "regions": found.regions,
        "images": len({image_id for image_id, _ in before}),
    }
    database.transact(lambda session: runs.update_summary(session, run_id, reordering=reordering))
    return reordering


def _uncalibrated_entropies(
    project: Project,
    model: ServedModel,
    images: Sequence[StoredImage],
    stored: Sequence[ScoredRegion],
) -> dict[tuple[int, int], float]:
    """The entropy of each stored region without calibrators, by image id and region index."""
    uncalibrated = copy.copy(model.predictor)
    uncalibrated.calibrators = Calibrators()
    regions: dict[int, list[ScoredRegion]] = {}
    for row in stored:
        regions.setdefault(row.image_id, []).append(row)
    found: dict[tuple[int, int], float] = {}

    def sink(item: ScoredImage | Unreadable) -> None:
        if isinstance(item, ScoredImage):
            entropies = item.regions.measures["entropy"].tolist()
            for index, entropy in zip(item.regions.index.tolist(), entropies, strict=True):
                found[(item.id, index)] = entropy

    refs = [project.ref(row) for row in images if row.id in regions]
    model = replace(model, predictor=uncalibrated)
    kinds = project.config.scoring.regions
    if kinds.kind in ("grid", "image"):  # the same regions again, without a map of them
        score_images(refs, model=model, regions=kinds, sink=sink)
        known = {(row.image_id, row.region_index) for row in stored}
        return {key: entropy for key, entropy in found.items() if key in known}
    score_images(
        refs,
        model=model,
        regions=RegionConfig(kind="superpixel"),
        sink=sink,
        source=lambda image, _: _region_map(regions[image.id], width=image.width, height=image.height),
    )
    return found


def _region_map(regions: Sequence[ScoredRegion], *, width: int, height: int) -> RegionMap:
    """Stored regions of one image as a map; those whose rows were not kept are nowhere."""
    nowhere = 1 + max(region.region_index for region in regions)
    values = np.full((height, width), nowhere, dtype=np.int32)
    for region in regions:
        window = values[region.y : region.y + region.h, region.x : region.x + region.w]
        window[decode_outline(region.outline, width=region.w, height=region.h)] = region.region_index
    return map_regions(values, nowhere=nowhere)


def reordering_line(reordering: dict[str, Any]) -> str:
    """One line for a report.

    >>> reordering_line({"spearman": 0.981, "top_overlap": 0.9, "top": 40, "regions": 800, "images": 17})
    'With calibration, 90 % of the first 40 of 800 regions stay (rank correlation 0.981, on 17 images).'
    """
    spearman = reordering["spearman"]
    correlation = "not defined" if spearman is None else f"{spearman:.3f}"
    return (
        f"With calibration, {100 * reordering['top_overlap']:.0f} % of the first {reordering['top']} of "
        f"{counted(reordering['regions'], 'region')} stay (rank correlation {correlation}, on "
        f"{counted(reordering['images'], 'image')})."
    )
