"""How good a model is on what is not labeled yet, from the audit of its queue: numbers and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from db.queries import audits, pool_estimates, queue_items, queues
from db.queries.audits import AuditSlice
from db.tables import Round
from pipeline.evaluation.estimate import Estimate, from_json
from pipeline.format import agree, count, counted, percent
from pipeline.summaries.models import model_confidence

WIDEST = 0.3
"""Where the interval of the error rate is wider, a sentence stands instead of the figures of the classes and
of the whole pool. JSON has them all."""


@dataclass(frozen=True)
class PoolFigures:
    """Estimates of a part of the pool; `iou` and `class_share` are one a class, and `ece_noise` is the ECE
    that so few regions would show by chance."""

    error_rate: Estimate
    miou: Estimate
    ece: Estimate
    ece_noise: float
    overconfidence: Estimate
    iou: tuple[Estimate, ...]
    class_share: tuple[Estimate, ...]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> PoolFigures:
        one = Estimate.from_document
        return cls(
            error_rate=one(document["error_rate"]),
            miou=one(document["miou"]),
            ece=one(document["ece"]),
            ece_noise=from_json(document["ece_noise"]["value"]),
            overconfidence=one(document["overconfidence"]),
            iou=tuple(map(one, document["iou"])),
            class_share=tuple(map(one, document["class_share"])),
        )


@dataclass(frozen=True)
class PoolSummary:
    """What the audit of a queue says.

    Attributes:
        queue: that the audit belongs to.
        model: whose errors these are: its scores made the queue, and it has not learned from the audit.
        sampler, confidence: of the predictions, and the name of their calibrated softmax.
        unlabeled: of the regions that had no label when the queue was drawn.
        pool: of these and of what was labeled before.
        images, regions: labeled by the audit; it drew `drawn` from `population` regions.
        lowest, highest: error rate if all that was drawn and not labeled is right or wrong.
        skipped: regions that annotators skipped before, which no later audit can draw.
    """

    queue: str
    model: str
    sampler: str
    confidence: str
    unlabeled: PoolFigures
    pool: PoolFigures
    images: int
    regions: int
    drawn: int
    population: int
    certain_pixels: int
    audit_pixels: int
    lowest: float
    highest: float
    skipped: int
    class_names: tuple[str, ...]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> PoolSummary:
        """The summary of a stored estimate."""
        parts = {name: PoolFigures.from_document(document[name]) for name in ("unlabeled", "pool")}
        lowest, highest = map(from_json, document["bounds"])
        rest = {name: value for name, value in document.items() if name not in (*parts, "bounds")}
        rest["class_names"] = tuple(document["class_names"])
        return cls(**parts, **rest, lowest=lowest, highest=highest)

    @property
    def audited(self) -> str:
        """Audited regions and what they were drawn from, for a table."""
        return f"{count(self.regions)} of {count(self.population)}"

    @property
    def evidence(self) -> str:
        """The labels behind the numbers."""
        return f"{counted(self.regions, 'audited region')} in {counted(self.images, 'image')}"

    def lines(self) -> Iterator[str]:
        """How good the model is on what is not labeled, on what that rests, and what it leaves out."""
        if self.images < 2:
            yield (
                f"{self.evidence} cannot tell how good {self.model} is on what is not labeled yet: a single "
                "image gives no interval. Raise `selection.audit_fraction`."
            )
        else:
            yield from self._of_the_unlabeled()
        yield from self._left_out()

    def _of_the_unlabeled(self) -> Iterator[str]:
        """How good the model is on what is not labeled and, where that is known well enough, on the pool."""
        new = self.unlabeled
        tells = new.error_rate.high - new.error_rate.low <= WIDEST
        figures = (
            f"mIoU {new.miou.text()}, ECE {new.ece.text()}, of which a perfect model would show "
            f"{new.ece_noise:.3f} on so few regions; "
        )
        yield (
            f"Not labeled yet: {self.model} gets {_percent(new.error_rate)} of the pixels wrong in the "
            f"{counted(self.population, 'region')} that had no label when {self.queue} was drawn "
            f"({figures if tells else ''}from {self.evidence}, which it has not learned from)."
        )
        if tells:
            yield from self._of_pool()
        else:
            yield (
                f"{counted(self.images, 'audited image')} are too few to tell how good {self.model} is "
                "there: raise `selection.audit_fraction`."
            )

    def _left_out(self) -> Iterator[str]:
        """What the numbers say nothing about."""
        missing = self.drawn - self.regions
        if missing:
            yield (
                f"{count(missing)} of the {counted(self.drawn, 'region')} that the audit drew "
                f"{agree(missing, 'has', 'have')} no label: the numbers are of the others. With these all "
                "right or all wrong, the error rate would be "
                f"{percent(self.lowest)} to {percent(self.highest)}."
            )
        if self.skipped:
            yield f"Without {counted(self.skipped, 'region')} that annotators skipped in earlier queues."

    def _of_pool(self) -> Iterator[str]:
        """How good the model is on the whole pool, and what the pool holds."""
        whole = self.pool
        if self.certain_pixels:
            yield (
                f"In the whole pool, {self.model} gets {_percent(whole.error_rate)} of the pixels wrong "
                f"(mIoU {whole.miou.text()}). That includes what was labeled before, most of which it has "
                "learned from."
            )
        shares = zip(self.class_names, whole.class_share, strict=True)
        yield f"Classes of the pool: {', '.join(f'{name} {_percent(one)}' for name, one in shares)}."


def pool_of_round(session: Session, row: Round) -> tuple[PoolSummary | None, str | None]:
    """What the audit of a round's queue says about the pool, or why it says nothing; neither where the round
    has no queue yet."""
    queue = queues.round_queue(session, row.id)
    if queue is None:
        return None, None
    stored = pool_estimates.estimate_of(session, queue.id)
    if stored is not None:
        found = PoolSummary.from_document(stored.document)
        confidence = model_confidence(session, stored.model_id, sampler=found.sampler)
        return replace(found, confidence=confidence.name), None
    audit = next((one for one in audits.audit_slices(session) if one.queue_id == queue.id), None)
    return None, _why_none(session, row, audit)


def _why_none(session: Session, row: Round, audit: AuditSlice | None) -> str:
    if audit is None:
        return "its queue has no region that was drawn at random (`selection.audit_fraction`)"
    if audit.model_id is None:
        return "no model has scored its regions"
    if not audit.of_all_regions:
        return (
            "its audit was drawn from the regions that `scoring.keep_regions` kept, and says nothing about "
            "the others"
        )
    if row.state != "closed":
        return "its queue is not labeled yet"
    items = queue_items.queue_items(session, audit.queue_id, status="labeled")
    if not any(item.slice == "audit" for item in items):
        return "no region of its audit was labeled"
    return "it is computed by the next `segcurate evaluate`, for the newest labeled audit"


def _percent(estimate: Estimate) -> str:
    """A share in per cent, with its interval."""
    if not estimate.defined:
        return "an unknown share"
    low, high = percent(estimate.low), percent(estimate.high)
    ends = " (no interval)" if low == high == "–" else f" [{low}, {high}]"
    return f"{percent(estimate.value)}{ends}"
