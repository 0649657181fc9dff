"""Settings of the queue: selection and export."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import FilePath, Positive, Section, Seed
from pipeline.config.scoring import HeatmapSize


class SelectionConfig(Section):
    strategy: Literal[
        "random",
        "class_random",
        "strided",
        "coverage",
        "least_confidence",
        "margin",
        "entropy",
        "mutual_information",
        "variation_ratio",
        "stratified",
        "stratified_margin",
    ] = "stratified"
    unit: Literal["region", "image"] = "region"
    budget: Positive = 100
    budget_unit: Literal["regions", "images"] | None = None
    """What `budget` counts: `regions` with unit `region` by default, `images` with unit `image`. `images`
    with unit `region` means as many regions as that many average images have."""
    audit_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the queue that is drawn uniformly at random: the only unbiased sample of the pool."""
    audit_training: Literal["auto", "always", "never"] = "auto"
    """Whether models are trained on the labels of audit regions. `always`: more labels, but an audit is new
    only to models from before it. `never`: every model can be calibrated and judged on all audits, at the
    price of that share of the labels. `auto`: `never` where the audits calibrate (`calibration.source`), else
    `always`."""
    per_image_cap: Annotated[float, Field(gt=0)] | None = 0.25
    """Regions of one image in a queue: a share of its regions below 1, a number from 1 on. null: no cap."""
    no_touching: bool = True
    """No two queued regions of an image share an edge."""
    min_gap: Annotated[int, Field(ge=0)] = 0
    """Positions of a sequence between two queued images."""
    max_similarity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Regions whose features have at least this cosine similarity with one that is chosen come last, also in
    other images. The features are those of the pretrained encoder. null: regions are not compared, but for
    `coverage`, which takes 0.9."""
    class_power: Annotated[float, Field(ge=0, le=2)] = 0.0
    """For strategies that split their budget over classes: the part of each class is in proportion to its
    share of the labeled pixels to the power of minus this. 0: all parts are equal; 1: a class with half the
    pixels of another gets twice its part."""
    cost_power: Annotated[float, Field(ge=0, le=2)] = 0.0
    """For strategies that rank by a measure: scores are divided by the estimated clicks of a region to this
    power. The clicks are those of its predicted borders, one for 8 pixels and one for the region. 0: regions
    of any cost compete by their scores; 1: score for each click."""
    first_queue: Literal["auto", "random", "strided", "coverage"] = "auto"
    """How the first queue is chosen, before there is a model, where `strategy` needs one. `auto`: `strided`,
    or `random` where `data.independent` says that neighbours do not look alike."""
    noise_beta: Annotated[float, Field(gt=0)] | None = None
    """Power noise: log score + Gumbel/β. null: none. Larger is less noise (Kirsch et al. 2023)."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _budget_unit_fits(self) -> Self:
        if self.unit == "image" and self.budget_unit == "regions":
            raise ValueError("`budget_unit: regions` needs `unit: region`.")
        return self


class ExportConfig(Section):
    folder: FilePath = "queues"
    """Where queues are exported, a folder each."""
    images: Literal["link", "copy"] = "link"
    """`link`: a symbolic link to each image, or a copy where links are not possible."""
    overlays: bool = True
    heatmaps: HeatmapSize = "quarter"
    """The size of the heat maps of `folder`: one pixel for 4 × 4 of the image, or for each."""
