"""How the steps of a night, of a retraining or of a loop are run: at once, or each as a task of a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from db.engine import Database
from pipeline.data.project import Project

Result = TypeVar("Result")
Say = Callable[[str], None]


class Perform(Protocol):
    """Runs a step of the pipeline and returns what it returns; its errors come through unchanged."""

    def __call__(
        self, step: Callable[..., Result], project: Project, database: Database, **options: Any
    ) -> Result: ...


def directly(step: Callable[..., Result], project: Project, database: Database, **options: Any) -> Result:
    """Run the step here and now."""
    return step(project, database, **options)


def unheard(line: str) -> None:
    """Nobody listens to what is done."""
