"""What the serving model proposes for an image: a mask to correct, and where it is unsure.

Legend: H height, W width of the image; K channels; C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.calibration.calibrators import Calibrators
from pipeline.config import ProjectConfig
from pipeline.data.images import ImageRef
from pipeline.data.loading import Unreadable, load_batches
from pipeline.data.masks import Mask
from pipeline.device import pick_device
from pipeline.model.checkpoints import load_model
from pipeline.uncertainty.measures import entropy
from pipeline.uncertainty.predictor import Predictor


@dataclass(frozen=True)
class Proposal:
    """Predicted classes uint8 [H, W], and the entropy of their calibrated probability, float32 [H, W]."""

    image_id: int
    mask: Mask
    entropy: npt.NDArray[np.float32]


def propose(
    images: Sequence[ImageRef], *, checkpoint: Path, calibrators: Calibrators, config: ProjectConfig
) -> Iterator[Proposal | Unreadable]:
    """Predict images one by one at their own size, as they are scored.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or has other classes than the project.
        UserError: an image does not fit into the device's memory.
    """
    device = pick_device(config.device)
    segmenter, card = load_model(checkpoint, device=device, class_names=config.data.class_names)
    predictor = Predictor(segmenter, scoring=config.scoring, calibrators=calibrators, device=device)
    batches = load_batches(
        images,
        channels=card.channels,
        max_pixels=config.data.max_pixels,
        input_scale=card.input_scale,
        mean=card.mean,
        std=card.std,
        batch_size=1,
        workers=config.scoring.workers,
        pin_memory=device.type == "cuda",
    )
    for batch in batches:
        if isinstance(batch, Unreadable):
            yield batch
            continue
        probability_CHW = predictor.predict_probability(batch.image_BKHW, batch.sizes[0])
        yield Proposal(
            image_id=batch.ids[0],
            mask=probability_CHW.argmax(dim=0).to("cpu").numpy().astype(np.uint8),
            entropy=entropy(probability_CHW).to("cpu").numpy(),
        )
