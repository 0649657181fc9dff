"""Scoring the pool with the serving model: what this scorer has not scored yet, a shard a transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images as image_queries
from db.queries import rounds as round_queries
from db.queries import scores as queries
from db.queries.scores import PlannedShard
from db.tables import ScoringRun
from pipeline import rounds
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import SAMPLED_MEASURES, Project, RegionConfig, ScoringConfig, content_hash
from pipeline.data.images import ImageRef
from pipeline.data.input_range import InputRange
from pipeline.data.loading import Unreadable
from pipeline.errors import ConfigError, UserError
from pipeline.model.checkpoints import ModelCard
from pipeline.progress import Progress, silent
from pipeline.scoring import ScoredImage, score_images
from pipeline.steps.drift import watch_drift
from pipeline.steps.reordering import in_words as reordering_in_words
from pipeline.steps.reordering import measure_reordering
from pipeline.steps.serving import open_predictor, stored_calibrators
from pipeline.uncertainty.heatmaps import TWO_COLOUR, information_span, write_heatmap, write_two_colour
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.reduction import RegionColumns, keep_regions
from pipeline.uncertainty.region_sources import RegionFiles, region_source
from pipeline.uncertainty.samplers import Member

FROM_LOGITS = ("energy", "max_logit", "max_logit_norm")
"""Measures without bounds: their heat maps span the image's own values."""

_REGION_KEYS = {
    "grid": ("cell",),
    "superpixel": ("cell", "compactness"),
    "segment": ("cell", "smallest"),
    "file": ("folder", "template"),
    "image": (),
}
"""The settings that regions of a kind depend on. The maps of `file` do not count: a new image has a new one,
and must not make all others wait for their scores."""
MOST_OUTLIERS = 1000
"""Images outside of the input range that a run keeps the names of."""
MOST_SHOWN = 10


@dataclass(frozen=True)
class ScoreReport:
    """What one call of `score` did. `images` and `regions` are new; `failed` could not be read."""

    images: int
    regions: int
    failed: int
    seconds: float
    run_id: int
    drift: str | None = None
    """A warning, where the new images differ from what was seen before."""
    reordering: dict[str, Any] | None = None
    """How far calibration reorders the queue, as `scoring_run.summary` has it."""
    outliers: list[dict[str, Any]] = field(default_factory=list)
    """Images whose pixels lie far outside of what the model has seen, as `scoring_run.summary` lists them."""

    def lines(self) -> list[str]:
        """The report in words."""
        if self.images == 0 and self.failed == 0:
            return [f"Run {self.run_id}: nothing is left to score."]
        rate = self.images / self.seconds if self.seconds else 0.0
        said = [
            f"Run {self.run_id}: scored {self.images} images, {self.regions} regions, "
            f"in {self.seconds:.1f} s ({rate:.1f} images/s)."
        ]
        if self.failed:
            said.append(f"{self.failed} images could not be read: `segcurate failures` says why.")
        if self.reordering is not None:
            said.append(reordering_in_words(self.reordering))
        if self.outliers:
            said.append(
                f"warning: the pixels of {len(self.outliers)} images lie far outside of what the model has "
                "seen, and their scores mean little:"
            )
            said.extend(f"  {outlier_in_words(item)}" for item in self.outliers[:MOST_SHOWN])
        if self.drift is not None:
            said.append(f"warning: {self.drift}")
        return said


def score(project: Project, database: Database, *, progress: Progress = silent) -> ScoreReport:
    """Score every pool image that this scorer has not scored yet; killed and run again, it goes on.

    Images of other splits, duplicates, and images with a label that covers them whole are not scored. A file
    that cannot be read is recorded with its reason, and tried again by the next call. An image whose region
    map has changed since it was scored is scored again.

    Raises:
        NotYourTurn: another step comes next.
        UserError: there is no serving model, or it cannot be loaded, or the disk is full.
    """
    started = time.monotonic()
    scoring = project.config.scoring
    _check_heatmaps(scoring)
    with database.session() as session:
        rounds.require(session, "score")
        model = round_queries.promoted_model(session)
        if model is None:
            raise UserError("No model has been promoted yet.", "Run `segcurate evaluate`.")
        calibrators = stored_calibrators(session, model.id, sampler=scoring.sampler)
    predictor, card = open_predictor(project, model, calibrators=calibrators, for_scores=True)
    scorer = describe_scorer(scoring, card=card, calibrators=calibrators, members=predictor.members)
    source = region_source(project, scoring.regions)
    with database.session() as session:
        run = queries.open_run(session, model_id=model.id, scorer_hash=content_hash(scorer), scorer=scorer)
        if isinstance(source, RegionFiles):
            redrawn = _redrawn_images(session, project, source, run_id=run.id)
            queries.forget_scores(session, run_id=run.id, image_ids=redrawn)
        total = queries.plan_shards(session, run_id=run.id, shard_images=scoring.shard_images)
    writer = _ShardWriter(project=project, database=database, run_id=run.id, seen=card.input_range)
    score_images(
        _pending_images(project, database, writer),
        predictor=predictor,
        card=card,
        scoring=scoring,
        max_pixels=project.config.data.max_pixels,
        sink=writer,
        regions=source,
        heatmaps=scoring.heatmaps if scoring.heatmaps.images == "all" else None,
        total=total,
        progress=progress,
    )
    heatmaps = _top_heatmaps(project, database, predictor, card, run_id=run.id)
    drift = watch_drift(project, database, run_id=run.id, predictor=predictor, card=card)
    reordering = measure_reordering(project, database, run_id=run.id, predictor=predictor, card=card)
    with database.session() as session:
        current = rounds.require(session, "score")
        queries.set_heatmaps(session, run_id=run.id, heatmaps=heatmaps)
        queries.finish_run(session, run_id=run.id)
        rounds.advance(session, current, "score")
    return ScoreReport(
        images=writer.images,
        regions=writer.regions,
        failed=writer.failed,
        seconds=time.monotonic() - started,
        run_id=run.id,
        drift=drift["warning"] if drift else None,
        reordering=reordering,
        outliers=writer.outliers,
    )


def outlier_in_words(item: dict[str, Any]) -> str:
    """Why an image lies far outside of the input range.

    >>> outlier_in_words(
    ...     {"uri": "a.tif", "statistic": "max", "channel": 1, "value": 15.0, "low": 0.5, "high": 1.0}
    ... )
    'a.tif: max of channel 1 is 15.00, of the training images 0.50 to 1.00'
    """
    return (
        f"{item['uri']}: {item['statistic']} of channel {item['channel']} is {item['value']:.2f}, "
        f"of the training images {item['low']:.2f} to {item['high']:.2f}"
    )


def describe_scorer(
    scoring: ScoringConfig, *, card: ModelCard, calibrators: Calibrators, members: Sequence[Member] = ()
) -> dict[str, Any]:
    """All that a score depends on. Its content hash is the provenance of each row.

    Args:
        members: the other networks, with the sampler `ensemble`.
    """
    calibrator = calibrators.deterministic
    document: dict[str, Any] = {
        "weights": card.weights_sha256,
        "mean": card.mean,
        "std": card.std,
        "input_scale": card.input_scale,
        "sampler": scoring.sampler,
        "calibrator": {"name": calibrator.name, **calibrator.parameters},
        "regions": scoring.regions.model_dump(
            mode="json", include={"kind", *_REGION_KEYS[scoring.regions.kind]}
        ),
        "keep_regions": scoring.keep_regions,
        "resolution": scoring.resolution,
        "tile": scoring.tile,
        "overlap": scoring.overlap,
    }
    if scoring.sampler != "none":
        sampled = calibrators.sampled
        document["sampled_calibrator"] = {"name": sampled.name, **sampled.parameters}
    if scoring.sampler == "mc_dropout":
        document["dropout"] = card.model.dropout
        document["placement"] = card.model.placement
        document["samples"] = scoring.samples
        document["seed"] = scoring.seed
    if scoring.sampler == "tta":
        document["views"] = scoring.views.model_dump(mode="json")
    if scoring.sampler == "head_ensemble":
        document["heads"] = card.model.heads
    if scoring.sampler == "ensemble":
        document["members"] = [
            {"weights": member.weights, "input_scale": member.input_scale}
            | {"mean": list(member.normalisation.mean), "std": list(member.normalisation.std)}
            for member in members
        ]
    return document


def _redrawn_images(session: Session, project: Project, source: RegionFiles, *, run_id: int) -> list[int]:
    """The images of a run whose region maps are newer than their scores."""
    redrawn: list[int] = []
    for image_id, uri, scored_at in queries.scoring_times(session, run_id=run_id):
        path = source.path(project.path(uri))
        if path.is_file() and path.stat().st_mtime > scored_at.timestamp():
            redrawn.append(image_id)
    return redrawn


@dataclass
class _OpenShard:
    """A shard on its way: what it waits for, and what has come."""

    shard: PlannedShard
    refs: dict[int, ImageRef]
    scored: list[ScoredImage] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


class _ShardWriter:
    """Collects scored images and commits each shard when its last image has come.

    `expect` is called before any image of its shard is read; everything else happens in the writer's thread.
    """

    def __init__(self, *, project: Project, database: Database, run_id: int, seen: InputRange | None) -> None:
        self.project = project
        self.database = database
        self.run_id = run_id
        self.seen = seen
        self.images = self.regions = self.failed = 0
        self.outliers: list[dict[str, Any]] = []
        self._shard_of: dict[int, _OpenShard] = {}

    def expect(self, shard: PlannedShard, refs: Sequence[ImageRef]) -> None:
        """Announce the images of a shard."""
        opened = _OpenShard(shard=shard, refs={ref.id: ref for ref in refs})
        self._shard_of.update(dict.fromkeys(opened.refs, opened))

    def __call__(self, item: ScoredImage | Unreadable) -> None:
        opened = self._shard_of.pop(item.id)
        if isinstance(item, Unreadable):
            opened.unreadable.append(item)
        else:
            opened.scored.append(item)
        if len(opened.scored) + len(opened.unreadable) == len(opened.refs):
            self._commit(opened)

    def _commit(self, opened: _OpenShard) -> None:
        opened.scored.sort(key=lambda item: item.id)
        keep = self.project.config.scoring.keep_regions
        kept = [keep_regions(item.regions, keep) for item in opened.scored]
        heatmaps = [write_heatmaps(self.project, self.run_id, item) or None for item in opened.scored]
        images = _columns([(item.id, item.image) for item in opened.scored])
        for region_only in ("region_index", "x", "y", "w", "h", "outline"):
            images.pop(region_only, None)
        images["regions"] = [len(item.regions.index) for item in opened.scored]
        images["heatmaps"] = heatmaps
        regions = _columns([(item.id, rows) for item, rows in zip(opened.scored, kept, strict=True)])
        uris = {ref.id: self.project.uri(ref.path) for ref in opened.refs.values()}
        with self.database.session() as session:
            queries.replace_shard(
                session,
                run_id=self.run_id,
                shard=opened.shard,
                image_ids=list(opened.refs),
                images=images,
                regions=regions,
            )
            image_queries.clear_failures(session, "score", list(uris.values()))
            image_queries.record_failures(
                session, "score", [(uris[item.id], item.reason) for item in opened.unreadable]
            )
            self.outliers.extend(self._report_outliers(session, opened.scored, uris))
        self.images += len(opened.scored)
        self.regions += sum(len(rows.index) for rows in kept)
        self.failed += len(opened.unreadable)

    def _report_outliers(
        self, session: Session, scored: Sequence[ScoredImage], uris: Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """Write down which images lie far outside of the input range: of all, the farthest."""
        if self.seen is None or not scored:
            return []
        judged = self.seen.outliers(np.stack([item.pixels for item in scored]))
        found = [
            {"image_id": item.id, "uri": uris[item.id], **outlier}
            for item, outlier in zip(scored, judged, strict=True)
            if outlier is not None
        ]
        if found:
            before = (session.get_one(ScoringRun, self.run_id).summary or {}).get("input_range", {})
            ids = {item["image_id"] for item in found}
            kept = [item for item in before.get("images", ()) if item["image_id"] not in ids]
            images = sorted([*kept, *found], key=lambda item: -item["times"])[:MOST_OUTLIERS]
            outside = before.get("outside", 0) - len(before.get("images", ())) + len(kept) + len(found)
            warning = (
                f"The pixels of {outside} image{'s lie' if outside > 1 else ' lies'} far outside of what "
                f"the model has seen; farthest {outlier_in_words(images[0])}."
            )
            queries.update_summary(
                session,
                self.run_id,
                input_range={"warning": warning, "outside": outside, "images": images},
            )
        return found


def write_heatmaps(project: Project, run_id: int, item: ScoredImage) -> dict[str, str]:
    """Write an image's heat maps.

    Returns:
        Their URIs by name.
    """
    uris: dict[str, str] = {}
    for name, values in item.heatmaps.items():
        path = project.workdir / "heatmaps" / str(run_id) / f"{item.id}_{name}.png"
        low, high = _span(name, values)
        write_heatmap(path, values, measure=name, low=low, high=high)
        uris[name] = project.uri(path)
    if item.heatmaps and project.config.scoring.heatmaps.two_colour:
        entropy, information = (item.heatmaps[name] for name in ("expected_entropy", "mutual_information"))
        path = project.workdir / "heatmaps" / str(run_id) / f"{item.id}_{TWO_COLOUR}.png"
        span = information_span(information)
        write_two_colour(path, entropy, information, mutual_information_span=span)
        uris[TWO_COLOUR] = project.uri(path)
    return uris


def _span(name: str, values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The ends of a heat map's scale: 0 to 1, so that maps compare, but for what would then be lost."""
    if name in FROM_LOGITS:
        return float(values.min()), float(values.max())
    if name == "mutual_information":
        return 0.0, float(values.max())
    return 0.0, 1.0


def _pending_images(project: Project, database: Database, writer: _ShardWriter) -> Iterator[ImageRef]:
    """The images of the planned shards, read shard by shard."""
    with database.session(write=False) as session:
        shards = queries.pending_shards(session, run_id=writer.run_id)
    for shard in shards:
        with database.session(write=False) as session:
            found = queries.unscored_images(
                session,
                run_id=writer.run_id,
                after_id=shard.first - 1,
                last_id=shard.last,
                limit=project.config.scoring.shard_images,
            )
        refs = [
            ImageRef(id=row.id, path=project.path(row.uri), width=row.width, height=row.height)
            for row in found
        ]
        if refs:
            writer.expect(shard, refs)
            yield from refs


def _top_heatmaps(
    project: Project, database: Database, predictor: Predictor, card: ModelCard, *, run_id: int
) -> dict[int, dict[str, str]]:
    """Heat maps of the most uncertain images that have none yet: URIs by name, by image id."""
    scoring = project.config.scoring
    if scoring.heatmaps.images != "top":
        return {}
    with database.session(write=False) as session:
        top = queries.top_images(session, run_id=run_id, limit=scoring.heatmaps.top)
    wanted: set[str] = set(scoring.heatmaps.maps)
    if scoring.heatmaps.two_colour:
        wanted.add(TWO_COLOUR)
    if scoring.heatmaps.per_class:
        prefix = predictor.calibrators.class_map
        wanted |= {f"{prefix}_{index}" for index in range(len(card.class_names))}
    refs = [
        ImageRef(id=row.id, path=project.path(row.uri), width=row.width, height=row.height)
        for row, uris in top
        if not wanted <= set(uris or {})
        or not all(project.path(uri).is_file() for uri in (uris or {}).values())
    ]
    written: dict[int, dict[str, str]] = {}

    def sink(item: ScoredImage | Unreadable) -> None:
        if isinstance(item, ScoredImage):
            written[item.id] = write_heatmaps(project, run_id, item)

    score_images(
        refs,
        predictor=predictor,
        card=card,
        scoring=scoring.model_copy(update={"regions": RegionConfig(kind="image")}),
        max_pixels=project.config.data.max_pixels,
        sink=sink,
        heatmaps=scoring.heatmaps,
    )
    return written


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
    columns["outline"] = list(
        chain.from_iterable(rows.outlines or repeat(None, len(rows.index)) for _, rows in parts)
    )
    for measure in parts[0][1].measures:
        columns[measure] = np.concatenate([rows.measures[measure] for _, rows in parts])
    return columns


def _check_heatmaps(scoring: ScoringConfig) -> None:
    missing = SAMPLED_MEASURES & set(scoring.heatmaps.maps)
    if scoring.sampler == "none" and missing and scoring.heatmaps.images != "none":
        raise ConfigError(
            f"`scoring.heatmaps` asks for {', '.join(sorted(missing))}, which needs samples.",
            "Set `scoring.sampler: mc_dropout`, or take it out of `measures` and `two_colour`.",
        )
