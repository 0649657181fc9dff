"""Segments: connected parts of the predicted mask, the small ones joined to a neighbour.

Legend: H W image size; R segments; E pairs of segments that share a border, each pair in both directions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label

Ints = npt.NDArray[np.int64]


def segments(predicted: npt.NDArray[np.integer], *, smallest: float) -> npt.NDArray[np.int32]:
    """Each pixel's segment, 0 to R − 1, in the order of their first pixels.

    A segment is a 4-connected component of one predicted class (Rottmann et al. 2020, section 3). One below
    `smallest` is joined to the neighbour that it shares the longest border with, the larger and then the
    first of equals, until none is left, as small components are in Felzenszwalb and Huttenlocher 2004,
    section 6; where two choose each other, they join.

    Args:
        predicted: class of each pixel [H, W].
        smallest: in pixels.

    Returns:
        [H, W].

    >>> segments(np.array([[0, 0, 0, 1], [0, 0, 2, 1]]), smallest=2).tolist()
    [[0, 0, 0, 1], [0, 0, 0, 1]]
    """
    component = np.asarray(label(predicted, background=-1, connectivity=1), dtype=np.int32) - np.int32(1)
    area = np.bincount(component.ravel())
    segment_of = np.arange(len(area))
    first, second, length = _borders(component, len(area))
    while len(area) > 1 and (area < smallest).any():
        target = np.arange(len(area))
        mine = area[first] < smallest
        ranked = np.lexsort((second[mine], -area[second[mine]], -length[mine], first[mine]))
        chooser, at = np.unique(first[mine][ranked], return_index=True)
        target[chooser] = second[mine][ranked][at]
        joined = coo_array((np.ones(len(area)), (np.arange(len(area)), target)), shape=(len(area),) * 2)
        count, merged = connected_components(joined, directed=False)
        segment_of = merged[segment_of]
        area = np.bincount(merged, weights=area, minlength=count)
        first, second, length = _summed(merged[first], merged[second], length, count)
    return segment_of.astype(np.int32)[component]


def _borders(component: npt.NDArray[np.int32], count: int) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """Neighbours and the length of the border that they share, in pixel edges: three arrays [E]."""
    sides = [(component[:, :-1], component[:, 1:]), (component[:-1], component[1:])]
    first = np.concatenate([one[one != other] for one, other in sides])
    second = np.concatenate([other[one != other] for one, other in sides])
    both = np.concatenate([first, second]), np.concatenate([second, first])
    return _summed(*both, np.ones(2 * len(first)), count)


def _summed(
    first: npt.NDArray[np.integer],
    second: npt.NDArray[np.integer],
    length: npt.NDArray[np.float64],
    count: int,
) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """Each pair of different segments once, with the sum of its lengths."""
    apart = first != second
    keys, which = np.unique(first[apart].astype(np.int64) * count + second[apart], return_inverse=True)
    total = np.bincount(which, weights=length[apart], minlength=len(keys)).astype(np.float64)
    return keys // count, keys % count, total
