"""Score: the pool's images become rows of region scores."""

from pipeline.steps.score.step import score

__all__ = ["score"]
