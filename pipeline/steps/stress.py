"""Stress: does confidence fall when the input becomes strange? Held-out images, made worse step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from db.engine import Database
from db.queries import evaluations
from pipeline.data.project import Project
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.stress_verdicts import (
    JUDGED,
    METRICS,
    Condition,
    Sample,
    Verdict,
    change,
    residuals,
    verdicts,
)
from pipeline.format import evidence, number, out_of, table
from pipeline.model.checkpoints import ModelCard
from pipeline.progress import Progress, notes, silent
from pipeline.steps.held_out import assessed_images, none_usable
from pipeline.steps.ready import chosen_model
from pipeline.steps.served_model import stored_calibrators
from pipeline.studies.held_out import HeldOutImages, spread
from pipeline.studies.stress import SEED, measure_stress, results_of
from pipeline.uncertainty.served_model import open_model

OUTCOMES = {True: "passed", False: "FAILED", None: "open"}
"""How a verdict is called; one is open where nothing moved, or where the images are too few to tell."""


@dataclass(frozen=True)
class StressReport:
    """The result of a stress test. `failed` holds files that could not be used, with the reason."""

    model: str
    split: str
    images: int
    units: int
    means: dict[Condition, dict[str, Estimate]]
    """By condition and metric, over images; without a metric that is not defined."""
    changes: dict[Condition, dict[str, Estimate]]
    """Of accuracy and confidence against the unchanged images, paired by image."""
    verdicts: list[Verdict]
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report as a table and text."""
        yield (
            f"{self.model} on {evidence(self.images, self.units)} of the {self.split} split; means over "
            "images. Accuracy and confidence weigh each class of an image alike."
        )
        yield from table(
            ["stress", "strength", "accuracy", "confidence", "entropy", "mut. inf.", "energy"],
            [
                [
                    condition.kind.replace("_", " "),
                    condition.label,
                    *(number(found[metric].value if metric in found else None) for metric in METRICS),
                ]
                for condition, found in self.means.items()
            ],
        )
        for verdict in self.verdicts:
            yield f"{OUTCOMES[verdict.ok]}: {verdict.text}"
        yield from notes(self.failed)


def stress(
    project: Project,
    database: Database,
    *,
    model: str | None = None,
    images: int = 20,
    progress: Progress = silent,
) -> StressReport:
    """Magnify, attack, blur, darken, rescale and destroy held-out images, and store what the model predicts.

    The images are spread evenly over the test split, or over the calibration split where there is no test
    mask. Run again, it replaces what it wrote for the model.

    Args:
        model: its name; else the promoted one, or the newest where none is.
        images: how many, at most.

    Raises:
        UserError: there is no such model, no held-out image with a mask, or the model cannot be used.
    """
    config = project.config
    with database.session(write=False) as session:
        row = chosen_model(session, model)
        calibrators = stored_calibrators(session, row.id, sampler=config.scoring.sampler)
        split, held_out = assessed_images(session, project)
    stressed = HeldOutImages(project, held_out)
    stressed.keep(held_out[index].ref.id for index in spread(len(held_out), images))
    served = open_model(project, row.checkpoint_uri, calibrators=calibrators, cached=False)
    measured, flagged = measure_stress(served, stressed, progress=progress)
    if not measured:
        raise none_usable(stressed, split)
    ids = sorted(measured)
    results = results_of([measured[image_id] for image_id in ids])
    unit = stressed.units_of(ids, np.stack(residuals(results), axis=1))
    sample = Sample(unit, config.evaluation, seed=SEED)
    report = StressReport(
        model=row.name,
        split=split,
        images=len(ids),
        units=sample.count,
        changes={
            condition: {
                metric: change(results, condition, metric, sample)
                for metric in JUDGED
                if not np.isnan(metrics[metric]).all()
            }
            for condition, metrics in results.items()
        },
        means={
            condition: {
                metric: sample.mean(values)
                for metric, values in metrics.items()
                if not np.isnan(values).all()
            }
            for condition, metrics in results.items()
        },
        verdicts=verdicts(results, sample, guarded=_guarded(served.card, flagged, len(ids))),
        failed=stressed.failed,
    )
    with database.session() as session:
        evaluations.put_assessment(
            session, model_id=row.id, kind="stress", document=_document(report, project)
        )
    return report


def _guarded(card: ModelCard, flagged: int, images: int) -> str:
    if card.input_range is None:
        return "no check of the input range can catch it, because the model was trained before there was one"
    verb = "catches" if flagged == images else "misses"
    return f"the check of the input range {verb} it ({out_of(flagged, images, 'image')})"


def _change(found: Estimate | None) -> dict[str, Any]:
    return {} if found is None else {"change": found.document()}


def _document(report: StressReport, project: Project) -> dict[str, Any]:
    return {
        "images": report.images,
        "blocks": report.units,
        "split": report.split,
        "sampler": project.config.scoring.sampler,
        "confidence": project.config.evaluation.confidence,
        "rows": [
            {
                **asdict(condition),
                "metric": metric,
                **estimate.document(),
                **_change(report.changes[condition].get(metric)),
            }
            for condition, metrics in report.means.items()
            for metric, estimate in metrics.items()
        ],
        "verdicts": [asdict(verdict) for verdict in report.verdicts],
    }
