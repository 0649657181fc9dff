"""Whether the selection may rank by mutual information: only where it detects out-of-distribution inputs.

Legend: a row is one out-of-distribution AUROC: sampler, measure, source, and the value with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Measure, Sampler
from pipeline.evaluation.estimate import Estimate

GATED: Measure = "mutual_information"


@dataclass(frozen=True)
class NoveltyRow:
    """The AUROC of one measure on one source of novelty."""

    sampler: str
    measure: str
    source: str
    """`held_out_classes`, `shuffled_patches` or `noise`."""
    auroc: Estimate


@dataclass(frozen=True)
class Gate:
    """The row that decides, and the AUROC that its lower end must reach."""

    row: NoveltyRow
    threshold: float

    @property
    def passed(self) -> bool:
        """Whether the lower end reaches the threshold; never without an interval."""
        return self.row.auroc.low >= self.threshold


def decide_gate(rows: Sequence[NoveltyRow], *, sampler: Sampler, threshold: float) -> Gate | None:
    """The gate of mutual information under one sampler; None where it was never measured.

    Classes held out of the training decide where they were measured, because a pool contains such novelty.
    Otherwise the constructed input with the lowest AUROC decides.
    """
    gated = [row for row in rows if row.sampler == sampler and row.measure == GATED]
    natural = [row for row in gated if row.source == "held_out_classes"]
    candidates = natural or gated
    if not candidates:
        return None
    return Gate(row=min(candidates, key=_strength), threshold=threshold)


def novelty_row(row: NoveltyRow) -> dict[str, Any]:
    """The out-of-distribution AUROC of one measure."""
    return {
        "sampler": row.sampler,
        "measure": row.measure,
        "source": row.source,
        **row.auroc.document(),
    }


def gate_row(gate: Gate | None) -> dict[str, Any] | None:
    """The row that decides whether mutual information may select; None where it was not measured."""
    if gate is None:
        return None
    return {**novelty_row(gate.row), "threshold": gate.threshold, "passed": gate.passed}


def novelty_rows(quality: Mapping[str, Any] | None, novelty: Mapping[str, Any] | None) -> list[NoveltyRow]:
    """All out-of-distribution AUROCs of two stored documents: of constructed inputs, and of the classes that
    a model was trained without."""
    held_out = (novelty or {}).get("held_out_classes") or {}
    rows = [row for row in (quality or {}).get("novelty", []) if row["source"] != "held_out_classes"]
    rows += [
        {**row, "source": "held_out_classes"} for row in held_out.get("rows", []) if row["metric"] == "auroc"
    ]
    return [
        NoveltyRow(
            sampler=row["sampler"],
            measure=row["measure"],
            source=row["source"],
            auroc=Estimate.from_document(row),
        )
        for row in rows
    ]


def _strength(row: NoveltyRow) -> float:
    return row.auroc.low if row.auroc.low == row.auroc.low else float("-inf")
