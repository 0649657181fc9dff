"""A stored assessment as text: tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.gate import GATED
from pipeline.format import agree, evidence, number, percent, table

Row = Mapping[str, Any]

SHOWN = (("aupr", "AUPR"), ("fpr95", "FPR95"), ("aurc", "AURC"), ("e_aurc", "E-AURC"), ("augrc", "AUGRC"))
"""Metrics beside the AUROC, and their headings."""
WORST_CLASSES = 3
MOST_VALUES = 2
"""Values that a sentence gives one by one; of more it gives the range."""
NO_ERRORS = "No pixel of these images is wrong, or none is right."
CHANCE = 0.5
"""AUROC of a measure that knows nothing of the errors."""
SOURCE_NAMES = {
    "held_out_classes": "classes that it was not trained on",
    "shuffled_patches": "images whose patches are shuffled",
    "noise": "noise",
}


def report_lines(model: str, document: Mapping[str, Any]) -> Iterator[str]:
    """The results of an assessment, the most important ones first."""
    yield (
        f"{model} on {evidence(document['images'], document['blocks'])} of the {document['split']} split; "
        f"{percent(document['confidence'])} intervals over units."
    )
    yield from _detection(document)
    yield from _classes(document)
    yield from _reliability(document)
    yield from _novelty(document)
    yield gate_line(document["gate"])


def gate_line(gate: Row | None) -> str:
    """Whether a selection may rank by mutual information."""
    if gate is None:
        return "Selection by mutual information: not measured, because no sampler gives it."
    may = "allowed" if gate["passed"] else "not allowed without `--force`"
    finding = gate_finding(gate)
    return f"Selection by mutual information: {may}. {finding[:1].upper()}{finding[1:]}"


def gate_finding(gate: Row) -> str:
    """What decides whether a selection may rank by mutual information: a sentence that begins in small
    letters."""
    notices = "notices" if gate["passed"] else "does not notice"
    return (
        f"mutual information ({gate['sampler']}) {notices} {SOURCE_NAMES[gate['source']]}: AUROC "
        f"{_interval(gate)}, whose lower end must reach {gate['threshold']:.2f}."
    )


def chance_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for the measures of each sampler that find the errors worse than chance or no better, on all
    pixels and on each class."""
    for sampler in _samplers(document):
        rows = [row for row in document["detection"] if row["sampler"] == sampler and _judged(row)]
        for part in dict.fromkeys(row["part"] for row in rows):
            found = {
                row["measure"]: Estimate.from_document(row)
                for row in rows
                if row["part"] == part and row["value"] is not None
            }
            worse = {measure: one for measure, one in found.items() if one.highest < CHANCE}
            equal = {measure: one for measure, one in found.items() if one.lowest <= CHANCE <= one.highest}
            name = part.removeprefix("class:")
            where = "" if part == "all" else f" on {name}"
            if worse:
                text = (
                    f"{_named(worse, sampler)} worse than chance at finding errors{where}: {_values(worse)}."
                )
                if "entropy" in worse and where:
                    text += f" The model is more certain where it misses {name} than where it is right."
                yield text
            if equal:
                yield (
                    f"{_named(equal, sampler)} no better than chance at finding errors{where}, as far as "
                    f"these images tell: {_values(equal)}."
                )


def _judged(row: Row) -> bool:
    return row["metric"] == "auroc" and (row["part"] == "all" or row["part"].startswith("class:"))


def _named(found: Mapping[str, Estimate], sampler: str) -> str:
    """The measures as the subject of a sentence, with its verb."""
    names = [name.replace("_", " ") for name in found]
    text = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    return f"{text[:1].upper()}{text[1:]} ({sampler}) {agree(len(names), 'is', 'are')}"


def _values(found: Mapping[str, Estimate]) -> str:
    if len(found) > MOST_VALUES:
        least = min(found.values(), key=lambda one: one.value)
        most = max(found.values(), key=lambda one: one.value)
        return f"AUROC {least.value:.2f} to {most.value:.2f}"
    return "AUROC " + ", ".join(one.text(digits=2) for one in found.values())


def _detection(document: Mapping[str, Any]) -> Iterator[str]:
    found = {
        (row["sampler"], row["measure"], row["part"], row["metric"]): row for row in document["detection"]
    }
    regions = {(row["sampler"], row["measure"], row["kind"]): row for row in document["regions"]}
    kinds = list(dict.fromkeys(row["kind"] for row in document["regions"]))
    subjects = list(dict.fromkeys(key[:2] for key in found))
    if not any(key[2:] == ("all", "auroc") and row["value"] is not None for key, row in found.items()):
        yield f"Detection of errors: not measured. {NO_ERRORS}"
        return
    width = document["boundary_pixels"]
    yield f"Detection of errors: AUROC, also within {width} px of a label edge and beyond."
    yield from table(
        ["sampler", "measure", "AUROC", "edge", "inside", "PAvPU"],
        [
            [
                *subject,
                _interval(found.get((*subject, "all", "auroc"))),
                *(
                    _short(found.get((*subject, part, metric)))
                    for part, metric in (("boundary", "auroc"), ("interior", "auroc"), ("all", "pavpu"))
                ),
            ]
            for subject in subjects
        ],
    )
    yield from table(
        ["sampler", "measure", *(name for _, name in SHOWN)],
        [
            [*subject, *(_short(found.get((*subject, "all", metric))) for metric, _ in SHOWN)]
            for subject in subjects
        ],
    )
    yield "Rank correlation of a region's score with its error, by kind of region."
    yield from table(
        ["sampler", "measure", *kinds],
        [[*subject, *(_short(regions.get((*subject, kind))) for kind in kinds)] for subject in subjects],
    )


def _classes(document: Mapping[str, Any]) -> Iterator[str]:
    """The classes whose errors entropy detects worst."""
    for sampler in _samplers(document):
        if not _by_class(document, sampler):
            continue
        worst = sorted(_by_class(document, sampler), key=lambda row: row["value"])[:WORST_CLASSES]
        text = ", ".join(
            f"{row['part'].removeprefix('class:')} {Estimate.from_document(row).text(digits=2)}"
            for row in worst
        )
        yield f"Classes whose errors entropy detects worst ({sampler}): {text}"
    yield from chance_lines(document)


def _samplers(document: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["sampler"] for row in document["detection"]))


def _by_class(document: Mapping[str, Any], sampler: str) -> list[Row]:
    """The AUROC of entropy of each class on which some pixel is wrong and some is right."""
    return [
        row
        for row in document["detection"]
        if (row["sampler"], row["measure"], row["metric"]) == (sampler, "entropy", "auroc")
        and row["part"].startswith("class:")
        and row["value"] is not None
    ]


def _reliability(document: Mapping[str, Any]) -> Iterator[str]:
    found = {(row["sampler"], row["calibrated"], row["part"]): row for row in document["reliability"]}
    yield "Reliability: ECE before and after calibration, and the ECE of a perfect model on so few images."
    rows: list[list[str]] = []
    for sampler in dict.fromkeys(key[0] for key in found):
        after = found[sampler, True, "all"]
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
            ]
        )
    yield from table(["sampler", "before", "after", "perfect", "edge", "inside"], rows)
    for row in document["frequency"]:
        share, groups = row["covered"]["value"], len(row["groups"])
        if share is not None:
            yield (
                f"Predicted class shares ({row['sampler']}): {percent(share)} of those in {groups} groups of "
                "pixels agree with the labels."
            )


def _novelty(document: Mapping[str, Any]) -> Iterator[str]:
    found = {(row["sampler"], row["measure"], row["source"]): row for row in document["novelty"]}
    sources = [source for source in SOURCE_NAMES if any(key[2] == source for key in found)]
    if not sources:
        return
    yield "Detection of inputs unlike the training images: out-of-distribution AUROC."
    for sampler in dict.fromkeys(key[0] for key in found):
        measures = [
            key[1]
            for key in dict.fromkeys(key[:2] for key in found)
            if key[0] == sampler and key[1] in (GATED, "entropy", "energy", "max_logit", "variation_ratio")
        ]
        yield from table(
            [sampler, *(source.replace("_", " ") for source in sources)],
            [
                [measure, *(_interval(found.get((sampler, measure, source)), digits=2) for source in sources)]
                for measure in measures
            ],
        )


def _short(row: Row | None) -> str:
    return number(None if row is None else row["value"])


def _interval(row: Row | None, *, digits: int = 3) -> str:
    return "–" if row is None else Estimate.from_document(row).text(digits=digits)
