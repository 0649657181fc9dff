"""Stress: a model's predictions of held-out images that are corrupted with increasing strength.

Legend: B batch, K image channels, C classes, h w the network's image, H W the image and its mask, n images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.data.input_range import pixel_statistics
from pipeline.data.labels import resize_mask
from pipeline.evaluation.stress_verdicts import (
    BASES,
    METRICS,
    STRESSES,
    UNRECOGNISABLE,
    Condition,
    Results,
)
from pipeline.progress import Progress, silent
from pipeline.studies import corruptions
from pipeline.studies.held_out import HeldOutImages, LabeledBatch
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.served_model import ServedModel

SEED = 0
"""Seed of the noise, the shuffles and the bootstrap, so that all models get the same images."""
BASE = BASES["magnify"]
"""The condition that stands for the unchanged images."""

Measured = dict[Condition, dict[str, float]]
"""Metrics of one image, by condition."""


def measure_stress(
    model: ServedModel, images: HeldOutImages, *, progress: Progress
) -> tuple[dict[int, Measured], int]:
    """Every metric of every image under every condition, by image id; and the number of images that the
    input-range guard flags at the strongest magnification."""
    measured: dict[int, Measured] = {}
    flagged, done = 0, 0
    input_range = model.card.input_range
    for batch in images.read(model, title="stress", progress=silent):
        for condition, image in _conditions(batch, model):
            rows = _metrics(model.predictor, image, batch, condition, progress)
            for image_id, values in zip(batch.ids, rows, strict=True):
                measured.setdefault(image_id, {})[condition] = values
            if input_range is not None and (condition.kind, condition.strength) == ("magnify", 16):
                flagged += sum(found is not None for found in input_range.outliers(pixel_statistics(image)))
            done += len(batch.ids)
            progress("stress", done, (len(images) - len(images.failed)) * (len(STRESSES) + 1))
    return measured, flagged


def results_of(measured: Sequence[Measured]) -> Results:
    """Values by condition and metric; the unchanged images are a condition of each kind."""

    def column(condition: Condition) -> dict[str, npt.NDArray[np.float64]]:
        return {
            metric: np.array([image[condition].get(metric, np.nan) for image in measured])
            for metric in METRICS
        }

    unchanged = column(BASE)
    results: dict[Condition, dict[str, npt.NDArray[np.float64]]] = {}
    for kind, base in BASES.items():
        of_kind = [condition for condition in STRESSES if condition.kind == kind]
        smaller = [condition for condition in of_kind if condition.strength < base.strength]
        for condition in (*smaller, base, *(item for item in of_kind if item not in smaller)):
            results[condition] = unchanged if condition == base else column(condition)
    return results


def _conditions(batch: LabeledBatch, model: ServedModel) -> Iterator[tuple[Condition, Tensor]]:
    """The unchanged images, then each stress: normalised [B, K, h', w']."""
    image = batch.image_BKhw
    unit = model.normalisation.pixels(image)
    attacked = _attacked(image, batch.label, model)
    yield BASE, image
    for condition in STRESSES:
        strength = condition.strength
        if condition.kind == "magnify":
            yield condition, corruptions.magnify(image, strength)
            continue
        if condition.kind == "fgsm":
            yield condition, next(attacked)
            continue
        if condition.kind in UNRECOGNISABLE:
            changed = torch.cat([_destroyed(unit[[row]], condition, id) for row, id in enumerate(batch.ids)])
        elif condition.kind == "blur":
            changed = corruptions.blur(unit, strength)
        elif condition.kind == "night_gamma":
            changed = corruptions.darken(unit, strength)
        else:
            changed = corruptions.rescale(unit, strength)
        yield condition, model.normalisation.normalise(changed)


def _attacked(image: Tensor, masks: Tensor, model: ServedModel) -> Iterator[Tensor]:
    """The images [B, K, h, w] after each FGSM step, by gradients of the deterministic network; those of a
    large image are computed for each tile. Nothing is computed before the first is asked for."""
    predictor = model.predictor
    size = (image.shape[-2], image.shape[-1])
    label = torch.from_numpy(np.stack([resize_mask(mask.numpy(), size) for mask in masks]))
    strengths = [condition.strength / 255 for condition in STRESSES if condition.kind == "fgsm"]
    attacked = [torch.empty_like(image) for _ in strengths]
    side = predictor.scoring.tile
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            part = (..., slice(top, top + side), slice(left, left + side))
            tiles = corruptions.fgsm(
                image[part].to(predictor.device),
                label[part].long().to(predictor.device),
                predictor.segmenter,
                strengths=strengths,
                normalisation=model.normalisation,
            )
            for whole, tile in zip(attacked, tiles, strict=True):
                whole[part] = tile.cpu()
    while attacked:
        yield attacked.pop(0)


def _destroyed(unit: Tensor, condition: Condition, image_id: int) -> Tensor:
    """One unrecognisable image [1, K, h, w], the same for every model."""
    generator = torch.Generator().manual_seed(SEED + 1_000_003 * image_id + int(condition.strength))
    if condition.kind == "noise":
        return corruptions.noise(unit, condition.label, generator=generator)
    patches = min(int(condition.strength), *unit.shape[-2:])
    return corruptions.shuffle_patches(unit, patches, generator=generator)


@torch.inference_mode()
def _metrics(
    predictor: Predictor, image: Tensor, batch: LabeledBatch, condition: Condition, progress: Progress
) -> list[dict[str, float]]:
    """Each metric of each image: accuracy and confidence are balanced over the classes of its mask, the
    others are means over all its cells."""
    prediction = predictor.predict(image, progress)
    maps = prediction.measures()
    means: dict[str, list[float]] = {
        metric: maps[metric].mean(dim=(-2, -1)).tolist()
        for metric in ("entropy", "mutual_information", "energy")
        if metric in maps
    }
    known = condition.kind not in UNRECOGNISABLE
    for row, label_HW in enumerate(batch.label):
        confidence, accuracy = ClassMeans(), ClassMeans()
        for rows, (probability_ChW,) in prediction.bands_of([prediction.probability], batch.size, row=row):
            probability_hW, predicted_hW = probability_ChW.max(dim=0)
            label_hW = label_HW[rows].to(predicted_hW.device)
            confidence.add(probability_hW, label_hW)
            if known:
                accuracy.add((predicted_hW == label_hW).float(), label_hW)
        means.setdefault("confidence", []).append(confidence.mean())
        if known:
            means.setdefault("balanced_accuracy", []).append(accuracy.mean())
    return [{metric: values[row] for metric, values in means.items()} for row in range(len(batch.ids))]


class ClassMeans:
    """The mean of a map over the pixels of each class of a mask, averaged over these classes.

    >>> means = ClassMeans()
    >>> means.add(torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[0, 0, 0, 1]]))
    >>> means.mean()
    0.5
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(2, IGNORE, dtype=torch.float64)

    def add(self, values_HW: Tensor, label_HW: Tensor) -> None:
        """Add an image, or some rows of it: class index of each pixel, or 255."""
        known = label_HW != IGNORE
        classes = label_HW[known].long()
        pixels = torch.bincount(classes, minlength=IGNORE).double()
        sums = torch.bincount(classes, weights=values_HW[known].double(), minlength=IGNORE)
        self._sums += torch.stack([pixels, sums]).cpu()

    def mean(self) -> float:
        """NaN without a labeled pixel."""
        pixels, sums = self._sums[:, self._sums[0] > 0]
        return float((sums / pixels).mean())
