"""What to do about an uncertain region: label it, or ask what its label should be.

Legend: K items.

Mutual information says that the samples disagree: the model lacks data, and a label settles it. Expected
entropy without mutual information says that every sample is unsure in the same way: one more label of the
same kind teaches little, and the annotator is likely to be unsure too (Kendall and Gal 2017). Both are parts
of the model's own predictive distribution, no proof of what the world is like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.quantiles import Quantiles

Route = Literal["label", "ask"]

ROUTE_TEXT: dict[Route, str] = {
    "label": "The samples disagree: label it.",
    "ask": "Ambiguous: ask a second annotator, or look at the guideline.",
}
INFORMATION_SHARES = (0.9, 0.75)
"""Quantiles over the candidates: mutual information is high from the first on, and low below the second."""
UNSURE_SHARES = (0.75,)
"""Quantile over the candidates from which on expected entropy is high."""


@dataclass(frozen=True)
class Limits:
    """Thresholds of high and low mutual information, and of high expected entropy."""

    high: float
    low: float
    unsure: float

    @staticmethod
    def of(information: Quantiles, entropy: Quantiles) -> Limits | None:
        """The quantiles at `INFORMATION_SHARES` and `UNSURE_SHARES`; None for scores without samples."""
        if information.total == 0 or entropy.total == 0:
            return None
        return Limits(*information.values(), *entropy.values())


def routes(items: Candidates, limits: Limits | None) -> Sequence[Route | None]:
    """The route of each item: label it, ask about it, or None for neither.

    `label`: mutual information in the highest tenth. `ask`: expected entropy in the highest quarter, and
    mutual information not in its own. The two measures rise together, so thresholds that are further apart
    would leave hardly any region to ask about.

    Args:
        items: [K] the candidates to be routed.

    Returns:
        K routes; all None where the scores are without samples.
    """
    entropy, information = items.expected_entropy, items.mutual_information
    if entropy is None or information is None or limits is None:
        return [None] * len(items)
    disagree = (information >= limits.high) & (information > 0)
    ambiguous = (entropy >= limits.unsure) & (information < limits.low)
    return [
        "label" if labels else "ask" if asks else None
        for labels, asks in zip(disagree.tolist(), ambiguous.tolist(), strict=True)
    ]
