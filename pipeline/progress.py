"""The interface of every step: it calls a progress function, and returns a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol


class Report(Protocol):
    """The result of a step: typed fields, and the same as lines of text, which only `lines` writes."""

    def lines(self) -> Iterable[str]: ...


class Progress(Protocol):
    """Called by a step while it runs, from one thread only; must be cheap."""

    def __call__(self, title: str, done: int, total: int | None) -> None: ...


def silent(title: str, done: int, total: int | None) -> None:
    """A progress that does nothing."""


def notes(failed: Sequence[tuple[str, str]] = (), warnings: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a report about files that could not be used, each with its reason, and its warnings."""
    yield from (f"not used: {file}: {reason}" for file, reason in failed)
    yield from (f"warning: {warning}" for warning in warnings)
