"""Where tensors live."""

from __future__ import annotations

import torch

from pipeline.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device that `device` in the configuration means.

    Raises:
        ConfigError: the name is not a device, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"`device: {name}` is not a device.", "Write `auto`, `cpu` or `cuda:0`.") from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(f"`device: {name}` is not on this machine.", "Write `auto` or `cpu`.")
    return device


def half_precision() -> torch.dtype:
    """The type of autocast on this machine's CUDA devices: bfloat16 where they have it, else float16."""
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float16
