"""What to do about an uncertain region: label it, or ask what its label should be.

Legend: N candidates, K items.

Mutual information says that the samples disagree: the model lacks data, and a label settles it. Expected
entropy without mutual information says that every sample is unsure in the same way: one more label of the
same kind teaches little, and the annotator is likely to be unsure too (Kendall and Gal 2017). Both are parts
of the model's own predictive distribution, no proof of what the world is like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates

Route = Literal["label", "ask"]

WORDS: dict[Route, str] = {
    "label": "the samples disagree: label it",
    "ask": "ambiguous: ask a second annotator, or look at the guideline",
}
MUCH_INFORMATION = 0.9
"""From this quantile of the candidates on, mutual information is high."""
MUCH_ENTROPY = 0.75
"""From this quantile on, expected entropy is high; mutual information below its own is low."""


def routes(candidates: Candidates, index: npt.NDArray[np.int64]) -> Sequence[Route | None]:
    """The route of some candidates, by where they stand among all.

    `label`: mutual information in the highest tenth. `ask`: expected entropy in the highest quarter, and
    mutual information not in its own. The two measures rise together, so thresholds that are further apart
    would leave hardly any region to ask about.

    Args:
        index: [K] rows of the candidates.

    Returns:
        K routes; None for what is neither, and for all where the scores are without samples.
    """
    entropy, information = candidates.expected_entropy, candidates.mutual_information
    if entropy is None or information is None or len(candidates) == 0:
        return [None] * len(index)
    high, low = np.nanquantile(information, (MUCH_INFORMATION, MUCH_ENTROPY))
    unsure = np.nanquantile(entropy, MUCH_ENTROPY)
    disagree = (information[index] >= high) & (information[index] > 0)
    ambiguous = (entropy[index] >= unsure) & (information[index] < low)
    return [
        "label" if labels else "ask" if asks else None
        for labels, asks in zip(disagree.tolist(), ambiguous.tolist(), strict=True)
    ]
