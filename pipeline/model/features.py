"""Features of regions from a pretrained encoder, to compare regions without a trained model.

Legend: B batch, K image channels, H W the image as the network sees it, R regions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from pipeline.model.segmenter import Segmenter

DEEPEST = 2
"""The encoder's maps that features come from. The deepest alone is too coarse for a small region."""


@torch.inference_mode()
def region_features(
    segmenter: Segmenter, image: Tensor, boxes: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float16]:
    """The means of the encoder's deepest maps over each region: [R, F], each row of length 1.

    Each map has the same weight, so the product of two rows is the mean of the maps' cosine similarities.

    Args:
        segmenter: in `eval` mode.
        image: normalised images [B, K, H, W].
        boxes: of each image: (x, y, w, h) in pixels of H and W, one row a region.
    """
    padded = segmenter.pad(image)
    corners = [
        torch.from_numpy(np.concatenate([part[:, :2], part[:, :2] + part[:, 2:]], axis=1)).to(image.device)
        for part in boxes
    ]
    maps = segmenter.pyramid(segmenter.encode(padded))[-DEEPEST:]
    means = [
        roi_align(
            part.float(),
            corners,
            output_size=1,
            spatial_scale=part.shape[-1] / padded.shape[-1],
            aligned=True,
        ).flatten(1)
        for part in maps
    ]
    joined = torch.cat([functional.normalize(part, dim=1) for part in means], dim=1)
    return functional.normalize(joined, dim=1).half().cpu().numpy()
