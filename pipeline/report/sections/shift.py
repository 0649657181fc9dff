"""Question three: does confidence fall when it should, and has the pool drifted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from pipeline.evaluation.estimate import Estimate
from pipeline.format import counted, evidence, number, percent, statistic_name
from pipeline.report.blocks import (
    Block,
    Cell,
    Charts,
    Heading,
    Missing,
    Section,
    Table,
    Text,
    Verdicts,
    cells,
)
from pipeline.report.charts import (
    MEASURE_COLORS,
    SAMPLER_COLORS,
    Line,
    dot_chart,
    dot_rows,
    histogram_chart,
    line_chart,
    spoken,
)
from pipeline.report.contents import Contents, Document
from pipeline.report.sections.quality import auroc_axis
from pipeline.report.svg import Chart, named_axis, number_axis

STRESS_COLORS = {"balanced_accuracy": "s5", "confidence": "s0"} | {
    name: MEASURE_COLORS[name] for name in ("entropy", "mutual_information", "energy")
}
STRESS_NAMES = {
    "magnify": "Magnified input",
    "fgsm": "Adversarial step (FGSM)",
    "noise": "Noise instead of an image",
    "shuffled_patches": "Shuffled patches",
    "blur": "Blur",
    "night_gamma": "Night (gamma)",
    "resolution": "Unseen resolution",
}
CHANGE = "change of "
JUDGED_CHANGES = (CHANGE + "balanced_accuracy", CHANGE + "confidence")
MOST_IMAGES = 10
HELD_OUT, POOL = "held-out images", "pool"


def stress(contents: Contents) -> Section:
    """The stress table and its plots, the pool beside the held-out images, and held-out classes."""
    blocks: list[Block] = []
    document = contents.stress
    if document is None:
        blocks.append(Missing("No stress test has been run yet.", "segcurate stress"))
    else:
        blocks += _stress(document)
    blocks += _novelty(contents)
    return Section(
        "stress",
        "Does confidence fall when it should?",
        "On inputs unlike the training images, a trustworthy confidence falls at least as fast as "
        "accuracy. Where confidence stays high and accuracy falls, the scores cannot be trusted.",
        blocks,
        question="Question 3",
        fresh=True,
    )


def drift(contents: Contents) -> Section:
    """How the pool differs from the last run and from the calibration images, and how far calibration
    reorders the queue."""
    summary = contents.scoring or {}
    found = summary.get("drift")
    blocks: list[Block] = []
    if not found:
        blocks.append(Missing("There are no earlier scores to compare with yet.", "segcurate score"))
    else:
        blocks.append(
            Text(
                found["warning"] or "No drift: the pool looks like the reference images.",
                tone="bad" if found["warning"] else "good",
            )
            if found["warning"] or any(row["p"] is not None for row in _drift_rows(found))
            else Text(
                "Nothing can be said about drift yet: the images come from too few sequences for a p-value. "
                "If each image is independent of its neighbours, set `data.independent: true`.",
                tone="note",
            )
        )
        blocks += _drift_tables(found)
    reordering = summary.get("reordering")
    if reordering:
        blocks.append(
            Text(
                f"With calibration, {percent(reordering['top_overlap'])} of the first regions stay "
                f"(rank correlation {number(reordering['spearman'])}, on "
                f"{counted(reordering['regions'], 'region')} of {counted(reordering['images'], 'image')}).",
                tone="note",
            )
        )
    guard = summary.get("input_range")
    if guard and guard["outside"]:
        blocks.append(
            Text(
                f"Images far outside the range of the training images: {guard['outside']}. "
                "Their scores are unreliable.",
                tone="warn",
            )
        )
        blocks.append(_outside(guard["images"]))
    return Section("drift", "Has the pool drifted?", "", blocks)


def _stress(document: Document) -> list[Block]:
    """The verdicts, what is left open, the charts and the table."""
    if not any(row["metric"] == "balanced_accuracy" for row in document["rows"]):
        words = "The stress test is of an earlier version, in which the most frequent class decided."
        return [Missing(words, "segcurate stress")]
    verdicts = document["verdicts"]
    blocks: list[Block] = [
        Verdicts([(row["ok"], row["text"]) for row in verdicts if row["ok"] is not None]),
        *(Text(row["text"], tone="note") for row in verdicts if row["ok"] is None),
    ]
    return [*blocks, *_stress_charts(document), _stress_table(document)]


def _by_kind(document: Document) -> dict[str, dict[str, dict[float, tuple[str, Estimate]]]]:
    """The label and the estimate by kind, metric and strength, weakest first; for a metric that is judged,
    also its change against the unchanged images, as `change of …`."""
    found: dict[str, dict[str, dict[float, tuple[str, Estimate]]]] = {}
    for row in sorted(document["rows"], key=lambda row: row["strength"]):
        metrics = found.setdefault(row["kind"], {})
        metrics.setdefault(row["metric"], {})[row["strength"]] = (row["label"], Estimate.from_document(row))
        if "change" in row:
            changed = (row["label"], Estimate.from_document(row["change"]))
            metrics.setdefault(CHANGE + row["metric"], {})[row["strength"]] = changed
    ordered = [
        *(kind for kind in STRESS_NAMES if kind in found),
        *(k for k in found if k not in STRESS_NAMES),
    ]
    return {kind: found[kind] for kind in ordered}


def _stress_charts(document: Document) -> list[Block]:
    charts: list[Chart] = []
    for kind, metrics in _by_kind(document).items():
        for names, title in (
            (JUDGED_CHANGES, STRESS_NAMES.get(kind, spoken(kind))),
            (("entropy", "mutual_information"), "Uncertainty"),
            (("energy",), "Energy"),
        ):
            chart = _stress_chart(metrics, names, title, ordered=kind != "noise")
            if chart is not None:
                charts.append(chart)
    note = Text(
        "The first chart of a row shows how far accuracy and confidence change against unchanged images.",
        tone="note",
    )
    return [Heading("Over the strength of the stress"), note, Charts(charts, layout="thirds")]


def _stress_chart(
    metrics: Mapping[str, Mapping[float, tuple[str, Estimate]]],
    names: Sequence[str],
    title: str,
    *,
    ordered: bool,
) -> Chart | None:
    chosen = [name for name in names if name in metrics]
    if not chosen:
        return None
    strengths = sorted({strength for name in chosen for strength in metrics[name]})
    labels = {s: label for name in chosen for s, (label, _) in metrics[name].items()}
    place = {strength: float(index) for index, strength in enumerate(strengths)}
    lines = [
        Line(
            spoken(name),
            STRESS_COLORS[name.removeprefix(CHANGE)],
            [place[strength] for strength in metrics[name]],
            [value for _, value in metrics[name].values()],
            kind="line" if ordered else "points",
        )
        for name in chosen
    ]
    shares = chosen != ["energy"]
    values = [v for line in lines for one in line.y for v in (one.value, one.low, one.high)]
    y = (
        number_axis([*values, -0.05, 0.05], "change", percent=True)
        if names == JUDGED_CHANGES
        else number_axis([*values, 0.05], "over ln C", low=0)
        if shares
        else number_axis(values, "energy (nats)")
    )
    return line_chart(
        lines,
        title=title,
        x=named_axis([labels[strength] for strength in strengths], "strength" if ordered else "input"),
        y=y,
        width=320,
        height=224,
        legend=shares,
    )


def _stress_table(document: Document) -> Table:
    rows = []
    names = list(STRESS_COLORS)
    for kind, metrics in _by_kind(document).items():
        strengths = sorted({strength for found in metrics.values() for strength in found})
        for index, strength in enumerate(strengths):
            found = {name: metrics.get(name, {}).get(strength) for name in names}
            label = next(item[0] for item in found.values() if item is not None)
            rows.append(
                cells(
                    STRESS_NAMES.get(kind, spoken(kind)) if index == 0 else "",
                    label,
                    *("–" if item is None else item[1] for item in found.values()),
                )
            )
    return Table(
        ("input", "strength", *(spoken(name) for name in names)),
        rows,
        f"Means over {evidence(document['images'], document.get('blocks'))}; each class of an image counts "
        "alike",
        words=2,
    )


def _novelty(contents: Contents) -> list[Block]:
    blocks: list[Block] = [Heading("The pool compared with the held-out images")]
    document = contents.novelty
    if document is None:
        blocks.append(
            Missing("The pool has not been compared with the held-out images.", "segcurate novelty")
        )
    else:
        blocks.append(Charts(_comparisons(document, contents)))
        blocks += _farthest(document)
    blocks.append(Heading("Out-of-distribution detection"))
    rows = [(row, row["source"]) for row in (contents.quality or {}).get("novelty", [])]
    held_out = (document or {}).get("held_out_classes")
    if held_out:
        known = [row for row in held_out["rows"] if row["metric"] == "auroc"]
        rows = [pair for pair in rows if pair[1] != "held_out_classes"]
        rows += [(row, "held_out_classes") for row in known]
    if not rows:
        return [*blocks, Missing("Out-of-distribution detection has not been measured.", "segcurate assess")]
    words = "How well each measure separates unfamiliar pixels or images from ordinary ones."
    if held_out:
        words += (
            f" The held-out classes ({', '.join(held_out['classes'])}) were void in the training of "
            f"{held_out['model']}; {evidence(held_out['images'], held_out['blocks'])}."
        )
    else:
        words += " To test unseen classes, run `segcurate novelty --classes NAMES`."
    blocks.append(Text(words, tone="note"))
    by_source = {
        source: dot_rows(
            (spoken(row["measure"]), row["sampler"], Estimate.from_document(row))
            for row, of_source in rows
            if of_source == source
        )
        for source in dict.fromkeys(source for _, source in rows)
    }
    axis = auroc_axis(chain.from_iterable(by_source.values()), "out-of-distribution AUROC")
    charts = [
        dot_chart(
            found,
            title=f"{spoken(source)[:1].upper()}{spoken(source)[1:]}",
            colors=SAMPLER_COLORS,
            x=axis,
        )
        for source, found in by_source.items()
    ]
    return [*blocks, Charts(charts)]


def _farthest(document: Document) -> list[Block]:
    rows = [
        cells(row["uri"], number(row["distance"]), number(row["percentile"], 1))
        for row in document.get("farthest", [])[:MOST_IMAGES]
    ]
    head = ("image", "distance", "percentile of held-out images")
    return [Table(head, rows, "Pool images farthest from everything labeled")] if rows else []


def _comparisons(document: Document, contents: Contents) -> list[Chart]:
    name = next((one.confidence.name for one in contents.calibrated), "softmax score")
    charts = []
    for key, title, label, shares in (
        ("confidence", "Confidence of pixels", f"{name} of the prediction", True),
        ("neighbours", "Distance to the nearest labeled image", "distance in encoder features", False),
    ):
        part = document.get(key)
        if part:
            difference = Estimate.from_document(part["difference"]).text()
            counted = f" ({part['evidence']})" if "evidence" in part else ""
            charts.append(
                histogram_chart(
                    part["edges"],
                    {HELD_OUT: part["held_out"], POOL: part["pool"]},
                    title=title,
                    label=label,
                    colors={HELD_OUT: "s5", POOL: "s0"},
                    percent=shares,
                    note=f"Mean of the pool minus that of the held-out images: {difference}{counted}",
                )
            )
    return charts


def _drift_rows(found: Document) -> list[Document]:
    return [row for reference in found["references"] for row in reference["measures"]]


def _p_value(p: float | None) -> str:
    if p is None:
        return "too few sequences"
    return "< 0.001" if p < 0.001 else number(p)


def _drift_tables(found: Document) -> list[Block]:
    blocks: list[Block] = []
    rows = [
        cells(
            _against(reference) if index == 0 else "",
            spoken(row["measure"]),
            number(row["distance"]),
            _p_value(row["p"]),
            Cell("drifted" if row["drifted"] else "–", strong=bool(row["drifted"])),
        )
        for reference in found["references"]
        for index, row in enumerate(reference["measures"])
    ]
    if rows:
        head = ("compared with", "measure", "distance", "p", "verdict")
        blocks.append(Table(head, rows, "Distributions of image scores", words=2))
    images = [
        cells(row["uri"], spoken(row["measure"]), number(row["value"]), number(row["percentile"], 1))
        for row in found["images"]
    ]
    if images:
        head = ("image", "measure", "score", "percentile of the reference")
        blocks.append(Table(head, images, "Images with the most extreme scores", words=2))
    return blocks


def _outside(images: Sequence[Document]) -> Table:
    rows = [
        cells(
            row["uri"],
            statistic_name(row["statistic"], row["channel"], row.get("channels")),
            f"{row['value']:.3g}",
            f"{row['low']:.3g} to {row['high']:.3g}",
        )
        for row in images[:MOST_IMAGES]
    ]
    head = ("image", "statistic", "value", "in training")
    return Table(head, rows, "The most extreme of them", words=2)


def _against(reference: Document) -> str:
    what = {"last_run": "images scored before", "calibration": "calibration images"}.get(
        reference["against"], str(reference["against"])
    )
    return f"{reference['images']} {what}"
