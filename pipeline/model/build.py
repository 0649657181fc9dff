"""From the configuration to a network, with or without pretrained encoder weights."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.files import LARGEST_WEIGHTS, require_plain
from pipeline.model.architectures import SEGMENTERS
from pipeline.model.deep import DEEP
from pipeline.model.segmenter import Segmenter

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]
OTHER_NORMALISATION = {  # encoders of SMP that were not pretrained with ImageNet's statistics
    "inceptionv4": (HALF, HALF),
    "inceptionresnetv2": (HALF, HALF),
    "xception": (HALF, HALF),
    "timm-tf_efficientnet_lite": (HALF, HALF),
    "dpn": ([124 / 255, 117 / 255, 104 / 255], [1 / (0.0167 * 255)] * 3),
}
OURS = frozenset(
    {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "arch"}
)


def build_segmenter(
    config: ModelConfig, *, num_classes: int, channels: int, root: Path, pretrained: bool = True
) -> Segmenter:
    """The network of a configuration, on the CPU, in `train` mode.

    New weights come from torch's global generator: seed it to repeat them.

    Args:
        config: architecture, encoder and dropout.
        num_classes: C.
        channels: K.
        root: the folder that a path in `encoder_weights` is relative to.
        pretrained: False leaves `encoder_weights` alone, for a network whose weights are loaded next.

    Raises:
        ConfigError: the encoder or an argument of the decoder does not exist, or they don't go together, or
            the architecture does not offer the placement of the dropout.
        CheckpointError: the encoder's weights cannot be read or downloaded, or are not this encoder's.
    """
    _check_names(config)
    weights = config.encoder_weights if pretrained else "none"
    if weights == "none":
        network = _create(config, num_classes=num_classes, channels=channels, weights=None)
    elif weights == "imagenet":
        network = _download(config, num_classes=num_classes, channels=channels)
    else:
        network = _from_file(config, num_classes=num_classes, channels=channels, path=root / weights)
    segmenter = _kind(config)(network, num_classes=num_classes, channels=channels, dropout=config.dropout)
    segmenter.probe()
    if config.heads:
        segmenter.add_heads(config.heads)
    if config.freeze_encoder:
        segmenter.freeze_encoder()
    return segmenter


def normalisation(config: ModelConfig, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixels in 0 to 1: the configured ones, else those
    that the encoder was pretrained with (averaged for one channel, repeated in turn for more than three, as
    the first convolution's weights are).

    >>> mean, std = normalisation(ModelConfig(encoder="tu-tf_efficientnet_lite0"), 3)
    >>> mean, std
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    >>> normalisation(ModelConfig(encoder="resnet18"), 4)[0]
    [0.485, 0.456, 0.406, 0.485]
    """
    mean, std = _encoder_statistics(config.encoder)
    mean = config.mean if config.mean is not None else _spread(mean, channels)
    std = config.std if config.std is not None else _spread(std, channels)
    return list(mean), list(std)


def _kind(config: ModelConfig) -> type[Segmenter]:
    """How the network is split at its dropout."""
    if config.placement == "head":
        return SEGMENTERS.get(config.architecture, Segmenter)
    kind = DEEP.get(config.architecture)
    if kind is None:
        raise ConfigError(
            f"`model.placement: deep` is not offered for `model.architecture: {config.architecture}`.",
            f"Set `placement: head`, or one of the architectures {', '.join(DEEP)}.",
        )
    return kind


def _encoder_statistics(encoder: str) -> tuple[list[float], list[float]]:
    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-")
        if timm.is_model(name):
            pretrained = timm.get_pretrained_cfg(name)
            if pretrained is not None:
                return list(pretrained.mean), list(pretrained.std)
    for start, statistics in OTHER_NORMALISATION.items():
        if encoder.startswith(start):
            return statistics
    return IMAGENET_MEAN, IMAGENET_STD


def _spread(values: list[float], channels: int) -> list[float]:
    if channels == 1:
        return [sum(values) / len(values)]
    return [values[channel % len(values)] for channel in range(channels)]


def _check_names(config: ModelConfig) -> None:
    name = config.encoder.removeprefix("tu-")
    timm_name = config.encoder.startswith("tu-")
    if timm_name and not timm.is_model(name):
        raise ConfigError(
            f"`model.encoder: {config.encoder}` is not a model that timm knows.", _nearest(name, tu=True)
        )
    if not timm_name and config.encoder not in smp.encoders.encoders:
        raise ConfigError(
            f"`model.encoder: {config.encoder}` is not an encoder of segmentation-models-pytorch.",
            _nearest(name, tu=False),
        )
    taken = sorted(OURS & config.decoder.keys())
    if taken:
        raise ConfigError(
            f"`model.decoder` sets {', '.join(taken)}, which segcurate sets itself.", "Remove it there."
        )


def _nearest(name: str, *, tu: bool) -> str:
    known = timm.list_models() if tu else list(smp.encoders.encoders)
    near = difflib.get_close_matches(name.split(".")[0], known, n=3, cutoff=0.4)
    hint = ", ".join(f"`{'tu-' if tu else ''}{match}`" for match in near)
    return f"Did you mean {hint}?" if hint else "For a timm model, write `tu-` before its name."


def _create(
    config: ModelConfig, *, num_classes: int, channels: int, weights: Any, **encoder: Any
) -> torch.nn.Module:
    if config.architecture == "dpt":
        # A vision transformer otherwise takes images of one size only
        encoder = {"dynamic_img_size": True, **encoder}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return smp.create_model(
                arch=config.architecture,
                encoder_name=config.encoder,
                encoder_weights=weights,
                in_channels=channels,
                classes=num_classes,
                **{**encoder, **config.decoder},
            )
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"`model.architecture: {config.architecture}` cannot be built on `{config.encoder}` "
            f"with `model.decoder: {config.decoder}`: {error}",
            "Check the names and values of these three.",
        ) from error


def _download(config: ModelConfig, *, num_classes: int, channels: int) -> torch.nn.Module:
    weights: Any  # for `tu-` encoders SMP wants True, against its own annotation
    if config.encoder.startswith("tu-"):
        available, weights = timm.is_model_pretrained(config.encoder.removeprefix("tu-")), True
    else:
        available = "imagenet" in smp.encoders.encoders[config.encoder]["pretrained_settings"]
        weights = "imagenet"
    if not available:
        raise ConfigError(
            f"There are no ImageNet weights for `model.encoder: {config.encoder}`.",
            "Set `model.encoder_weights` to `none`, or to the path of a safetensors file.",
        )
    try:
        return _create(config, num_classes=num_classes, channels=channels, weights=weights)
    except ConfigError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        raise CheckpointError(
            f"The ImageNet weights of `{config.encoder}` could not be downloaded: {error}",
            "Check the connection, or set `model.encoder_weights` to `none` or to the path of a "
            "safetensors file.",
        ) from error


def _from_file(config: ModelConfig, *, num_classes: int, channels: int, path: Path) -> torch.nn.Module:
    state = read_tensors(path)
    if not config.encoder.startswith("tu-"):
        network = _create(config, num_classes=num_classes, channels=channels, weights=None)
        _load_smp_encoder(network, config.encoder, state, channels=channels, path=path)
        return network
    _compare_names(config, state, path)
    try:
        # timm's own loader knows the first convolution of each of its models, and adapts its channels
        with _quiet("timm.models._builder"):
            return _create(
                config,
                num_classes=num_classes,
                channels=channels,
                weights=True,
                pretrained_cfg_overlay={"state_dict": state},
            )
    except RuntimeError as error:
        raise _not_this_encoder(path, config.encoder, _OTHER_TENSORS) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Nothing in it can run.

    Raises:
        CheckpointError: there is no such file, or it is not a safetensors file.
        DataError: it is no plain file, or too large.
    """
    require_plain(path, longest=LARGEST_WEIGHTS)
    if not path.is_file():
        raise CheckpointError(f"There are no weights at {path}.", "Check the path in the configuration.")
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError):  # their messages may quote the file
        raise CheckpointError(
            f"{path} is not a readable safetensors file.",
            "Only safetensors files are loaded; convert other checkpoints first.",
        ) from None


@contextmanager
def _quiet(name: str) -> Generator[None]:
    """Without the warnings of a logger: it names each tensor of the classifier, which no encoder has."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _compare_names(config: ModelConfig, state: dict[str, Tensor], path: Path) -> None:
    """timm's loader is silent about names that it does not find."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(config.encoder.removeprefix("tu-"))
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    names = {name for name in model.state_dict() if not name.startswith(tuple(f"{h}." for h in heads))}
    optional = {name for name in names if name.endswith("num_batches_tracked")}
    missing = sorted(names - optional - state.keys())
    unexpected = sorted(name for name in state.keys() - names if not name.startswith(heads or ("\0",)))
    if missing:
        raise _not_this_encoder(
            path,
            config.encoder,
            f"{len(missing)} of its tensors are missing ({_few(missing)})"
            + (f", and {len(unexpected)} are not its own" if unexpected else ""),
        )


def _load_smp_encoder(
    network: Any, encoder: str, state: dict[str, Tensor], *, channels: int, path: Path
) -> None:
    depth = getattr(network.encoder, "_depth", 5)
    source: Any = smp.encoders.get_encoder(encoder, in_channels=3, depth=depth, weights=None)
    try:
        source.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise _not_this_encoder(path, encoder, _OTHER_TENSORS) from error
    source.set_in_channels(channels, pretrained=True)
    network.encoder.load_state_dict(source.state_dict())


_OTHER_TENSORS = "its tensors have other names or shapes"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _not_this_encoder(path: Path, encoder: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} does not hold the weights of `model.encoder: {encoder}`: {reason}.",
        "Give the file of that encoder (timm's names for `tu-` encoders, SMP's for others).",
    )
