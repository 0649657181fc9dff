"""Confident but disagreeing: which regions are, and in what order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, update

from db.tables import RegionScore, ScoringRun
from pipeline.errors import UserError
from pipeline.steps.disagreements import disagreements
from pipeline.uncertainty.disagreement import Disagreement, RegionBlock, confident_but_disagreeing
from tests.factories import change
from tests.pipeline.acquisition.synthetic import Store, make_store


def entropy_of(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p) / math.log(len(probabilities))


def of_samples(samples: list[list[float]]) -> tuple[float, float, float]:
    """Expected entropy, mutual information and variation ratio of one pixel, written out."""
    mean = [sum(column) / len(samples) for column in zip(*samples, strict=True)]
    expected = sum(entropy_of(*sample) for sample in samples) / len(samples)
    votes = [max(range(len(sample)), key=sample.__getitem__) for sample in samples]
    against = 1 - max(votes.count(name) for name in votes) / len(votes)
    return expected, entropy_of(*mean) - expected, against


def strongest(
    entropy: np.ndarray, information: np.ndarray, votes: np.ndarray | None, *, limit: int = 1000
) -> Disagreement:
    """Of regions that are read in blocks of 7, each an image of its own."""
    unknown = np.full(len(entropy), np.nan) if votes is None else votes
    measures = [column.astype(np.float32) for column in (entropy, information, unknown)]
    columns = [np.arange(len(entropy)), np.zeros(len(entropy), dtype=np.int64), *measures]

    def read() -> Iterator[RegionBlock]:
        for start in range(0, len(entropy), 7):
            yield RegionBlock(*(column[start : start + 7] for column in columns))

    found = confident_but_disagreeing(read, limit=limit)
    assert found is not None
    assert found.regions == len(entropy)
    return found


def rows_of(found: Disagreement) -> list[int]:
    return [image_id for image_id, _ in found.strongest]


def test_sure_samples_that_contradict_each_other_are_found_and_unsure_or_agreeing_ones_are_not() -> None:
    sure, other, unsure = [0.97, 0.02, 0.01], [0.02, 0.97, 0.01], [0.4, 0.35, 0.25]
    pixels = {
        "agree": [sure] * 10,
        "contradict": [sure] * 6 + [other] * 4,
        "contradict less": [sure] * 8 + [other] * 2,
        "unsure": [unsure] * 10,
        "unsure and wavering": [unsure] * 5 + [[0.25, 0.35, 0.4]] * 5,
    }
    names = list(pixels)
    entropy, information, votes = np.array([of_samples(samples) for samples in pixels.values()], np.float32).T
    found = strongest(entropy, information, votes)
    assert [names[row] for row in rows_of(found)] == ["contradict", "contradict less"]
    assert found.most_entropy == np.median(entropy)
    assert found.least_information == np.median(information)


@pytest.mark.parametrize("seed", range(3))
def test_every_region_that_meets_the_definition_comes_in_the_order_of_the_votes(seed: int) -> None:
    entropy, information, votes = np.random.default_rng(seed).random((3, 101), dtype=np.float32)
    votes = 0.05 + 0.95 * votes
    votes[::5] = votes[0]  # equal votes: the order of mutual information
    found = strongest(entropy, information, votes)
    sorted_entropy, sorted_information = sorted(entropy), sorted(information)
    expected = [
        row
        for row in range(101)
        if entropy[row] <= sorted_entropy[50] and information[row] >= sorted_information[50]
    ]
    by_votes = sorted(expected, key=lambda row: (-votes[row], -information[row]))
    assert rows_of(found) == by_votes
    assert found.matching == len(expected)
    assert rows_of(strongest(entropy, information, votes, limit=3)) == by_votes[:3]
    by_information = sorted(expected, key=lambda row: -information[row])
    assert rows_of(strongest(entropy, information, None)) == by_information


def test_votes_that_hardly_differ_are_no_disagreement_whatever_the_median_is() -> None:
    entropy, information = np.full(9, 0.1), np.linspace(0.001, 0.004, 9)
    assert strongest(entropy, information, np.linspace(0.001, 0.004, 9)).matching == 0
    assert strongest(entropy, information, None).matching == 0
    assert strongest(entropy, information, np.linspace(0.001, 0.04, 9)).matching == 5
    assert strongest(entropy, 10 * information, None).matching == 5


def test_samples_that_never_disagree_give_nothing() -> None:
    assert strongest(np.full(5, 0.1), np.zeros(5), None).strongest == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def test_the_list_names_image_box_class_and_outline_of_the_strongest_cases(store: Store) -> None:
    image = store.image_ids[3]
    with store.database.session() as session:
        session.execute(update(RegionScore).values(expected_entropy=0.4, mutual_information=0.01))
        session.execute(update(RegionScore).values(variation_ratio=0.05))
        for index, votes in ((4, 0.3), (7, 0.6)):
            mine = (RegionScore.image_id == image, RegionScore.region_index == index)
            values = {"expected_entropy": 0.05, "mutual_information": 0.2, "variation_ratio": votes}
            session.execute(update(RegionScore).where(*mine).values(**values))
        mine = (RegionScore.image_id == image, RegionScore.region_index == 7)
        session.execute(update(RegionScore).where(*mine).values(predicted_class=2, outline="021O"))
    report = disagreements(store.project, store.database, limit=2)
    assert (report.model, report.result.regions, len(report.rows)) == ("r01", 180, 2)
    first, second = report.rows
    assert (first.image_id, first.uri, first.region_index) == (image, "images/0003.png", 7)
    assert ((first.x, first.y, first.w, first.h), first.outline) == ((32, 64, 32, 32), "021O")
    assert report.class_names[first.predicted_class] == "sky"
    assert first.variation_ratio == pytest.approx(0.6)
    assert (second.region_index, second.outline) == (4, None)
    words = list(report.lines())
    assert "r01" in words[0]
    assert "images/0003.png (x 32, y 64, w 32, h 32): mostly sky, 60 % of votes against" in words[1]
    assert len(words) == 3


def test_scores_without_votes_are_ranked_by_mutual_information(store: Store) -> None:
    rows = disagreements(store.project, store.database, limit=50).rows
    assert len(rows) > 10
    assert all(row.variation_ratio is None for row in rows)
    information = [row.mutual_information or 0 for row in rows]
    assert information == sorted(information, reverse=True)


def test_without_samples_or_without_a_run_it_says_what_to_do(store: Store) -> None:
    change(store.database, RegionScore, expected_entropy=None, mutual_information=None)
    with pytest.raises(UserError, match="sampler: mc_dropout"):
        disagreements(store.project, store.database)
    with store.database.session() as session:
        session.execute(delete(RegionScore))
        session.execute(update(ScoringRun).values(finished_at=None))
    with pytest.raises(UserError, match="segcurate score"):
        disagreements(store.project, store.database)
