"""The streaming record of an image: sums over its pixels, from which every metric follows.

Legend: C classes, H and W image height and width, N labeled pixels, M measures, K class-wise bins,
L = 150 linear bins, G = 256 logarithmic bins, E = 512 bins of a measure (see `measure_bins`), `...` an
optional axis of images or blocks.

A record has the same size for a thumbnail and for a satellite scene, and records add up, over images, blocks
and devices. 150 linear confidence bins make the usual ECE (5, 10, 15, 25, 30 bins …) exact. Bins logarithmic
in 1 − confidence resolve the end where most pixels are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, LOGIT_MEASURES
from pipeline.evaluation.measure_bins import MEASURE_BINS, MeasureBins

LINEAR_BINS = 150
LOG_BINS = 256
LOG_FLOOR = 1e-7
"""The smallest 1 − confidence that differs from zero."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Sums over labeled pixels.

    Attributes:
        bins: of the M measures, by name.
        pixels: [...] labeled pixels.
        nll: [...] sum of −ln p(true class), in nats.
        brier: [...] sum of Σ_c (p_c − [true class is c])², 0 to 2 a pixel (Brier 1950).
        confusion: [..., C, C] pixels by true class (row) and predicted class (column).
        reliability: [..., L, 3] pixels, summed confidence, correct pixels; linear bins of confidence.
        tail: [..., G, 3] the same in bins logarithmic in 1 − confidence, most confident first.
        class_reliability: [..., C, K, 3] pixels, summed p_c, pixels of class c; linear bins of p_c.
        errors: [..., M, 2, E] right and wrong pixels by measure, least uncertain first.
    """

    bins: Mapping[str, MeasureBins]
    pixels: Array
    nll: Array
    brier: Array
    confusion: Array
    reliability: Array
    tail: Array
    class_reliability: Array
    errors: Array

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures."""
        return tuple(self.bins)

    @property
    def num_classes(self) -> int:
        return self.confusion.shape[-1]

    def arrays(self) -> dict[str, Array]:
        """The sums by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "bins"}


def image_statistics(
    probability_CHW: Tensor,
    label_HW: Tensor,
    measures: Mapping[str, Tensor],
    *,
    bins: Mapping[str, MeasureBins],
    class_bins: int,
    deterministic_HW: Tensor | None = None,
) -> Statistics:
    """The record of one image.

    Args:
        probability_CHW: softmax output, summing to 1 over C, on any device.
        label_HW: class index, 255 where there is no label; integer.
        measures: [H, W] uncertainties by name, larger is more uncertain.
        bins: of each measure, the same for all records that are added up.
        class_bins: linear bins K of each class's probability.
        deterministic_HW: the class that is predicted without samples; measures of logits are compared with
            its errors, all others with those of `probability_CHW`. None: the same class.

    Raises:
        ValueError: shapes differ, or a label is neither a class nor 255.
    """
    num_classes = probability_CHW.shape[0]
    _validate(probability_CHW, label_HW, measures)
    known_N = (label_HW != IGNORE).flatten().nonzero()[:, 0]

    def known(map_HW: Tensor) -> Tensor:  # several times as fast as a mask, or as one call for all classes
        return map_HW.flatten().index_select(0, known_N)

    label_N = known(label_HW).long()
    p_CN = torch.stack([known(plane_HW) for plane_HW in probability_CHW])
    confidence_N, predicted_N = p_CN.max(dim=0)
    confidence_N = confidence_N.double().clamp(0.0, 1.0)
    correct_N = (predicted_N == label_N).double()
    p_true_N = p_CN.gather(0, label_N.unsqueeze(0))[0].double()
    tiny = torch.finfo(torch.float32).tiny
    wrong_N = deterministic_wrong_N = predicted_N != label_N
    if deterministic_HW is not None:
        deterministic_wrong_N = known(deterministic_HW) != label_N
    wrong = wrong_by_measure(measures, wrong_N, deterministic_wrong_N)
    errors = [
        _count(bins[name].index(known(values_HW)) * 2 + wrong[name].long(), 2 * MEASURE_BINS)
        .reshape(MEASURE_BINS, 2)
        .T
        for name, values_HW in measures.items()
    ]
    linear_N = (confidence_N * LINEAR_BINS).long().clamp_(max=LINEAR_BINS - 1)
    return Statistics(
        bins={name: bins[name] for name in measures},
        pixels=np.array(float(label_N.numel())),
        nll=_host(-p_true_N.clamp(min=tiny).log().sum()),
        brier=_host((p_CN.double().square().sum(dim=0) - 2 * p_true_N + 1).sum()),
        confusion=_host(_count(label_N * num_classes + predicted_N, num_classes**2)).reshape(
            num_classes, num_classes
        ),
        reliability=_binned(linear_N, LINEAR_BINS, confidence_N, correct_N),
        tail=_binned(log_bin(1.0 - confidence_N, LOG_BINS), LOG_BINS, confidence_N, correct_N),
        class_reliability=_class_reliability(p_CN, label_N, class_bins=class_bins),
        errors=_host(torch.stack(errors)) if errors else np.zeros((0, 2, MEASURE_BINS)),
    )


def wrong_by_measure(names: Iterable[str], served: Tensor, deterministic: Tensor) -> dict[str, Tensor]:
    """Whether the prediction that each measure belongs to is wrong: the deterministic one for measures of
    logits, the served one (with a sampler, the mean of the samples) for all others."""
    return {name: deterministic if name in LOGIT_MEASURES else served for name in names}


def merge(first: Statistics, second: Statistics) -> Statistics:
    """The sum of two records.

    Raises:
        ValueError: they were made with other measures, classes or bins.
    """
    if (
        dict(first.bins) != dict(second.bins)
        or first.class_reliability.shape != second.class_reliability.shape
    ):
        raise ValueError("Expected two records of the same measures, classes and bins.")
    theirs = second.arrays()
    return replace(first, **{name: array + theirs[name] for name, array in first.arrays().items()})


def stack(records: Sequence[Statistics]) -> Statistics:
    """Records stacked along a new first axis.

    Raises:
        ValueError: there are none, or they were made with other measures, classes or bins.
    """
    if not records:
        raise ValueError("Expected at least one record, but got none.")
    first = records[0]
    if any(
        dict(record.bins) != dict(first.bins)
        or record.class_reliability.shape != first.class_reliability.shape
        for record in records
    ):
        raise ValueError("Expected records of the same measures, classes and bins.")
    stacked: dict[str, Any] = {
        name: np.stack([record.arrays()[name] for record in records]) for name in first.arrays()
    }
    return replace(first, **stacked)


def log_bin(value: Tensor, bins: int) -> Tensor:
    """The bin of a value in 0 to 1, logarithmic from 1e-7 up; smaller values are in bin 0.

    >>> log_bin(torch.tensor([0.0, 1e-7, 3e-6, 0.5, 1.0]), 7).tolist()
    [0, 0, 1, 6, 6]
    """
    decades = -np.log10(LOG_FLOOR)
    position = (value.double().clamp(min=LOG_FLOOR).log10() + decades) / decades
    return (position * bins).long().clamp_(0, bins - 1)


def _validate(probability_CHW: Tensor, label_HW: Tensor, measures: Mapping[str, Tensor]) -> None:
    num_classes = probability_CHW.shape[0]
    shape = label_HW.shape
    for name, values in {"probability_CHW": probability_CHW[0], **measures}.items():
        if values.shape != shape:
            raise ValueError(
                f"Expected `{name}` to be as large as the label, {tuple(shape)}, "
                f"but got {tuple(values.shape)}."
            )
    beyond = label_HW[(label_HW != IGNORE) & ((label_HW >= num_classes) | (label_HW < 0))]
    if beyond.numel():
        raise ValueError(f"Expected labels below {num_classes} or {IGNORE}, but got {int(beyond[0])}.")


def _class_reliability(p_CN: Tensor, label_N: Tensor, *, class_bins: int) -> Array:
    """Sums [C, K, 3]. Most probabilities are near 0, so bin 0 is the total less the other bins."""
    num_classes, pixels = p_CN.shape
    flat = p_CN.flatten()
    index = (flat >= 1.0 / class_bins).nonzero()[:, 0]
    classes = index // max(1, pixels)
    values = flat.index_select(0, index).double()
    bins = (values * class_bins).long().clamp_(max=class_bins - 1)
    hits = (label_N.index_select(0, index - classes * pixels) == classes).double()
    table = _binned(classes * class_bins + bins, num_classes * class_bins, values, hits)
    table = table.reshape(num_classes, class_bins, 3)
    totals = np.stack(
        [
            np.full(num_classes, float(pixels)),
            _host(p_CN.double().sum(dim=1)),
            _host(_count(label_N, num_classes)),
        ],
        axis=1,
    )
    table[:, 0] += totals - table.sum(axis=1)
    return table


def _binned(index_N: Tensor, bins: int, *weights_N: Tensor) -> Array:
    """[bins, 1 + len(weights)] counts and sums of each weight."""
    columns = [_count(index_N, bins)]
    columns += [torch.bincount(index_N, weights=weight, minlength=bins) for weight in weights_N]
    return _host(torch.stack(columns, dim=1))


def _count(index_N: Tensor, bins: int) -> Tensor:
    return torch.bincount(index_N, minlength=bins).double()


def _host(sums: Tensor) -> Array:
    return sums.double().cpu().numpy()
