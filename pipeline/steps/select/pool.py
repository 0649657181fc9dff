"""The scored pool of a run, read block by block, without the regions that are queued or labeled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from db.engine import Database
from db.queries import candidates as candidate_queries
from db.queries.queue_items import TakenRegions
from db.tables import ScoringRun
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.exclusion import taken
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import SelectionConfig
from pipeline.errors import UserError

PAGE_IMAGES = 5_000
BLOCK_REGIONS = 25_000
"""The most regions of a block, unless one image has more."""


class ScoredPool:
    """The candidates of a run in blocks. `read` as often as needed: each time the same.

    Memory: a block, the groups' names, and the regions that are taken.

    Args:
        closed: regions that are queued or labeled, by image.
    """

    def __init__(
        self, database: Database, run: ScoringRun, config: SelectionConfig, closed: TakenRegions
    ) -> None:
        self._database = database
        self._run_id = run.id
        self._config = config
        self._closed = closed
        self._measure = STRATEGIES[config.strategy].measure
        self._outlines = run.scorer.get("regions", {}).get("kind", "grid") not in ("grid", "image")
        self._codes: dict[str, int] = {}
        self.scored = 0
        """Candidates of the last reading, those that are queued or labeled included."""
        with database.session(write=False) as session:
            self._last_id = candidate_queries.last_eligible(session, run_id=run.id)

    @property
    def group_names(self) -> list[str]:
        """By the group's number, of the images that were read."""
        return list(self._codes)

    def read(self) -> Iterator[Candidates]:
        """The candidates by image.

        Raises:
            UserError: the run lacks the measure that the strategy ranks by.
        """
        self.scored = 0
        after_id = 0
        while True:
            with self._database.session(write=False) as session:
                page = candidate_queries.eligible_images(
                    session,
                    run_id=self._run_id,
                    after_id=after_id,
                    last_id=self._last_id,
                    limit=PAGE_IMAGES,
                    codes=self._codes,
                )
            if len(page) == 0:
                return
            after_id = int(page.id[-1])
            for images in _blocks(page, BLOCK_REGIONS if self._config.unit == "region" else PAGE_IMAGES):
                yield self._block(images)

    def _block(self, images: candidate_queries.ImageColumns) -> Candidates:
        with self._database.session(write=False) as session:
            if self._config.unit == "region":
                columns = candidate_queries.region_candidates(
                    session,
                    run_id=self._run_id,
                    images=images,
                    measure=self._measure,
                    outlines=self._outlines,
                )
            else:
                columns = candidate_queries.image_candidates(
                    session, run_id=self._run_id, images=images, measure=self._measure
                )
        everything = Candidates(
            image_id=images.id,
            group=images.group,
            position=images.position,
            regions=images.regions,
            image=np.searchsorted(images.id, columns.pop("image_id")),
            **columns,
        )
        self.scored += len(everything)
        left = everything.where(~self._taken(everything))
        if left.score is not None and not np.isfinite(left.score).all():
            raise UserError(
                f"The newest scoring run has no `{self._measure}`, which "
                f"`selection.strategy: {self._config.strategy}` ranks by.",
                "Set `scoring.sampler: mc_dropout` and run `segcurate score`, or choose another strategy.",
            )
        return left

    def _taken(self, candidates: Candidates) -> npt.NDArray[np.bool_]:
        """Which candidates are queued or labeled."""
        closed, ids = self._closed, candidates.image_id
        near = slice(
            int(np.searchsorted(closed.image_id, ids[0])),
            int(np.searchsorted(closed.image_id, ids[-1], side="right")),
        )
        known = np.isin(closed.image_id[near], ids)
        outline = closed.outline[near][known]
        return taken(
            candidates.image,
            candidates.box,
            np.searchsorted(ids, closed.image_id[near][known]),
            closed.box[near][known],
            pixels=candidates.pixels,
            outline=candidates.outline,
            taken_outline=outline if outline.any() else None,
        )


def _blocks(page: candidate_queries.ImageColumns, most: int) -> Iterator[candidate_queries.ImageColumns]:
    """Consecutive images with at most `most` regions together, or one image with more."""
    ends = np.cumsum(page.regions)
    start = 0
    while start < len(page):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield page.part(start, stop)
        start = stop
