"""The rows of a stored assessment, from estimates: plain numbers, null where one is not defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.frequency import FrequencyGroup, covered
from pipeline.evaluation.gate import Gate, NoveltyRow
from pipeline.evaluation.reliability import Reliability

Row = dict[str, Any]


def detection_rows(
    sampler: str, found: Mapping[str, Mapping[str, Sequence[Estimate]]], parts: Sequence[str]
) -> list[Row]:
    """A row for each measure, part and metric; none where the value is not defined (an absent class)."""
    return [
        {"sampler": sampler, "measure": measure, "part": part, "metric": metric, **estimate.document()}
        for measure, metrics in found.items()
        for metric, estimates in metrics.items()
        for part, estimate in zip(parts, estimates, strict=True)
        if estimate.defined
    ]


def region_rows(sampler: str, found: Mapping[str, tuple[int, Mapping[str, Estimate]]]) -> list[Row]:
    """A row for each measure and kind of region."""
    return [
        {
            "sampler": sampler,
            "measure": measure,
            "kind": kind,
            "metric": "spearman",
            **estimate.document(),
            "n": count,
        }
        for kind, (count, estimates) in found.items()
        for measure, estimate in estimates.items()
    ]


def reliability_rows(
    sampler: str, found: Sequence[Reliability], parts: Sequence[str], *, calibrated: bool
) -> list[Row]:
    """A row for each part, with its non-empty bins; none for a part without pixels."""
    return [
        {
            "sampler": sampler,
            "calibrated": calibrated,
            "part": part,
            "bins": [
                {
                    name: to_json(getattr(diagram, name)[index])
                    for name in ("confidence", "accuracy", "low", "high", "share")
                }
                for index in range(len(diagram.share))
                if diagram.share[index] > 0
            ],
            "ece": diagram.ece.document(),
            "ece_noise": to_json(diagram.ece_noise),
        }
        for part, diagram in zip(parts, found, strict=True)
        if diagram.ece.defined
    ]


def frequency_row(sampler: str, groups: list[FrequencyGroup]) -> Row:
    """The test of one sampler; `inside` where the intervals of a group contain every tested prediction."""
    return {
        "sampler": sampler,
        "groups": [
            {
                "share": to_json(group.share),
                **{
                    name: [to_json(value) for value in getattr(group, name)]
                    for name in ("predicted", "empirical", "low", "high")
                },
                "inside": bool(group.covered[group.tested].all()),
            }
            for group in groups
        ],
        "covered": Estimate(covered(groups)).document(),
    }


def novelty_row(row: NoveltyRow) -> Row:
    """The out-of-distribution AUROC of one measure."""
    return {
        "sampler": row.sampler,
        "measure": row.measure,
        "source": row.source,
        **row.auroc.document(),
    }


def gate_row(gate: Gate | None) -> Row | None:
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
