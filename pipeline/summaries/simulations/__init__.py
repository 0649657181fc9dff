"""What a simulation says: learning curves, differences to the controls, and verdicts."""

from pipeline.summaries.simulations.figures import StrategySummary
from pipeline.summaries.simulations.summarise import newest_summary, simulation_summary
from pipeline.summaries.simulations.summary import SimulationSummary

__all__ = ["SimulationSummary", "StrategySummary", "newest_summary", "simulation_summary"]
