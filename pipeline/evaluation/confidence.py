"""What a model's calibrated softmax may be called: a probability, or a softmax score, and why.

`calibrate` decides on images that a calibrator was not fitted on; `evaluate` withdraws the word where the
test split contradicts. The decision is stored with the calibration, and everything that names a softmax reads
it there by `confidence_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.estimate import Estimate
from pipeline.format import confidence_name

PASSING_ECE = 0.05
"""A calibrator passes when the upper end of its ECE's interval is below this."""


@dataclass(frozen=True)
class Confidence:
    """
    Attributes:
        name: `probability` or `softmax score`.
        reason: a sentence that says why it is no probability; None for one.
    """

    name: str
    reason: str | None

    @property
    def sentence(self) -> str:
        """The name, with the reason for a softmax score.

        >>> Confidence("probability", None).sentence, Confidence("softmax score", "No labels.").sentence
        ('probability', 'softmax score, not a probability. No labels.')
        """
        return self.name if self.reason is None else f"{self.name}, not a probability. {self.reason}"


def confidence_of(passed: bool, report: Mapping[str, Any] | None) -> Confidence:
    """What the calibrated softmax of one model and one sampler is called, from its stored calibration.

    Args:
        passed, report: the columns of the calibration; False and None without one.
    """
    if report is None:
        return Confidence(confidence_name(False), "Its calibrator was not fitted.")
    if passed:
        return Confidence(confidence_name(True), None)
    reason = report.get("contradiction") or report.get("reason") or "Its calibrator has not passed."
    return Confidence(confidence_name(False), reason)


def refusal(*, cross_fitted: bool, units: int, nll_change: Estimate, ece: Estimate) -> str | None:
    """Why a calibrator does not pass on images that it was not fitted on; None where it passes.

    Its NLL must not be above that of the uncalibrated scores beyond the interval of their difference, and the
    upper end of its ECE's interval must be below 0.05: then, with the configured confidence, a predicted 90 %
    is off by less than 5 points on average. Without two halves, or with a single unit, none passes.
    """
    if not cross_fitted or units < 2:
        return "There are too few independent images to test its calibrator on others than it was fitted on."
    if nll_change.low > 0:
        return f"On images that did not fit it, its calibrator raises the NLL by {nll_change.text()}."
    if not ece.high < PASSING_ECE:
        return (
            f"On images that did not fit its calibrator, its ECE is {ece.text()}: the upper end is not below "
            f"{PASSING_ECE}."
        )
    return None


def contradiction(split: str, metrics: Mapping[tuple[str, int], Estimate]) -> str | None:
    """Why the evaluation of a calibrated softmax speaks against a probability; None where it does not.

    Calibration made the NLL or the ECE worse beyond the interval of the difference on the same pixels; or the
    ECE is above 0.05, beyond its interval and beyond what so few units show by chance.

    Args:
        metrics: of the calibrated softmax by name and class, with `nll_change` and `ece_change`.
    """
    for name, key in (("NLL", "nll_change"), ("ECE", "ece_change")):
        change = metrics[(key, -1)]
        if change.low > 0:
            return f"On the {split} split, calibration changes the {name} by {change.text(sign='+')}."
    ece, chance = metrics[("ece", -1)], metrics[("ece_noise", -1)]
    if ece.low > PASSING_ECE and ece.value > chance.high:
        return f"On the {split} split, its ECE is {ece.text()}, above {PASSING_ECE}."
    return None
