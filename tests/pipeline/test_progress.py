"""Progress as lines of a log."""

from __future__ import annotations

from pipeline.progress import LoggedProgress


def lines_of(calls: list[tuple[float, int, int | None, str]]) -> list[str]:
    """The lines of a step that is called at these seconds."""
    now = 0.0
    lines: list[str] = []
    progress = LoggedProgress(lines.append, clock=lambda: now)
    for at, done, total, note in calls:
        now = at
        progress("train r01", done, total, note)
    return lines


def test_a_long_step_says_first_how_long_it_takes_and_then_each_five_percent() -> None:
    lines = lines_of([(30 + 2.0 * index, index + 1, 2000, "loss 0.5, rate 1.0e-03") for index in range(2000)])
    assert lines[0] == "train r01: 1 996 of 2 000 to go, about 67 min on this machine"
    assert lines[1] == "train r01: 100 of 2 000 (5 %), loss 0.5, rate 1.0e-03, 0.5/s, 63 min left"
    assert lines[-1] == "train r01: 2 000 of 2 000 (100 %), loss 0.5, rate 1.0e-03, 0.5/s, done"
    assert len(lines) == 1 + 20


def test_a_step_that_goes_on_after_a_kill_counts_its_own_time_only() -> None:
    lines = lines_of([(2.0 * index, 1501 + index, 2000, "") for index in range(500)])
    assert lines[0] == "train r01: 496 of 2 000 to go, about 17 min on this machine"
    assert lines[1] == "train r01: 1 600 of 2 000 (80 %), 0.5/s, 13 min left"


def test_a_step_under_twenty_seconds_is_not_logged() -> None:
    assert lines_of([(0.1 * index, index + 1, 150, "") for index in range(150)]) == []


def test_a_step_whose_end_is_not_known_is_logged_every_twenty_seconds() -> None:
    lines = lines_of([(1.0 * index, 10 * index, None, "") for index in range(50)])
    assert lines == ["train r01: 200, 10.0/s", "train r01: 400, 10.0/s"]
