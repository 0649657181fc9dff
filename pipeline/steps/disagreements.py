"""Disagreements: regions of the pool where each sample is confident, but the samples disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from db.engine import Database
from db.queries import scores
from db.queries.scores import FoundRegion
from db.tables import Model
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.format import agree, out_of, percent
from pipeline.progress import Progress, silent
from pipeline.steps.ready import scored_run
from pipeline.uncertainty.disagreement import Disagreement, RegionBlock, confident_but_disagreeing


@dataclass(frozen=True)
class DisagreementReport:
    """The regions of a scoring run that are confident but disagreeing; `rows` are the first of them."""

    run_id: int
    model: str
    result: Disagreement
    rows: list[FoundRegion]
    class_names: list[str]

    def lines(self) -> Iterator[str]:
        """The list as text."""
        result = self.result
        yield (
            f"Run {self.run_id} of {self.model}: {out_of(result.matching, result.regions, 'region')} "
            f"{agree(result.matching, 'is', 'are')} confident but disagreeing (expected entropy up to "
            f"{result.most_entropy:.3f}, mutual information from {result.least_information:.3f}, the medians "
            "of the run)."
        )
        yield from (f"  {rank:4d}  {self.described(row)}" for rank, row in enumerate(self.rows, start=1))

    def described(self, row: FoundRegion) -> str:
        """Place, class and measures of a region, in one line."""
        votes = "" if row.variation_ratio is None else f", {percent(row.variation_ratio)} of votes against"
        return (
            f"{row.uri} (x {row.x}, y {row.y}, w {row.w}, h {row.h}): mostly "
            f"{self.class_names[row.predicted_class]}{votes}, mutual information "
            f"{row.mutual_information or 0:.3f}, expected entropy {row.expected_entropy or 0:.3f}"
        )


def disagreements(
    project: Project, database: Database, *, limit: int = 20, progress: Progress = silent
) -> DisagreementReport:
    """The regions of the serving model's newest finished run whose samples disagree most, from stored scores.

    Args:
        limit: rows of the list.

    Raises:
        UserError: nothing has been scored yet, or the scores are without samples.
    """
    with database.session(write=False) as session:
        run = scored_run(session)
        model = session.get_one(Model, run.model_id)

        def read() -> Iterator[RegionBlock]:
            for page in scores.region_pages(session, run_id=run.id, columns=RegionBlock._fields):
                image_id, index, *measures = page.values()
                yield RegionBlock(image_id, index, *(values.astype(np.float32) for values in measures))

        found = confident_but_disagreeing(read, limit=limit)
        if found is None:
            raise UserError(
                f"Scoring run {run.id} has no samples that could disagree.",
                "Set `scoring.sampler: mc_dropout` and run `segcurate score`.",
            )
        at = scores.regions_at(session, run_id=run.id, places=found.strongest)
    rows = [at[row] for row in found.strongest]
    return DisagreementReport(run.id, model.name, found, rows, project.config.data.class_names)
