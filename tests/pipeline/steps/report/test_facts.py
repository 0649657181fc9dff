"""What the page knows of a queue that several annotators have labeled."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipeline.steps.report.facts import read_contents
from tests.factories import ask
from tests.pipeline.shared_queue import SIDE, disputing, filled, make_shared_queue


def test_the_page_knows_who_differs_where_and_what_the_model_expected(tmp_path: Path) -> None:
    shared = make_shared_queue(tmp_path, images=1, expected_entropy=np.array([[0.4, 0.3, 0.2, 0.1]]))
    found = ask(shared.database, read_contents, shared.project, [], None).annotators
    assert found is not None
    assert not found.rows
    masks = [filled(0), disputing(np.array([0.5, 0.25, 0, 0]))]
    for name, mask in zip(("ann", "bo"), masks, strict=True):
        shared.label(1, mask, by=name)
    shared.settle(1, masks)
    facts = ask(shared.database, read_contents, shared.project, [], None).annotators
    assert facts is not None
    assert facts.images == 1
    pixels = SIDE * SIDE
    assert [(one.annotator, one.pixels, one.agreement) for one in facts.against_others] == [
        ("ann", pixels, 1 - 0.75 / 4),
        ("bo", pixels, 1 - 0.75 / 4),
    ]
    assert [(row.rank, row.disagreement) for row in facts.rows] == [(1, 0.5), (2, 0.25), (3, 0), (4, 0)]
    expected = [row.expected_entropy or math.nan for row in facts.rows]
    np.testing.assert_allclose(expected, [0.4, 0.3, 0.2, 0.1], rtol=1e-6)
    first = facts.correlations[0]
    assert (first.measure, first.value) == ("expected_entropy", None)
    assert first.reason is not None
    assert first.reason.startswith("too few")
