"""What the console does with lines that are wider than the terminal."""

from __future__ import annotations

import io

import pytest

from flows.cli.display import IndentingConsole, literal

WORDS = "No. 3 of 1 532 regions by uncertainty, on a boundary, and several samples disagree"


def printed(line: str, *, width: int) -> list[str]:
    output = io.StringIO()
    IndentingConsole(file=output, width=width, emoji=False).print(line)
    return [row.rstrip() for row in output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("before", "column"),
    [
        ("", 0),
        ("warning: ", 0),
        ("      ", 6),
        ("  … and ", 2),
        ("     3  ", 8),
        ("next      ", 10),
        ("[bold]next[/]      ", 10),
        ("  not labeled  ", 15),
        ("a longer name than that  ", 0),
    ],
)
def test_a_wrapped_line_goes_on_below_the_beginning_of_its_text(before: str, column: int) -> None:
    first, *rest = printed(before + WORDS, width=40)
    assert len(rest) >= 2
    assert max(map(len, (first, *rest))) <= 40
    assert {len(row) - len(row.lstrip()) for row in rest} == {column}
    text = before.replace("[bold]", "").replace("[/]", "") + WORDS
    assert " ".join([first.strip(), *map(str.strip, rest)]) == text.strip()


def test_each_line_of_a_text_is_indented_by_itself_and_what_fits_stays_as_it_is() -> None:
    assert printed("images    18 test\n\n   1  a.png  boundary :cat:", width=30) == (
        ["images    18 test", "", "   1  a.png  boundary :cat:"]
    )
    first, *rest = printed(f"first\n      {WORDS}", width=40)
    assert first == "first"
    assert {row[:6] for row in rest} == {" " * 6}


def test_a_narrow_terminal_keeps_its_columns_for_the_text() -> None:
    rows = printed("next      " + WORDS, width=24)
    assert {row[0] for row in rows} != {" "}
    assert " ".join(rows).split() == f"next {WORDS}".split()


def test_text_that_looks_like_markup_is_printed_as_it_is() -> None:
    assert printed(literal("   1  images/[red]/a.png"), width=60) == ["   1  images/[red]/a.png"]
