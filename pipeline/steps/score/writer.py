"""From scored images to rows: a shard is written in one transaction when its last image has come."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures, runs, shards
from db.queries.shards import PlannedShard
from pipeline.config import LOGIT_MEASURES
from pipeline.data.image_info import ImageRef
from pipeline.data.input_range import InputRange, light
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.drawing.heatmaps import TWO_COLOUR, information_span, write_heatmap, write_two_colour
from pipeline.format import statistic_name
from pipeline.regions.sources import RegionFiles
from pipeline.steps.score.region_maps import record_maps
from pipeline.uncertainty.reduction import RegionColumns, keep_regions
from pipeline.uncertainty.scoring import ScoredImage

logger = logging.getLogger(__name__)

MOST_OUTLIERS = 1000
"""Images outside of the input range that the summary of a run lists."""


@dataclass
class _OpenShard:
    """A claimed shard: its images, those that are scored or unreadable so far, and the URIs of their maps."""

    shard: PlannedShard
    refs: dict[int, ImageRef]
    scored: list[ScoredImage] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    heatmaps: dict[int, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoringTotals:
    """Sums over what workers have scored; `+` adds those of several workers.

    Attributes:
        workers: names of the processes, as `pipeline.processes.this_process`.
        remarks: events for the report, such as a worker that has died.
    """

    images: int = 0
    regions: int = 0
    failed: int = 0
    outliers: list[dict[str, Any]] = field(default_factory=list)
    workers: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __add__(self, other: ScoringTotals) -> ScoringTotals:
        sums = (getattr(self, field.name) + getattr(other, field.name) for field in fields(ScoringTotals))
        return ScoringTotals(*sums)


@dataclass
class ShardWriter:
    """Collects scored images and commits each shard when its last image has come.

    `expect` is called before any image of its shard is read; everything else happens in the writer's thread.
    """

    project: Project
    database: Database
    run_id: int
    owner: str
    seen: InputRange | None
    maps: RegionFiles | None = None
    totals: ScoringTotals = field(init=False)
    _shard_of: dict[int, _OpenShard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.totals = ScoringTotals(workers=(self.owner,))

    def expect(self, shard: PlannedShard, refs: Sequence[ImageRef]) -> None:
        """Announce the images of a claimed shard; a shard without an image to score is done at once."""
        opened = _OpenShard(shard=shard, refs={ref.id: ref for ref in refs})
        self._shard_of.update(dict.fromkeys(opened.refs, opened))
        if not refs:
            self._commit(opened)

    def __call__(self, item: ScoredImage | Unreadable) -> None:
        opened = self._shard_of.pop(item.id)
        if isinstance(item, Unreadable):
            opened.unreadable.append(item)
        else:
            # Maps are written one image after the other: those of a shard would fill the memory
            opened.heatmaps[item.id] = write_heatmaps(self.project, self.run_id, item)
            opened.scored.append(replace(item, heatmaps={}))
        if len(opened.scored) + len(opened.unreadable) == len(opened.refs):
            self._commit(opened)

    def _commit(self, opened: _OpenShard) -> None:
        opened.scored.sort(key=lambda item: item.id)
        keep = self.project.config.scoring.keep_regions
        kept = [keep_regions(item.regions, keep) for item in opened.scored]
        heatmaps = [opened.heatmaps[item.id] or None for item in opened.scored]
        images = _columns([(item.id, item.image) for item in opened.scored])
        for region_only in ("region_index", "x", "y", "w", "h", "outline"):
            images.pop(region_only, None)
        images["regions"] = [len(item.regions.index) for item in opened.scored]
        images["heatmaps"] = heatmaps
        if opened.scored:
            images |= light(np.stack([item.pixels for item in opened.scored]))
        regions = _columns([(item.id, rows) for item, rows in zip(opened.scored, kept, strict=True)])
        uris = {ref.id: self.project.uri(ref.path) for ref in opened.refs.values()}
        maps = self.maps

        def write(session: Session) -> list[dict[str, Any]] | None:
            mine = shards.replace_shard(
                session,
                run_id=self.run_id,
                shard=opened.shard,
                owner=self.owner,
                image_ids=list(opened.refs),
                images=images,
                regions=regions,
            )
            if not mine:
                return None
            if maps is not None and opened.scored:
                versions = {item.id: maps.versions[item.id] for item in opened.scored}
                record_maps(self.project, self.run_id, versions)
            failures.clear_failures(session, "score", list(uris.values()))
            failures.record_failures(
                session, "score", [(uris[item.id], item.reason) for item in opened.unreadable]
            )
            return self._report_outliers(session, opened.scored, uris)

        outliers = self.database.transact(write)
        if outliers is None:
            logger.warning(
                "Images %d to %d of run %d were taken over by another worker.", *opened.shard, self.run_id
            )
            return
        if maps is not None:
            for image_id in opened.refs:
                maps.versions.pop(image_id, None)
        self.totals += ScoringTotals(
            images=len(opened.scored),
            regions=sum(len(rows.index) for rows in kept),
            failed=len(opened.unreadable),
            outliers=outliers,
        )

    def _report_outliers(
        self, session: Session, scored: Sequence[ScoredImage], uris: Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """Record the images far outside of the input range; of the whole run, the farthest are kept."""
        if self.seen is None or not scored:
            return []
        measured = self.seen.outliers(np.stack([item.pixels for item in scored]))
        found = [
            {"image_id": item.id, "uri": uris[item.id], **outlier}
            for item, outlier in zip(scored, measured, strict=True)
            if outlier is not None
        ]
        if found:
            before = runs.lock_summary(session, self.run_id).get("input_range", {})
            ids = {item["image_id"] for item in found}
            kept = [item for item in before.get("images", ()) if item["image_id"] not in ids]
            images = sorted([*kept, *found], key=lambda item: -item["times"])[:MOST_OUTLIERS]
            outside = before.get("outside", 0) - len(before.get("images", ())) + len(kept) + len(found)
            warning = (
                f"The pixels of {outside} image{'s lie' if outside > 1 else ' lies'} far outside of what "
                f"the model has seen; farthest {outlier_line(images[0])}."
            )
            runs.update_summary(
                session,
                self.run_id,
                input_range={"warning": warning, "outside": outside, "images": images},
            )
        return found


def outlier_line(item: dict[str, Any]) -> str:
    """Why an image lies far outside of the input range.

    >>> outlier_line(
    ...     {"uri": "a.tif", "statistic": "max", "channel": 0, "channels": 3}
    ...     | {"value": 15.0, "low": 0.5, "high": 1.0}
    ... )
    'a.tif: brightest value of red is 15.00, of the training images 0.50 to 1.00'
    """
    name = statistic_name(item["statistic"], item["channel"], item.get("channels"))
    return (
        f"{item['uri']}: {name} is {item['value']:.2f}, "
        f"of the training images {item['low']:.2f} to {item['high']:.2f}"
    )


def heatmap_folder(project: Project, run_id: int) -> Path:
    """Where the heat maps of a run are."""
    return project.workdir / "heatmaps" / str(run_id)


def write_heatmaps(project: Project, run_id: int, item: ScoredImage) -> dict[str, str]:
    """Write an image's heat maps.

    Returns:
        Their URIs by name.
    """
    folder = heatmap_folder(project, run_id)
    written = write_maps(folder, str(item.id), item.heatmaps)
    uris = {name: project.uri(path) for name, path in written.items()}
    if item.heatmaps and project.config.scoring.heatmaps.two_colour:
        entropy, information = (item.heatmaps[name] for name in ("expected_entropy", "mutual_information"))
        path = folder / f"{item.id}_{TWO_COLOUR}.png"
        span = information_span(information)
        write_two_colour(path, entropy, information, mutual_information_span=span)
        uris[TWO_COLOUR] = project.uri(path)
    return uris


def write_maps(folder: Path, stem: str, maps: Mapping[str, npt.NDArray[np.floating]]) -> dict[str, Path]:
    """Write maps [h, w] of one image as `<stem>_<name>.png`.

    Returns:
        Their paths by name.
    """
    written: dict[str, Path] = {}
    for name, values in maps.items():
        written[name] = folder / f"{stem}_{name}.png"
        low, high = _span(name, values)
        write_heatmap(written[name], values, measure=name, low=low, high=high)
    return written


def _span(name: str, values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """The ends of a heat map's scale: 0 to 1, so that maps compare, but for what would then be lost."""
    if name in LOGIT_MEASURES:  # no common bounds: the image's own values
        return float(values.min()), float(values.max())
    if name == "mutual_information":
        return 0.0, float(values.max())
    return 0.0, 1.0


def _columns(parts: list[tuple[int, RegionColumns]]) -> dict[str, npt.NDArray[Any] | Sequence[Any]]:
    """The columns of a score table for the regions of several images, in their order."""
    if not parts:
        return {}
    boxes = np.concatenate([rows.boxes for _, rows in parts])
    columns: dict[str, npt.NDArray[Any] | Sequence[Any]] = {
        "image_id": np.repeat([image_id for image_id, _ in parts], [len(rows.index) for _, rows in parts]),
        "region_index": np.concatenate([rows.index for _, rows in parts]),
        **dict(zip("xywh", boxes.T, strict=True)),
    }
    for name in ("pixels", "predicted_class", "class_share", "impurity", "entropy_top10"):
        columns[name] = np.concatenate([getattr(rows, name) for _, rows in parts])
    # Strata: of one model, which knows the shares of its classes or not
    for name in ("stratum", "stratum_share", "border"):
        if getattr(parts[0][1], name) is not None:
            columns[name] = np.concatenate([getattr(rows, name) for _, rows in parts])
    columns["outline"] = list(
        chain.from_iterable(rows.outlines or repeat(None, len(rows.index)) for _, rows in parts)
    )
    for measure in parts[0][1].measures:
        columns[measure] = np.concatenate([rows.measures[measure] for _, rows in parts])
    return columns
