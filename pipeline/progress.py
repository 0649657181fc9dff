"""What every step has in common: it tells its caller how far it is, and returns a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol


class Report(Protocol):
    """What a step returns: typed results, and the same as lines of text. Only `lines` makes text of them."""

    def lines(self) -> Iterable[str]: ...


class Progress(Protocol):
    """Called by a step as it goes on; must be cheap, and may be called from one thread only."""

    def __call__(self, title: str, done: int, total: int | None) -> None: ...


def silent(title: str, done: int, total: int | None) -> None:
    """A progress that does nothing."""


def notes(failed: Sequence[tuple[str, str]] = (), warnings: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a report about files that could not be used, each with its reason, and its warnings."""
    yield from (f"not used: {file}: {reason}" for file, reason in failed)
    yield from (f"warning: {warning}" for warning in warnings)
