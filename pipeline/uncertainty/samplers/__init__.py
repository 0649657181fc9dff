"""Sources of stochastic predictions: one interface, one set of running sums, a module for each sampler."""

from pipeline.uncertainty.samplers.base import Band, Sampler
from pipeline.uncertainty.samplers.choose import make_sampler
from pipeline.uncertainty.samplers.ensembles import Member
from pipeline.uncertainty.samplers.mc_dropout import draw_masks
from pipeline.uncertainty.samplers.sums import SampledPrediction
from pipeline.uncertainty.samplers.views import Normalisation

__all__ = ["Band", "Member", "Normalisation", "SampledPrediction", "Sampler", "draw_masks", "make_sampler"]
