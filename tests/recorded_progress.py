"""What a step says about its progress."""

from __future__ import annotations


class RecordedProgress:
    """A progress that keeps what it was called with.

    Attributes:
        calls: the pairs (done, total) by title, in their order.
    """

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[int, int | None]]] = {}

    def __call__(self, title: str, done: int, total: int | None, note: str = "", /) -> None:
        self.calls.setdefault(title, []).append((done, total))

    def unfinished(self) -> list[str]:
        """The titles that were not counted to their end."""
        return [title for title, calls in self.calls.items() if calls[-1][0] != calls[-1][1]]
