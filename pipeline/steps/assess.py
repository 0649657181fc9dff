"""Assess: is the uncertainty any good? Every sampler and measure of a model, on held-out images.

Legend: C classes, M measures, H W image size, h w size of the maps, b blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from db.engine import Database
from db.queries import images as image_queries
from db.queries.evaluations import assessment_of, put_assessment
from db.tables import Model
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import Measure, ProjectConfig, Sampler
from pipeline.data.images import ImageRef
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.errors import DataError, UserError
from pipeline.evaluation.bootstrap import BlockBootstrap, blocks, bootstrap_weights
from pipeline.evaluation.frequency import fit_groups, frequency_test
from pipeline.evaluation.gate import judge
from pipeline.evaluation.parts import part_names
from pipeline.evaluation.quality import MOST_REGIONS, LabeledPixels, Quality, most_blocks, region_table
from pipeline.evaluation.quality_lines import report_lines
from pipeline.evaluation.quality_rows import (
    detection_rows,
    frequency_row,
    gate_row,
    novelty_row,
    novelty_rows,
    region_rows,
    reliability_rows,
)
from pipeline.evaluation.reliability import reliability_estimates
from pipeline.model.checkpoints import ModelCard, read_card
from pipeline.progress import Progress, silent
from pipeline.steps.held_out import judging_images
from pipeline.steps.served_model import chosen_model, offered_samplers, stored_calibrators
from pipeline.studies.constructed import ConstructedInputs, answers, measures_of
from pipeline.studies.held_out import HeldOut, LabeledBatch, read_held_out
from pipeline.studies.judged_regions import JudgedRegions
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.served_model import ServedModel, open_model

SEED = 0
"""Of the bootstrap, the shuffles and the noise, so that all models face the same inputs."""
NOVELTY_IMAGES = 30
"""Images that out-of-distribution inputs are made of, spread over the blocks."""
FEWEST_BLOCKS = 10
"""Below this number of blocks, the intervals come with a warning."""
GROUPING_IMAGES = 12
GROUPING_PIXELS = 2000
"""Other images, and pixels of each, that the groups of the frequency test are found on."""


@dataclass(frozen=True)
class AssessReport:
    """What an assessment found. `failed` holds files that could not be used, with the reason.

    Attributes:
        document: as it is stored, see `evaluation.quality_rows`.
    """

    model: str
    document: dict[str, Any]
    failed: list[tuple[str, str]]
    warnings: list[str]

    def lines(self) -> Iterator[str]:
        """The report as tables and in words."""
        yield from report_lines(self.model, self.document)
        for subject, reason in self.failed:
            yield f"not used: {subject}: {reason}"
        for warning in self.warnings:
            yield f"warning: {warning}"


@dataclass(frozen=True)
class _Subject:
    """A model with its samplers, and the images that judge it."""

    model: Model
    card: ModelCard
    split: str
    items: list[HeldOut]
    others: list[ImageRef]
    """Images to group predictions on."""
    calibrators: dict[Sampler, Calibrators]
    """Of each sampler that is judged."""
    novelty: dict[str, Any] | None


def assess(
    project: Project,
    database: Database,
    *,
    model: str | None = None,
    samplers: Sequence[Sampler] | None = None,
    most_images: int | None = None,
    progress: Progress = silent,
) -> AssessReport:
    """Ask of every sampler and measure: does it find the errors, rank the regions, notice novelty, and are
    its probabilities right? Store the answers in place of the model's former ones.

    The images are those of the test split, or of the calibration split where the test split has no mask. Each
    passes once through the trunk of each sampler; `none` is a by-product of another one.

    Args:
        model: its name; else the promoted one, or the newest where none is.
        samplers: instead of all that the model offers.
        most_images: no more images than these, spread evenly over the split.

    Raises:
        UserError: there is no such model or no held-out image with a mask, or a sampler is not offered.
        CheckpointError: the model, or a member of its ensemble, cannot be loaded.
    """
    subject = _subject(project, database, model, samplers, most_images)
    study = _Study(project, subject)
    study.run(progress)
    progress("Resampling", 0, None)
    document = study.document()
    with database.session() as session:
        put_assessment(session, model_id=subject.model.id, kind="quality", document=document)
    return AssessReport(
        model=subject.model.name,
        document=document,
        failed=study.failed,
        warnings=_warnings(document, subject),
    )


def _subject(
    project: Project,
    database: Database,
    name: str | None,
    samplers: Sequence[Sampler] | None,
    most_images: int | None,
) -> _Subject:
    with database.session(write=False) as session:
        model = chosen_model(session, name)
        card = read_card(project.path(model.checkpoint_uri))
        wanted = _wanted(project.config, card, samplers)
        split, items = judging_images(session, project)
        other_split = "calibration" if split == "test" else "pool"
        others = [project.ref(row) for row in image_queries.split_images(session, other_split)]
        calibrators: dict[Sampler, Calibrators] = {
            sampler: stored_calibrators(session, model.id, sampler=sampler) for sampler in wanted
        }
        novelty = assessment_of(session, model_id=model.id, kind="novelty")
        return _Subject(
            model=model,
            card=card,
            split=split,
            items=[items[place] for place in spread(len(items), most_images)],
            others=[others[place] for place in spread(len(others), GROUPING_IMAGES)],
            calibrators=calibrators,
            novelty=None if novelty is None else novelty.document,
        )


def _wanted(
    config: ProjectConfig, card: ModelCard, samplers: Sequence[Sampler] | None
) -> tuple[Sampler, ...]:
    offered = offered_samplers(config, card)
    for sampler in samplers or ():
        if sampler not in offered:
            raise UserError(
                f"The model does not offer the sampler `{sampler}`.",
                f"It offers {', '.join(offered)}; `model.heads` and `scoring.ensemble` add more.",
            )
    return tuple(sampler for sampler in offered if samplers is None or sampler in samplers)


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` of `count` places, evenly spaced.

    >>> spread(10, 3), spread(2, 3), spread(3, None)
    ([0, 4, 9], [0, 1], [0, 1, 2])
    """
    if most is None or most >= count:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


class _Study:
    """One pass over the images, and what is added up on it."""

    def __init__(self, project: Project, subject: _Subject) -> None:
        self.project = project
        self.config = project.config
        self.subject = subject
        self.failed: list[tuple[str, str]] = []
        self.models = _open_models(project, subject)
        self.predictors: dict[Sampler, Predictor] = {
            sampler: served.predictor for sampler, served in self.models.items()
        }
        self.measures: dict[Sampler, tuple[Measure, ...]] = {
            sampler: measures_of(sampler) for sampler in subject.calibrators
        }
        items = subject.items
        index = blocks(
            [item.group for item in items],
            [item.position for item in items],
            self.config.evaluation.block,
            most=most_blocks(
                measures=sum(map(len, self.measures.values())), num_classes=self.config.data.num_classes
            ),
        ).tolist()
        self.item_of = {item.ref.id: item for item in items}
        self.block_of = dict(zip(self.item_of, index, strict=True))
        self.blocks = max(index) + 1
        self.regions = JudgedRegions(project)
        self.images: dict[int, int] = dict.fromkeys(range(self.blocks), 0)
        """How many images of each block were used."""
        self.qualities: dict[Sampler, Quality] = {}
        self.constructed = ConstructedInputs(
            subject.card, self.measures, chosen=_spread_over_blocks(self.block_of, NOVELTY_IMAGES)
        )

    def run(self, progress: Progress) -> None:
        """Read every image once."""
        progress("Grouping predictions", 0, None)
        centroids = self._centroids()
        for sampler, measures in self.measures.items():
            self.qualities[sampler] = Quality(
                measures=measures,
                num_classes=self.config.data.num_classes,
                blocks=self.blocks,
                bins=self.config.evaluation.bins,
                centroids=centroids.get(sampler),
            )
        total = len(self.subject.items)
        done = 0
        served = next(iter(self.models.values()))
        for batch in read_held_out(self.subject.items, model=served, data=self.config.data):
            if isinstance(batch, Unreadable):
                self.failed.append((self.project.uri(batch.path), batch.reason))
                done += 1
            else:
                self._add(batch)
                done += len(batch.ids)
            progress("Judging images", done, total)
        if not any(self.images.values()):
            raise UserError(
                f"None of the {total} {self.subject.split} images can be used: {self.failed[0][1]}",
                "Put the files back, or give them masks and run `segcurate ingest`.",
            )

    def document(self) -> dict[str, Any]:
        """All numbers with their intervals, as they are stored."""
        used = [block for block, images in self.images.items() if images]
        bootstrap = self._bootstrap(len(used))
        parts = part_names(self.config.data.class_names)
        detection: list[dict[str, Any]] = []
        regions: list[dict[str, Any]] = []
        reliability: list[dict[str, Any]] = []
        frequency: list[dict[str, Any]] = []
        for sampler, quality in self.qualities.items():
            quality.keep_blocks(used)
            detection += detection_rows(sampler, quality.detection(bootstrap), parts)
            regions += region_rows(sampler, quality.rank_correlations(bootstrap))
            for calibrated, tables in zip((False, True), quality.reliability, strict=True):
                found = reliability_estimates(tables, bootstrap=bootstrap)
                reliability += reliability_rows(sampler, found, parts, calibrated=calibrated)
            if quality.centroids is not None:
                groups = frequency_test(quality.frequency, bootstrap=bootstrap)
                frequency.append(frequency_row(sampler, groups))
        novelty = self.constructed.rows(self._bootstrap)
        stored = {"novelty": [novelty_row(row) for row in novelty]}
        novelty = novelty_rows(stored, self.subject.novelty)
        gate = judge(novelty, sampler=self._gated_sampler(), threshold=self.config.evaluation.gate)
        return {
            "split": self.subject.split,
            "images": sum(self.images.values()),
            "blocks": len(used),
            "confidence": self.config.evaluation.confidence,
            "boundary_pixels": self.config.evaluation.boundary,
            "detection": detection,
            "regions": regions,
            "reliability": reliability,
            "frequency": frequency,
            "novelty": [novelty_row(row) for row in novelty],
            "gate": gate_row(gate),
        }

    def _add(self, batch: LabeledBatch) -> None:
        device = next(iter(self.predictors.values())).device
        size = (batch.label.shape[-2], batch.label.shape[-1])
        labels = batch.label.to(device)
        pixels: dict[int, LabeledPixels] = {}
        rows: dict[int, dict[str, Tensor]] = {}
        for place, image_id in enumerate(batch.ids):
            try:
                found = self.regions.of_image(self.item_of[image_id])
            except DataError as error:
                self.failed.append((self.project.uri(self.item_of[image_id].ref.path), str(error)))
                continue
            rows[place] = {kind: torch.from_numpy(of_kind).to(device) for kind, of_kind in found.items()}
            pixels[place] = LabeledPixels.of(
                labels[place],
                num_classes=self.config.data.num_classes,
                boundary=self.config.evaluation.boundary,
            )
            self.images[self.block_of[image_id]] += 1
        for sampler, _, plain, calibrated in answers(self.predictors, self.measures, batch.image):
            maps = calibrated.measures()
            stacked = torch.stack([maps[name] for name in self.measures[sampler]], dim=1)
            for place, of_image in pixels.items():
                part = slice(place, place + 1)
                values_MHW, probability, uncalibrated = (
                    calibrated.at(tensor[part], size)[0]
                    for tensor in (stacked, calibrated.probability, plain.probability)
                )
                measures: dict[str, Tensor] = dict(zip(self.measures[sampler], values_MHW, strict=True))
                block = self.block_of[batch.ids[place]]
                quality = self.qualities[sampler]
                quality.add(
                    block,
                    of_image,
                    measures=measures,
                    probability_CHW=probability,
                    uncalibrated_CHW=uncalibrated,
                )
                predicted = probability.argmax(dim=0)
                segments = torch.from_numpy(self.regions.of_prediction(predicted.cpu().numpy())).to(device)
                for kind, row_HW in {**rows[place], "segment": segments}.items():
                    table = region_table(
                        row_HW,
                        measures,
                        predicted != labels[place],
                        of_image.valid,
                        most=max(1, MOST_REGIONS // len(self.subject.items)),
                        generator=np.random.default_rng([SEED, batch.ids[place]]),
                    )
                    quality.add_regions(block, kind, table)
            self.constructed.add_known(sampler, maps, batch.ids, self.block_of)
        self.constructed.add_novel(self.predictors, batch, self.block_of)

    def _centroids(self) -> dict[Sampler, Tensor]:
        """Of each sampler, from predictions on images that are not judged; empty without such images."""
        drawn: dict[Sampler, list[npt.NDArray[np.float64]]] = {}
        for batch in next(iter(self.models.values())).batches(self.subject.others):
            if isinstance(batch, Unreadable):
                continue
            for sampler, _, _, calibrated in answers(self.predictors, self.measures, batch.image_BKHW):
                for image_id, probability_Chw in zip(batch.ids, calibrated.probability, strict=True):
                    vectors = probability_Chw.flatten(1).T.double().cpu().numpy()
                    generator = np.random.default_rng([SEED, image_id])
                    some = generator.permutation(len(vectors))[:GROUPING_PIXELS]
                    drawn.setdefault(sampler, []).append(vectors[some])
        device = next(iter(self.predictors.values())).device
        centroids: dict[Sampler, Tensor] = {
            sampler: torch.from_numpy(fit_groups(np.concatenate(vectors), seed=SEED)).float().to(device)
            for sampler, vectors in drawn.items()
        }
        return centroids

    def _bootstrap(self, count: int) -> BlockBootstrap:
        evaluation = self.config.evaluation
        weights = bootstrap_weights(count, resamples=evaluation.resamples, seed=SEED)
        return BlockBootstrap(weights, evaluation.confidence)

    def _gated_sampler(self) -> Sampler:
        """The sampler that scores, or the first one that could give mutual information."""
        sampled: list[Sampler] = [sampler for sampler in self.measures if sampler != "none"]
        scoring = self.config.scoring.sampler
        return scoring if scoring in sampled or not sampled else sampled[0]


def _open_models(project: Project, subject: _Subject) -> dict[Sampler, ServedModel]:
    """A predictor a sampler; `none` is a by-product of any other one."""
    wanted: list[Sampler] = [sampler for sampler in subject.calibrators if sampler != "none"]
    models: dict[Sampler, ServedModel] = {
        sampler: open_model(
            project,
            subject.model.checkpoint_uri,
            calibrators=subject.calibrators[sampler],
            sampler=sampler,
        )
        for sampler in wanted or ("none",)
    }
    return models


def _spread_over_blocks(block_of: Mapping[int, int], most: int) -> set[int]:
    """At most so many images, each block giving one before any gives a second."""
    turns: Counter[int] = Counter()
    order: list[tuple[int, int, int]] = []
    for image_id, block in block_of.items():
        order.append((turns[block], block, image_id))
        turns[block] += 1
    return {image_id for _, _, image_id in sorted(order)[:most]}


def _warnings(document: Mapping[str, Any], subject: _Subject) -> list[str]:
    warnings: list[str] = []
    if document["blocks"] < FEWEST_BLOCKS:
        warnings.append(
            f"{document['images']} images in {document['blocks']} independent blocks: "
            "the intervals are rough."
        )
    uncalibrated = [
        sampler
        for sampler, pair in subject.calibrators.items()
        if (pair.deterministic if sampler == "none" else pair.sampled).name == "identity"
    ]
    if uncalibrated:
        warnings.append(f"Not calibrated: {', '.join(uncalibrated)}. Their confidence is a softmax score.")
    if subject.split == "calibration":
        warnings.append("The calibrators were fitted on the images that judge them here: ECE is optimistic.")
    return warnings
