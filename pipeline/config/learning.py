"""Settings of the network, its training, its calibration and its evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from pipeline.config.base import FilePath, Fraction, Positive, Section, Seed


class ModelConfig(Section):
    architecture: Literal[
        "unet",
        "unetplusplus",
        "manet",
        "linknet",
        "fpn",
        "pspnet",
        "deeplabv3",
        "deeplabv3plus",
        "pan",
        "upernet",
        "segformer",
        "dpt",
    ] = "fpn"
    encoder: str = "resnet34"
    """An encoder of segmentation-models-pytorch; `tu-` before a timm name."""
    encoder_weights: FilePath = "imagenet"
    """`imagenet` (downloaded), `none`, or the path of a safetensors file."""
    decoder: dict[str, Any] = {}
    """Further arguments of the decoder, such as `decoder_pyramid_channels: 64`."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability that a channel is dropped on the segmentation path."""
    placement: Literal["head", "deep"] = "head"
    """Where channels are dropped, in training as in `mc_dropout`: before the last convolution only, or also
    in several stages of the decoder (the central placement of Kendall et al. 2015)."""
    heads: Annotated[int, Field(ge=0, le=16)] = 0
    """Slim heads on the encoder's features, trained beside the decoder in the same run, for
    `scoring.sampler: head_ensemble`. They do not change the network's own weights."""
    freeze_encoder: bool = False
    cache_features: Literal["never", "auto", "always"] = "never"
    """With `freeze_encoder`: keep the encoder's maps of each image in `<workdir>/features`, as float16, and
    read them in training, calibration, evaluation and scoring. Training then takes windows of the maps of
    whole images instead of encoding each crop: a crop begins at a multiple of the encoder's stride, and what
    lies beyond its border is in its maps. That is another training with other weights, so `never` is the
    default. It needs a `training.crop` of multiples of the stride, no transform but `HorizontalFlip`, no
    `training.mix`, and images no larger than `scoring.tile`. `auto`: training encodes crops where that is not
    so; `always`: that is an error."""
    cache_gib: Annotated[float, Field(gt=0)] = 20.0
    """Size of `<workdir>/features` in GiB; the least recently read maps are deleted first. For scoring to
    profit, it must hold the maps of the whole pool."""
    mean: Annotated[list[float], Field(min_length=1)] | None = None
    """A value a channel, of pixels in 0 to 1; the encoder's by default."""
    std: Annotated[list[float], Field(min_length=1)] | None = None
    input_scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Images are resized by this factor before they enter the network. Regions stay in image pixels."""

    @model_validator(mode="after")
    def _has_something_to_cache(self) -> Self:
        if self.cache_features == "always" and not self.freeze_encoder:
            raise ValueError(
                "`cache_features: always` needs an encoder that does not change: "
                "set `freeze_encoder: true`, or `cache_features: auto`."
            )
        return self

    def provenance(self) -> dict[str, Any]:
        """All of it that decides a network's weights."""
        unused = {"cache_gib"} if self.caches else {"cache_gib", "cache_features"}
        return self.model_dump(mode="json", exclude=unused)

    @property
    def caches(self) -> bool:
        """Whether the encoder's maps are kept."""
        return self.freeze_encoder and self.cache_features != "never"


class LossConfig(Section):
    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    dice: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the Dice loss. It harms calibration (Mehrtash et al. 2020)."""
    class_weights: Literal["none", "balanced"] | list[Annotated[float, Field(ge=0)]] = "none"
    """`balanced`: inverse square root of the labeled pixels of a class, mean 1; or a number a class."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that the target gives to all classes alike (Szegedy et al. 2016). It harms the ranking of
    errors (Xia et al. 2024); `max_logit_norm` repairs it."""
    focal_gamma: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Exponent of the focal loss (Lin et al. 2017); 0 is cross-entropy."""

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.cross_entropy + self.dice == 0:
            raise ValueError("`cross_entropy` and `dice` are both 0: there is no loss.")
        if self.cross_entropy == 0 and (self.label_smoothing or self.focal_gamma):
            raise ValueError(
                "`label_smoothing` and `focal_gamma` change the cross-entropy, whose weight is 0: "
                "raise `cross_entropy`, or remove them."
            )
        return self


class TransformConfig(Section):
    name: str
    """A transform of albumentations."""
    model_config = ConfigDict(frozen=True, extra="allow")


class TrainingConfig(Section):
    iterations: Positive = 2000
    batch_size: Positive = 8
    crop: tuple[Positive, Positive] = (256, 256)
    """Height and width of a training crop, in pixels of the resized image."""
    centre_on_labels: bool = True
    """Crops are centred on labeled regions, so that small labels are sampled as often as large ones. Without
    it each crop that fits is as likely as any other, and an image's border is seen less than its middle."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    encoder_learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip_gradient: Annotated[float, Field(gt=0)] | None = 12.0
    """The longest gradient, as a Euclidean norm over all weights; a longer one is scaled down, so that one
    bad batch cannot move the weights far. `null`: no limit. The default is that of nnU-Net
    (Isensee et al. 2021)."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    loss: LossConfig = LossConfig()
    transforms: list[TransformConfig] = [TransformConfig(name="HorizontalFlip")]
    """Albumentations transforms, in order, each `{name: …, argument: value}`."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Two crops in one: blended (Zhang et al. 2018), or a box of one pasted into the other (Yun et al.
    2019)."""
    mix_alpha: Annotated[float, Field(gt=0)] = 0.2
    """Of the Beta(α, α) distribution that the share of the second crop is drawn from; for CutMix mostly 1."""
    annotators: Literal["latest", "majority", "soft"] = "latest"
    """The target of a pixel with several annotators: the newest label, the majority's label, or each class by
    its share of the votes."""
    vote_prior: Annotated[float, Field(ge=0)] = 0.0
    """With `soft`: a in (n_c + a) / (N + a·C), Laplace's smoothing of the votes of N annotators."""
    warm_start: bool = False
    """Start from the last promoted model instead of from `model.encoder_weights`."""
    mixed_precision: bool = True
    """Autocast on CUDA. The CPU always trains in float32."""
    workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 200
    """Iterations between two resumable checkpoints."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        soft = {"`annotators: soft`": self.annotators == "soft", "`mix: mixup`": self.mix == "mixup"}
        named = " and ".join(name for name, chosen in soft.items() if chosen)
        if named and self.loss.dice:
            raise ValueError(
                f"{named} gives a pixel shares of several classes, but the Dice loss takes one class a pixel "
                "and would learn the largest share as certain: set `loss.dice: 0`."
            )
        if self.mix != "none" and self.batch_size < 2:
            raise ValueError(f"`mix: {self.mix}` needs two crops in a batch: raise `batch_size`.")
        if self.vote_prior and self.annotators != "soft":
            raise ValueError(
                f"`vote_prior` smooths the shares of `annotators: soft`, not `{self.annotators}`: "
                "change `annotators`, or remove it."
            )
        return self


class CalibrationConfig(Section):
    calibrator: Literal[
        "auto",
        "identity",
        "temperature",
        "classwise_temperature",
        "vector",
        "histogram",
        "selective",
    ] = "auto"
    """`auto`: the simplest one whose cross-fitted NLL is within one standard error of the lowest, among those
    that change no predicted label; `identity` where none is shown to help."""
    source: Literal["auto", "split", "audit"] = "auto"
    """The data of the fit. `split`: the calibration split. `audit`: the labeled audit regions of all rounds,
    which are then excluded from training. `auto`: the split where it has masks, else the audit."""
    pixels_per_image: Positive = 2000
    """Labeled pixels drawn from each calibration image for the fit."""


class EvaluationConfig(Section):
    bins: Annotated[int, Field(ge=2, le=1000)] = 15
    """Bins of the expected calibration error; a divisor of 150, the number of linear bins that are stored."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    confidence: Fraction = 0.95
    block: Positive = 10
    """Neighbouring images of a sequence that count as one independent unit, at least: units are estimated
    from the images, and may be longer, up to whole groups. `data.independent` makes each image a unit."""
    boundary: Positive = 3
    """Pixels on each side of a class border that count as its boundary band."""
    gate: Fraction = 0.6
    """Out-of-distribution AUROC that mutual information must beat, with the lower end of its interval, before
    the selection ranks by it."""
    promote_tolerance: Annotated[float, Field(ge=0)] = 0.02
    """The non-inferiority margin: a new model that measures lower than the best promoted one is promoted all
    the same where the interval of the difference excludes a larger loss of mIoU than this. With 0.01, 40
    independent units are too few to promote an equal model more often than by the toss of a coin; with 0.03,
    they promote every second model that is worse by 0.02."""

    @field_validator("bins")
    @classmethod
    def _divides(cls, value: int) -> int:
        if 150 % value:
            raise ValueError(f"Expected a divisor of 150 (5, 10, 15, 25, 30, …), but got {value}.")
        return value
