"""Progress as lines of a log."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pipeline.progress import TILES, LoggedProgress, apart_from_tiles
from tests.recorded_progress import RecordedProgress


def lines_of(calls: Iterable[tuple[float, int, int | None, str]]) -> list[str]:
    """The lines of a step that is called at these seconds."""
    now = 0.0
    lines: list[str] = []
    progress = LoggedProgress(lines.append, clock=lambda: now)
    for at, done, total, note in calls:
        now = at
        progress("train r01", done, total, note)
    return lines


def test_tiles_of_a_large_image_are_not_counted_as_images() -> None:
    images, tiles, alone = RecordedProgress(), RecordedProgress(), RecordedProgress()
    for progress in (apart_from_tiles(images, tiles=tiles), apart_from_tiles(alone)):
        progress("score", 1, 3)
        progress(TILES, 40, 96)
        progress("score", 2, 3, "note")
    assert images.calls == alone.calls == {"score": [(1, 3), (2, 3)]}
    assert tiles.calls == {TILES: [(40, 96)]}


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


@pytest.mark.parametrize(("ended", "first"), [(8, 1), (4, 4)])
def test_the_same_step_in_the_next_round_has_a_time_of_its_own(ended: int, first: int) -> None:
    before = [(0.1 * done, done, ended, "") for done in range(1, ended + 1)]
    next_round = [(900 + 2.0 * index, first + index, 40, "") for index in range(41 - first)]
    lines = lines_of([*before, *next_round])
    assert lines[0] == f"train r01: {37 - first} of 40 to go, about {74 - 2 * first} s on this machine"
    assert lines[-1] == "train r01: 40 of 40 (100 %), 0.5/s, done"


def test_a_step_that_names_its_number_at_its_end_only_is_not_announced() -> None:
    assert lines_of([(0.0, 0, None, ""), (60.0, 20, 20, "")]) == []


def test_a_step_that_goes_on_shortly_before_its_end_is_not_logged() -> None:
    assert lines_of([(1.0 * index, 1985 + index, 2000, "") for index in range(16)]) == []


def test_a_slow_step_says_how_long_each_item_takes() -> None:
    lines = lines_of([(25.0 * index, index + 1, 40, "") for index in range(7)])
    assert lines[-1] == "train r01: 6 of 40 (15 %), 25 s each, 14 min left"
