"""Slim heads: they learn beside a network that doesn't notice them, and travel with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.errors import CheckpointError
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import load_model, load_weights, save_model
from pipeline.model.heads import heads_loss
from pipeline.model.segmenter import Segmenter
from tests.factories import new_card
from tests.pipeline.model.test_segmenter import CLASSES, tiny
from tests.pipeline.training.test_loop import LINKNET, run

CPU = torch.device("cpu")
MODEL = ModelConfig.model_validate(LINKNET | {"heads": 3})


class PulledPlugError(Exception):
    """The run ends here, whatever it was doing."""


def trained(folder: Path, *, heads: int, stop_at: int = 0) -> Segmenter:
    """A network after a few iterations; with `stop_at`, its run breaks off at that iteration."""

    def progress(title: str, done: int, total: int | None, note: str = "") -> None:
        if done == stop_at:
            raise PulledPlugError

    folder.mkdir(parents=True, exist_ok=True)
    return run(folder, model={"heads": heads}, batch_size=3, progress=progress)[0]


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return trained(tmp_path_factory.mktemp("run"), heads=3)


def test_the_networks_own_weights_are_bit_identical_with_and_without_heads(
    with_heads: Segmenter, tmp_path: Path
) -> None:
    alone = trained(tmp_path, heads=0).weights()
    beside = with_heads.weights()
    assert len(beside) > len(alone)
    assert all(torch.equal(value, beside[name]) for name, value in alone.items())
    assert all(name.startswith("heads.") for name in beside.keys() - alone.keys())


def test_heads_learn_and_differ_from_each_other(with_heads: Segmenter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = build_segmenter(MODEL, num_classes=2, channels=3, root=tmp_path).weights()
    moved = [n for n, v in with_heads.weights().items() if n.startswith("heads.") and v.is_floating_point()]
    assert moved
    assert all(not torch.equal(with_heads.weights()[name], fresh[name]) for name in moved)
    with torch.no_grad():
        one, other, _ = with_heads.eval().head_logits(with_heads.trunk(torch.randn(1, 3, 64, 64)))
    assert not torch.allclose(one, other)


def test_a_broken_off_run_resumes_its_heads_to_the_same_weights(
    with_heads: Segmenter, tmp_path: Path
) -> None:
    with pytest.raises(PulledPlugError):
        trained(tmp_path, heads=3, stop_at=5)
    assert (tmp_path / "resume.safetensors").is_file()
    resumed = trained(tmp_path, heads=3).weights()
    assert all(torch.equal(value, resumed[name]) for name, value in with_heads.weights().items())


def test_heads_are_saved_and_loaded_with_the_network(with_heads: Segmenter, tmp_path: Path) -> None:
    save_model(tmp_path, with_heads, new_card(MODEL, ["a", "b"]))
    loaded, _ = load_model(tmp_path, device=CPU, class_names=["a", "b"])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = with_heads.eval().head_logits(with_heads.trunk(image))
        found = loaded.head_logits(loaded.trunk(image))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)  # its memory lies in another order
    assert all(torch.equal(value, loaded.weights()[name]) for name, value in with_heads.weights().items())


def test_weights_of_a_network_without_heads_do_not_pass_for_one_with_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare = build_segmenter(MODEL.model_copy(update={"heads": 0}), num_classes=2, channels=3, root=tmp_path)
    headed = build_segmenter(MODEL, num_classes=2, channels=3, root=tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.heads"):
        load_weights(headed, bare.weights(), source=tmp_path)
    with pytest.raises(CheckpointError, match="not those of this network"):
        load_weights(bare, headed.weights(), source=tmp_path)


@pytest.mark.parametrize("architecture", ["fpn", "deeplabv3plus", "segformer", "dpt"])
def test_heads_see_the_encoders_maps_from_stride_4_on(architecture: str) -> None:
    segmenter = tiny(architecture, heads=2).eval()
    with torch.no_grad():
        logits = segmenter.head_logits(segmenter.trunk(torch.randn(2, 3, 128, 64)))
    finest = 16 if architecture == "dpt" else 4  # a vision transformer has no finer maps
    assert logits.shape == (2, 2, CLASSES, 128 // finest, 64 // finest)


def test_a_head_that_knows_every_label_has_no_loss_wherever_its_cells_lie() -> None:
    """The labels of the cells are taken from the pixels on their places, corners aligned."""
    target = torch.zeros(2, 60, 61, dtype=torch.int64)
    target[:, 20:, 30:] = 1
    cells = torch.zeros(16, 16, dtype=torch.int64)
    rows = torch.linspace(0, 63, 16).round()
    cells[(rows[:, None] >= 20) & (rows[None] >= 30)] = 1
    logits = 50.0 * torch.nn.functional.one_hot(cells, 2).permute(2, 0, 1).expand(3, 2, -1, -1, -1)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(z, y)

    assert heads_loss(logits, target, padded_size=(64, 64), loss=loss) < 1e-6
    assert heads_loss(-logits, target, padded_size=(64, 64), loss=loss) > 10
