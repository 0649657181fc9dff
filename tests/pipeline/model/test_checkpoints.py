"""Checkpoints: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.errors import CheckpointError
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import (
    forget_resume,
    load_model,
    load_resume,
    save_model,
    save_resume,
)
from pipeline.model.segmenter import Segmenter
from tests.factories import new_card

CPU = torch.device("cpu")
CLASSES = ["road", "sky"]


def saved(folder: Path) -> tuple[Segmenter, str]:
    config = ModelConfig(architecture="linknet", encoder="tu-mobilenetv3_small_050", encoder_weights="none")
    torch.manual_seed(1)
    segmenter = build_segmenter(config, num_classes=2, channels=3, root=folder)
    with torch.no_grad():
        segmenter(torch.randn(2, 3, 64, 64))  # moves BatchNorm's statistics
    values: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "input_scale": 0.5}
    values |= {"config_hash": "c" * 64, "labels_hash": "l" * 64, "metrics": {"training_loss": 0.25}}
    card = new_card(config, CLASSES, seed=7, iterations=10, **values)
    return segmenter.eval(), save_model(folder, segmenter, card)


def test_a_saved_network_predicts_the_same_after_loading(tmp_path: Path) -> None:
    segmenter, digest = saved(tmp_path / "model")
    before = torch.random.get_rng_state()
    loaded, card = load_model(tmp_path / "model", device=CPU, class_names=CLASSES)
    assert torch.equal(torch.random.get_rng_state(), before)
    image = torch.randn(1, 3, 50, 50)
    with torch.no_grad():
        assert torch.equal(loaded(image), segmenter(image))
    assert not loaded.training
    assert (card.mean, card.seed, card.metrics) == ([0.5, 0.4, 0.3], 7, {"training_loss": 0.25})
    assert card.weights_sha256 == digest
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["road", "tree"], "class 1 is 'sky' there and 'tree' here"),
        (["road"], "2 classes .* where the project has 1"),
    ],
)
def test_a_checkpoint_of_another_class_list_is_refused(
    tmp_path: Path, classes: list[str], message: str
) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, device=CPU, class_names=classes)


def test_a_malicious_pickle_in_place_of_the_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    saved(tmp_path)
    witness = tmp_path / "witness"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (witness,))

    bomb = pickle.dumps(Bomb())
    weights, card = tmp_path / "model.safetensors", tmp_path / "model.json"
    weights.write_bytes(bomb)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that its card"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)

    import hashlib

    document = json.loads(card.read_text()) | {"weights_sha256": hashlib.sha256(bomb).hexdigest()}
    card.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)
    assert not witness.exists()
    pickle.loads(bomb)
    assert witness.exists()


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    weights, card = tmp_path / "model.safetensors", tmp_path / "model.json"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no readable weights at .*model\.safetensors"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)
    card.write_text("{}")
    with pytest.raises(CheckpointError, match=r"model\.json is not a model card"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)
    card.unlink()
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    card = tmp_path / "model.json"
    document = json.loads(card.read_text())
    document["model"]["architecture"] = "pspnet"
    card.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="are not those of this network"):
        load_model(tmp_path, device=CPU, class_names=CLASSES)


def test_a_resumable_state_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    assert load_resume(tmp_path) is None
    save_resume(tmp_path, {"a": torch.arange(3), "step": torch.tensor(4.0)}, {"iteration": 4})
    found = load_resume(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["a"], torch.arange(3))
    assert found[1] == {"iteration": 4}
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    assert load_resume(tmp_path) is None
    path.write_bytes(pickle.dumps({"iteration": 4}))
    assert load_resume(tmp_path) is None
    forget_resume(tmp_path)
    assert not path.exists()
