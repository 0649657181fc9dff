"""Drift of the pool: two sets of images under the same scorer, compared measure by measure.

Legend: n images, u units of both sets, C classes, P permutations.

Each image has one number a measure, and images of a sequence are alike: so permutations exchange whole
sequences (Good 2005, on exchangeable units). The measures are correlated, so each p-value comes from the
largest distance of all measures in each permutation (max-T, Westfall & Young 1993), each in its unit. With
few sequences no permutation is rare enough: then there is no p-value, and no alarm. In a pool of a million
images every difference is significant, so a difference is reported only if it is also large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from pipeline.data.input_range import LIGHT
from pipeline.evaluation.bootstrap import blocks

Array = npt.NDArray[np.float64]

DRIFT_MEASURES = ("entropy", "least_confidence", "energy", "max_logit")
CLASS_SHARES = "class_shares"
LARGE: Mapping[str, float] = {
    **dict.fromkeys(DRIFT_MEASURES, 0.3),
    **dict.fromkeys(LIGHT, 0.5),
    CLASS_SHARES: 0.15,
}
"""Smallest distances that cause a warning: for a measure of the model, a threshold that 30 % more of one set
exceeds; for brightness and contrast, which differ between ordinary days, 50 % more; for classes, 15 % of the
predicted pixels in other classes."""
SCALE: Mapping[str, float] = {**LARGE, **dict.fromkeys(LIGHT, 0.3)}
"""The unit of each distance where the largest of all is taken: one for all Kolmogorov–Smirnov distances."""
SIGNIFICANCE = 0.05
"""The share of ordinary nights that may cause a warning."""
FEWEST_UNITS = 8
"""With fewer units of both sets together there is no p-value."""
PERMUTATIONS = 999
"""Above this number of possible permutations, so many are drawn at random."""
AT_ONCE = 100


@dataclass(frozen=True)
class Profile:
    """The measures and predicted classes of n images.

    Attributes:
        ids: int64 [n].
        measures: float64 [n], for each of `DRIFT_MEASURES` and of `LIGHT`; NaN for images that were scored
            before these were stored.
        shares: [n, C], share of each image's pixels that are predicted as each class.
        groups: the sequence of each image.
        positions: its position in the sequence.
    """

    ids: npt.NDArray[np.int64]
    measures: dict[str, Array]
    shares: Array
    groups: Sequence[str]
    positions: Sequence[int]


@dataclass(frozen=True)
class Deal:
    """The units of two sets, which permutations exchange: sequences, parts of one, or images.

    Attributes:
        of_image: int64 [n], the unit of each image, those of the reference first.
        reference, new: the numbers of units.
    """

    of_image: npt.NDArray[np.int64]
    reference: int
    new: int

    @property
    def smallest_p(self) -> float:
        """The p-value of two sets that are wholly apart; 1 with fewer than `FEWEST_UNITS`."""
        if self.reference + self.new < FEWEST_UNITS:
            return 1.0
        return 1 / comb(self.reference + self.new, self.new)


@dataclass(frozen=True)
class Difference:
    """How far two sets lie apart in one measure.

    Attributes:
        p: corrected for the number of measures; None where the units are too few for the level.
        drifted: both significant and large.
    """

    measure: str
    distance: float
    p: float | None
    drifted: bool


@dataclass(frozen=True)
class ShiftedImage:
    """A new image with an extreme value of a drifted measure; `percentile` is among the reference images."""

    image_id: int
    measure: str
    value: float
    percentile: float


def deal(reference: Profile, new: Profile, *, block: int) -> Deal:
    """The units of two sets: images where `block` is 1, as each is independent; else sequences.

    Images of a single sequence are cut into blocks of that many neighbours. A sequence that is in both sets
    is two units.
    """
    sides = (reference, new)
    if block > 1 and len({*reference.groups, *new.groups}) > 1:
        numbers = [np.unique(side.groups, return_inverse=True)[1] for side in sides]
    else:
        numbers = [blocks(side.groups, side.positions, block, most=len(side.ids)) for side in sides]
    first, second = (int(number.max(initial=-1)) + 1 for number in numbers)
    return Deal(np.concatenate([numbers[0], numbers[1] + first]), first, second)


def differences(
    reference: Profile, new: Profile, dealt: Deal, *, level: float | None, seed: int
) -> list[Difference]:
    """The distance of each measure, and of the class shares, with its p-value.

    Measures: the Kolmogorov–Smirnov distance, 0 to 1; a measure that an image lacks is left out. Class
    shares: the total variation distance between the mean shares, 0 to 1.

    Args:
        level: of significance. None: the distances alone, without p-values.

    Raises:
        ValueError: a set is empty, or `level` is below the smallest p-value that the units can reach.
    """
    if len(reference.ids) == 0 or len(new.ids) == 0:
        raise ValueError("Expected images on both sides, but got none.")
    if level is not None and level < dealt.smallest_p:
        raise ValueError(f"Expected a level of at least {dealt.smallest_p:.4f}, but got {level:.4f}.")
    both = {name: np.r_[reference.measures[name], new.measures[name]] for name in (*DRIFT_MEASURES, *LIGHT)}
    values = {name: of_image for name, of_image in both.items() if np.isfinite(of_image).all()}
    shares = np.concatenate([reference.shares, new.shares])
    names = (*values, CLASS_SHARES)

    def distances(is_new_Pu: npt.NDArray[np.bool_]) -> Array:
        weights = _signed_weights(is_new_Pu[:, dealt.of_image])
        found = [_ks(weights, of_image) for of_image in values.values()]
        found.append(np.abs(weights @ shares).sum(axis=1) / 2)
        return np.stack(found, axis=1)

    observed = distances((np.arange(dealt.reference + dealt.new) >= dealt.reference)[None])
    if level is None:
        return [
            Difference(name, float(far), None, False) for name, far in zip(names, observed[0], strict=True)
        ]
    permuted = _permutations(dealt, seed=seed)
    drawn = [distances(permuted[start : start + AT_ONCE]) for start in range(0, len(permuted), AT_ONCE)]
    scale = np.array([SCALE[name] for name in names])
    p = largest_of_all(np.concatenate([observed, *drawn]) / scale)
    return [
        Difference(name, float(far), float(found), bool(found <= level and far >= LARGE[name]))
        for name, far, found in zip(names, observed[0], p, strict=True)
    ]


def shifted_images(
    reference: Profile, new: Profile, drifted: Sequence[str], *, limit: int = 10
) -> list[ShiftedImage]:
    """The most shifted new images, each with the drifted measure that shows it best: by percentile of the
    reference in the direction of the drift, then by distance in units of the reference's spread."""
    best: dict[int, tuple[float, float, ShiftedImage]] = {}
    for measure in drifted:
        known, novel = _values(reference, reference, measure), _values(reference, new, measure)
        rises = float(np.median(novel)) >= float(np.median(known))
        centre, spread = float(np.median(known)), float(np.subtract(*np.quantile(known, [0.75, 0.25])))
        below = np.searchsorted(np.sort(known), novel, side="right" if rises else "left") / len(known)
        for image_id, value, share in zip(new.ids.tolist(), novel, below, strict=True):
            extreme = share if rises else 1 - share
            far = (value - centre if rises else centre - value) / max(spread, 1e-12)
            shifted = ShiftedImage(image_id, measure, float(value), float(100 * share))
            if image_id not in best or (extreme, far) > best[image_id][:2]:
                best[image_id] = (float(extreme), float(far), shifted)
    ranked = sorted(best.values(), key=lambda entry: (-entry[0], -entry[1], entry[2].image_id))
    return [image for _, _, image in ranked[:limit]]


def largest_of_all(distances: Array) -> Array:
    """p-values of several measures, corrected for their number: max-T in one step (Westfall & Young 1993).

    Args:
        distances: [1 + P, measures], the observed ones first, on one scale. Each is compared with the
            largest of all measures in each permutation.

    >>> largest_of_all(np.array([[0.9, 0.1], [0.1, 0.2], [0.2, 0.1], [0.1, 0.2]])).tolist()
    [0.25, 1.0]
    """
    return (distances.max(axis=1)[:, None] >= distances[0] - 1e-9).mean(axis=0)


def _permutations(dealt: Deal, *, seed: int) -> npt.NDArray[np.bool_]:
    """Which units are new, [P, u]: all other choices of as many, or a sample where these are many."""
    count = dealt.reference + dealt.new
    if comb(count, dealt.new) <= 1 + PERMUTATIONS:
        every = np.array(list(combinations(range(count), dealt.new)), dtype=np.int64)
        is_new = np.zeros((len(every), count), dtype=np.bool_)
        np.put_along_axis(is_new, every, values=True, axis=1)
        return is_new[:-1]  # the last way is the observed one
    generator = np.random.default_rng(seed)
    return generator.permuted(
        np.broadcast_to(np.arange(count) >= dealt.reference, (PERMUTATIONS, count)), axis=1
    )


def _signed_weights(is_new_Pn: npt.NDArray[np.bool_]) -> Array:
    """1/k for a new image, −1/m for one of the reference: [P, n], each row summing to 0."""
    new = is_new_Pn.sum(axis=1, keepdims=True)
    return np.where(is_new_Pn, 1 / new, -1 / (is_new_Pn.shape[1] - new))


def _ks(weights_Pn: Array, values_n: Array) -> Array:
    """Kolmogorov–Smirnov distance [P]: the largest gap between both sets' distribution functions."""
    order = np.argsort(values_n, kind="stable")
    ends = np.flatnonzero(np.diff(values_n[order], append=np.inf) > 0)
    return np.abs(weights_Pn[:, order].cumsum(axis=1)[:, ends]).max(axis=1)


def _values(reference: Profile, of: Profile, measure: str) -> Array:
    """A measure [n]; of the class shares, how far each image is from the reference's mean."""
    if measure == CLASS_SHARES:
        return np.abs(of.shares - reference.shares.mean(axis=0)).sum(axis=1) / 2
    return of.measures[measure]
