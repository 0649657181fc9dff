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
from db.queries import models, scores
from db.queries.runs import newest_run, update_summary
from db.tables import Image, ScoringRun
from pipeline.data.input_range import LIGHT, Array, light
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.evaluation.drift import (
    DRIFT_MEASURES,
    SIGNIFICANCE,
    Deal,
    Difference,
    Profile,
    ShiftedImage,
    deal,
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
LAST_RUN, CALIBRATION = "last_run", "calibration"
COMPARED_WITH = {LAST_RUN: "the images scored before them", CALIBRATION: "the calibration images"}


Range = tuple[int, int]
"""Image ids from the first to the second, both inclusive."""


class _Sides(NamedTuple):
    """Images of a run: those before without drifted ones, the new ones, and the run that knows the
    difference.

    Attributes:
        newest: the last image that the run has scored.
        checked_through: the last image of an earlier look; None at the first look at the run.
        drifted: the images of earlier nights that raised the alarm.
    """

    former: Ids
    new: Ids
    against: int | None
    newest: int
    checked_through: int | None
    drifted: list[Range]


class _Reference(NamedTuple):
    """What the new images are compared with."""

    against: str
    run_id: int | None
    profile: Profile


class _Compared(NamedTuple):
    """The new images beside one reference. `level` is None where the units are too few for an alarm."""

    reference: _Reference
    dealt: Deal
    level: float | None
    found: list[Difference]

    @property
    def drifted(self) -> list[str]:
        """The measures that have drifted."""
        return [item.measure for item in self.found if item.drifted]


def watch_drift(
    project: Project, database: Database, *, run_id: int, model: ServedModel
) -> dict[str, Any] | None:
    """Compare the run's new images with those before them and with the calibration images, and store it.

    New are the images that came after the last look at this run; at the first look, those that the last run
    of another scorer had not scored, or all where that had scored them all. A look that has too few
    sequences for an alarm does not count: its images are looked at again, with those that come later.
    Images of a night that differed from those before it stay out of later references, until a model was
    trained on labels of them. Calibration images are scored here, and their scores are kept nowhere.

    Returns:
        The run's `drift` document; None where too little is new, or there is nothing to compare with.
    """
    classes = len(model.card.class_names)

    def read(
        session: Session,
    ) -> tuple[_Sides, Profile, dict[int, str], list[_Reference], list[Image]] | None:
        sides = _sides(session, run_id)
        if len(sides.new) < FEWEST_IMAGES:
            return None
        new, uris = _stored_profile(session, run_id, sides.new, classes=classes)
        references: list[_Reference] = []
        if len(sides.former) >= FEWEST_IMAGES:
            former, _ = _stored_profile(session, run_id, sides.former, classes=classes)
            references.append(_Reference(LAST_RUN, sides.against, former))
        return sides, new, uris, references, list(image_queries.split_images(session, "calibration"))

    found = database.transact(read, write=False)
    if found is None:
        return None
    sides, new, uris, references, calibration = found
    if len(calibration) >= FEWEST_IMAGES:
        profile = _score_apart(project, calibration, model)
        if len(profile.ids) >= FEWEST_IMAGES:
            references.append(_Reference(CALIBRATION, None, profile))
    if not references:
        return None
    config = project.config
    compared = _compare(references, new, block=1 if config.data.independent else config.evaluation.block)
    document = _document(compared, new, uris)
    # the first images of all become the reference, whatever can be said about them
    looked = any(one.level is not None for one in compared) or len(sides.former) == 0
    night = (int(sides.new.min()), int(sides.new.max()))
    apart = any(one.reference.against == LAST_RUN and one.drifted for one in compared)
    document["checked_through"] = sides.newest if looked else sides.checked_through
    document["drifted"] = [*sides.drifted, night] if apart else sides.drifted
    database.transact(lambda session: update_summary(session, run_id, drift=document))
    return document


def _sides(session: Session, run_id: int) -> _Sides:
    scored = scores.scored_ids(session, run_id)
    run = session.get_one(ScoringRun, run_id)
    last = newest_run(session, None, finished=True, other_than=run_id)
    mine, its = (_stored(one) for one in (run, last))
    trained_on = models.labeled_ids(session, run.model_id)
    drifted = [
        (first, through)
        for first, through in (mine or its).get("drifted", ())
        if not any(first <= image_id <= through for image_id in trained_on)
    ]
    checked = mine.get("checked_through")
    if checked is not None:
        is_new, against = scored > checked, run_id
    else:
        is_new, against = np.ones(len(scored), dtype=np.bool_), None
        if last is not None:
            unseen = ~np.isin(scored, scores.scored_ids(session, last.id))
            if unseen.sum() >= FEWEST_IMAGES:
                is_new, against = unseen, last.id
    usual = np.ones(len(scored), dtype=np.bool_)
    for first, through in drifted:
        usual &= (scored < first) | (scored > through)
    former, new = scored[~is_new & usual], scored[is_new]
    return _Sides(former, new, against, int(scored.max(initial=0)), checked, drifted)


def _stored(run: ScoringRun | None) -> dict[str, Any]:
    """The drift document of a run; empty where there is none."""
    return ((run.summary if run is not None else None) or {}).get("drift") or {}


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
        measures={
            name: np.array([getattr(row, name) for row in rows], dtype=np.float64)
            for name in (*DRIFT_MEASURES, *LIGHT)
        },
        shares=pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1),
        groups=[row.group for row in rows],
        positions=[row.position for row in rows],
    )
    return profile, {row.id: row.uri for row in rows}


def _score_apart(project: Project, images: Sequence[Image], model: ServedModel) -> Profile:
    """Of held-out images, spread evenly over the split. Files that cannot be read are left out."""
    chosen = {images[index].id: images[index] for index in spread(len(images), MOST_CALIBRATION)}
    found: dict[int, tuple[RegionColumns, RegionColumns]] = {}
    pixel_statistics: dict[int, Array] = {}

    def sink(item: ScoredImage | Unreadable) -> None:
        if isinstance(item, ScoredImage):
            found[item.id] = item.image, keep_regions(item.regions, scoring.keep_regions)
            pixel_statistics[item.id] = item.pixels

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
        }
        | (light(np.stack([pixel_statistics[image_id] for image_id in ids])) if ids else {}),
        shares=pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1),
        groups=[chosen[image_id].group_name for image_id in ids],
        positions=[chosen[image_id].position for image_id in ids],
    )


def _compare(references: Sequence[_Reference], new: Profile, *, block: int) -> list[_Compared]:
    """Compare the new images with each reference, so that all of them together seldom cause a false alarm.

    The level is shared by the references whose units can reach it; where none can reach its share, the one
    with the most units has the whole level.
    """
    dealt = [deal(reference.profile, new, block=block) for reference in references]
    able = [one for one in dealt if one.smallest_p <= SIGNIFICANCE]
    level = SIGNIFICANCE / max(1, len(able))
    if any(one.smallest_p > level for one in able):
        able, level = [min(able, key=lambda one: one.smallest_p)], SIGNIFICANCE
    compared: list[_Compared] = []
    for reference, one in zip(references, dealt, strict=True):
        its = level if any(one is other for other in able) else None
        found = differences(reference.profile, new, one, level=its, seed=SEED)
        compared.append(_Compared(reference, one, its, found))
    return compared


def _document(compared: Sequence[_Compared], new: Profile, uris: dict[int, str]) -> dict[str, Any]:
    worst = max(compared, key=lambda one: max(item.distance * item.drifted for item in one.found))
    drifted = worst.drifted
    images = shifted_images(worst.reference.profile, new, drifted) if drifted else []
    return {
        "warning": _warning(worst.reference, worst.found, images, uris) if drifted else None,
        "images_compared": len(new.ids),
        "references": [
            {
                "against": one.reference.against,
                "run_id": one.reference.run_id,
                "images": len(one.reference.profile.ids),
                "units": [one.dealt.reference, one.dealt.new],
                "level": one.level,
                "measures": [
                    {
                        "measure": item.measure,
                        "distance": round(item.distance, 4),
                        "p": None if item.p is None else round(item.p, 4),
                        "drifted": item.drifted,
                    }
                    for item in one.found
                ],
            }
            for one in compared
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
