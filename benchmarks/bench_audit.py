"""What the audit slices say about a simulated pool: bias, and how often 95 % intervals hold the truth.

    python -m benchmarks.bench_audit [--seeds N] [--first N]

A pool of 300 images in ten sequences, nine regions each. A region's error rate follows how hard its
sequence, its image (like its neighbours) and the region itself are; the queues, which the product's `choose`
draws, take the regions of the highest entropy, which is correlated with the errors. `former` weighs the
audits of all rounds together, each by 1 / its inclusion probability, as before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.selection import choose
from pipeline.config import EvaluationConfig, SelectionConfig
from pipeline.evaluation.pool_estimate import Audit, Counts, PoolEstimate, estimate_pool

Array = npt.NDArray[np.float64]

IMAGES, SEQUENCES, CELLS, CLASSES, BINS = 300, 10, 9, 3, 15
REGIONS = IMAGES * CELLS
PIXELS = 100
ROUNDS = 8
SELECTION = SelectionConfig(strategy="entropy", budget=200, per_image_cap=None, no_touching=False)
EVALUATION = EvaluationConfig(resamples=200)


@dataclass(frozen=True)
class SimulatedPool:
    """Regions with known errors; `counts` [N, ...] are what labels would show."""

    candidates: Candidates
    counts: Counts

    @classmethod
    def draw(cls, generator: np.random.Generator) -> SimulatedPool:
        """A pool in which neighbours are alike, and harder regions have a higher entropy and more errors."""
        sequence = np.repeat(np.arange(SEQUENCES), IMAGES // SEQUENCES)
        image = np.empty(IMAGES)
        for index in range(IMAGES):
            fresh = index == 0 or sequence[index] != sequence[index - 1]
            image[index] = generator.standard_normal() * (1 if fresh else 0.6)
            image[index] += 0 if fresh else 0.8 * image[index - 1]
        hard = 0.5 * generator.standard_normal(SEQUENCES)[sequence] + 0.7 * image
        owner = np.repeat(np.arange(IMAGES), CELLS)
        hardness = hard[owner] + 0.8 * generator.standard_normal(REGIONS)
        error = 1 / (1 + np.exp(2.2 - hardness))
        wrong = generator.binomial(PIXELS, error)
        true = np.minimum(CLASSES - 1, generator.geometric(0.6, REGIONS) - 1)
        true = np.where(generator.random(REGIONS) < 0.5 * error, CLASSES - 1, true)
        other = (true + generator.integers(1, CLASSES, REGIONS)) % CLASSES
        confusion = np.zeros((REGIONS, CLASSES, CLASSES))
        rows = np.arange(REGIONS)
        confusion[rows, true, true] = PIXELS - wrong
        confusion[rows, true, other] = wrong
        confidence = 1 - 0.7 / (1 + np.exp(2.2 - hardness + 0.4 * generator.standard_normal(REGIONS)))
        reliability = np.zeros((REGIONS, BINS, 3))
        bin_of = np.minimum(BINS - 1, (confidence * BINS).astype(int))
        reliability[rows, bin_of] = np.stack(
            [np.full(REGIONS, PIXELS), confidence * PIXELS, PIXELS - wrong], axis=1
        )
        corner = np.arange(CELLS)
        boxes = np.stack([corner % 3 * 8, corner // 3 * 8, corner * 0 + 8, corner * 0 + 8], axis=1)
        candidates = Candidates(
            image_id=np.arange(1, IMAGES + 1),
            group=sequence.astype(np.int32),
            position=np.arange(IMAGES),
            regions=np.full(IMAGES, CELLS, dtype=np.int32),
            image=owner,
            region_index=np.tile(corner, IMAGES).astype(np.int32),
            box=np.tile(boxes, (IMAGES, 1)).astype(np.int32),
            predicted_class=other.astype(np.int16),
            class_share=np.ones(REGIONS, dtype=np.float32),
            stratum=other.astype(np.int16),
            stratum_share=np.ones(REGIONS, dtype=np.float32),
            impurity=np.zeros(REGIONS, dtype=np.float32),
            score=(1 - confidence).astype(np.float32),
        )
        return cls(candidates, Counts(confusion, reliability))

    def sum(self, rows: npt.NDArray[np.int64]) -> Counts:
        """The counts of these regions together."""
        return Counts(self.counts.confusion[rows].sum(axis=0), self.counts.reliability[rows].sum(axis=0))

    def truth(self, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        """The numbers of these regions, from all their labels."""
        found = self.sum(rows)
        hit, true, seen = (
            np.diagonal(found.confusion),
            found.confusion.sum(axis=1),
            found.confusion.sum(axis=0),
        )
        gap = found.reliability[:, 2] - found.reliability[:, 1]
        return {
            "error_rate": float(1 - hit.sum() / true.sum()),
            "miou": float((hit / (true + seen - hit)).mean()),
            "ece": float(np.abs(gap).sum() / true.sum()),
            "overconfidence": float(-gap.sum() / true.sum()),
            "class_share": float(true[-1] / true.sum()),
        }


@dataclass(frozen=True)
class SimulatedRound:
    """One round: the share of the pool that was labeled before it, the estimate with both truths, and the
    former estimate of the pool's error rate."""

    labeled: float
    found: PoolEstimate
    unlabeled: dict[str, float]
    pool: dict[str, float]
    former: float


def simulate(seed: int, *, rounds: int = ROUNDS) -> Iterator[SimulatedRound]:
    """The rounds of one pool, each with its own queue; every queue is labeled as a whole."""
    pool = SimulatedPool.draw(np.random.default_rng(seed))
    config = SELECTION.model_copy(update={"seed": seed})
    everything = np.arange(REGIONS)
    open_ = np.ones(REGIONS, dtype=bool)
    errors = 1 - np.trace(pool.counts.confusion, axis1=1, axis2=2) / PIXELS
    former_sum = former_weight = 0.0
    for number in range(1, rounds + 1):
        left = np.flatnonzero(open_)
        chosen = choose(lambda: [pool.candidates.where(open_)], config, round_number=number)
        rows = left[chosen.index]
        drawn = rows[chosen.audit]
        images, of = np.unique(pool.candidates.image[drawn], return_inverse=True)
        counts = Counts(*(np.zeros((len(images), *part.shape[1:])) for part in vars(pool.counts).values()))
        np.add.at(counts.confusion, of, pool.counts.confusion[drawn])
        np.add.at(counts.reliability, of, pool.counts.reliability[drawn])
        audit = Audit(counts, np.bincount(of).astype(float), population=len(left), drawn=len(drawn))
        former_sum += float(errors[drawn].sum()) * len(left) / len(drawn)
        former_weight += len(left)
        yield SimulatedRound(
            labeled=1 - len(left) / REGIONS,
            found=estimate_pool(pool.sum(np.flatnonzero(~open_)), audit, EVALUATION, seed=0),
            unlabeled=pool.truth(left),
            pool=pool.truth(everything),
            former=former_sum / former_weight,
        )
        open_[rows] = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1000)
    given = parser.parse_args()
    runs = [list(simulate(seed)) for seed in range(given.first, given.first + given.seeds)]
    print("labeled  former bias      bias ± 3 SE of the pool; of what is not labeled; held; width")
    for number in range(ROUNDS):
        at = [run[number] for run in runs]
        print(
            f"{at[0].labeled:6.0%}   {_bias(np.array([one.former - one.pool['error_rate'] for one in at]))}"
        )
        for name in at[0].pool:
            index = CLASSES - 1 if name == "class_share" else -1
            line = f"         {name:15}"
            for part in ("pool", "unlabeled"):
                known = [getattr(one.found, part)[name, index] for one in at]
                truth = np.array([getattr(one, part)[name] for one in at])
                value = np.array([one.value for one in known])
                held = [one.low <= true <= one.high for one, true in zip(known, truth.tolist(), strict=True)]
                width = np.median([one.high - one.low for one in known])
                line += f" {_bias(value - truth)} {np.mean(held):6.1%} {width:.3f} |"
            print(line)


def _bias(differences: Array) -> str:
    return f"{differences.mean():+.4f} ± {3 * differences.std() / np.sqrt(len(differences)):.4f}"


if __name__ == "__main__":
    main()
