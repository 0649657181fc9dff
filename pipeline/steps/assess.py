"""Assess: how good is the uncertainty of a model, with every sampler and measure, on held-out images?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.engine import Database
from db.queries import images as image_queries
from db.queries.evaluations import assessment_of, put_assessment
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import ProjectConfig, Sampler
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.quality_lines import report_lines
from pipeline.format import few_units
from pipeline.model.checkpoints import ModelCard, read_card
from pipeline.progress import Progress, notes, silent
from pipeline.steps.held_out import assessed_images, none_usable
from pipeline.steps.ready import chosen_model
from pipeline.steps.served_model import offered_samplers, sampler_calibrators
from pipeline.studies.held_out import spread
from pipeline.studies.quality import QualityStudy
from pipeline.uncertainty.served_model import open_samplers

FEWEST_UNITS = 10
"""Below this number of independent units, the intervals come with a warning."""
GROUPING_IMAGES = 12
"""Other images that the groups of the frequency test are found on."""


@dataclass(frozen=True)
class AssessReport:
    """The result of an assessment. `failed` holds files that could not be used, with the reason.

    Attributes:
        document: as it is stored, see `evaluation.quality_rows`.
    """

    model: str
    document: dict[str, Any]
    failed: list[tuple[str, str]]
    warnings: list[str]

    def lines(self) -> Iterator[str]:
        """The report as tables and text."""
        yield from report_lines(self.model, self.document)
        yield from notes(self.failed, self.warnings)


def assess(
    project: Project,
    database: Database,
    *,
    model: str | None = None,
    samplers: Sequence[Sampler] | None = None,
    most_images: int | None = None,
    progress: Progress = silent,
) -> AssessReport:
    """Measure for every sampler and measure how well it finds errors, ranks regions and detects novelty, and
    how reliable its probabilities are. The result replaces the model's former one.

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
    with database.session(write=False) as session:
        row = chosen_model(session, model)
        wanted = _wanted(project.config, read_card(project.path(row.checkpoint_uri)), samplers)
        split, items = assessed_images(session, project)
        others = image_queries.split_images(session, "calibration" if split == "test" else "pool")
        calibrators = sampler_calibrators(session, row.id, wanted)
        novelty = assessment_of(session, model_id=row.id, kind="novelty")
    study = QualityStudy(
        project,
        open_samplers(
            project, row.checkpoint_uri, calibrators, cached=False
        ),  # it looks at changed images too
        [items[index] for index in spread(len(items), most_images)],
        [project.ref(others[index]) for index in spread(len(others), GROUPING_IMAGES)],
    )
    if not study.run(progress):
        raise none_usable(study.images, split)
    document = study.document(split, None if novelty is None else novelty.document, progress)
    with database.session() as session:
        put_assessment(session, model_id=row.id, kind="quality", document=document)
    return AssessReport(
        model=row.name,
        document=document,
        failed=study.images.failed,
        warnings=_warnings(document, calibrators),
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


def _warnings(document: Mapping[str, Any], calibrators: Mapping[Sampler, Calibrators]) -> list[str]:
    warnings: list[str] = []
    if document["blocks"] < FEWEST_UNITS:
        warnings.append(few_units(document["images"], document["blocks"]))
    for sampler, pair in calibrators.items():
        if pair.confidence.reason is not None:
            warnings.append(f"{sampler}: its confidence is a {pair.confidence.sentence}")
    if document["split"] == "calibration":
        warnings.append(
            "The calibrators are evaluated on the images that they were fitted on: ECE is optimistic."
        )
    return warnings
