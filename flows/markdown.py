"""Markdown that shows the text of users as it is.

Class names, file names and reasons come from users: no character in them may become a tag, a link, a cell's
end or a heading. Both interfaces of Prefect respect a backslash before punctuation, also inside a table; the
older one ignores numeric entities.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~&$])")
COMMAND = re.compile(r"(`[\w .:/=-]+`)")
WORD_JOINER = "\u2060"


class Ready(str):
    """Markdown that is already escaped."""


def plain(text: object) -> str:
    """A text on one line, escaped so that nothing in it is Markdown or HTML.

    >>> print(plain("a|b <img src=x> `c`"))
    a\\|b \\<img src=x\\> \\`c\\`
    """
    return SPECIAL.sub(r"\\\1", _one_line(text))


def prose(text: object) -> Ready:
    """A message of segcurate, escaped except for commands between backticks.

    >>> print(prose("Run `segcurate score`; <b> is a class, `<i>` too."))
    Run `segcurate score`; \\<b\\> is a class, \\`\\<i\\>\\` too.
    """
    parts = COMMAND.split(_one_line(text))
    return Ready("".join(part if index % 2 else plain(part) for index, part in enumerate(parts)))


def code(text: object) -> str:
    """A text as inline code, to be copied as it is. Not for the cells of a table.

    >>> code("segcurate train"), code("a`b")
    ('`segcurate train`', '`` a`b ``')
    """
    line = _one_line(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if longest else ""
    return f"{fence}{room}{line}{room}{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts, which are escaped here unless they are `Ready`."""
    ruled = [columns, [Ready("---")] * len(columns), *rows]
    cells = ([cell if isinstance(cell, Ready) else plain(cell) for cell in row] for row in ruled)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def picture(words: str, png: bytes) -> str:
    """A picture as a data URI. `words` describe it for a screen reader."""
    return f"![{plain(words)}](data:image/png;base64,{base64.b64encode(png).decode()})"


def harmless(text: object) -> str:
    """A text for the cell of a table artifact, with an invisible character inside each tag and link: the
    older interface reads the cell as Markdown, and the newer one shows it as it is.

    >>> harmless("a_b.png") == "a_b.png", harmless("<b>") == "<b>"
    (True, False)
    """
    return _one_line(text).replace("<", "<" + WORD_JOINER).replace("](", "]" + WORD_JOINER + "(")


def _one_line(text: object) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
