"""All calibrators compared by cross-fitting: the best one, and whether its scores are probabilities.

Legend: S terms of a pixel's probability, C classes, N pixels, b independent units of images, R resamples,
K bins of confidence.

Each calibrator is fitted on one half of the images and evaluated on the other, and the reverse, so that none
is evaluated on the pixels that it was fitted on. Halves consist of whole groups, or of the first and the last
units of a single one, and every number has an interval over units (see `evaluation.units`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from pipeline.evaluation.bootstrap import ANY, LOSS, SHARE, BlockBootstrap
from pipeline.evaluation.confidence import refusal
from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.metrics import calibration_error, calibration_noise
from pipeline.evaluation.units import Runs, ratio_residuals
from pipeline.progress import CountedParts, Progress, silent

FIT_VALUES = {"temperature": 4_000_000, "histogram": 2_000_000}
"""Logits that a calibrator is fitted on: more would hardly change these few parameters."""
GRADIENT_VALUES = 1_000_000
"""The same for calibrators that are fitted by gradients, which take some 30 passes."""

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
        ece_noise: the ECE that so few units would show by chance if calibration were perfect; NaN for one.
        labels_changed: share of pixels whose predicted class (of the mean over samples) it changes.
        winners_changed: whether it changes the winner of any single term. A temperature never does, and
            still a mean of softened terms may have another winner.
        sums: [b, 2], the weight and the summed NLL of each independent unit.
    """

    calibrator: Calibrator
    nll: Estimate
    nll_change: Estimate
    ece: Estimate
    brier: Estimate
    ece_noise: float
    labels_changed: float
    winners_changed: bool
    sums: Array = field(repr=False)

    @property
    def name(self) -> str:
        return self.calibrator.name

    @property
    def worse(self) -> bool:
        """Whether its NLL is above that of the uncalibrated scores beyond the interval of the difference."""
        return self.nll_change.low > 0

    def standard_error(self, other: FittedCalibrator) -> float:
        """Standard error of the difference of their NLL on the same pixels, over independent units;
        ∞ with fewer than two."""
        weight, difference = self.sums[:, 0], self.sums[:, 1] - other.sums[:, 1]
        count = len(weight)
        if count < 2:
            return math.inf
        residuals = (difference - weight * (difference.sum() / weight.sum())) / weight.sum()
        return math.sqrt(count / (count - 1) * float((residuals**2).sum()))

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
        fitted: by name, the simplest first, as in `KINDS`.
        cross_fitted: whether there were two halves; if not, each is evaluated on the pixels
            that it was fitted on, and none passes.
        units: the number of independent units.
    """

    fitted: dict[str, FittedCalibrator]
    cross_fitted: bool
    units: int

    @property
    def auto(self) -> str:
        """The simplest calibrator whose NLL is at most one standard error above the lowest one (Breiman et
        al. 1984, section 3.4.3), among those that change no winner.

        The error is that of the difference to the best one. With a single unit there is none, and so nothing
        shows that any calibrator helps: then it is the identity.
        """
        allowed = [item for item in self.fitted.values() if not item.winners_changed]
        best = min(allowed, key=lambda item: item.nll.value)
        within = (
            item.name
            for item in allowed
            if item.nll.value - best.nll.value <= item.standard_error(best) or item is best
        )
        return next(within)

    def refusal(self, name: str) -> str | None:
        """Why this calibrator's scores are no probabilities; None where they are (see
        `evaluation.confidence`)."""
        item = self.fitted[name]
        return refusal(
            cross_fitted=self.cross_fitted, units=self.units, nll_change=item.nll_change, ece=item.ece
        )


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
    runs: Runs,
    config: EvaluationConfig,
    *,
    seed: int,
    names: Sequence[str] = tuple(KINDS),
    progress: Progress = silent,
) -> Comparison:
    """Fit every calibrator on each half of the images, and evaluate it on the other.

    Args:
        runs: of the images; `pixels.images` are rows of `runs.of_image`.
        config, seed: of the ECE's bins and of the bootstrap.
        names: calibrators; `identity` is always among them.
    """
    evaluated, count = _in_units(pixels, runs, bins=config.bins)
    half_N = _halves(torch.from_numpy(runs.of_image)[pixels.images], runs, evaluated.unit)
    cross_fitted = bool((half_N == 0).any() and (half_N == 1).any())
    halves = [evaluated.where(half_N == half) for half in (0, 1)] if cross_fitted else []
    fitted: dict[str, FittedCalibrator] = {}
    uncalibrated: _Sums | None = None
    kinds = [kind for kind in KINDS if kind == "identity" or kind in names]
    compared = CountedParts(progress, "fit calibrators", len(kinds))
    for name in kinds:
        whole = fit_calibrator(name, pixels)
        sums = _Sums(units=count, bins=config.bins)
        for half, held_out in zip(halves, halves[::-1], strict=True):
            sums.add(fit_calibrator(name, half.pixels), held_out)
        if not cross_fitted:
            sums.add(whole, evaluated)
        uncalibrated = uncalibrated or sums
        fitted[name] = sums.result(whole, uncalibrated, config, seed=seed)
        compared.done()
    return Comparison(fitted=fitted, cross_fitted=cross_fitted, units=count)


def evaluate_calibrator(
    calibrator: Calibrator,
    pixels: Pixels,
    runs: Runs,
    config: EvaluationConfig,
    *,
    seed: int,
) -> FittedCalibrator:
    """Evaluate a calibrator that was fitted on other pixels.

    Args:
        runs: of the images; `pixels.images` are rows of `runs.of_image`.
    """
    evaluated, count = _in_units(pixels, runs, bins=config.bins)
    sums, uncalibrated = (_Sums(units=count, bins=config.bins) for _ in range(2))
    sums.add(calibrator, evaluated)
    uncalibrated.add(Identity(), evaluated)
    return sums.result(calibrator, uncalibrated, config, seed=seed)


def _in_units(pixels: Pixels, runs: Runs, *, bins: int) -> tuple[_Evaluated, int]:
    """The pixels with the unit of each, and the number of units, which the uncalibrated scores tell."""
    evaluated = _Evaluated.of(pixels, torch.from_numpy(runs.of_image)[pixels.images])
    sums = _Sums(units=len(runs), bins=bins)
    sums.add(Identity(), evaluated)
    used = np.flatnonzero(sums.totals[:, 0] > 0)
    weight, nll, _ = sums.totals[used].T
    _, confidence, right = sums.reliability[used].sum(axis=1).T
    numbers = np.stack([nll, confidence - right, right], axis=1)
    unit = np.zeros(len(runs), dtype=np.int64)
    unit[used] = runs.units(ratio_residuals(numbers, np.repeat(weight[:, None], 3, axis=1)), used.tolist())
    return replace(evaluated, unit=torch.from_numpy(unit)[evaluated.unit]), int(unit.max()) + 1


def _halves(run_N: Tensor, runs: Runs, unit_N: Tensor) -> Tensor:
    """0 or 1 for each pixel: a group is in one half, the largest first to the smaller half. Of a single
    group, the first half of the units; of a single unit, the first half of its runs."""
    names = sorted({runs.groups[run] for run in run_N.unique().tolist()})
    if len(names) == 1:
        _, place = (unit_N if unit_N.max() > 0 else run_N).unique(return_inverse=True)
        return (place * 2 > place.max()).long()
    group_N = torch.tensor([names.index(name) if name in names else 0 for name in runs.groups])[run_N]
    sizes = torch.bincount(group_N, minlength=len(names))
    half, filled = torch.zeros(len(names), dtype=torch.long), [0, 0]
    for group in torch.argsort(sizes, descending=True, stable=True).tolist():
        half[group] = int(filled[1] < filled[0])
        filled[int(half[group])] += int(sizes[group])
    return half[group_N]


@dataclass(frozen=True)
class _Evaluated:
    """Pixels for the evaluation, the unit (or run) [N] of each, and its predicted class [N] without a
    calibrator."""

    pixels: Pixels
    unit: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, pixels: Pixels, unit_N: Tensor) -> _Evaluated:
        parts = [log_probability(Identity(), part).max(dim=0).indices for part in pixels.parts()]
        return cls(pixels, unit_N, torch.cat(parts))

    def where(self, keep: Tensor) -> _Evaluated:
        return _Evaluated(self.pixels.where(keep), self.unit[keep], self.predicted[keep])


class _Sums:
    """Weighted sums over pixels, a row for each unit, which all metrics are computed from."""

    def __init__(self, *, units: int, bins: int) -> None:
        self.units, self.bins = units, bins
        self.totals = np.zeros((units, 3))
        """Weight, NLL, Brier score."""
        self.reliability = np.zeros((units, bins, 3))
        """Weight, confidence, accuracy."""
        self.changed = 0.0
        self.winners_changed = False

    def add(self, calibrator: Calibrator, evaluated: _Evaluated) -> None:
        """Add the sums of these pixels with a calibrator."""
        start = 0
        for part in evaluated.pixels.parts():
            some = slice(start, start + len(part))
            self._add(calibrator, part, evaluated.unit[some], evaluated.predicted[some])
            start = some.stop

    def _add(self, calibrator: Calibrator, pixels: Pixels, unit_N: Tensor, before_N: Tensor) -> None:
        weight_N = pixels.weights.double()
        log_p_CN = log_probability(calibrator, pixels)
        p_CN = log_p_CN.exp()
        nll_N = -log_p_CN.gather(0, pixels.labels[None])[0].double()
        brier_N = (p_CN.square().sum(dim=0) - 2 * p_CN.gather(0, pixels.labels[None])[0] + 1).double()
        confidence_N, predicted_N = p_CN.max(dim=0)
        columns = (weight_N, weight_N * nll_N, weight_N * brier_N)
        self.totals += _summed(unit_N, self.units, columns)
        bin_N = (confidence_N * self.bins).long().clamp_(max=self.bins - 1)
        right_N = (predicted_N == pixels.labels).double()
        columns = (weight_N, weight_N * confidence_N.double(), weight_N * right_N)
        found = _summed(unit_N * self.bins + bin_N, self.units * self.bins, columns)
        self.reliability += found.reshape(self.units, self.bins, 3)
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

        def estimate(of: Callable[[Array], Array], within: tuple[float, float] = ANY) -> Estimate:
            low, high = bootstrap.percentiles(of(bootstrap.replicates), within=within)
            return Estimate(float(of(np.ones((1, count)))[0]), float(low), float(high))

        noise = calibration_noise(reliability, bootstrap.weights) if count > 1 else np.array(math.nan)
        return FittedCalibrator(
            calibrator=calibrator,
            nll=estimate(lambda rows: rows @ totals[:, 1] / (rows @ totals[:, 0]), LOSS),
            nll_change=estimate(lambda rows: rows @ change / (rows @ totals[:, 0])),
            ece=estimate(lambda rows: calibration_error(np.tensordot(rows, reliability, axes=1)), SHARE),
            brier=estimate(lambda rows: rows @ totals[:, 2] / (rows @ totals[:, 0]), LOSS),
            ece_noise=float(noise.mean()),
            labels_changed=self.changed / float(totals[:, 0].sum()),
            winners_changed=self.winners_changed,
            sums=totals[:, :2],
        )


def _summed(index_N: Tensor, rows: int, columns: Sequence[Tensor]) -> Array:
    """[rows, len(columns)] sums of each column by index."""
    return torch.stack([torch.bincount(index_N, column, minlength=rows) for column in columns], dim=1).numpy()


def _changes_winners(calibrator: Calibrator, logits_SCN: Tensor) -> bool:
    """Whether any sample's winner changes; a tie that is due to rounding does not count."""
    after = calibrator(logits_SCN[..., None])[..., 0]
    winner = logits_SCN.max(dim=1, keepdim=True).indices
    return bool((after.gather(1, winner)[:, 0] < after.amax(dim=1)).any())
