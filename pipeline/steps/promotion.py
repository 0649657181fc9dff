"""The decision on a round's model: promoted or refused, with the comparison and its reason as a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from db.queries import evaluations, models
from db.tables import Evaluation, Model
from pipeline.config import ProjectConfig
from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.overlap import Overlap
from pipeline.evaluation.promotion import Verdict, compare, compare_apart
from pipeline.format import UNIT, evidence, few_units, percent, split_name
from pipeline.studies.measurement import DECIDING, SEED, EvaluationRow
from pipeline.summaries.classes import UNDEFINED
from pipeline.summaries.models import estimates


@dataclass(frozen=True)
class Decision:
    """Whether a model is promoted, why, and the comparison as JSON; None where there was none.

    The document holds the split and its version, the model `against` which it was compared, whether on the
    `same_images`, the `images`, the `units`, the `difference` of mIoU, the `margin`, the loss that goes
    `unseen`, how often an equal model is refused (`refused_equal`), and the classes that are `worse`, each
    with its difference.
    """

    promoted: bool
    sentence: str
    document: dict[str, Any] | None = None


def decide(
    session: Session,
    model: Model,
    rows: Sequence[EvaluationRow],
    config: ProjectConfig,
    *,
    versions: Mapping[str, int],
) -> Decision:
    """Compare a model with the best promoted model: of those measured on the same images, the one with the
    highest mIoU; where there is none, the newest that was measured on the split.

    Args:
        versions: of the splits that the rows were measured on.
    """
    row = deciding(rows)
    if row is None or not row.metrics[("miou", -1)].defined:
        return Decision(
            True, f"{model.name} is promoted without a measurement: no split has images with readable masks."
        )
    found = row.metrics[("miou", -1)]
    split = split_name(row.split, versions[row.split])
    measured = f"single-pass mIoU {found.text()} on {evidence(row.images, row.blocks)} of the {split} split"
    others = models.promoted_models(session, other_than=model.id)
    if not others:
        return Decision(True, f"{model.name} is promoted, the first model: {measured}.")
    against = _compared(session, row, others, config, version=versions[row.split])
    if against is None:
        return Decision(
            True, f"{model.name} is promoted: {measured}; {others[0].name} was never measured there."
        )
    verdict, other = against.verdict, against.name
    standing = "is promoted" if verdict.promoted else f"is refused, {others[0].name} stays"
    where = (
        f"{other}, the best so far, on the same images"
        if against.same_images
        else f"{other} on other images or units"
    )
    words = [
        f"{model.name} {standing}: {measured}, {verdict.difference.text(sign='+')} against {where} "
        f"({evidence(row.images, verdict.units)}).",
        *_reasons(verdict, row.images),
    ]
    names = config.data.class_names
    if verdict.worse:
        classes = ", ".join(f"{names[index]} {loss.text(sign='+')}" for index, loss in verdict.worse.items())
        words.append(f"Worse in IoU than {other}: {classes}.")
    document = {
        "split": row.split,
        "split_version": versions[row.split],
        "against": other,
        "same_images": against.same_images,
        "images": row.images,
        "units": verdict.units,
        "difference": verdict.difference.document(),
        "margin": verdict.margin,
        "unseen": to_json(verdict.unseen),
        "refused_equal": to_json(verdict.refused_equal),
        "worse": [{"class": names[index], **loss.document()} for index, loss in verdict.worse.items()],
    }
    return Decision(verdict.promoted, " ".join(words), document)


def promotion_of(session: Session, model: Model, split: str) -> dict[str, Any] | None:
    """The comparison behind the decision on a model that was measured on a split, as JSON."""
    sampler, calibrated = DECIDING
    known = evaluations.evaluation_of(
        session, model_id=model.id, split=split, sampler=sampler, calibrated=calibrated
    )
    return None if known is None else known.curves.get("promotion")


def to_measure_again(session: Session, model: Model, split: str, *, version: int) -> list[Model]:
    """Of the other promoted models, the newest and the best one, if they were not measured on this version of
    the split; the best by its mIoU on the version on which it was measured last."""
    others = models.promoted_models(session, other_than=model.id)
    sampler, calibrated = DECIDING
    key: Any = {"split": split, "sampler": sampler, "calibrated": calibrated}
    known = [(found.value, other) for other in others if (found := _mean_iou(session, other, key)).defined]
    best = [max(known, key=lambda pair: pair[0])[1]] if known else []
    return [
        other
        for other in dict.fromkeys([*others[:1], *best])
        if evaluations.evaluation_of(session, model_id=other.id, version=version, **key) is None
    ]


def deciding(rows: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """The row that a promotion rests on: of the test split where it was measured."""
    return next((row for row in rows if (row.sampler, row.calibrated) == DECIDING), None)


class _Compared(NamedTuple):
    name: str
    verdict: Verdict
    same_images: bool


def _compared(
    session: Session, row: EvaluationRow, others: Sequence[Model], config: ProjectConfig, *, version: int
) -> _Compared | None:
    """The comparison with the best of other models; None where none was measured on the split."""
    key = {"split": row.split, "sampler": row.sampler, "calibrated": row.calibrated}
    mine = Overlap.from_document(row.curves["overlap"])
    known: list[tuple[Model, Evaluation]] = []
    paired: list[tuple[Model, Overlap]] = []
    for other in others:
        same = evaluations.evaluation_of(session, model_id=other.id, version=version, **key)
        theirs = same or evaluations.evaluation_of(session, model_id=other.id, **key)
        if theirs is not None:
            known.append((other, theirs))
            if same is not None and same.curves["overlap"]["fingerprint"] == mine.fingerprint:
                paired.append((other, Overlap.from_document(same.curves["overlap"])))
    if paired:
        best, overlap = max(paired, key=lambda pair: pair[1].mean_iou)
        return _Compared(
            best.name, compare(mine, overlap, config=config.evaluation, seed=SEED), same_images=True
        )
    for other, theirs in known:
        former = _mean_iou(session, other, key)
        if former.defined:
            units = min(row.blocks, theirs.blocks)
            verdict = compare_apart(row.metrics[("miou", -1)], former, units=units, config=config.evaluation)
            return _Compared(other.name, verdict, same_images=False)
    return None


def _mean_iou(session: Session, model: Model, key: Mapping[str, Any]) -> Estimate:
    """The mIoU of a model by the key of an evaluation, as it was measured last; NaN where it was not."""
    return estimates(session, model.id, **key).get(("miou", -1), UNDEFINED)


def _reasons(verdict: Verdict, images: int) -> list[str]:
    """What the evidence can tell apart and, where a model is refused, what to do."""
    if verdict.units < 2:
        return [f"The difference itself decides. It rests on {few_units(images, verdict.units)}"]
    units = f"{verdict.units} {UNIT}s"
    if verdict.promoted or verdict.difference.high < 0:
        return [
            f"With {units}, a loss under {verdict.unseen:.3f} goes unseen in more than one of five cases."
        ]
    return [
        f"With {units}, a loss of more than {verdict.margin:g} (`evaluation.promote_tolerance`) is not "
        f"excluded, and an equal model is refused in {percent(verdict.refused_equal)} of cases: hold out "
        "more images or groups, or raise the tolerance."
    ]
