"""The training loop: a fixed number of iterations, each of which depends on the seed and its number only.

So a run that was killed goes on from its last checkpoint to the same weights, and a run on the CPU repeats
bit for bit (with the same number of threads).

Legend: B batch, N annotators, K channels, C classes, H W crop size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from pathlib import Path

import cv2
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from pipeline.config import IGNORE, TrainingConfig
from pipeline.errors import ConfigError, UserError
from pipeline.model.checkpoints import load_resume, load_weights, save_resume
from pipeline.model.device import half_precision
from pipeline.model.heads import heads_loss
from pipeline.model.segmenter import Segmenter
from pipeline.progress import Progress, silent
from pipeline.training.dataset import Crops, TrainingSet
from pipeline.training.known_pixels import known_pixels
from pipeline.training.losses import segmentation_loss, shares
from pipeline.training.mixing import mix

POINTS = 100
"""Of the curve of a run: each is the mean of as many iterations."""
WARM_UP = 0.3
"""Share of the iterations in which `one_cycle` rises, from 1/25 of the rate; it ends at 1/250 000 of it
(Smith & Topin 2018, with the usual numbers)."""


@dataclass(frozen=True)
class Trained:
    """What a run saw.

    Attributes:
        loss: mean loss of the last tenth of the iterations.
        curve: at most `POINTS` points: the `iteration` that each ends with, the mean `loss` up to there from
            the point before, and the `learning_rate` there.
        resumed_at: the iteration that it went on from; 0 for a run from the start.
        unreadable: images that could not be read, with the reason.
    """

    loss: float
    curve: dict[str, list[float]]
    resumed_at: int
    unreadable: dict[str, str]


@dataclass
class Run:
    """All that changes while a network is trained, and that a checkpoint must keep.

    `losses` has a place for each iteration, on the device.
    """

    segmenter: Segmenter
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: Tensor
    iteration: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path, identity: str) -> None:
        """Write the resumable checkpoint."""
        tensors = {f"network.{name}": value for name, value in self.segmenter.weights().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
        tensors["losses"] = self.losses
        document = {
            "identity": identity,
            "iteration": self.iteration,
            "unreadable": self.unreadable,
            "scaler": self.scaler.state_dict(),
        }
        save_resume(folder, tensors, document)

    def resume(self, folder: Path, identity: str) -> None:
        """Go on from the checkpoint in `folder`, where there is one of the same run."""
        found = load_resume(folder)
        if found is None or found[1].get("identity") != identity:
            return
        tensors, document = found
        network = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        load_weights(self.segmenter, network, source=folder)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scaler.load_state_dict(document["scaler"])
        self.iteration = document["iteration"]
        self.losses.copy_(tensors["losses"])
        self.unreadable = document["unreadable"]


def train_segmenter(
    segmenter: Segmenter,
    training_set: TrainingSet,
    config: TrainingConfig,
    *,
    class_weights: Sequence[float] | None,
    device: torch.device,
    folder: Path,
    identity: str,
    title: str = "train",
    progress: Progress = silent,
) -> Trained:
    """Train in place, and leave the network on `device`.

    Args:
        class_weights: a factor a class for the cross-entropy.
        folder: where the resumable checkpoint is kept.
        identity: hash of all that the result depends on; a checkpoint with another one is not resumed.
        title: for the progress.

    Raises:
        ConfigError: the batch is too small for the network's normalisation.
        UserError: the loss or a weight is no finite number, the device's memory is too small, or the folder
            cannot be written. What was written before stays as it was.
    """
    precision = mixed_precision(config, device)
    weight = None if class_weights is None else torch.tensor(class_weights, device=device)
    segmenter.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(segmenter, config)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    run = Run(segmenter, optimizer, scaler, losses=torch.zeros(config.iterations, device=device))
    run.resume(folder, identity)
    started = run.iteration
    look_every = max(1, config.iterations // POINTS)
    note = ""

    segmenter.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _user_errors(config):
        for batch in load_batches(training_set, config, start=started, device=device):
            torch.manual_seed((config.seed % 2**32) * 2**31 + run.iteration)
            rate = schedule_factor(config.schedule, run.iteration, config.iterations)
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * rate
            image, target = batch.image, batch.label
            if config.annotators == "soft":
                target = shares(target, segmenter.num_classes, prior=config.vote_prior)
            image, target = mix(
                image, target, config, num_classes=segmenter.num_classes, iteration=run.iteration
            )
            encoded = training_set.encoded(batch)
            known = known_pixels(target) if device.type == "cpu" and segmenter.interpolated else None
            places, known_target = (None, target) if known is None else known
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                if encoded is None:
                    encoded = segmenter.encode(segmenter.pad(image))
                logits, head_logits = segmenter.forward_encoded(encoded, config.crop, places=places)
            loss = segmentation_loss(logits.float(), known_target, config.loss, weight)
            total = loss
            if head_logits is not None:  # adds nothing to the gradient of the network's own weights
                total = loss + heads_loss(
                    head_logits,
                    target,
                    padded_size=segmenter.padded_size(*config.crop),
                    loss=lambda z, y: segmentation_loss(z, y, config.loss, weight),
                )
            optimizer.zero_grad(set_to_none=True)
            run.scaler.scale(total).backward()
            if config.clip_gradient is not None:
                run.scaler.unscale_(optimizer)
                clip_gradient(segmenter, config.clip_gradient)
            run.scaler.step(optimizer)
            run.scaler.update()

            run.losses[run.iteration] = loss.detach()
            run.iteration += 1
            run.unreadable.update(batch.unreadable)
            if run.iteration % look_every == 0 or run.iteration == config.iterations:
                _check_finite(run, config)
                recent = run.losses[max(0, run.iteration - look_every) : run.iteration].mean().item()
                note = f"loss {recent:.3g}, learning rate {config.learning_rate * rate:.1e}"
            if run.iteration % config.checkpoint_every == 0 and run.iteration < config.iterations:
                _check_finite(run, config)
                run.save(folder, identity)
            progress(title, run.iteration, config.iterations, note)
    _check_finite(run, config)
    return Trained(
        loss=run.losses[-max(1, config.iterations // 10) :].mean().item(),
        curve=_curve(run.losses.cpu(), config),
        resumed_at=started,
        unreadable=run.unreadable,
    )


def clip_gradient(segmenter: Segmenter, norm: float) -> None:
    """Scale the gradient down to `norm`, its Euclidean length, where it is longer (Pascanu et al. 2013).

    The slim heads have a norm of their own: they must not change the steps of the network.
    """
    torch.nn.utils.clip_grad_norm_(segmenter.network.parameters(), norm)
    if segmenter.heads is not None:
        torch.nn.utils.clip_grad_norm_(segmenter.heads.parameters(), norm)


def schedule_factor(schedule: str, iteration: int, iterations: int) -> float:
    """Factor on the learning rate of one iteration.

    >>> [round(schedule_factor("one_cycle", i, 101), 3) for i in (0, 30, 100)]
    [0.04, 1.0, 0.0]
    >>> [schedule_factor(name, 0, 10) for name in ("cosine", "constant")]
    [1.0, 1.0]
    """
    if schedule == "constant":
        return 1.0
    place = iteration / max(1, iterations - 1)
    if schedule == "cosine":
        return _cosine(1, 0, iteration / iterations)
    if place < WARM_UP:
        return _cosine(1 / 25, 1, place / WARM_UP)
    return _cosine(1, 1 / 250_000, (place - WARM_UP) / (1 - WARM_UP))


def make_optimizer(segmenter: Segmenter, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over what may learn: a smaller rate for the encoder, no decay for
    biases and normalisation."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in segmenter.network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoder."), parameter.ndim > 1), []).append(parameter)
    for parameter in segmenter.heads.parameters() if segmenter.heads is not None else ():
        groups.setdefault((False, parameter.ndim > 1), []).append(parameter)
    settings = []
    for (encoder, decays), parameters in groups.items():
        rate = config.learning_rate * (config.encoder_learning_rate_factor if encoder else 1)
        decay = config.weight_decay if decays else 0.0
        settings.append({"params": parameters, "lr": rate, "full_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(settings)


def mixed_precision(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """The type of autocast: bfloat16 where the CUDA device has it, else float16; None for float32."""
    if device.type != "cuda" or not config.mixed_precision:
        return None
    return half_precision()


def load_batches(
    training_set: TrainingSet, config: TrainingConfig, *, start: int, device: torch.device
) -> Iterator[Crops]:
    """The batches of the iterations from `start` on: the same ones, whatever the number of workers."""
    loader = DataLoader(
        training_set,
        batch_size=config.batch_size,
        sampler=range(start * config.batch_size, config.iterations * config.batch_size),
        num_workers=config.workers,
        collate_fn=_collate,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # the loader draws from it; the global one is the iterations' own
    )
    batch: Crops
    for batch in loader:
        image = batch.image.to(device, memory_format=torch.channels_last)
        yield Crops(image, batch.label.to(device), batch.unreadable, batch.windows)


def _collate(samples: list[Crops]) -> Crops:
    """A batch; the labels of an annotator that a crop lacks are 255."""
    return Crops(
        image=torch.stack([sample.image for sample in samples]),
        label=pad_sequence([sample.label for sample in samples], batch_first=True, padding_value=IGNORE),
        unreadable=tuple(problem for sample in samples for problem in sample.unreadable),
        windows=tuple(window for sample in samples for window in sample.windows),
    )


def _begin_worker(_worker: int) -> None:
    """Set up a loader's process. It is a fork, and ends without the exit hooks of libraries that this process
    uses, such as Prefect's: one that fails there would end the training."""
    cv2.setNumThreads(0)
    Finalize(None, os._exit, args=(0,), exitpriority=-100)  # after the queue has sent its last batch


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _check_finite(run: Run, config: TrainingConfig) -> None:
    """Look for the first loss that is no finite number, and at the weights, before they are kept.

    Raises:
        UserError: there is one.
    """
    wrong = (~torch.isfinite(run.losses[: run.iteration])).nonzero()
    if len(wrong):
        iteration = int(wrong[0]) + 1
        value = "infinite" if torch.isinf(run.losses[iteration - 1]) else "not a number (NaN)"
        problem = f"The training loss of iteration {iteration} of {config.iterations} is {value}"
    elif not all(torch.isfinite(tensor).all() for tensor in run.segmenter.weights().values()):
        iteration = run.iteration
        problem = f"Weights of the network are no finite numbers after iteration {iteration}"
    else:
        return
    rate = config.learning_rate * schedule_factor(config.schedule, iteration - 1, config.iterations)
    remedies = [
        f"Lower `training.learning_rate` (now {config.learning_rate:g})",
        "set `training.clip_gradient: 1`" if config.clip_gradient is None else "",
        "set `training.mixed_precision: false`"
        if config.mixed_precision and run.losses.device.type == "cuda"
        else "",
        "look for images with extreme values, and at `model.mean`, `model.std` and "
        "`training.loss.class_weights`",
    ]
    raise UserError(
        f"{problem}, at the learning rate {rate:.2g}.",
        f"{', or '.join(filter(None, remedies))}. Then run `segcurate train` again: nothing was stored.",
    )


def _curve(losses: Tensor, config: TrainingConfig) -> dict[str, list[float]]:
    ends = sorted({-(-config.iterations * (point + 1) // POINTS) for point in range(POINTS)})
    starts = [0, *ends[:-1]]
    return {
        "iteration": [float(end) for end in ends],
        "loss": [losses[start:end].mean().item() for start, end in zip(starts, ends, strict=True)],
        "learning_rate": [
            config.learning_rate * schedule_factor(config.schedule, end - 1, config.iterations)
            for end in ends
        ],
    }


@contextmanager
def _user_errors(config: TrainingConfig) -> Generator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The device's memory is too small for batches of {config.batch_size} crops of "
            f"{config.crop[0]}×{config.crop[1]}.",
            "Lower `training.batch_size` or `training.crop`.",
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"Batches of {config.batch_size} crops of {config.crop[0]}×{config.crop[1]} are too small for "
            "this network's normalisation.",
            "Raise `training.batch_size` or `training.crop`.",
        ) from error
