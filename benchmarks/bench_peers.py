"""Speed and memory beside the peers: `make bench-peers FRAMES=folder`.

The same weights, the same frames, T dropout samples, the mutual information of every pixel:

plain            one forward with softmax: no uncertainty at all
hand             T whole passes, hand-written: channels last, running sums
baal             Baal: MCDropoutModule, predict_on_dataset_generator, BALD; replicate_in_memory=True
baal-loop        the same with replicate_in_memory=False
baal-cached      the same with its MCCachingModule
uncertainty      torch-uncertainty: mc_dropout with on_batch=True, MutualInformation
uncertainty-loop the same with on_batch=False
ours             segcurate score: from files to database rows
ours-tensors     segcurate's predictor with all of its measures, from tensors
ours-full        the same at every pixel instead of every fourth

Every contender is a process of its own, with its own peak of memory; they run in turn, round by round, and
the median of images per second counts. The peers live in a virtual environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from benchmarks.bench_scoring import find_frames
from benchmarks.peer_contenders import CONTENDERS
from db.engine import Database
from pipeline.config import HeatmapConfig, ModelConfig, ScoringConfig
from pipeline.data.image_info import ImageRef
from pipeline.data.loading import Batch, load_batches
from pipeline.data.project import Project
from pipeline.model.checkpoints import load_model, save_model
from tests.factories import make_pool

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, CLASSES = 480, 360, 11
PEERS = ("hand", "baal", "baal-loop", "baal-cached", "uncertainty", "uncertainty-loop")


class Running(NamedTuple):
    """A contender's process, and what each of its runs answered."""

    name: str
    process: subprocess.Popen[str]
    answers: list[dict[str, float]]


def main() -> None:
    """Run the benchmark and print a table for each architecture."""
    given = _parser().parse_args()
    threads = given.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        frames = find_frames(given.frames, Path(scratch))
        if given.checkpoint:
            _, card = load_model(given.checkpoint, device=torch.device("cpu"), class_names=None)
            given.architectures = [card.model.architecture]
        print(
            f"{HEIGHT}×{WIDTH}, T={given.samples}, {given.images} frames ({given.ours_images} for ours), "
            f"batch {given.batch}, {threads} threads, {given.rounds} rounds in turn, medians\n"
        )
        for architecture in given.architectures:
            folder = Path(scratch) / architecture
            prepare(folder, frames, architecture, threads=threads, given=given)
            print_table(architecture, compete(folder, given))


def prepare(
    folder: Path, frames: list[Path], architecture: str, *, threads: int, given: argparse.Namespace
) -> None:
    """Write what the contenders share: the weights, the frames and the settings."""
    folder.mkdir()
    repeat = max(1, given.ours_images // given.images)
    spec: dict[str, Any] = {
        "architecture": architecture,
        "samples": given.samples,
        "batch": given.batch,
        "threads": threads,
        "ours_repeat": repeat,
        "frames": [str(frames[number % len(frames)].resolve()) for number in range(given.images)],
    }
    model = ModelConfig.model_validate(
        {"architecture": architecture, "encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "none"}
    )
    if given.checkpoint:
        shutil.copytree(given.checkpoint, folder / "checkpoint")
    else:
        project, database = make_pool(
            folder / "pool",
            [],
            scoring=ScoringConfig(),
            model=model,
            classes=CLASSES,
            encoder_weights=given.weights,
        )
        database.close()
        (project.workdir / "models/r01").rename(folder / "checkpoint")
    segmenter, card = load_model(folder / "checkpoint", device=torch.device("cpu"), class_names=None)
    spec |= {
        "encoder": card.model.encoder,
        "decoder": card.model.decoder,
        "dropout": card.model.dropout,
        "classes": len(card.class_names),
    }
    refs = [ImageRef(id=n, path=Path(p), width=WIDTH, height=HEIGHT) for n, p in enumerate(spec["frames"])]
    (batch,) = load_batches(
        refs,
        channels=3,
        max_pixels=10**8,
        input_scale=1.0,
        mean=card.mean,
        std=card.std,
        batch_size=len(refs),
        workers=0,
    )
    if not isinstance(batch, Batch):
        raise SystemExit(f"{batch.path}: {batch.reason}")
    image = batch.image_BKHW.contiguous()
    save_file({"frames": image, "padded": segmenter.pad(image).contiguous()}, folder / "frames.safetensors")
    weights = {name: value.contiguous() for name, value in segmenter.network.state_dict().items()}
    save_file(weights, folder / "network.safetensors")
    (folder / "spec.json").write_text(json.dumps(spec))


def compete(folder: Path, given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each contender answered, round by round; those that cannot start are left out with the reason."""
    running: list[Running] = []
    for name in given.only:
        python = given.peers if name in PEERS and name != "hand" else Path(sys.executable)
        process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peer_contenders", name, str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if given.verbose else subprocess.DEVNULL,
            text=True,
        )
        if ask(process) is None:
            print(f"{name} could not start: run with `--verbose`.", flush=True)
            continue
        running.append(Running(name, process, []))
    for _ in range(given.rounds):
        for name, process, answers in running:
            answer = ask(process, "go\n")
            if answer is None:
                print(f"{name} broke off: run with `--verbose`.", flush=True)
            else:
                answers.append(answer)
    for _, process, _ in running:
        process.communicate()
    return {name: answers for name, _, answers in running if answers}


def ask(process: subprocess.Popen[str], line: str = "") -> dict[str, float] | None:
    """The next answer of a contender, None where it has ended."""
    if process.stdin is None or process.stdout is None or process.poll() is not None:
        return None
    process.stdin.write(line)
    process.stdin.flush()
    answer = process.stdout.readline()
    return json.loads(answer) if answer else None


def print_table(architecture: str, found: dict[str, list[dict[str, float]]]) -> None:
    """One row a contender; factors are speeds of ours over its speed."""
    speeds = {name: statistics.median(answer["speed"] for answer in found[name]) for name in found}
    print(f"{architecture}\n")
    print(
        "| contender | images/s | ms an image | ours is faster by | peak MiB | above idle | mean MI (nats) |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, answers in found.items():
        factor = f"{speeds['ours'] / speeds[name]:.1f}" if "ours" in speeds else ""
        peak, above = (max(answer[key] for answer in answers) for key in ("peak", "above"))
        speed = f"{speeds[name]:.3f} | {1000 / speeds[name]:.0f} | {factor}"
        print(f"| {name} | {speed} | {peak:.0f} | {above:.0f} | {answers[-1]['mutual_information']:.3g} |")
    print(flush=True)


def scoring_settings(spec: dict[str, Any], resolution: str | None = None) -> ScoringConfig:
    """How ours scores: MC dropout as everybody, the rest as shipped."""
    settings: dict[str, Any] = {
        "sampler": "mc_dropout",
        "samples": spec["samples"],
        "heatmaps": HeatmapConfig(images="none"),
    }
    return ScoringConfig.model_validate(settings | ({"resolution": resolution} if resolution else {}))


def scoring_pool(root: Path, folder: Path, spec: dict[str, Any], *, repeat: int) -> tuple[Project, Database]:
    """A project whose pool is the frames, each `repeat` times, and whose model is the shared one."""
    links: list[Path] = []
    (root / "images").mkdir(parents=True)
    for number, path in enumerate(spec["frames"] * repeat):
        links.append(root / "images" / f"{number:05d}{Path(path).suffix}")
        links[-1].symlink_to(path)
    segmenter, card = load_model(folder / "checkpoint", device=torch.device("cpu"), class_names=None)
    project, database = make_pool(
        root,
        links,
        scoring=scoring_settings(spec),
        model=card.model,
        classes=spec["classes"],
        temperatures=(1.0, 1.0),
    )
    named = card.model_copy(update={"class_names": project.config.data.class_names})
    save_model(project.workdir / "models/r01", segmenter, named)
    return project, database


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=Path, help="a folder of images; the demo's slices without it")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="the peers' Python"
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained model's folder; random weights without it")
    parser.add_argument("--weights", type=Path, help="safetensors of the encoder, beside random weights")
    parser.add_argument("--architectures", nargs="+", default=["fpn", "deeplabv3plus", "unet"])
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4, help="frames of each run of a peer, which is slow")
    parser.add_argument("--ours-images", type=int, default=48, help="frames of each run of ours")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2, help="images that each contender passes at once")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--verbose", action="store_true", help="show what the contenders say")
    return parser


if __name__ == "__main__":
    main()
