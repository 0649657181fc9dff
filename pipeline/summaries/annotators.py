"""Do annotators agree, and was the model uncertain where they do not? The rows of `segcurate annotators`.

Where people differ, more labels do not help. A well trained model is uncertain there in each of its samples:
its expected entropy is high, and its mutual information need not be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy.orm import Session

from db.queries import agreement as agreement_queries
from db.queries.agreement import SharedImage, SharedRegion
from db.queries.labels import labels_in_force
from pipeline.config import EvaluationConfig
from pipeline.data.labels import compose_labels
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.evaluation.agreement import pair_counts
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.ranks import correlation_residuals, rank_correlation
from pipeline.evaluation.units import Runs, join
from pipeline.format import counted
from pipeline.progress import Progress, silent
from pipeline.summaries.queues import queue_or_newest

LEAST_REGIONS = 20
"""Below this number no rank correlation is computed."""
LEAST_IMAGES = 5
MOST_IMAGES = 500
"""Images whose masks are compared, those of the newest queues first."""
SEED = 0
NAMELESS = "without a name"

Measure = Literal["expected_entropy", "mutual_information"]


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of vote entropy with a measure of the model, over regions.

    Attributes:
        regions, images: those that have both; `units` is how many independent units the images make, None
            without an interval.
        value: None, with a `reason`, where there is too little data.
        low, high: its interval over independent units of images; None where it is not defined.
    """

    measure: Measure
    regions: int
    images: int
    units: int | None
    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two annotators of the same images, or one and all others together, where `other` is None.

    Attributes:
        images: labeled by both.
        pixels: labeled by both; with all others, the sum over pairs of masks.
        agreement: the share of them with the same class; None without a pixel.
    """

    annotator: str
    other: str | None
    images: int
    pixels: int
    agreement: float | None


@dataclass(frozen=True)
class AnnotatorReport:
    """How the annotators of a queue, or of all queues, agree.

    Attributes:
        regions, images: with labels in force of two or more annotators.
        annotators: of the images that were read, at most `MOST_IMAGES`.
        compared: images whose masks were compared.
        unreadable: images left out because a stored mask cannot be read.
        correlations: of vote entropy with expected entropy and with mutual information.
        against_others: agreement of each annotator's masks with all others', least first.
        pairs: agreement of every two annotators, least first.
        rows: regions, most disputed first.
    """

    queue: str | None
    regions: int
    images: int
    annotators: list[str]
    compared: int
    unreadable: int
    correlations: list[RankCorrelation]
    against_others: list[Pair]
    pairs: list[Pair]
    rows: list[SharedRegion]


def annotator_report(
    session: Session, project: Project, *, queue: str | None = None, progress: Progress = silent
) -> AnnotatorReport:
    """The agreement of the annotators. Reads masks of at most `MOST_IMAGES` images, and writes nothing.

    Args:
        queue: by name; None for all queues together.

    Raises:
        UserError: there is no such queue.
    """
    queue_id = None if queue is None else queue_or_newest(session, queue).id
    rows = agreement_queries.shared_regions(session, queue_id=queue_id)
    images = agreement_queries.shared_images(session, queue_id=queue_id)
    compared = _Comparison()
    for done, image in enumerate(images[:MOST_IMAGES], start=1):
        compared.read(session, project, image)
        progress("compare masks", done, min(len(images), MOST_IMAGES))
    config = project.config
    measures: tuple[Measure, ...] = ("expected_entropy", "mutual_information")
    return AnnotatorReport(
        queue=queue,
        regions=len(rows),
        images=len({image.image_id for image in images}),
        annotators=sorted(compared.names),
        compared=compared.images,
        unreadable=compared.unreadable,
        correlations=[
            correlation(rows, measure, config.evaluation, independent=config.data.independent)
            for measure in measures
        ],
        against_others=compared.against_others(),
        pairs=compared.pairs(),
        rows=rows,
    )


def correlation(
    rows: Sequence[SharedRegion],
    measure: Measure,
    evaluation: EvaluationConfig,
    *,
    independent: bool = False,
) -> RankCorrelation:
    """The rank correlation of vote entropy with a measure of the model, over the regions that have it.

    Args:
        independent: each image is a unit of its own (`data.independent`).
    """
    known = [(row, float(value)) for row in rows if (value := getattr(row, measure)) is not None]
    positions = {row.image_id: (row.group, row.position) for row, _ in known}

    def without(reason: str) -> RankCorrelation:
        return RankCorrelation(measure, len(known), len(positions), None, None, None, None, reason)

    if not rows:
        return without("no region has two annotators")
    if not known:
        return without("the scores of these regions are pruned, or come from a sampler without samples")
    if len(known) < LEAST_REGIONS or len(positions) < LEAST_IMAGES:
        return without(
            f"too few: {counted(len(known), 'region')} of {counted(len(positions), 'image')}; at least "
            f"{LEAST_REGIONS} of {LEAST_IMAGES} are needed"
        )
    votes = np.array([row.vote_entropy for row, _ in known])
    score = np.array([value for _, value in known])
    if np.ptp(votes) == 0:
        return without("the annotators agree equally on every region")
    if np.ptp(score) == 0:
        return without("the model scored every region alike")
    index = {image_id: row for row, image_id in enumerate(positions)}
    of_image = np.array([index[row.image_id] for row, _ in known])
    places = [positions[image_id] for image_id in index]
    runs = Runs.of(
        [group for group, _ in places],
        [place for _, place in places],
        block=evaluation.block,
        independent=independent,
    )
    run = runs.of_image[of_image]
    unit = runs.units(join(correlation_residuals(score, votes)[:, None], run))[run]
    units = int(unit.max()) + 1
    bootstrap = BlockBootstrap.draw(units, evaluation, seed=SEED)
    estimate = rank_correlation(score, votes, unit, bootstrap=bootstrap)
    value, low, high = estimate.document(digits=None).values()
    return RankCorrelation(measure, len(known), len(positions), units, value, low, high)


class _Comparison:
    """Sums over images, by pair of annotators: images, pixels, and pixels with the same class."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.images = 0
        self.unreadable = 0
        self._sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._images: dict[str, int] = defaultdict(int)

    def read(self, session: Session, project: Project, image: SharedImage) -> None:
        """Add an image of a queue."""
        labels = labels_in_force(session, queue_id=image.queue_id, image_id=image.image_id)
        names = [label.annotator or NAMELESS for label in labels]
        self.names.update(names)
        size = (image.width, image.height)
        try:
            masks = [compose_labels([project.path(label.mask_uri)], size) for label in labels]
        except DataError:
            self.unreadable += 1
            return
        self.images += 1
        shared, same = pair_counts(np.stack(masks))
        for a, name in enumerate(names):
            for b in range(len(names)):
                if a != b and shared[a, b]:
                    sums = self._sums[name, names[b]]
                    for index, count in enumerate((1, shared[a, b], same[a, b])):
                        sums[index] += int(count)
            self._images[name] += bool(shared[a].sum() > shared[a, a])

    def pairs(self) -> list[Pair]:
        """Each pair of annotators that have a pixel in common, once, least agreement first."""
        found = [
            Pair(a, b, images, pixels, same / pixels)
            for (a, b), (images, pixels, same) in self._sums.items()
            if a < b
        ]
        return sorted(found, key=_least_first)

    def against_others(self) -> list[Pair]:
        """Each annotator with all others together, least agreement first."""
        found: list[Pair] = []
        for name in sorted(self.names):
            sums = [counts for (first, _), counts in self._sums.items() if first == name]
            pixels, same = sum(counts[1] for counts in sums), sum(counts[2] for counts in sums)
            found.append(Pair(name, None, self._images[name], pixels, same / pixels if pixels else None))
        return sorted(found, key=_least_first)


def _least_first(pair: Pair) -> tuple[float, str, str]:
    return (2.0 if pair.agreement is None else pair.agreement, pair.annotator, pair.other or "")
