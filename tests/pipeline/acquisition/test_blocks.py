"""A pool that is read in blocks, of which little is kept, gives the queue of one that is held whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.acquisition import selection as selection_module
from pipeline.acquisition import shortlist as shortlist_module
from pipeline.acquisition.budget import class_quotas, queue_budget
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.draws import Draws
from pipeline.acquisition.quantiles import QuantileBins, Quantiles
from pipeline.acquisition.ranking import rank_items
from pipeline.acquisition.reasons import reasons
from pipeline.acquisition.redundancy import Occupancy
from pipeline.acquisition.selection import choose
from pipeline.acquisition.strategies import STRATEGIES, Stride, with_power_noise
from pipeline.config import SelectionConfig
from tests.pipeline.acquisition.synthetic import blocks, make_candidates, whole


@pytest.fixture(scope="module", name="little_memory")
def _little_memory() -> Generator[None]:
    """So little is kept that rules use it up, and so little may wait that every block is thinned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection_module, "OVERSAMPLING", 1)
        patch.setattr(selection_module, "OVERSAMPLING_GROWTH", 2)
        patch.setattr(shortlist_module, "SPARE", 0)
        patch.setattr(shortlist_module, "BUFFER", 0)
        yield


def random_pool(rng: np.random.Generator, *, images: int, groups: int, ties: bool) -> Candidates:
    """Candidates of a few classes; with `ties`, of three different scores."""
    found = make_candidates(images=images, groups=groups, rng=rng, missing=0.3)
    score = np.asarray(found.score)
    return replace(
        found,
        score=np.round(2 * score) / 2 if ties else score,
        expected_entropy=rng.random(len(found)).astype(np.float32),
        mutual_information=np.round(rng.random(len(found)), 1).astype(np.float32),
    )


def from_all(candidates: Candidates, config: SelectionConfig) -> set[tuple[int, bool, int]]:
    """Which candidates a queue holds, whether by the audit, and in which stratum: every order is sorted
    whole, and nothing is forgotten."""
    draws = Draws(seed=config.seed, round_number=1)
    budget = queue_budget(config, float(np.mean(candidates.regions)), len(candidates))
    strategy = STRATEGIES[config.strategy]
    owners = np.unique(candidates.image)
    stride = Stride.over(
        candidates.image_id[owners], candidates.group[owners], candidates.position[owners], budget.selected
    )
    priority = strategy.rank(candidates, draws, stride)
    if config.noise_beta is not None and strategy.takes_noise:
        priority = with_power_noise(priority, candidates, draws, beta=config.noise_beta)

    def numbers(purpose: Any) -> np.ndarray:
        return draws.integers(purpose, candidates.owner, candidates.region_index)

    occupancy = Occupancy(candidates, config)
    audit = np.argsort(numbers("audit"))[: budget.audit].tolist()
    for index in audit:
        occupancy.accept(index)
    orders = {-1: np.lexsort((numbers("overall"), -priority.overall))}
    quotas: dict[int, int] = {}
    if priority.within_class is not None:
        inside = np.lexsort((numbers("within_class"), -priority.within_class))
        classes = candidates.stratum[inside]
        quotas = class_quotas(Counter(classes.tolist()), budget.selected)
        orders |= {name: inside[classes == name] for name in quotas}
    turns = selection_module._in_turn(quotas | {-1: budget.selected - sum(quotas.values())})
    found = {(index, True, -1) for index in audit}
    for stratum in turns + [-1] * len(candidates):
        index = next(occupancy.open_candidates(orders[stratum]), None)
        if index is not None and len(found) < budget.total:
            occupancy.accept(index)
            found.add((index, False, stratum))
    return found


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {"coverage"}))
@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(3, 30),
    groups=st.integers(1, 3),
    budget=st.integers(1, 80),
    per_image_cap=st.sampled_from([None, 0.25, 2.0]),
    no_touching=st.booleans(),
    min_gap=st.integers(0, 5),
    noise_beta=st.sampled_from([None, 2.0]),
    budget_unit=st.sampled_from(["regions", "images"]),
    ties=st.booleans(),
    block=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_blocks_give_the_queue_of_the_whole(
    little_memory, strategy, images, groups, ties, block, seed, budget_unit, budget, **rules
):
    candidates = random_pool(np.random.default_rng(seed), images=images, groups=groups, ties=ties)
    config = SelectionConfig(
        strategy=strategy,
        seed=seed,
        budget_unit=budget_unit,
        budget=budget if budget_unit == "regions" else 1 + budget // 20,
        **rules,
    )
    read = blocks(candidates, block)
    found = choose(read, config, round_number=1)
    at_once = choose(whole(candidates), config, round_number=1)
    for name in ("index", "audit", "stratum"):
        assert getattr(found, name).tolist() == getattr(at_once, name).tolist()
    assert found.inclusion_probability == at_once.inclusion_probability
    words: dict[str, Any] = {"class_names": ["a", "b", "c"], "group_names": ["g", "h", "i"]}
    assert reasons(found, rank_items(read, found), config, **words) == reasons(
        at_once, rank_items(whole(candidates), at_once), config, **words
    )
    held = zip(found.index.tolist(), found.audit.tolist(), found.stratum.tolist(), strict=True)
    assert set(held) == from_all(candidates, config)


def test_ranks_are_the_same_however_often_they_are_counted() -> None:
    rng = np.random.default_rng(4)
    pool = random_pool(rng, images=40, groups=2, ties=False)
    narrow = (0.5 + 0.001 * rng.random(len(pool))).astype(np.float32)  # many values in each bin
    candidates = replace(pool, mutual_information=narrow)
    found = choose(blocks(candidates, 7), SelectionConfig(budget=50), round_number=1)
    first, again = (rank_items(blocks(candidates, 7), found) for _ in range(2))
    assert first.limits is not None
    assert first.limits.high == pytest.approx(np.quantile(narrow.astype(np.float64), 0.9), rel=1e-7)
    assert again.limits == first.limits
    assert (again.overall.tolist(), again.in_class.tolist()) == (
        first.overall.tolist(),
        first.in_class.tolist(),
    )


def test_items_are_the_candidates_that_they_name(little_memory: None) -> None:
    candidates = random_pool(np.random.default_rng(0), images=40, groups=2, ties=False)
    found = choose(blocks(candidates, 7), SelectionConfig(budget=50, min_gap=2), round_number=1)
    assert found.items.owner.tolist() == candidates.owner[found.index].tolist()
    columns = "region_index box predicted_class class_share stratum stratum_share score mutual_information"
    for name in columns.split():
        assert getattr(found.items, name).tolist() == getattr(candidates, name)[found.index].tolist()


def test_what_is_kept_follows_the_budget_and_not_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist_module, "SPARE", 10)
    monkeypatch.setattr(shortlist_module, "BUFFER", 100)
    most: list[int] = []
    for images in (200, 2000):
        candidates = random_pool(np.random.default_rng(1), images=images, groups=3, ties=True)
        found = choose(blocks(candidates, 10), SelectionConfig(budget=20), round_number=1)
        assert found.shortlist.available == len(candidates)
        most.append(len(found.shortlist.candidates))
    assert max(most) <= 4 * 20 + 10 + 3 * (4 * 6 + 10) + 3


def test_when_rules_use_the_kept_ones_up_the_pool_is_read_again(little_memory: None) -> None:
    candidates = random_pool(np.random.default_rng(2), images=30, groups=1, ties=False)
    score = np.asarray(candidates.score).copy()
    score[candidates.image == 4] += 1  # the best are all in one image
    candidates = replace(candidates, score=score)
    readings = 0

    def read():
        nonlocal readings
        readings += 1
        return blocks(candidates, 4)()

    config = SelectionConfig(strategy="entropy", budget=6, per_image_cap=1, audit_fraction=0.0)
    found = choose(read, config, round_number=1)
    assert readings > 1
    assert len(found.index) == 6


def test_a_region_keeps_its_draw_when_the_pool_grows() -> None:
    rng = np.random.default_rng(3)
    large = make_candidates(images=60, rng=rng)
    small = large.where(large.image < 30)
    config = SelectionConfig(budget=100, audit_fraction=1.0, seed=5)
    before, after = (choose(whole(pool), config, round_number=1).index.tolist() for pool in (small, large))
    kept = [index for index in after if index < len(small)]
    assert kept == before[: len(kept)]


@pytest.mark.parametrize("purpose", ["audit", "overall", "turns"])
def test_draws_are_uniform_over_regions_rounds_and_seeds(purpose: Any) -> None:
    image_id, region = np.repeat(np.arange(1, 41), 25), np.tile(np.arange(25, dtype=np.int32), 40)
    drawn = np.array(
        [
            Draws(seed=seed, round_number=number).uniforms(purpose, image_id, region)
            for seed in (0, 1, -3, 2**62)
            for number in (1, 2, 30)
        ]
    )
    assert len(np.unique(drawn)) == drawn.size
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(drawn.mean(axis=0), "norm", args=(0.5, (1 / 12 / len(drawn)) ** 0.5)).pvalue > 1e-3
    neighbours = np.corrcoef(drawn.ravel()[:-1], drawn.ravel()[1:])[0, 1]
    assert abs(neighbours) < 4 / drawn.size**0.5
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 5 / 1000**0.5


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-3, 3, width=32) | st.just(float("nan")), min_size=1, max_size=60),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    parts=st.integers(1, 5),
)
def test_quantiles_from_counts_are_those_of_the_sorted_values(values, shares, parts):
    column = np.array(values, dtype=np.float32)
    bins = QuantileBins(shares)
    for part in np.array_split(column, parts):
        bins.count(part)
    found = Quantiles(bins)
    for part in np.array_split(column, parts):
        found.count(part)
    if np.isnan(column).all():
        assert np.isnan(found.values()).all()
    else:
        expected = np.nanquantile(column.astype(np.float64), shares)
        assert found.values() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
