"""Question one: is the model right 90 % of the time where its confidence is 90 %?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.estimate import Estimate, from_json
from pipeline.format import evidence, number, percent
from pipeline.report.blocks import Block, Cell, Charts, Heading, Missing, Section, Table, Text, cells, figure
from pipeline.report.charts import (
    AFTER,
    BEFORE,
    Bin,
    reliability_chart,
    scatter_chart,
    small_reliability,
    spoken,
)
from pipeline.report.contents import Calibrated, Contents, Document
from pipeline.report.reliability import Reliability


def calibration(contents: Contents) -> Section:
    """Reliability before and after, every calibrator, the parts of the image, and the frequency test."""
    blocks: list[Block] = []
    for calibrated in contents.calibrated:
        blocks += _of_sampler(calibrated)
    if not contents.calibrated:
        blocks.append(Missing("No calibrator has been fitted yet.", "segcurate calibrate"))
    blocks += _parts(contents)
    blocks += _frequency(contents)
    return Section(
        "calibration",
        "Is its confidence right?",
        "Reliability: the accuracy of the pixels of each confidence. On the dashed line "
        "the two agree; below it the model is overconfident. The band is the interval over "
        "independent units of images.",
        blocks,
        question="Question 1",
        fresh=True,
    )


def reliability_bins(diagram: Reliability) -> list[Bin]:
    """The bins of an evaluation."""
    share = diagram.pixels / max(float(diagram.pixels.sum()), 1.0)
    columns = np.stack([diagram.confidence, diagram.accuracy, diagram.low, diagram.high, share], axis=1)
    return [Bin(row[0], Estimate(*row[1:4]), row[4]) for row in columns.tolist()]


def _of_sampler(calibrated: Calibrated) -> list[Block]:
    confidence = calibrated.confidence
    meaning = (
        "Its calibrated softmax is a probability: the calibrator has passed on images that did not fit it."
        if confidence.reason is None
        else f"Its calibrated softmax is a {confidence.sentence}"
    )
    name = spoken(calibrated.sampler)
    blocks: list[Block] = [
        Heading(f"{name[:1].upper()}{name[1:]}, {spoken(calibrated.calibrator)}"),
        Text(meaning, tone="good" if confidence.reason is None else "warn"),
    ]
    charts = [
        reliability_chart(
            reliability_bins(diagram), title=f"{name}: ECE {diagram.ece.text()}", color=color, axis=axis
        )
        for name, diagram, color, axis in (
            ("Before", calibrated.before, BEFORE, "softmax score of the prediction"),
            ("After", calibrated.after, AFTER, f"{confidence.name} of the prediction"),
        )
        if diagram is not None
    ]
    if charts:
        blocks.append(Charts(charts))
    blocks += _calibrators(calibrated)
    if calibrated.warning:
        blocks.append(Text(calibrated.warning, tone="note"))
    return blocks


def _calibrators(calibrated: Calibrated) -> list[Block]:
    """All calibrators side by side, each measured on images that it was not fitted on."""
    if not calibrated.report:
        return [Missing("The calibrators of this model have not been compared.", "segcurate calibrate")]
    compared: list[dict[str, Any]] = list(calibrated.report["calibrators"])
    best = min((from_json(row["nll"]["value"]) for row in compared), default=math.nan)
    chosen, auto = calibrated.report.get("chosen"), calibrated.report.get("auto")
    rows = []
    for row in compared:
        named = (("in use", chosen), ("simplest as good as the best", auto))
        marks = [name for name, found in named if found == row["name"]]
        rows.append(
            cells(
                Cell(spoken(row["name"]), ", ".join(marks), strong=row["name"] == chosen),
                figure(Estimate.from_document(row["nll"]), strong=row["nll"]["value"] == best),
                *(Estimate.from_document(row[name]) for name in ("ece", "brier")),
                percent(row["labels_changed"]),
            )
        )
    source = {"audit": "the regions picked at random, the newest weighed as what was unlabeled"}.get(
        str(calibrated.report.get("source")), "the calibration split"
    )
    counted = evidence(calibrated.report.get("images", 0), calibrated.report.get("blocks"))
    return [
        Table(
            ("calibrator", "NLL", "ECE", "Brier", "labels changed"),
            rows,
            f"Cross-fitted on {counted} of {source}",
        )
    ]


def _parts(contents: Contents) -> list[Block]:
    """Small diagrams of boundary, interior and each class."""
    blocks: list[Block] = [Heading("By boundary, interior and class")]
    rows: Sequence[Document] = (contents.quality or {}).get("reliability", [])
    of_parts = [row for row in rows if row["sampler"] == contents.sampler and row["part"] != "all"]
    if not of_parts:
        return [*blocks, Missing("Reliability has not been split by part yet.", "segcurate assess")]
    parts = list(dict.fromkeys(row["part"] for row in of_parts))
    charts = []
    for part in parts:
        before, after = (
            next((row for row in of_parts if row["part"] == part and row["calibrated"] is kind), None)
            for kind in (False, True)
        )
        values = [number(row["ece"]["value"] if row else None) for row in (before, after)]
        charts.append(
            small_reliability(
                _bins(before), _bins(after), title=part_name(part), note=f"ECE {values[0]} → {values[1]}"
            )
        )
    width = contents.quality["boundary_pixels"] if contents.quality else 0
    blocks.append(
        Text(
            f"Before calibration in orange, after it in blue. The boundary is the band of {width} pixels on "
            "each side of a class border. A calibrator can be right on average and wrong in a part.",
            tone="note",
        )
    )
    return [*blocks, Charts(charts, layout="small")]


def _frequency(contents: Contents) -> list[Block]:
    """Whether predicted vectors match class frequencies: each group of pixels, each class."""
    blocks: list[Block] = [Heading("Are predicted class shares right?")]
    tests: Sequence[Document] = (contents.quality or {}).get("frequency", [])
    found = next((row for row in tests if row["sampler"] == contents.sampler), None)
    if found is None:
        return [*blocks, Missing("The class-frequency test has not been run.", "segcurate assess")]
    if not found["groups"]:
        return [*blocks, Text("Too few independent units of images for this test.", tone="note")]
    points = []
    for index, group in enumerate(found["groups"]):
        columns = (group[key] for key in ("predicted", "empirical", "low", "high"))
        for name, predicted, *observed in zip(contents.class_names, *columns, strict=True):
            share = Estimate(*map(from_json, observed))
            inside = math.isnan(share.low) or share.low <= predicted <= share.high
            if max(predicted, share.value) >= 0.005:
                points.append((predicted, share, inside, f"{name}, group {index + 1}"))
    covered = found["covered"]["value"]
    level = (contents.quality or {}).get("confidence")
    note = (
        "Pixels are grouped by their predicted vector; a point is one class of one of "
        f"{len(found['groups'])} groups. {percent(covered)} of the {percent(level)} intervals contain "
        "the prediction."
    )
    chart = scatter_chart(
        points,
        title="Predicted and observed class shares",
        x_label="predicted share",
        y_label="share of the labels",
        note=note,
    )
    return [*blocks, Charts([chart])]


def part_name(part: str) -> str:
    """
    >>> part_name("class:car"), part_name("boundary"), part_name("all")
    ('car', 'boundary', 'all pixels')
    """
    return part.removeprefix("class:") if part.startswith("class:") else part.replace("all", "all pixels")


def _bins(row: Document | None) -> list[Bin]:
    return [
        Bin(
            from_json(one["confidence"]),
            Estimate(*(from_json(one[name]) for name in ("accuracy", "low", "high"))),
            from_json(one["share"]),
        )
        for one in (row or {}).get("bins", [])
    ]
