"""A stored assessment as text: tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.gate import GATED
from pipeline.format import evidence, number, table

Row = Mapping[str, Any]

SHOWN = (("aupr", "AUPR"), ("fpr95", "FPR95"), ("aurc", "AURC"), ("e_aurc", "excess"), ("augrc", "AUGRC"))
"""Metrics beside the AUROC, and their headings."""
WORST_CLASSES = 3
SOURCE_NAMES = {
    "held_out_classes": "classes held out of the training",
    "shuffled_patches": "shuffled patches",
    "noise": "noise",
}


def report_lines(model: str, document: Mapping[str, Any]) -> Iterator[str]:
    """The results of an assessment, the most important ones first."""
    yield (
        f"{model} on {evidence(document['images'], document['blocks'])} of the {document['split']} split; "
        f"{document['confidence']:.0%} intervals over units."
    )
    yield from _detection(document)
    yield from _classes(document)
    yield from _reliability(document)
    yield from _novelty(document)
    yield gate_line(document["gate"])


def gate_line(gate: Row | None) -> str:
    """Whether mutual information may select."""
    if gate is None:
        return "gate: mutual information was not measured: no sampler gives it."
    verdict = "passed" if gate["passed"] else "NOT passed"
    return (
        f"gate: {verdict}: mutual information ({gate['sampler']}) separates {SOURCE_NAMES[gate['source']]} "
        f"from known pixels with AUROC {_interval(gate)}; its lower end must reach {gate['threshold']:.2f}."
    )


def _detection(document: Mapping[str, Any]) -> Iterator[str]:
    found = {
        (row["sampler"], row["measure"], row["part"], row["metric"]): row for row in document["detection"]
    }
    regions = {(row["sampler"], row["measure"], row["kind"]): row for row in document["regions"]}
    kinds = list(dict.fromkeys(row["kind"] for row in document["regions"]))
    subjects = list(dict.fromkeys(key[:2] for key in found))
    width = document["boundary_pixels"]
    yield (
        f"Detection of errors: AUROC, also within {width} px of a label edge and beyond; "
        "rank correlation of regions with their error."
    )
    head = ["sampler", "measure", "AUROC", "edge", "inside", *(name for _, name in SHOWN), "PAvPU", *kinds]
    rows: list[list[str]] = []
    for sampler, measure in subjects:

        def cell(metric: str, part: str = "all", *, key: tuple[str, str] = (sampler, measure)) -> str:
            return _short(found.get((*key, part, metric)))

        rows.append(
            [
                sampler,
                measure,
                _interval(found.get((sampler, measure, "all", "auroc"))),
                cell("auroc", "boundary"),
                cell("auroc", "interior"),
                *(cell(metric) for metric, _ in SHOWN),
                cell("pavpu"),
                *(_short(regions.get((sampler, measure, kind))) for kind in kinds),
            ]
        )
    yield from table(head, rows)


def _classes(document: Mapping[str, Any]) -> Iterator[str]:
    """The classes whose errors entropy detects worst."""
    for sampler in dict.fromkeys(row["sampler"] for row in document["detection"]):
        rows = [
            row
            for row in document["detection"]
            if (row["sampler"], row["measure"], row["metric"]) == (sampler, "entropy", "auroc")
            and row["part"].startswith("class:")
        ]
        worst = sorted(rows, key=lambda row: row["value"])[:WORST_CLASSES]
        text = ", ".join(
            f"{row['part'].removeprefix('class:')} {Estimate.from_document(row).text(digits=2)}"
            for row in worst
        )
        yield f"Classes whose errors entropy detects worst ({sampler}): {text}"


def _reliability(document: Mapping[str, Any]) -> Iterator[str]:
    found = {(row["sampler"], row["calibrated"], row["part"]): row for row in document["reliability"]}
    covered = {row["sampler"]: row for row in document["frequency"]}
    yield "Reliability: ECE before and after calibration, and the ECE that chance alone would give."
    rows: list[list[str]] = []
    for sampler in dict.fromkeys(key[0] for key in found):
        after = found[sampler, True, "all"]
        share = covered[sampler]["covered"]["value"] if sampler in covered else None
        rows.append(
            [
                sampler,
                _interval(found[sampler, False, "all"]["ece"]),
                _interval(after["ece"]),
                number(after["ece_noise"]),
                *(
                    _short(found[sampler, True, part]["ece"]) if (sampler, True, part) in found else "–"
                    for part in ("boundary", "interior")
                ),
                "–" if share is None else f"{share:.0%} of {len(covered[sampler]['groups'])} groups",
            ]
        )
    yield from table(["sampler", "before", "after", "chance", "edge", "inside", "shares covered"], rows)


def _novelty(document: Mapping[str, Any]) -> Iterator[str]:
    found = {(row["sampler"], row["measure"], row["source"]): row for row in document["novelty"]}
    sources = [source for source in SOURCE_NAMES if any(key[2] == source for key in found)]
    if not sources:
        return
    yield "Detection of inputs unlike the training images: out-of-distribution AUROC."
    rows = [
        [sampler, measure, *(_interval(found.get((sampler, measure, source))) for source in sources)]
        for sampler, measure in dict.fromkeys(key[:2] for key in found)
        if measure in (GATED, "entropy", "energy", "max_logit", "variation_ratio")
    ]
    yield from table(["sampler", "measure", *(source.replace("_", " ") for source in sources)], rows)


def _short(row: Row | None) -> str:
    return number(None if row is None else row["value"])


def _interval(row: Row | None) -> str:
    return "–" if row is None else Estimate.from_document(row).text()
