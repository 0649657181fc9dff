"""How fast the hot path is, and how much memory it takes: `make bench-scoring FRAMES=folder`.

Images per second, in turn, medians:
(a) one plain forward with softmax at every pixel, on tensors in memory, two images at once;
(b) T whole passes with dropout, accumulated at every pixel, on tensors in memory, two images at once;
(c) `segcurate score`: from files to database rows, checkpoint loading included, heat maps off.

Peak memory is that of a fresh process for each row of its table.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image as PillowImage
from torch import Tensor

from benchmarks.scoring_stages import score_by_stage
from flows.demo import write_demo
from pipeline.config import HeatmapConfig, ModelConfig, ScoringConfig
from pipeline.data.image_info import ImageRef
from pipeline.data.loading import Batch, load_batches
from pipeline.model.checkpoints import load_model
from pipeline.model.segmenter import Segmenter
from pipeline.steps.score import score
from pipeline.uncertainty.samplers import draw_masks
from tests.factories import make_pool

CLASSES = 11
SIZE = (480, 360)
FEW = 4
"""Images that (b) passes: it is slow, and steady."""
AT_ONCE = 2
"""Images of a batch of (a) and (b): the fastest on a CPU, and what `score` passes at once there."""


def main() -> None:
    """Run the benchmark and print its tables."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    if arguments.peak:
        _report_peak(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        frames = find_frames(arguments.frames, Path(scratch))
        arguments.frames = frames
        print(
            f"{SIZE[1]}×{SIZE[0]}, {CLASSES} classes, T={arguments.samples}, batch {arguments.batch_size}, "
            f"{torch.get_num_threads()} threads, {arguments.rounds} rounds in turn, medians of images/s\n"
        )
        print("| architecture | (a) plain | (b) T whole passes | (c) files to rows | (c)/(a) | (c)/(b) |")
        print("|---|---|---|---|---|---|")
        for architecture in arguments.architectures:
            _print_speeds(architecture, frames, arguments)
        _print_stages(frames, arguments)
        if not arguments.no_memory:
            _print_memory(arguments)


def plain_pass(segmenter: Segmenter, image: Tensor) -> Tensor:
    """What anyone would run: probabilities [B, C, H, W] of one forward."""
    return segmenter(image).softmax(dim=1)


def whole_passes(segmenter: Segmenter, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """T whole forwards, accumulated: entropy and expected entropy [B, H, W]."""
    total = torch.zeros(image.shape[0], segmenter.num_classes, *image.shape[-2:])
    expected = torch.zeros(image.shape[0], *image.shape[-2:])
    for mask in masks:
        trunk = segmenter.trunk(segmenter.pad(image))
        logits = segmenter.upsample(segmenter.tail(trunk, mask.expand(image.shape[0], -1)))
        logits = logits[..., : image.shape[-2], : image.shape[-1]]
        log_probability = logits.log_softmax(dim=1)
        probability = log_probability.exp()
        total += probability
        expected -= (probability * log_probability).sum(dim=1)
    mean = total / len(masks)
    scale = math.log(segmenter.num_classes)
    return -(mean * mean.clamp_min(1e-38).log()).sum(dim=1) / scale, expected / (len(masks) * scale)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=Path, help="a folder of images; the demo's slices without it")
    parser.add_argument("--weights", type=Path, help="safetensors of the encoder; random without it")
    parser.add_argument("--architectures", nargs="+", default=["fpn", "unet", "deeplabv3plus"])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-memory", action="store_true", help="speed only")
    parser.add_argument("--peak", action="store_true", help="score once and print the peak memory as JSON")
    return parser


def _print_speeds(architecture: str, frames: list[Path], arguments: argparse.Namespace) -> None:
    speeds: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(arguments.rounds):
            root = Path(scratch) / str(turn)
            project, database = _pool(root, frames, architecture, arguments)
            segmenter, image = _in_memory(root / ".segcurate/models/r01", frames[: arguments.batch_size])
            masks = draw_masks(arguments.samples, segmenter.sites, p=segmenter.dropout, seed=0)
            with torch.inference_mode():
                if turn == 0:
                    plain_pass(segmenter, image)
                speeds["a"].append(
                    _speed(
                        lambda s=segmenter, i=image: [plain_pass(s, x) for x in i.split(AT_ONCE)],
                        len(image),
                        repeats=3,
                    )
                )
                few = image[:FEW]
                speeds["b"].append(
                    _speed(
                        lambda s=segmenter, i=few, m=masks: [whole_passes(s, x, m) for x in i.split(AT_ONCE)],
                        len(few),
                    )
                )
            report = score(project, database)
            database.close()
            speeds["c"].append(report.images / report.seconds)
    a, b, c = (statistics.median(speeds[name]) for name in "abc")
    print(f"| {architecture} | {a:.2f} | {b:.3f} | {c:.2f} | {c / a:.2f} | {c / b:.1f} |", flush=True)


def _print_stages(frames: list[Path], arguments: argparse.Namespace) -> None:
    architecture = arguments.architectures[0]
    with tempfile.TemporaryDirectory() as scratch:
        project, database = _pool(Path(scratch), frames, architecture, arguments)
        spent, seconds, images = score_by_stage(project, database)
        database.close()
    print(f"\nWhere the time goes, {architecture}: {1000 * seconds / images:.1f} ms an image in all\n")
    print("| stage | ms an image | share of the run |")
    print("|---|---|---|")
    for stage, part in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {stage} | {1000 * part / images:.2f} | {part / seconds:.0%} |")


def _print_memory(arguments: argparse.Namespace) -> None:
    print("\n| architecture | T | images | peak MiB | above an idle process |")
    print("|---|---|---|---|---|")
    for architecture in arguments.architectures[:1]:
        for samples, images in ((5, 24), (100, 24), (5, 100), (5, 400)):
            command = [sys.executable, "-m", "benchmarks.bench_scoring", "--peak"]
            command += ["--architectures", architecture, "--samples", str(samples), "--images", str(images)]
            command += [
                "--frames",
                str(arguments.frames[0].parent),
                "--batch-size",
                str(arguments.batch_size),
            ]
            command += ["--threads", str(torch.get_num_threads())]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row = f"{architecture} | {samples} | {images} | {found['peak']:.0f} | {found['above']:.0f}"
            print(f"| {row} |", flush=True)


def _report_peak(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        frames = find_frames(arguments.frames, Path(scratch))
        repeated = [_link(Path(scratch) / "links", frames, n) for n in range(arguments.images)]
        project, database = _pool(Path(scratch) / "pool", repeated, arguments.architectures[0], arguments)
        idle = peak()
        score(project, database)
        print(json.dumps({"peak": peak(), "above": peak() - idle}))


def _pool(root: Path, frames: list[Path], architecture: str, arguments: argparse.Namespace):
    scoring = ScoringConfig(
        samples=arguments.samples,
        batch_size=arguments.batch_size,
        heatmaps=HeatmapConfig(images="none"),
    )
    model = ModelConfig.model_validate(
        {"architecture": architecture, "encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "none"}
    )
    return make_pool(
        root,
        frames[: arguments.images],
        scoring=scoring,
        model=model,
        classes=CLASSES,
        encoder_weights=arguments.weights,
    )


def _in_memory(checkpoint: Path, frames: list[Path]) -> tuple[Segmenter, Tensor]:
    """The pool's network as `score` uses it, and a batch as it sees one."""
    segmenter, card = load_model(checkpoint, device=torch.device("cpu"), class_names=None)
    segmenter.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    refs = [ImageRef(id=n, path=path, width=SIZE[0], height=SIZE[1]) for n, path in enumerate(frames)]
    batches = load_batches(
        refs,
        channels=3,
        max_pixels=10**8,
        input_scale=1.0,
        mean=card.mean,
        std=card.std,
        batch_size=len(refs),
        workers=0,
    )
    (batch,) = (item for item in batches if isinstance(item, Batch))
    return segmenter, batch.image_BKHW


def find_frames(folder: Path | None, scratch: Path) -> list[Path]:
    """Files of the benchmark's size; others are resized into `scratch`."""
    if folder is None:
        folder = write_demo(scratch / "demo").parent
    found = sorted(path for ending in ("png", "jpg") for path in folder.rglob(f"*.{ending}"))
    if not found:
        raise SystemExit(f"There are no PNG or JPEG files in {folder}.")
    frames: list[Path] = []
    for number, path in enumerate(found):
        with PillowImage.open(path) as image:
            if image.size == SIZE and image.mode == "RGB":
                frames.append(path)
                continue
            frames.append(scratch / "frames" / f"{number:05d}.png")
            frames[-1].parent.mkdir(exist_ok=True)
            image.convert("RGB").resize(SIZE).save(frames[-1])
    return frames


def _link(folder: Path, frames: list[Path], number: int) -> Path:
    folder.mkdir(exist_ok=True)
    link = folder / f"{number:05d}.png"
    link.symlink_to(frames[number % len(frames)])
    return link


def _speed(call, images: int, *, repeats: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return images * repeats / (time.perf_counter() - started)


def peak() -> float:
    """Peak resident memory of this process in MiB. On Linux `ru_maxrss` would be that of the parent too."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
