"""Files that could not be used, grouped by the reason."""

from __future__ import annotations

import pytest

from db.tables import Failure
from pipeline.summaries.failures import grouped_failures


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["frame_001", "frame_002"], "{name}.png is truncated after 17 of 40 rows"),
        (["1", "2"], "the mask has 1 channel, but the classes have 3"),
        (["a", "e"], "an image cannot be read"),
    ],
)
def test_reasons_that_differ_in_the_file_s_name_only_are_one(names: list[str], reason: str) -> None:
    failures = [
        Failure(step="ingest", subject=f"images/{name}.png", reason=reason.format(name=name))
        for name in names
    ]
    other = Failure(step="ingest", subject="z.png", reason="no image")
    groups = grouped_failures([other, *failures])
    assert [group.files for group in groups] == [2, 1]
    assert groups[0].examples == tuple(failure.subject for failure in failures)
    assert groups[0].reason == failures[0].reason
