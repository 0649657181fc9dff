"""Charts put numbers where their axes say; the positions are read back from the SVG."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.estimate import Estimate
from pipeline.report.charts import (
    Bin,
    DotRow,
    Line,
    bar_chart,
    dot_chart,
    histogram_chart,
    line_chart,
    reliability_chart,
)
from pipeline.report.svg import Plot, named_axis, number_axis

NOTHING = Estimate(math.nan, math.nan, math.nan)


def around(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1)


def numbers(svg: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(float(part) for part in found) for found in re.findall(pattern, svg)]


@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=5),
    st.sampled_from([3, 5]),
)
def test_an_axis_holds_every_value_between_round_ticks(values: list[float], intervals: int) -> None:
    axis = number_axis(values, intervals=intervals)
    span = axis.high - axis.low
    assert axis.low <= min(values) + 1e-6 * span
    assert axis.high >= max(values) - 1e-6 * span
    positions = [position for position, _ in axis.ticks]
    assert 2 <= len(positions) <= intervals + 2
    assert np.allclose(np.diff(positions), np.diff(positions)[0])
    assert len({text for _, text in axis.ticks}) == len(positions)


def test_a_dot_lies_between_the_ends_of_its_whisker() -> None:
    x, y = named_axis(["a", "b", "c"]), number_axis([0, 1], low=0, high=1)
    chart = line_chart([Line("mIoU", "s0", [0, 1, 2], [around(0.5)] * 3)], title="t", x=x, y=y)
    dots = numbers(chart.svg, r'cx="([\d.]+)" cy="([\d.]+)"')
    whiskers = numbers(chart.svg, r'class="whisker s0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"')
    assert len(dots) == len(whiskers) == 3
    for (cx, cy), (x1, y1, x2, y2) in zip(dots, whiskers, strict=True):
        assert cx == x1 == x2
        assert y2 < cy < y1
        assert cy - y2 == pytest.approx(y1 - cy, abs=0.02)


def test_a_line_is_broken_where_a_number_is_not_defined() -> None:
    plot = Plot(named_axis(list("abcde")), number_axis([0, 1]))
    plot.line([0, 1, 2, 3, 4], [0.1, 0.2, math.nan, 0.4, 0.5], "s0")
    lines = re.findall(r'<polyline class="line s0" points="([^"]+)"', plot.svg("x"))
    assert [len(line.split()) for line in lines] == [2, 2]


def test_values_without_an_order_are_not_joined() -> None:
    x, y = named_axis(["uniform", "gaussian"]), number_axis([0, 1])
    line = Line("entropy", "s0", [0, 1], [around(0.4), around(0.6)], kind="points")
    svg = line_chart([line], title="t", x=x, y=y).svg
    assert "polyline" not in svg
    assert "polygon" not in svg
    assert svg.count("<circle") == 2


def test_a_dot_chart_names_only_the_series_that_it_shows() -> None:
    rows = [DotRow("entropy", {"none": around(0.9), "tta": NOTHING}), DotRow("energy", {"none": around(0.8)})]
    chart = dot_chart(
        rows, title="t", colors={"none": "s5", "mc_dropout": "s0", "tta": "s3"}, x=number_axis([0.5, 1])
    )
    assert [name for _, name in chart.legend] == ["one pass", "TTA"]
    dots = numbers(chart.svg, r'cx="([\d.]+)" cy="([\d.]+)"')
    assert len(dots) == 2  # nothing is drawn where there is no number
    assert dots[0][0] > dots[1][0]  # 0.9 lies to the right of 0.8
    assert dots[0][1] < dots[1][1]  # and the first row lies on top


def test_bars_are_as_long_as_their_counts() -> None:
    svg = bar_chart({"car": 30, "sky": 10}, title="t").svg
    car, sky = (float(width) for width in re.findall(r'width="([\d.]+)" height="[\d.]+"><title>', svg))
    assert car == pytest.approx(3 * sky, abs=0.05)


def test_distributions_of_different_sizes_are_compared_by_shares() -> None:
    chart = histogram_chart(
        [0, 1, 2],
        {"few": [1, 3], "many": [100, 300]},
        title="t",
        label="x",
        colors={"few": "s0", "many": "s5"},
    )
    few, many = re.findall(r'<polyline class="line \w+" points="([^"]+)"', chart.svg)
    assert few == many


def test_a_bin_of_a_handful_of_pixels_has_no_point() -> None:
    bins = [Bin(0.2, around(0.3), 1e-6), Bin(0.9, around(0.8), 0.999)]
    svg = reliability_chart(bins, title="t", color="s0", axis="softmax score").svg
    assert svg.count("<circle") == 1


def test_words_from_outside_are_escaped() -> None:
    svg = bar_chart({"<b>&": 1}, title='"><script>').svg
    assert "&lt;b&gt;&amp;" in svg
    assert "<b>" not in svg
    assert "<script>" not in svg


def test_a_chart_without_rows_is_drawn_empty() -> None:
    x = number_axis([0, 1], low=0, high=1)
    assert "<svg" in dot_chart([], title="t", colors={"a": "s0"}, x=x).svg
