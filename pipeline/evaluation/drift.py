"""Drift of the pool: two sets of images under the same scorer, compared measure by measure.

Legend: n images, m and k images of the reference and of the new set, C classes, b blocks, P permutations.

Each image has one number a measure, and neighbouring images are alike: so permutations exchange blocks, not
images (Good 2005, on exchangeable units), and the p-values of several measures are corrected together (Holm
1979). In a pool of a million images every difference is significant, so a difference is reported only if it
is also large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.bootstrap import blocks

Array = npt.NDArray[np.float64]

DRIFT_MEASURES = ("entropy", "least_confidence", "energy", "max_logit")
CLASS_SHARES = "class_shares"
LARGE: Mapping[str, float] = {**dict.fromkeys(DRIFT_MEASURES, 0.3), CLASS_SHARES: 0.15}
"""Smallest distances that cause a warning: for a measure, a threshold that 30 % more of one set exceeds; for
classes, 15 % of the predicted pixels in other classes."""
SIGNIFICANCE = 0.05
PERMUTATIONS = 999
AT_ONCE = 100


@dataclass(frozen=True)
class Profile:
    """The measures and predicted classes of n images.

    Attributes:
        ids: int64 [n].
        measures: float64 [n], for each of `DRIFT_MEASURES`.
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
class Difference:
    """How far two sets lie apart in one measure. `p` is corrected; `drifted`: both significant and large."""

    measure: str
    distance: float
    p: float
    drifted: bool


@dataclass(frozen=True)
class ShiftedImage:
    """A new image with an extreme value of a drifted measure; `percentile` is among the reference images."""

    image_id: int
    measure: str
    value: float
    percentile: float


def differences(reference: Profile, new: Profile, *, block: int, seed: int) -> list[Difference]:
    """The distance of each measure, and of the class shares, with its p-value.

    Measures: the Kolmogorov–Smirnov distance, 0 to 1. Class shares: the total variation distance between
    the mean shares, 0 to 1.

    Args:
        block: neighbouring images of a sequence that are permuted together.

    Raises:
        ValueError: a set is empty.
    """
    if len(reference.ids) == 0 or len(new.ids) == 0:
        raise ValueError("Expected images on both sides, but got none.")
    block_n, is_new_b = _deal(reference, new, block=block)
    shuffled = _permutations(is_new_b, seed=seed)
    values = {name: np.r_[reference.measures[name], new.measures[name]] for name in DRIFT_MEASURES}
    shares = np.concatenate([reference.shares, new.shares])
    names = (*DRIFT_MEASURES, CLASS_SHARES)

    def distances(is_new_Pb: npt.NDArray[np.bool_]) -> Array:
        weights = _signed_weights(is_new_Pb[:, block_n])
        found = [_ks(weights, values[name]) for name in DRIFT_MEASURES]
        found.append(np.abs(weights @ shares).sum(axis=1) / 2)
        return np.stack(found, axis=1)

    observed = distances(is_new_b[None])[0]
    drawn = np.concatenate(
        [distances(shuffled[start : start + AT_ONCE]) for start in range(0, len(shuffled), AT_ONCE)]
    )
    p = holm((1 + (drawn >= observed - 1e-12).sum(axis=0)) / (1 + len(drawn)))
    return [
        Difference(
            measure=name,
            distance=float(distance),
            p=float(corrected),
            drifted=bool(corrected <= SIGNIFICANCE and distance >= LARGE[name]),
        )
        for name, distance, corrected in zip(names, observed, p, strict=True)
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


def holm(p: Array) -> Array:
    """p-values corrected for their number by Holm's step-down procedure (1979), at most 1.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty_like(steps)
    corrected[order] = steps.clip(max=1.0)
    return corrected


def _deal(
    reference: Profile, new: Profile, *, block: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The block [n] of each image, the reference's first, and whether each block [b] is new."""
    mine = [blocks(side.groups, side.positions, block) for side in (reference, new)]
    first = int(mine[0].max()) + 1
    block_n = np.concatenate([mine[0], mine[1] + first])
    return block_n, np.arange(int(block_n.max()) + 1) >= first


def _permutations(is_new_b: npt.NDArray[np.bool_], *, seed: int) -> npt.NDArray[np.bool_]:
    """[P, b], each row with as many new blocks."""
    generator = np.random.default_rng(seed)
    return generator.permuted(np.broadcast_to(is_new_b, (PERMUTATIONS, len(is_new_b))), axis=1)


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
