"""Reading held-out images together with their masks.

Legend: B batch, K image channels, h w the network's image, H W the image and its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.data.image_info import ImageRef
from pipeline.data.labels import compose_labels
from pipeline.data.large_images import LARGE, Images, chosen, window
from pipeline.data.loading import Batch, Unreadable
from pipeline.data.masks import Mask, MaskCodec, read_mask
from pipeline.data.project import Project
from pipeline.data.remote import ImageFile
from pipeline.data.rendered_masks import mask_codec
from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import MOST_UNITS
from pipeline.evaluation.measure_bins import SAMPLE_IMAGES, BinSample, MeasureBins
from pipeline.evaluation.units import Runs, join
from pipeline.progress import Progress, silent
from pipeline.regions.outlines import paint_regions
from pipeline.uncertainty.served_model import ServedModel

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class PlacedImage:
    """An image, and its position in a sequence of similar images."""

    ref: ImageRef
    group: str
    position: int


@dataclass(frozen=True)
class HeldOut(PlacedImage):
    """An image of a locked split, and its mask."""

    mask: Path

    def label(self, codec: MaskCodec) -> Mask:
        """uint8 [H, W], class index or 255.

        Raises:
            DataError: the mask cannot be used.
        """
        return read_mask(self.mask, codec, size=(self.ref.width, self.ref.height))


@dataclass(frozen=True)
class LabeledImage(HeldOut):
    """An image of a locked split whose mask is a stored label."""

    def label(self, codec: MaskCodec) -> Mask:
        return compose_labels([self.mask], (self.ref.width, self.ref.height))


@dataclass(frozen=True)
class AuditedRegion:
    """A region of the pool that was randomly drawn, and its stored labels.

    Attributes:
        box: x, y, w, h in image pixels.
        outline: which pixels of the box; None for all.
        weight: the number of regions of the pool that it represents.
        masks: index PNGs of the image's size, in the order in which they are painted.
    """

    box: tuple[int, int, int, int]
    outline: str | None
    weight: float
    masks: tuple[Path, ...]


@dataclass(frozen=True)
class AuditedImage(HeldOut):
    """An image of the pool of which only the audited regions count.

    Attributes:
        newest: a region of the newest audit is among them, which stands for what was not labeled then.
    """

    regions: tuple[AuditedRegion, ...]
    newest: bool

    def label(self, codec: MaskCodec) -> Mask:
        size = (self.ref.width, self.ref.height)
        label = np.full(size[::-1], IGNORE, dtype=np.uint8)
        for region in self.regions:
            inside = self._pixels(region)
            label[inside] = compose_labels(region.masks, size)[inside]
        return label

    def weights(self) -> npt.NDArray[np.float32]:
        """[H, W]: how much of the pool each pixel represents; 0 outside of the regions."""
        weights = np.zeros((self.ref.height, self.ref.width), dtype=np.float32)
        for region in self.regions:
            weights[self._pixels(region)] = region.weight
        return weights

    def _pixels(self, region: AuditedRegion) -> npt.NDArray[np.bool_]:
        canvas = np.zeros((self.ref.height, self.ref.width), dtype=bool)
        paint_regions(canvas, np.array([region.box]), [region.outline])
        return canvas


@dataclass(frozen=True)
class LabeledBatch:
    """Images of one size prepared for the network, and their masks at the images' own size.

    Attributes:
        ids: of the images.
        images: [B, K, h, w], normalised, or large ones.
        label: uint8 [B, H, W], class index or 255.
        progress: counts the tiles of a large image while it is predicted.
    """

    ids: tuple[int, ...]
    images: Images
    label: Tensor
    progress: Progress = silent

    @property
    def image_BKhw(self) -> Tensor:
        """All pixels, float32, normalised."""
        return window(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        return self.label.shape[-2], self.label.shape[-1]


class HeldOutImages:
    """Images with masks and the runs of neighbours that they are in.

    Attributes:
        by_id: the images.
        runs: of the images, in the order in which they were given.
        run_of: the run of each image, by its id.
        failed: URI and reason of each file that could not be used.

    Args:
        most_runs: more runs are joined.
    """

    def __init__(self, project: Project, images: Sequence[HeldOut], *, most_runs: int = MOST_UNITS) -> None:
        self.project = project
        self.by_id = {image.ref.id: image for image in images}
        self.runs = runs_of(project, images, most=most_runs)
        self.run_of = dict(zip(self.by_id, self.runs.of_image.tolist(), strict=True))
        self.failed: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.by_id)

    def keep(self, ids: Iterable[int]) -> None:
        """Leave out all other images. The runs do not change."""
        self.by_id = {image_id: self.by_id[image_id] for image_id in ids}

    def units_of(self, ids: Sequence[int], values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The independent unit [n] of images, by what each adds to S numbers beyond its share, [n, S]."""
        used, index = np.unique([self.run_of[image_id] for image_id in ids], return_inverse=True)
        return self.runs.units(join(values, index), used.tolist())[index]

    def read(self, model: ServedModel, *, title: str, progress: Progress) -> Iterator[LabeledBatch]:
        """Every image with its mask, in batches of one size. A file that cannot be used is listed in
        `failed` and skipped.

        Args:
            model: that the images are prepared for.
            title: of the progress, which counts a batch when the caller asks for the next one.
        """
        done = 0
        for count, batch in self._batches(model, self.by_id, self.failed):
            if batch is not None:
                yield replace(batch, progress=progress)
            done += count
            progress(title, done, len(self))

    def sample(self, model: ServedModel, most: int) -> Iterator[LabeledBatch]:
        """At most `most` images, evenly spread; where none of them can be used, the first batch that can.
        Files that cannot be used are not listed: `read` lists them."""
        ids = list(self.by_id)
        sampled = [ids[index] for index in spread(len(ids), most)]
        usable = False
        for _, batch in self._batches(model, sampled, []):
            if batch is not None:
                usable = True
                yield batch
        if not usable:
            others = [image_id for image_id in ids if image_id not in sampled]
            found = (batch for _, batch in self._batches(model, others, []) if batch is not None)
            yield from islice(found, 1)

    def fail(self, path: ImageFile, reason: str) -> None:
        """List a file that cannot be used."""
        self.failed.append((self.project.uri(path), reason))

    def _batches(
        self, model: ServedModel, ids: Iterable[int], failed: list[tuple[str, str]]
    ) -> Iterator[tuple[int, LabeledBatch | None]]:
        """Batches of images with their masks, and how many files each was made of; None where no file of a
        batch could be used. Files that cannot be used are added to `failed`."""
        codec = mask_codec(self.project)
        for batch in model.batches([self.by_id[image_id].ref for image_id in ids]):
            if isinstance(batch, Unreadable):
                failed.append((self.project.uri(batch.path), batch.reason))
                yield 1, None
            else:
                yield len(batch.ids), self._with_labels(batch, codec, failed)

    def _with_labels(
        self, batch: Batch[Any], codec: MaskCodec, failed: list[tuple[str, str]]
    ) -> LabeledBatch | None:
        kept: list[int] = []
        masks: list[Mask] = []
        for row, image_id in enumerate(batch.ids):
            image = self.by_id[image_id]
            try:
                masks.append(image.label(codec))
            except DataError as error:
                failed.append((self.project.uri(image.mask), str(error)))
            else:
                kept.append(row)
        if not kept:
            return None
        return LabeledBatch(
            ids=tuple(batch.ids[row] for row in kept),
            images=chosen(batch.images, kept),
            label=torch.from_numpy(np.stack(masks)),
        )


def thinned(size: tuple[int, int]) -> int:
    """Each how many-th pixel of an image of this size is enough to choose bins: of a large image, not all.

    >>> thinned((360, 480)), thinned((4000, 6000))
    (1, 6)
    """
    return -(-size[0] * size[1] // LARGE)


def concatenated(parts: Iterable[tuple[dict[str, Tensor], Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """The measures by name and the flags of an image's bands, one after the other."""
    measures, flags = zip(*parts, strict=True)
    return {name: torch.cat([part[name] for part in measures]) for name in measures[0]}, torch.cat(flags)


def choose_bins(
    images: HeldOutImages,
    model: ServedModel,
    measured: Callable[[LabeledBatch], Iterable[tuple[Key, Mapping[str, Tensor], Tensor]]],
    progress: Progress,
) -> dict[Key, dict[str, MeasureBins]]:
    """Histogram bins for each measure, chosen on a few images that are read for this beforehand.

    Args:
        model: that the images are prepared for.
        measured: for each image and each key (a sampler, or a variant of it), the measures [N] of its labeled
            pixels by name, and which of the pixels are wrong, or novel: bool [N].

    Returns:
        For every key the bins by name; empty where no image can be used.
    """
    samples: dict[Key, BinSample] = {}
    done, total = 0, min(len(images), SAMPLE_IMAGES)
    progress("choose bins", done, total)
    for batch in images.sample(model, SAMPLE_IMAGES):
        for key, measures, positive_N in measured(replace(batch, progress=progress)):
            samples.setdefault(key, BinSample()).add(measures, positive_N)
        done += len(batch.ids)
        progress("choose bins", done, total)
    return {key: sample.bins() for key, sample in samples.items()}


def runs_of(project: Project, images: Sequence[PlacedImage], *, most: int = MOST_UNITS) -> Runs:
    """The runs of images, by the project's configuration."""
    return Runs.of(
        [image.group for image in images],
        [image.position for image in images],
        block=project.config.evaluation.block,
        independent=project.config.data.independent,
        most=most,
    )


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` of the indices below `count`, evenly spaced.

    >>> spread(10, 3), spread(2, 3), spread(3, None)
    ([0, 4, 9], [0, 1], [0, 1, 2])
    """
    if most is None or most >= count:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()
