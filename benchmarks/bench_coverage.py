"""How often 95 % intervals hold the truth, at the default settings, on simulated images that are alike.

    python -m benchmarks.bench_coverage [--trials N] [--seed N]

Sequences are AR(1) series; sites share a random effect, whose part of the variance is the intraclass
correlation (ICC); the masks of a rare class, and proportions near 1, come from blocks that share a
probability of their own. `former` are blocks of ten images under a percentile interval, as they were drawn
before the units were estimated. The constants of `pipeline.evaluation.units` were chosen on the seeds 1, 11
and 31.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import BlockBootstrap, blocks, bootstrap_weights, percentile_interval
from pipeline.evaluation.proportions import clustered_interval
from pipeline.evaluation.units import Runs, join, ratio_residuals

Array = npt.NDArray[np.float64]

CONFIG = EvaluationConfig(resamples=500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seed", type=int, default=21)
    given = parser.parse_args()
    generator = np.random.default_rng(given.seed)
    print(f"{'images':44} {'former':>7} {'now':>7} {'units':>6} {'width':>7}")
    for length in (200, 400, 800):
        for coefficient in (0.0, 0.5, 0.8, 0.95):
            series = autoregressive(given.trials, length, coefficient, generator)
            _print(f"{length} of a sequence, AR(1) {coefficient}", series, ["a"] * length)
    for groups in (3, 5, 8, 12):
        for icc in (0.0, 0.2, 0.5, 0.8):
            series = sites(given.trials, groups, 40, icc, generator)
            names = [f"site {index // 40}" for index in range(groups * 40)]
            _print(f"{groups} sites of 40, ICC {icc}", series, names)
    for units in (10, 20, 50):
        for share in (0.02, 0.9, 0.97, 0.99):
            right, pixels = proportions(given.trials * 4, units, share, generator)
            _, interval = clustered_interval(right, pixels)
            held = ((interval[0] <= share) & (share <= interval[1])).mean()
            width = np.median(interval[1] - interval[0])
            print(f"{f'proportion {share} over {units} units':44} {'':7} {held:7.1%} {units:6} {width:7.3f}")


def _print(name: str, series: Array, groups: Sequence[str]) -> None:
    now, counts, width = coverage(series, estimated(groups, independent=False))
    former, _, _ = coverage(series, former_blocks(groups))
    print(f"{name:44} {former:7.1%} {now:7.1%} {np.median(counts):6.0f} {width:7.2f}", flush=True)


def autoregressive(trials: int, length: int, coefficient: float, generator: np.random.Generator) -> Array:
    """Stationary AR(1) series [length, trials] with mean 0 and variance 1."""
    noise = generator.standard_normal((length, trials)) * np.sqrt(1 - coefficient**2)
    series = np.empty((length, trials))
    series[0] = generator.standard_normal(trials)
    for index in range(1, length):
        series[index] = coefficient * series[index - 1] + noise[index]
    return series


def sites(trials: int, groups: int, size: int, icc: float, generator: np.random.Generator) -> Array:
    """Values [groups · size, trials] with mean 0 and variance 1 that share an effect of their site."""
    effect = np.repeat(generator.standard_normal((groups, trials)), size, axis=0)
    own = generator.standard_normal((groups * size, trials))
    return np.sqrt(icc) * effect + np.sqrt(1 - icc) * own


def proportions(trials: int, units: int, share: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Successes and pixels [units, trials]: each unit has a probability of its own, Beta-distributed around
    the share with a precision of 8."""
    pixels = generator.integers(500, 1501, (units, trials))
    own = generator.beta(share * 8, (1 - share) * 8, (units, trials))
    return generator.binomial(pixels, own).astype(float), pixels.astype(float)


def estimated(groups: Sequence[str], *, independent: bool) -> Callable[[Array], Array]:
    """The interval [2] and the number of units of the mean of a series [n], as `evaluate` takes them."""

    def interval(series: Array) -> Array:
        runs = Runs.of(groups, range(len(series)), block=CONFIG.block, independent=independent)
        sums = join(np.stack([series, np.ones(len(series))], axis=1), runs.of_image)
        joined = join(sums, runs.units(ratio_residuals(sums[:, :1], sums[:, 1:])))
        return np.array([*_drawn(len(joined)).interval(_ratio, joined), len(joined)])

    return interval


def former_blocks(groups: Sequence[str]) -> Callable[[Array], Array]:
    """The same over blocks of ten images, by the percentile interval."""

    def interval(series: Array) -> Array:
        index = blocks(groups, range(len(series)), 10)
        joined = join(np.stack([series, np.ones(len(series))], axis=1), index)
        means = _ratio(_drawn(len(joined)).weights @ joined)
        return np.array([*percentile_interval(means, 0.95, count=len(joined)), len(joined)])

    return interval


def coverage(series: Array, interval: Callable[[Array], Array]) -> tuple[float, Array, float]:
    """How often the intervals of the means hold 0, the units [trials], and the median width; a series without
    an interval does not count."""
    low, high, units = np.array([interval(one) for one in series.T]).T
    defined = ~np.isnan(low)
    held = (low[defined] <= 0) & (high[defined] >= 0)
    return float(held.mean()), units, float(np.median((high - low)[defined]))


def _ratio(sums: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


@cache
def _drawn(units: int) -> BlockBootstrap:
    return BlockBootstrap(bootstrap_weights(units, resamples=CONFIG.resamples, seed=0), CONFIG.confidence)


if __name__ == "__main__":
    main()
