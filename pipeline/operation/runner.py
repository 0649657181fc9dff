"""A runner runs the steps of an operation one after another and logs what each reports.

The operations (`nightly`, `retrain`, `simulation`) are written once: a command runs their steps in its own
process, and a flow overrides `Runner.call` to run each as a Prefect task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from db.engine import Database
from pipeline.data.project import Project
from pipeline.progress import Progress, Report, silent

if TYPE_CHECKING:
    from pipeline.steps.score.step import ScoreReport

Result = TypeVar("Result")
StepReport = TypeVar("StepReport", bound=Report)


def no_log(line: str) -> None:
    """A log that drops its lines."""


@dataclass(frozen=True)
class Runner:
    """Runs steps on one project.

    Attributes:
        log: called with each log line.
        progress: called with the progress of a step.
    """

    project: Project
    database: Database
    log: Callable[[str], None] = no_log
    progress: Progress = silent

    def call(self, step: Callable[..., Result], **options: Any) -> Result:
        """Run a step and return its result; its errors are passed on unchanged."""
        return step(self.project, self.database, progress=self.progress, **options)

    def run(self, step: Callable[..., StepReport], **options: Any) -> StepReport:
        """Run a step, log each line of its report, and return the report."""
        report = self.call(step, **options)
        for line in report.lines():
            self.log(line)
        return report

    def score(self, *, any_time: bool) -> ScoreReport:
        """Score the images that the promoted model has not scored yet; logs and returns as `run` does.

        Args:
            any_time: score even when another step of the round comes next.
        """
        from pipeline.steps.score import score

        return self.run(score, any_time=any_time)
