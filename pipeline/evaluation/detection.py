"""How well a measure detects wrong pixels, and how useful it is for rejection, for each part of the pixels.

Legend: N pixels, M measures, E = 512 bins of a measure, P stored parts (see `parts`), b blocks, R resamples,
w = 4 side of a patch, Y patches of an image.

Errors are the positives; a larger measure predicts an error. All metrics but PAvPU follow from two
histograms, of right and of wrong pixels, and are exact for errors spread evenly within a bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.bootstrap import SHARE, BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MEASURE_BINS, MeasureBins
from pipeline.evaluation.metrics import area_under_risk_coverage, auroc, average_precision
from pipeline.evaluation.parts import Parts, with_whole

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

METRICS = ("auroc", "aupr", "fpr95", "aurc", "e_aurc", "augrc", "pavpu")
PATCH = 4
"""Side w of the patches of PAvPU, in pixels."""
COARSE_BINS = 128
"""Bins of about equal mass that resamples are counted in; the values themselves use all bins."""


@dataclass(frozen=True)
class Patches:
    """The patches of one image of which at least half is labeled, and the patch of each pixel.

    Attributes:
        patch: int64 [N], the patch of each labeled pixel; Y where the patch does not count.
        pixels: [Y] labeled pixels of each patch.
        parts: of each patch, the part of most of its labeled pixels.
    """

    patch: Tensor
    pixels: Tensor
    parts: Parts


@dataclass(frozen=True)
class PatchSums:
    """The sums of one measure for PAvPU: over patches, and the range of their mean uncertainty.

    Attributes:
        sums: [P, 2, 2] of accurate and inaccurate patches: their number, and their summed mean uncertainty.
        lowest, highest: mean uncertainty of a patch; inf and −inf without patches.
    """

    sums: Array
    lowest: float
    highest: float


def find_patches(valid_HW: Tensor, parts: Parts) -> Patches:
    """Cut an image into w×w patches, from the top left; a remainder at the right or below is left out."""
    height, width = valid_HW.shape
    rows, columns = height // PATCH, width // PATCH
    y, x = valid_HW.nonzero(as_tuple=True)
    inside = (y < rows * PATCH) & (x < columns * PATCH)
    patch_N = torch.where(inside, (y // PATCH) * columns + x // PATCH, rows * columns)
    labeled = torch.bincount(patch_N, minlength=rows * columns + 1)[:-1]
    kept = labeled * 2 >= PATCH**2
    count = int(kept.sum())
    renamed = torch.full((rows * columns + 1,), count, device=patch_N.device)
    renamed[:-1][kept] = torch.arange(count, device=patch_N.device)
    patch_N = renamed[patch_N]
    votes = torch.bincount(
        patch_N * parts.num_classes + parts.classes, minlength=(count + 1) * parts.num_classes
    )
    at_boundary = torch.bincount(patch_N, weights=parts.boundary.double(), minlength=count + 1)[:-1]
    pixels = labeled[kept].double()
    return Patches(
        patch=patch_N,
        pixels=pixels,
        parts=Parts(
            classes=votes.reshape(-1, parts.num_classes)[:-1].argmax(dim=1),
            boundary=at_boundary * 2 > pixels,
            num_classes=parts.num_classes,
        ),
    )


def patch_sums(value_N: Tensor, wrong_N: Tensor, patches: Patches) -> PatchSums:
    """A patch is as uncertain as the mean of its labeled pixels, and accurate if at least half are right."""
    size = len(patches.pixels) + 1
    errors = torch.bincount(patches.patch, weights=wrong_N.double(), minlength=size)[:-1]
    mean = torch.bincount(patches.patch, weights=value_N.double(), minlength=size)[:-1] / patches.pixels
    inaccurate = errors * 2 > patches.pixels
    return PatchSums(
        sums=patches.parts.count(inaccurate.long(), 2, mean),
        lowest=float(mean.min()) if len(mean) else np.inf,
        highest=float(mean.max()) if len(mean) else -np.inf,
    )


def error_histograms(
    measures: Mapping[str, Tensor],
    wrong: Mapping[str, Tensor],
    parts: Parts,
    *,
    bins: Mapping[str, MeasureBins],
) -> Array:
    """Right and wrong pixels by measure, least uncertain first: [M, P, 2, E].

    Args:
        measures: [N] uncertainties by name, larger is more uncertain.
        wrong: bool [N] for each measure, whether the class that is predicted with it is not the label.
        parts: of the pixels.
        bins: of each measure.
    """
    return np.stack(
        [
            parts.count(
                wrong[name].long() * MEASURE_BINS + bins[name].index(value_N), 2 * MEASURE_BINS
            ).reshape(-1, 2, MEASURE_BINS)
            for name, value_N in measures.items()
        ]
    )


def detection_estimates(
    errors: Array,
    patches: Array,
    *,
    tied: Flags,
    lowest: float,
    highest: float,
    bootstrap: BlockBootstrap,
) -> dict[str, list[Estimate]]:
    """Every metric of one measure, an estimate a part (the whole first, see `part_names`).

    Args:
        errors: [b, P, 2, E].
        patches: [b, P, 2, 2], from `patch_sums`.
        tied: [E], which bins hold one value only.
        lowest, highest: the range of the patches' mean uncertainty, over all blocks.
    """

    def of_pixels(sums: Array, tied: Flags) -> Array:
        return np.stack(list(error_metrics(with_whole(sums, axis=1), tied=tied).values()), axis=1)

    def of_patches(sums: Array) -> Array:
        return pavpu(with_whole(sums, axis=1), lowest=lowest, highest=highest)[:, None]

    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.concatenate(
            [of_pixels(errors.sum(axis=0)[None], tied)[0], of_patches(patches.sum(axis=0)[None])[0]]
        )
        joined, joined_tied = coarse(errors, tied)
        low, high = np.concatenate(
            [
                bootstrap.interval(partial(of_pixels, tied=joined_tied), joined, within=SHARE),
                bootstrap.interval(of_patches, patches, within=SHARE),
            ],
            axis=1,
        )
    return {
        metric: [
            Estimate(*map(float, numbers)) for numbers in zip(value[row], low[row], high[row], strict=True)
        ]
        for row, metric in enumerate(METRICS)
    }


def error_metrics(errors: Array, *, tied: Flags) -> dict[str, Array]:
    """The metrics of pixels [...] from histograms [..., 2, E], in the order of `METRICS`; `tied` [E] are the
    bins of one value. NaN where a metric
    is not defined: where all pixels are right, or all wrong, or there are none."""
    right, wrong = errors[..., 0, :], errors[..., 1, :]
    aurc = area_under_risk_coverage(right, wrong)
    return {
        "auroc": auroc(right, wrong),
        "aupr": average_precision(right, wrong, tied=tied),
        "fpr95": false_positive_rate(right, wrong, tied=tied, at=0.95),
        "aurc": aurc,
        "e_aurc": aurc - optimal_risk(right, wrong),
        "augrc": generalized_risk(right, wrong),
    }


def false_positive_rate(right: Array, wrong: Array, *, tied: Flags, at: float) -> Array:
    """The share of right pixels that are flagged when the share `at` of the wrong pixels is: the FPR at this
    TPR, from histograms [..., E], the most uncertain pixels flagged first, those of a `tied` bin together."""
    flagged_wrong = wrong[..., ::-1].cumsum(axis=-1)
    flagged_right = right[..., ::-1].cumsum(axis=-1)
    target = at * flagged_wrong[..., -1:]
    index = (flagged_wrong < target * (1 - 1e-12)).sum(axis=-1, keepdims=True).clip(max=right.shape[-1] - 1)
    found_wrong = np.take_along_axis(wrong[..., ::-1], index, axis=-1)
    found_right = np.take_along_axis(right[..., ::-1], index, axis=-1)
    missing = np.take_along_axis(flagged_wrong, index, axis=-1) - target
    missing = np.where(tied[::-1][index], 0.0, missing)
    flagged = np.take_along_axis(flagged_right, index, axis=-1) - found_right * missing / found_wrong
    return (flagged / flagged_right[..., -1:])[..., 0]


def optimal_risk(right: Array, wrong: Array) -> Array:
    """AURC of the ranking that puts every wrong pixel last: r + (1 − r)·ln(1 − r) with error rate r; AURC
    less this is the excess AURC (Geifman et al. 2019)."""
    rate = wrong.sum(axis=-1) / (right + wrong).sum(axis=-1)
    return rate + np.where(rate < 1, (1 - rate) * np.log1p(-rate.clip(max=1 - 1e-15)), 0.0)


def generalized_risk(right: Array, wrong: Array) -> Array:
    """AUGRC (Traub et al. 2024): the mean, over coverage from 0 to 1, of the share of all pixels
    that are kept and wrong. From histograms [..., E]."""
    size = right + wrong
    kept_wrong = wrong.cumsum(axis=-1) - wrong / 2
    return (size * kept_wrong).sum(axis=-1) / size.sum(axis=-1) ** 2


def pavpu(sums: Array, *, lowest: float, highest: float) -> Array:
    """Patch accuracy versus patch uncertainty (Mukhoti & Gal 2018), its area over all thresholds.

    PAvPU(t) = (accurate certain + inaccurate uncertain patches) / patches, a patch being uncertain when its
    mean uncertainty u is at least t. Over thresholds spread evenly from the lowest to the highest u of any
    patch, an accurate patch counts on the share 1 − v of them and an inaccurate one on the share
    v = (u − lowest) / (highest − lowest). So the area is a mean over patches, and needs sums only.

    Args:
        sums: [..., 2, 2] of accurate and inaccurate patches: number, and summed u.
    """
    count, total = sums[..., 0], sums[..., 1]
    scaled = (total - lowest * count) / (highest - lowest) if highest > lowest else np.zeros_like(total)
    agreeing = count[..., 0] - scaled[..., 0] + scaled[..., 1]
    return agreeing / count.sum(axis=-1)


def separation(known: Array, novel: Array, *, bootstrap: BlockBootstrap) -> Estimate:
    """Out-of-distribution AUROC: the probability that a pixel of a novel input is more uncertain than one of
    a known input, from histograms [b, E] of each."""

    def of_sums(sums: Array) -> Array:
        return auroc(sums[..., 0, :], sums[..., 1, :])

    with np.errstate(divide="ignore", invalid="ignore"):
        return bootstrap.estimate(of_sums, np.stack([known, novel], axis=1), within=SHARE)


def coarse(errors: Array, tied: Flags) -> tuple[Array, Flags]:
    """Histograms [..., 2, E] with neighbouring bins joined, until each has about 1/128 of the pixels, right
    and wrong ones counting alike; and which of them hold one value only. A tied bin of that share is not
    joined."""
    right, wrong = errors.sum(axis=tuple(range(errors.ndim - 2)))
    mass = right / max(right.sum(), 1) + wrong / max(wrong.sum(), 1)
    before = mass.cumsum() - mass
    group = (before / max(mass.sum(), 1e-300) * COARSE_BINS).astype(np.int64)
    alone = tied & (mass >= mass.sum() / COARSE_BINS)
    starts = np.flatnonzero(np.diff(group, prepend=-1).astype(bool) | alone | np.roll(alone, 1))
    return np.add.reduceat(errors, starts, axis=-1), alone[starts]
