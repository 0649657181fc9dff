"""How a step tells its caller how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by a step as it goes on; must be cheap, and may be called from one thread only."""

    def __call__(self, title: str, done: int, total: int | None) -> None: ...


def silent(title: str, done: int, total: int | None) -> None:
    """A progress that nobody watches."""
