"""The rows of a stored assessment, from estimates: plain numbers, null where one is not defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.frequency import FrequencyGroup, covered
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
