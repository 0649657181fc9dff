"""Checkpoints: safetensors for tensors, JSON for the rest. Loading one runs nothing that is in it.

A model is a folder with two files: `model.safetensors` and `model.json`, the card, which names the hash of
the first, so that a pair that does not belong together is noticed. A run that can be resumed is one more
file, `resume.safetensors`, with its JSON in the file's own header: it is replaced in one stroke.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor

from pipeline.config import ModelConfig, Section
from pipeline.data.input_range import InputRange
from pipeline.errors import CheckpointError
from pipeline.files import LARGEST_WEIGHTS, atomic_write_bytes, open_plain, read_plain, require_plain, sweep
from pipeline.model.build import build_segmenter
from pipeline.model.segmenter import Segmenter

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
RESUME_FILE = "resume.safetensors"
RESUME_HEADER = "segcurate"


class ModelCard(Section):
    """What a checkpoint is, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[1] = 1
    model: ModelConfig
    class_names: list[str]
    channels: int
    mean: list[float]
    std: list[float]
    input_scale: float
    config_hash: str
    labels_hash: str
    seed: int
    iterations: int
    metrics: dict[str, float] = Field(default_factory=dict)
    curve: dict[str, list[float]] = Field(default_factory=dict)
    """Of its training: `iteration`, `loss` and `learning_rate`; empty for a model of an earlier version."""
    input_range: InputRange | None = None
    """Of the training images; None for a model that was trained before it was kept."""
    class_shares: list[float] | None = None
    """Share of each class in the labeled pixels of the training images; None as for `input_range`."""
    weights_sha256: str = ""
    """Hash of the weights' file; `save_model` fills it in."""


def save_model(folder: Path, segmenter: Segmenter, card: ModelCard) -> str:
    """Write the weights and the card.

    Returns:
        SHA-256 of the weights' file, as 64 hex digits.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    data = save(_portable(segmenter.weights()))
    digest = hashlib.sha256(data).hexdigest()
    card = card.model_copy(update={"weights_sha256": digest})
    sweep(folder)
    atomic_write_bytes(folder / WEIGHTS_FILE, data)
    atomic_write_bytes(folder / CARD_FILE, card.model_dump_json(indent=2).encode())
    return digest


def load_model(
    folder: Path, *, device: torch.device, class_names: list[str] | None
) -> tuple[Segmenter, ModelCard]:
    """A saved network, in `eval` mode, and its card.

    Args:
        class_names: the project's classes, which must be the checkpoint's; None takes any.

    Raises:
        CheckpointError: a file is missing or damaged, or the classes differ.
    """
    card = read_card(folder)
    if class_names is not None and list(class_names) != card.class_names:
        raise CheckpointError(
            f"The checkpoint {folder} knows other classes than the project: "
            f"{_difference(card.class_names, list(class_names))}.",
            "Use a checkpoint of this project, or train again.",
        )
    state = _read_weights(folder / WEIGHTS_FILE, card.weights_sha256)
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced at once
        segmenter = build_segmenter(
            card.model,
            num_classes=len(card.class_names),
            channels=card.channels,
            root=folder,
            pretrained=False,
        )
    load_weights(segmenter, state, source=folder / WEIGHTS_FILE)
    return segmenter.to(device).eval(), card


def read_card(folder: Path) -> ModelCard:
    """The card of a saved model.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / CARD_FILE
    try:
        return ModelCard.model_validate_json(read_plain(path))
    except OSError as error:
        raise CheckpointError(
            f"There is no readable checkpoint in {folder}: {error.strerror}.",
            "Put the folder back from a backup, or train again.",
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        why = first["msg"] if first["type"] == "json_invalid" else "its keys or values are others"
        raise CheckpointError(
            f"{path} is not a model card of segcurate: {why}.",
            "Put the file back from a backup, or train again.",
        ) from None


def load_weights(segmenter: Segmenter, state: dict[str, Tensor], *, source: Path) -> None:
    """Put saved tensors into a network of the same architecture.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        segmenter.load_weights(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {source} are not those of this network: their names or shapes differ.",
            "Check `model.architecture`, `model.encoder`, `model.decoder` and `model.heads`.",
        ) from error


def save_resume(folder: Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Write all that a killed run needs to go on, in place of what was there.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    header = {RESUME_HEADER: json.dumps(document, sort_keys=True)}
    sweep(folder)
    atomic_write_bytes(folder / RESUME_FILE, save(_portable(tensors), metadata=header))


def load_resume(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_resume` wrote, on the CPU; None where there is nothing, or nothing readable: the run
    then starts again, which costs time and nothing else.

    Raises:
        DataError: it is no plain file.
    """
    path = folder / RESUME_FILE
    require_plain(path, longest=LARGEST_WEIGHTS)
    try:
        with safe_open(path, framework="pt") as opened:
            document = json.loads((opened.metadata() or {})[RESUME_HEADER])
        return load_file(path, device="cpu"), document
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def forget_resume(folder: Path) -> None:
    """Remove what a finished run needs no more."""
    (folder / RESUME_FILE).unlink(missing_ok=True)


def _read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        with open_plain(path, longest=LARGEST_WEIGHTS) as stream:
            known = hashlib.file_digest(stream, "sha256").hexdigest() == digest  # before it takes any memory
            stream.seek(0)
            data = stream.read() if known else b""
    except OSError as error:
        raise CheckpointError(
            f"There are no readable weights at {path}: {error.strerror}.",
            "Put the file back from a backup, or train again.",
        ) from error
    if not known:
        raise CheckpointError(
            f"{path} is not the file that its card {CARD_FILE} describes: it is damaged, or was replaced.",
            "Put the file back from a backup, or train again.",
        )
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError):  # their messages may quote the file
        raise CheckpointError(
            f"{path} is not a safetensors file.", "Only safetensors files are loaded; train again."
        ) from None


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, dense, each with memory of its own."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes ({', '.join(theirs[:5])}, …) where the project has {len(ours)}"
    index = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {index} is {theirs[index]!r} there and {ours[index]!r} here"
