"""After a run: do the images that are new differ from those before them, and from the calibration images?

Every comparison is between images under one scorer: the run's own. Scores of another model, or of another
calibrator, mean something else, so the last run only says which images are not new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images as image_queries
from db.queries import scores
from db.queries.runs import newest_run, update_summary
from db.tables import Image, ScoringRun
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.evaluation.drift import (
    DRIFT_MEASURES,
    Difference,
    Profile,
    ShiftedImage,
    differences,
    shifted_images,
)
from pipeline.regions.sources import region_source
from pipeline.studies.held_out import spread
from pipeline.uncertainty.reduction import RegionColumns, keep_regions
from pipeline.uncertainty.scoring import ScoredImage, score_images
from pipeline.uncertainty.served_model import ServedModel

FEWEST_IMAGES = 10
"""Fewer new images wait until more have come."""
MOST_IMAGES = 2000
"""Images of a side; a larger side is represented by a random sample."""
MOST_CALIBRATION = 200
SEED = 0
Ids = npt.NDArray[np.int64]
COMPARED_WITH = {"last_run": "the images scored before them", "calibration": "the calibration images"}


class _Sides(NamedTuple):
    """Images of a run: those before, the new ones, and the run that knows the difference."""

    former: Ids
    new: Ids
    against: int | None


class _Reference(NamedTuple):
    """What the new images are compared with."""

    against: str
    run_id: int | None
    profile: Profile


def watch_drift(
    project: Project, database: Database, *, run_id: int, model: ServedModel
) -> dict[str, Any] | None:
    """Compare the run's new images with those before them and with the calibration images, and store it.

    New are the images that came after the last look at this run; at the first look, those that the last run
    of another scorer had not scored, or all where that had scored them all. Calibration images are scored
    here, and their scores are kept nowhere.

    Returns:
        The run's `drift` document; None where too little is new, or there is nothing to compare with.
    """
    classes = len(model.card.class_names)
    with database.session(write=False) as session:
        sides = _sides(session, run_id)
        if len(sides.new) < FEWEST_IMAGES:
            return None
        new, uris = _stored_profile(session, run_id, sides.new, classes=classes)
        references: list[_Reference] = []
        if len(sides.former) >= FEWEST_IMAGES:
            former, _ = _stored_profile(session, run_id, sides.former, classes=classes)
            references.append(_Reference("last_run", sides.against, former))
        calibration = image_queries.split_images(session, "calibration")
    if len(calibration) >= FEWEST_IMAGES:
        profile = _score_apart(project, calibration, model)
        if len(profile.ids) >= FEWEST_IMAGES:
            references.append(_Reference("calibration", None, profile))
    if not references:
        return None
    document = _document(references, new, uris, block=project.config.evaluation.block)
    document["checked_through"] = int(max(sides.new.max(), sides.former.max(initial=0)))
    with database.session() as session:
        update_summary(session, run_id, drift=document)
    return document


def _sides(session: Session, run_id: int) -> _Sides:
    scored = scores.scored_ids(session, run_id)
    before = (session.get_one(ScoringRun, run_id).summary or {}).get("drift")
    if before is not None:
        is_new = scored > before["checked_through"]
        return _Sides(scored[~is_new], scored[is_new], run_id)
    last = newest_run(session, None, finished=True, other_than=run_id)
    if last is not None:
        is_new = ~np.isin(scored, scores.scored_ids(session, last.id))
        if is_new.sum() >= FEWEST_IMAGES:
            return _Sides(scored[~is_new], scored[is_new], last.id)
    return _Sides(scored[:0], scored, None)


def _stored_profile(
    session: Session, run_id: int, ids: Ids, *, classes: int
) -> tuple[Profile, dict[int, str]]:
    """Of images that the run has scored, or of a random sample of them; and their URIs."""
    if len(ids) > MOST_IMAGES:
        ids = np.sort(np.random.default_rng(SEED).choice(ids, MOST_IMAGES, replace=False))
    rows = scores.scored_rows(session, run_id, ids.tolist())
    pixels = scores.class_pixels(session, run_id, [row.id for row in rows], num_classes=classes)
    profile = Profile(
        ids=np.array([row.id for row in rows]),
        measures={name: np.array([getattr(row, name) for row in rows]) for name in DRIFT_MEASURES},
        shares=pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1),
        groups=[row.group for row in rows],
        positions=[row.position for row in rows],
    )
    return profile, {row.id: row.uri for row in rows}


def _score_apart(project: Project, images: Sequence[Image], model: ServedModel) -> Profile:
    """Of held-out images, spread evenly over the split. Files that cannot be read are left out."""
    chosen = {images[index].id: images[index] for index in spread(len(images), MOST_CALIBRATION)}
    found: dict[int, tuple[RegionColumns, RegionColumns]] = {}

    def sink(item: ScoredImage | Unreadable) -> None:
        if isinstance(item, ScoredImage):
            found[item.id] = item.image, keep_regions(item.regions, scoring.keep_regions)

    scoring = project.config.scoring
    score_images(
        [project.ref(image) for image in chosen.values()],
        model=model,
        regions=scoring.regions,
        sink=sink,
        source=region_source(project, scoring.regions),
    )
    ids = sorted(found)
    classes = len(model.card.class_names)
    pixels = np.array(
        [
            np.bincount(regions.predicted_class, weights=regions.pixels, minlength=classes)
            for regions in (found[image_id][1] for image_id in ids)
        ]
    ).reshape(len(ids), classes)
    return Profile(
        ids=np.array(ids, dtype=np.int64),
        measures={
            name: np.array([float(found[image_id][0].measures[name][0]) for image_id in ids])
            for name in DRIFT_MEASURES
        },
        shares=pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1),
        groups=[chosen[image_id].group_name for image_id in ids],
        positions=[chosen[image_id].position for image_id in ids],
    )


def _document(
    references: Sequence[_Reference], new: Profile, uris: dict[int, str], *, block: int
) -> dict[str, Any]:
    compared = [
        (reference, differences(reference.profile, new, block=block, seed=SEED)) for reference in references
    ]
    worst, found = max(compared, key=lambda pair: max(item.distance * item.drifted for item in pair[1]))
    drifted = [item.measure for item in found if item.drifted]
    images = shifted_images(worst.profile, new, drifted) if drifted else []
    return {
        "warning": _warning(worst, found, images, uris) if drifted else None,
        "images_compared": len(new.ids),
        "references": [
            {
                "against": reference.against,
                "run_id": reference.run_id,
                "images": len(reference.profile.ids),
                "measures": [
                    {
                        "measure": item.measure,
                        "distance": round(item.distance, 4),
                        "p": round(item.p, 4),
                        "drifted": item.drifted,
                    }
                    for item in measured
                ],
            }
            for reference, measured in compared
        ],
        "images": [
            {
                "image_id": item.image_id,
                "uri": uris[item.image_id],
                "measure": item.measure,
                "value": round(item.value, 6),
                "percentile": round(item.percentile, 1),
            }
            for item in images
        ],
    }


def _warning(
    reference: _Reference, found: Sequence[Difference], images: Sequence[ShiftedImage], uris: dict[int, str]
) -> str:
    shown = ", ".join(
        f"{item.measure.replace('_', ' ')} (distance {item.distance:.2f}, p {item.p:.3f})"
        for item in found
        if item.drifted
    )
    first = ", ".join(uris[item.image_id] for item in images[:3])
    return (
        f"The new images differ from {COMPARED_WITH[reference.against]} in {shown}; most of all {first}. "
        "Calibration and evaluation say little about such images: label some, or look at the files."
    )
