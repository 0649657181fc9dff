"""How the command line shows where a project stands, its rounds and its models."""

from __future__ import annotations

from collections.abc import Sequence

from db.tables import Calibration
from flows.display import console, errors, interval, literal, table
from pipeline.history import ModelSummary, RoundSummary
from pipeline.status import Status


def show_status(name: str, now: Status) -> None:
    """A project at a glance, ending with the command that comes next."""
    images = ", ".join(f"{count} {split}" for split, count in sorted(now.images.items())) or "none"
    console.print(f"[bold]{literal(name)}[/]")
    console.print(f"images    {images}; {now.labeled_images} with labels")
    if now.failures:
        console.print(f"failures  {now.failures} files could not be used: `segcurate failures`")
    if now.round_number is not None:
        model = f", model {now.promoted_model}" if now.promoted_model else ""
        console.print(f"round     {now.round_number}{model}")
    if now.queue_items:
        console.print("queue     " + ", ".join(f"{count} {what}" for what, count in now.queue_items.items()))
    console.print(f"next      [bold]{literal(now.next_command)}[/]  {literal(now.reason)}")


def show_rounds(name: str, rows: Sequence[RoundSummary]) -> None:
    """Labels, model, mIoU and calibration of each round."""
    table(
        f"{name}: {len(rows)} rounds",
        ("round", "labels", "of the pool", "model", "mIoU", "ECE before", "ECE after", "next"),
        [
            (
                row.number,
                row.labeled_regions,
                f"{100 * row.labeled_share:.1f} %",
                f"{row.model} {row.model_status}" if row.model else None,
                interval(*row.mean_iou),
                interval(*row.ece_before),
                interval(*row.ece_after),
                row.state,
            )
            for row in rows
        ],
    )
    for confidence in ("probability", "softmax score"):
        models = [row.model for row in rows if row.model and row.confidence == confidence]
        if models:
            console.print(f"The softmax of {', '.join(models)} is a {confidence}.")


def show_calibrations(rows: Sequence[Calibration]) -> None:
    """Every calibrator beside the chosen one, each judged on images that did not fit it."""
    from pipeline.steps.calibrate import in_words  # imports torch

    for row in rows:
        judged = (row.report or {}).get("calibrators", [])
        if judged:
            table(
                f"{row.sampler}: {row.images} images, half of them fit and the other half judges",
                ("calibrator", "NLL", "ECE", "labels changed", ""),
                [
                    (
                        item["name"],
                        interval(*item["nll"].values()),
                        interval(*item["ece"].values()),
                        f"{100 * item['labels_changed']:.2g} %",
                        "in use" if item["name"] == row.calibrator else "",
                    )
                    for item in judged
                ],
            )
        console.print(literal(in_words(row)))
        if row.warning:
            errors.print(f"[yellow]warning:[/] {literal(row.warning)}")


def show_models(name: str, rows: Sequence[ModelSummary]) -> None:
    """Lineage and decision of each model."""
    table(
        f"{name}: {len(rows)} models",
        ("model", "status", "parent", "labels", "seed", "iterations", "config", "decision"),
        [
            (
                row.name,
                row.status,
                row.parent,
                row.labels,
                row.seed,
                row.iterations,
                row.config_hash[:8],
                row.decision,
            )
            for row in rows
        ],
    )
