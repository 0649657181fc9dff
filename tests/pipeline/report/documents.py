"""A page's contents with made-up numbers: a full one, and an empty one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.confidence import Confidence
from pipeline.evaluation.estimate import Estimate
from pipeline.report.blocks import Gallery
from pipeline.report.contents import Calibrated, Contents, Risks
from pipeline.report.curves import RiskCurve
from pipeline.report.gallery import GalleryRow, crop_around
from pipeline.report.pictures import LAYERS, draw_tiles
from pipeline.report.reliability import Reliability
from pipeline.summaries.annotators import AnnotatorReport, Pair, RankCorrelation, SharedRegion
from pipeline.summaries.classes import ClassFigures
from pipeline.summaries.models import ModelSummary
from pipeline.summaries.pool import PoolFigures, PoolSummary
from pipeline.summaries.project import Status
from pipeline.summaries.queues import HeadItem, QueueSummary
from pipeline.summaries.rounds import RoundSummary
from tests.pipeline.report.stored import (
    COLORS,
    HOSTILE,
    NAMES,
    calibration_document,
    novelty_document,
    quality_document,
    scoring_document,
    stress_document,
)


def reliability(ece: float) -> Reliability:
    edges = np.linspace(0, 1, 6)
    middle = (edges[:-1] + edges[1:]) / 2
    return Reliability(
        edges=edges,
        pixels=np.array([10.0, 30, 60, 200, 700]),
        confidence=middle,
        accuracy=middle - ece,
        low=middle - ece - 0.04,
        high=middle - ece + 0.04,
        ece=Estimate(ece, ece - 0.01, ece + 0.01),
    )


def classes(*iou: Estimate, names: Sequence[str] = NAMES) -> tuple[ClassFigures, ...]:
    """Classes of these IoU, each with a recall of 0.8."""
    return tuple(ClassFigures(name, one, Estimate(0.8)) for name, one in zip(names, iou, strict=True))


def point(number: int, value: float | None = None, *, promoted: bool | None = None) -> RoundSummary:
    value = 0.5 + 0.08 * number if value is None else value
    around = Estimate(value, value - 0.03, value + 0.02)
    return RoundSummary(
        number=number,
        state="import",
        started_at=datetime(2026, 1, number, tzinfo=UTC),
        labeled_images=10 * number,
        labeled_regions=20 * number,
        labeled_pixels=4096 * number,
        labeled_share=0.01 * number,
        clicks=None,
        hours=None,
        model=f"r{number:02d}",
        model_status="promoted" if (number != 2 if promoted is None else promoted) else "refused",
        split="test",
        images=40,
        units=12,
        split_version=1,
        sampler="mc_dropout",
        mean_iou=around,
        classes=classes(around, Estimate(math.nan), around, around),
        ece_before=Estimate(0.08, 0.06, 0.1),
        ece_after=Estimate(0.02, 0.01, 0.03),
        error_auroc=Estimate(0.9, 0.88, 0.92),
        confidence="probability",
        confidence_reason=None,
    )


def shown_row(
    *,
    image: npt.NDArray[np.uint8],
    box: tuple[int, int, int, int],
    prediction: npt.NDArray[np.uint8],
    entropy: npt.NDArray[np.float32],
    mutual_information: npt.NDArray[np.float32] | None,
    label: npt.NDArray[np.uint8] | None,
    **words: Any,
) -> GalleryRow:
    """A row of a gallery from arrays of the whole image."""
    height, width = image.shape[:2]
    left, top, across, down = crop_around(box, width=width, height=height)
    part = (slice(top, top + down), slice(left, left + across))
    return GalleryRow(
        size=(width, height),
        box=box,
        overview=image,
        image=image[part],
        prediction=prediction[part],
        entropy=entropy[part],
        mutual_information=None if mutual_information is None else mutual_information[part],
        label=None if label is None else label[part],
        **words,
    )


def gallery(name: str = "over-round-01") -> Gallery:
    y, x = np.mgrid[:60, :90].astype(np.float32)
    rows = []
    for index in range(3):
        label = np.full((60, 90), 255, dtype=np.uint8)
        label[10:30, 20:50] = 2
        rows.append(
            shown_row(
                image=np.repeat((2 * x).astype(np.uint8)[..., None], 3, axis=2),
                box=(20, 10, 30, 20),
                prediction=(x > 40).astype(np.uint8),
                entropy=x / 90,
                mutual_information=y / 600,
                label=label if index == 0 else None,
                heading=f"{index + 1}. {HOSTILE}.png",
                reason=f"mostly {HOSTILE}, on a boundary",
            )
        )
    tiles, scales = draw_tiles(rows, tags=[("mostly sky", "queued")] * 3, colors=COLORS)
    classes = [(f"c{index}", name) for index, name in enumerate(NAMES)]
    return Gallery(name=name, tiles=tiles, layers=LAYERS, scales=scales, classes=classes)


def shared_report() -> AnnotatorReport:
    """Two annotators of three regions, of which one was never scored."""

    def region(uri: str, rank: int, annotators: int, *figures: float | None) -> SharedRegion:
        disagreement, votes, expected, information = figures
        assert disagreement is not None
        assert votes is not None
        place = (f"images/{uri}", "one", rank, 0, 0, 32, 32)
        return SharedRegion(
            "round-03", rank, rank, *place, annotators, disagreement, votes, expected, None, information
        )

    return AnnotatorReport(
        queue=None,
        regions=3,
        images=2,
        annotators=[f"ann {HOSTILE}", "bo"],
        compared=2,
        unreadable=0,
        correlations=[
            RankCorrelation("expected_entropy", 3, 2, 2, 0.61, 0.42, 0.75),
            RankCorrelation(
                "mutual_information", 3, 2, None, None, None, None, reason="too few: 3 regions of 2 images"
            ),
        ],
        against_others=[Pair(f"ann {HOSTILE}", None, 2, 4096, 0.75), Pair("bo", None, 0, 0, None)],
        pairs=[],
        rows=[
            region(f"{HOSTILE}.png", 4, 2, 0.5, 0.315, 0.4, 0.02),
            region("b.png", 7, 3, 0.25, 0.158, 0.2, 0.03),
            region("c.png", 9, 2, 0.0, 0.0, None, None),
        ],
    )


def pool_summary() -> PoolSummary:
    """What an audit of 10 regions, of 12 that were drawn, says."""
    value = Estimate(0.125, 0.05, 0.25)
    figures = PoolFigures(value, value, value, 0.02, value, (value,) * 2, (value,) * 2)
    return PoolSummary(
        queue="round-01",
        model="r01",
        sampler="none",
        confidence="probability",
        unlabeled=figures,
        pool=figures,
        images=9,
        regions=10,
        drawn=12,
        population=2340,
        certain_pixels=64,
        audit_pixels=640,
        lowest=0.104,
        highest=0.271,
        skipped=0,
        class_names=("sky", HOSTILE),
    )


def full_contents() -> Contents:
    """Every section with data."""
    coverage = np.linspace(0.1, 1, 10)
    risk = RiskCurve(risk=coverage**3 / 10, low=coverage**3 / 12, high=coverage**3 / 8)
    return Contents(
        project=f"CamVid {HOSTILE}",
        written_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        class_names=NAMES,
        class_colors=COLORS,
        model="r03",
        split="test",
        sampler="mc_dropout",
        status=Status(
            images={"pool": 200, "test": 60, "calibration": 40, "duplicate": 2},
            labeled_images=30,
            failures=2,
            round_number=3,
            state="import",
            promoted_model="r03",
            queue="round-03",
            queue_items={"queued": 20},
            export_folder="queues/round-03",
            next_command="segcurate import queues/round-03",
            reason="20 regions wait in its `masks` folder.",
        ),
        newest=replace(point(3), labeled_share=0.031),
        rounds=[point(1), point(2), point(3)],
        calibrated=[
            Calibrated(
                sampler="mc_dropout",
                calibrator="temperature",
                confidence=Confidence("probability", None),
                report=calibration_document(),
                warning=None,
                before=reliability(0.08),
                after=reliability(0.02),
            )
        ],
        risks=Risks(coverage, {"entropy": risk, "energy": risk}),
        quality=quality_document(),
        stress=stress_document(),
        novelty=novelty_document(),
        scoring=scoring_document(),
        galleries=[("Round 3: waiting for labels", gallery())],
        disagreeing=gallery("over-disagreeing"),
        queue=QueueSummary(
            name="round-03",
            kind="selected",
            run_id=1,
            strategy="stratified",
            unit="region",
            seed=0,
            measure="entropy",
            items=10,
            candidates=100,
            by_slice={"selected": 9, "audit": 1},
            by_class={"sky": 8, HOSTILE: 2},
            by_status={"queued": 10},
            clicks=None,
            warnings=[],
            folder=None,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            exported_at=None,
            head=[
                HeadItem(
                    rank=1,
                    image=f"images/{HOSTILE}.png",
                    box=(0, 0, 32, 32),
                    class_name=HOSTILE,
                    measure="entropy",
                    score=0.7,
                    slice="selected",
                    inclusion_probability=None,
                    status="queued",
                    reason=f"mostly {HOSTILE}",
                    clicks=None,
                    annotators=None,
                    disagreement=None,
                )
            ],
        ),
        queue_groups={f"sequence {index}": 20 - index for index in range(15)},
        annotators=shared_report(),
        models=[
            ModelSummary(
                name="r03",
                round_number=3,
                status="promoted",
                parent=None,
                labels=30,
                seed=0,
                iterations=800,
                config_hash="ab" * 32,
                labels_hash="cd" * 32,
                checkpoint=".segcurate/models/r03",
                checkpoint_sha256="ef" * 32,
                decision="r03 is promoted.",
                promotion=None,
                split="test",
                split_version=1,
                images=40,
                units=12,
                mean_iou=Estimate(0.74, 0.71, 0.76),
                classes=(),
                sampler="mc_dropout",
                confidence="probability",
                confidence_reason=None,
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        ],
        training={
            "iteration": [200.0, 400.0, 600.0, 800.0],
            "loss": [1.25, 0.5, 0.31, 0.3],
            "learning_rate": [4e-4, 1e-3, 5e-4, 4e-9],
        },
    )


def empty_contents() -> Contents:
    """A project that has only just been measured: no section but the first has data."""
    full = full_contents()
    return Contents(
        project="empty",
        written_at=full.written_at,
        class_names=NAMES,
        class_colors=COLORS,
        model="r01",
        split="test",
        sampler="mc_dropout",
        status=full.status,
        newest=full.newest,
        rounds=[],
    )
