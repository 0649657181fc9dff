"""Strategies: each turns candidates into priorities, larger first.

Legend: N candidates, M images. A strategy gives one priority over all candidates and, where it splits its
budget over predicted classes, a second one that ranks the candidates inside each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates

Ranked = Literal["least_confidence", "margin", "entropy", "mutual_information"]
"""The measures that a strategy may rank by; none of them is ever negative."""


@dataclass(frozen=True)
class Priority:
    """What a strategy wants first. Equal priorities are in random order."""

    overall: npt.NDArray[np.float64]
    """[N]: ranks all candidates."""
    within_class: npt.NDArray[np.float64] | None = None
    """[N]: ranks those of each predicted class; None for a strategy without strata."""


@dataclass(frozen=True)
class Strategy:
    """How candidates are ranked, and by which measure."""

    rank: Callable[[Candidates, int, np.random.Generator], Priority]
    """(candidates, number to choose, generator) → priority."""
    measure: Ranked | None = None
    takes_noise: bool = True


def chance(candidates: Candidates, _wanted: int, _rng: np.random.Generator) -> Priority:
    """Uniform: all priorities are equal."""
    return Priority(overall=np.ones(len(candidates)))


def chance_by_class(candidates: Candidates, _wanted: int, _rng: np.random.Generator) -> Priority:
    """Uniform inside each predicted class, and uniform over all (Cai et al. 2021, as a control)."""
    return Priority(overall=np.ones(len(candidates)), within_class=np.ones(len(candidates)))


def strided(candidates: Candidates, wanted: int, rng: np.random.Generator) -> Priority:
    """Every k-th image of the sequences, with regions of it at random.

    All sequences, one after the other, are walked in steps of M / `wanted` images. Where more is wanted
    than there are images, each gives a region, then each another one, and the last turn is strided.
    """
    images = len(candidates.image_id)
    owners = np.flatnonzero(np.diff(candidates.starts) > 0)
    walk = owners[np.lexsort((owners, candidates.position[owners], candidates.group[owners]))]
    turns, rest = divmod(wanted, max(1, len(walk)))
    on_stride = np.zeros(images, dtype=bool)
    on_stride[walk[((np.arange(rest) + 0.5) * len(walk) / max(1, rest)).astype(np.int64)]] = True
    shuffled = np.lexsort((rng.random(len(candidates)), candidates.image))
    turn = np.empty(len(candidates), dtype=np.int64)
    turn[shuffled] = np.arange(len(candidates)) - candidates.starts[candidates.image]
    last_turn_strided = (turn == turns) & on_stride[candidates.image]
    return Priority(overall=-(turn.astype(np.float64)) + 0.5 * last_turn_strided)


def uncertainty(candidates: Candidates, _wanted: int, _rng: np.random.Generator) -> Priority:
    """The mean of the measure over the region, top first."""
    return Priority(overall=_score(candidates))


def stratified(candidates: Candidates, _wanted: int, _rng: np.random.Generator) -> Priority:
    """Inside each predicted class by entropy × class share, and over all by entropy."""
    entropy = _score(candidates)
    return Priority(overall=entropy, within_class=entropy * candidates.class_share)


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(chance),
    "class_random": Strategy(chance_by_class),
    "strided": Strategy(strided, takes_noise=False),
    "least_confidence": Strategy(uncertainty, measure="least_confidence"),
    "margin": Strategy(uncertainty, measure="margin"),
    "entropy": Strategy(uncertainty, measure="entropy"),
    "mutual_information": Strategy(uncertainty, measure="mutual_information"),
    "stratified": Strategy(stratified, measure="entropy"),
}


def with_power_noise(priority: Priority, *, beta: float, rng: np.random.Generator) -> Priority:
    """log priority + Gumbel(0, 1/β): the first one is candidate i with probability ∝ priority_i^β.

    Kirsch et al. 2023, "Stochastic batch acquisition", section 3 (power acquisition).

    Args:
        beta: larger than 0; larger is less noise.
    """
    within_class = priority.within_class
    return replace(
        priority,
        overall=_perturb(priority.overall, beta, rng),
        within_class=None if within_class is None else _perturb(within_class, beta, rng),
    )


def ranked(priority: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices [N] by falling priority; equal ones in random order.

    >>> ranked(np.array([0.1, 0.9, 0.5]), np.random.default_rng(0)).tolist()
    [1, 2, 0]
    """
    shuffled = rng.permutation(len(priority))
    return shuffled[np.argsort(-priority[shuffled], kind="stable")]


def _score(candidates: Candidates) -> npt.NDArray[np.float64]:
    if candidates.score is None:
        raise ValueError("Expected candidates with a score, but got `score` None.")
    return candidates.score.astype(np.float64)


def _perturb(
    priority: npt.NDArray[np.float64], beta: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):  # a score of 0 has probability 0: log 0 = −inf
        return np.log(priority) + rng.gumbel(scale=1 / beta, size=len(priority))
