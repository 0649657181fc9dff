"""Features of the pool's regions from the configured pretrained encoder, read for a selection."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from db.engine import Database
from db.queries import images as image_queries
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.coverage import Embed
from pipeline.config import SelectionConfig
from pipeline.data.image_info import ImageRef
from pipeline.data.large_images import LARGE
from pipeline.data.loading import Unreadable, load_batches, network_size
from pipeline.data.project import Project
from pipeline.errors import ConfigError
from pipeline.model.build import build_segmenter, normalisation
from pipeline.model.device import pick_device
from pipeline.model.features import region_features
from pipeline.model.segmenter import Segmenter
from pipeline.progress import Progress

PAGE = 500
"""Images whose rows are read at a time."""


def features_for(
    project: Project, database: Database, config: SelectionConfig, progress: Progress
) -> Embed | None:
    """What gives a selection the features of its candidates; None where it needs none.

    Raises:
        ConfigError: the encoder has random weights, which say nothing about what an image shows.
    """
    covers = config.strategy == "coverage"
    if not covers and config.max_similarity is None:
        return None
    if project.config.model.encoder_weights == "none":
        what = "`coverage`" if covers else "`selection.max_similarity`"
        raise ConfigError(
            f"{what} compares images by a pretrained encoder, and `model.encoder_weights` is `none`: the "
            "features of random weights say little about what an image shows.",
            "Set `model.encoder_weights` to `imagenet` or to a safetensors file, or "
            + ("choose `--strategy strided` or `random`." if covers else "set `max_similarity` to null."),
        )
    return EncoderFeatures(project, database, progress)


class EncoderFeatures:
    """Features of candidates: the encoder looks at each of their images once a call."""

    def __init__(self, project: Project, database: Database, progress: Progress) -> None:
        self._project = project
        self._database = database
        self._progress = progress
        self._done = 0

    def __call__(self, candidates: Candidates) -> npt.NDArray[np.float16]:
        """[N, F]: rows of length 1, or 0 for an image that cannot be read."""
        found: npt.NDArray[np.float16] | None = None
        starts = candidates.starts
        row_of = {image_id: row for row, image_id in enumerate(candidates.image_id.tolist())}
        used = [image_id for image_id, row in row_of.items() if starts[row] < starts[row + 1]]
        for ids, boxes, scale, images in self._batches(used, candidates, row_of):
            features = region_features(
                self._segmenter, images.to(self._device), [box * scale for box in boxes]
            )
            if found is None:
                found = np.zeros((len(candidates), features.shape[1]), dtype=np.float16)
            first = 0
            for image_id, box in zip(ids, boxes, strict=True):
                start = starts[row_of[image_id]]
                found[start : start + len(box)] = features[first : first + len(box)]
                first += len(box)
            self._done += len(ids)
            self._progress("features", self._done, None)
        return np.zeros((len(candidates), 1), dtype=np.float16) if found is None else found

    def _batches(
        self, image_ids: list[int], candidates: Candidates, row_of: dict[int, int]
    ) -> Iterator[tuple[tuple[int, ...], list[npt.NDArray[np.float32]], float, torch.Tensor]]:
        """Images of one size: ids, boxes in image pixels, the factor to the network's pixels, and pixels."""
        config = self._project.config
        mean, std = normalisation(config.model, config.data.channels)
        starts = candidates.starts
        for scale, refs in groupby(self._refs(image_ids), key=self._scale):
            for batch in load_batches(
                refs,
                channels=config.data.channels,
                max_pixels=config.data.max_pixels,
                input_scale=scale,
                mean=mean,
                std=std,
                batch_size=config.scoring.batch_size,
                workers=config.scoring.workers,
                max_batch_pixels=config.scoring.batch_size * config.scoring.tile**2,
            ):
                if isinstance(batch, Unreadable):
                    continue  # `score` and `export` say why
                rows = [row_of[image_id] for image_id in batch.ids]
                boxes = [candidates.box[starts[row] : starts[row + 1]].astype(np.float32) for row in rows]
                yield batch.ids, boxes, scale, batch.image_BKHW

    def _refs(self, image_ids: list[int]) -> Iterator[ImageRef]:
        for start in range(0, len(image_ids), PAGE):
            with self._database.session(write=False) as session:
                page = image_queries.images_by_id(session, image_ids[start : start + PAGE])
                refs = [self._project.ref(image) for image in page]
            yield from refs

    def _scale(self, ref: ImageRef) -> float:
        """Between image and network pixels: the configured one, less for an image that would be too large
        to be encoded whole."""
        scale = self._project.config.model.input_scale
        height, width = network_size(ref.height, ref.width, scale)
        return scale if height * width < LARGE else scale * math.sqrt((LARGE - 1) / (height * width)) * 0.99

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self._project.config.device)

    @cached_property
    def _segmenter(self) -> Segmenter:
        """The configured network with the pretrained encoder's weights; its decoder is not used."""
        config = self._project.config
        with torch.random.fork_rng(devices=[]):
            segmenter = build_segmenter(
                config.model,
                num_classes=len(config.data.classes),
                channels=config.data.channels,
                root=self._project.root,
            )
        return segmenter.eval().to(self._device)
