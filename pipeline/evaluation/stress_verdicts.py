"""Results of a stress test: means over images with intervals, and verdicts that can fail.

Accuracy and confidence of an image weigh each class of its mask alike (balanced accuracy, Brodersen et al.
2010): a thin class counts as much as the background around it.

Legend: n images, b independent units, R resamples, M metrics.

Every metric is first a number for each image (a mean over its pixels), and each image belongs to a unit: the
bootstrap draws units. Differences between strengths are taken for each image, so differences between images
do not count as uncertainty. A verdict rests on the interval of a difference; where that leaves it open, or
where nothing moved, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import SHARE, BlockBootstrap
from pipeline.evaluation.estimate import Estimate

Array = npt.NDArray[np.float64]

METRICS = ("balanced_accuracy", "confidence", "entropy", "mutual_information", "energy")
JUDGED = ("balanced_accuracy", "confidence")
"""The metrics whose changes are judged."""
MOVED = 0.02
"""A smaller change of a mean is too small for a verdict."""
LEAST_PART = 0.5
"""Confidence must lose at least this part of what accuracy loses."""
RANKS_HIGH = 0.8
"""Unrecognisable images count as detected if the interval of their AUROC lies above this."""


@dataclass(frozen=True)
class Condition:
    """One input, or one strength of it. `strength` orders the conditions of a kind; `label` is for people."""

    kind: str
    strength: float
    label: str


BASES: dict[str, Condition] = {
    "magnify": Condition("magnify", 1.0, "×1"),
    "fgsm": Condition("fgsm", 0.0, "none"),
    "noise": Condition("noise", 0.0, "none"),
    "shuffled_patches": Condition("shuffled_patches", 1.0, "whole"),
    "blur": Condition("blur", 0.0, "none"),
    "night_gamma": Condition("night_gamma", 1.0, "γ 1"),
    "resolution": Condition("resolution", 1.0, "×1"),
}
"""The unchanged images as a condition of each kind."""
STRESSES: tuple[Condition, ...] = (
    *(Condition("magnify", factor, f"×{factor:g}") for factor in (2.0, 4.0, 8.0, 16.0)),
    *(Condition("fgsm", step, f"{step:g}/255") for step in (1.0, 2.0, 4.0)),
    *(Condition("noise", order, name) for order, name in ((1.0, "uniform"), (2.0, "gaussian"))),
    *(Condition("shuffled_patches", side, f"{side:g}×{side:g}") for side in (4.0, 8.0, 16.0)),
    *(Condition("blur", sigma, f"σ {sigma:g}") for sigma in (1.0, 2.0, 4.0)),
    *(Condition("night_gamma", gamma, f"γ {gamma:g}") for gamma in (2.0, 3.0, 4.0)),
    *(Condition("resolution", factor, f"×{factor:g}") for factor in (0.5, 0.75, 1.5, 2.0)),
)
UNRECOGNISABLE = ("noise", "shuffled_patches")
"""Kinds whose images no longer match their labels."""
KIND_NAMES = {
    "magnify": "magnified input",
    "fgsm": "adversarial steps",
    "noise": "noise",
    "shuffled_patches": "shuffled patches",
    "blur": "blur",
    "night_gamma": "darkness",
    "resolution": "another resolution",
}

Results = Mapping[Condition, Mapping[str, Array]]
"""Values [n], one for each image, by condition and metric; NaN where a metric is not defined."""


@dataclass(frozen=True)
class Verdict:
    """A sentence about one kind of stress, and whether the model behaves as it should; None where nothing
    moved, or where the images are too few to tell."""

    kind: str
    ok: bool | None
    text: str


class Sample:
    """The images that were stressed.

    Args:
        unit: [n], the independent unit of each image.
        config, seed: of the bootstrap.
    """

    def __init__(self, unit: npt.NDArray[np.int64], config: EvaluationConfig, *, seed: int) -> None:
        _, self.unit = np.unique(unit, return_inverse=True)
        self.count = int(self.unit.max()) + 1
        self.bootstrap = BlockBootstrap.draw(self.count, config, seed=seed)

    def mean(self, values: Array) -> Estimate:
        """Mean of the defined values [n], and its interval."""
        defined = ~np.isnan(values)
        sums = np.zeros((self.count, 2))
        np.add.at(sums, self.unit, np.stack([np.where(defined, values, 0.0), defined], axis=1))

        def ratio(sums: Array) -> Array:
            with np.errstate(divide="ignore", invalid="ignore"):
                return sums[..., 0] / sums[..., 1]

        return self.bootstrap.estimate(ratio, sums)

    def separation(self, known: Array, novel: Array) -> Estimate:
        """AUROC: the probability that a novel image has a larger value than a known image, [n] each; image i
        of both is in the same unit."""
        wins = (novel[:, None] > known) + 0.5 * (novel[:, None] == known)
        table = np.zeros((self.count, self.count))
        np.add.at(table, (self.unit[:, None], self.unit[None]), wins)
        sizes = np.bincount(self.unit, minlength=self.count).astype(float)
        # The weights themselves are the sums: a pair of units counts by the product of their weights
        sums = np.eye(self.count)

        def auroc(drawn: Array) -> Array:
            return np.einsum("ra,ab,rb->r", drawn, table, drawn) / (drawn @ sizes) ** 2

        low, high = self.bootstrap.interval(auroc, sums, within=SHARE)
        return Estimate(float(wins.mean()), float(low), float(high))


def residuals(results: Results) -> list[Array]:
    """Values [n] of the changes that verdicts are about, of accuracy and confidence, less their mean; a
    change that is not defined is 0. The independent units are estimated from them."""
    found: list[Array] = []
    for kind, base in BASES.items():
        for condition in (item for item in results if item.kind == kind and item != base):
            for metric in JUDGED:
                change = results[condition][metric] - results[base][metric]
                if not np.isnan(change).all():
                    found.append(np.nan_to_num(change - np.nanmean(change)))
    return found


def verdicts(results: Results, sample: Sample, *, guarded: str) -> list[Verdict]:
    """A verdict on each kind of stress.

    Args:
        results: of each of `BASES`, which are the same images, and of some or all of `STRESSES`.
        guarded: the result of the input-range guard on the magnified images, as the end of a sentence.
    """
    found: list[Verdict] = []
    for kind, base in BASES.items():
        stressed = [condition for condition in results if condition.kind == kind and condition != base]
        if not stressed:
            continue
        if kind == "magnify":
            found.append(_magnified(results, base, stressed[-1], sample, guarded))
        elif kind in UNRECOGNISABLE:
            found.extend(_unrecognisable(results, base, condition, sample) for condition in stressed)
        else:
            found.append(_degraded(results, base, stressed, sample))
    return found


def change(results: Results, condition: Condition, metric: str, sample: Sample) -> Estimate:
    """Mean change of a metric against the unchanged images, image by image."""
    return sample.mean(_changes(results, condition, metric))


def _magnified(results: Results, base: Condition, most: Condition, sample: Sample, guarded: str) -> Verdict:
    """Confidence must not rise by more than accuracy does."""
    rise = change(results, most, "confidence", sample)
    gap = sample.mean(_changes(results, most, "confidence") - _changes(results, most, "balanced_accuracy"))
    what = f"{_from_to(results, base, most, sample)}; {guarded}"
    if min(rise.value, gap.value) >= MOVED and _certain(rise, gap) and min(rise.low, gap.low) > 0:
        return Verdict(
            "magnify",
            False,
            f"Confidence rises when the input is magnified, and no temperature corrects that: {what}.",
        )
    if rise.value < MOVED or (_certain(gap) and gap.high <= 0):
        return Verdict("magnify", True, f"Confidence does not rise when the input is magnified: {what}.")
    return Verdict(
        "magnify", None, f"Whether confidence rises when the input is magnified stays open: {what}."
    )


def _degraded(results: Results, base: Condition, stressed: Sequence[Condition], sample: Sample) -> Verdict:
    """At the strength with the lowest accuracy, if accuracy falls for certain, confidence must fall by at
    least `LEAST_PART` of it."""
    kind, name = base.kind, KIND_NAMES[base.kind]
    worst = min(stressed, key=lambda condition: np.nanmean(results[condition]["balanced_accuracy"]))
    loss, fall = (change(results, worst, metric, sample) for metric in JUDGED)
    what = _from_to(results, base, worst, sample)
    if loss.value > -MOVED:
        if abs(fall.value) < MOVED:
            return Verdict(kind, None, f"Nothing moves with {name} ({what}).")
        return Verdict(kind, None, f"Accuracy does not fall with {name}; confidence changes ({what}).")
    lag = sample.mean(
        _changes(results, worst, "confidence") - LEAST_PART * _changes(results, worst, "balanced_accuracy")
    )
    if not _certain(loss, lag) or loss.high >= 0 or lag.low <= 0 < lag.high:
        return Verdict(kind, None, f"These images do not tell whether confidence falls with {name} ({what}).")
    if lag.high <= 0:
        return Verdict(kind, True, f"Confidence falls with {name} ({what}).")
    if fall.value > -MOVED:
        return Verdict(kind, False, f"Confidence does not fall with {name}, but accuracy does ({what}).")
    share = fall.value / loss.value
    return Verdict(
        kind,
        False,
        f"Confidence falls with {name}, but by only {share:.0%} of what accuracy loses ({what}).",
    )


def _unrecognisable(results: Results, base: Condition, condition: Condition, sample: Sample) -> Verdict:
    aurocs = {
        measure: sample.separation(results[base][measure], results[condition][measure])
        for measure in ("energy", "entropy", "mutual_information")
        if not np.isnan(results[condition][measure]).any()
    }
    energy = aurocs.pop("energy")
    ok = None if not _certain(energy) or energy.low < RANKS_HIGH <= energy.high else energy.low >= RANKS_HIGH
    rank = {True: "rank", False: "do not rank", None: "may or may not rank"}[ok]
    before, after = (_means(results[one], sample)["confidence"] for one in (base, condition))
    subject = f"{KIND_NAMES[condition.kind]} ({condition.label})"
    others = "".join(f", {name.replace('_', ' ')} {found.value:.2f}" for name, found in aurocs.items())
    return Verdict(
        condition.kind,
        ok,
        f"Images of {subject} {rank} in the top of the energy score: AUROC "
        f"{energy.text(digits=2)}{others}; confidence {before:.2f} to {after:.2f}.",
    )


def _changes(results: Results, condition: Condition, metric: str) -> Array:
    """The change of a metric [n] of each image."""
    return results[condition][metric] - results[BASES[condition.kind]][metric]


def _certain(*estimates: Estimate) -> bool:
    """Whether each has an interval."""
    return not any(np.isnan(found.low) or np.isnan(found.high) for found in estimates)


def _from_to(results: Results, base: Condition, condition: Condition, sample: Sample) -> str:
    """What accuracy and confidence were and are, each with its change and the interval of that."""
    before, after = (_means(results[one], sample) for one in (base, condition))
    moved = ", ".join(
        f"{metric.replace('_', ' ')} {before[metric]:.2f} to {after[metric]:.2f}, "
        f"{change(results, condition, metric, sample).text(sign='+')}"
        for metric in JUDGED
    )
    return f"{condition.label}: {moved}"


def _means(values: Mapping[str, Array], sample: Sample) -> dict[str, float]:
    return {metric: sample.mean(values[metric]).value for metric in JUDGED}
