"""Inputs that a network was not trained on, with increasing strength.

Legend: B batch, K channels, H W image size, P patches along a side.

Images are float32 [B, K, H, W] with pixels in 0 to 1, except for `magnify` and `fgsm`, which change the
normalised image. All random numbers come from a generator that the caller seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as vision

from pipeline.config import IGNORE
from pipeline.uncertainty.samplers import Normalisation

GAUSSIAN_STD = 0.25
"""Standard deviation of gaussian noise around mid-grey: black and white are two of them away."""


def magnify(image: Tensor, factor: float) -> Tensor:
    """The normalised input times a factor: far from all training data, in a direction in which the confidence
    of a ReLU network grows to 1 (Hein et al. 2019, theorem 3.1)."""
    return image * factor


def fgsm(
    image: Tensor,
    label: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    *,
    strengths: Sequence[float],
    normalisation: Normalisation,
) -> list[Tensor]:
    """Fast gradient sign method (Goodfellow et al. 2015, section 4): a step of ε for each pixel in 0 to 1, up
    the gradient of the loss on the label, clipped to 0 to 1.

    Args:
        image: normalised [B, K, H, W].
        label: int64 [B, H, W], class index or 255. Without any label the image stays as it is.
        logits_of: differentiable; [B, C, H, W].
        strengths: ε in 0 to 1, such as 2/255; all use the same gradient.
        normalisation: of the image.

    Returns:
        Normalised images, one for each strength.
    """
    with torch.enable_grad():
        variable = image.detach().clone().requires_grad_(True)
        loss = functional.cross_entropy(
            logits_of(variable).float(), label, ignore_index=IGNORE, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, variable)
    unit = normalisation.pixels(image)
    return [
        normalisation.normalise((unit + strength * gradient.sign()).clamp(0, 1)) for strength in strengths
    ]


def noise(like: Tensor, kind: str, *, generator: torch.Generator) -> Tensor:
    """An image without any content: every pixel `uniform` in 0 to 1, or `gaussian` around mid-grey.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "uniform":
        drawn = torch.rand(like.shape, generator=generator)
    elif kind == "gaussian":
        drawn = (0.5 + GAUSSIAN_STD * torch.randn(like.shape, generator=generator)).clamp_(0, 1)
    else:
        raise ValueError(f"Expected noise `uniform` or `gaussian`, but got {kind!r}.")
    return drawn.to(like.device)


def shuffle_patches(image: Tensor, patches: int, *, generator: torch.Generator) -> Tensor:
    """Permute P×P patches of nearly equal size in each image: textures are preserved, objects are not.

    Where the sides are not multiples of P, the image is first cut to such a multiple; afterwards its border
    is repeated to restore the size.

    >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> shuffle_patches(image, 2, generator=torch.Generator().manual_seed(1)).unique().tolist()
    [0.0, 1.0, 2.0, 3.0]

    Raises:
        ValueError: the image has fewer than P rows or columns.
    """
    height, width = image.shape[-2:]
    rows, columns = height // patches, width // patches
    if min(rows, columns) < 1:
        raise ValueError(f"Expected at least {patches} rows and columns, but got {height} and {width}.")
    cut = image[..., : rows * patches, : columns * patches]
    pieces = functional.unfold(cut, (rows, columns), stride=(rows, columns))
    shuffled = torch.stack(
        [piece[:, torch.randperm(patches**2, generator=generator).to(image.device)] for piece in pieces]
    )
    whole = functional.fold(
        shuffled, (rows * patches, columns * patches), (rows, columns), stride=(rows, columns)
    )
    missing = (0, width - columns * patches, 0, height - rows * patches)
    return functional.pad(whole, missing, mode="replicate")


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation in pixels, on three of it to each side; 0 leaves the image.

    Borders are mirrored, so the kernel is cut to what an image's sides allow.
    """
    if sigma == 0:
        return image
    longest = 2 * (min(image.shape[-2:]) - 1) + 1
    size = min(2 * round(3 * sigma) + 1, longest)
    return vision.gaussian_blur(image, [size, size], [sigma, sigma])


def darken(image: Tensor, gamma: float) -> Tensor:
    """Pixels in 0 to 1 to the power γ, which darkens all but black and white.

    >>> round(darken(torch.tensor(0.5), 3.0).item(), 3)
    0.125
    """
    return image.clamp(0, 1) ** gamma


def rescale(image: Tensor, factor: float) -> Tensor:
    """The image at another resolution, antialiased where it becomes smaller."""
    if factor == 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[-2:])
    return functional.interpolate(
        image, size=(height, width), mode="bilinear", antialias=factor < 1, align_corners=False
    )
