"""The report: pictures and a table of what the rounds have come to, drawn from the database."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import evaluations as queries
from db.queries import images as image_queries
from db.queries import labels as label_queries
from db.queries import rounds as round_queries
from db.queries.evaluations import MetricKey
from db.queries.labels import QueuedRegion
from db.tables import Image, Metric, Model, Queue, Round, ScoringRun
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import IGNORE, Project
from pipeline.data.images import ImageRef, as_rgb, read_image
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable, load_batches
from pipeline.data.masks import Mask, palette
from pipeline.errors import CheckpointError, DataError, UserError
from pipeline.evaluation.metrics import Estimate
from pipeline.files import atomic_write_bytes, writable_folder
from pipeline.history import RoundSummary, round_history
from pipeline.report.curves import RiskCurve, RoundPoint, draw_learning_curve, draw_risk_coverage
from pipeline.report.figures import write_figure
from pipeline.report.gallery import GalleryRow, draw_gallery
from pipeline.report.reliability import Reliability, draw_reliability
from pipeline.steps.serving import open_predictor, stored_calibrators

GALLERY_ROWS = 5
UNDEFINED = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class _Asked:
    """What a round asked for, and the model that asked."""

    number: int
    queue: Queue
    regions: list[QueuedRegion]
    labels: dict[int, str]
    """The URI of the mask that came back, by image id."""
    model: Model
    calibrators: Calibrators


@dataclass(frozen=True)
class _Maps:
    """Of one image at its own size: predicted classes, and float32 [H, W] for each measure."""

    prediction: Mask
    measures: dict[str, npt.NDArray[np.float32]]


def report(project: Project, database: Database, *, folder: Path | None = None) -> Path:
    """Draw what is known by now; drawn again, it replaces what is there.

    Writes `learning_curve.png`, for each model `reliability_<model>.png` and `risk_coverage_<model>.png`,
    for each queue `gallery_<queue>.png`, and `metrics.csv` with every number and its interval. An image or
    checkpoint that cannot be read any more is left out, and recorded as a failure.

    Args:
        folder: `<workdir>/report` by default.

    Returns:
        The folder.

    Raises:
        UserError: no model has been evaluated yet, or the folder cannot be written.
    """
    target = folder if folder is not None else project.workdir / "report"
    sampler = project.config.scoring.sampler
    with database.session(write=False) as session:
        history = [row for row in round_history(session, sampler=sampler) if row.split is not None]
        models = {row.number: model for row, model in _models(session)}
        if not history:
            raise UserError(
                "There is nothing to draw: no model has been evaluated.", "Run `segcurate status`."
            )
        points = [_point(session, project, row, models[row.number]) for row in history]
        table = _table(session, project, models)
    writable_folder(target)
    atomic_write_bytes(target / "metrics.csv", table.encode())
    write_figure(
        target / "learning_curve.png",
        draw_learning_curve(
            points,
            class_names=project.config.data.class_names,
            colors=palette(project.config.data),
            title=f"{project.config.name}: what each round of labels brought",
        ),
    )
    for row in history:
        _draw_model(project, database, models[row.number], row, target)
    failures: list[tuple[str, str]] = []
    for number in models:
        failures += _draw_queue(project, database, number, target)
    with database.session() as session:
        image_queries.clear_failures(session, "report")
        image_queries.record_failures(session, "report", failures)
    return target


def _models(session: Session) -> Iterator[tuple[Round, Model]]:
    for row in round_queries.list_rounds(session):
        model = round_queries.round_model(session, row.id)
        if model is not None:
            yield row, model


def _point(session: Session, project: Project, row: RoundSummary, model: Model) -> RoundPoint:
    metrics = queries.metrics_of(
        session,
        model_id=model.id,
        split=row.split or "",
        sampler=project.config.scoring.sampler,
        calibrated=True,
    )
    return RoundPoint(
        number=row.number,
        labeled_share=row.labeled_share,
        labeled_regions=row.labeled_regions,
        mean_iou=_estimate(*row.mean_iou),
        class_iou=tuple(_of(metrics, ("iou", index)) for index in range(project.config.data.num_classes)),
        ece_before=_estimate(*row.ece_before),
        ece_after=_estimate(*row.ece_after),
        promoted=model.status == "promoted",
    )


def _draw_model(project: Project, database: Database, model: Model, row: RoundSummary, target: Path) -> None:
    """The two questions about a model's uncertainty, on its held-out images."""
    sampler, split = project.config.scoring.sampler, row.split or ""
    found: dict[bool, Reliability] = {}
    risks: dict[str, Any] = {}
    with database.session(write=False) as session:
        for calibrated in (False, True):
            chosen = {"model_id": model.id, "split": split, "sampler": sampler, "calibrated": calibrated}
            evaluation = queries.evaluation_of(session, **chosen)
            if evaluation is not None:
                ece = _of(queries.metrics_of(session, **chosen), ("ece", -1))
                found[calibrated] = Reliability.from_document(evaluation.curves["reliability"], ece=ece)
                risks = evaluation.curves["risk_coverage"]
    what = f"Round {row.number}, {split} images"
    if found:
        before, after = found.get(False), found.get(True)
        write_figure(
            target / f"reliability_{model.name}.png",
            draw_reliability(before, after, title=f"{what}: is its confidence right?")
            if before is not None
            else draw_reliability(found[True], None, title=what),
        )
    curves = {
        name: RiskCurve(*(_numbers(item[key]) for key in ("risk", "low", "high")))
        for name, item in risks.items()
        if name != "coverage"
    }
    if curves:
        write_figure(
            target / f"risk_coverage_{model.name}.png",
            draw_risk_coverage(
                curves,
                coverage=_numbers(risks["coverage"]),
                title=f"{what}: are the uncertain pixels the wrong ones?",
            ),
        )


def _draw_queue(project: Project, database: Database, number: int, target: Path) -> list[tuple[str, str]]:
    """The gallery of one round's queue. Returns what could not be read, with its reason."""
    with database.session(write=False) as session:
        asked = _asked(session, project, number)
    if asked is None:
        return []
    failures: list[tuple[str, str]] = []
    rows: list[GalleryRow] = []
    chosen = _one_an_image(asked.regions)[:GALLERY_ROWS]
    try:
        maps = _predict(project, asked, [region.image.id for region in chosen], failures)
    except CheckpointError as error:
        return [(asked.model.checkpoint_uri, str(error))]
    for region in chosen:
        if region.image.id in maps:
            try:
                rows.append(_gallery_row(project, asked, region, maps[region.image.id]))
            except DataError as error:
                failures.append((region.image.uri, str(error)))
    if rows:
        write_figure(
            target / f"gallery_{asked.queue.name}.png",
            draw_gallery(
                rows,
                class_names=project.config.data.class_names,
                colors=palette(project.config.data),
                title=f"Round {number}: what the model asks to have labeled next",
            ),
        )
    return failures


def _asked(session: Session, project: Project, number: int) -> _Asked | None:
    current = next(row for row in round_queries.list_rounds(session) if row.number == number)
    queue = round_queries.round_queue(session, current.id)
    run = session.get(ScoringRun, queue.run_id) if queue is not None and queue.run_id is not None else None
    if queue is None or run is None:
        return None
    model = session.get_one(Model, run.model_id)
    return _Asked(
        number=number,
        queue=queue,
        regions=[
            region
            for region in label_queries.queued_regions(session, queue_id=queue.id)
            if region.item.slice == "selected"
        ],
        labels={
            label.image_id: label.mask_uri
            for label in label_queries.latest_labels(session, queue_id=queue.id)
        },
        model=model,
        calibrators=stored_calibrators(session, model.id, sampler=project.config.scoring.sampler),
    )


def _one_an_image(regions: Sequence[QueuedRegion]) -> list[QueuedRegion]:
    """The best ranked region of each image, best first."""
    best: dict[int, QueuedRegion] = {}
    for region in regions:
        best.setdefault(region.image.id, region)
    return list(best.values())


def _predict(
    project: Project, asked: _Asked, image_ids: Sequence[int], failures: list[tuple[str, str]]
) -> dict[int, _Maps]:
    """Prediction and measures of each image at its own size, as the queue's model sees it."""
    predictor, card = open_predictor(project, asked.model, calibrators=asked.calibrators)
    images = {region.image.id: region.image for region in asked.regions}
    found: dict[int, _Maps] = {}
    for batch in load_batches(
        [_reference(project, images[image_id]) for image_id in image_ids],
        channels=card.channels,
        max_pixels=project.config.data.max_pixels,
        input_scale=card.input_scale,
        mean=card.mean,
        std=card.std,
        batch_size=1,
        workers=0,
    ):
        if isinstance(batch, Unreadable):
            failures.append((project.uri(batch.path), batch.reason))
            continue
        prediction = predictor.predict(batch.image_BKHW)
        maps = prediction.measures()
        network_size = (batch.image_BKHW.shape[-2], batch.image_BKHW.shape[-1])
        size = batch.sizes[0]
        probability = predictor.enlarge(prediction.probability, network_size=network_size, size=size)
        shown = {
            name: predictor.enlarge(maps[name][:, None], network_size=network_size, size=size)[0, 0]
            for name in ("entropy", "mutual_information")
            if name in maps
        }
        found[batch.ids[0]] = _Maps(
            prediction=probability[0].argmax(dim=0).to("cpu").numpy().astype(np.uint8),
            measures={name: values.float().to("cpu").numpy() for name, values in shown.items()},
        )
    return found


def _gallery_row(project: Project, asked: _Asked, region: QueuedRegion, maps: _Maps) -> GalleryRow:
    item, image = region
    data = project.config.data
    pixels = read_image(project.path(image.uri), channels=data.channels, max_pixels=data.max_pixels)
    label = None
    if image.id in asked.labels and item.status == "labeled":
        known = compose_labels([project.path(asked.labels[image.id])], (image.width, image.height))
        inside = (slice(item.y, item.y + item.h), slice(item.x, item.x + item.w))
        label = np.full_like(known, IGNORE)
        label[inside] = known[inside]
    return GalleryRow(
        image=as_rgb(pixels),
        box=(item.x, item.y, item.w, item.h),
        prediction=maps.prediction,
        entropy=maps.measures["entropy"],
        mutual_information=maps.measures.get("mutual_information"),
        label=label,
        heading=f"{item.rank}. {Path(image.uri).name}",
        reason=item.reason,
    )


def _reference(project: Project, image: Image) -> ImageRef:
    return ImageRef(id=image.id, path=project.path(image.uri), width=image.width, height=image.height)


def _table(session: Session, project: Project, models: Mapping[int, Model]) -> str:
    """Every metric of every evaluation as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "round",
            "model",
            "status",
            "split",
            "sampler",
            "calibrated",
            "metric",
            "class",
            "value",
            "low",
            "high",
        ]
    )
    names = project.config.data.class_names
    for number, model in models.items():
        for evaluation in queries.model_evaluations(session, model.id):
            variant = (evaluation.split, evaluation.sampler, evaluation.calibrated)
            metrics = queries.metrics_of(
                session, model_id=model.id, split=variant[0], sampler=variant[1], calibrated=variant[2]
            )
            for (name, index), metric in sorted(metrics.items()):
                class_name = names[index] if index >= 0 else ""
                figures = [metric.value, metric.low, metric.high]
                writer.writerow([number, model.name, model.status, *variant, name, class_name, *figures])
    return stream.getvalue()


def _of(metrics: Mapping[MetricKey, Metric], key: MetricKey) -> Estimate:
    metric = metrics.get(key)
    return UNDEFINED if metric is None else _estimate(metric.value, metric.low, metric.high)


def _estimate(value: float | None, low: float | None, high: float | None) -> Estimate:
    return Estimate(*_numbers([value, low, high]).tolist())


def _numbers(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """null is NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
