"""The interface of every step: it calls a progress function, and returns a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.format import count, duration

TILES = "tiles of an image"
"""The title under which the tiles of one large image are counted, within a step that counts images."""
LINES = 20
"""Lines of a log for a long step: one each 5 %."""
LONG_SECONDS = 20.0
"""A step that has less to go when that is first known is not logged while it runs."""
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


def apart_from_tiles(images: Progress, *, tiles: Progress = silent) -> Progress:
    """A progress that counts images with one progress, and the tiles of a large image with another."""

    def called(title: str, done: int, total: int | None, note: str = "", /) -> None:
        (tiles if title == TILES else images)(title, done, total, note)

    return called


class CountedParts:
    """The parts of a computation, which are reported one by one.

    Args:
        total: how many there are.
    """

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress, self._title, self._total = progress, title, total
        self._done = 0
        progress(title, 0, total)

    def done(self, parts: int = 1) -> None:
        """Report the end of one part, or of several."""
        self._done += parts
        self._progress(self._title, self._done, self._total)


@dataclass
class Pace:
    """How fast a step is, from its first call on; a step that goes on where it was killed begins late.

    Attributes:
        began, first: seconds and items of its first call.
        latest, total: of its latest call.
        written: the part that was logged last; None before the first line.
    """

    began: float
    first: int
    latest: int
    total: int | None
    written: int | None = None

    def rate(self, now: float) -> float | None:
        """Items a second; None before there is an estimate."""
        if self.latest - self.first < FEW or now - self.began < SETTLED_SECONDS:
            return None
        return (self.latest - self.first) / (now - self.began)


class Paces:
    """The pace of each step under way, by title. A step of a title that had come to its end, or that counts
    from a smaller number again, has begun anew, as in the next round of a loop."""

    def __init__(self) -> None:
        self._known: dict[str, Pace] = {}

    def at(self, title: str, done: int, total: int | None, now: float) -> Pace:
        """The pace of the step that is called now."""
        pace = self._known.get(title)
        if pace is None or done < pace.latest or pace.latest == pace.total:
            pace = self._known[title] = Pace(began=now, first=done, latest=done, total=total)
        pace.latest, pace.total = done, total
        return pace


class LoggedProgress:
    """A progress that writes lines, for a log: how long a step will take on this machine, as soon as that can
    be estimated, and then a line each 5 %. Of a step that then has less than 20 s to go it writes nothing.

    Args:
        say: called with each line.
        clock: seconds.
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._paces = Paces()

    def __call__(self, title: str, done: int, total: int | None, note: str = "", /) -> None:
        now = self._clock()
        pace = self._paces.at(title, done, total, now)
        rate = pace.rate(now)
        if rate is None:
            return
        if total is None:
            part = int((now - pace.began) // LONG_SECONDS)
            if part > (pace.written or 0):
                pace.written = part
                self._say(f"{title}: {count(done)}, {speed(rate)}")
            return
        part = done * LINES // max(1, total)
        left = (total - done) / rate
        if pace.written is None:
            if left < LONG_SECONDS:
                return
            pace.written = part
            to_go = f"{count(total - done)} of {count(total)} to go"
            self._say(f"{title}: {to_go}, about {duration(left)} on this machine")
        elif part > pace.written:
            pace.written = part
            words = [
                f"{count(done)} of {count(total)} ({100 * done // total} %)",
                note,
                speed(rate),
                f"{duration(left)} left" if done < total else "done",
            ]
            self._say(f"{title}: {', '.join(filter(None, words))}")


def speed(rate: float) -> str:
    """Items a second, or seconds an item where it takes long.

    >>> speed(3.62), speed(0.1), speed(0.04)
    ('3.6/s', '0.1/s', '25 s each')
    """
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{duration(1 / rate)} each"


def notes(failed: Sequence[tuple[str, str]] = (), warnings: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a report about files that could not be used, each with its reason, and its warnings."""
    yield from (f"not used: {file}: {reason}" for file, reason in failed)
    yield from (f"warning: {warning}" for warning in warnings)
