"""Histogram binning (Zadrozny & Elkan 2001) of the winner's confidence (top label: Gupta & Ramdas 2022).

Legend: S terms of a pixel's probability, C classes, N pixels, K bins, h and w the logits' height and
width, `...` any leading axes.

Bins are cut on the winner's log-odds, z_top − ln Σ_others exp(z), which grow with its confidence and keep
apart what float32 rounds to a confidence of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.calibration.fit import Pixels
from pipeline.calibration.scaling import Calibrator, planes

BINS = 15
ROUNDS = 20
"""Iterations of expectation–maximisation, where there are several samples."""


@dataclass(frozen=True)
class HistogramBinning(Calibrator):
    """The winner's confidence is the accuracy of its bin; the other classes share the rest as they did.

    Where a bin's accuracy is low, the second class may win.

    Attributes:
        edges: of the winner's log-odds, ascending, K − 1.
        accuracies: K, each between 0 and 1, both excluded.

    >>> half = HistogramBinning(edges=(0.0,), accuracies=(0.25, 0.5))
    >>> half(torch.tensor([4.0, 1.0, 1.0]).reshape(3, 1, 1)).softmax(dim=0).flatten().tolist()
    [0.5, 0.25, 0.25]

    Raises:
        ValueError: the edges do not ascend, or an accuracy is not between 0 and 1.
    """

    name = "histogram"
    edges: tuple[float, ...]
    accuracies: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.accuracies) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(
                "Expected ascending edges and one accuracy more, but got "
                f"{len(self.edges)} and {len(self.accuracies)}."
            )
        if not all(0 < accuracy < 1 for accuracy in self.accuracies):
            raise ValueError(f"Expected accuracies between 0 and 1, but got {list(self.accuracies)}.")

    def __call__(self, logits: Tensor) -> Tensor:
        winner, rest, log_odds = _winner(logits)
        index = torch.bucketize(log_odds, planes(self.edges, logits.device).flatten(), right=True)
        accuracy = planes(self.accuracies, logits.device).flatten()[index]
        others = logits - rest + torch.log1p(-accuracy)
        return others.scatter(-3, winner, accuracy.log())


def fit_histogram(pixels: Pixels) -> HistogramBinning:
    """Bins of equal mass; of each, Jeffreys' accuracy (k + ½) / (n + 1) over its n pixels.

    With S terms, their weighted mean is calibrated: each term of a pixel counts by its share of the pixel's
    likelihood, r_s = w_s p_s[label] / Σ_s w_s p_s[label], and counts and shares are updated in turn
    (expectation–maximisation: the NLL of the mean never rises). With S = 1 this is plain counting.
    """
    winner, rest, log_odds = (part[:, 0, :, 0] for part in _winner(pixels.logits[..., None]))
    weights_N = (pixels.weights * (len(pixels) / pixels.weights.sum())).double()
    edges = _equal_mass(log_odds, weights_N * pixels.prior)
    index_SN = torch.bucketize(log_odds, torch.tensor(edges), right=True)
    right_SN = winner == pixels.labels
    label_SN = pixels.logits.gather(1, pixels.labels.view(1, 1, -1).expand(len(winner), 1, -1))[:, 0]
    log_rest_SN = (label_SN - rest).double()
    prior_SN = pixels.prior.double()
    share_SN = prior_SN
    accuracies = torch.empty(0)
    for _ in range(ROUNDS if len(winner) > 1 else 1):
        mass_SN = share_SN * weights_N
        counts = torch.bincount(index_SN.flatten(), mass_SN.flatten(), minlength=len(edges) + 1)
        hits = torch.bincount(index_SN.flatten(), (mass_SN * right_SN).flatten(), minlength=len(edges) + 1)
        accuracies = (hits + 0.5) / (counts + 1)
        accuracy_SN = accuracies[index_SN]
        likelihood_SN = torch.where(right_SN, accuracy_SN.log(), log_rest_SN + (1 - accuracy_SN).log())
        share_SN = (likelihood_SN + prior_SN.log()).softmax(dim=0)
    return HistogramBinning(edges=tuple(edges), accuracies=tuple(accuracies.tolist()))


def _winner(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The winning class, ln Σ_others exp(z), and the winner's log-odds: each [..., 1, h, w]."""
    top, winner = logits.max(dim=-3, keepdim=True)
    rest = logits.scatter(-3, winner, -math.inf).logsumexp(dim=-3, keepdim=True)
    return winner, rest, top - rest


def _equal_mass(values: Tensor, weights: Tensor) -> list[float]:
    """Edges between bins of equal weight, each once."""
    ordered, order = values.flatten().sort()
    mass = weights.flatten()[order].cumsum(dim=0)
    targets = mass[-1] * torch.arange(1, BINS, dtype=mass.dtype) / BINS
    places = torch.searchsorted(mass, targets).clamp_(max=len(ordered) - 1)
    return ordered[places].unique().tolist()
