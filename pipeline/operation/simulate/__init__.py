"""A simulation: strategies compared on a project whose images have masks, in stores of their own."""

from pipeline.operation.simulate.operation import run_simulate
from pipeline.operation.simulate.settings import Simulated, parse_budgets, parse_strategies

__all__ = ["Simulated", "parse_budgets", "parse_strategies", "run_simulate"]
