"""Learning curves: areas, labels saved and paired differences, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation.learning_curves import (
    Curves,
    Trials,
    area,
    area_up_to,
    compare,
    cost_at,
    curve_at,
    full_share,
    mean_iou,
    saved_share,
)
from pipeline.evaluation.simulation_verdict import verdict

BUDGETS = (10, 20, 40)


def overlap(ious, *, images: int = 12, pixels: float = 1000.0):
    """[s, k, r, 3, C = 2] whose IoU of both classes is `ious` [s, k] in every image: one pixel that is wrong
    counts once in the union."""
    ious = np.asarray(ious)[:, :, None, None]
    right = np.broadcast_to(ious * pixels, (*ious.shape[:2], images, 2))
    true = np.full_like(right, pixels)
    return np.stack([right, true, right], axis=3)


def curves(ious, *, clicks=(10.0, 20.0, 40.0), images: int = 12) -> Curves:
    seeds = len(ious)
    costs = {"labels": BUDGETS, "pixels": [100.0 * budget for budget in BUDGETS], "clicks": clicks}
    return Curves(
        overlap=overlap(ious, images=images),
        costs={name: np.tile(np.asarray(row, dtype=float), (seeds, 1)) for name, row in costs.items()},
        ece=np.full((seeds, 3), math.nan),
    )


def trials(images: int = 12, full=None, **strategies: Curves) -> Trials:
    seeds = len(next(iter(strategies.values())).overlap)
    return Trials(
        unit="region",
        budgets=BUDGETS,
        seeds=tuple(range(seeds)),
        groups=tuple(f"g{index}" for index in range(images)),
        least=1,
        curves=strategies,
        full=full,
    )


SELECTED = [[0.30, 0.40, 0.50], [0.32, 0.44, 0.52], [0.28, 0.39, 0.51]]
DRAWN = [[0.30, 0.34, 0.40], [0.32, 0.37, 0.41], [0.28, 0.33, 0.42]]


def test_the_miou_of_sums_is_the_mean_over_the_classes_that_the_masks_hold() -> None:
    sums = np.array([[30.0, 5.0, 0.0], [50.0, 10.0, 0.0], [40.0, 20.0, 7.0]])
    assert mean_iou(sums) == pytest.approx((30 / 60 + 5 / 25) / 2)


def test_the_area_counts_each_doubling_of_the_budget_alike() -> None:
    assert area(np.array([0.2, 0.4, 0.8]), np.array([1.0, 2.0, 4.0])) == pytest.approx(0.45)
    assert area(np.array([0.2, 0.4, 0.8]), np.array([1.0, 2.0, 16.0])) == pytest.approx((0.3 + 3 * 0.6) / 4)


def test_an_area_by_clicks_ends_where_the_cheaper_curve_ends() -> None:
    found = area_up_to(np.array([[0.2, 0.4, 0.8]]), np.array([[1.0, 4.0, 16.0]]), np.array([8.0]))
    assert found == pytest.approx((2 * 0.3 + 1 * 0.5) / 3)


def test_labels_are_saved_where_a_level_is_reached_earlier() -> None:
    mine, others, costs = np.array([0.3, 0.5, 0.6]), np.array([0.3, 0.4, 0.5]), np.array(BUDGETS)
    assert saved_share(mine, costs, others, costs) == pytest.approx(0.5)
    assert saved_share(others, costs, mine, costs) == pytest.approx(-1.0)
    assert cost_at(0.9, mine, costs) == math.inf


def test_a_curve_that_falls_reaches_a_level_where_it_first_does() -> None:
    assert cost_at(0.45, np.array([0.3, 0.5, 0.4]), np.array([1.0, 2.0, 4.0])) == pytest.approx(2**0.75)


def test_differences_are_paired_by_seed() -> None:
    found = compare(trials(a=curves(SELECTED), b=curves(DRAWN)), "a", "b", confidence=0.95)
    assert found.at[20].value == pytest.approx(np.mean([0.06, 0.07, 0.06]))
    assert found.at[40].value == pytest.approx(np.mean([0.10, 0.11, 0.09]))
    of_seed = [(0 + 0.06) / 4 + (0.06 + 0.10) / 4, 0.07 / 4 + 0.18 / 4, 0.06 / 4 + 0.15 / 4]
    assert found.area.value == pytest.approx(np.mean(of_seed))
    reach = 4.302653 * np.std(of_seed, ddof=1) / math.sqrt(3)
    assert found.area.over_seeds.high - found.area.value == pytest.approx(reach)


def test_images_that_are_all_alike_add_nothing_to_the_interval() -> None:
    found = compare(trials(a=curves(SELECTED), b=curves(DRAWN)), "a", "b", confidence=0.95)
    assert found.area.units == 12
    assert found.area.unit_variance == pytest.approx(0, abs=1e-12)
    assert found.area.over_both.low == pytest.approx(found.area.over_seeds.low)


def test_a_difference_that_rests_on_one_image_is_not_shown() -> None:
    selected, drawn = curves(DRAWN), curves(DRAWN)
    selected.overlap[:, 1:, 0, 0] += 500  # more right pixels in one of the images
    selected.overlap[:, 1:, 0, 2] += 500
    found = compare(trials(a=selected, b=drawn), "a", "b", confidence=0.95)
    assert found.area.over_seeds.low > 0
    assert found.area.over_both.low < 0
    assert verdict([found], cost="labels", unit="region").answer == "not shown"


def test_the_same_curve_costs_more_where_its_regions_take_more_clicks() -> None:
    dear = curves(SELECTED, clicks=(10.0, 40.0, 160.0))
    found = compare(trials(a=dear, b=curves(DRAWN)), "a", "b", confidence=0.95)
    assert found.areas["clicks"].value < found.area.value
    assert found.saved["clicks"].value < found.saved["labels"].value == found.saved["pixels"].value


def test_a_verdict_needs_every_control() -> None:
    level = curves(SELECTED)
    both = trials(a=level, random=curves(DRAWN), class_random=level)
    comparisons = [compare(both, "a", name, confidence=0.95) for name in ("random", "class_random")]
    assert verdict(comparisons[:1], cost="labels", unit="region").answer == "yes"
    found = verdict(comparisons, cost="labels", unit="region")
    assert found.answer == "not shown"
    assert "against class_random: +0.000" in found.sentence
    backwards = compare(both, "random", "a", confidence=0.95)
    assert verdict([backwards], cost="labels", unit="region").answer == "no"


def test_a_verdict_that_is_not_shown_says_how_many_seeds_would_be_needed() -> None:
    uncertain = [[0.30, 0.36, 0.41], [0.32, 0.40, 0.46], [0.28, 0.33, 0.40]]
    found = compare(trials(a=curves(uncertain), b=curves(DRAWN)), "a", "b", confidence=0.95)
    answer = verdict([found], cost="labels", unit="region")
    assert answer.answer == "not shown"
    assert answer.seeds_needed is not None
    assert 4 <= answer.seeds_needed <= 40
    assert f"About {answer.seeds_needed} seeds would show" in answer.sentence


def test_one_seed_shows_nothing() -> None:
    found = compare(trials(a=curves(SELECTED[:1]), b=curves(DRAWN[:1])), "a", "b", confidence=0.95)
    assert "Two seeds are the least" in verdict([found], cost="labels", unit="region").sentence


def test_a_share_of_full_supervision_is_a_ratio_of_means() -> None:
    full = overlap([[0.5], [0.6], [0.7]])[:, 0]
    found = full_share(trials(a=curves(SELECTED), full=full), "a", confidence=0.95)
    assert found is not None
    assert found.value == pytest.approx(np.mean([0.50, 0.52, 0.51]) / 0.6)


def test_rare_classes_are_those_with_a_small_share_of_the_test_pixels() -> None:
    selected, drawn = curves(SELECTED), curves(DRAWN)
    for one in (selected, drawn):
        one.overlap[..., 1] /= 20
    both = trials(a=selected, b=drawn)
    assert both.rare == [1]
    found = compare(both, "a", "b", confidence=0.95)
    assert found.rare is not None
    assert found.rare.value == pytest.approx(np.mean([0.10, 0.11, 0.09]))


def test_a_curve_has_its_mean_at_each_budget() -> None:
    found = curve_at(trials(a=curves(SELECTED)), "a", confidence=0.95)
    assert [one.value for one in found] == pytest.approx(np.mean(SELECTED, axis=0))
