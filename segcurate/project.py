"""A project from Python. Each method of a step is the command of that name, with its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from db.engine import Database
from pipeline.config import HeatmapSize, ProjectConfig
from pipeline.data.project import Project as Settings
from pipeline.data.project import load_project
from pipeline.errors import UserError
from pipeline.files import CONFIG_FILE
from pipeline.operation.runner import Runner, no_log
from pipeline.ownership import open_database
from pipeline.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas

    from pipeline.steps.calibrate import CalibrationReport
    from pipeline.steps.evaluate import EvaluationReport
    from pipeline.steps.export import ExportReport
    from pipeline.steps.import_labels.report import ImportReport
    from pipeline.steps.ingest.report import IngestReport
    from pipeline.steps.score.step import ScoreReport
    from pipeline.steps.select.step import SelectionReport
    from pipeline.steps.train import TrainReport


class Project:
    """A project: its configuration, its database, and the steps of its rounds.

    A step returns its report, whose `lines()` are what the command prints. A user's mistake raises a
    `UserError` with its problem and its remedy, as text. A step that was killed is called again.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @classmethod
    def open(
        cls,
        path: str | Path = CONFIG_FILE,
        *,
        log: Callable[[str], None] = no_log,
        progress: Progress = silent,
    ) -> Self:
        """Open the project of a configuration file. Close it at the end, or use it in a `with` statement.

        Args:
            log: called with each line of a step's report; `print` shows them as the commands do.
            progress: called while a step runs.

        Raises:
            UserError: the configuration or the database cannot be used.
        """
        settings = load_project(Path(path))
        return cls(Runner(settings, open_database(settings), log=log, progress=progress))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> ProjectConfig:
        """The settings in force."""
        return self._settings.config

    @property
    def next_command(self) -> str:
        """The command that comes next, such as `segcurate train`."""
        from pipeline.summaries.project import project_status

        with self._database.session(write=False) as session:
            return project_status(session).next_command

    def ingest(self) -> IngestReport:
        """Register images, masks and splits; run it again for new files."""
        from pipeline.steps.ingest import ingest

        return self._runner.run(ingest)

    def train(self) -> TrainReport:
        """Train the round's model, or go on with a training that was interrupted."""
        from pipeline.steps.train import train

        return self._runner.run(train)

    def calibrate(self) -> CalibrationReport:
        """Calibrate the round's model."""
        from pipeline.steps.calibrate import calibrate

        return self._runner.run(calibrate)

    def evaluate(self) -> EvaluationReport:
        """Measure the round's model on held-out images, and promote it where it is not worse."""
        from pipeline.steps.evaluate import evaluate

        return self._runner.run(evaluate)

    def score(self, *, any_time: bool = False, heatmaps: HeatmapSize | None = None) -> ScoreReport:
        """Score the images of the pool that the serving model has not scored yet.

        Args:
            any_time: score even where another step of the round comes next.
            heatmaps: instead of `scoring.heatmaps.size`.
        """
        from pipeline.steps.score import score

        return self._runner.run(score, any_time=any_time, heatmaps=heatmaps)

    def select(self, *, dry_run: bool = False, force: bool = False, **settings: Any) -> SelectionReport:
        """Choose the round's queue.

        Args:
            dry_run: store nothing.
            force: rank by mutual information even where it did not pass its gate.
            settings: keys of `selection` for this queue, such as `budget=50` or `strategy="random"`.
        """
        from pipeline.steps.select import select

        return self._runner.run(select, dry_run=dry_run, force=force, overrides=settings)

    def export(
        self,
        *,
        to: str | None = None,
        queue: str | None = None,
        folder: str | Path | None = None,
        heatmaps: HeatmapSize | None = None,
    ) -> ExportReport:
        """Write a queue as a folder in a labeling tool's format. Nothing is sent to a server.

        Args:
            to: the tool's name; `labeling.tool` by default.
            queue: its name; the current round's by default.
            folder: instead of one in `export.folder`.
            heatmaps: instead of `export.heatmaps`.
        """
        from pipeline.steps.export import export

        target = None if folder is None else Path(folder)
        return self._runner.run(export, to=to, queue=queue, folder=target, heatmaps=heatmaps)

    def import_labels(
        self,
        source: str | Path | Sequence[str | Path],
        *,
        tool: str | None = None,
        annotator: str | None = None,
        queue: str | None = None,
        close: bool = False,
    ) -> ImportReport:
        """Import the labels of an exported queue.

        Args:
            source: the exported folder, a folder of masks, or what a labeling tool has exported; or several.
            tool: whose format it is; found out by default.
            annotator: of masks that do not name one.
            queue: of labels that do not name one.
            close: close the round with the labels that are there.
        """
        from pipeline.steps.import_labels import import_labels

        sources = [source] if isinstance(source, str | Path) else source
        return self._runner.run(
            import_labels,
            source=[Path(one) for one in sources],
            tool=tool,
            annotator=annotator,
            queue=queue,
            close=close,
        )

    def images(self) -> pandas.DataFrame:
        """The images, a row each: `image` (its path), `split` (pool, calibration, test or guard), `group`,
        `position`, `width`, `height`, `has_mask` (of `data.masks` or `data.labels`), `labeled` (models may
        learn from it), and `duplicate_of` (the path of the image with the same content)."""
        from segcurate.tables import images_table

        with self._database.session(write=False) as session:
            return images_table(session)

    def scores(self, of: Literal["regions", "images"] = "regions") -> pandas.DataFrame:
        """The newest finished scores of the serving model, a row for each region or image.

        Beside `image` and `predicted_class`, a column has the measure of its name; one that the sampler does
        not give is NaN. A region has its box `x`, `y`, `w`, `h` in image pixels. A measure of an image is its
        mean over the image's top quarter of regions.

        Raises:
            UserError: there are none yet.
        """
        from segcurate.tables import scores_table

        with self._database.session(write=False) as session:
            return scores_table(session, of=of, class_names=self.config.data.class_names)

    def heatmap(self, image: str, measure: str = "entropy") -> npt.NDArray[np.float32]:
        """A heat map of an image, float32 [h, w], at the size of `scoring.heatmaps.size`.

        Args:
            image: its path, as `images()` has it.
            measure: one of `scoring.heatmaps.measures`.

        Raises:
            UserError: there is no such image, or it has no such map.
        """
        from segcurate.tables import stored_heatmap

        with self._database.session(write=False) as session:
            uri = stored_heatmap(session, image=image, measure=measure)
        from pipeline.drawing.heatmaps import read_heatmap

        path = self._settings.path(uri)
        if not path.exists():
            raise UserError(f"The heat map {path} is gone.", "Run `segcurate score` again.")
        return read_heatmap(path)

    @property
    def _settings(self) -> Settings:
        return self._runner.project

    @property
    def _database(self) -> Database:
        return self._runner.database
