"""The pool, scored by a run or not at all, read block by block, without what is queued or labeled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from db.engine import Database
from db.queries import candidates as candidate_queries
from db.queries.queue_items import TakenRegions
from db.tables import ScoringRun
from pipeline.acquisition.candidates import NOT_PREDICTED, Candidates
from pipeline.acquisition.exclusion import taken
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import RegionConfig, SelectionConfig
from pipeline.errors import UserError
from pipeline.regions.shapes import region_boxes

PAGE_IMAGES = 5_000
BLOCK_REGIONS = 25_000
"""The most regions of a block, unless one image has more."""


class Pool:
    """The candidates of a queue in blocks. `read` as often as needed: each time the same.

    Memory: a block, the groups' names, and the regions that are taken.

    Args:
        closed: regions that are queued or labeled, by image.
    """

    def __init__(self, database: Database, config: SelectionConfig, closed: TakenRegions) -> None:
        self._database = database
        self._config = config
        self._closed = closed
        self._codes: dict[str, int] = {}
        self.found = 0
        """Candidates of the last reading, those that are queued or labeled included."""

    @property
    def group_names(self) -> list[str]:
        """By the group's number, of the images that were read."""
        return list(self._codes)

    def read(self) -> Iterator[Candidates]:
        """The candidates by image.

        Raises:
            UserError: the strategy cannot rank them.
        """
        self.found = 0
        for everything in self._blocks():
            self.found += len(everything)
            left = everything.where(~self._taken(everything))
            self._check(left)
            yield left

    def _blocks(self) -> Iterator[Candidates]:
        """All candidates, in blocks of at most `BLOCK_REGIONS`, or of one image with more."""
        raise NotImplementedError

    def _check(self, left: Candidates) -> None:
        """Refuse candidates that the strategy cannot rank."""

    @property
    def _most(self) -> int:
        return BLOCK_REGIONS if self._config.unit == "region" else PAGE_IMAGES

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


class ScoredPool(Pool):
    """The candidates that a scoring run has scored."""

    def __init__(
        self, database: Database, run: ScoringRun, config: SelectionConfig, closed: TakenRegions
    ) -> None:
        super().__init__(database, config, closed)
        self._run_id = run.id
        self._measure = STRATEGIES[config.strategy].measure
        self._outlines = run.scorer.get("regions", {}).get("kind", "grid") not in ("grid", "image")
        with database.session(write=False) as session:
            self._last_id = candidate_queries.last_eligible(session, run_id=run.id)

    def _blocks(self) -> Iterator[Candidates]:
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
            for start, stop in _parts(page.regions, self._most):
                yield self._block(page.part(start, stop))

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
        return Candidates(
            image_id=images.id,
            group=images.group,
            position=images.position,
            regions=images.regions,
            image=np.searchsorted(images.id, columns.pop("image_id")),
            **columns,
        )

    def _check(self, left: Candidates) -> None:
        """Raises a UserError where the run lacks the measure that the strategy ranks by, or its cost."""
        if (
            self._config.cost_power
            and self._measure is not None
            and left.border is not None
            and np.isnan(left.border).any()
        ):
            raise UserError(
                "The newest scores were computed by an earlier version, without the length of predicted "
                "borders, which `selection.cost_power` divides by.",
                "Run `segcurate score`, or set `selection.cost_power: 0`.",
            )
        if left.score is not None and not np.isfinite(left.score).all():
            raise UserError(
                f"The newest scoring run has no `{self._measure}`, which "
                f"`selection.strategy: {self._config.strategy}` ranks by.",
                "Set `scoring.sampler: mc_dropout` and run `segcurate score`, or choose another strategy.",
            )


class UnscoredPool(Pool):
    """The candidates before there is a model: the cells of a grid, or whole images, without any score.

    Args:
        regions: `grid` or `image`.
    """

    def __init__(
        self, database: Database, regions: RegionConfig, config: SelectionConfig, closed: TakenRegions
    ) -> None:
        super().__init__(database, config, closed)
        self._regions = regions
        with database.session(write=False) as session:
            self._last_id = candidate_queries.last_image(session)

    def _blocks(self) -> Iterator[Candidates]:
        after_id = 0
        while True:
            with self._database.session(write=False) as session:
                page = candidate_queries.unscored_images(
                    session, after_id=after_id, last_id=self._last_id, limit=PAGE_IMAGES, codes=self._codes
                )
            if len(page) == 0:
                return
            after_id = int(page.id[-1])
            boxes = [
                region_boxes(self._regions, width, height)
                for width, height in zip(page.width.tolist(), page.height.tolist(), strict=True)
            ]
            counts = np.array([len(of_image) for of_image in boxes], dtype=np.int32)
            for start, stop in _parts(counts, self._most):
                yield self._block(page, start, stop, boxes=boxes[start:stop], counts=counts[start:stop])

    def _block(
        self,
        page: candidate_queries.UnscoredImages,
        start: int,
        stop: int,
        *,
        boxes: list[npt.NDArray[np.int32]],
        counts: npt.NDArray[np.int32],
    ) -> Candidates:
        rows, total = slice(start, stop), int(counts.sum())
        whole = self._regions.kind == "image"
        index = (
            np.full(total, candidate_queries.WHOLE_IMAGE, dtype=np.int32)
            if whole
            else np.concatenate([np.arange(size, dtype=np.int32) for size in counts.tolist()])
        )
        nothing = np.full(total, NOT_PREDICTED, dtype=np.int16)
        none = np.zeros(total, dtype=np.float32)
        return Candidates(
            image_id=page.id[rows],
            group=page.group[rows],
            position=page.position[rows],
            regions=counts,
            image=np.repeat(np.arange(stop - start), counts),
            region_index=index,
            box=np.concatenate(boxes),
            predicted_class=nothing,
            class_share=none,
            stratum=nothing,
            stratum_share=none,
            impurity=none,
        )


def _parts(regions: npt.NDArray[np.int32], most: int) -> Iterator[tuple[int, int]]:
    """Consecutive images from the first to the second number, with at most `most` regions together, or one
    image with more."""
    ends = np.cumsum(regions)
    start = 0
    while start < len(regions):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop
        start = stop
