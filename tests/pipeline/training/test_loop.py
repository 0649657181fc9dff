"""The training loop: it learns, it repeats, it resumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ModelConfig, TrainingConfig
from pipeline.data.masks import write_mask
from pipeline.errors import ConfigError, UserError
from pipeline.model.build import build_segmenter
from pipeline.model.segmenter import Segmenter
from pipeline.training.dataset import LabeledImage, TrainingSet
from pipeline.training.loop import Trained, clip_gradient, load_batches, schedule_factor, train_segmenter
from tests.factories import TINY

CPU = torch.device("cpu")
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.training.test_loop import run

def kill(title, done, total, note):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), progress=kill)
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def draw_images(folder: Path) -> list[LabeledImage]:
    """Dark squares (class 1) on a bright ground (class 0)."""
    rng = np.random.default_rng(0)
    images = []
    for index in range(4):
        mask = np.zeros((40, 40), dtype=np.uint8)
        top, left = rng.integers(0, 20, 2)
        mask[top : top + 16, left : left + 16] = 1
        pixels = np.where(mask[..., None] == 1, 40, 210) + rng.integers(-20, 20, (40, 40, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
        write_mask(folder / f"{index}_mask.png", mask)
        write_mask(folder / f"{index}_other.png", np.roll(mask, 4, axis=1))
        masks = folder / f"{index}_mask.png", folder / f"{index}_other.png"
        images.append(LabeledImage(folder / f"{index}.png", 40, 40, masks[::-1], ("Bo", "Ann")))
    return images


LINKNET = TINY | {"architecture": "linknet", "decoder": {}}
OPTIONS: dict[str, dict[str, Any]] = {
    "smoothing": {"loss": {"label_smoothing": 0.1}},
    "focal": {"loss": {"focal_gamma": 2.0}},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix", "mix_alpha": 1.0},
    "soft": {"annotators": "soft", "vote_prior": 0.5},
    "all": {"loss": {"label_smoothing": 0.1, "focal_gamma": 1.0}, "mix": "mixup", "annotators": "soft"},
}


def training_set(images: list[LabeledImage], config: TrainingConfig) -> TrainingSet:
    return TrainingSet(
        images,
        config=config,
        channels=3,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        input_scale=1.0,
        max_pixels=10**6,
    )


def run(
    folder: Path,
    *,
    images: list[LabeledImage] | None = None,
    model: dict[str, Any] | None = None,
    progress: Any = lambda *_: None,
    identity: str = "same",
    **settings: Any,
) -> tuple[Segmenter, Trained]:
    """Train a tiny network; by default for eight iterations on dark squares."""
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    config = TrainingConfig.model_validate(
        {"iterations": 8, "batch_size": 2, "crop": (32, 32), "checkpoint_every": 3, "learning_rate": 0.01}
        | settings
    )
    torch.manual_seed(0)
    network = ModelConfig.model_validate(LINKNET | (model or {}))
    segmenter = build_segmenter(network, num_classes=2, channels=3, root=folder)
    samples = training_set(draw_images(folder) if images is None else images, config)
    trained = train_segmenter(
        segmenter,
        samples,
        config,
        class_weights=None,
        device=CPU,
        folder=folder,
        identity=identity,
        progress=progress,
    )
    return segmenter, trained


def same_weights(one: Segmenter, other: Segmenter) -> bool:
    mine, theirs = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_training_repeats_bit_for_bit_whatever_else_draws_random_numbers(tmp_path: Path) -> None:
    first, one = run(tmp_path / "a")

    def disturb(*_: Any) -> None:
        torch.rand(3)
        np.random.default_rng().random()

    second, two = run(tmp_path / "b", progress=disturb, workers=1)
    other, _ = run(tmp_path / "c", seed=1)
    assert same_weights(first, second)
    assert one.loss == two.loss
    assert not same_weights(first, other)


def test_a_run_killed_by_the_system_ends_at_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert (tmp_path / "killed" / "resume.safetensors").exists()

    seen: list[int] = []
    resumed, trained = run(tmp_path / "killed", progress=lambda _title, done, *_: seen.append(done))
    uninterrupted, whole = run(tmp_path / "whole")
    assert trained.resumed_at == 3
    assert seen == [4, 5, 6, 7, 8]
    assert same_weights(resumed, uninterrupted)
    assert trained.loss == whole.loss


@pytest.mark.parametrize("option", OPTIONS)
def test_with_any_option_a_run_that_was_cut_off_ends_at_the_same_weights(option: str, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(_title: str, done: int, _total: int | None, _note: str = "") -> None:
        if done == 5:
            raise Killed

    settings: dict[str, Any] = OPTIONS[option] | {"checkpoint_every": 3}
    with pytest.raises(Killed):
        run(tmp_path / "killed", progress=kill, **settings)
    resumed, trained = run(tmp_path / "killed", **settings)
    whole, uninterrupted = run(tmp_path / "whole", **settings)
    plain, _ = run(tmp_path / "plain")
    assert trained.resumed_at == 3
    assert trained.loss == uninterrupted.loss
    assert same_weights(resumed, whole)
    assert not same_weights(whole, plain)


def test_a_loader_worker_does_not_run_the_exit_hooks_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("an exit hook, such as Prefect's, that cannot run in a fork")

    monkeypatch.setattr("threading._threading_atexits", [fails])
    config = TrainingConfig(iterations=3, batch_size=2, crop=(32, 32), workers=1, transforms=[])
    samples = training_set(draw_images(tmp_path), config)
    assert len(list(load_batches(samples, config, start=0, device=CPU))) == 3


def test_options_that_are_off_are_never_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("an option that is off was entered")

    for name in ("mixing.mixup", "mixing.cutmix", "losses.soft_cross_entropy", "losses.shares"):
        monkeypatch.setattr(f"pipeline.training.{name}", fail)
    monkeypatch.setattr("pipeline.training.loop.shares", fail)
    monkeypatch.setattr("pipeline.training.dataset.compose_votes", fail)
    run(tmp_path)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path)[1].resumed_at == 6
    assert run(tmp_path, identity="other")[1].resumed_at == 0


def test_the_network_learns_what_the_masks_say(tmp_path: Path) -> None:
    segmenter, trained = run(
        tmp_path, iterations=40, batch_size=4, schedule="cosine", encoder_learning_rate_factor=1.0
    )
    segmenter.eval()
    correct = []
    for index in range(4):
        image = np.asarray(Image.open(tmp_path / f"{index}.png"), dtype=np.float32) / 255
        with torch.no_grad():
            logits = segmenter(torch.from_numpy((image - 0.5) / 0.25).permute(2, 0, 1)[None])
        truth = np.asarray(Image.open(tmp_path / f"{index}_mask.png"))
        correct.append((logits.argmax(1)[0].numpy() == truth).mean())
    assert np.mean(correct) > 0.9
    assert trained.loss < 0.3


def test_a_batch_too_small_for_normalisation_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Raise `training\.batch_size`"):
        run(tmp_path, batch_size=1)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    said = (
        r"loss of iteration \d+ of 12 is (infinite|not a number \(NaN\)), at the learning rate 1e\+30\. "
        r"Lower `training\.learning_rate` \(now 1e\+30\), or set `training\.clip_gradient: 1`"
    )
    wild: dict[str, Any] = {"learning_rate": 1e30, "schedule": "constant", "iterations": 12}
    with pytest.raises(UserError, match=said):
        run(tmp_path, clip_gradient=None, **wild)
    assert not list(tmp_path.glob("*.safetensors"))
    assert run(tmp_path)[1].resumed_at == 0


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step before a checkpoint may spoil the weights after the loss was computed."""

    def spoil(segmenter: Segmenter, norm: float) -> None:
        for parameter in segmenter.network.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(torch.nan)

    monkeypatch.setattr("pipeline.training.loop.clip_gradient", spoil)
    with pytest.raises(UserError, match="Weights of the network are no finite numbers after iteration 1"):
        run(tmp_path, checkpoint_every=1)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_long_gradient_is_clipped_and_a_usual_one_is_left(tmp_path: Path) -> None:
    segmenter, _ = run(tmp_path, iterations=1)
    parameters = [part for part in segmenter.network.parameters() if part.requires_grad]
    for factor, length in ((1e6, 2.0), (1e-6, 1e-6)):
        for part in parameters:
            part.grad = torch.zeros_like(part)
        parameters[0].grad = torch.full_like(parameters[0], factor / parameters[0].numel() ** 0.5)
        clip_gradient(segmenter, 2.0)
        norms = [part.grad.norm() for part in parameters if part.grad is not None]
        assert float(torch.stack(norms).norm()) == pytest.approx(length, rel=1e-3)
    free = run(tmp_path / "a", clip_gradient=None)[0]
    assert same_weights(free, run(tmp_path / "b", clip_gradient=1e9)[0])
    assert not same_weights(free, run(tmp_path / "c", clip_gradient=0.01)[0])


def test_the_curve_of_a_run_tells_its_losses_also_where_it_was_killed(tmp_path: Path) -> None:
    lines: list[str] = []
    whole = run(tmp_path / "a", progress=lambda title, done, total, note: lines.append(note))[1]
    assert whole.curve["iteration"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert whole.loss == pytest.approx(whole.curve["loss"][-1])
    loss, rate = (whole.curve[name][-1] for name in ("loss", "learning_rate"))
    assert lines[-1] == f"loss {loss:.3g}, learning rate {rate:.1e}"

    class StopError(Exception):
        pass

    def stop(title: str, done: int, total: int | None, note: str = "") -> None:
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        run(tmp_path / "b", progress=stop)
    again = run(tmp_path / "b")[1]
    assert again.resumed_at == 3
    assert again.curve == whole.curve
    long = run(tmp_path / "c", iterations=130)[1].curve
    assert len(long["loss"]) == 100
    assert long["iteration"][-1] == 130


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_schedules_stay_between_zero_and_one_and_end_low(schedule: str) -> None:
    factors = [schedule_factor(schedule, i, 50) for i in range(50)]
    assert max(factors) == pytest.approx(1, abs=0.02)
    assert min(factors) >= 0
    assert schedule == "constant" or factors[-1] < 0.01
    assert schedule_factor(schedule, 0, 1) >= 0
