"""Where annotators differ, and whether the model was in doubt there."""

from __future__ import annotations

import math

from pipeline.evaluation.estimate import Estimate
from pipeline.format import number, percent
from pipeline.report.blocks import Block, Cell, Charts, Section, Table, Text
from pipeline.report.charts import MEASURE_COLORS, Line, line_chart, spoken
from pipeline.report.contents import Contents, SharedFacts
from pipeline.report.svg import Chart, number_axis

MOST_POINTS = 500
"""Of the chart, the most disputed ones, which bounds the size of the file."""
MOST_ROWS = 10


def annotators(contents: Contents) -> list[Section]:
    """The section, or none where no region has two annotators."""
    facts = contents.shared
    if facts is None or not facts.rows:
        return []
    blocks: list[Block] = [
        Text(_relation(measure, found, reason), tone="note") for measure, found, reason in facts.correlations
    ]
    chart = _entropies(facts)
    if chart is not None:
        blocks.append(Charts([chart]))
    blocks += [_people(facts), _disputed(facts)]
    return [
        Section(
            "annotators",
            "Where annotators differ",
            f"{len(facts.rows)} regions of {facts.images} images have two annotators or more. Where people "
            "differ, the model should expect to be in doubt, and more labels do not help.",
            blocks,
        )
    ]


def _relation(measure: str, found: Estimate, reason: str) -> str:
    what = f"Rank correlation of the annotators’ vote entropy with the model’s {spoken(measure)}"
    return f"{what}: not known, {reason}." if reason else f"{what}: {found.text()}."


def _entropies(facts: SharedFacts) -> Chart | None:
    known = [row for row in facts.rows if not math.isnan(row.expected_entropy)][:MOST_POINTS]
    if not known:
        return None
    expected = [row.expected_entropy for row in known]
    votes = [Estimate(row.vote_entropy) for row in known]
    every = len(known) == len(facts.rows)
    return line_chart(
        [Line("region", MEASURE_COLORS["expected_entropy"], expected, votes, kind="points")],
        title="Vote entropy of the annotators over the expected entropy of the model",
        x=number_axis(expected, "expected entropy", low=0),
        y=number_axis([row.vote_entropy for row in known], "vote entropy", low=0),
        note="A point is a region." if every else f"A point is one of {len(known)} regions with scores.",
        legend=False,
    )


def _people(facts: SharedFacts) -> Table:
    rows = [
        [Cell(one.name), Cell(percent(one.agreement, 1)), Cell(str(one.images)), Cell(str(one.pixels))]
        for one in facts.people
    ]
    head = ("annotator", "agreement with all others", "images", "pixels that both have labeled")
    return Table(head, rows, "Each annotator and the others, least agreement first")


def _disputed(facts: SharedFacts) -> Table:
    shown = facts.rows[:MOST_ROWS]
    rows = [
        [
            Cell(row.name, f"{row.queue}, {row.rank}: {row.annotators} annotators"),
            Cell(percent(row.disagreement, 1)),
            Cell(number(row.vote_entropy)),
            Cell(number(row.expected_entropy)),
            Cell(number(row.mutual_information)),
        ]
        for row in shown
    ]
    head = ("region", "disagreement", "vote entropy", "expected entropy", "mutual information")
    return Table(head, rows, f"The {len(shown)} most disputed of {len(facts.rows)} regions")
