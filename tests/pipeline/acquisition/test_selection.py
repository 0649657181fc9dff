"""The numbers of a selection: strategies, noise, redundancy, budgets, audit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.acquisition.budget import class_quotas, queue_budget
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.exclusion import taken
from pipeline.acquisition.redundancy import touching
from pipeline.acquisition.selection import NO_STRATUM, Selection, choose
from pipeline.acquisition.strategies import STRATEGIES, perturbed
from pipeline.config import SelectionConfig
from tests.pipeline.acquisition.synthetic import embedded, make_candidates, whole

FREE = {"audit_fraction": 0.0, "per_image_cap": None, "no_touching": False}
EVERY_STRATEGY = sorted(STRATEGIES)


def overlap_or_touch(a: list[int], b: list[int]) -> bool:
    """Whether two boxes share at least one pixel edge, by looking at the pixels around `a`."""
    ours = {(x, y) for x in range(a[0], a[0] + a[2]) for y in range(a[1], a[1] + a[3])}
    theirs = {(x, y) for x in range(b[0], b[0] + b[2]) for y in range(b[1], b[1] + b[3])}
    around = {(x + dx, y + dy) for x, y in ours for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))}
    return bool(around & theirs)


def picked(candidates: Candidates, **settings: Any) -> Selection:
    """What is selected from candidates in round 1."""
    return choose(whole(candidates), SelectionConfig.model_validate(settings), round_number=1)


class TestRules:
    @settings(max_examples=60, deadline=None)
    @given(
        strategy=st.sampled_from(EVERY_STRATEGY),
        images=st.integers(1, 14),
        groups=st.integers(1, 3),
        budget=st.integers(1, 60),
        cap=st.sampled_from([None, 0.25, 0.5, 1.0, 2.0, 7.0]),
        no_touching=st.booleans(),
        min_gap=st.integers(0, 4),
        audit_fraction=st.sampled_from([0.0, 0.1, 0.5]),
        noise_beta=st.sampled_from([None, 1.0, 50.0]),
        missing=st.sampled_from([0.0, 0.4]),
        seed=st.integers(0, 1000),
    )
    def test_caps_edges_and_gaps_hold_for_every_strategy(
        self,
        strategy,
        images,
        groups,
        budget,
        cap,
        no_touching,
        min_gap,
        audit_fraction,
        noise_beta,
        missing,
        seed,
    ):
        rng = np.random.default_rng(seed)
        candidates = make_candidates(images=images, groups=groups, rng=rng, missing=missing)
        if len(candidates) == 0:
            return
        config = SelectionConfig(
            strategy=strategy,
            budget=budget,
            per_image_cap=cap,
            no_touching=no_touching,
            min_gap=min_gap,
            audit_fraction=audit_fraction,
            noise_beta=noise_beta,
            seed=seed,
        )
        selection = choose(whole(candidates), config, round_number=3, embed=embedded)

        assert len(set(selection.index.tolist())) == len(selection.index) <= selection.budget.total
        assert selection.audit.sum() == selection.budget.audit
        image = candidates.image[selection.index]
        most = 10**9 if cap is None else int(cap) if cap >= 1 else max(1, int(cap * 9))
        for owner in np.unique(image[~selection.audit]):
            assert np.sum(image == owner) <= most
        for a in range(len(image)):
            for b in range(a):
                if selection.audit[a] and selection.audit[b]:
                    continue
                i, j = selection.index[a], selection.index[b]
                if no_touching and image[a] == image[b]:
                    assert not touching(candidates.box[i], candidates.box[j][None])[0]
                if image[a] != image[b] and candidates.group[image[a]] == candidates.group[image[b]]:
                    assert abs(candidates.position[image[a]] - candidates.position[image[b]]) >= min_gap

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 4)] * 2), min_size=2, max_size=2))
    def test_touching_means_a_common_edge_or_area(self, boxes):
        a, b = np.array(boxes, dtype=np.int32)
        assert touching(a, b[None])[0] == overlap_or_touch(a.tolist(), b.tolist())

    def test_the_queue_is_only_short_when_every_candidate_left_is_forbidden(self):
        candidates = make_candidates(images=6, rng=np.random.default_rng(0))
        selection = picked(candidates, strategy="entropy", budget=1000, audit_fraction=0.0, per_image_cap=3)
        chosen = set(selection.index.tolist())
        assert len(chosen) < len(candidates)
        for index in set(range(len(candidates))) - chosen:
            mates = [i for i in chosen if candidates.image[i] == candidates.image[index]]
            touched = any(touching(candidates.box[index], candidates.box[i][None])[0] for i in mates)
            assert touched or len(mates) == 3


class TestStrategies:
    @pytest.mark.parametrize("strategy", ["least_confidence", "margin", "entropy", "mutual_information"])
    def test_a_measure_takes_the_top_in_order(self, strategy):
        candidates = make_candidates(images=12, rng=np.random.default_rng(1))
        selection = picked(candidates, strategy=strategy, budget=20, **FREE)
        assert candidates.score is not None
        assert selection.index.tolist() == np.argsort(-candidates.score)[:20].tolist()

    def test_stratified_gives_two_thirds_evenly_to_the_predicted_classes_by_entropy_times_share(self):
        candidates = make_candidates(images=40, classes=4, rng=np.random.default_rng(2))
        selection = picked(candidates, strategy="stratified", budget=90, **FREE)
        assert np.unique(selection.stratum, return_counts=True)[1].tolist() == [30, 15, 15, 15, 15]
        weighted = np.asarray(candidates.score) * candidates.stratum_share
        for stratum in range(4):
            ours = selection.index[selection.stratum == stratum]
            assert set(candidates.stratum[ours]) == {stratum}
            overall = selection.index[selection.stratum == NO_STRATUM]
            members = np.flatnonzero(candidates.stratum == stratum)
            better = members[weighted[members] > weighted[ours].min()]
            assert set(better) <= set(ours) | set(overall)

    def test_a_class_with_few_candidates_leaves_its_budget_to_the_rest(self):
        candidates = make_candidates(images=40, rng=np.random.default_rng(3))
        rare = np.full(len(candidates), 0, dtype=np.int16)
        rare[[5, 100]] = 2
        candidates = replace(candidates, stratum=rare)
        selection = picked(candidates, budget=60, **FREE)
        assert len(selection.index) == 60
        assert {5, 100} <= set(selection.index.tolist())
        assert 1 not in selection.stratum

    def test_class_random_is_uniform_inside_a_class_and_even_between_them(self):
        candidates = make_candidates(images=30, rng=np.random.default_rng(4))
        skewed = np.zeros(len(candidates), dtype=np.int16)
        skewed[:27] = 1
        candidates = replace(candidates, stratum=skewed, score=None)
        hits = np.zeros(len(candidates))
        for seed in range(300):
            selection = picked(candidates, strategy="class_random", budget=9, seed=seed, **FREE)
            inside = selection.index[selection.stratum == 1]
            assert len(inside) == 3
            hits[inside] += 1
        assert hits[27:].sum() == 0
        assert stats.chisquare(hits[:27]).pvalue > 1e-3

    def test_random_is_uniform(self):
        candidates = replace(make_candidates(images=5, rng=np.random.default_rng(5)), score=None)
        hits = np.zeros(len(candidates))
        for seed in range(600):
            hits[picked(candidates, strategy="random", budget=6, seed=seed, **FREE).index] += 1
        assert hits.sum() == 3600
        assert stats.chisquare(hits).pvalue > 1e-3

    @pytest.mark.parametrize(("budget", "step"), [(5, 8), (10, 4), (20, 2)])
    def test_strided_takes_every_kth_image_of_the_sequences(self, budget, step):
        candidates = make_candidates(images=40, groups=2, rng=np.random.default_rng(6))
        selection = picked(candidates, strategy="strided", budget=budget, **FREE)
        images = candidates.image[selection.index]
        place = np.sort(candidates.group[images] * 20 + candidates.position[images])
        assert len(place) == budget
        assert np.diff(place).tolist() == [step] * (budget - 1)

    def test_strided_takes_from_every_image_when_more_is_wanted_than_there_are(self):
        candidates = make_candidates(images=10, rng=np.random.default_rng(7))
        selection = picked(candidates, strategy="strided", budget=35, **FREE)
        counts = np.bincount(candidates.image[selection.index], minlength=10)
        assert sorted(counts.tolist()) == [3] * 5 + [4] * 5

    def test_strided_skips_images_without_a_candidate(self):
        candidates = make_candidates(images=10, groups=1, rng=np.random.default_rng(8))
        candidates = candidates.where(candidates.image >= 5)
        selection = picked(candidates, strategy="strided", budget=5, **FREE)
        assert sorted(candidates.image[selection.index].tolist()) == [5, 6, 7, 8, 9]

    def test_equal_scores_are_broken_by_chance_and_not_by_the_image_id(self):
        candidates = make_candidates(images=50, rng=np.random.default_rng(9))
        candidates = replace(candidates, score=np.zeros(len(candidates), dtype=np.float32))
        selection = picked(candidates, strategy="entropy", budget=45, **FREE)
        assert len(np.unique(candidates.image[selection.index])) > 20


class TestPowerNoise:
    @pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
    def test_the_first_choice_is_proportional_to_score_to_the_beta(self, beta):
        score = np.array([0.0, 0.1, 0.2, 0.4, 0.8])
        rng = np.random.default_rng(0)
        tries = 20_000
        noisy = perturbed(np.tile(score, tries), rng.random(5 * tries), beta=beta).reshape(tries, 5)
        hits = np.bincount(noisy.argmax(axis=1), minlength=5)
        assert hits[0] == 0
        assert stats.chisquare(hits[1:], tries * score[1:] ** beta / (score**beta).sum()).pvalue > 1e-3

    def test_a_queue_under_noise_follows_the_same_law(self):
        candidates = make_candidates(images=1, rng=np.random.default_rng(1))
        score = np.linspace(0.1, 0.9, 9).astype(np.float32)
        candidates = replace(candidates, score=score)
        hits = np.zeros(9)
        for seed in range(1500):
            hits[
                picked(candidates, strategy="entropy", budget=1, noise_beta=2.0, seed=seed, **FREE).index
            ] += 1
        assert stats.chisquare(hits, 1500 * score**2 / (score**2).sum(dtype=np.float64)).pvalue > 1e-3

    def test_much_beta_is_no_noise(self):
        candidates = make_candidates(images=10, rng=np.random.default_rng(2))
        quiet = SelectionConfig(strategy="stratified", budget=20, seed=3)
        loud = quiet.model_copy(update={"noise_beta": 1e9})
        same = choose(whole(candidates), loud, round_number=1).index
        assert same.tolist() == choose(whole(candidates), quiet, round_number=1).index.tolist()


class TestAudit:
    @pytest.mark.parametrize("strategy", ["entropy", "stratified", "strided"])
    def test_the_audit_is_uniform_whatever_the_strategy_and_the_caps(self, strategy):
        candidates = make_candidates(images=6, rng=np.random.default_rng(0), missing=0.2)
        hits = np.zeros(len(candidates))
        rounds = 1200
        for number in range(rounds):
            config = SelectionConfig(
                strategy=strategy, budget=20, audit_fraction=0.2, per_image_cap=1, min_gap=2
            )
            selection = choose(whole(candidates), config, round_number=number)
            hits[selection.index[selection.audit]] += 1
            assert selection.inclusion_probability == 4 / len(candidates)
        assert hits.sum() == 4 * rounds
        # without replacement the counts vary less than a multinomial's, by (N - 1)/(N - k)
        size = len(candidates)
        statistic = ((hits - 4 * rounds / size) ** 2).sum() / (4 * rounds / size) * (size - 1) / (size - 4)
        assert 1e-3 < stats.chi2.sf(statistic, size - 1) < 1 - 1e-3

    def test_the_share_of_draws_is_the_stored_probability(self):
        candidates = make_candidates(images=4, rng=np.random.default_rng(1))
        config = SelectionConfig(budget=12, audit_fraction=0.5)
        rounds = 2000
        drawn = 0
        probability = 0.0
        for number in range(rounds):
            selection = choose(whole(candidates), config, round_number=number)
            probability = selection.inclusion_probability or 0.0
            drawn += 7 in selection.index[selection.audit]
        assert probability == 6 / 36
        assert stats.binomtest(drawn, rounds, probability).pvalue > 1e-3

    def test_an_audit_of_everything_is_a_random_queue(self):
        candidates = make_candidates(images=4, rng=np.random.default_rng(2))
        selection = picked(candidates, budget=9, audit_fraction=1.0)
        assert selection.audit.all()
        assert len(selection.index) == 9

    def test_every_strategy_meets_the_same_audit_under_the_same_seed(self):
        candidates = make_candidates(images=30, rng=np.random.default_rng(3))
        audits = set()
        for strategy in EVERY_STRATEGY:
            config = SelectionConfig.model_validate({"strategy": strategy, "budget": 30})
            selection = choose(whole(candidates), config, round_number=2, embed=embedded)
            audits.add(tuple(selection.index[selection.audit].tolist()))
        assert len(audits) == 1

    def test_the_slices_are_woven_into_each_other(self):
        candidates = make_candidates(images=200, rng=np.random.default_rng(4))
        selection = picked(candidates, budget=100)
        for first in (30, 50, 80):
            assert abs(selection.audit[:first].sum() - 0.1 * first) <= 1
            assert abs((selection.stratum[:first] != NO_STRATUM).sum() - 0.6 * first) <= 2


class TestClassPower:
    def test_classes_of_which_the_labels_hold_less_get_more_of_the_budget(self):
        candidates = make_candidates(images=200, classes=4, rng=np.random.default_rng(2))
        shares = [0.64, 0.16, 0.16, 0.04]
        parts = {}
        for power in (0.0, 0.5, 1.0):
            config = SelectionConfig(budget=90, class_power=power, **FREE)
            chosen = choose(whole(candidates), config, round_number=1, class_shares=shares)
            assert len(chosen.index) == 90
            names, counts = np.unique(chosen.stratum, return_counts=True)
            parts[power] = dict(zip(names.tolist(), counts.tolist(), strict=True))
        assert parts[0.0] == {NO_STRATUM: 30, 0: 15, 1: 15, 2: 15, 3: 15}
        assert parts[0.5] == {NO_STRATUM: 30, 0: 7, 1: 13, 2: 13, 3: 27}
        assert parts[1.0] == {NO_STRATUM: 30, 0: 2, 1: 10, 2: 10, 3: 38}


class TestCostPower:
    def test_scores_are_divided_by_the_clicks_of_the_predicted_borders(self):
        candidates = make_candidates(images=100, rng=np.random.default_rng(3))
        border = np.random.default_rng(4).uniform(0, 800, size=len(candidates)).astype(np.float32)
        candidates = replace(candidates, border=border)
        cost = 1 + border / 8
        for power in (0.5, 1.0):
            config = SelectionConfig(strategy="entropy", budget=30, cost_power=power, **FREE)
            chosen = choose(whole(candidates), config, round_number=1)
            best = np.argsort(-np.asarray(candidates.score) / cost**power)[:30]
            assert sorted(chosen.index.tolist()) == sorted(best.tolist())

    def test_the_chosen_cost_less_the_higher_the_power_and_chance_ignores_it(self):
        candidates = make_candidates(images=100, rng=np.random.default_rng(3))
        border = np.random.default_rng(4).uniform(0, 800, size=len(candidates)).astype(np.float32)
        candidates = replace(candidates, border=border)

        def queue(strategy: Literal["stratified", "random"], power: float) -> Selection:
            config = SelectionConfig(strategy=strategy, budget=30, cost_power=power, **FREE)
            return choose(whole(candidates), config, round_number=1)

        lengths = [border[queue("stratified", power).index].sum() for power in (0.0, 0.5, 2.0)]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[2] < lengths[0] / 2
        assert queue("random", 1.0).index.tolist() == queue("random", 0.0).index.tolist()


class TestSeeds:
    @pytest.mark.parametrize("strategy", EVERY_STRATEGY)
    def test_the_same_seed_gives_the_same_queue_and_another_one_does_not(self, strategy):
        candidates = make_candidates(images=60, rng=np.random.default_rng(0))

        def queue(config: SelectionConfig, *, number: int = 1) -> list[int]:
            found = choose(whole(candidates), config, round_number=number, embed=embedded)
            return found.index.tolist()

        config = SelectionConfig(strategy=strategy, budget=40, noise_beta=5.0, seed=1)
        first = queue(config)
        assert queue(config) == first
        assert queue(config, number=2) != first
        other = config.model_copy(update={"seed": 2})
        assert queue(other) != first


class TestBudget:
    def test_images_with_unit_region_are_as_many_regions_as_average_images_have(self):
        config = SelectionConfig(budget=4, budget_unit="images")
        budget = queue_budget(config, 20, 1000)
        assert (budget.requested, budget.total, budget.audit, budget.selected) == (80, 80, 8, 72)

    @pytest.mark.parametrize("config", [{}, {"budget_unit": "regions"}, {"unit": "image"}])
    def test_otherwise_the_budget_counts_candidates(self, config):
        budget = queue_budget(SelectionConfig(budget=50, **config), 15, 30)
        assert (budget.requested, budget.total, budget.audit, budget.selected) == (50, 30, 3, 27)

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=50), st.integers(0, 100))
    def test_quotas_add_up_to_two_thirds_and_differ_by_one_at_most(self, classes, selected):
        quotas = class_quotas(Counter(classes), selected)
        assert sum(quotas.values()) == round(2 * selected / 3)
        assert max(quotas.values()) - min(quotas.values()) <= 1
        assert set(quotas) == set(classes)


class TestTaken:
    @settings(max_examples=80, deadline=None)
    @given(
        boxes=st.lists(
            st.tuples(*[st.integers(-2, 10)] * 2, *[st.integers(1, 9)] * 2), min_size=1, max_size=7
        ),
        share=st.sampled_from([0.25, 0.5, 1.0]),
    )
    def test_it_is_the_share_of_painted_pixels(self, boxes, share):
        cells = np.array([[x, y, 5, 5] for y in (0, 5) for x in (0, 5)], dtype=np.int32)
        painted = np.zeros((40, 40), dtype=bool)
        for x, y, w, h in boxes:
            painted[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = True
        expected = [painted[y : y + h, x : x + w].mean() >= share for x, y, w, h in cells.tolist()]
        owner = np.zeros(len(boxes), dtype=np.int64)
        result = taken(np.zeros(4, np.int64), cells, owner, np.array(boxes, dtype=np.int64), share=share)
        assert result.tolist() == expected

    def test_boxes_of_other_images_do_not_count(self):
        cells = np.tile(np.array([[0, 0, 10, 10]], dtype=np.int32), (3, 1))
        result = taken(np.arange(3), cells, np.array([1, 1]), np.array([[0, 0, 10, 6], [50, 0, 10, 6]]))
        assert result.tolist() == [False, True, False]

    def test_many_boxes_are_worked_off_in_chunks(self, monkeypatch):
        monkeypatch.setattr("pipeline.acquisition.exclusion.PAIRS_AT_ONCE", 20)
        candidates: Candidates = make_candidates(images=50, rng=np.random.default_rng(0))
        gone = np.random.default_rng(1).permutation(len(candidates))[:200]
        result = taken(
            candidates.image, candidates.box, candidates.image[gone], candidates.box[gone].astype(np.int64)
        )
        assert np.flatnonzero(result).tolist() == sorted(gone.tolist())

    def test_nothing_taken_takes_nothing(self):
        cells = np.array([[0, 0, 10, 10]], dtype=np.int32)
        empty = np.empty((0, 4), dtype=np.int64)
        assert not taken(np.zeros(1, np.int64), cells, np.empty(0, np.int64), empty).any()
