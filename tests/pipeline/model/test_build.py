"""Networks from the configuration, and encoder weights from files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from pipeline.config import ModelConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.build import build_segmenter, normalisation
from pipeline.model.segmenter import Segmenter

TIMM = "mobilenetv3_small_050"


def build(root: Path, *, channels: int = 3, **settings: Any) -> Segmenter:
    config = ModelConfig.model_validate(
        {"architecture": "linknet", "encoder": f"tu-{TIMM}", "encoder_weights": "none"} | settings
    )
    return build_segmenter(config, num_classes=3, channels=channels, root=root)


def write_timm_weights(path: Path, name: str = TIMM) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = timm.create_model(name).state_dict()
    save_file(state, path)
    return state


def test_a_safetensors_file_fills_a_timm_encoder(tmp_path: Path) -> None:
    state = write_timm_weights(tmp_path / "encoder.safetensors")
    segmenter = build(tmp_path, encoder_weights="encoder.safetensors")
    loaded = segmenter.part("encoder").model.state_dict()
    assert len(loaded) > 100
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_convolution_is_adapted_to_other_channels(tmp_path: Path, channels: int) -> None:
    state = write_timm_weights(tmp_path / "encoder.safetensors")
    segmenter = build(tmp_path, channels=channels, encoder_weights="encoder.safetensors")
    weight = segmenter.part("encoder").model.state_dict()["conv_stem.weight"]
    assert weight.shape[1] == channels
    torch.testing.assert_close(weight.sum(dim=1), _expected_sum(state["conv_stem.weight"], channels))
    with torch.no_grad():
        assert segmenter.eval()(torch.randn(1, channels, 40, 40)).shape == (1, 3, 40, 40)


def _expected_sum(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """One channel sums the three; more repeat them in turn, scaled by 3/K."""
    if channels == 1:
        return weight.sum(dim=1)
    return sum(weight[:, index % 3] for index in range(channels)) * (3 / channels)  # type: ignore[return-value]


def test_a_safetensors_file_fills_an_smp_encoder(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = smp.encoders.get_encoder("mobilenet_v2", weights=None).state_dict()
    save_file(source, tmp_path / "encoder.safetensors")
    segmenter = build(
        tmp_path, channels=1, encoder="mobilenet_v2", encoder_weights=str(tmp_path / "encoder.safetensors")
    )
    loaded = segmenter.part("encoder").state_dict()
    torch.testing.assert_close(
        loaded["features.0.0.weight"], source["features.0.0.weight"].sum(dim=1, keepdim=True)
    )
    assert torch.equal(loaded["features.3.conv.0.0.weight"], source["features.3.conv.0.0.weight"])


@pytest.mark.parametrize("encoder", [f"tu-{TIMM}", "mobilenet_v2"])
def test_the_weights_of_another_encoder_are_refused_by_name(tmp_path: Path, encoder: str) -> None:
    write_timm_weights(tmp_path / "other.safetensors", name="test_resnet")
    with pytest.raises(
        CheckpointError, match=r"other\.safetensors does not hold the weights of .*" + encoder
    ):
        build(tmp_path, encoder=encoder, encoder_weights="other.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (witness,))

    (tmp_path / "encoder.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        build(tmp_path, encoder_weights="encoder.safetensors")
    assert not witness.exists()
    pickle.loads((tmp_path / "encoder.safetensors").read_bytes())
    assert witness.exists()


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights at .*nowhere\.safetensors"):
        build(tmp_path, encoder_weights="nowhere.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet43"}, "Did you mean .*`resnet34`"),
        ({"encoder": "tu-mobilenetv3_smal_050"}, "`tu-mobilenetv3_small_050`"),
        ({"decoder": {"classes": 5}}, "sets classes"),
        ({"decoder": {"decoder_colour": 5}}, "decoder_colour"),
        ({"architecture": "dpt"}, "cannot be"),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, r"strict_img_size: false"),
        ({"encoder": "tu-maxvit_tiny_tf_224"}, "images of one size only"),
    ],
)
def test_names_that_do_not_exist_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, **settings)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_arguments: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(smp, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"could not be downloaded.*encoder_weights"):
        build(tmp_path, encoder="resnet18", encoder_weights="imagenet")


def test_weights_are_left_alone_when_a_checkpoint_follows(tmp_path: Path) -> None:
    config = ModelConfig(encoder="resnet18", encoder_weights="nowhere.safetensors")
    segmenter = build_segmenter(config, num_classes=2, channels=3, root=tmp_path, pretrained=False)
    assert segmenter.num_classes == 2


def test_normalisation_is_the_encoders_unless_it_is_given() -> None:
    mean, std = normalisation(ModelConfig(encoder="resnet18"), 1)
    assert mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    given = ModelConfig(encoder="resnet18", mean=[0.1, 0.2], std=[1.0, 2.0])
    assert normalisation(given, 2) == ([0.1, 0.2], [1.0, 2.0])
