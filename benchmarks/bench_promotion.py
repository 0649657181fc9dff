"""How often a new model is promoted whose true mIoU differs from that of the best one, in simulation.

    python -m benchmarks.bench_promotion [--trials N] [--seed N]

The difference of two models varies from unit to unit by the spread, a standard deviation of mIoU. Between
consecutive models of `make demo` it is 0.013 to 0.029 over 30 test frames. `rounds` are 20 retrainings whose
labels bring `step` each, and whose true mIoU also varies by 0.01 at random: it prints the true mIoU of the
serving model at the end against that of the first one, under the rule, and as it was before: any model that
is not worse than the newest promoted one beyond the interval. The default margin was chosen on seed 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.config import EvaluationConfig
from pipeline.evaluation.overlap import Overlap
from pipeline.evaluation.promotion import Verdict, compare

Array = npt.NDArray[np.float64]

CLASSES = 4
DIFFERENCES = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02)
UNITS = (5, 10, 20, 40)
SPREADS = (0.03, 0.06)
CONFIG = EvaluationConfig(resamples=500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args()
    generator = np.random.default_rng(given.seed)
    print("true difference ", *(f"{difference:+7.2f}" for difference in DIFFERENCES), "  classes named")
    for spread in SPREADS:
        for units in UNITS:
            rates, named = promoted(given.trials, units, spread, generator)
            print(
                f"spread {spread}, {units:2}",
                *(f"{rate:7.0%}" for rate in rates),
                f"{named:7.1%}",
                flush=True,
            )
    for step in (0.0, -0.005, 0.003):
        for units in UNITS:
            now, before = (
                np.mean([rounds(units, 0.03, step, generator, rule=rule) for _ in range(given.trials // 8)])
                for rule in (against_best, against_newest)
            )
            print(f"20 rounds of {step:+.3f}, {units:2} units: {now:+.3f}, before {before:+.3f}", flush=True)


def promoted(
    trials: int, units: int, spread: float, generator: np.random.Generator
) -> tuple[list[float], float]:
    """The share of promoted models for each of `DIFFERENCES`; and the share of classes that are named as
    worse where the models are equal."""
    rates: list[float] = []
    named = 0.0
    for difference in DIFFERENCES:
        verdicts = [
            compare(
                overlap(0.6 + difference + noise(units, spread, generator)),
                overlap(np.full((units, CLASSES), 0.6)),
                config=CONFIG,
                seed=0,
            )
            for _ in range(trials)
        ]
        rates.append(float(np.mean([verdict.promoted for verdict in verdicts])))
        if difference == 0:
            named = float(np.mean([len(verdict.worse) / CLASSES for verdict in verdicts]))
    return rates, named


def noise(units: int, spread: float, generator: np.random.Generator) -> Array:
    """What is added to the IoU [units, C] of each class; its mean over classes varies by `spread`."""
    return generator.normal(0, spread * np.sqrt(CLASSES), (units, CLASSES))


def overlap(iou: Array) -> Overlap:
    """Independent images, each with 10 000 pixels of every class of which this share [units, C] is right; the
    others are predicted as none of these classes."""
    true = np.full(iou.shape, 10_000.0)
    right: Array = np.round(true * iou.clip(0, 1)).astype(np.float64)
    groups = tuple(f"unit {index}" for index in range(len(iou)))
    return Overlap("simulated", groups, 1, true_positive=right, true=true, predicted=right)


Rule = Callable[[list[int], list[Overlap]], bool]


def against_best(serving: list[int], models: list[Overlap]) -> bool:
    best = max(serving, key=lambda index: models[index].mean_iou)
    return _verdict(models, best).promoted


def against_newest(serving: list[int], models: list[Overlap]) -> bool:
    return _verdict(models, serving[-1]).difference.highest >= 0


def rounds(units: int, spread: float, step: float, generator: np.random.Generator, *, rule: Rule) -> float:
    """The true mIoU of the serving model after 20 rounds, less that of the first model."""
    quality, models, serving = [0.0], [overlap(0.6 + noise(units, spread / np.sqrt(2), generator))], [0]
    for number in range(1, 21):
        quality.append(step * number + generator.normal(0, 0.01))
        models.append(overlap(0.6 + quality[-1] + noise(units, spread / np.sqrt(2), generator)))
        if rule(serving, models):
            serving.append(number)
    return quality[serving[-1]]


def _verdict(models: list[Overlap], other: int) -> Verdict:
    return compare(models[-1], models[other], config=CONFIG, seed=0)


if __name__ == "__main__":
    main()
