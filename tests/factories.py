"""Projects, images, models, runs, queues and labels for the tests: built here, and nowhere else.

`make_project` makes a project with an empty store. `new_*` are rows whose required columns are filled in,
`add_rows` and `put` write them; `ask`, `fetch`, `count_rows` and `change` are one transaction each.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image as Picture
from safetensors.torch import load_file
from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from db.base import Base
from db.bulk import Columns
from db.engine import Database
from db.queries.labels import LabeledRegion, record_label
from db.queries.rounds import current_round
from db.queries.runs import open_run
from db.queries.shards import PlannedShard
from db.tables import (
    Calibration,
    Image,
    ImageScore,
    Label,
    Model,
    Queue,
    QueueItem,
    RegionScore,
    Round,
    ScoringRun,
    Shard,
)
from pipeline.config import IGNORE, ModelConfig, ProjectConfig, ScoringConfig
from pipeline.data.images import probe_image
from pipeline.data.masks import store_mask
from pipeline.data.project import Project, load_project
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import ModelCard, save_model
from pipeline.model.segmenter import Segmenter

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Row = TypeVar("Row", bound=Base)
Box = tuple[int, int, int, int]
Mask = npt.NDArray[np.uint8]

TINY: dict[str, Any] = {
    "architecture": "fpn",
    "encoder": "tu-mobilenetv3_small_050",
    "encoder_weights": "none",
    "decoder": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
}
"""The settings of the smallest network."""
CLASSES = ["ground", "water", "tree"]
WIDTH, HEIGHT = 96, 64
"""Of the images of `add_images`."""


class Workspace(NamedTuple):
    """A project and its store."""

    project: Project
    database: Database

    def configured(self, **sections: Any) -> Project:
        """The project with other settings in some sections."""
        return configured(self.project, **sections)

    def copied_to(self, root: Path) -> Self:
        """The same project in another folder, which may exist."""
        shutil.copytree(self.project.root, root, symlinks=True, dirs_exist_ok=True)
        project = Project(config=self.project.config, root=root, file=root / "segcurate.yaml")
        copy = type(self)(project, Database(project.database_url))
        getattr(copy, "__dict__", {}).update(getattr(self, "__dict__", {}))
        return copy


def make_project(root: Path, **sections: Any) -> Workspace:
    """A project with an empty store; its file lies in `root`.

    Args:
        sections: settings that differ from those of a small project, by section.
    """
    document: dict[str, Any] = {
        "name": "test",
        "device": "cpu",
        "data": {"images": ["images"], "classes": CLASSES},
        "model": TINY,
    }
    for name, value in sections.items():
        document[name] = document.get(name, {}) | value if isinstance(value, dict) else value
    root.mkdir(parents=True, exist_ok=True)
    file = root / "segcurate.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    project = load_project(file)
    return Workspace(project, Database(project.database_url))


def configured(project: Project, **sections: Any) -> Project:
    """The project with other settings in some sections, checked as those of a file are."""
    document = project.config.model_dump()
    for name, value in sections.items():
        document[name] = document[name] | value if isinstance(value, dict) else value
    return Project(config=ProjectConfig(**document), root=project.root, file=project.file)


# One transaction each


def ask(
    database: Database,
    query: Callable[Concatenate[Session, Parameters], Result],
    *args: Parameters.args,
    **options: Parameters.kwargs,
) -> Result:
    """What a query of the store returns, or does."""
    with database.session() as session:
        return query(session, *args, **options)


def fetch(database: Database, *wanted: Any) -> list[Any]:
    """What a statement finds, or all rows of a table or of columns; the values alone of a single column."""
    statement = wanted[0] if isinstance(wanted[0], Select) else select(*wanted)
    with database.session(write=False) as session:
        found = session.execute(statement).all()
    return [row[0] if len(row) == 1 else tuple(row) for row in found]


def fetch_one(database: Database, *wanted: Any) -> Any:
    """The only row that `fetch` finds."""
    (found,) = fetch(database, *wanted)
    return found


def count_rows(database: Database, table: type[Base], *where: Any) -> int:
    """How many rows of a table there are."""
    return fetch_one(database, select(func.count()).select_from(table).where(*where))


def add_rows(database: Database, *new: Base) -> None:
    """Write rows."""
    with database.session() as session:
        session.add_all(new)


def change(database: Database, table: type[Base], *where: Any, **values: Any) -> None:
    """Change rows of a table, without a condition all of them."""
    with database.session() as session:
        session.execute(update(table).where(*where).values(**values))


def put(session: Session, row: Row) -> Row:
    """Write a row within a transaction, so that it has its id."""
    session.add(row)
    session.flush()
    return row


def replace_sleep(patch: pytest.MonkeyPatch, instead: Callable[[float], object]) -> None:
    """Call `instead` for each sleep of this thread; threads that earlier tests have left go on as before."""
    mine, sleep = threading.current_thread(), time.sleep
    patch.setattr(
        time, "sleep", lambda seconds: (instead if threading.current_thread() is mine else sleep)(seconds)
    )


def round_state(database: Database) -> tuple[int, str]:
    """The current round's number, and the step that comes next in it."""
    current = ask(database, current_round)
    return (0, "") if current is None else (current.number, current.state)


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Do the work in so many threads at once; what any of them raises is raised."""
    barrier, errors = threading.Barrier(count), list[BaseException]()

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# Rows


def new_image(uri: str = "0.png", **values: Any) -> Image:
    known = {"sha256": hashlib.sha256(uri.encode()).hexdigest(), "width": 8, "height": 8, "channels": 3}
    if values.get("split") in ("calibration", "test"):
        known["split_version"] = 1
    return Image(**known | {"uri": uri, "group_name": "g", "position": 0} | values)


def new_model(round_id: int = 1, **values: Any) -> Model:
    """By default the promoted model of that round."""
    known: dict[str, Any] = {"name": f"r{round_id:02d}", "status": "promoted", "checkpoint_uri": "m"}
    known |= {"config": {}, "config_hash": "0" * 64, "labels_hash": "0" * 64, "seed": 0, "iterations": 1}
    return Model(**known | {"round_id": round_id} | values)


def new_run(model_id: int = 1, **values: Any) -> ScoringRun:
    return ScoringRun(**{"model_id": model_id, "scorer_hash": "a" * 64, "scorer": {}} | values)


def new_queue(name: str = "round-01", **values: Any) -> Queue:
    """By default a selected one; one of another name is of that kind: `initial`, `review-01`."""
    kind = name.split("-")[0] if name.startswith(("initial", "review")) else "selected"
    known: dict[str, Any] = {"kind": kind, "strategy": "entropy", "unit": "region", "seed": 0, "spec": {}}
    return Queue(**known | {"name": name} | values)


def new_item(queue_id: int, rank: int, image_id: int, box: Sequence[int], **values: Any) -> QueueItem:
    known: dict[str, Any] = dict(zip("xywh", box, strict=True)) | {"slice": "selected", "reason": ""}
    known |= {"queue_id": queue_id, "rank": rank, "image_id": image_id, "region_index": 0}
    return QueueItem(**known | values)


def score_columns(**values: Any) -> dict[str, Any]:
    """What region scores and image scores have in common, as without samples."""
    known = {"pixels": 64, "predicted_class": 0, "class_share": 1.0, "impurity": 0.0, "least_confidence": 0.5}
    known |= {"margin": 0.5, "entropy": 0.5, "energy": -1.0, "max_logit": -1.0, "entropy_top10": 0.5}
    return known | values


def add_model(session: Session, number: int = 1, *, state: str = "score", **values: Any) -> Model:
    """A round in a state, and its model."""
    current = put(session, Round(number=number, state=state))
    return put(session, new_model(current.id, name=f"r{number:02d}", **values))


def rows_for(ids: Sequence[int], entropy: float = 0.5) -> tuple[Columns, Columns]:
    """Image and region columns with two regions an image; NULL where samples would be needed."""
    count, common = len(ids), score_columns(entropy=entropy, predicted_class=1, pixels=32)
    images = {"image_id": list(ids), "regions": [2] * count, "heatmaps": [None] * count}
    regions = {"image_id": np.repeat(ids, 2), "region_index": np.tile([0, 1], count)}
    boxes = {name: np.zeros(2 * count, dtype=np.int32) for name in "xywh"}
    return (
        images | {name: [value] * count for name, value in common.items()},
        regions | boxes | {name: [value] * 2 * count for name, value in common.items()},
    )


def count_scores(session: Session, *, run_id: int) -> tuple[int, int]:
    """How many images and regions a run has scored."""
    images = session.scalar(select(func.count()).where(ImageScore.run_id == run_id)) or 0
    return images, session.scalar(select(func.count()).where(RegionScore.run_id == run_id)) or 0


def pending_shards(session: Session, *, run_id: int) -> list[PlannedShard]:
    """The shards that no worker has begun, by id."""
    pending = select(Shard.first_image_id, Shard.last_image_id).where(Shard.run_id == run_id)
    rows = session.execute(pending.where(Shard.status == "pending").order_by(Shard.first_image_id))
    return [PlannedShard(*row) for row in rows]


def open_store(url: str, *, images: int = 10) -> Database:
    """A store with pool images, whose ids are from 1, a promoted model, and its empty run 1."""
    database = Database(url)
    with database.session() as session:
        add_model(session)
        session.add_all(new_image(f"{number}.png", position=number) for number in range(images))
        session.flush()
        open_run(session, model_id=1, scorer_hash="a", scorer={})
    return database


def add_label(
    session: Session,
    project: Project,
    image_id: int,
    queue_id: int,
    mask: Mask,
    *,
    regions: Sequence[tuple[Any, ...]] | None = None,
    source: str = "import",
    annotator: str | None = None,
    seconds: float | None = None,
) -> Label:
    """A mask that came back, as an import records it; by default of the whole image."""
    places: list[Any] = list(regions or [(0, 0, mask.shape[1], mask.shape[0])])
    path, digest = store_mask(project.workdir / "labels", mask)
    label = record_label(
        session,
        image_id=image_id,
        queue_id=queue_id,
        mask_uri=project.uri(path),
        mask_sha256=digest,
        labeled_pixels=int((mask != IGNORE).sum()),
        source=source,
        annotator=annotator,
        labeled_at=datetime.now(UTC),
        seconds=seconds,
        regions=[LabeledRegion(*region) for region in places],
    )
    assert label is not None
    return label


def add_files(
    project: Project, database: Database, paths: Sequence[Path], *, split: str = "pool", **values: Any
) -> list[int]:
    """Register image files as `ingest` would, and return their ids."""
    made: list[Image] = []
    for position, path in enumerate(paths):
        info = probe_image(path, max_pixels=10**9)
        size = {"width": info.width, "height": info.height, "position": position}
        made.append(new_image(project.uri(path), split=split, **size | values))
    add_rows(database, *made)
    return [row.id for row in made]


# Networks


@cache
def _network(model: str, classes: int, channels: int, weights: Path | None) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModelConfig.model_validate_json(model)
        segmenter = build_segmenter(config, num_classes=classes, channels=channels, root=Path())
        if weights is not None:
            state = {f"model.{name}": value for name, value in load_file(weights).items()}
            segmenter.network.get_submodule("encoder").load_state_dict(state, strict=False)
        segmenter.train()  # one look at noise, so that no activation vanishes in eval mode
        with torch.no_grad():
            segmenter.network(torch.randn(2, channels, 64, 64))
    return segmenter.eval()


def tiny_checkpoint(
    folder: Path, model: ModelConfig, names: Sequence[str], *, weights: Path | None = None, **card: Any
) -> str:
    """Write a model with random weights, built once a session, and return its hash.

    Args:
        names: of the classes.
        weights: those of the encoder.
        card: what the model's card says otherwise.
    """
    network = _network(model.model_dump_json(), len(names), 3, weights)
    return save_model(folder, network, new_card(model, names, **card))


def new_card(model: ModelConfig, names: Sequence[str], **values: Any) -> ModelCard:
    known: dict[str, Any] = {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "input_scale": 1.0}
    known |= {"config_hash": "", "labels_hash": "", "seed": 0, "iterations": 1, "class_names": list(names)}
    return ModelCard(**known | {"model": model, "input_scale": model.input_scale} | values)


def make_pool(
    root: Path,
    images: Sequence[Path] | Sequence[tuple[int, int]],
    *,
    scoring: ScoringConfig | dict[str, Any],
    model: ModelConfig | None = None,
    classes: int = 4,
    encoder_weights: Path | None = None,
    temperatures: tuple[float, float] = (1.5, 1.25),
) -> Workspace:
    """A project in the state `score`: every image in the pool, and a promoted model with random weights.

    Args:
        images: files, or the (width, height) of images to be drawn in the folder `images`.
    """
    made = make_project(
        root,
        data={"classes": [f"class {index}" for index in range(classes)]},
        model={"dropout": 0.5} if model is None else model.model_dump(mode="json"),
        scoring=scoring if isinstance(scoring, dict) else scoring.model_dump(mode="json"),
    )
    serve_random_model(*made, encoder_weights=encoder_weights, temperatures=temperatures)
    files = [image for image in images if isinstance(image, Path)]
    add_files(*made, files or draw_images(root / "images", cast("Sequence[tuple[int, int]]", images)))
    return made


def serve_random_model(
    project: Project,
    database: Database,
    *,
    encoder_weights: Path | None = None,
    temperatures: tuple[float, float] = (1.5, 1.25),
) -> None:
    """Round 1, in the state `score`, with a promoted model of random weights and two temperatures."""
    folder, config = project.workdir / "models" / "r01", project.config
    digest = tiny_checkpoint(folder, config.model, config.data.class_names, weights=encoder_weights)
    with database.session() as session:
        row = add_model(session, checkpoint_uri=project.uri(folder), checkpoint_sha256=digest)
        for sampler, temperature in zip(("none", "mc_dropout"), temperatures, strict=True):
            fitted = {"calibrator": "temperature", "parameters": {"temperature": temperature}}
            session.add(Calibration(model_id=row.id, sampler=sampler, images=1, pixels=1, **fitted))


def draw_images(folder: Path, sizes: Sequence[tuple[int, int]], *, seed: int = 0) -> list[Path]:
    """PNG files of these (width, height) with blocks of colour and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths: list[Path] = []
    for number, (width, height) in enumerate(sizes):
        coarse = generator.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
        pixels = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].astype(np.int16)
        pixels = pixels + generator.integers(-20, 20, pixels.shape)
        paths.append(folder / f"{number:03d}.png")
        Picture.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


# A project whose images have masks: three textures in noise, which a network can learn
