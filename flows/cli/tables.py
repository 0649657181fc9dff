"""The tables of the command line: a project's state, rounds, models, runs, queues and annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from flows.cli.display import console, errors, literal, table
from pipeline.evaluation.confidence import Confidence
from pipeline.evaluation.estimate import Estimate
from pipeline.format import (
    MISSING,
    agree,
    count,
    counted,
    counts,
    evidence,
    interval,
    named_slices,
    number,
    out_of,
    percent,
    short_count,
    split_counts,
    split_name,
)
from pipeline.summaries.classes import worst_class

SINGLE_PASS = "none"
"""The sampler whose predictions decide whether a model is promoted."""

INDENT = " " * 6
"""Space before the lines below an entry."""

if TYPE_CHECKING:
    from pipeline.summaries.annotators import AnnotatorReport
    from pipeline.summaries.failures import FailureGroup
    from pipeline.summaries.models import ModelSummary
    from pipeline.summaries.pool import PoolSummary
    from pipeline.summaries.project import MasksToTake, RunningProcess, Scoring, Status
    from pipeline.summaries.queues import QueueSummary
    from pipeline.summaries.rounds import RoundSummary
    from pipeline.summaries.runs import RunSummary


def show_status(
    name: str,
    now: Status,
    running: Sequence[RunningProcess],
    scoring: Scoring | None,
    masks: Sequence[MasksToTake],
) -> None:
    """Print a project's status, and the next command at the end."""
    console.print(f"[bold]{literal(name)}[/]")
    console.print(f"images    {split_counts(now.images)}; {now.labeled_images} with labels")
    for split, version in now.split_versions.items():
        if version > 1:
            console.print(f"{split:9s} {split_name(split, version)}")
    for reason in now.open_splits.values():
        console.print(f"splits    {literal(reason)}")
    if now.failures:
        console.print(f"failures  {counted(now.failures, 'file')} could not be used: `segcurate failures`")
    if now.round_number is not None:
        model = f", model {now.promoted_model}" if now.promoted_model else ""
        console.print(f"round     {now.round_number}{model}")
    if scoring is not None:
        run = "no run yet" if scoring.run_id is None else f"run {scoring.run_id}"
        left = (
            f"{counted(scoring.images_to_score, 'image')} to score"
            if scoring.images_to_score
            else "all images are scored"
        )
        shards = f", {counted(scoring.open_shards, 'shard')} open" if scoring.open_shards else ""
        when = f", finished {_moment(scoring.finished_at)}" if scoring.finished_at else ""
        console.print(f"scoring   {run}{when}: {left}{shards}")
    for process in running:
        since = f", since {_moment(process.since)}" if process.since else ""
        state = since if process.alive else ", which has died"
        console.print(f"running   {literal(process.work)} by {literal(process.owner)}{state}")
    if now.queue_items:
        console.print(f"queue     {counts(now.queue_items)}")
    for of_queue in masks:
        console.print(f"masks     [yellow]{literal(str(of_queue))}[/]")
    for queue in now.held_out:
        waiting = f"{counted(queue.images, 'image')} of {queue.name} to label"
        console.print(f"held out  {literal(waiting)}: [bold]{literal(queue.command)}[/]")
    console.print(f"next      [bold]{literal(now.next_command)}[/]  {literal(now.reason)}")


def show_rounds(name: str, rows: Sequence[RoundSummary]) -> None:
    """Print the labeled regions of each round and their cost; then its quality and its calibration."""
    table(
        f"{name}: {counted(len(rows), 'round')}",
        ("round", "model", "regions", "pixels", "of the pool", "clicks", "hours", "next"),
        [
            (
                row.number,
                f"{row.model} {row.model_status}" if row.model else None,
                row.labeled_regions,
                short_count(row.labeled_pixels),
                percent(row.labeled_share, 1),
                number(row.clicks, 0),
                number(row.hours, 1),
                row.state,
            )
            for row in rows
        ],
    )
    measured = [row for row in rows if row.split is not None]
    if measured:
        table(
            f"Quality {_by(measured[-1].sampler)}",
            ("round", "model", "split", "images", "units", "mIoU", "worst class"),
            [
                (
                    *(row.number, row.model, row.measured_on, row.images, row.units),
                    *(row.mean_iou, worst_class(row.classes) or MISSING),
                )
                for row in measured
            ],
        )
        table(
            f"Calibration {_by(measured[-1].sampler)}",
            ("round", "model", "ECE before", "ECE after", "split"),
            [(row.number, row.model, row.ece_before, row.ece_after, row.measured_on) for row in measured],
        )
    if rows:
        softmax = {row.model: (row.confidence, row.confidence_reason) for row in rows if row.model}
        show_confidence(softmax, rows[-1].sampler)
    _show_unlabeled(rows)


def show_confidence(names: Mapping[str, tuple[str, str | None]], sampler: str) -> None:
    """Print what the calibrated softmax of each model is called, and why; models of the same words together.

    Args:
        names: the name of the softmax and the reason, by model.
        sampler: whose softmax it is.
    """
    for name, reason in dict.fromkeys(names.values()):
        models = ", ".join(model for model, found in names.items() if found == (name, reason))
        sentence = (
            f"The confidence of {models} {_by(sampler)} is a {Confidence(name, reason).sentence.rstrip('.')}."
        )
        console.print(sentence, markup=False)


def _show_unlabeled(rows: Sequence[RoundSummary]) -> None:
    """Print how good each round's model is on what was not labeled; of the newest estimate all details."""
    known = [(row.number, row.unlabeled) for row in rows if row.unlabeled is not None]
    if known:
        table(
            "Error rate on what is not labeled yet, by the regions drawn at random",
            ("round", "model", "not labeled", "whole pool", "audited"),
            [
                (
                    *(number, pool.model),
                    *(rate if pool.images > 1 else MISSING for rate in _error_rates(pool)),
                    pool.audited,
                )
                for number, pool in known
            ],
        )
        for line in known[-1][1].lines():
            console.print(literal(line))
    for row in rows:
        if row.no_estimate is not None:
            console.print(literal(f"Round {row.number} has no estimate of the pool: {row.no_estimate}."))
        for queue in row.withdrawn:
            console.print(
                literal(f"{queue} was withdrawn: its regions drawn at random say nothing about the pool.")
            )


def _error_rates(pool: PoolSummary) -> tuple[Estimate, Estimate]:
    """On what was not labeled, and on the whole pool."""
    return pool.unlabeled.error_rate, pool.pool.error_rate


def show_round_classes(name: str, rows: Sequence[RoundSummary]) -> None:
    """Print the IoU and recall of each class in each measured round."""
    measured = [row for row in rows if row.classes]
    sampler = f" {_by(measured[-1].sampler)}" if measured else ""
    table(
        f"{name}: each class{sampler}",
        ("round", "model", "class", "IoU", "recall"),
        [(row.number, row.model, one.name, one.iou, one.recall) for row in measured for one in row.classes],
    )


def show_model_classes(name: str, rows: Sequence[ModelSummary]) -> None:
    """Print the IoU and recall of each class of each evaluated model."""
    table(
        f"{name}: each class {_by(SINGLE_PASS)}",
        ("model", "status", "split", "class", "IoU", "recall"),
        [
            (row.name, row.status, row.measured_on, one.name, one.iou, one.recall)
            for row in rows
            for one in row.classes
        ],
    )


def show_runs(name: str, rows: Sequence[RunSummary]) -> None:
    """Print a few lines for each scoring run, then its workers, then its warnings."""
    console.print(literal(f"{name}: {counted(len(rows), 'scoring run')}"))
    for row in rows:
        console.print(f"[bold]run {row.id}[/]  {literal(row.model)}, {literal(_scorer(row))}")
        if row.pruned_at:
            console.print(f"       pruned {_moment(row.pruned_at)}")
            continue
        shards = f"{counted(row.shards_done, 'shard')} done, {row.shards_running + row.shards_pending} open"
        console.print(f"       {counted(row.images, 'image')}, {counted(row.regions, 'region')}; {shards}")
        finished = f"finished {_moment(row.finished_at)}" if row.finished_at else "not finished"
        rate = f"; {number(row.images_per_second, 1)} images/s" if row.images_per_second else ""
        console.print(f"       begun {_moment(row.started_at)}, {finished}{rate}")
        if row.heatmap_images:
            console.print(f"       heat maps of {counted(row.heatmap_images, 'image')}")
    for row in rows:
        for worker in row.workers:
            console.print(
                f"run {row.id}: {counted(worker.images, 'image')} in {counted(worker.shards, 'shard')} "
                f"by {literal(worker.owner)}"
            )
    for row in rows:
        if row.outliers:
            console.print(
                f"run {row.id}: {counted(row.outliers, 'image')} "
                f"{agree(row.outliers, 'lies', 'lie')} far outside the range of the training images"
            )
        if row.drift:
            console.print(f"run {row.id}: [yellow]drift:[/] {literal(row.drift)}")


def show_queues(name: str, rows: Sequence[QueueSummary]) -> None:
    """Print a line a queue."""
    table(
        f"{name}: {counted(len(rows), 'queue')}",
        ("queue", "kind", "strategy", "items", "status", "made", "folder"),
        [
            (
                *(row.name, row.kind, row.strategy, row.items, counts(row.by_status)),
                *(_moment(row.created_at), row.folder),
            )
            for row in rows
        ],
    )


def show_queue(row: QueueSummary) -> None:
    """Print the counts of a queue, and its first items with their reasons."""
    items = row.items if row.candidates is None else row.candidates
    chosen = counted(items, row.unit) if items == row.items else out_of(row.items, items, row.unit)
    console.print(f"[bold]{literal(row.name)}[/]  {chosen} by {literal(row.strategy)}")
    if row.clicks is not None:
        console.print(f"effort    about {counted(round(row.clicks), 'click')}")
    for title, parts in (
        ("chosen", named_slices(row.by_slice)),
        ("mostly", row.by_class),
        ("status", row.by_status),
    ):
        console.print(f"{title:8}  {literal(counts(parts))}")
    folder = "not exported yet" if row.folder is None else literal(row.folder)
    console.print(f"folder    {folder}")
    for warning in row.warnings:
        errors.print(f"[yellow]warning:[/] {literal(warning)}")
    if row.head and len(row.head) < row.items:
        console.print(f"[bold]The first {len(row.head)} of {count(row.items)}[/]")
    for item in row.head:
        x, y, w, h = item.box
        parts = [item.class_name or "not predicted", item.status]
        if item.score is not None:
            parts.insert(1, f"{(row.measure or 'score').replace('_', ' ')} {item.score:.2f}")
        if item.clicks is not None:
            parts.append(f"about {counted(round(item.clicks), 'click')}")
        console.print(f"{item.rank:4d}  {literal(item.image)}", soft_wrap=True)
        console.print(f"{INDENT}at {x}, {y}, {w} × {h}: {literal(', '.join(parts))}")
        if item.reason:
            console.print(f"{INDENT}{literal(item.reason)}")


def show_failures(rows: Sequence[FailureGroup], total: int) -> None:
    """Print the reasons why files could not be used, each with its count and its first files."""
    console.print(f"{counted(total, 'file')} could not be used.")
    for row in rows:
        files = counted(row.files, "file")
        console.print(f"[bold]{literal(row.step)}, {files}[/]")
        console.print(f"{INDENT}{literal(row.reason)}")
        for subject in row.examples:
            console.print(f"{INDENT}{literal(subject)}")
        if row.files > len(row.examples):
            console.print(f"{INDENT}… {count(row.files - len(row.examples))} more")
    if any(row.files > len(row.examples) for row in rows):
        console.print("`segcurate failures --all` lists each file.")


def show_annotators(report: AnnotatorReport, *, limit: int) -> None:
    """Print the annotators' agreement, its correlation with uncertainty, and the most disputed regions."""
    if not report.regions:
        console.print("No region has labels of two annotators.")
        return
    console.print(
        f"{counted(report.regions, 'region')} of {counted(report.images, 'image')} "
        f"{agree(report.regions, 'has', 'have')} two annotators or more: "
        f"{literal(', '.join(report.annotators))}"
    )
    if report.unreadable:
        errors.print(
            f"[yellow]warning:[/] the stored masks of {counted(report.unreadable, 'image')} cannot be read; "
            "import their labels again"
        )
    table(
        f"Agreement on the pixels that both have labeled, in {counted(report.compared, 'image')}",
        ("agreement", "annotator", "with", "images", "pixels"),
        [
            (
                percent(pair.agreement, 1),
                pair.annotator,
                pair.other or "all others",
                pair.images,
                short_count(pair.pixels),
            )
            for pair in (*report.against_others, *report.pairs[:limit])
        ],
    )
    for row in report.correlations:
        what = f"vote entropy and {row.measure.replace('_', ' ')}"
        if row.reason is not None:
            console.print(f"rank correlation of {what}: not known, {row.reason}")
        else:
            value = interval(row.value, row.low, row.high)
            where = f"{counted(row.regions, 'region')} of {evidence(row.images, row.units)}"
            console.print(f"rank correlation of {what}: {value} over {where}")
    shown = report.rows[:limit]
    table(
        f"The {out_of(len(shown), report.regions, 'region')} that are disputed most",
        (
            *("queue", "rank", "image", "x, y, w, h", "annotators", "disagreement"),
            *("vote entropy", "expected entropy", "mutual information"),
        ),
        [
            (
                row.queue,
                row.rank,
                row.uri,
                f"{row.x}, {row.y}, {row.w}, {row.h}",
                row.annotators,
                percent(row.disagreement, 1),
                row.vote_entropy,
                row.expected_entropy,
                row.mutual_information,
            )
            for row in shown
        ],
    )


def show_models(name: str, rows: Sequence[ModelSummary]) -> None:
    """Print the lineage and the quality of each model, then the decisions."""
    table(
        f"{name}: {counted(len(rows), 'model')}, measured {_by(SINGLE_PASS)}",
        ("model", "status", "parent", "masks", "seed", "iterations", "mIoU", "worst class"),
        [
            (
                *(row.name, row.status, row.parent, row.labels, row.seed, row.iterations),
                *(number(row.mean_iou.value), worst_class(row.classes) or MISSING),
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.decision:
            console.print(literal(row.decision))
    if rows:
        show_confidence({row.name: (row.confidence, row.confidence_reason) for row in rows}, rows[-1].sampler)


def _by(sampler: str) -> str:
    """Whose predictions a number is of."""
    return f"with the sampler {sampler}" + (", one pass" if sampler == SINGLE_PASS else "")


def _scorer(row: RunSummary) -> str:
    samples = f" × {row.samples}" if row.samples else ""
    return f"{row.sampler}{samples}, {row.calibrator}, {row.region_kind}"


def _moment(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M} UTC"
