"""Numbers as text: an estimate, a value, a share, counts and a line of CSV; and the name of a calibrated
softmax. NaN and None are values that are not defined."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence

MISSING = "–"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet may run."""
UNIT = "independent unit"


def interval(
    value: float | None, low: float | None, high: float | None, digits: int = 3, sign: str = ""
) -> str:
    """A value with its interval, in a sentence or a table; `sign="+"` writes the sign of positive values.

    >>> interval(0.5, 0.41, 0.592), interval(0.5, None, None), interval(None, None, None)
    ('0.500 [0.410, 0.592]', '0.500 (no interval)', 'not defined')
    >>> interval(0.02, -0.01, 0.05, digits=2, sign="+")
    '+0.02 [-0.01, +0.05]'
    """
    if undefined(value):
        return "not defined"
    return f"{_rounded(value, digits):{sign}.{digits}f} {bounds(low, high, digits, sign) or '(no interval)'}"


def bounds(low: float | None, high: float | None, digits: int = 3, sign: str = "") -> str:
    """The two ends of an interval; empty where there is none.

    >>> bounds(0.41, 0.592), bounds(-0.0001, 0.0), bounds(None, None)
    ('[0.410, 0.592]', '[0.000, 0.000]', '')
    """
    if undefined(low) or undefined(high):
        return ""
    ends = (f"{_rounded(end, digits):{sign}.{digits}f}" for end in (low, high))
    return f"[{', '.join(ends)}]"


def _rounded(value: float | None, digits: int) -> float:
    """A value with so many digits; zero has no sign."""
    return round(value or 0.0, digits) + 0.0


def number(value: float | None, digits: int = 3) -> str:
    """A value without an interval.

    >>> number(0.12345), number(12.0, digits=1), number(None), number(math.nan)
    ('0.123', '12.0', '–', '–')
    """
    return MISSING if undefined(value) else f"{value:.{digits}f}"


def percent(share: float | None, digits: int | None = None) -> str:
    """A share in per cent, with `digits` after the point; by default with two significant digits below ten
    per cent, and without decimals above.

    >>> percent(0.00421), percent(0.25), percent(1.0), percent(1e-6), percent(0.9964, digits=1), percent(None)
    ('0.42 %', '25 %', '100 %', '0.0001 %', '99.6 %', '–')
    """
    if share is None or math.isnan(share):
        return MISSING
    value = 100 * share
    if digits is not None or value >= 9.95:
        return f"{value:.{digits or 0}f} %"
    return f"{float(f'{value:.2g}'):.10f}".rstrip("0").rstrip(".") + " %"


def count(number: int) -> str:
    """A whole number with a space between thousands.

    >>> count(17616)
    '17 616'
    """
    return f"{number:,}".replace(",", " ")


def counted(number: int, thing: str) -> str:
    """How many of a thing there are, in the singular or the plural.

    >>> counted(1, "model"), counted(1200, "image"), counted(2, "strategy")
    ('1 model', '1 200 images', '2 strategies')
    """
    if number != 1:
        thing = re.sub("(?<=[^aeiou])y$", "ie", thing) + "s"
    return f"{count(number)} {thing}"


def out_of(part: int, total: int, thing: str) -> str:
    """A part of several things.

    >>> out_of(1, 1, "image"), out_of(3, 1200, "image")
    ('1 of 1 image', '3 of 1 200 images')
    """
    return f"{count(part)} of {counted(total, thing)}"


def none_can(total: int, thing: str, what: str) -> str:
    """That something can be done with none of several things.

    >>> none_can(3, "file", "be read"), none_can(1, "file of the queue", "be read")
    ('None of the 3 files can be read', 'The only file of the queue cannot be read')
    >>> none_can(2, "image of the queue", "be read")
    'None of the 2 images of the queue can be read'
    """
    if total == 1:
        return f"The only {thing} cannot {what}"
    noun, of, rest = thing.partition(" of ")
    return f"None of the {count(total)} {noun}s{of}{rest} can {what}"


def agree(number: int, one: str, many: str) -> str:
    """The form of a verb that goes with a number of things.

    >>> agree(1, "waits", "wait"), agree(3, "waits", "wait")
    ('waits', 'wait')
    """
    return one if number == 1 else many


def evidence(images: int, units: int | None) -> str:
    """What stands behind an interval: images, and how many independent units they make; None for an interval
    that was stored without them.

    >>> evidence(40, 5), evidence(1, 1), evidence(40, None)
    ('40 images in 5 independent units', '1 image in 1 independent unit', '40 images')
    """
    known = ((images, "image"), (units, UNIT))
    return " in ".join(counted(number, thing) for number, thing in known if number is not None)


def few_units(images: int, units: int) -> str:
    """What few independent units mean for the intervals, with the remedy.

    >>> few_units(40, 5)
    '40 images in 5 independent units: the intervals are rough.'
    """
    if units > 1:
        return f"{evidence(images, units)}: the intervals are rough."
    return (
        f"{evidence(images, units)}: there are no intervals. Hold out more images or groups, name groups "
        "with `data.group_regex`, or set `data.independent: true` where images do not resemble their "
        "neighbours."
    )


def split_name(split: str, version: int) -> str:
    """A held-out split with its version, from the second on.

    >>> split_name("test", 1), split_name("test", 2)
    ('test', 'test (version 2)')
    """
    return split if version < 2 else f"{split} (version {version})"


def counts(parts: Mapping[str, int]) -> str:
    """Named counts in their order.

    >>> counts({"queued": 3, "labeled": 2}), counts({})
    ('3 queued, 2 labeled', 'nothing')
    """
    return ", ".join(f"{count(number)} {name}" for name, number in parts.items()) or "nothing"


SPLIT_WORDS = {"guard": "kept apart"}
"""Splits whose name is not said to people: `guard` images are neighbours of held-out ones."""


def split_counts(images: Mapping[str, int]) -> str:
    """Images by split. Those that are too similar to held-out images to be in any split are `kept apart`.

    >>> split_counts({"test": 30, "guard": 12, "pool": 52})
    '12 kept apart, 52 pool, 30 test'
    """
    return counts({SPLIT_WORDS.get(name, name): number for name, number in sorted(images.items())})


SLICE_WORDS = {"selected": "by the strategy", "audit": "at random, as a check", "held_out": "at random"}
"""How the items of a queue's slices were chosen."""


def named_slices(parts: Mapping[str, int]) -> dict[str, int]:
    """The items of a queue by how they were chosen.

    >>> named_slices({"selected": 18, "audit": 2})
    {'by the strategy': 18, 'at random, as a check': 2}
    """
    return {SLICE_WORDS.get(name, name): number for name, number in parts.items()}


def largest(parts: Mapping[str, int], most: int) -> dict[str, int]:
    """The `most` largest of named counts, and the rest together.

    >>> largest({"a": 1, "b": 5, "c": 3, "d": 1}, 2)
    {'b': 5, 'c': 3, '2 others': 2}
    """
    ordered = sorted(parts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown, rest = dict(ordered[:most]), ordered[most:]
    return shown | ({f"{len(rest)} others": sum(number for _, number in rest)} if rest else {})


def short_count(number: int) -> str:
    """A large whole number in thousands, millions or billions, with a digit after the point.

    >>> short_count(1_234_567), short_count(45_600), short_count(999)
    ('1.2 M', '45.6 k', '999')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if round(number / size, 4) >= 1:
            return f"{number / size:.1f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """A time, with as much precision as an estimate has.

    >>> duration(42.4), duration(200), duration(6000), duration(200_000)
    ('42 s', '3 min', '1 h 40 min', '56 h')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 600 else f"{round(minutes / 60)} h"


def confidence_name(passed: bool) -> str:
    """The name of a calibrated softmax, depending on whether its calibrator has a passing report.

    >>> confidence_name(False), confidence_name(True)
    ('softmax score', 'probability')
    """
    return "probability" if passed else "softmax score"


STATISTIC_WORDS = {"mean": "brightness", "std": "contrast", "min": "darkest value", "max": "brightest value"}
"""Statistics of the pixels of an image, see `pipeline.data.input_range`."""


def statistic_name(statistic: str, channel: int, channels: int | None) -> str:
    """A statistic of one channel of an image; the channels of an image of three are red, green and blue.

    >>> statistic_name("std", 2, 3), statistic_name("max", 0, 1), statistic_name("mean", 3, 5)
    ('contrast of blue', 'brightest value', 'brightness of channel 4')
    """
    words = STATISTIC_WORDS[statistic]
    if channels == 1:
        return words
    return f"{words} of {('red', 'green', 'blue')[channel] if channels == 3 else f'channel {channel + 1}'}"


def undefined(value: float | None) -> bool:
    """Whether a value is NaN or None.

    >>> undefined(None), undefined(math.nan), undefined(0.0)
    (True, True, False)
    """
    return value is None or math.isnan(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of columns as wide as they need to be.

    >>> list(table(["a", "b"], [["long", "1"]]))
    ['  a     b', '  long  1']
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def csv_line(values: Sequence[object]) -> str:
    r"""A line of CSV. A text that a spreadsheet would run as a formula begins with an apostrophe.

    >>> csv_line(["=1+1", "a,b", -1.5, None])
    '\'=1+1,"a,b",-1.5,\n'
    """
    cells = [
        f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value for value in values
    ]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()
