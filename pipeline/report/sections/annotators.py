"""Where annotators differ, and whether the model was uncertain there."""

from __future__ import annotations

from pathlib import Path

from pipeline.evaluation.estimate import Estimate
from pipeline.format import agree, counted, interval, number, out_of, percent
from pipeline.report.blocks import Block, Cell, Charts, Section, Table, Text, cells
from pipeline.report.charts import MEASURE_COLORS, Line, line_chart, spoken
from pipeline.report.contents import Contents
from pipeline.report.svg import Chart, number_axis
from pipeline.summaries.annotators import AnnotatorReport, RankCorrelation

MOST_POINTS = 500
"""Points of the chart, the most disputed regions first; this bounds the size of the file."""
MOST_ROWS = 10


def annotators(contents: Contents) -> list[Section]:
    """The section, or none where no region has two annotators."""
    facts = contents.annotators
    if facts is None or not facts.rows:
        return []
    blocks: list[Block] = [Text(_relation(row), tone="note") for row in facts.correlations]
    chart = _entropies(facts)
    if chart is not None:
        blocks.append(Charts([chart]))
    blocks += [_agreement(facts), _disputed(facts)]
    return [
        Section(
            "annotators",
            "Where annotators differ",
            f"{counted(len(facts.rows), 'region')} of {counted(facts.images, 'image')} "
            f"{agree(len(facts.rows), 'has', 'have')} two annotators or more. Where people "
            "differ, the model should be uncertain too, and more labels do not help.",
            blocks,
        )
    ]


def _relation(row: RankCorrelation) -> str:
    value = f"not known, {row.reason}" if row.reason else interval(row.value, row.low, row.high)
    return (
        f"Rank correlation of the annotators’ vote entropy with the model’s {spoken(row.measure)}: {value}."
    )


def _entropies(facts: AnnotatorReport) -> Chart | None:
    known = [
        (row.expected_entropy, Estimate(row.vote_entropy))
        for row in facts.rows
        if row.expected_entropy is not None
    ][:MOST_POINTS]
    if not known:
        return None
    expected, votes = zip(*known, strict=True)
    every = len(known) == len(facts.rows)
    return line_chart(
        [Line("region", MEASURE_COLORS["expected_entropy"], expected, votes, kind="points")],
        title="Vote entropy of the annotators over the expected entropy of the model",
        x=number_axis(expected, "expected entropy", low=0),
        y=number_axis([vote.value for vote in votes], "vote entropy", low=0),
        note="A point is a region."
        if every
        else f"A point is one of {counted(len(known), 'region')} with scores.",
        legend=False,
    )


def _agreement(facts: AnnotatorReport) -> Table:
    rows = [
        cells(pair.annotator, percent(pair.agreement, 1), pair.images, pair.pixels)
        for pair in facts.against_others
    ]
    head = ("annotator", "agreement with all others", "images", "pixels that both have labeled")
    return Table(head, rows, "Each annotator and the others, least agreement first")


def _disputed(facts: AnnotatorReport) -> Table:
    shown = facts.rows[:MOST_ROWS]
    rows = [
        cells(
            Cell(Path(row.uri).name, f"{row.queue}, {row.rank}: {row.annotators} annotators"),
            percent(row.disagreement, 1),
            *map(number, (row.vote_entropy, row.expected_entropy, row.mutual_information)),
        )
        for row in shown
    ]
    head = ("region", "disagreement", "vote entropy", "expected entropy", "mutual information")
    return Table(head, rows, f"The {out_of(len(shown), len(facts.rows), 'region')} that are disputed most")
