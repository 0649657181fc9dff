"""The report: a page, pictures and a table of the results of all rounds, drawn from the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from db.engine import Database
from db.tables import Model
from pipeline.calibration.calibrators import Calibrators
from pipeline.data.masks import palette
from pipeline.data.project import Project
from pipeline.errors import CheckpointError, UserError
from pipeline.files import atomic_write_bytes, writable_folder
from pipeline.progress import CountedParts, Progress, silent
from pipeline.report.blocks import Gallery
from pipeline.report.curves import draw_learning_curve, draw_risk_coverage
from pipeline.report.figures import write_figure
from pipeline.report.gallery import MISSING_RANKS, GalleryRow, draw_gallery
from pipeline.report.page import render_page
from pipeline.report.pictures import LAYERS, draw_tiles
from pipeline.report.reliability import draw_reliability
from pipeline.steps.disagreements import disagreements
from pipeline.steps.ready import is_evaluated, require_drawable
from pipeline.steps.report.facts import EvaluatedModel, evaluated_models, metrics_table, read_contents
from pipeline.steps.report.gallery import (
    Failures,
    ShownRegion,
    disagreeing_regions,
    gallery_rows,
    queue_regions,
    record_failures,
)
from pipeline.steps.report.simulation import write_simulation
from pipeline.steps.served_model import stored_calibrators
from pipeline.summaries.rounds import RoundSummary, round_history
from pipeline.summaries.simulations import newest_summary

PAGE = "report.html"
GALLERY_ROWS = 5
"""Of each queue's picture."""
PAGE_TILES = 8
"""Of each gallery on the page, which bounds the size of the file."""


@dataclass
class _Galleries:
    """The galleries drawn so far, newest queue first, and the images that could not be read."""

    queues: list[tuple[str, Gallery]] = field(default_factory=list)
    disagreeing: Gallery | None = None
    failures: Failures = field(default_factory=list)


@dataclass(frozen=True)
class WrittenReport:
    """The folder of the report and its pages, and the images and checkpoints that could not be drawn, with
    the reason."""

    folder: Path
    pages: Sequence[Path]
    failed: Failures = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The images and checkpoints that are left out, then the pages to open."""
        for subject, reason in self.failed:
            yield f"not drawn: {subject}: {reason}"
        for page in self.pages:
            yield f"Open {page}."


def report(
    project: Project, database: Database, *, folder: Path | None = None, progress: Progress = silent
) -> WrittenReport:
    """Write the report; written again, it replaces the former one.

    Writes `report.html`, which needs no other file, and beside it `learning_curve.png`, for each model
    `reliability_<model>.png` and `risk_coverage_<model>.png`, for each queue `gallery_<queue>.png`, and
    `metrics.csv` with every metric and its interval. The newest simulation has a page of its own, see
    `write_simulation`; where no model has been evaluated yet, it is the only one. The report leaves out an
    image or checkpoint that can no longer be read, and records it as a failure.

    Args:
        folder: `<workdir>/report` by default.

    Raises:
        UserError: no model has been evaluated and nothing simulated yet, or the folder cannot be written.
    """
    target = folder if folder is not None else project.workdir / "report"
    config = project.config
    with database.session(write=False) as session:
        require_drawable(session)
        simulated, evaluated_once = newest_summary(session, config), is_evaluated(session)
    page = None if simulated is None else write_simulation(project, simulated, folder=target)
    if not evaluated_once:
        return WrittenReport(target, [_finished(page)])
    with database.session(write=False) as session:
        history = round_history(session, sampler=config.scoring.sampler, class_names=config.data.class_names)
        evaluated = evaluated_models(session, project, history)
        contents = read_contents(session, project, history, simulated, progress=progress)
        table = metrics_table(session, project, history)
    writable_folder(target)
    atomic_write_bytes(target / "metrics.csv", table.encode())
    _draw_curves(project, contents.rounds, evaluated, target, progress)
    numbers = [row.number for row in history if row.model is not None]
    galleries = _draw_galleries(project, database, numbers, target, progress)
    contents = replace(contents, galleries=galleries.queues, disagreeing=galleries.disagreeing)
    atomic_write_bytes(target / PAGE, render_page(contents).encode())
    with database.session() as session:
        record_failures(session, galleries.failures)
    pages = [target / PAGE, *([page] if page is not None else [])]
    return WrittenReport(target, pages, galleries.failures)


def _finished(page: Path | None) -> Path:
    """The page of the simulation, where it is all there is.

    Raises:
        UserError: no seed of it is finished.
    """
    if page is None:
        raise UserError(
            "There is nothing to draw: no model has been evaluated, and no seed simulated to its end.",
            "Run the same `segcurate simulate` again: it continues.",
        )
    return page


def _draw_curves(
    project: Project,
    points: Sequence[RoundSummary],
    evaluated: Sequence[EvaluatedModel],
    target: Path,
    progress: Progress,
) -> None:
    """The pictures of all rounds, and of each round's model."""
    drawn = CountedParts(progress, "draw models", len(evaluated))
    write_figure(
        target / "learning_curve.png",
        draw_learning_curve(
            points,
            class_names=project.config.data.class_names,
            colors=palette(project.config.data),
            title=f"{project.config.name}: IoU and calibration after each round",
        ),
    )
    for row in evaluated:
        what = f"Round {row.number}, {row.split} images"
        first, second = (row.before, row.after) if row.before is not None else (row.after, None)
        if first is not None:
            title = f"{what}: is its confidence right?"
            passed = any(one.model == row.model.name and one.confidence_reason is None for one in points)
            write_figure(
                target / f"reliability_{row.model.name}.png",
                draw_reliability(first, second, title=title, passed=passed),
            )
        if row.risks is not None:
            write_figure(
                target / f"risk_coverage_{row.model.name}.png",
                draw_risk_coverage(
                    row.risks.curves,
                    coverage=row.risks.coverage,
                    title=f"{what}: are the uncertain pixels the wrong ones?",
                ),
            )
        drawn.done()


def _draw_galleries(
    project: Project, database: Database, numbers: Sequence[int], target: Path, progress: Progress
) -> _Galleries:
    """A picture of every queue; for the page the newest queue, before it the newest one with labels, and the
    regions that are confident but disagreeing."""
    drawn = _Galleries()
    labels_shown = False
    for done, number in enumerate(sorted(numbers, reverse=True)):
        progress("draw queues", done, len(numbers) + 1)
        with database.session(write=False) as session:
            shown = queue_regions(session, project, number)
        if shown is None:
            continue
        on_page = not drawn.queues or (shown.labeled and not labels_shown)
        most = PAGE_TILES if on_page else GALLERY_ROWS
        rows = _rows(project, shown.model, shown.calibrators, shown.regions[:most], drawn.failures)
        if not rows:
            continue
        pictured = rows[:GALLERY_ROWS]
        picture = draw_gallery(
            [row for _, row in pictured],
            class_names=project.config.data.class_names,
            colors=palette(project.config.data),
            title=f"Round {number}: the regions that the model ranks highest",
            note=MISSING_RANKS if pictured[-1][0].rank > len(pictured) else "",
        )
        write_figure(target / f"gallery_{shown.queue.name}.png", picture)
        if on_page:
            words = f"Round {number}: {'labels imported' if shown.labeled else 'waiting for labels'}"
            drawn.queues.append((words, _gallery(project, shown.queue.name, rows)))
            labels_shown = labels_shown or shown.labeled
    progress("draw queues", len(numbers), len(numbers) + 1)
    drawn.disagreeing = _draw_disagreeing(project, database, drawn.failures)
    progress("draw queues", len(numbers) + 1, len(numbers) + 1)
    return drawn


def _draw_disagreeing(project: Project, database: Database, failures: Failures) -> Gallery | None:
    """The gallery of confident but disagreeing regions; None where there are no scores with samples."""
    try:
        report = disagreements(project, database, limit=4 * PAGE_TILES)
    except UserError:
        return None
    with database.session(write=False) as session:
        regions = disagreeing_regions(session, report)[:PAGE_TILES]
        model = session.query(Model).filter_by(name=report.model).one()
        calibrators = stored_calibrators(session, model.id, sampler=project.config.scoring.sampler)
    rows = _rows(project, model, calibrators, regions, failures)
    return _gallery(project, "disagreeing", rows) if rows else None


def _rows(
    project: Project,
    model: Model,
    calibrators: Calibrators,
    regions: Sequence[ShownRegion],
    failures: Failures,
) -> list[tuple[ShownRegion, GalleryRow]]:
    try:
        rows, failed = gallery_rows(project, model, calibrators, regions)
    except CheckpointError as error:
        rows, failed = [], [(model.checkpoint_uri, str(error))]
    failures += [failure for failure in failed if failure not in failures]
    return rows


def _gallery(project: Project, name: str, rows: Sequence[tuple[ShownRegion, GalleryRow]]) -> Gallery:
    tiles, scales = draw_tiles(
        [row for _, row in rows],
        tags=[region.tags for region, _ in rows],
        colors=palette(project.config.data),
    )
    present = {layer.name for tile in tiles for layer in tile.layers}
    return Gallery(
        name=f"over-{name}",
        tiles=tiles,
        layers=[layer for layer in LAYERS if layer in present],
        scales=scales,
        classes=[(f"c{index}", name) for index, name in enumerate(project.config.data.class_names)],
    )
