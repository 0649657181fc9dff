"""Label Studio's run-length encoding of a painted mask: thi.ng's rle-pack over the RGBA pixels of the image.

A stream of bits, the highest first: the number of values (32 bits), bits of a value less 1 (5), four run
sizes less 1 (4 each); then runs. A run is one bit that is set if all its values are the same, two bits that
choose a run size, the length less 1 in so many bits, and the one value or all values.

Legend: H height, W width, N runs, M values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

PAINTED = 128
"""From this alpha on a pixel counts as painted: the edge of a brush is half transparent."""

_RUN_SIZES = (3, 4, 8, 16)
_VALUE_BITS = 8
_HEADER = (32, 5, 4, 4, 4, 4)
_HEADER_BITS = sum(_HEADER)
_CHANNELS = 4
_REMEDY = "Export it from Label Studio again."


def encode(mask: npt.NDArray[np.bool_]) -> list[int]:
    """The mask [H, W] in the form of Label Studio's own converter: painted pixels are opaque white.

    >>> encode(np.array([[True, False]]))
    [0, 0, 0, 8, 57, 27, 252, 127, 241, 128, 0]
    """
    flat = mask.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths, painted = _split(np.diff(np.append(starts, flat.size)) * _CHANNELS, flat[starts])
    size_index = np.searchsorted([1 << size for size in _RUN_SIZES[:-1]], lengths)
    length_bits = np.array(_RUN_SIZES)[size_index]
    codes = (((4 | size_index) << length_bits) | (lengths - 1)) << _VALUE_BITS | np.where(painted, 255, 0)
    head = [flat.size * _CHANNELS, _VALUE_BITS - 1, *(size - 1 for size in _RUN_SIZES)]
    return _packed(
        np.concatenate([np.array(head), codes]).astype(np.uint64),
        np.concatenate([np.array(_HEADER), 3 + length_bits + _VALUE_BITS]),
    ).tolist()


def decode(rle: object, *, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The painted pixels of an untrusted encoding, bool [H, W].

    Args:
        rle: any JSON value.

    Raises:
        DataError: it is no encoding of an image of this size.
    """
    data = _bytes(rle)
    if len(data) * 8 < _HEADER_BITS:
        raise DataError("The brush mask is cut off.", _REMEDY)
    header = int.from_bytes(data[:7], "big") >> 3
    count = header >> 21
    if count != width * height * _CHANNELS:
        raise DataError(
            f"The brush mask has {count} values, where an image of {width}×{height} pixels has "
            f"{width * height * _CHANNELS}.",
            _REMEDY,
        )
    if (header >> 16 & 31) + 1 != _VALUE_BITS:
        raise DataError(f"The brush mask has values of {(header >> 16 & 31) + 1} bits, not of 8.", _REMEDY)
    sizes = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    places, lengths, same = _runs(data, count, sizes)
    return (_alpha(data, places, lengths, same) >= PAINTED).reshape(height, width)


def _split(
    lengths: npt.NDArray[np.int64], painted: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The runs [N], split so that the largest run size can hold each of them."""
    longest = 1 << _RUN_SIZES[-1]
    pieces = (lengths - 1) // longest + 1
    split = np.full(int(pieces.sum()), longest)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    return split, np.repeat(painted, pieces)


def _packed(codes: npt.NDArray[np.uint64], bits: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Numbers [N] of at most 32 `bits` each, one after the other as bytes; at least one bit of padding."""
    ends = np.cumsum(bits)
    places, offsets = np.divmod(ends - bits, 8)
    aligned = codes << (40 - offsets - bits).astype(np.uint64)
    size = int(ends[-1]) // 8 + 1
    packed = np.zeros(size + 5)
    for index in range(5):
        lane = (aligned >> np.uint64(32 - 8 * index)) & np.uint64(255)
        packed += np.bincount(places + index, weights=lane, minlength=size + 5)  # no two share a bit
    return packed[:size].astype(np.uint8)


def _bytes(rle: object) -> bytes:
    try:
        if isinstance(rle, list):
            return bytes(rle)
    except (TypeError, ValueError):
        pass
    raise DataError("The brush mask is not a list of bytes.", _REMEDY)


def _runs(data: bytes, count: int, sizes: list[int]) -> tuple[list[int], list[int], list[bool]]:
    """For each run, the first bit of its values, the number of values, and whether they are all the same.

    Every run has at least one value, so that there are no more runs than values, or than bits in the data.
    """
    window = np.frombuffer(data + bytes(4), dtype=np.uint8).astype(np.uint32)
    windows = (window[:-3] << 24 | window[1:-2] << 16 | window[2:-1] << 8 | window[3:]).data
    shifts = [29 - size for size in sizes] * 2
    masks = [(1 << size) - 1 for size in sizes] * 2
    values = [3 + size for size in sizes] * 2
    end = len(data) * 8
    places: list[int] = []
    lengths: list[int] = []
    same: list[bool] = []
    bit, done = _HEADER_BITS, 0
    while done < count:
        if bit + 3 > end:
            raise DataError("The brush mask is cut off.", _REMEDY)
        word, offset = windows[bit >> 3], bit & 7
        head = word >> 29 - offset & 7
        length = (word >> shifts[head] - offset & masks[head]) + 1
        bit += values[head]
        places.append(bit)
        lengths.append(length)
        same.append(head > 3)
        bit += _VALUE_BITS if head > 3 else _VALUE_BITS * length
        done += length
    if done > count:
        raise DataError("The brush mask runs past the end of the image.", _REMEDY)
    if bit > end:
        raise DataError("The brush mask is cut off.", _REMEDY)
    return places, lengths, same


def _alpha(data: bytes, places: list[int], lengths: list[int], same: list[bool]) -> npt.NDArray[np.uint8]:
    """The alpha values, [H · W]: the last of each four values."""
    length = np.array(lengths)
    first = np.array(places)
    ends = np.cumsum(length)
    alphas = ends // _CHANNELS - (ends - length) // _CHANNELS
    repeated = np.array(same)
    pieces = np.where(repeated, alphas > 0, alphas)
    run = np.repeat(np.arange(length.size), pieces)
    step = np.arange(run.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    # in a run of different values the first alpha is the value at the first index that is 3 modulo 4
    skipped = (_CHANNELS - 1 - (ends - length)) % _CHANNELS
    inside = np.where(repeated[run], 0, skipped[run] + step * _CHANNELS)
    value = _values_at(data, first[run] + inside * _VALUE_BITS)
    return np.repeat(value, np.where(repeated[run], alphas[run], 1))


def _values_at(data: bytes, bits: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The values [M] that begin at these bits."""
    padded = np.frombuffer(data + bytes(1), dtype=np.uint8).astype(np.uint16)
    place, offset = np.divmod(bits, 8)
    return ((padded[place] << 8 | padded[place + 1]) >> (8 - offset).astype(np.uint16)).astype(np.uint8)
