"""Label errors: pixels whose label the model confidently contradicts.

Legend: C classes, H W image size, R regions, K regions that are doubted. A label is uint8 [H, W], class index
or 255.

Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels"), with pixels as examples. A pixel labeled i is counted as class j where p_j reaches t_j, the mean
self-confidence of the pixels that are labeled j (eqs. 1 and 2): the less confident the model is of a class,
the lower its threshold. Doubted pixels are ranked by the margin p_j − p_i, as in the paper's "prune by noise
rate"; here a region's score is the sum of its pixels' margins over its area.

The paper requires predictions of a model that was not trained on the labels. A model that was trained on them
has partly learned their errors, and finds fewer. With one class swapped in 485 of 9696 CamVid regions (5 %),
94 % of the first 485 regions were swapped ones for a model that was trained on the true labels, and 75 % for
a model that was trained on the wrong labels (400 iterations); of the first 200 regions, 100 % and 99.5 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RegionDoubts:
    """The K regions of one image that have doubted pixels, by row.

    Attributes:
        region: [K] row of the region.
        score: [K] sum of the margins of its doubted pixels / its area, 0 to 1.
        label, predicted: [K] the pair of classes (of the label, of the prediction) with the largest sum of
            margins.
        share: [K] doubted pixels of that pair / the region's area.
        confidence: [K] mean probability of `predicted` on them.
    """

    region: npt.NDArray[np.int64]
    score: Floats
    label: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    share: Floats
    confidence: Floats


@torch.inference_mode()
def self_confidence(probability: Tensor, label: Tensor) -> Floats:
    """Sums [2, C] over the labeled pixels of one image, by label: of the predicted probability of the label,
    and of pixels. The sums of several images add up.

    Args:
        probability: [C, H, W].
        label: uint8 [H, W] on the same device.
    """
    classes = probability.shape[0]
    counted = label != IGNORE
    index = label[counted].long()
    given = probability.permute(1, 2, 0)[counted].gather(1, index[:, None])[:, 0]
    columns = (given.double(), torch.ones_like(given, dtype=torch.float64))
    return np.stack([torch.bincount(index, column, minlength=classes).cpu().numpy() for column in columns])


def class_thresholds(sums: Floats) -> Floats:
    """t [C] from the sums [2, C]: the mean self-confidence of each class; of all pixels where no pixel has
    the label.

    >>> class_thresholds(np.array([[0.9, 1.0, 0], [1, 2.0, 0]])).round(3).tolist()
    [0.9, 0.5, 0.633]

    Raises:
        ValueError: no pixel is labeled.
    """
    total, pixels = sums
    if not pixels.any():
        raise ValueError("Expected at least one labeled pixel.")
    return np.divide(total, pixels, out=np.full(len(total), total.sum() / pixels.sum()), where=pixels > 0)


@dataclass(frozen=True)
class DoubtedPixels:
    """The doubted pixels [n] of one image, or of some of its rows.

    Attributes:
        region: row of each pixel's region.
        pair: class of the label · C + predicted class.
        margin, confidence: p_j − p_i, and p_j.
    """

    region: npt.NDArray[np.int64]
    pair: npt.NDArray[np.int64]
    margin: Floats
    confidence: Floats


@torch.inference_mode()
def doubted_pixels(
    probability: Tensor, label: Tensor, *, thresholds: Floats, rows: npt.NDArray[np.integer]
) -> DoubtedPixels:
    """The pixels whose label is doubted and that are in a region.

    Args:
        probability: calibrated [C, H, W] of an image, or of some of its rows.
        label: uint8 [H, W] on the same device; also 255 where a label does not count, as at its edges.
        thresholds: t [C].
        rows: region of each pixel [H, W], negative where there is none.
    """
    classes = probability.shape[0]
    known = label != IGNORE
    limit = torch.from_numpy(thresholds).to(probability)[:, None, None]
    confidence, predicted = probability.masked_fill(probability < limit, -1).max(dim=0)
    doubted = known & (confidence > 0) & (predicted != label)
    where = doubted.nonzero(as_tuple=True)
    given = label[where].long()
    confident = confidence[where]
    margin = (confident - probability[given, where[0], where[1]]).double().cpu().numpy()
    pair = (given * classes + predicted[where]).cpu().numpy()
    region = rows[tuple(index.cpu().numpy() for index in where)].astype(np.int64)
    sure = confident.double().cpu().numpy()
    inside = (region >= 0) & (margin > 0)
    return DoubtedPixels(region[inside], pair[inside], margin[inside], sure[inside])


def region_doubts(
    parts: Iterable[DoubtedPixels], *, classes: int, areas: npt.NDArray[np.integer]
) -> RegionDoubts:
    """The doubted pixels of one image by region: sums by pair of classes, reduced to the strongest pair.

    Args:
        parts: the pixels of the image's bands of rows.
        classes: C.
        areas: pixels of each region [R].
    """
    pixels_of = list(parts)
    region, pair, margin, confidence = (
        np.concatenate([getattr(part, name) for part in pixels_of])
        for name in ("region", "pair", "margin", "confidence")
    )
    keys, which = np.unique(region * classes**2 + pair, return_inverse=True)
    margins, sure, pixels = (
        np.bincount(which, weights=weights, minlength=len(keys)) for weights in (margin, confidence, None)
    )
    of_region, of_pair = np.divmod(keys, classes**2)
    strongest = np.lexsort((of_pair, -margins, of_region))
    found, first = np.unique(of_region[strongest], return_index=True)
    best = strongest[first]
    totals = np.bincount(np.searchsorted(found, of_region), weights=margins, minlength=len(found))
    label, predicted = np.divmod(of_pair[best], classes)
    return RegionDoubts(
        region=found,
        score=totals / areas[found],
        label=label,
        predicted=predicted,
        share=pixels[best] / areas[found],
        confidence=sure[best] / pixels[best],
    )
