"""Samplers: views that lie where the image lies, heads and members that are averaged as they should be."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.calibration.calibrators import Calibrators, Temperature
from pipeline.config import ScoringConfig
from pipeline.errors import ConfigError
from pipeline.model.segmenter import Segmenter
from pipeline.uncertainty.drawn_pixels import draw_pixels, pixels_of
from pipeline.uncertainty.network import ScoringNetwork, resample
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.samplers import Member, Normalisation
from tests.pipeline.model.test_segmenter import tiny

CPU = torch.device("cpu")
NORMAL = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
FITTED = Calibrators(deterministic=Temperature(2.0), sampled=Temperature(1.3))
RESOLUTIONS = ["quarter", "logits", "full"]


class Pixelwise(nn.Module):
    """A network that sees a pixel at a time, so that flipping the image flips its logits; `shrink` gives its
    logits a stride, with the corners of both ends aligned."""

    def __init__(self, shrink: int) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.encoder.output_stride = 4  # pyright: ignore[reportArgumentType]
        self.decoder = nn.AvgPool2d(shrink)
        upsampling = nn.Upsample(scale_factor=shrink, mode="bilinear", align_corners=True)
        self.segmentation_head = nn.Sequential(nn.Conv2d(3, 4, 1), upsampling)


def pixelwise(shrink: int = 1) -> Segmenter:
    torch.manual_seed(0)
    segmenter = Segmenter(Pixelwise(shrink), num_classes=4, channels=3, dropout=0.5)
    segmenter.probe()
    with torch.no_grad():
        segmenter.final_layer.weight.mul_(4)
    return segmenter.eval()


def predictor_of(segmenter: Segmenter, sampler: str, *, members: list[Member] | None = None, **changes: Any):
    names = {"ensemble": ["r02"]} if sampler == "ensemble" else {}
    scoring = ScoringConfig.model_validate({"sampler": sampler, "samples": 4} | names | changes)
    return Predictor(
        segmenter,
        scoring=scoring,
        calibrators=FITTED,
        device=CPU,
        normalisation=NORMAL,
        members=members or [],
    )


def mean_of(samples: Tensor) -> Tensor:
    """Calibrated before the softmax, averaged after it: [B, C, h, w] from logits [T, B, C, h, w]."""
    return (samples / 1.3).softmax(dim=2).mean(dim=0)


def disagreement(prediction: Prediction) -> float:
    return prediction.measures()["mutual_information"].max().item()


@pytest.mark.parametrize(
    ("architecture", "placement"),
    [*product(["unet", "linknet", "fpn"], ["head", "deep"]), ("dpt", "head")],
)
def test_a_quarter_of_the_resolution_is_every_fourth_pixel_of_the_logits(
    architecture: str, placement: str
) -> None:
    segmenter = tiny(architecture, placement=placement).eval()
    image = torch.randn(2, 3, 70, 64)
    own = predictor_of(segmenter, "mc_dropout", resolution="logits")
    quarter = predictor_of(segmenter, "mc_dropout", resolution="quarter")
    step = max(1, 4 // segmenter.logits_stride)
    cells = (..., slice((step - 1) // 2, None, step), slice((step - 1) // 2, None, step))
    with torch.inference_mode():
        whole, fast = own.network.run(image), quarter.network.run(image)
        torch.testing.assert_close(fast.logits, whole.logits[cells], atol=1e-5, rtol=1e-4)
        assert own.sampler is not None
        assert quarter.sampler is not None
        every = torch.cat(list(own.sampler.stream(own.network, whole)))
        strided = torch.cat(list(quarter.sampler.stream(quarter.network, fast)))
        torch.testing.assert_close(strided, every[cells], atol=1e-5, rtol=1e-4)
    prediction = quarter.predict(image)
    assert quarter.cell == 4
    height, width = (
        19 if architecture == "dpt" else 18,
        16,
    )  # its cell 17 lies at 68.7, before the last pixel
    assert prediction.logits.shape[-2:] == (height, width)
    expected = mean_of(every[cells])[..., :height, :width]
    torch.testing.assert_close(prediction.probability, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (50, 75), (3, 2)])
def test_a_quarter_map_enlarges_to_where_its_pixels_were(size: tuple[int, int]) -> None:
    predictor = predictor_of(tiny("unet"), "none")
    rows, columns = predictor.network.places(*predictor.segmenter.padded_size(*size))
    cells = [-(-side // 4) for side in size]
    plane = (rows[: cells[0], None] * 100 + columns[None, : cells[1]]).float()
    enlarged = predictor.network.enlarge(plane[None, None], network_size=size, size=size)[0, 0]
    ys, xs = (torch.arange(side).float() for side in size)
    ys, xs = ys.clamp(rows[0].item(), rows[cells[0] - 1].item()), xs.clamp(1, columns[cells[1] - 1].item())
    torch.testing.assert_close(enlarged, ys[:, None] * 100 + xs[None])


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_flipped_views_of_an_equivariant_network_agree_exactly(resolution: str, shrink: int) -> None:
    views = {"flip": True, "scales": [], "gamma": []}
    predictor = predictor_of(pixelwise(shrink), "tta", views=views, resolution=resolution)
    image = torch.randn(2, 3, 44, 60)
    prediction = predictor.predict(image)
    assert disagreement(prediction) < 1e-6
    assert prediction.measures()["variation_ratio"].max() == 0
    assert (
        disagreement(predictor_of(tiny("fpn"), "tta", views=views, resolution=resolution).predict(image))
        > 1e-3
    )


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2.0])
def test_scaled_views_lie_where_the_image_lies(resolution: str, scale: float) -> None:
    """On a ramp every resized view has the same logits at the same places; half a pixel off would show."""
    views = {"flip": False, "scales": [scale], "gamma": []}
    predictor = predictor_of(pixelwise(), "tta", views=views, resolution=resolution)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    image = torch.stack([y / 20, x / 20, (x - y) / 20])[None]
    assert predictor.sampler is not None
    with torch.inference_mode():
        seen = predictor.network.run(image)
        plain, scaled = torch.cat(list(predictor.sampler.stream(predictor.network, seen)))
    edge = 20 // predictor.cell + 2
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    of_a_pixel = (plain[..., 1:] - plain[..., :-1]).abs().max() / predictor.cell
    assert (scaled - plain)[inside].abs().max() < 0.05 * of_a_pixel


def test_a_scaled_view_disagrees_at_a_quarter_of_the_resolution_as_it_does_at_all_of_it() -> None:
    views = {"flip": False, "scales": [0.75], "gamma": []}
    noise = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    image = nn.functional.avg_pool2d(noise, 5, stride=1, padding=2) * 3
    quarter, full = (
        predictor_of(pixelwise(), "tta", views=views, resolution=resolution).predict(image)
        for resolution in ("quarter", "full")
    )
    rows, columns = (side.round().long() for side in quarter.places)
    expected = full.measures()["mutual_information"][0][rows][:, columns].flatten()
    found = quarter.measures()["mutual_information"].flatten()
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.05)
    assert np.corrcoef(found.numpy(), expected.numpy())[0, 1] > 0.95


def test_gamma_is_the_exponent_of_pixels_not_of_normalised_values() -> None:
    segmenter = pixelwise()
    views = {"flip": False, "scales": [], "gamma": [0.5]}
    prediction = predictor_of(segmenter, "tta", views=views, resolution="full").predict(
        NORMAL.normalise(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    )
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        samples = torch.stack([segmenter(NORMAL.normalise(part)) for part in (pixels, pixels.sqrt())])
    torch.testing.assert_close(prediction.probability, mean_of(samples), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["fpn", "unet", "pspnet"])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_heads_are_averaged_at_the_networks_cells(architecture: str, resolution: str) -> None:
    segmenter = tiny(architecture, heads=3).eval()
    image = torch.randn(2, 3, 64, 96)
    predictor = predictor_of(segmenter, "head_ensemble", resolution=resolution)
    prediction = predictor.predict(image)
    with torch.no_grad():
        heads = segmenter.head_logits(segmenter.trunk(image)).flatten(0, 1)
        large = nn.functional.interpolate(heads, size=(64, 96), mode="bilinear", align_corners=True)
    rows, columns = predictor.network.places(64, 96)
    pixels = torch.arange(64).double(), torch.arange(96).double()
    samples = resample(large, pixels, (rows, columns)).unflatten(0, (3, 2))
    close = 1e-5 if architecture == "unet" or resolution == "full" else 0.02  # between pixels: twice linear
    assert (prediction.probability - mean_of(samples)).abs().max() < close
    assert disagreement(prediction) > 1e-4


def test_an_ensemble_of_one_network_twice_agrees_with_itself() -> None:
    segmenter = tiny("fpn").eval()
    member = Member(ScoringNetwork(segmenter, resolution="quarter", device=CPU), NORMAL, 1.0)
    prediction = predictor_of(segmenter, "ensemble", members=[member]).predict(torch.randn(1, 3, 64, 96))
    assert disagreement(prediction) < 1e-6


def test_a_member_sees_the_image_with_its_own_normalisation_and_scale() -> None:
    """The same pixelwise network, told other statistics and made for images half as large."""
    own, other = pixelwise(), pixelwise()
    theirs = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    with torch.no_grad():  # undo what the other normalisation does to the logits
        ratio = torch.tensor(theirs.std) / torch.tensor(NORMAL.std)
        shift = (torch.tensor(theirs.mean) - torch.tensor(NORMAL.mean)) / torch.tensor(NORMAL.std)
        bias = other.final_layer.bias
        assert bias is not None
        bias += (own.final_layer.weight[..., 0, 0] * shift).sum(dim=1)
        other.final_layer.weight *= ratio[None, :, None, None]
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    image = torch.stack([y / 40, x / 40, (x - y) / 40])[None]
    for scale in (1.0, 0.5):
        member = Member(ScoringNetwork(other, resolution="quarter", device=CPU), theirs, scale)
        information = (
            predictor_of(own, "ensemble", members=[member]).predict(image).measures()["mutual_information"]
        )
        assert information[..., 4:-4, 4:-4].max() < 1e-5
    wrong = Member(ScoringNetwork(other, resolution="quarter", device=CPU), NORMAL, 1.0)
    assert disagreement(predictor_of(own, "ensemble", members=[wrong]).predict(image)) > 1e-2


def test_members_of_other_architectures_are_brought_to_the_serving_networks_cells() -> None:
    serving, other = tiny("pspnet").eval(), tiny("unet").eval()
    image = torch.randn(1, 3, 64, 96)
    member = Member(ScoringNetwork(other, resolution="quarter", device=CPU), NORMAL, 1.0)
    predictor = predictor_of(serving, "ensemble", members=[member])
    found = predictor.predict(image)
    with torch.no_grad():
        theirs = other(image).numpy()
        own = serving.tail(serving.trunk(image))
    for axis, side in ((-1, 96), (-2, 64)):
        there = np.arange(side)
        here = np.linspace(0, side - 1, side // 8)
        theirs = np.apply_along_axis(lambda line, p=here, q=there: np.interp(p, q, line), axis, theirs)
    samples = torch.stack([own, torch.from_numpy(theirs).float()])
    assert predictor.cell == 8
    torch.testing.assert_close(found.probability, mean_of(samples), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("resolution", ["logits", "full"])
def test_pixels_for_the_calibration_are_those_that_the_network_has_seen(resolution: str) -> None:
    segmenter = pixelwise()
    predictor = predictor_of(segmenter, "mc_dropout", resolution=resolution)
    label = torch.randint(4, (41, 54), dtype=torch.uint8)
    image = torch.stack([label.float(), torch.zeros(41, 54), torch.zeros(41, 54)])[None]
    drawn = draw_pixels(predictor, image, label, pixels=60, generator=np.random.default_rng(0))
    with torch.no_grad():
        by_label = segmenter(torch.tensor([[0.0, 1, 2, 3]] + [[0.0] * 4] * 2)[None, :, None])[0, :, 0]
    assert len(drawn.labels) == 60
    assert drawn.sampled is not None
    assert len(drawn.sampled) == 4
    assert drawn.shares[0].min() == 1
    torch.testing.assert_close(drawn.deterministic[0], by_label[:, drawn.labels])
    assert len(pixels_of([drawn], sampled=True).logits) == 4


@pytest.mark.parametrize("sampler", ["mc_dropout", "tta", "head_ensemble", "ensemble"])
@pytest.mark.parametrize("architecture", ["fpn", "unet"])
def test_every_sampler_scores_tiles_and_odd_sizes(sampler: str, architecture: str) -> None:
    segmenter = tiny(architecture, heads=2).eval()
    network = ScoringNetwork(tiny("linknet").eval(), resolution="quarter", device=CPU)
    members = [Member(network, NORMAL, 1.0)] if sampler == "ensemble" else []
    predictor = predictor_of(segmenter, sampler, members=members, tile=64, overlap=32)
    for size in ((90, 131), (1, 1), (33, 50)):
        prediction = predictor.predict(torch.randn(2, 3, *size))
        assert prediction.votes is not None
        shape = (2, 4, *(len(side) for side in prediction.places))
        assert prediction.probability.shape == prediction.votes.shape == shape
        total, votes = prediction.probability.sum(dim=1), prediction.votes.sum(dim=1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)
        assert votes.min() > 0.999
        assert votes.median() < 1.001  # but for classes that tie in the last digit
        assert all(torch.isfinite(plane).all() for plane in prediction.measures().values())


@pytest.mark.parametrize("sampler", ["none", "mc_dropout", "tta", "head_ensemble", "ensemble"])
@pytest.mark.parametrize("architecture", ["fpn", "unet"])
def test_a_class_that_the_network_rules_out_leaves_every_measure_a_number(
    sampler: str, architecture: str
) -> None:
    segmenter = tiny(architecture, heads=2).eval()
    for layer in segmenter.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None and layer.out_channels in (4, 2 * 4):
            layer.bias.data.view(-1, 4)[:, 1] = -torch.inf
    network = ScoringNetwork(segmenter, resolution="quarter", device=CPU)
    members = [Member(network, NORMAL, 1.0)] if sampler == "ensemble" else []
    prediction = predictor_of(segmenter, sampler, members=members, tile=64, overlap=32).predict(
        torch.randn(1, 3, 90, 131)
    )
    assert prediction.probability[:, 1].max() == 0
    for name, plane in prediction.measures().items():
        assert torch.isfinite(plane).all(), name


@pytest.mark.parametrize(
    ("sampler", "changes", "remedy"),
    [
        ("head_ensemble", {}, r"model\.heads"),
        ("tta", {"views": {"flip": False, "scales": [], "gamma": []}}, r"scoring\.views\.flip"),
        ("ensemble", {}, r"scoring\.ensemble"),
    ],
)
def test_a_sampler_that_the_model_cannot_give_names_the_key_to_set(
    sampler: str, changes: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=remedy):
        predictor_of(tiny("fpn"), sampler, **changes)


@pytest.mark.parametrize("size", [(128, 128), (100, 64)])
def test_every_pixel_of_an_image_larger_than_the_tile_is_drawn_as_often_as_any_other(
    size: tuple[int, int],
) -> None:
    predictor = predictor_of(pixelwise(), "none", resolution="logits", tile=64, overlap=16)
    label = torch.zeros(size, dtype=torch.uint8)
    label[:, ::2] = 255
    place = torch.arange(label.numel()).reshape(size).float() / label.numel()
    image = torch.stack([place, place, place])[None]
    weights = np.ones(size, dtype=np.float32)
    hits, total = np.zeros(4), 0.0
    seen = predictor.network.run(image).logits[0, 0].flatten()
    draws = 300
    for seed in range(draws):
        drawn = draw_pixels(
            predictor, image, label, pixels=8, generator=np.random.default_rng(seed), weights=weights
        )
        pixel = (drawn.deterministic[0, :1] - seen[:, None]).abs().argmin(dim=0).numpy()
        row, column = np.divmod(pixel, size[1])
        central = (abs(row - size[0] / 2) < size[0] / 4) & (abs(column - size[1] / 2) < size[1] / 4)
        hits += [central.mean(), (row < size[0] / 8).mean(), (column > size[1] * 7 / 8).mean(), 1]
        total += float(drawn.weights.sum()) / draws
    assert np.allclose(hits[:3] / draws, (1 / 4, 1 / 8, 1 / 8), atol=0.05)
    assert total == pytest.approx(label.numel() / 2)
