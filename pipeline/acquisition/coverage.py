"""Coverage: regions that stand for all others, by k-means of encoder features.

Legend: N candidates, F features, k clusters. It needs no model of the classes, so it can choose the first
queue (cold start by centroids of pretrained features: Hacohen, Dekel & Weinshall 2022, "Active learning on a
budget"; Gupte et al. 2024, "Revisiting active learning in the era of vision foundation models").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates, Reading
from pipeline.acquisition.draws import Draws

Embed = Callable[[Candidates], npt.NDArray[np.float16]]
"""The features [N, F] of candidates: rows of length 1, or 0 where an image cannot be read."""

MOST = 100_000
"""Candidates that are clustered at most. Of a larger pool, images are drawn at random."""
NEAR_DUPLICATE = 0.9
"""The cosine similarity of features from which on two candidates count as nearly the same, for `coverage`."""
CHUNK = 10_000
LEFT_OUT = -np.inf
"""The priority of a candidate that was not clustered."""


@dataclass(frozen=True)
class Cover:
    """Clustered candidates [N], by image and region.

    Attributes:
        key: [N] image and region index as one number, ascending.
        features: [N, F]
        turn: [N] 0 for the nearest to the centre of its cluster, 1 for the second nearest and so on.
        share: [N] of the clustered candidates that are in the same cluster.
    """

    key: npt.NDArray[np.int64]
    features: npt.NDArray[np.float16]
    turn: npt.NDArray[np.int64]
    share: npt.NDArray[np.float64]

    def priority(self, candidates: Candidates) -> npt.NDArray[np.float64]:
        """[N]: one candidate of each cluster comes first, that of the largest cluster before others."""
        rows = self._rows(candidates)
        found = np.where(rows < 0, LEFT_OUT, 0.5 * self.share[rows] - self.turn[rows])
        return found.astype(np.float64)

    def embed(self, candidates: Candidates) -> npt.NDArray[np.float16]:
        """[N, F]: zeros for a candidate that was not clustered."""
        rows = self._rows(candidates)
        return np.where(rows[:, None] < 0, np.float16(0), self.features[rows])

    def _rows(self, candidates: Candidates) -> npt.NDArray[np.int64]:
        keys = _key(candidates)
        rows = np.minimum(np.searchsorted(self.key, keys), len(self.key) - 1)
        return np.where(self.key[rows] == keys, rows, -1)


def cover(read: Reading, embed: Embed, draws: Draws, *, clusters: int, available: int) -> Cover:
    """Cluster the candidates of a pool, or of images drawn at random where there are more than `MOST`.

    Memory: `MOST` rows of features, once in float16 and once in float32.

    Args:
        clusters: as many as candidates are to be chosen.
        available: candidates in the pool.
    """
    parts = [(_key(part), embed(part)) for part in _drawn(read(), draws, share=MOST / max(1, available))]
    key, features = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    usable = np.flatnonzero(np.any(features != 0, axis=1))
    usable = usable[np.argsort(key[usable])]
    key, features = key[usable], features[usable]
    if not len(key):
        raise ValueError("Expected features of at least one candidate.")
    nothing = np.zeros(1, dtype=np.int64)
    seed = int(draws.integers("coverage", nothing, nothing.astype(np.int32))[0])
    cluster, distance = _clustered(features, clusters=clusters, seed=seed)
    order = np.lexsort((distance, cluster))
    ends = np.searchsorted(cluster[order], np.arange(cluster.max() + 2))
    turn = np.empty(len(key), dtype=np.int64)
    turn[order] = np.arange(len(key)) - ends[cluster[order]]
    return Cover(key=key, features=features, turn=turn, share=np.diff(ends)[cluster] / len(key))


def _clustered(
    features: npt.NDArray[np.float16], *, clusters: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The cluster of each row [N], and its distance from the cluster's centre [N]."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    rows = features.astype(np.float32)
    wanted = min(clusters, len(rows))
    kind: Any = MiniBatchKMeans  # its stub takes `n_init` as a text only
    means = kind(wanted, batch_size=max(1024, 3 * wanted), n_init=1, random_state=seed % 2**32)
    with threadpool_limits(1):  # the last digits of sums depend on the number of threads
        cluster = means.fit_predict(rows).astype(np.int64)
    distance = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        distance[part] = np.linalg.norm(rows[part] - means.cluster_centers_[cluster[part]], axis=1)
    return cluster, distance


def _drawn(blocks: Iterable[Candidates], draws: Draws, *, share: float) -> Iterable[Candidates]:
    """The candidates of images that are drawn with this probability; all from 1 on."""
    for block in blocks:
        if share >= 1:
            yield block
            continue
        images = draws.uniforms("coverage", block.image_id, np.zeros(len(block.image_id), dtype=np.int32))
        yield block.where((images < share)[block.image])


def _key(candidates: Candidates) -> npt.NDArray[np.int64]:
    return (candidates.owner << 32) + candidates.region_index + 1
