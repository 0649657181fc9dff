"""A project of a few images in a folder, to be ingested again and again."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from sqlalchemy import select

from db.engine import Database
from db.tables import Failure, Image, QueueItem
from pipeline.config import ProjectConfig
from pipeline.data.masks import Mask, MaskCodec, read_mask
from pipeline.data.project import Project
from pipeline.steps.ingest import ingest, step

HELD_OUT = {"test": {"list": "test.txt"}, "calibration": {"list": "calibration.txt"}}


ITEM = (QueueItem.image_id, QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.region_index)


def count_opens(monkeypatch: pytest.MonkeyPatch, root: Path) -> Counter[str]:
    """How often each file below a folder is opened from now on, by its path below the folder."""
    counts, original = Counter[str](), os.open

    def counting(path: Any, *args: Any, **options: Any) -> int:
        if isinstance(path, str) and Path(path).is_relative_to(root):
            counts[Path(path).relative_to(root).as_posix()] += 1
        return original(path, *args, **options)

    monkeypatch.setattr(os, "open", counting)
    return counts


class Folder:
    """A project folder with images of its own content, and a store."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.database = Database(f"sqlite:///{root / 'store.db'}")
        self._seed = 0

    def image(self, name: str, *, seed: int | None = None, size: tuple[int, int] = (24, 16)) -> Path:
        self._seed += 1
        pixels = np.random.default_rng(seed or 1000 + self._seed).integers(
            0, 256, (size[1], size[0], 3), np.uint8
        )
        return self._save(Picture.fromarray(pixels), self.root / "images" / name)

    def mask(self, name: str, *, value: int | None = None, size: tuple[int, int] = (24, 16)) -> Path:
        rows = np.arange(size[1], dtype=np.uint8)[:, None] * 2 // size[1]
        pixels = (
            np.broadcast_to(rows, (size[1], size[0]))
            if value is None
            else np.full(size[::-1], value, np.uint8)
        )
        return self._save(Picture.fromarray(np.ascontiguousarray(pixels)), self.root / "masks" / name)

    def sequence(self, group: str, count: int, *, first: int = 0, masks: bool = True) -> None:
        for number in range(first, first + count):
            self.image(f"{group}/f{number}.png")
            if masks:
                self.mask(f"{group}/f{number}.png")

    def project(self, *, splits: dict[str, Any] | None = None, **data: Any) -> Project:
        if (self.root / "masks").is_dir():
            data.setdefault("masks", "masks")
        config = ProjectConfig.model_validate(
            {
                "name": "p",
                "data": {"images": ["images"], "classes": ["a", "b"], **data},
                "splits": {"minimum_units": 1, "every_class": False, **(splits or {})},
                "scoring": {"regions": {"cell": 8}},
            }
        )
        return Project(config=config, root=self.root)

    def ingest(self, **settings: Any) -> step.IngestReport:
        return ingest(self.project(**settings), self.database)

    def rows(self, *columns: Any) -> list[Any]:
        with self.database.session(write=False) as session:
            return [tuple(row) for row in session.execute(select(*columns))]

    def read_mask(self, uri: str, *, size: tuple[int, int] = (24, 16)) -> Mask:
        return read_mask(self.root / uri, MaskCodec.from_config(self.project().config.data), size=size)

    def splits(self) -> dict[str, str]:
        return dict(self.rows(Image.uri, Image.split))

    def failures(self) -> dict[str, str]:
        return dict(self.rows(Failure.subject, Failure.reason))

    def write(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("\n".join(lines) + "\n")

    @staticmethod
    def _save(picture: Picture.Image, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        return path
