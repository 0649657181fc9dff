"""Two sets of images compared: histograms, the difference of means, and distances to nearest neighbours.

Legend: n and m images, F features, E histogram bins.

An image far in feature space from all labeled images is unlike the training data, whatever the network's
confidence. Most failures of the softmax are inputs that overlap, in feature space, with inputs of another
kind (Pearce et al. 2021); the distance detects the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.bootstrap import student_quantile
from pipeline.evaluation.estimate import Estimate

Array = npt.NDArray[np.float64]

ROWS_AT_ONCE = 512


def nearest_distances(query_nF: Array, reference_mF: Array) -> Array:
    """Euclidean distance, 0 to 2, of each feature vector to the nearest reference, both scaled to unit length
    (Sun et al. 2022, with k = 1): [n].

    >>> nearest_distances(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])).round(4).tolist()
    [0.0, 1.4142]

    Raises:
        ValueError: there is no reference, or the features differ in number.
    """
    if len(reference_mF) == 0 or query_nF.shape[1] != reference_mF.shape[1]:
        raise ValueError(
            f"Expected references with {query_nF.shape[1]} features, but got {list(reference_mF.shape)}."
        )
    query, reference = _unit(query_nF), _unit(reference_mF)
    nearest = [
        (query[start : start + ROWS_AT_ONCE] @ reference.T).max(axis=1)
        for start in range(0, len(query), ROWS_AT_ONCE)
    ]
    cosine = np.concatenate(nearest) if nearest else np.empty(0)
    return np.sqrt((2 - 2 * cosine).clip(min=0))


def mean_difference(
    first: Array,
    second: Array,
    first_unit: npt.NDArray[np.int64],
    second_unit: npt.NDArray[np.int64],
    *,
    confidence: float,
) -> Estimate:
    """Mean of the second set less the mean of the first, with its interval by Student's t over the
    independent units of each set, with the degrees of freedom of the set with fewer units. The interval is
    NaN where a set has fewer than two units."""
    value = float(second.mean() - first.mean())
    counts, variance = [], 0.0
    for values, unit in ((first, first_unit), (second, second_unit)):
        _, index = np.unique(unit, return_inverse=True)
        residuals = np.bincount(index, weights=values - values.mean())
        count = len(residuals)
        counts.append(count)
        variance += (residuals**2).sum() / len(values) ** 2 * count / max(count - 1, 1)
    if min(counts) < 2:
        return Estimate(value)
    reach = student_quantile((1 + confidence) / 2, min(counts) - 1) * float(np.sqrt(variance))
    return Estimate(value, value - reach, value + reach)


def shares(values: Array, edges: Array) -> list[float]:
    """Share of the values in each bin [E]; those outside count in the first and the last."""
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return (counts / max(counts.sum(), 1)).round(6).tolist()


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
