"""Settings of scoring: samplers, regions, heat maps."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import FilePath, PathTemplate, Positive, Section, Seed

Measure = Literal[
    "least_confidence",
    "margin",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "variation_ratio",
    "energy",
    "max_logit",
    "max_logit_norm",
]
SAMPLED_MEASURES: frozenset[Measure] = frozenset(
    {"expected_entropy", "mutual_information", "variation_ratio"}
)
"""The measures that need stochastic samples."""

LOGIT_MEASURES: frozenset[Measure] = frozenset({"energy", "max_logit", "max_logit_norm"})
"""The measures of the deterministic pass's uncalibrated logits, with every sampler; not in 0 to 1."""

_REGION_KEYS = {
    "grid": ("cell",),
    "superpixel": ("cell", "compactness"),
    "segment": ("cell", "smallest"),
    "file": ("folder", "template"),
    "image": (),
}
"""The settings that regions of a kind depend on. The maps of `file` are left out: a new image has a new map,
which must not cause all other images to be scored again."""

Resolution = Literal["quarter", "logits", "full"]
HeatmapSize = Literal["quarter", "full"]
Sampler = Literal["none", "mc_dropout", "tta", "head_ensemble", "ensemble"]


class RegionConfig(Section):
    kind: Literal["grid", "superpixel", "segment", "file", "image"] = "grid"
    """`grid`: square cells. `superpixel`: SLIC (Achanta et al. 2012). `segment`: connected components of the
    predicted mask. `file`: region maps of your own. `image`: the whole image."""
    cell: Annotated[int, Field(ge=8)] = 64
    """Side of a grid cell in image pixels, and the mean side of a superpixel. The last row and column of a
    grid are cut, or merged into the one before them where less than half a cell is left."""
    compactness: Annotated[float, Field(gt=0)] = 10.0
    """Of superpixels: larger is squarer, smaller follows colour more closely."""
    smallest: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A segment below this share of a cell's area is merged into the neighbour with the longest common
    border."""
    folder: FilePath | None = None
    """With `file`: the folder of the region maps, index PNG or TIFF of the image's size, in 8 or 16 bits.
    Pixels of one value are one region; the highest value of the type, 255 or 65535, is no region."""
    template: PathTemplate = "{parent}/{stem}.png"
    """With `file`: the region map of an image inside `folder`, written as `data.mask_template` is."""

    @model_validator(mode="after")
    def _file_has_folder(self) -> Self:
        if (self.kind == "file") != (self.folder is not None):
            raise ValueError("`kind: file` and `folder` belong together.")
        return self


class ViewsConfig(Section):
    """The views of `tta`: each setting adds one view to the unchanged one."""

    flip: bool = True
    scales: list[Annotated[float, Field(gt=0.1, lt=10)]] = [0.75, 1.25]
    gamma: list[Annotated[float, Field(gt=0.1, lt=10)]] = [0.8, 1.25]
    """Exponents of pixels in 0 to 1."""


class HeatmapConfig(Section):
    measures: list[Measure] = ["entropy"]
    per_class: bool = False
    """Also one map a class: `probability_<class>` where the calibrator has passed, else `softmax_<class>`."""
    images: Literal["none", "top", "all"] = "top"
    """Which images get heat maps when they are scored."""
    top: Positive = 50
    """With `top`: the images with the highest `entropy`."""
    size: HeatmapSize = "quarter"
    """One pixel of a map for 4 × 4 of the image, or for each."""
    two_colour: bool = False
    """Also a picture of `expected_entropy` in orange and `mutual_information` in blue, and these two maps."""

    @property
    def maps(self) -> tuple[Measure, ...]:
        """The measures that have a heat map."""
        both: tuple[Measure, ...] = ("expected_entropy", "mutual_information") if self.two_colour else ()
        return tuple(dict.fromkeys((*self.measures, *both)))


class ScoringConfig(Section):
    sampler: Sampler = "mc_dropout"
    """`none`: one pass. `mc_dropout`: samples of the dropout (Gal & Ghahramani 2016). `tta`: the same network
    on flipped, scaled and darkened views. `head_ensemble`: the `model.heads` (Lakshminarayanan et al. 2017,
    on one encoder). `ensemble`: several checkpoints."""
    samples: Annotated[int, Field(ge=2, le=1000)] = 20
    """Dropout samples T. 8 are enough for entropy; mutual information needs 20."""
    views: ViewsConfig = ViewsConfig()
    ensemble: list[FilePath] = []
    """With `ensemble`: models beside the serving one, by name (`r01`) or by the folder of a checkpoint."""
    regions: RegionConfig = RegionConfig()
    resolution: Resolution = "quarter"
    """Where measures are computed: at every fourth pixel along each side (or at the network's own stride,
    where that is coarser), at the network's own stride, or at every pixel."""
    batch_size: Positive = 8
    tile: Annotated[int, Field(ge=64)] = 1024
    """A larger image is scored in tiles of this side, in pixels of the resized image."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Overlap of neighbouring tiles, in the same pixels; they are blended there."""
    shard_images: Positive = 256
    """Images in a shard, which is committed as a whole, and repeated as a whole after a kill."""
    workers: Annotated[int, Field(ge=0)] = 1
    keep_regions: Literal["all"] | Positive = "all"
    """Region rows kept of each image and class, by entropy."""
    heatmaps: HeatmapConfig = HeatmapConfig()
    seed: Seed = 0

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap * 2 > self.tile:
            raise ValueError(f"`overlap` {self.overlap} is more than half of `tile` {self.tile}.")
        return self

    @model_validator(mode="after")
    def _ensemble_has_members(self) -> Self:
        if self.sampler == "ensemble" and not self.ensemble:
            raise ValueError("`sampler: ensemble` needs at least one other model in `ensemble`.")
        return self

    def provenance(self) -> dict[str, Any]:
        """The settings that a score depends on, apart from the model."""
        regions = self.regions.model_dump(mode="json", include={"kind", *_REGION_KEYS[self.regions.kind]})
        document: dict[str, Any] = {
            "sampler": self.sampler,
            "regions": regions,
            "keep_regions": self.keep_regions,
            "resolution": self.resolution,
            "tile": self.tile,
            "overlap": self.overlap,
            "cells": "nearest",  # earlier versions took cell i as the pixels from i·s on
        }
        if self.sampler != "none":
            document["confidence"] = "mean"  # earlier versions took that of the deterministic pass
        if self.sampler == "mc_dropout":
            document |= {"samples": self.samples, "seed": self.seed}
        if self.sampler in ("tta", "ensemble"):
            document["view_cells"] = "all"  # earlier versions resampled views between every fourth cell
        if self.sampler == "tta":
            document["views"] = self.views.model_dump(mode="json")
        return document
