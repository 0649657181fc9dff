"""The configured sampler, or an error that names the key to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config import ScoringConfig
from pipeline.errors import ConfigError
from pipeline.model.segmenter import Segmenter
from pipeline.uncertainty.samplers.base import Sampler
from pipeline.uncertainty.samplers.ensembles import Ensemble, HeadEnsemble, Member
from pipeline.uncertainty.samplers.mc_dropout import MCDropout, draw_masks
from pipeline.uncertainty.samplers.views import Normalisation, TestTimeAugmentation


def make_sampler(
    scoring: ScoringConfig,
    segmenter: Segmenter,
    *,
    device: torch.device,
    normalisation: Normalisation | None,
    input_scale: float,
    members: Sequence[Member],
) -> Sampler | None:
    """The sampler of `scoring` for a network on `device`; None for `none`.

    Args:
        normalisation, input_scale: of the network's images.
        members: the other networks of an `ensemble`.

    Raises:
        ConfigError: the network does not offer this sampler, or there would be one sample only.
        ValueError: the sampler is `mc_dropout` and the network has no active dropout; or it is `tta` or
            `ensemble`, and `normalisation` is not given.
    """
    if scoring.sampler == "none":
        return None
    if scoring.sampler == "mc_dropout":
        masks = draw_masks(scoring.samples, segmenter.sites, p=segmenter.dropout, seed=scoring.seed)
        return MCDropout(masks.to(device))
    if scoring.sampler == "head_ensemble":
        sampler: Sampler = HeadEnsemble(0 if segmenter.heads is None else segmenter.heads.count)
        remedy = "Set `model.heads` to 2 or more and train again, or choose another `scoring.sampler`."
    elif normalisation is None:
        raise ValueError(f"Expected the normalisation of the images for the sampler `{scoring.sampler}`.")
    elif scoring.sampler == "tta":
        sampler = TestTimeAugmentation(scoring.views, normalisation)
        remedy = "Set one of `scoring.views.flip`, `scoring.views.scales` and `scoring.views.gamma`."
    else:
        sampler = Ensemble(members, normalisation=normalisation, input_scale=input_scale)
        remedy = "Name at least one other model in `scoring.ensemble`."
    if sampler.samples < 2:
        raise ConfigError(
            f"`scoring.sampler: {scoring.sampler}` has {_count(sampler.samples)} to compare.", remedy
        )
    return sampler


def _count(samples: int) -> str:
    return "only one prediction" if samples else "no predictions"
