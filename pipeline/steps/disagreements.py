"""Disagreements: regions of the pool that the model is sure of in each sample, and in each otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from db.engine import Database
from db.queries import models, scores
from db.queries.runs import newest_run
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.format import count, percent
from pipeline.progress import Progress, silent
from pipeline.uncertainty.disagreement import RegionBlock, confident_but_disagreeing


@dataclass(frozen=True)
class DisagreeingRegion:
    """A region that is confident but disagreeing, as it was scored."""

    image_id: int
    uri: str
    region_index: int
    box: tuple[int, int, int, int]
    """x, y, w, h in image pixels."""
    outline: str | None
    """Which pixels of its box it holds, as `uncertainty.outlines` writes it; None: all."""
    class_name: str
    class_share: float
    expected_entropy: float
    mutual_information: float
    variation_ratio: float | None
    """Mean share of the votes that are not for the winner; None for scores of an older version."""

    def words(self) -> str:
        """What is known of it, in one line."""
        x, y, w, h = self.box
        votes = "" if self.variation_ratio is None else f", {percent(self.variation_ratio)} of votes against"
        return (
            f"{self.uri} (x {x}, y {y}, w {w}, h {h}): mostly {self.class_name}{votes}, "
            f"mutual information {self.mutual_information:.3f}, expected entropy {self.expected_entropy:.3f}"
        )


@dataclass(frozen=True)
class DisagreementReport:
    """The list, and what it was taken from."""

    run_id: int
    model: str
    regions: int
    """Scored regions of the run."""
    found: int
    """Those that are confident but disagreeing; `rows` holds the first of them."""
    most_entropy: float
    least_information: float
    rows: list[DisagreeingRegion]

    def lines(self) -> Iterator[str]:
        """The list as text."""
        yield (
            f"Run {self.run_id} of {self.model}: {count(self.found)} of {count(self.regions)} regions "
            f"are confident but disagreeing (expected entropy up to {self.most_entropy:.3f}, mutual "
            f"information from {self.least_information:.3f}, the medians of the run)."
        )
        yield from (f"  {rank:4d}  {row.words()}" for rank, row in enumerate(self.rows, start=1))


def disagreements(
    project: Project, database: Database, *, limit: int = 20, progress: Progress = silent
) -> DisagreementReport:
    """The strongest cases of the serving model's newest finished run, from its stored region scores.

    Args:
        limit: rows of the list.

    Raises:
        UserError: nothing has been scored yet, or the scores are without samples.
    """
    with database.session(write=False) as session:
        model = models.promoted_model(session)
        run = newest_run(session, model.id, finished=True) if model is not None else None
        if model is None or run is None:
            raise UserError("The serving model has no finished scores yet.", "Run `segcurate score`.")

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
    names = project.config.data.class_names
    return DisagreementReport(
        run_id=run.id,
        model=model.name,
        regions=found.regions,
        found=found.found,
        most_entropy=found.most_entropy,
        least_information=found.least_information,
        rows=[_described(at[place], names) for place in found.strongest],
    )


def _described(row: scores.FoundRegion, class_names: list[str]) -> DisagreeingRegion:
    return DisagreeingRegion(
        image_id=row.image_id,
        uri=row.uri,
        region_index=row.region_index,
        box=(row.x, row.y, row.w, row.h),
        outline=row.outline,
        class_name=class_names[row.predicted_class],
        class_share=row.class_share,
        expected_entropy=row.expected_entropy or 0.0,
        mutual_information=row.mutual_information or 0.0,
        variation_ratio=row.variation_ratio,
    )
