"""Question two: does uncertainty rank the errors first?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.quality_lines import NO_ERRORS, chance_lines, gate_finding
from pipeline.format import evidence
from pipeline.report.blocks import Block, Cell, Charts, Heading, Missing, Section, Table, Text, cells, figure
from pipeline.report.charts import (
    MEASURE_COLORS,
    SAMPLER_COLORS,
    DotRow,
    Line,
    dot_chart,
    dot_rows,
    line_chart,
    spoken,
)
from pipeline.report.contents import Contents, Document, Risks
from pipeline.report.sections.calibration import part_name
from pipeline.report.svg import Axis, Chart, number_axis

METRICS = {
    "auroc": ("AUROC", True),
    "aupr": ("AUPR", True),
    "fpr95": ("FPR at 95 %", False),
    "aurc": ("AURC", False),
    "augrc": ("AUGRC", False),
    "pavpu": ("PAvPU", True),
}
"""Names, and whether larger is better."""
REGION_COLORS = {"grid": "s0", "superpixel": "s2", "segment": "s3", "image": "s5", "file": "s4"}


def quality(contents: Contents) -> Section:
    """Error detection of every sampler and measure, whole and in parts."""
    document = contents.quality
    blocks: list[Block] = []
    if document is None:
        blocks.append(Missing("The samplers and measures have not been compared yet.", "segcurate assess"))
        if contents.risks is not None and any(curve.risk[-1] > 0 for curve in contents.risks.curves.values()):
            blocks.append(Charts([_risk_chart(contents.risks)]))
    else:
        blocks += _gate(document)
        blocks += _detection(document, contents)
        blocks += _regions(document)
    lead = "A good measure is high where the prediction is wrong. An AUROC of 0.5 is chance, 1 is perfect."
    if document is not None:
        measured = evidence(document["images"], document["blocks"])
        lead += f" Measured on {measured} of the {document['split']} split."
    return Section(
        "quality",
        "Are the uncertain pixels the wrong ones?",
        lead,
        blocks,
        question="Question 2",
        fresh=True,
    )


def auroc_axis(rows: Iterable[DotRow], label: str) -> Axis:
    """An axis for AUROCs that starts at 0.5, or lower where a value is lower."""
    values = [value for row in rows for value in row.values.values()]
    lowest = min([v.lowest for v in values if v.defined] + [0.5])
    return number_axis([], label, low=math.floor(lowest * 10) / 10, high=1)


def _gate(document: Document) -> list[Block]:
    gate = document.get("gate")
    if gate is None:
        return []
    finding = gate_finding({**gate, "sampler": spoken(gate["sampler"])})
    if gate["passed"]:
        words = f"`segcurate select` may rank by mutual information: {finding}"
    else:
        words = f"`segcurate select` refuses to rank by mutual information without `--force`: {finding}"
    return [Text(words, tone="good" if gate["passed"] else "bad")]


def _detection(document: Document, contents: Contents) -> list[Block]:
    rows: Sequence[Document] = document["detection"]
    table: dict[tuple[str, str], dict[str, Estimate]] = {}
    for row in rows:
        if row["part"] == "all":
            metrics = table.setdefault((row["sampler"], row["measure"]), {})
            metrics[row["metric"]] = Estimate.from_document(row)
    blocks: list[Block] = [Heading("Finding errors")]
    if not any(metrics["auroc"].defined for metrics in table.values() if "auroc" in metrics):
        return [
            *blocks,
            Text(f"Not measured. {NO_ERRORS}", tone="note"),
        ]
    charts = [_auroc_chart(table)]
    if contents.risks is not None:
        charts.append(_risk_chart(contents.risks))
    parts = _parts_chart(rows, contents)
    if parts is not None:
        charts.append(parts)
    blocks.append(Charts(charts))
    blocks += [Text(line, tone="warn") for line in chance_lines({"detection": _of_scores(rows, contents)})]
    blocks.append(_detection_table(table))
    return blocks


def _of_scores(rows: Sequence[Document], contents: Contents) -> list[Document]:
    """The rows of the sampler of the scores."""
    return [row for row in rows if row["sampler"] == contents.sampler]


def _auroc_chart(table: Mapping[tuple[str, str], Mapping[str, Estimate]]) -> Chart:
    rows = dot_rows(
        (spoken(measure), sampler, metrics["auroc"])
        for (sampler, measure), metrics in table.items()
        if "auroc" in metrics
    )
    return dot_chart(
        sorted(rows, key=lambda row: -max(v.value for v in row.values.values())),
        title="Error detection by measure and sampler",
        colors=SAMPLER_COLORS,
        x=auroc_axis(rows, "AUROC"),
    )


def _parts_chart(rows: Sequence[Document], contents: Contents) -> Chart | None:
    """Entropy and mutual information of the scores' sampler, in each part of the image."""
    measures = ("entropy", "mutual_information")
    found = dot_rows(
        (row["part"], row["measure"], Estimate.from_document(row))
        for row in rows
        if (row["sampler"], row["metric"]) == (contents.sampler, "auroc")
        and row["measure"] in measures
        and row["value"] is not None
    )
    if len(found) < 2:
        return None
    return dot_chart(
        [DotRow(part_name(row.name), row.values) for row in found],
        title=f"The same by part of the image, {spoken(contents.sampler)}",
        colors=MEASURE_COLORS,
        x=auroc_axis(found, "AUROC of error detection"),
        note="At a boundary every pixel is uncertain, so the wrong ones are harder to find.",
    )


def _detection_table(table: Mapping[tuple[str, str], Mapping[str, Estimate]]) -> Table:
    best = {
        name: (max if larger else min)(
            (v[name].value for v in table.values() if name in v and not math.isnan(v[name].value)),
            default=math.nan,
        )
        for name, (_, larger) in METRICS.items()
    }
    shown = [name for name in METRICS if any(name in metrics for metrics in table.values())]
    rows: list[list[Cell]] = []
    before = ""
    for (sampler, measure), metrics in table.items():
        figures = [
            figure(metrics[name], strong=metrics[name].value == best[name]) if name in metrics else Cell("–")
            for name in shown
        ]
        rows.append(cells("" if sampler == before else spoken(sampler), spoken(measure), *figures))
        before = sampler
    head = (
        "sampler",
        "measure",
        *(f"{METRICS[name][0]} {'↑' if METRICS[name][1] else '↓'}" for name in shown),
    )
    return Table(head, rows, "All pixels; the best of each column in bold", words=2)


def _regions(document: Document) -> list[Block]:
    rows: Sequence[Document] = document["regions"]
    blocks: list[Block] = [Heading("Ranking regions")]
    if not rows:
        return [*blocks, Missing("Region scores have not been compared with errors.", "segcurate assess")]
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    values = [Estimate.from_document(row) for row in rows]
    if not any(value.defined for value in values):
        return [
            *blocks,
            Text("Not measured: the regions of these images do not differ in error.", tone="note"),
        ]
    lowest = min([v.lowest for v in values if v.defined] + [0.0])
    charts = [
        dot_chart(
            dot_rows(
                (spoken(row["measure"]), row["kind"], value)
                for row, value in zip(rows, values, strict=True)
                if row["sampler"] == sampler
            ),
            title=f"{spoken(sampler)[:1].upper()}{spoken(sampler)[1:]}: score of a region and its error",
            colors=REGION_COLORS,
            x=number_axis([], "Spearman’s rank correlation", low=math.floor(lowest * 5) / 5, high=1),
        )
        for sampler in samplers
    ]
    return [*blocks, Charts(charts)]


def _risk_chart(risks: Risks) -> Chart:
    """Error rate of the pixels kept, over their share, most certain first."""
    coverage = risks.coverage.tolist()
    lines = []
    for name, curve in risks.curves.items():
        with_band = name == "entropy"
        columns = [curve.risk, curve.low, curve.high] if with_band else [curve.risk]
        estimates = [Estimate(*values) for values in np.stack(columns, axis=1).tolist()]
        kind = "line" if name in ("entropy", "mutual_information") else "line faint"
        lines.append(Line(spoken(name), MEASURE_COLORS.get(name, "s5"), coverage, estimates, kind=kind))
    top = max((float(curve.risk[-1]) for curve in risks.curves.values()), default=1.0)
    return line_chart(
        lines,
        title="Risk and coverage",
        x=number_axis([0, 1], "share of pixels kept, most certain first", low=0, high=1, percent=True),
        y=number_axis([0, top * 1.1], "error rate among them", low=0, percent=True),
        dots=False,
        note="The band is the interval of entropy.",
    )
