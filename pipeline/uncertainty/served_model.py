"""A stored model, ready to predict: the one way from the folder of a checkpoint to predictions of images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.calibration.calibrators import Calibrators
from pipeline.config import Resolution, Sampler
from pipeline.data.image_info import ImageRef
from pipeline.data.images import ImageArray
from pipeline.data.large_images import Images
from pipeline.data.loading import Batch, Derived, Unreadable, load_batches
from pipeline.data.project import Project
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.checkpoints import CARD_FILE, ModelCard, load_model
from pipeline.model.device import pick_device
from pipeline.model.encoder_cache import CachedEncoder, map_layouts
from pipeline.progress import Progress, silent
from pipeline.uncertainty.network import ScoringNetwork
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.samplers import Member, Normalisation


@dataclass(frozen=True)
class ServedModel:
    """A network on the project's device, and the card that describes how its images are prepared.

    Attributes:
        max_pixels: a larger image is not decoded.
    """

    predictor: Predictor
    card: ModelCard
    max_pixels: int

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the network's images."""
        return _normalisation(self.card)

    def batches(
        self,
        images: Iterable[ImageRef],
        *,
        batch_size: int | None = None,
        derive: Callable[[ImageRef, ImageArray], Derived] | None = None,
    ) -> Generator[Batch[Derived] | Unreadable]:
        """Images prepared for the network, in batches of one size; see `load_batches`.

        Args:
            images: consumed as far as needed, in this thread.
            batch_size: at most so many images together; by default as many as the predictor takes at once.
            derive: computes something from each decoded image, in the decoding threads.
        """
        predictor, card = self.predictor, self.card
        size = batch_size or predictor.batch_size
        return load_batches(
            images,
            channels=card.channels,
            max_pixels=self.max_pixels,
            input_scale=card.input_scale,
            mean=card.mean,
            std=card.std,
            batch_size=size,
            workers=predictor.scoring.workers,
            pin_memory=predictor.device.type == "cuda",
            max_batch_pixels=size * predictor.scoring.tile**2,
            derive=derive,
        )


@dataclass(frozen=True)
class SampledModel:
    """One model, opened once for each of several samplers.

    Attributes:
        samplers: all of them.
        opened: by sampler; without `none` where another sampler's deterministic pass replaces it.
    """

    samplers: tuple[Sampler, ...]
    opened: dict[Sampler, ServedModel]

    @property
    def first(self) -> ServedModel:
        """The first opened model: all of them read images in the same way."""
        return next(iter(self.opened.values()))

    @property
    def device(self) -> torch.device:
        return self.first.predictor.device

    def predict(
        self, image: Images, progress: Progress = silent
    ) -> Iterator[tuple[Sampler, Prediction, Prediction]]:
        """Each sampler's prediction of normalised images [B, K, h, w], or large ones, before and after
        calibration: the same object where calibrators are identities."""
        for served in self.opened.values():
            predictor = served.predictor
            calibrators = predictor.calibrators
            pairs = [Calibrators()] if calibrators.change_nothing else [Calibrators(), calibrators]
            predictions = predictor.predict_each(image, pairs, progress)
            plain, calibrated = predictions[0], predictions[-1]
            sampler = predictor.scoring.sampler
            if served is self.first and sampler != "none" and "none" in self.samplers:
                bare = [one.without_samples() for one in predictions]
                yield "none", bare[0], bare[-1]
            yield sampler, plain, calibrated


def open_samplers(
    project: Project,
    checkpoint: str | Path,
    calibrators: Mapping[Sampler, Calibrators],
    *,
    cached: bool = True,
) -> SampledModel:
    """Open a model with every sampler that `calibrators` names; raises what `open_model` does."""
    needed: list[Sampler] = [name for name in calibrators if name != "none"] or ["none"]
    return SampledModel(
        samplers=tuple(calibrators),
        opened={
            name: open_model(project, checkpoint, calibrators=calibrators[name], sampler=name, cached=cached)
            for name in needed
        },
    )


def open_model(
    project: Project,
    checkpoint: str | Path,
    *,
    calibrators: Calibrators,
    sampler: Sampler | None = None,
    for_scores: bool = False,
    cached: bool = True,
) -> ServedModel:
    """Load a stored model onto the project's device, and with `ensemble` its other members.

    Every fourth pixel is enough for the mean of a region, but gives a blurred mask. So predictions that are
    displayed or compared with masks have the network's own resolution.

    Args:
        checkpoint: its folder; a relative path starts at the project's root.
        calibrators: of the model, for this sampler; identities for uncalibrated scores.
        sampler: instead of `scoring.sampler`.
        cached: keep and read the maps of a frozen encoder, as `model.cache_features` says; False for images
            that are not the project's own.
        for_scores: predict at `scoring.resolution`, even where it is coarser than the network's own.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, or has other classes than the project.
        UserError: the device does not exist.
        ConfigError: the model does not offer this sampler.
    """
    scoring = project.config.scoring
    if sampler is not None and sampler != scoring.sampler:
        scoring = scoring.model_copy(update={"sampler": sampler})
    if scoring.resolution == "quarter" and not for_scores:
        scoring = scoring.model_copy(update={"resolution": "logits"})
    device = pick_device(project.config.device)
    folder = project.path(str(checkpoint))
    segmenter, card = load_model(folder, device=device, class_names=project.config.data.class_names)
    members: list[Member] = []
    if scoring.sampler == "ensemble":
        members = [
            _load_member(member, serving=card, resolution=scoring.resolution, device=device)
            for member in _ensemble_folders(project, folder.resolve())
        ]
    cache: CachedEncoder | None = None
    if cached and project.config.model.caches and card.model.freeze_encoder:
        with suppress(ConfigError):  # an encoder of another kind runs for each image
            cache = CachedEncoder(segmenter, map_layouts(segmenter), project.encoder_maps, device=device)
    predictor = Predictor(
        segmenter,
        scoring=scoring,
        calibrators=calibrators,
        device=device,
        normalisation=_normalisation(card),
        input_scale=card.input_scale,
        members=members,
        cache=cache,
    )
    return ServedModel(predictor=predictor, card=card, max_pixels=project.config.data.max_pixels)


def _ensemble_folders(project: Project, own: Path) -> list[Path]:
    """The folders of the checkpoints that `scoring.ensemble` names besides the model in `own`, in its order.
    A name is a model of this project, or else the path of a folder.

    Raises:
        ConfigError: a name is neither a model nor a checkpoint, or occurs twice, or no other model is left.
    """
    folders: list[Path] = []
    for name in project.config.scoring.ensemble:
        beside = own.parent / name
        folder = (beside if (beside / CARD_FILE).is_file() else project.path(name)).resolve()
        if not (folder / CARD_FILE).is_file():
            known = sorted(path.parent.name for path in own.parent.glob(f"*/{CARD_FILE}"))
            raise ConfigError(
                f"`scoring.ensemble` names {name!r}, which is neither a model of this project nor the folder "
                "of a checkpoint.",
                f"The project's models are {', '.join(known)}.",
            )
        if folder in folders:
            raise ConfigError(f"`scoring.ensemble` names {name!r} twice.", "Name each model once.")
        folders.append(folder)
    others = [folder for folder in folders if folder != own]
    if not others:
        raise ConfigError(
            f"`scoring.ensemble` names no other model than {own.name} itself.",
            "Name at least one other model, or the folder of its checkpoint.",
        )
    return others


def _load_member(folder: Path, *, serving: ModelCard, resolution: Resolution, device: torch.device) -> Member:
    segmenter, card = load_model(folder, device=device, class_names=serving.class_names)
    if card.channels != serving.channels:
        raise CheckpointError(
            f"The checkpoint {folder} takes images of {card.channels} channels, the serving model of "
            f"{serving.channels}.",
            "Take it out of `scoring.ensemble`.",
        )
    return Member(
        network=ScoringNetwork(segmenter, resolution=resolution, device=device),
        normalisation=_normalisation(card),
        input_scale=card.input_scale,
        weights=card.weights_sha256,
    )


def _normalisation(card: ModelCard) -> Normalisation:
    return Normalisation(mean=tuple(card.mean), std=tuple(card.std))
