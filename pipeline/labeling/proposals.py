"""The proposal for an image: a mask to correct, and a map of where to look. The mask is the serving model's
prediction, and the map its entropy; or the mask is a label, and the map the model's doubt of it. Where no
model is to be asked, the mask is empty.

Legend: H height, W width of the image; K channels; C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.data.image_info import ImageRef
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.progress import Progress, silent
from pipeline.uncertainty.measures import entropy, predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.served_model import ServedModel


@dataclass(frozen=True)
class Proposal:
    """A mask uint8 [H, W], and a map float32 [H, W] of 0 to 1, larger where checking matters more; None where
    there is nothing to show.

    `title` names the map: the entropy of the prediction, or the doubt 1 − p of the label.
    """

    image_id: int
    mask: Mask
    map: npt.NDArray[np.float32] | None
    title: str


def propose(
    images: Sequence[ImageRef],
    *,
    model: ServedModel,
    label_of: Callable[[int], Mask] | None = None,
    progress: Progress = silent,
) -> Iterator[Proposal | Unreadable]:
    """Predict images one by one at their own size, as in scoring.

    Args:
        label_of: the current label of an image, by its id: it is proposed, with the model's doubt of it. An
            image for which it raises a DataError is yielded as `Unreadable`.
        progress: counts the tiles of each large image.

    Raises:
        UserError: an image does not fit into the device's memory.
    """
    paths = {image.id: image.path for image in images}
    for batch in model.batches(images, batch_size=1):
        if isinstance(batch, Unreadable):
            yield batch
            continue
        image_id = batch.ids[0]
        try:
            label = None if label_of is None else label_of(image_id)
        except DataError as error:
            yield Unreadable(id=image_id, path=paths[image_id], reason=str(error))
            continue
        prediction = model.predictor.predict(batch.images, progress)
        proposal = _proposal(image_id, prediction, batch.sizes[0], label)
        del batch, prediction, label  # a large image's take much memory, which the caller may need
        yield proposal


def _proposal(image_id: int, prediction: Prediction, size: tuple[int, int], label: Mask | None) -> Proposal:
    """The proposal from a prediction, made in bands of rows."""
    mask = np.empty(size, dtype=np.uint8) if label is None else label
    shown = np.empty(size, dtype=np.float32)
    for rows, probability_BChW in prediction.bands(prediction.probability, size):
        probability = probability_BChW[0]
        if label is None:
            mask[rows] = predicted_class(probability).cpu().numpy()
            shown[rows] = entropy(probability).cpu().numpy()
        else:
            shown[rows] = _doubt(probability, label[rows]).cpu().numpy()
    title = "entropy" if label is None else "doubt of the label"
    return Proposal(image_id=image_id, mask=mask, map=shown, title=title)


def empty_proposals(images: Sequence[ImageRef]) -> Iterator[Proposal]:
    """An empty mask for each image: nothing of it has a class."""
    for image in images:
        mask = np.full((image.height, image.width), IGNORE, dtype=np.uint8)
        yield Proposal(image_id=image.id, mask=mask, map=None, title="")


def _doubt(probability: Tensor, label: Mask) -> Tensor:
    """1 − p of the labeled class [H, W], 0 where there is none."""
    index = torch.from_numpy(label).to(probability.device).long()
    known = index != IGNORE
    given = probability.gather(0, index.where(known, 0)[None])[0]
    return (1 - given).where(known, 0)
