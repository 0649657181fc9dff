"""Coverage by features: one region of each group that looks alike, and near-duplicates last."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.acquisition import coverage
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.selection import Selection, choose
from pipeline.config import SelectionConfig
from tests.pipeline.acquisition.synthetic import blocks, embedded, make_candidates, whole

KINDS = 10
FREE: dict[str, Any] = {"audit_fraction": 0.0, "per_image_cap": None, "no_touching": False}


def kind_of(candidates: Candidates) -> npt.NDArray[np.int64]:
    """[N] what each candidate shows: of ten kinds, some ten times as frequent as others."""
    number = (7 * candidates.owner + candidates.region_index) % 55
    return np.searchsorted(np.cumsum(np.arange(1, KINDS + 1)), number, side="right")


def planted(candidates: Candidates) -> npt.NDArray[np.float16]:
    """Features that point in one direction for each kind, with a little noise."""
    rows = np.eye(KINDS)[kind_of(candidates)] + 0.1 * embedded(candidates).mean(axis=1, keepdims=True)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def covered(candidates: Candidates, embed: Any = planted, **settings: Any) -> Selection:
    config = SelectionConfig.model_validate({"strategy": "coverage", **FREE, **settings})
    return choose(whole(candidates), config, round_number=0, embed=embed)


@pytest.fixture
def pool() -> Candidates:
    return make_candidates(images=60, rng=np.random.default_rng(0))


def test_a_queue_as_long_as_there_are_kinds_holds_each_once(pool: Candidates) -> None:
    chosen = covered(pool, budget=KINDS)
    assert sorted(kind_of(chosen.items).tolist()) == list(range(KINDS))
    counts = np.bincount(kind_of(pool))
    assert counts.max() > 5 * counts.min()


def test_the_queue_depends_on_the_seed_and_not_on_the_blocks(pool: Candidates) -> None:
    config = SelectionConfig(strategy="coverage", budget=20)
    first = choose(whole(pool), config, round_number=0, embed=embedded).index.tolist()
    assert choose(blocks(pool, 7), config, round_number=0, embed=embedded).index.tolist() == first
    other = config.model_copy(update={"seed": 1})
    assert choose(whole(pool), other, round_number=0, embed=embedded).index.tolist() != first


def test_of_a_large_pool_only_a_draw_of_images_is_looked_at(
    pool: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "MOST", 100)
    seen: list[Candidates] = []

    def embed(candidates: Candidates) -> npt.NDArray[np.float16]:
        seen.append(candidates)
        return embedded(candidates)

    chosen = covered(pool, embed, budget=12)
    assert len(chosen.index) == 12
    assert 30 < sum(map(len, seen)) < 200 < len(pool)
    assert set(chosen.items.owner.tolist()) <= {owner for part in seen for owner in part.owner.tolist()}


def test_an_image_that_cannot_be_read_is_chosen_last(pool: Candidates) -> None:
    def embed(candidates: Candidates) -> npt.NDArray[np.float16]:
        return np.where(candidates.owner[:, None] % 2 == 0, np.float16(0), embedded(candidates))

    readable = int((pool.owner % 2 == 1).sum())
    chosen = covered(pool, embed, budget=readable + 5)
    assert (chosen.items.owner[:readable] % 2 == 1).all()
    assert len(chosen.index) == readable + 5


def test_near_duplicates_of_chosen_regions_come_last_in_other_images_too(pool: Candidates) -> None:
    rules: dict[str, Any] = {"strategy": "entropy", "max_similarity": 0.9}
    chosen = covered(pool, budget=2 * KINDS, **rules)
    assert pool.score is not None
    kinds = kind_of(pool)
    best = [np.flatnonzero(kinds == kind)[pool.score[kinds == kind].argmax()] for kind in range(KINDS)]
    assert sorted(chosen.index[:KINDS].tolist()) == sorted(best)
    assert len(chosen.index) == 2 * KINDS
    rest = pool.score[chosen.index[KINDS:]]
    left = np.delete(pool.score, best)
    assert np.allclose(np.sort(rest), np.sort(left)[-KINDS:])
