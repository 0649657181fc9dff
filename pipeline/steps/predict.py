"""Predict: masks and maps of images that need not belong to the project, by one of its models."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from db.engine import Database
from pipeline.config import SAMPLED_MEASURES, HeatmapConfig, Measure
from pipeline.data.image_info import ImageRef
from pipeline.data.images import probe_image
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask
from pipeline.data.project import Project
from pipeline.data.remote import is_remote
from pipeline.data.sources import Found, find_images
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.files import atomic_write_bytes, writable_folder
from pipeline.format import counted, none_can
from pipeline.labeling.encoding import LabelMap
from pipeline.progress import Progress, silent
from pipeline.steps.ready import chosen_model
from pipeline.steps.score.writer import write_maps
from pipeline.steps.served_model import stored_calibrators
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.scoring import make_heatmaps
from pipeline.uncertainty.served_model import open_model

LABEL_MAP = "labelmap.json"
"""Says which value of the masks is which class; a folder that has one holds predictions."""


@dataclass(frozen=True)
class PredictReport:
    """The folder of the predictions, and the images that could not be read, with the reason."""

    folder: Path
    model: str
    images: int
    failed: list[tuple[str, str]]

    @property
    def warnings(self) -> list[str]:
        """What was left out."""
        return [f"not predicted: {name}: {reason}" for name, reason in self.failed]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.model} predicted {counted(self.images, 'image')}: {self.folder}."
        yield f"The values of the masks are those of {self.folder / LABEL_MAP}."


def predict(
    project: Project,
    database: Database,
    *,
    source: str,
    folder: Path,
    measures: Sequence[Measure] = (),
    per_class: bool = False,
    model: str | None = None,
    progress: Progress = silent,
) -> PredictReport:
    """Write a mask of class ids for every image of a folder, and maps where they are asked for, at each
    image's own size. The project stays as it is.

    Args:
        source: a folder, glob, file, or URI of an object store, as in `data.images`.
        folder: of the results: `<image>.png`, with the images' subfolders, and `<image>_<map>.png`.
        measures: of uncertainty, a map each.
        per_class: a map of each class: `probability_<class>` where the calibrator has passed, else
            `softmax_<class>`.
        model: its name; by default the promoted model, else the newest.

    Raises:
        ConfigError: a measure needs samples, and there are none.
        DataError: the source does not exist.
        UserError: there is no model, there are no images, none can be read, or the folder holds other files.
    """
    sampled = sorted(SAMPLED_MEASURES & set(measures))
    if sampled and project.config.scoring.sampler == "none":
        raise ConfigError(
            f"{', '.join(sampled)} needs samples, and `scoring.sampler` is `none`.",
            "Set `scoring.sampler: mc_dropout`, or leave it out.",
        )
    with database.session(write=False) as session:
        row = chosen_model(session, model)
        calibrators = stored_calibrators(session, row.id, sampler=project.config.scoring.sampler)
    target = Path(os.path.abspath(folder))
    _refuse_occupied(project, target)
    images, failed = _images(project, source, target)
    kinds = [*measures]
    if per_class:
        kinds += [f"{calibrators.class_map}_{index}" for index in range(project.config.data.num_classes)]
    names = _names([found for found, _ in images], kinds)
    served = open_model(project, row.checkpoint_uri, calibrators=calibrators, cached=False)
    writable_folder(target)
    labels = LabelMap(project.config.data)
    atomic_write_bytes(target / LABEL_MAP, (json.dumps(labels.document(), indent=2) + "\n").encode())
    config = HeatmapConfig(measures=list(measures), per_class=per_class, size="full", images="all")
    refs = [ref for _, ref in images]
    done = 0
    for batch in served.batches(refs, batch_size=1):
        progress("predict", done, len(refs))
        if isinstance(batch, Unreadable):
            failed.append((str(batch.path), batch.reason))
            continue
        prediction = served.predictor.predict(batch.images, progress)
        stem, size = target / names[batch.ids[0]], batch.sizes[0]
        writable_folder(stem.parent)
        labels.write(stem.with_name(f"{stem.name}.png"), _mask(prediction, size))
        if measures or per_class:
            maps = make_heatmaps(prediction, config, class_map=calibrators.class_map, image_size=size)
            write_maps(stem.parent, stem.name, {name: plane[0].cpu().numpy() for name, plane in maps.items()})
        del batch, prediction
        done += 1
    progress("predict", len(refs), len(refs))
    if not done:
        raise UserError(f"{none_can(len(failed), 'image', 'be read')}: {failed[0][1]}", "Correct the files.")
    return PredictReport(target, row.name, done, failed)


def _images(
    project: Project, source: str, target: Path
) -> tuple[list[tuple[Found, ImageRef]], list[tuple[str, str]]]:
    """The images of the source, numbered, and those whose header cannot be read. Results that lie in the
    source are no images."""
    path = source if is_remote(source) else os.path.abspath(os.path.expanduser(source))
    if not is_remote(path) and not set("*?[") & set(path) and not os.path.exists(path):
        raise DataError(f"There is no {path}.", "Name a folder, a glob or a file of images.")
    data = project.config.data.model_copy(update={"images": [path], "masks": None})
    outside = replace(project, config=project.config.model_copy(update={"data": data}))
    found: list[tuple[Found, ImageRef]] = []
    failed: list[tuple[str, str]] = []
    for image in find_images(outside):
        if isinstance(image.path, Path) and image.path.is_relative_to(target):
            continue
        try:
            info = probe_image(image.path, max_pixels=data.max_pixels)
        except DataError as error:
            failed.append((str(image.path), str(error)))
        else:
            found.append((image, ImageRef(len(found), image.path, info.width, info.height)))
    if not found and not failed:
        raise UserError(f"There are no images in {source}.", "Name a folder with images.")
    if not found:
        raise UserError(f"{none_can(len(failed), 'image', 'be read')}: {failed[0][1]}", "Correct the files.")
    return found, failed


def _names(images: Sequence[Found], kinds: Sequence[str]) -> list[str]:
    """Where each image's results go, below the folder: its path without the ending, unless a mask or a map
    of two images would meet there; then its whole path.

    Args:
        kinds: names of the maps.

    Raises:
        UserError: results would meet even so.
    """

    def written(name: str) -> list[str]:
        return [name.lower(), *(f"{name}_{kind}".lower() for kind in kinds)]

    stems = [f"{image.parent}/{image.stem}" if image.parent else image.stem for image in images]
    shared = Counter(file for stem in stems for file in written(stem))
    names = [
        image.below if any(shared[file] > 1 for file in written(stem)) else stem
        for image, stem in zip(images, stems, strict=True)
    ]
    owner: dict[str, Found] = {}
    for image, name in zip(images, names, strict=True):
        for file in written(name):
            if file in owner:
                raise UserError(
                    f"{owner[file].below} and {image.below} would have results of one name: {file}.png.",
                    "Rename one of them, or predict them into two folders.",
                )
            owner[file] = image
    return names


def _refuse_occupied(project: Project, target: Path) -> None:
    """Never write among other files, nor where the next ingest would take results for images."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is not a folder.", "Name another folder with `--out`.")
    if target.is_dir() and any(target.iterdir()) and not (target / LABEL_MAP).is_file():
        raise UserError(f"{target} contains other files.", "Name another folder with `--out`.")
    for entry in project.config.data.images:
        if not is_remote(entry) and target.is_relative_to(os.path.abspath(project.path(entry))):
            raise UserError(
                f"{target} lies in {entry!r} of `data.images`: the next ingest would take the results for "
                "images.",
                "Name a folder outside of it with `--out`.",
            )


def _mask(prediction: Prediction, size: tuple[int, int]) -> Mask:
    """The predicted class of each pixel, made in bands of rows."""
    mask = np.empty(size, dtype=np.uint8)
    for rows, probability in prediction.bands(prediction.probability, size):
        mask[rows] = predicted_class(probability[0]).cpu().numpy()
    return mask
