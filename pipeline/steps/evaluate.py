"""Evaluate: the round's model is measured on held-out images, then promoted or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import evaluations, failures, models
from db.queries.evaluations import Interval
from db.tables import Model
from pipeline import rounds
from pipeline.config import EvaluationConfig
from pipeline.data.project import Project
from pipeline.evaluation.promotion import Overlap, compare
from pipeline.format import evidence, few_units, table
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, notes, silent
from pipeline.steps.held_out import held_out_images
from pipeline.steps.served_model import evaluated_samplers, model_of_round, sampler_calibrators
from pipeline.studies.held_out import HeldOutImages
from pipeline.studies.measurement import DECIDING, SEED, EvaluationRow, measure
from pipeline.summaries.classes import class_figures
from pipeline.uncertainty.served_model import open_samplers

SPLITS = ("test", "calibration")
FEWEST_UNITS = 10
"""Below this number of independent units, the intervals come with a warning."""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found, and what became of the model."""

    model: str
    promoted: bool
    decision: str
    rows: list[EvaluationRow]
    failed: list[tuple[str, str]]
    warnings: list[str]
    class_names: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for row in self.rows:
            what = "calibrated" if row.calibrated else "uncalibrated"
            figures = ", ".join(
                f"{label} {row.metrics[(name, -1)].text()}"
                for label, name in (
                    ("mIoU", "miou"),
                    ("ECE", "ece"),
                    ("ECE by chance", "ece_noise"),
                    ("NLL", "nll"),
                    ("error AUROC of entropy", "auroc_entropy"),
                )
            )
            yield f"{row.split}, {row.sampler}, {what} ({evidence(row.images, row.blocks)}): {figures}"
        yield from self._classes()
        yield from notes(self.failed, self.warnings)
        yield self.decision

    def _classes(self) -> Iterator[str]:
        """A table of the classes, by the evaluation that decides."""
        row = _deciding(self.rows)
        if row is None:
            return
        yield f"{row.split}, {row.sampler}, calibrated, by class:"
        classes = class_figures(row.metrics, self.class_names)
        yield from table(
            ("class", "IoU", "recall"), [(one.name, one.iou.text(), one.recall.text()) for one in classes]
        )


@one_at_a_time("evaluate")
def evaluate(project: Project, database: Database, *, progress: Progress = silent) -> EvaluationReport:
    """Measure the round's model with every evaluated sampler; promote it unless it is worse than the current
    one beyond its interval.

    Run again, it replaces what it wrote.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the round's model, or the device, cannot be used.
    """
    with database.session(write=False) as session:
        current = rounds.require(session, "evaluate")
        model = model_of_round(session, current)
        calibrators = sampler_calibrators(session, model.id, evaluated_samplers(project.config))
        splits = {split: HeldOutImages(project, held_out_images(session, project, split)) for split in SPLITS}
    rows: list[EvaluationRow] = []
    if any(map(len, splits.values())):
        sampled = open_samplers(project, model.checkpoint_uri, calibrators)
        for split, images in splits.items():
            rows += measure(split, images, sampled, config=project.config.evaluation, progress=progress)
    failed = [failure for images in splits.values() for failure in images.failed]
    warnings = _warnings(rows)
    with database.session() as session:
        current = rounds.require(session, "evaluate")
        promoted, decision = _decide(session, model, rows, project.config.evaluation)
        evaluations.clear_evaluations(session, model.id)
        for row in rows:
            evaluations.add_evaluation(
                session,
                model_id=model.id,
                split=row.split,
                sampler=row.sampler,
                calibrated=row.calibrated,
                images=row.images,
                blocks=row.blocks,
                curves=row.curves,
                metrics={key: Interval(**item.document(digits=None)) for key, item in row.metrics.items()},
            )
        stored = session.get_one(Model, model.id)
        stored.status = "promoted" if promoted else "refused"
        stored.decision = decision
        failures.clear_failures(session, "evaluate")
        failures.record_failures(session, "evaluate", failed)
        rounds.advance(session, current, "evaluate")
    return EvaluationReport(
        model=model.name,
        promoted=promoted,
        decision=decision,
        rows=rows,
        failed=failed,
        warnings=warnings,
        class_names=tuple(project.config.data.class_names),
    )


def _decide(
    session: Session, model: Model, rows: Sequence[EvaluationRow], config: EvaluationConfig
) -> tuple[bool, str]:
    """Whether the model is promoted, and the reason as a sentence."""
    row = _deciding(rows)
    if row is None:
        return True, f"{model.name} is promoted without a measurement: no held-out image has a readable mask."
    found = row.metrics[("miou", -1)]
    measured = f"mIoU {found.text()} on {evidence(row.images, row.blocks)} of the {row.split} split"
    other = models.promoted_model(session, other_than=model.id)
    if other is None:
        return True, f"{model.name} is promoted, the first model: {measured}."
    theirs = evaluations.evaluation_of(
        session, model_id=other.id, split=row.split, sampler=row.sampler, calibrated=row.calibrated
    )
    mine = Overlap.from_document(row.curves["overlap"])
    if theirs is not None and theirs.curves["overlap"]["fingerprint"] == mine.fingerprint:
        current = Overlap.from_document(theirs.curves["overlap"])
        verdict = compare(mine, current, config=config, seed=SEED)
        promoted = verdict.promoted
        against = (
            f"{verdict.difference.text(sign='+')} against {other.name} on the same images "
            f"({evidence(row.images, verdict.units)})"
        )
    else:
        former = evaluations.metrics_of(
            session, model_id=other.id, split=row.split, sampler=row.sampler, calibrated=row.calibrated
        ).get(("miou", -1))
        if former is None or former.value is None:
            return True, f"{model.name} is promoted: {measured}; {other.name} was never measured there."
        promoted = found.highest >= former.value - config.promote_tolerance
        against = f"{other.name} had {former.value:.3f} on other images or units"
    if promoted:
        return True, f"{model.name} is promoted: {measured}, {against}."
    return False, f"{model.name} is refused, {other.name} stays: {measured}, {against}."


def _deciding(rows: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """The row that a promotion rests on: of the test split where it was measured."""
    return next((row for row in rows if (row.sampler, row.calibrated) == DECIDING), None)


def _warnings(rows: Sequence[EvaluationRow]) -> list[str]:
    warnings: list[str] = []
    sizes = {row.split: (row.images, row.blocks) for row in rows}
    for split in SPLITS:
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
