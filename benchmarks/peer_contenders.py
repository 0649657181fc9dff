"""One contender of `bench_peers`, in a process of its own: made ready, it runs once a line of input.

`python -m benchmarks.peer_contenders NAME FOLDER`, where FOLDER holds what `bench_peers` wrote:
`spec.json`, the frames and the weights. The peers' Python has the peers and segmentation-models-pytorch only,
ours segcurate only; so every import of either stands where it is used.

All do the same work: T dropout samples of every frame, their softmax, the mean, and the mutual information of
every pixel. T samples B images C classes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Spec = dict[str, Any]
Contender = Callable[[bool], tuple[int, float, float]]
"""Runs over all frames, or a few to warm up: images, seconds, and a pixel's mean information in nats."""


def main() -> None:
    """Answer `ready`, then each line with what one run took, as JSON on the original standard output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the peers write logs to standard output
    name, folder = sys.argv[1], Path(sys.argv[2])
    spec = json.loads((folder / "spec.json").read_text())
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    run = CONTENDERS[name](spec, folder)
    idle = memory("VmRSS")
    run(True)
    print(json.dumps({"ready": True}), file=answers)
    for _ in sys.stdin:
        images, seconds, information = run(False)
        peak = memory("VmHWM")
        answer = {
            "speed": images / seconds,
            "peak": peak,
            "above": peak - idle,
            "mutual_information": information,
        }
        print(json.dumps(answer), file=answers)


def memory(field: str) -> float:
    """This process's resident memory in MiB: now (`VmRSS`) or at its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def smp_network(spec: Spec, folder: Path) -> nn.Module:
    """The plain SMP network with the same weights, and channel dropout where ours has it."""
    import segmentation_models_pytorch as smp

    network: Any = smp.create_model(
        arch=spec["architecture"],
        encoder_name=spec["encoder"],
        encoder_weights=None,
        in_channels=3,
        classes=spec["classes"],
        **spec["decoder"],
    )
    network.load_state_dict(load_file(folder / "network.safetensors"))
    dropped = 0
    for part in list(network.decoder.modules()):
        for child_name, child in part.named_children():
            if isinstance(child, nn.modules.dropout._DropoutNd):
                setattr(part, child_name, nn.Dropout2d(spec["dropout"]))
                dropped += 1
    if not dropped:
        network.segmentation_head = nn.Sequential(nn.Dropout2d(spec["dropout"]), network.segmentation_head)
    return network.eval()


def frames(folder: Path) -> Tensor:
    """float32 [N, 3, H, W], normalised, padded to what the network takes."""
    return load_file(folder / "frames.safetensors")["padded"]


def over_batches(spec: Spec, images: Tensor, information: Callable[[Tensor], Tensor]) -> Contender:
    """A run that calls `information` (images [B, 3, H, W] to [B, H, W], in nats) batch by batch."""

    def run(warm_up: bool) -> tuple[int, float, float]:
        some = images[:1] if warm_up else images
        started = time.perf_counter()
        means = [float(information(batch).mean()) * len(batch) for batch in some.split(spec["batch"])]
        return len(some), time.perf_counter() - started, sum(means) / len(some)

    return run


def baal(spec: Spec, folder: Path, *, replicate: bool, cached: bool = False) -> Contender:
    """Baal: `predict_on_dataset_generator`, then its BALD heuristic of every pixel."""
    from baal.active.heuristics import BALD  # pyright: ignore[reportMissingImports]
    from baal.bayesian.caching_utils import MCCachingModule  # pyright: ignore[reportMissingImports]
    from baal.bayesian.dropout import MCDropoutModule  # pyright: ignore[reportMissingImports]
    from baal.modelwrapper import ModelWrapper, TrainingArgs  # pyright: ignore[reportMissingImports]

    network = MCDropoutModule(smp_network(spec, folder))
    if cached:
        network = MCCachingModule(network)
    settings = TrainingArgs(
        batch_size=spec["batch"], workers=0, use_cuda=False, replicate_in_memory=replicate
    )
    wrapper = ModelWrapper(network, settings)
    images = frames(folder)
    dataset = [(image, 0) for image in images]
    heuristic = BALD(reduction="none")

    def run(warm_up: bool) -> tuple[int, float, float]:
        data = dataset[:1] if warm_up else dataset
        started = time.perf_counter()
        predictions = wrapper.predict_on_dataset_generator(data, spec["samples"], verbose=False)
        scores = heuristic.get_uncertainties_generator(predictions)
        return len(data), time.perf_counter() - started, float(scores.mean())

    return run


def torch_uncertainty(spec: Spec, folder: Path, *, on_batch: bool) -> Contender:
    """torch-uncertainty: its `mc_dropout` wrapper, and its metric of mutual information of every pixel."""
    from einops import rearrange  # pyright: ignore[reportMissingImports]
    from torch_uncertainty.methods import mc_dropout  # pyright: ignore[reportMissingImports]
    from torch_uncertainty.metrics import MutualInformation  # pyright: ignore[reportMissingImports]

    network = mc_dropout(
        smp_network(spec, folder), num_estimators=spec["samples"], on_batch=on_batch, task="segmentation"
    ).eval()

    @torch.inference_mode()
    def information(images: Tensor) -> Tensor:
        probability = network(images).softmax(dim=1)
        metric = MutualInformation(reduction="none")
        metric.update(rearrange(probability, "(t b) c h w -> (b h w) t c", b=len(images)))
        return metric.compute()

    return over_batches(spec, frames(folder), information)


def hand_written(spec: Spec, folder: Path) -> Contender:
    """What one writes without a library, well: channels last, running sums, nothing kept."""
    network: Any = smp_network(spec, folder).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.train()

    @torch.inference_mode()
    def information(images: Tensor) -> Tensor:
        images = images.to(memory_format=torch.channels_last)
        total, expected = torch.zeros(()), torch.zeros(())
        for _ in range(spec["samples"]):
            log_probability = network(images).log_softmax(dim=1)
            probability = log_probability.exp()
            total = total + probability
            expected = expected - (probability * log_probability).sum(dim=1)
        mean = total / spec["samples"]
        return torch.special.entr(mean).sum(dim=1) - expected / spec["samples"]

    return over_batches(spec, frames(folder), information)


def plain(spec: Spec, folder: Path) -> Contender:
    """No uncertainty at all: one forward with softmax, channels last."""
    network: Any = smp_network(spec, folder).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.inference_mode()
    def nothing(images: Tensor) -> Tensor:
        network(images.to(memory_format=torch.channels_last)).softmax(dim=1)
        return torch.full((), math.nan)

    return over_batches(spec, frames(folder), nothing)


def ours_from_tensors(spec: Spec, folder: Path, *, resolution: str | None = None) -> Contender:
    """segcurate's predictor and all of its measures, on the frames before they are padded."""
    from benchmarks.bench_peers import scoring_settings
    from pipeline.calibration.calibrators import Calibrators
    from pipeline.model.checkpoints import load_model
    from pipeline.uncertainty.predictor import Predictor

    segmenter, _ = load_model(folder / "checkpoint", device=torch.device("cpu"), class_names=None)
    predictor = Predictor(
        segmenter,
        scoring=scoring_settings(spec, resolution),
        calibrators=Calibrators(),
        device=torch.device("cpu"),
    )

    def information(images: Tensor) -> Tensor:
        return predictor.predict(images).measures()["mutual_information"] * math.log(spec["classes"])

    images = load_file(folder / "frames.safetensors")["frames"]
    return over_batches(spec, images.repeat(spec["ours_repeat"], 1, 1, 1), information)


def ours_from_files(spec: Spec, folder: Path) -> Contender:
    """`segcurate score`: from files to database rows, checkpoint loading included. No heat maps."""
    from sqlalchemy import func, select

    from benchmarks.bench_peers import scoring_pool
    from db.tables import ImageScore
    from pipeline.steps.score import score

    def run(warm_up: bool) -> tuple[int, float, float]:
        repeat = 1 if warm_up else spec["ours_repeat"]
        with tempfile.TemporaryDirectory() as scratch:
            project, database = scoring_pool(Path(scratch), folder, spec, repeat=repeat)
            report = score(project, database)
            with database.session(write=False) as session:
                mean = session.scalar(select(func.avg(ImageScore.mutual_information)))
            database.close()
        return report.images, report.seconds, float(mean or math.nan) * math.log(spec["classes"])

    return run


CONTENDERS: dict[str, Callable[[Spec, Path], Contender]] = {
    "plain": plain,
    "hand": hand_written,
    "baal": lambda spec, folder: baal(spec, folder, replicate=True),
    "baal-loop": lambda spec, folder: baal(spec, folder, replicate=False),
    "baal-cached": lambda spec, folder: baal(spec, folder, replicate=False, cached=True),
    "uncertainty": lambda spec, folder: torch_uncertainty(spec, folder, on_batch=True),
    "uncertainty-loop": lambda spec, folder: torch_uncertainty(spec, folder, on_batch=False),
    "ours": ours_from_files,
    "ours-tensors": ours_from_tensors,
    "ours-full": lambda spec, folder: ours_from_tensors(spec, folder, resolution="full"),
}

if __name__ == "__main__":
    main()
