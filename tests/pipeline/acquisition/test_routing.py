"""Which doubt a label settles, and which one asks for a second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from db.tables import QueueItem, RegionScore
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.quantiles import QuantileBins, Quantiles
from pipeline.acquisition.routing import INFORMATION_SHARES, ROUTE_TEXT, UNSURE_SHARES, Limits, Route, routes
from pipeline.steps.select import step
from tests.factories import change, fetch
from tests.pipeline.acquisition.synthetic import make_candidates, make_store


def candidates(entropy: list[float], information: list[float]) -> Candidates:
    found = make_candidates(images=1, rng=np.random.default_rng(0), side=320)
    some = found.where(np.arange(len(found)) < len(entropy))
    return replace(
        some,
        expected_entropy=np.array(entropy, dtype=np.float32),
        mutual_information=np.array(information, dtype=np.float32),
    )


def routed(items: Candidates, *, among: Candidates | None = None) -> Sequence[Route | None]:
    """The routes of some candidates among all, which are read in two parts."""
    everything = among or items
    quantiles: list[Quantiles] = []
    for shares, values in (
        (INFORMATION_SHARES, everything.mutual_information),
        (UNSURE_SHARES, everything.expected_entropy),
    ):
        bins = QuantileBins(shares)
        parts = [] if values is None else np.array_split(values, 2)
        for part in parts:
            bins.count(part)
        quantiles.append(Quantiles(bins))
        for part in parts:
            quantiles[-1].count(part)
    information, entropy = quantiles
    return routes(items, Limits.of(information, entropy))


def test_disagreement_asks_for_a_label_and_ambiguity_for_a_second_opinion() -> None:
    entropy = [0.01 * place for place in range(19)] + [0.9]
    information = [0.001] * 10 + [0.03] * 7 + [0.4, 0.002, 0.03]
    found = candidates(entropy, information)
    kinds = routed(found)
    assert kinds[17] == "label"  # the only one in the highest tenth besides its equals
    assert kinds[18] == "ask"
    assert kinds[0] is None
    assert kinds[5] is None


@pytest.mark.parametrize("seed", range(3))
def test_the_quantiles_are_those_of_all_candidates_and_not_of_the_queue(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 64
    entropy, information = rng.random((2, count)).astype(np.float32)
    found = candidates(entropy.tolist(), information.tolist())
    index = rng.permutation(count)[:20]
    rising_information, rising_entropy = sorted(information.tolist()), sorted(entropy.tolist())

    def at(values: list[float], quantile: float) -> float:
        place = quantile * (count - 1)
        below = int(place)
        return values[below] + (place - below) * (values[min(below + 1, count - 1)] - values[below])

    for row, kind in zip(index.tolist(), routed(found.only(index), among=found), strict=True):
        if information[row] >= at(rising_information, 0.9):
            assert kind == "label"
        elif entropy[row] >= at(rising_entropy, 0.75) and information[row] < at(rising_information, 0.75):
            assert kind == "ask"
        else:
            assert kind is None


def test_samples_that_all_agree_route_nothing() -> None:
    found = candidates([0.1] * 8, [0.0] * 8)
    assert set(routed(found)) == {None}


def test_scores_without_samples_route_nothing() -> None:
    found = make_candidates(images=2, rng=np.random.default_rng(0))
    assert set(routed(found)) == {None}


def test_the_queue_says_what_kind_of_doubt_it_is(tmp_path: Path) -> None:
    store = make_store(tmp_path, budget=180, per_image_cap=None, no_touching=False)
    step.select(store.project, store.database)
    reasons = {(item.image_id, item.region_index): item.reason for item in fetch(store.database, QueueItem)}
    scores = {
        (row.image_id, row.region_index): (row.expected_entropy or 0, row.mutual_information or 0)
        for row in fetch(store.database, RegionScore)
    }
    entropy, information = np.array(list(scores.values())).T
    high, low, unsure = *np.quantile(information, (0.9, 0.75)), np.quantile(entropy, 0.75)
    for place, reason in reasons.items():
        mine_entropy, mine_information = scores[place]
        assert reason.endswith(ROUTE_TEXT["label"]) == (mine_information >= high)
        asks = mine_entropy >= unsure and mine_information < low
        assert reason.endswith(ROUTE_TEXT["ask"]) == asks
    assert sum(reason.endswith(ROUTE_TEXT["label"]) for reason in reasons.values()) == 18


def test_a_run_without_samples_gives_reasons_without_a_kind(tmp_path: Path) -> None:
    store = make_store(tmp_path, strategy="entropy", budget=50)
    change(store.database, RegionScore, expected_entropy=None, mutual_information=None)
    preview = step.select(store.project, store.database, dry_run=True)
    assert not any(words in item.reason for item in preview.items for words in ROUTE_TEXT.values())
