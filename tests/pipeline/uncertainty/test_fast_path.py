"""The fast path against T whole passes of the plain network, for every architecture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.calibration.calibrators import Calibrators, Temperature
from pipeline.config import ScoringConfig
from pipeline.model.segmenter import Segmenter
from pipeline.uncertainty import predictor as predictor_module
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.samplers import draw_masks
from tests.pipeline.model.test_segmenter import ARCHITECTURES, plain_smp, tiny

DROPOUT_AT = {
    "deeplabv3": "decoder.aspp.project.3",
    "deeplabv3plus": "decoder.aspp.0.project.3",
    "dpt": "segmentation_head.head.3",
    "fpn": "decoder.dropout",
    "pspnet": "decoder.dropout",
}
"""Where the plain network drops channels; the others do so after the decoder."""
CPU = torch.device("cpu")
FITTED = Calibrators(deterministic=Temperature(2.0), sampled=Temperature(1.3))


def predictor_of(segmenter: Segmenter, calibrators: Calibrators = FITTED, **changes: Any) -> Predictor:
    scoring = ScoringConfig.model_validate({"samples": 5, "resolution": "full"} | changes)
    return Predictor(segmenter, scoring=scoring, calibrators=calibrators, device=CPU)


def maps_of(prediction: Prediction) -> dict[str, Tensor]:
    return {str(name): plane for name, plane in prediction.measures().items()}


def spread_logits(segmenter: Segmenter, image: Tensor) -> None:
    """Scale the head so that classes differ as they do in a trained network."""
    head = segmenter.part("segmentation_head")
    convolution = next(module for module in reversed(list(head.modules())) if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        factor = 3 / segmenter(image).std(dim=(0, 2, 3)).mean()
        convolution.weight.mul_(factor)


def whole_passes(plain: nn.Module, position: str, image: Tensor, masks: Tensor) -> Tensor:
    """Calibrated probabilities [T, B, C, H, W], float64, of as many forwards as there are masks."""
    current: list[Tensor] = []

    def drop(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        return output * current[-1][None, :, None, None]

    hook = plain.get_submodule(position).register_forward_hook(drop)
    probabilities: list[Tensor] = []
    with torch.no_grad():
        for mask in masks:
            current.append(mask)
            probabilities.append((plain(image).double() / 1.3).softmax(dim=1))
    hook.remove()
    return torch.stack(probabilities)


def assert_sums_of(prediction: Prediction, samples: Tensor) -> None:
    """The prediction holds what the samples' probabilities [T, B, C, H, W] say, each spelled out."""
    maps = maps_of(prediction)
    scale = math.log(samples.shape[2])
    total = torch.special.entr(samples.mean(dim=0)).sum(dim=1) / scale
    information = total - torch.special.entr(samples).sum(dim=2).mean(dim=0) / scale
    assert information.max() > 1e-3
    torch.testing.assert_close(maps["entropy"].double(), total, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps["mutual_information"].double(), information, atol=1e-5, rtol=0)

    first, second = samples.topk(2, dim=2).values.unbind(dim=2)
    clear = (first - second).amin(dim=0) > 1e-5  # elsewhere rounding decides the winner
    winners = torch.nn.functional.one_hot(samples.argmax(dim=2), samples.shape[2])
    votes = winners.permute(0, 1, 4, 2, 3).double().mean(dim=0)
    assert prediction.votes is not None
    assert clear.double().mean() > 0.9
    assert ((prediction.votes - votes).abs().amax(dim=1) < 1e-6)[clear].all()
    assert ((maps["variation_ratio"] - 1 + votes.amax(dim=1)).abs() < 1e-6)[clear].all()
    assert maps["variation_ratio"].max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fast_path_equals_whole_passes(architecture: str) -> None:
    segmenter = tiny(architecture).eval()
    image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    spread_logits(segmenter, image)
    predictor = predictor_of(segmenter)
    masks = draw_masks(5, segmenter.sites, p=segmenter.dropout, seed=0)

    plain = plain_smp(architecture, segmenter)
    samples = whole_passes(plain, DROPOUT_AT.get(architecture, "decoder"), image, masks)
    assert_sums_of(predictor.predict(image), samples)


def test_chunks_of_samples_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = tiny("fpn").eval()
    image = torch.randn(2, 3, 64, 64)
    together = maps_of(predictor_of(segmenter, samples=7).predict(image))
    monkeypatch.setattr("pipeline.uncertainty.samplers.base.CHUNK_BYTES", {"cpu": 1})
    with torch.no_grad():
        predictor = predictor_of(segmenter, samples=7, resolution="logits")
        assert predictor.sampler is not None
        chunks = list(predictor.sampler.stream(predictor.network, predictor.network.run(image)))
    assert [len(chunk) for chunk in chunks] == [1] * 7
    one_by_one = maps_of(predictor_of(segmenter, samples=7).predict(image))
    for name, plane in together.items():
        torch.testing.assert_close(one_by_one[name], plane, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["fpn", "deeplabv3plus"])
def test_an_image_scores_alike_in_any_batch_and_order(architecture: str) -> None:
    predictor = predictor_of(tiny(architecture).eval(), resolution="logits")
    images = torch.randn(4, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    together = maps_of(predictor.predict(images))
    backwards = maps_of(predictor.predict(images.flip(0)))
    for index in range(4):
        alone = maps_of(predictor.predict(images[index : index + 1]))
        for name, plane in together.items():
            torch.testing.assert_close(alone[name][0], plane[index], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(backwards[name][3 - index], plane[index], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["fpn", "unet", "deeplabv3plus", "pspnet"])
def test_sampling_changes_no_weight_and_no_buffer(architecture: str) -> None:
    segmenter = tiny(architecture)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    assert any("running_mean" in name for name in before)
    predictor_of(segmenter).predict(torch.randn(2, 3, 64, 64))
    for name, value in segmenter.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in segmenter.modules())


def test_masks_come_from_the_seed_and_keep_a_channel_each() -> None:
    assert torch.equal(draw_masks(8, [32], p=0.3, seed=5), draw_masks(8, [32], p=0.3, seed=5))
    assert not torch.equal(draw_masks(8, [32], p=0.3, seed=5), draw_masks(8, [32], p=0.3, seed=6))
    nearly_all = draw_masks(200, [2, 3], p=0.95, seed=0)
    assert (nearly_all[:, :2] > 0).any(dim=1).all()
    assert (nearly_all[:, 2:] > 0).any(dim=1).all()
    many = draw_masks(200, [500], p=0.3, seed=0)
    assert many.mean().item() == pytest.approx(1, abs=0.02)
    assert many.unique().tolist() == pytest.approx([0, 1 / 0.7])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_without_active_dropout_there_is_nothing_to_sample(p: float) -> None:
    with pytest.raises(ValueError, match="nothing is sampled"):
        draw_masks(4, [8], p=p, seed=0)


def test_sampler_none_is_the_calibrated_softmax() -> None:
    segmenter = tiny("fpn").eval()
    image = torch.randn(1, 3, 70, 50)
    prediction = predictor_of(segmenter, sampler="none").predict(image)
    with torch.no_grad():
        expected = (segmenter(image) / 2).softmax(dim=1)
    torch.testing.assert_close(prediction.probability, expected, atol=1e-6, rtol=1e-5)
    assert prediction.expected_entropy is None


def test_several_calibrators_cost_one_trunk_and_give_what_each_gives_alone() -> None:
    segmenter = tiny("fpn").eval()
    predictor = predictor_of(segmenter)
    image = torch.randn(1, 3, 64, 64)
    trunks: list[int] = []
    original = segmenter.trunk
    segmenter.trunk = lambda image: (trunks.append(1), original(image))[1]  # pyright: ignore[reportAttributeAccessIssue]
    raw, fitted = predictor.predict_each(image, [Calibrators(), FITTED])
    assert len(trunks) == 1
    torch.testing.assert_close(fitted.probability, predictor.predict(image).probability)
    assert raw.probability.max() > fitted.probability.max()
    torch.testing.assert_close(raw.logits, fitted.logits)


def test_when_memory_runs_out_the_batch_halves_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(tiny("fpn").eval(), resolution="logits")
    predictor.batch_size = 8
    images = torch.randn(5, 3, 64, 64)
    expected = maps_of(predictor.predict(images))
    sizes: list[int] = []
    original = predictor._forward

    def small_memory(image: Tensor, calibrators: Any) -> Any:
        sizes.append(image.shape[0])
        if image.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(image, calibrators)

    monkeypatch.setattr(predictor, "_forward", small_memory)
    found = maps_of(predictor.predict(images))
    for name, plane in expected.items():
        torch.testing.assert_close(found[name], plane, atol=1e-5, rtol=1e-4)
    assert sizes == [5, 2, 2, 1]
    sizes.clear()
    predictor.predict(images)
    assert sizes == [2, 2, 1]


def test_an_image_too_large_for_the_memory_is_refused_with_the_key_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = predictor_of(tiny("fpn").eval())

    def no_memory(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(predictor, "_forward", no_memory)
    with pytest.raises(predictor_module.UserError, match=r"scoring\.tile"):
        predictor.predict(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
@pytest.mark.parametrize("resolution", ["logits", "full"])
def test_any_size_gives_probabilities_at_the_images_size(size: tuple[int, int], resolution: str) -> None:
    predictor = predictor_of(tiny("fpn").eval(), resolution=resolution)
    image = torch.randn(1, 3, *size)
    prediction = predictor.predict(image)
    found = prediction.at(prediction.probability, size)[0]
    assert found.shape == (4, *size)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size), atol=1e-5, rtol=0)


def test_probability_is_stretched_to_the_size_of_a_resized_image() -> None:
    predictor = predictor_of(tiny("fpn").eval(), resolution="logits")
    prediction = predictor.predict(torch.randn(1, 3, 40, 30))
    found = prediction.at(prediction.probability, (80, 61))[0]
    assert found.shape == (4, 80, 61)


@pytest.mark.parametrize("size", [(50, 75), (64, 64), (33, 20)])
def test_enlarged_maps_lie_where_the_network_itself_would_put_them(size: tuple[int, int]) -> None:
    segmenter = tiny("fpn")
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    predictor = predictor_of(segmenter, sampler="none", resolution="logits")
    prediction = predictor.predict(image)
    with torch.no_grad():
        expected = segmenter(image)
    enlarged = prediction.at(prediction.logits, size)
    inside = (..., slice(size[0] - predictor.cell), slice(size[1] - predictor.cell))  # the rest sees padding
    torch.testing.assert_close(enlarged[inside], expected[inside], rtol=1e-5, atol=1e-5)
