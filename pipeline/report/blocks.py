"""The parts of a page: sections of blocks. The template lays out each kind of block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.evaluation.estimate import Estimate
from pipeline.format import bounds, number
from pipeline.report.svg import Chart


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `detail` is smaller, `color` shows a swatch, `strong` marks the best."""

    text: str
    detail: str = ""
    color: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` is `plain`, `next`, `good`, `warn`, `bad` or `note`; backticks mark
    code."""

    words: str
    tone: str = "plain"
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    words: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Verdicts:
    """Sentences that each hold or fail."""

    items: Sequence[tuple[bool, str]]
    kind: ClassVar[str] = "verdicts"


@dataclass(frozen=True)
class Charts:
    """Drawings beside each other: in pairs, in threes, or as many as fit (`small`)."""

    items: Sequence[Chart]
    layout: Literal["pairs", "thirds", "small"] = "pairs"
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Table:
    """Rows of cells; all columns but the first `words` ones hold numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    words: int = 1
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Tiles:
    """Figures at a glance: a name, a value, a detail."""

    items: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Facts:
    """Named facts under a name and a tag: a card for each model."""

    items: Sequence[tuple[str, str, Sequence[tuple[str, str]], str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Missing:
    """A result that is missing, and the command that computes it."""

    words: str
    command: str
    kind: ClassVar[str] = "missing"


@dataclass(frozen=True)
class Layer:
    """One picture of a region, as a data URI."""

    name: str
    source: str
    alt: str


@dataclass(frozen=True)
class Tile:
    """A region in pictures: first the image, then the layers over it; `where` is the whole image, shown small
    in `corner` (`right bottom`), where the region is not; without a corner the region fills the picture."""

    heading: str
    tags: Sequence[str]
    reason: str
    where: Layer
    layers: Sequence[Layer]
    width: int
    height: int
    corner: str = "right bottom"


@dataclass(frozen=True)
class Scale:
    """The colours of a measure, from `low` to `high`; as a CSS gradient, or a picture of two directions."""

    name: str
    low: str
    high: str
    picture: str


@dataclass(frozen=True)
class Gallery:
    """Regions with a slider each; `layers` are the names to choose from."""

    name: str
    tiles: Sequence[Tile]
    layers: Sequence[str]
    scales: Sequence[Scale]
    classes: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "gallery"


Block = Text | Heading | Verdicts | Charts | Table | Tiles | Facts | Missing | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page. `question` is a line above the title; `fresh` starts a new page in print."""

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]
    question: str = ""
    fresh: bool = False


def cells(*values: Cell | Estimate | str | int) -> list[Cell]:
    """A row of a table; an estimate comes with its interval."""
    return [
        value
        if isinstance(value, Cell)
        else figure(value)
        if isinstance(value, Estimate)
        else Cell(str(value))
        for value in values
    ]


def figure(value: Estimate, *, digits: int = 3, strong: bool = False) -> Cell:
    """A number and its interval as a cell.

    >>> figure(Estimate(0.8561, 0.8349, 0.8770))
    Cell(text='0.856', detail='[0.835, 0.877]', color='', strong=False)
    """
    return Cell(
        number(value.value, digits), bounds(value.low, value.high, digits), strong=strong and value.defined
    )
