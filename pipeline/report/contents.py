"""What the page is drawn from: plain facts, gathered by the step that reads the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.estimate import Estimate
from pipeline.report.blocks import Gallery
from pipeline.report.curves import RiskCurve, RoundPoint
from pipeline.report.reliability import Reliability

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """Where the project stands; `images` by split."""

    round_number: int | None
    state: str | None
    next_command: str
    reason: str
    images: Mapping[str, int]
    labeled_images: int
    labeled_regions: int
    labeled_share: float
    failures: int
    promoted: str | None


@dataclass(frozen=True)
class Calibrated:
    """One sampler of the judged model, before and after calibration.

    Attributes:
        confidence_name: what its calibrated softmax may be called.
        report: how the calibrators compare, as `calibrate` stored it.
    """

    sampler: str
    calibrator: str
    confidence_name: str
    report: Document | None
    warning: str | None
    before: Reliability | None
    after: Reliability | None


@dataclass(frozen=True)
class Risks:
    """Error rate over coverage [n] of each measure."""

    coverage: npt.NDArray[np.float64]
    curves: Mapping[str, RiskCurve]


@dataclass(frozen=True)
class Item:
    """A row of a queue."""

    rank: int
    name: str
    class_name: str
    slice: str
    status: str
    score: float | None
    reason: str


@dataclass(frozen=True)
class QueueFacts:
    """What a queue is made of; counts of its items."""

    name: str
    strategy: str
    unit: str
    measure: str | None
    by_class: Mapping[str, int]
    by_slice: Mapping[str, int]
    by_group: Mapping[str, int]
    by_status: Mapping[str, int]
    first: Sequence[Item]


@dataclass(frozen=True)
class Annotator:
    """How far one annotator's masks agree with all others'.

    Attributes:
        pixels: that both have labeled.
        agreement: the share of them with the same class; NaN without a pixel.
    """

    name: str
    images: int
    pixels: int
    agreement: float


@dataclass(frozen=True)
class Disputed:
    """A region that two or more annotators have labeled; NaN where the model said nothing of it."""

    name: str
    queue: str
    rank: int
    annotators: int
    disagreement: float
    vote_entropy: float
    expected_entropy: float
    mutual_information: float


@dataclass(frozen=True)
class SharedFacts:
    """What several annotators have labeled.

    Attributes:
        people: least agreement first.
        correlations: of vote entropy with each measure, and the reason where that is not known.
        rows: most disputed first.
    """

    images: int
    people: Sequence[Annotator]
    correlations: Sequence[tuple[str, Estimate, str]]
    rows: Sequence[Disputed]


@dataclass(frozen=True)
class Ancestor:
    """A model and what it was made from; hashes in full."""

    name: str
    round_number: int
    status: str
    parent: str | None
    labels: int
    seed: int
    iterations: int
    config_hash: str
    labels_hash: str
    checkpoint: str
    checkpoint_sha256: str | None
    decision: str | None
    created_at: datetime


@dataclass(frozen=True)
class Contents:
    """Everything that the page shows; None, or nothing, where a step has not run.

    Attributes:
        class_colors: uint8 [C, 3].
        model: the one that is judged: the promoted one, or else the newest.
        sampler: that of the scores.
        points: a round each, oldest first.
        quality, stress, novelty: the model's assessments.
        scoring: the summary of the newest scoring run.
        disagreeing: regions of high confidence whose samples disagree.
        shared: regions with several annotators; None where there is none.
    """

    project: str
    written_at: datetime
    class_names: Sequence[str]
    class_colors: npt.NDArray[np.uint8]
    model: str
    split: str
    sampler: str
    standing: Standing
    points: Sequence[RoundPoint]
    calibrated: Sequence[Calibrated] = ()
    risks: Risks | None = None
    quality: Document | None = None
    stress: Document | None = None
    novelty: Document | None = None
    scoring: Document | None = None
    galleries: Sequence[tuple[str, Gallery]] = ()
    disagreeing: Gallery | None = None
    queue: QueueFacts | None = None
    shared: SharedFacts | None = None
    lineage: Sequence[Ancestor] = field(default_factory=tuple)
