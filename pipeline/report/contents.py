"""The contents of the page: summaries and stored documents, which the step reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.confidence import Confidence
from pipeline.report.blocks import Gallery
from pipeline.report.curves import RiskCurve
from pipeline.report.reliability import Reliability
from pipeline.summaries.annotators import AnnotatorReport
from pipeline.summaries.models import ModelSummary
from pipeline.summaries.project import Status
from pipeline.summaries.queues import QueueSummary
from pipeline.summaries.rounds import RoundSummary
from pipeline.summaries.simulations import SimulationSummary

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Calibrated:
    """One sampler of the reported model, before and after calibration.

    Attributes:
        confidence: what its calibrated softmax is called, and why.
        report: the comparison of the calibrators, as `calibrate` stored it.
    """

    sampler: str
    calibrator: str
    confidence: Confidence
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
class Contents:
    """Everything that the page shows; None or empty where a step has not run.

    Attributes:
        class_colors: uint8 [C, 3].
        model: the promoted model, else the newest.
        sampler: the sampler of the scores.
        newest: the newest round.
        rounds: those with an evaluated model, oldest first.
        audited: those whose queue had an audit that says how good the model is on what was not labeled.
        quality, stress, novelty: the model's assessments.
        scoring: the summary of the newest scoring run.
        disagreeing: regions of high confidence whose samples disagree.
        queue, queue_groups: the newest selected queue, and its items by group.
        annotators: their agreement.
        simulation: the newest one.
        training: the curve of the model's training: `iteration`, `loss` and `learning_rate`.
    """

    project: str
    written_at: datetime
    class_names: Sequence[str]
    class_colors: npt.NDArray[np.uint8]
    model: str
    split: str
    sampler: str
    status: Status
    newest: RoundSummary | None
    rounds: Sequence[RoundSummary]
    audited: Sequence[RoundSummary] = ()
    calibrated: Sequence[Calibrated] = ()
    risks: Risks | None = None
    quality: Document | None = None
    stress: Document | None = None
    novelty: Document | None = None
    scoring: Document | None = None
    galleries: Sequence[tuple[str, Gallery]] = ()
    disagreeing: Gallery | None = None
    queue: QueueSummary | None = None
    queue_groups: Mapping[str, int] = field(default_factory=dict)
    annotators: AnnotatorReport | None = None
    simulation: SimulationSummary | None = None
    models: Sequence[ModelSummary] = ()
    training: Mapping[str, Sequence[float]] = field(default_factory=dict)
