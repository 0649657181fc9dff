"""The interface of every step: it calls a progress function, and returns a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.format import count, duration

LINES = 20
"""Lines of a log for a long step: one each 5 %."""
LONG_SECONDS = 20.0
"""A step that takes less is not logged while it runs."""
FEW = 3
"""Items after the first, from which on the time of all is estimated. The first takes longer than others."""
SETTLED_SECONDS = 2.0
"""An estimate rests on as many seconds, at least."""


class Report(Protocol):
    """The result of a step: typed fields, and the same as lines of text, which only `lines` writes."""

    def lines(self) -> Iterable[str]: ...


class Progress(Protocol):
    """Called by a step while it runs, from one thread only; must be cheap. `note` says how it is going, such
    as a training's loss."""

    def __call__(self, title: str, done: int, total: int | None, note: str = "", /) -> None: ...


def silent(title: str, done: int, total: int | None, note: str = "") -> None:
    """A progress that does nothing."""


@dataclass
class Pace:
    """How fast a step is, from its first call on; a step that goes on where it was killed begins late."""

    began: float
    first: int

    def rate(self, done: int, now: float) -> float | None:
        """Items a second; None before there is an estimate."""
        if done - self.first < FEW or now - self.began < SETTLED_SECONDS:
            return None
        return (done - self.first) / (now - self.began)


class LoggedProgress:
    """A progress that writes lines, for a log: how long a step will take on this machine, as soon as that can
    be estimated, and then a line each 5 %. Of a step that takes less than 20 s it writes nothing.

    Args:
        say: called with each line.
        clock: seconds.
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._written: dict[str, int] = {}

    def __call__(self, title: str, done: int, total: int | None, note: str = "", /) -> None:
        now = self._clock()
        pace = self._paces.get(title)
        if pace is None or done < pace.first:
            pace = self._paces[title] = Pace(began=now, first=done)
            self._written.pop(title, None)
        rate = pace.rate(done, now)
        if rate is None:
            return
        if total is None:
            part = int((now - pace.began) // LONG_SECONDS)
            if part > self._written.setdefault(title, 0):
                self._written[title] = part
                self._say(f"{title}: {count(done)}, {rate:.1f}/s")
            return
        part = done * LINES // max(1, total)
        if title not in self._written:
            if total / rate < LONG_SECONDS:
                return
            self._written[title] = part
            self._say(
                f"{title}: {count(total - done)} of {count(total)} to go, about "
                f"{duration((total - done) / rate)} on this machine"
            )
        elif part > self._written[title]:
            self._written[title] = part
            left = f"{duration((total - done) / rate)} left" if done < total else "done"
            words = [
                f"{count(done)} of {count(total)} ({100 * done // total} %)",
                note,
                f"{rate:.1f}/s",
                left,
            ]
            self._say(f"{title}: {', '.join(filter(None, words))}")


def notes(failed: Sequence[tuple[str, str]] = (), warnings: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a report about files that could not be used, each with its reason, and its warnings."""
    yield from (f"not used: {file}: {reason}" for file, reason in failed)
    yield from (f"warning: {warning}" for warning in warnings)
