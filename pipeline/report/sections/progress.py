"""The status of the project, the learning curve, the newest queue, and the models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.estimate import Estimate
from pipeline.format import (
    SLICE_WORDS,
    agree,
    counted,
    evidence,
    largest,
    named_slices,
    number,
    percent,
    split_counts,
)
from pipeline.report.blocks import (
    Block,
    Cell,
    Charts,
    Facts,
    Heading,
    Missing,
    Section,
    Table,
    Text,
    Tiles,
    cells,
    figure,
)
from pipeline.report.charts import (
    AFTER,
    BEFORE,
    DotRow,
    Line,
    bar_chart,
    dot_chart,
    line_chart,
    spark_chart,
    spoken,
)
from pipeline.report.contents import Contents
from pipeline.report.sections.verdict import verdict
from pipeline.report.svg import Axis, number_axis
from pipeline.summaries.classes import worst_class
from pipeline.summaries.rounds import RoundSummary

SHORT_HASH = 12
MOST_GROUPS = 12


def status(contents: Contents) -> Section:
    """The project at a glance, and the next command."""
    now, newest = contents.status, contents.newest
    last = contents.rounds[-1] if contents.rounds else None
    promoted = next((point for point in reversed(contents.rounds) if point.promoted), last)
    images = sum(now.images.values()) - now.images.get("duplicate", 0)
    splits = split_counts(now.images)
    tiles = [
        ("Round", str(now.round_number or 0), f"{now.state} comes next" if now.state else ""),
        (
            "Labeled",
            percent(newest.labeled_share if newest else 0.0),
            f"{counted(newest.labeled_regions if newest else 0, 'region')} in "
            f"{counted(now.labeled_images, 'image')}",
        ),
        ("Images", str(images), splits),
    ]
    if promoted is not None:
        name = f"mIoU of {now.promoted_model}, {spoken(contents.sampler)}" if now.promoted_model else "mIoU"
        mean, ece = figure(promoted.mean_iou), figure(promoted.ece_after)
        worst = worst_class(promoted.classes)
        spread = mean.detail if worst is None else f"{mean.detail}, worst class: {worst}".removeprefix(", ")
        before = f"before {number(promoted.ece_before.value)}"
        tiles[:0] = [
            (name, mean.text, spread),
            ("Calibration error", ece.text, f"{ece.detail}, {before}" if ece.detail else before),
        ]
    blocks: list[Block] = [
        *verdict(contents),
        Text(f"Next: `{now.next_command}`. {now.reason}", tone="next"),
        Tiles(tiles),
    ]
    blocks += [Text(reason, tone="warn") for reason in now.open_splits.values()]
    if now.failures:
        blocks.append(
            Missing(
                f"{counted(now.failures, 'file')} could not be used; each is listed with its reason.",
                "segcurate failures",
            )
        )
    return Section("status", "Status", "", blocks)


def learning(contents: Contents) -> Section:
    """mIoU and calibration error over the labels, and each class's IoU over the rounds."""
    points = contents.rounds
    if not points:
        missing = Missing("No model has been measured yet.", "segcurate evaluate")
        return Section("learning", "Learning curve", "", [missing])
    share = [point.labeled_share for point in points]
    last = max(share) or 1.0
    digits = 0 if last > 0.1 else 1 if last > 0.01 else 2
    axis = Axis(
        0,
        last * 1.08,
        tuple(
            (point.labeled_share, f"{percent(point.labeled_share, digits)}\nround {point.number}")
            for point in points
        ),
        "labeled share of the pool's pixels",
    )
    mean = [point.mean_iou for point in points]
    notes = [] if all(point.promoted for point in points) else ["A hollow point is a model that was refused."]
    if _mixed(points):
        notes.append("Not all rounds were measured on the same images: the table names each split.")
    ends = [v for one in mean for v in (one.low, one.high, one.value)]
    curve = line_chart(
        [Line("mIoU", "s0", share, mean, hollow=[not point.promoted for point in points])],
        title="mIoU on held-out images, with its interval",
        x=axis,
        y=number_axis(ends, "mean IoU", low=0 if max(ends) == min(ends) else None),
        note=" ".join(notes),
        legend=False,
    )
    gap = 0.008 * last
    before, after = [point.ece_before for point in points], [point.ece_after for point in points]
    error = line_chart(
        [
            Line("before calibration", BEFORE, [x - gap for x in share], before, kind="line faint"),
            Line("after calibration", AFTER, [x + gap for x in share], after),
        ],
        title="Expected calibration error, lower is better",
        x=axis,
        y=number_axis([v.high for v in (*before, *after)], "ECE", low=0),
    )
    return Section(
        "learning",
        "Learning curve",
        f"Each round’s model with the sampler {spoken(contents.sampler)}, on held-out images, which no model "
        "has trained on; the newest on "
        f"{evidence(points[-1].images or 0, points[-1].units)} of the {points[-1].measured_on} split.",
        [
            Charts([curve, error]),
            _rounds_table(contents),
            Heading("IoU of each class over the rounds" if len(points) > 1 else "Each class"),
            _classes(contents),
            _class_table(contents),
        ],
    )


def unlabeled(contents: Contents) -> Section:
    """How good the model is on what is not labeled yet, by the audit of each queue."""
    title = "On what is not labeled yet"
    known = [(row.number, row.unlabeled) for row in contents.audited if row.unlabeled is not None]
    if not known:
        missing = Missing(
            "No region that was picked at random has been labeled and evaluated yet.", "segcurate evaluate"
        )
        return Section("unlabeled", title, "", [missing])
    rows = [
        cells(
            number,
            pool.model,
            *(pool.unlabeled.error_rate, pool.unlabeled.miou, pool.unlabeled.ece),
            *(pool.pool.error_rate, pool.audited),
        )
        for number, pool in known
    ]
    head = ("round", "model", "error rate", "mIoU", "ECE", "error rate in the pool", "audited")
    return Section(
        "unlabeled",
        title,
        "From regions that were drawn uniformly at random from what had no label, and that the model has not "
        "learned from.",
        [
            *(Text(line) for line in known[-1][1].lines()),
            Table(head, rows, "Every audit", words=2),
        ],
    )


def queue(contents: Contents) -> Section:
    """The newest queue by class, group and slice, and the reasons of its first items."""
    facts = contents.queue
    title = "The newest queue"
    if facts is None:
        return Section("queue", title, "", [Missing("No queue has been selected yet.", "segcurate select")])
    colors = {name: f"c{index}" for index, name in enumerate(contents.class_names)}
    divided = (
        ("Predicted class", facts.by_class, colors),
        ("Sequence or group", largest(contents.queue_groups, MOST_GROUPS), None),
        ("How chosen", named_slices(facts.by_slice), {SLICE_WORDS["audit"]: "s2"}),
    )
    charts = [
        bar_chart(counts_of, title=name, unit=facts.unit, colors=colors_of, width=320)
        for name, counts_of, colors_of in divided
        if len(counts_of) > 1  # a single bar shows nothing
    ]
    rows = [
        cells(
            item.rank,
            Path(item.image).name,
            Cell(item.class_name or "not predicted", color=colors.get(item.class_name or "", "")),
            *(item.reason, number(item.score), item.status),
        )
        for item in facts.head
    ]
    total = facts.items
    audit = facts.by_slice.get("audit", 0)
    score = (facts.measure or "score").replace("_", " ")
    return Section(
        "queue",
        title,
        f"{facts.name}: {counted(total, facts.unit)} by the strategy `{facts.strategy}`, of which {audit} "
        f"{agree(audit, 'was', 'were')} picked at random, as a check: the only unbiased sample of the pool.",
        [
            Charts(charts, layout="thirds"),
            Table(
                ("rank", "image", "class", "reason", score, "status"),
                rows,
                f"The first {len(rows)} of {total}",
                words=4,
            ),
        ],
    )


def lineage(contents: Contents) -> Section:
    """The provenance of each model, newest first."""
    cards = [
        (
            one.name,
            one.status,
            [
                ("round", str(one.round_number)),
                ("parent", one.parent or "none: trained from the initial weights"),
                ("labels", counted(one.labels, "mask")),
                ("iterations", str(one.iterations)),
                ("seed", str(one.seed)),
                ("trained", one.created_at.strftime("%Y-%m-%d %H:%M UTC")),
                ("settings", one.config_hash[:SHORT_HASH]),
                ("labels’ hash", one.labels_hash[:SHORT_HASH]),
                ("checkpoint", (one.checkpoint_sha256 or "")[:SHORT_HASH] or "not finished"),
                ("stored in", one.checkpoint),
            ],
            one.decision or "",
        )
        for one in reversed(contents.models)
    ]
    return Section(
        "lineage",
        "Models",
        "The same settings, labels and seed give the same model. Hashes are SHA-256, shortened.",
        [*_training(contents), Facts(cards)],
    )


def _training(contents: Contents) -> list[Block]:
    """The loss and the learning rate over the iterations of the model's training."""
    curve = contents.training
    if not curve:
        return []
    iterations = curve["iteration"]
    x = number_axis(iterations, "iteration", low=0, intervals=4)
    loss, rate = ([Estimate(value) for value in curve[name]] for name in ("loss", "learning_rate"))
    return [
        Charts(
            [
                line_chart(
                    [Line(name, color, iterations, values)],
                    title=f"{title}, {contents.model}",
                    x=x,
                    y=number_axis([value.value for value in values], name, low=0),
                    legend=False,
                    dots=False,
                )
                for title, name, color, values in (
                    ("Training loss", "loss", "s0", loss),
                    ("Learning rate", "learning rate", "s3", rate),
                )
            ]
        )
    ]


def _rounds_table(contents: Contents) -> Table:
    """The numbers of the learning curve, with the cost of the labels where it is known."""
    clicks = any(point.clicks is not None for point in contents.rounds)
    hours = any(point.hours is not None for point in contents.rounds)
    mixed = _mixed(contents.rounds)
    rows = [
        cells(
            f"round {point.number}",
            "promoted" if point.promoted else "refused",
            percent(point.labeled_share),
            point.labeled_regions,
            *([number(point.clicks, 0)] if clicks else []),
            *([number(point.hours, 1)] if hours else []),
            *([point.measured_on or ""] if mixed else []),
            *(point.mean_iou, point.ece_before, point.ece_after),
        )
        for point in contents.rounds
    ]
    known = {"clicks": clicks, "hours": hours, "split": mixed}
    optional = [name for name, shown in known.items() if shown]
    head = ("round", "model", "labeled", "regions", *optional, "mIoU", "ECE before", "ECE after")
    return Table(head, rows, "Every round", words=2)


def _mixed(points: Sequence[RoundSummary]) -> bool:
    """Whether the rounds were measured on several splits, or versions of one, which are not comparable."""
    return len({point.measured_on for point in points}) > 1


def _class_table(contents: Contents) -> Table:
    """IoU and recall of each class, of the newest model."""
    newest = contents.rounds[-1]
    colors = {name: f"c{index}" for index, name in enumerate(contents.class_names)}
    rows = [cells(Cell(one.name, color=colors[one.name]), one.iou, one.recall) for one in newest.classes]
    return Table(("class", "IoU", "recall"), rows, f"Each class in round {newest.number}", words=1)


def _classes(contents: Contents) -> Charts:
    """A small drawing a class over the rounds; with a single round, one drawing of all classes."""
    points = contents.rounds
    if len(points) == 1:
        rows = [DotRow(one.name, {"IoU": one.iou, "recall": one.recall}) for one in points[0].classes]
        axis = number_axis([], "IoU and recall", low=0, high=1)
        colors = {"IoU": "s0", "recall": "s1"}
        return Charts([dot_chart(rows, title=f"Round {points[0].number}", colors=colors, x=axis)])
    names = [f"r{point.number}" for point in points]
    return Charts(
        [
            spark_chart([point.classes[index].iou for point in points], names, title=name, color=f"c{index}")
            for index, name in enumerate(contents.class_names)
        ],
        layout="small",
    )
