"""Ensembles: of slim heads on one encoder, and of whole networks (Lakshminarayanan et al. 2017).

Legend: B batch, K heads, C classes, H W size of the padded image, h w size of the maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.uncertainty.network import LEAST_LOGIT, Pass, Places, ScoringNetwork, aligned_places, resample
from pipeline.uncertainty.samplers.base import Sampler
from pipeline.uncertainty.samplers.views import Normalisation, resized_logits


@dataclass(frozen=True)
class Member:
    """Another network of an ensemble, and how its images are prepared.

    Attributes:
        network: with the same classes and channels.
        normalisation: of its images.
        input_scale: factor on an image's own size.
        weights: hash of its weights, its provenance.
    """

    network: ScoringNetwork
    normalisation: Normalisation
    input_scale: float
    weights: str = ""


class HeadEnsemble(Sampler):
    """The slim heads of the network, without its own decoder.

    Args:
        heads: K.
    """

    def __init__(self, heads: int) -> None:
        self.samples = heads

    def stream(self, network: ScoringNetwork, forward: Pass) -> Iterator[Tensor]:
        height, width = forward.image.shape[-2:]
        target = network.places(height, width)
        logits = network.segmenter.head_logits(forward.trunk).clamp(min=LEAST_LOGIT)
        cells: Places = (aligned_places(logits.shape[-2], height), aligned_places(logits.shape[-1], width))
        for head in logits.split(1):
            yield resample(head, cells, target)


class Ensemble(Sampler):
    """The network itself and further members, each with the images prepared for it.

    Args:
        members: the further networks.
        normalisation, input_scale: of the network's own images.
    """

    def __init__(
        self, members: Sequence[Member], *, normalisation: Normalisation, input_scale: float
    ) -> None:
        self.members = members
        self.normalisation = normalisation
        self.input_scale = input_scale
        self.samples = 1 + len(members)

    def stream(self, network: ScoringNetwork, forward: Pass) -> Iterator[Tensor]:
        yield forward.logits[None]
        for member in self.members:
            image = forward.image
            if member.normalisation != self.normalisation:
                image = member.normalisation.normalise(self.normalisation.pixels(image))
            scale = member.input_scale / self.input_scale
            yield resized_logits(member.network, image, scale, target=network)[None]
