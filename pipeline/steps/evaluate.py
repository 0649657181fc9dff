"""Evaluate: the round's model is measured on held-out images, then promoted or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import evaluations, failures
from db.queries import images as image_queries
from db.queries.evaluations import Interval
from db.tables import Model
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.confidence import confidence_of, contradiction
from pipeline.format import evidence, few_units, percent, split_name, table
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, notes, silent
from pipeline.steps.estimate_pool import update_pool_estimate
from pipeline.steps.held_out import held_out_images, open_splits
from pipeline.steps.promotion import decide, deciding, promotion_of, to_measure_again
from pipeline.steps.ready import evaluated_samplers, model_of_round
from pipeline.steps.served_model import sampler_calibrators
from pipeline.studies.held_out import HeldOutImages
from pipeline.studies.measurement import DECIDING, EvaluationRow, measure
from pipeline.summaries.classes import class_figures
from pipeline.uncertainty.served_model import open_samplers

SPLITS = ("test", "calibration")
_SHOWN = (
    ("mIoU", "miou"),
    ("ECE", "ece"),
    ("ECE of a perfect model", "ece_noise"),
    ("NLL", "nll"),
    ("AUROC of entropy for errors", "auroc_entropy"),
)
"""Metrics of a report, and their names."""
FEWEST_UNITS = 10
"""Below this number of independent units, the intervals come with a warning."""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found on the newest versions of the splits, and what became of the model;
    `promotion` is the comparison behind the decision as JSON, None where there was none."""

    model: str
    promoted: bool
    decision: str
    promotion: dict[str, Any] | None
    rows: list[EvaluationRow]
    versions: dict[str, int]
    failed: list[tuple[str, str]]
    warnings: list[str]
    class_names: tuple[str, ...]
    confidence: float
    """Of the intervals."""
    pool: tuple[str, ...] = ()
    """How good the model of the newest audit is on what is not labeled yet, as text."""

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.rows:
            yield f"{self.model}: values with {percent(self.confidence)} intervals over independent units."
        for split in dict.fromkeys(row.split for row in self.rows):
            yield from self._split([row for row in self.rows if row.split == split])
        yield from self._classes()
        yield from self.pool
        yield from notes(self.failed, self.warnings)
        yield self.decision

    def _split(self, rows: Sequence[EvaluationRow]) -> Iterator[str]:
        """A table for each sampler on one split."""
        first = rows[0]
        name = split_name(first.split, self.versions[first.split])
        yield f"On the {name} split ({evidence(first.images, first.blocks)}):"
        for sampler in dict.fromkeys(row.sampler for row in rows):
            of_sampler = [row for row in rows if row.sampler == sampler]
            yield from table(
                (
                    f"sampler {sampler}",
                    *("calibrated" if row.calibrated else "uncalibrated" for row in of_sampler),
                ),
                [
                    (label, *(row.metrics[(metric, -1)].text() for row in of_sampler))
                    for label, metric in _SHOWN
                ],
            )

    def _classes(self) -> Iterator[str]:
        """A table of the classes, by the evaluation that decides."""
        row = deciding(self.rows)
        if row is None:
            return
        name = split_name(row.split, self.versions[row.split])
        yield f"By class, on the {name} split (sampler {row.sampler}, calibrated):"
        classes = class_figures(row.metrics, self.class_names)
        yield from table(
            ("class", "IoU", "recall"), [(one.name, one.iou.text(), one.recall.text()) for one in classes]
        )


@one_at_a_time("evaluate")
def evaluate(project: Project, database: Database, *, progress: Progress = silent) -> EvaluationReport:
    """Measure the round's model with every evaluated sampler; promote it where it measures no lower than the
    best promoted one, or is shown to lose no more than `evaluation.promote_tolerance`. Where the test
    split contradicts a calibrator, its softmax is no probability. Before that, estimate the pool from
    the newest labeled audit. Where a split has grown since, the best and the newest promoted model are
    measured again on its newest version first.

    Run again, it replaces what it wrote.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the round's model, or the device, cannot be used.
    """
    with database.session(write=False) as session:
        current = rounds.require(session, "evaluate")
        model = model_of_round(session, current)
        calibrators = sampler_calibrators(session, model.id, evaluated_samplers(project.config))
        splits = _held_out(session, project)
        versions = image_queries.split_versions(session)
        missing = open_splits(session)
    pool = update_pool_estimate(project, database, progress=progress)
    rows: list[EvaluationRow] = []
    if any(map(len, splits.values())):
        sampled = open_samplers(project, model.checkpoint_uri, calibrators)
        for split, images in splits.items():
            rows += measure(split, images, sampled, config=project.config.evaluation, progress=progress)
    failed = [*pool.failed, *(failure for images in splits.values() for failure in images.failed)]
    warnings = [*missing.values(), *_warnings(rows, missing), *pool.warnings]
    measured = deciding(rows)
    if measured is not None:
        warnings += _measure_others_again(
            project, database, model, measured.split, versions=versions, progress=progress
        )
    with database.session() as session:
        current = rounds.require(session, "evaluate")
        found = decide(session, model, rows, project.config, versions=versions)
        _store(session, model.id, rows, versions=versions, promotion=found.document)
        stored = session.get_one(Model, model.id)
        stored.status = "promoted" if found.promoted else "refused"
        stored.decision = found.sentence
        withdrawn = _confirm(session, model.id, rows)
        failures.clear_failures(session, "evaluate")
        failures.record_failures(session, "evaluate", failed)
        rounds.advance(session, current, "evaluate")
    return EvaluationReport(
        model=model.name,
        promoted=found.promoted,
        decision=found.sentence,
        promotion=found.document,
        rows=rows,
        versions=versions,
        failed=failed,
        warnings=warnings + withdrawn,
        class_names=tuple(project.config.data.class_names),
        confidence=project.config.evaluation.confidence,
        pool=tuple(pool.lines()),
    )


def _held_out(session: Session, project: Project) -> dict[str, HeldOutImages]:
    return {split: HeldOutImages(project, held_out_images(session, project, split)) for split in SPLITS}


def _store(
    session: Session,
    model_id: int,
    rows: Sequence[EvaluationRow],
    *,
    versions: Mapping[str, int],
    promotion: dict[str, Any] | None = None,
) -> None:
    """Replace what is known of a model on these versions of the splits."""
    evaluations.clear_evaluations(session, model_id, versions=versions)
    for row in rows:
        evaluations.add_evaluation(
            session,
            model_id=model_id,
            split=row.split,
            split_version=versions[row.split],
            sampler=row.sampler,
            calibrated=row.calibrated,
            images=row.images,
            blocks=row.blocks,
            curves=_with_promotion(row, promotion),
            metrics={key: Interval(**item.document(digits=None)) for key, item in row.metrics.items()},
        )


def _measure_others_again(
    project: Project,
    database: Database,
    model: Model,
    split: str,
    *,
    versions: Mapping[str, int],
    progress: Progress,
) -> list[str]:
    """Measure the newest promoted model and the best one on the newest versions of the splits, if they were
    not measured on that of the split that decides. Their earlier evaluations stay.

    Returns:
        A warning for each that could not be measured again, or whose softmax is no probability there.
    """
    with database.session(write=False) as session:
        others = [
            (
                other,
                sampler_calibrators(session, other.id, evaluated_samplers(project.config)),
                promotion_of(session, other, split),
            )
            for other in to_measure_again(session, model, split, version=versions[split])
        ]
        splits = _held_out(session, project)
    warnings: list[str] = []
    for other, calibrators, promotion in others:
        try:
            sampled = open_samplers(project, other.checkpoint_uri, calibrators)
        except UserError as error:
            warnings.append(f"{other.name} could not be measured on the new {split} images: {error}")
            continue
        rows: list[EvaluationRow] = []
        for name, images in splits.items():
            rows += measure(name, images, sampled, config=project.config.evaluation, progress=progress)
        with database.session() as session:
            _store(session, other.id, rows, versions=versions, promotion=promotion)
            warnings += [f"{other.name}, {withdrawn}" for withdrawn in _confirm(session, other.id, rows)]
    return warnings


def _confirm(session: Session, model_id: int, rows: Sequence[EvaluationRow]) -> list[str]:
    """Withdraw the word probability of each sampler that the test split contradicts, or give it back where it
    no longer does; a sentence for each that is withdrawn. Samplers that were not measured there keep what
    they have."""
    calibrations = evaluations.model_calibrations(session, model_id)
    withdrawn: list[str] = []
    for row in rows:
        calibration = calibrations.get(row.sampler)
        if calibration is None or row.split != "test" or not row.calibrated:
            continue
        reason = contradiction("test", row.metrics)
        evaluations.contradict_calibration(calibration, reason)
        if reason is not None:
            confidence = confidence_of(calibration.passed, calibration.report)
            withdrawn.append(f"{row.sampler}: its confidence is a {confidence.sentence}")
    return withdrawn


def _with_promotion(row: EvaluationRow, document: dict[str, Any] | None) -> dict[str, Any]:
    """The curves of a row; those of the deciding one with the comparison."""
    decides = document is not None and document["split"] == row.split
    return row.curves | (
        {"promotion": document} if decides and (row.sampler, row.calibrated) == DECIDING else {}
    )


def _warnings(rows: Sequence[EvaluationRow], missing: Mapping[str, str]) -> list[str]:
    warnings: list[str] = []
    sizes = {row.split: (row.images, row.blocks) for row in rows}
    for split in SPLITS:
        if split in missing:
            continue
        if split not in sizes:
            warnings.append(f"The {split} split has no image with a readable mask.")
            continue
        images, count = sizes[split]
        if count < FEWEST_UNITS:
            warnings.append(f"The {split} split has {few_units(images, count)}")
    if "calibration" in sizes and "test" not in sizes:
        warnings.append(
            "The calibrators are evaluated on the images that they were fitted on: ECE is optimistic."
        )
    return warnings
