"""All calibrators compared by cross-fitting: the best one, and whether its scores are probabilities.

Legend: T samples, C classes, N pixels, b blocks of images, R resamples, K bins of confidence.

Each calibrator is fitted on one half of the images and evaluated on the other, and the reverse, so that none
is evaluated on the pixels that it was fitted on. Halves consist of blocks of neighbouring images, and every
number has a bootstrap interval over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.calibration.calibrators import KINDS, Calibrator, Identity, Temperature
from pipeline.calibration.fit import Pixels, fit_temperature, log_probability
from pipeline.calibration.histogram import fit_histogram
from pipeline.calibration.scaling import fit_classwise, fit_vector
from pipeline.calibration.selective import fit_selective
from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.metrics import calibration_error, calibration_noise

FIT_VALUES = {"temperature": 4_000_000, "histogram": 2_000_000}
"""Logits that a calibrator is fitted on: more would hardly change these few parameters."""
GRADIENT_VALUES = 1_000_000
"""The same for calibrators that are fitted by gradients, which take some 30 passes."""
PASSING_ECE = 0.05
"""A calibrator passes when the upper end of its ECE's interval is below this."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedCalibrator:
    """One calibrator, fitted on all pixels, and evaluated by fits on other pixels.

    Attributes:
        calibrator: fitted on all pixels.
        nll: mean NLL in nats.
        nll_change: the same less that of the uncalibrated scores, on the same pixels.
        ece: expected calibration error of the winner's confidence.
        brier: Σ_c (p_c − [label is c])², 0 to 2.
        ece_noise: the ECE that so few blocks would show by chance if calibration were perfect; NaN for one.
        labels_changed: share of pixels whose predicted class (of the mean over samples) it changes.
        winners_changed: whether it changes the winner of any single sample. A temperature never does, and
            still a mean of softened samples may have another winner.
    """

    calibrator: Calibrator
    nll: Estimate
    nll_change: Estimate
    ece: Estimate
    brier: Estimate
    ece_noise: float
    labels_changed: float
    winners_changed: bool

    @property
    def name(self) -> str:
        return self.calibrator.name

    @property
    def worse(self) -> bool:
        """Whether its NLL is above that of the uncalibrated scores beyond the interval of the difference."""
        return self.nll_change.low > 0

    def document(self) -> dict[str, Any]:
        """The stored JSON."""
        return {
            "name": self.name,
            "nll": self.nll.document(digits=None),
            "nll_change": self.nll_change.document(digits=None),
            "ece": self.ece.document(digits=None),
            "brier": self.brier.document(digits=None),
            "ece_noise": to_json(self.ece_noise, None),
            "labels_changed": self.labels_changed,
            "parameters": self.calibrator.parameters,
        }


@dataclass(frozen=True)
class Comparison:
    """All calibrators, evaluated on the same pixels.

    Attributes:
        fitted: by name, identity first.
        cross_fitted: whether there were two halves; if not, each is evaluated on the pixels
            that it was fitted on, and none passes.
    """

    fitted: dict[str, FittedCalibrator]
    cross_fitted: bool

    @property
    def auto(self) -> str:
        """The calibrator with the lowest NLL among those that change no winner."""
        allowed = [item for item in self.fitted.values() if not item.winners_changed]
        return min(allowed, key=lambda item: item.nll.value).name

    def passed(self, name: str) -> bool:
        """Whether this calibrator's scores may be called probabilities.

        On images that it was not fitted on, its NLL must not be above that of the uncalibrated scores beyond
        the interval of their difference, and the upper end of its ECE's interval must be below 0.05: then,
        with the configured confidence, a predicted 90 % is off by less than 5 points on average. With few
        blocks the interval is wide and calibrators rarely pass; with a single block, or without two halves,
        none passes.
        """
        item = self.fitted[name]
        return self.cross_fitted and not item.worse and item.ece.high < PASSING_ECE


def fit_calibrator(name: str, pixels: Pixels) -> Calibrator:
    """A calibrator of this kind, fitted on as many of the pixels as its parameters need.

    Raises:
        ValueError: there is no such calibrator.
    """
    some = pixels.thinned(FIT_VALUES.get(name, GRADIENT_VALUES))
    fitters: dict[str, Callable[[Pixels], Calibrator]] = {
        "identity": lambda _: Identity(),
        "temperature": lambda pixels: Temperature(fit_temperature(pixels)),
        "classwise_temperature": fit_classwise,
        "vector": fit_vector,
        "histogram": fit_histogram,
        "selective": fit_selective,
    }
    if name not in fitters:
        raise ValueError(f"Expected a calibrator of {list(fitters)}, but got {name!r}.")
    return fitters[name](some)


def cross_fit(
    pixels: Pixels,
    blocks: npt.NDArray[np.int64],
    config: EvaluationConfig,
    *,
    seed: int,
    names: Sequence[str] = tuple(KINDS),
) -> Comparison:
    """Fit every calibrator on each half of the blocks, and evaluate it on the other.

    Args:
        blocks: of each image, numbered from 0; `pixels.images` are rows of it.
        config, seed: of the ECE's bins and of the bootstrap.
        names: calibrators; `identity` is always among them.
    """
    block_N = torch.from_numpy(blocks)[pixels.images]
    evaluated = _Evaluated.of(pixels, block_N)
    half_N = _halves(pixels, block_N)
    cross_fitted = bool((half_N == 0).any() and (half_N == 1).any())
    halves = [evaluated.where(half_N == half) for half in (0, 1)] if cross_fitted else []
    fitted: dict[str, FittedCalibrator] = {}
    uncalibrated: _Sums | None = None
    for name in dict.fromkeys(("identity", *names)):
        whole = fit_calibrator(name, pixels)
        sums = _Sums(blocks=int(block_N.max()) + 1, bins=config.bins)
        for half, held_out in zip(halves, halves[::-1], strict=True):
            sums.add(fit_calibrator(name, half.pixels), held_out)
        if not cross_fitted:
            sums.add(whole, evaluated)
        uncalibrated = uncalibrated or sums
        fitted[name] = sums.result(whole, uncalibrated, config, seed=seed)
    return Comparison(fitted=fitted, cross_fitted=cross_fitted)


def evaluate_calibrator(
    calibrator: Calibrator,
    pixels: Pixels,
    blocks: npt.NDArray[np.int64],
    config: EvaluationConfig,
    *,
    seed: int,
) -> FittedCalibrator:
    """Evaluate a calibrator that was fitted on other pixels.

    Args:
        blocks: of each image, numbered from 0; `pixels.images` are rows of it.
    """
    evaluated = _Evaluated.of(pixels, torch.from_numpy(blocks)[pixels.images])
    sums, uncalibrated = (_Sums(blocks=int(blocks.max()) + 1, bins=config.bins) for _ in range(2))
    sums.add(calibrator, evaluated)
    uncalibrated.add(Identity(), evaluated)
    return sums.result(calibrator, uncalibrated, config, seed=seed)


def _halves(pixels: Pixels, block_N: Tensor) -> Tensor:
    """0 or 1: every second block, so that neighbours stay together; every second image of a single block."""
    _, turn = (block_N if block_N.unique().numel() > 1 else pixels.images).unique(return_inverse=True)
    return turn % 2


@dataclass(frozen=True)
class _Evaluated:
    """Pixels for the evaluation, the block [N] of each, and its predicted class [N] without a calibrator."""

    pixels: Pixels
    block: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, pixels: Pixels, block_N: Tensor) -> _Evaluated:
        parts = [log_probability(Identity(), part.logits).argmax(dim=0) for part in pixels.parts()]
        return cls(pixels, block_N, torch.cat(parts))

    def where(self, keep: Tensor) -> _Evaluated:
        return _Evaluated(self.pixels.where(keep), self.block[keep], self.predicted[keep])


class _Sums:
    """Weighted sums over pixels, a row for each block, which all metrics are computed from."""

    def __init__(self, *, blocks: int, bins: int) -> None:
        self.blocks, self.bins = blocks, bins
        self.totals = np.zeros((blocks, 3))
        """Weight, NLL, Brier score."""
        self.reliability = np.zeros((blocks, bins, 3))
        """Weight, confidence, accuracy."""
        self.changed = 0.0
        self.winners_changed = False

    def add(self, calibrator: Calibrator, evaluated: _Evaluated) -> None:
        """Add the sums of these pixels with a calibrator."""
        start = 0
        for part in evaluated.pixels.parts():
            some = slice(start, start + len(part))
            self._add(calibrator, part, evaluated.block[some], evaluated.predicted[some])
            start = some.stop

    def _add(self, calibrator: Calibrator, pixels: Pixels, block_N: Tensor, before_N: Tensor) -> None:
        weight_N = pixels.weights.double()
        log_p_CN = log_probability(calibrator, pixels.logits)
        p_CN = log_p_CN.exp()
        nll_N = -log_p_CN.gather(0, pixels.labels[None])[0].double()
        brier_N = (p_CN.square().sum(dim=0) - 2 * p_CN.gather(0, pixels.labels[None])[0] + 1).double()
        confidence_N, predicted_N = p_CN.max(dim=0)
        columns = (weight_N, weight_N * nll_N, weight_N * brier_N)
        self.totals += _summed(block_N, self.blocks, columns)
        bin_N = (confidence_N * self.bins).long().clamp_(max=self.bins - 1)
        right_N = (predicted_N == pixels.labels).double()
        columns = (weight_N, weight_N * confidence_N.double(), weight_N * right_N)
        found = _summed(block_N * self.bins + bin_N, self.blocks * self.bins, columns)
        self.reliability += found.reshape(self.blocks, self.bins, 3)
        self.changed += float((weight_N * (before_N != predicted_N)).sum())
        if not self.winners_changed:
            self.winners_changed = _changes_winners(calibrator, pixels.logits)

    def result(
        self, calibrator: Calibrator, uncalibrated: _Sums, config: EvaluationConfig, *, seed: int
    ) -> FittedCalibrator:
        """The metrics of this calibrator, with their change against the same pixels without one."""
        weighed = self.totals[:, 0] > 0
        totals, reliability = self.totals[weighed], self.reliability[weighed]
        change = totals[:, 1] - uncalibrated.totals[weighed, 1]
        count = len(totals)
        bootstrap = BlockBootstrap.draw(count, config, seed=seed)

        def estimate(of: Callable[[Array], Array]) -> Estimate:
            low, high = bootstrap.percentiles(of(bootstrap.weights))
            return Estimate(float(of(np.ones((1, count)))[0]), float(low), float(high))

        noise = calibration_noise(reliability, bootstrap.weights) if count > 1 else np.array(math.nan)
        return FittedCalibrator(
            calibrator=calibrator,
            nll=estimate(lambda rows: rows @ totals[:, 1] / (rows @ totals[:, 0])),
            nll_change=estimate(lambda rows: rows @ change / (rows @ totals[:, 0])),
            ece=estimate(lambda rows: calibration_error(np.tensordot(rows, reliability, axes=1))),
            brier=estimate(lambda rows: rows @ totals[:, 2] / (rows @ totals[:, 0])),
            ece_noise=float(noise.mean()),
            labels_changed=self.changed / float(totals[:, 0].sum()),
            winners_changed=self.winners_changed,
        )


def _summed(index_N: Tensor, rows: int, columns: Sequence[Tensor]) -> Array:
    """[rows, len(columns)] sums of each column by index."""
    return torch.stack([torch.bincount(index_N, column, minlength=rows) for column in columns], dim=1).numpy()


def _changes_winners(calibrator: Calibrator, logits_TCN: Tensor) -> bool:
    """Whether any sample's winner changes; a tie that is due to rounding does not count."""
    after = calibrator(logits_TCN[..., None])[..., 0]
    winner = logits_TCN.argmax(dim=1, keepdim=True)
    return bool((after.gather(1, winner)[:, 0] < after.amax(dim=1)).any())
