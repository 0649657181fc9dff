"""Strategies: each turns candidates into priorities, larger first.

Legend: N candidates of a block, M images of the pool. A strategy gives one priority over all candidates and,
where it splits its budget over classes, a second one that ranks the candidates inside each stratum.
The priority of a candidate depends on no other candidate, but for those of its image, and through a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.coverage import Cover
from pipeline.acquisition.draws import Draws

Ranked = Literal["least_confidence", "margin", "entropy", "mutual_information", "variation_ratio"]
"""The measures that a strategy may rank by; none of them is ever negative."""


@dataclass(frozen=True)
class Priority:
    """The priorities of candidates, larger first. Equal priorities are in random order."""

    overall: npt.NDArray[np.float64]
    """[N]: ranks all candidates."""
    within_class: npt.NDArray[np.float64] | None = None
    """[N]: ranks those of each stratum; None for a strategy without strata."""


@dataclass(frozen=True)
class Stride:
    """A walk through all sequences, one after the other, in steps of M / `items` images.

    Where `items` exceeds the number of images, every image gives a region in each turn, and only the last
    turn is strided.
    """

    turns: int
    """Turns in which every image gives a region."""
    image_id: npt.NDArray[np.int64]
    """The images, ascending, that give a region in the last turn."""

    @staticmethod
    def over(
        image_id: npt.NDArray[np.int64],
        group: npt.NDArray[np.int32],
        position: npt.NDArray[np.int64],
        items: int,
    ) -> Stride:
        """The walk through images [M], all of which have a candidate."""
        walk = np.lexsort((image_id, position, group))
        turns, rest = divmod(items, max(1, len(walk)))
        steps = ((np.arange(rest) + 0.5) * len(walk) / max(1, rest)).astype(np.int64)
        return Stride(turns=turns, image_id=np.sort(image_id[walk[steps]]))


Plan = Stride | Cover


@dataclass(frozen=True)
class Strategy:
    """A rank function, and the measure that it ranks by."""

    rank: Callable[[Candidates, Draws, Plan | None], Priority]
    """(block of candidates, the queue's random numbers, plan where `plans`) → priority."""
    measure: Ranked | None = None
    takes_noise: bool = True
    plans: type[Stride] | type[Cover] | None = None
    """What a first reading of the pool makes, for a strategy whose priorities depend on other candidates."""


def chance(candidates: Candidates, _draws: Draws, _plan: Plan | None) -> Priority:
    """Uniform: all priorities are equal."""
    return Priority(overall=np.ones(len(candidates)))


def chance_by_class(candidates: Candidates, _draws: Draws, _plan: Plan | None) -> Priority:
    """Uniform inside each stratum, and uniform over all (Cai et al. 2021, as a control)."""
    return Priority(overall=np.ones(len(candidates)), within_class=np.ones(len(candidates)))


def strided(candidates: Candidates, draws: Draws, stride: Plan | None) -> Priority:
    """Every k-th image of the sequences, each with a random region.

    Raises:
        ValueError: there is no stride.
    """
    if not isinstance(stride, Stride):
        raise ValueError(f"Expected a stride, but got {stride!r}.")
    random_key = draws.integers("turns", candidates.owner, candidates.region_index)
    shuffled = np.lexsort((random_key, candidates.image))
    turn = np.empty(len(candidates), dtype=np.int64)
    turn[shuffled] = np.arange(len(candidates)) - candidates.starts[candidates.image]
    last_turn_strided = (turn == stride.turns) & np.isin(candidates.owner, stride.image_id)
    return Priority(overall=-(turn.astype(np.float64)) + 0.5 * last_turn_strided)


def covering(candidates: Candidates, _draws: Draws, cover: Plan | None) -> Priority:
    """The candidates nearest to the centres of clusters of encoder features, one a cluster.

    Raises:
        ValueError: there is no cover.
    """
    if not isinstance(cover, Cover):
        raise ValueError(f"Expected a cover, but got {cover!r}.")
    return Priority(overall=cover.priority(candidates))


def uncertainty(candidates: Candidates, _draws: Draws, _plan: Plan | None) -> Priority:
    """The mean of the measure over the region, top first."""
    return Priority(overall=_score(candidates))


def stratified(candidates: Candidates, _draws: Draws, _plan: Plan | None) -> Priority:
    """Inside each stratum by the measure × the share of its class, and over all by the measure."""
    score = _score(candidates)
    return Priority(overall=score, within_class=score * candidates.stratum_share)


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(chance),
    "class_random": Strategy(chance_by_class),
    "strided": Strategy(strided, takes_noise=False, plans=Stride),
    "coverage": Strategy(covering, takes_noise=False, plans=Cover),
    "least_confidence": Strategy(uncertainty, measure="least_confidence"),
    "margin": Strategy(uncertainty, measure="margin"),
    "entropy": Strategy(uncertainty, measure="entropy"),
    "mutual_information": Strategy(uncertainty, measure="mutual_information"),
    "variation_ratio": Strategy(uncertainty, measure="variation_ratio"),
    "stratified": Strategy(stratified, measure="entropy"),
    "stratified_margin": Strategy(stratified, measure="margin"),
}


PIXELS_A_CLICK = 8.0
"""Length of predicted border for which an annotator clicks once: 5 to 10 pixels on three sets of images."""


def estimated_cost(candidates: Candidates) -> npt.NDArray[np.float64]:
    """Clicks to draw each candidate [N], from the length of its predicted borders; at least 1.

    Raises:
        ValueError: the lengths are not known.
    """
    if candidates.border is None:
        raise ValueError("Expected candidates with the length of their borders, but got `border` None.")
    return 1 + candidates.border.astype(np.float64) / PIXELS_A_CLICK


def per_cost(priority: Priority, candidates: Candidates, *, power: float) -> Priority:
    """Priorities divided by the estimated clicks of their candidates to this power."""
    cost = estimated_cost(candidates) ** power
    within = None if priority.within_class is None else priority.within_class / cost
    return Priority(priority.overall / cost, within)


def with_power_noise(priority: Priority, candidates: Candidates, draws: Draws, *, beta: float) -> Priority:
    """log priority + Gumbel(0, 1/β): the first one is candidate i with probability ∝ priority_i^β.

    Kirsch et al. 2023, "Stochastic batch acquisition", section 3 (power acquisition).

    Args:
        beta: larger than 0; larger is less noise.
    """
    overall = draws.uniforms("overall_noise", candidates.owner, candidates.region_index)
    noisy = replace(priority, overall=perturbed(priority.overall, overall, beta=beta))
    if priority.within_class is None:
        return noisy
    within = draws.uniforms("within_class_noise", candidates.owner, candidates.region_index)
    return replace(noisy, within_class=perturbed(priority.within_class, within, beta=beta))


def perturbed(
    priority: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64], *, beta: float
) -> npt.NDArray[np.float64]:
    """log priority [N] + Gumbel(0, 1/β), from uniform numbers [N] between 0 and 1."""
    with np.errstate(divide="ignore"):  # a score of 0 has probability 0: log 0 = −inf
        return np.log(priority) - np.log(-np.log(uniform)) / beta


def _score(candidates: Candidates) -> npt.NDArray[np.float64]:
    if candidates.score is None:
        raise ValueError("Expected candidates with a score, but got `score` None.")
    return candidates.score.astype(np.float64)
