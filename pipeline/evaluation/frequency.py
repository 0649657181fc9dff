"""The class-frequency test: whether pixels predicted as (a %, b %, c %) have labels in these shares.

Legend: N pixels, C classes, G groups, b blocks, R resamples.

Pixels are grouped by their whole predicted vector, around centroids that k-means finds on other images; in
each group the mean prediction is compared with the shares of the labels. A reliability diagram tests the
winner only; this tests all classes (the canonical calibration of Vaicenavicius et al. 2019).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from pipeline.evaluation.bootstrap import SHARE, BlockBootstrap

Array = npt.NDArray[np.float64]

GROUPS = 40
FEWEST_BLOCKS = 3
"""A group in fewer blocks has no useful interval, and is left out."""
FEWEST_PIXELS = 50
"""Labeled pixels of a group in a block, below which the block does not count for it."""
SMALLEST_SHARE = 0.01
"""Share of a class in a group, predicted and labeled, below which it is not tested, as nearly all succeed."""


@dataclass(frozen=True)
class FrequencyGroup:
    """One group, C numbers each.

    Attributes:
        share: of all pixels, in this group.
        predicted: mean predicted vector.
        empirical: shares of the labels.
        low, high: interval of the empirical shares.
        tested: classes that are predicted or labeled often enough.
        covered: whether the interval contains the prediction.
    """

    share: float
    predicted: Array
    empirical: Array
    low: Array
    high: Array
    tested: npt.NDArray[np.bool_]
    covered: npt.NDArray[np.bool_]


def fit_groups(probability_NC: Array, *, groups: int = GROUPS, seed: int = 0) -> Array:
    """Centroids [G, C] of predicted vectors, by k-means++ (Arthur & Vassilvitskii 2007); G is smaller where
    there are fewer different vectors.

    Raises:
        ValueError: there is no vector.
    """
    distinct = np.unique(probability_NC, axis=0)
    if len(distinct) == 0:
        raise ValueError("Expected at least one predicted vector, but got none.")
    if len(distinct) <= groups:
        return distinct
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty group is dropped below
        centroids, member = kmeans2(
            probability_NC, groups, minit="++", rng=np.random.default_rng(seed), missing="warn"
        )
    return centroids[np.unique(member)]


def frequency_sums(probability_CN: Tensor, label_N: Tensor, centroids: Tensor) -> Array:
    """Summed prediction and labels of each group: [G, 2, C].

    Args:
        centroids: float32 [G, C] on the device of the others.
    """
    groups, classes = centroids.shape
    distance_NG = torch.addmm((centroids**2).sum(dim=1), probability_CN.T, centroids.T, alpha=-2)
    group_N = distance_NG.argmin(dim=1)
    predicted = torch.stack(
        [torch.bincount(group_N, weights=plane.double(), minlength=groups) for plane in probability_CN], dim=1
    )
    labels = torch.bincount(group_N * classes + label_N, minlength=groups * classes)
    return torch.stack([predicted, labels.reshape(groups, classes).double()], dim=1).cpu().numpy()


def frequency_test(sums: Array, *, bootstrap: BlockBootstrap) -> list[FrequencyGroup]:
    """The groups that are in enough blocks, the largest first, from sums [b, G, 2, C].

    A share that is 0 in all b' blocks of a group has no spread to resample; its upper end is that of no
    success in b' trials (Clopper & Pearson 1934), and likewise for 1.
    """
    total = sums.sum(axis=0)
    pixels = total[:, 1].sum(axis=1)
    blocks = (sums[:, :, 1].sum(axis=2) >= FEWEST_PIXELS).sum(axis=0)
    kept = np.flatnonzero(blocks >= FEWEST_BLOCKS)
    kept = kept[np.argsort(-pixels[kept], kind="stable")]
    if len(kept) == 0:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = bootstrap.interval(_shares, sums[:, kept], within=SHARE)
        predicted = total[kept, 0] / pixels[kept, None]
        empirical = total[kept, 1] / pixels[kept, None]
    reach = 1 - ((1 - bootstrap.confidence) / 2) ** (1 / blocks[kept, None])
    high = np.where(empirical == 0, reach, high)
    low = np.where(empirical == 1, 1 - reach, low)
    tested = np.maximum(predicted, empirical) >= SMALLEST_SHARE
    inside = (low <= predicted) & (predicted <= high)
    return [
        FrequencyGroup(
            share=float(pixels[group] / pixels.sum()),
            predicted=predicted[row],
            empirical=empirical[row],
            low=low[row],
            high=high[row],
            tested=tested[row],
            covered=inside[row],
        )
        for row, group in enumerate(kept)
    ]


def covered(groups: list[FrequencyGroup]) -> float:
    """The share of tested (group, class) cells whose interval contains the prediction; NaN without any."""
    cells = np.concatenate([group.covered[group.tested] for group in groups]) if groups else np.zeros(0)
    return float(cells.mean()) if len(cells) else float("nan")


def _shares(sums: Array) -> Array:
    labels = sums[..., 1, :]
    return labels / labels.sum(axis=-1, keepdims=True)
