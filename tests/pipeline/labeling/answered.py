"""What annotators have submitted in Label Studio, as the file that it exports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from db.queries.queues import list_queues
from pipeline.config import IGNORE
from pipeline.labeling.label_studio.tasks import mask_results
from tests.factories import ask
from tests.pipeline.labeling.exported_project import Exported


def annotation(
    exported: Exported,
    name: str,
    mask: npt.NDArray[np.uint8] | None,
    *,
    number: int,
    by: str = "ann@example.org",
    at: str = "2026-11-01T10:00:00Z",
    seconds: float | None = 30.0,
) -> dict[str, Any]:
    """One annotator's answer for one image; without a mask, skipped."""
    names = exported.project.config.data.class_names
    result = [] if mask is None else mask_results(mask, names, image_id=number, masks="brush")
    return {
        "id": number,
        "image": name,
        "completed_by": {"id": 1, "email": by},
        "was_cancelled": mask is None,
        "created_at": f"2026-11-01T09:00:00.{number:06d}Z",
        "updated_at": at,
        "lead_time": seconds,
        "result": result,
    }


def submitted(exported: Exported, file: Path, annotations: Sequence[dict[str, Any]]) -> Path:
    """The file that Label Studio exports, with a task for each image."""
    queue = ask(exported.database, list_queues)[-1].name
    images = exported.images()
    tasks: dict[str, dict[str, Any]] = {}
    for given in annotations:
        image = images[given["image"]]
        data = {"image_id": image.id, "sha256": image.sha256, "queue": queue}
        task = tasks.setdefault(given["image"], {"id": image.id + 100, "data": data, "annotations": []})
        task["annotations"].append({key: value for key, value in given.items() if key != "image"})
    file.write_text(json.dumps(list(tasks.values())))
    return file


def inside(
    exported: Exported, name: str, mask: npt.NDArray[np.uint8], items: slice = slice(None)
) -> npt.NDArray[np.uint8]:
    """A mask that says nothing outside of some of the image's queue items."""
    painted = np.full_like(mask, IGNORE)
    for item in exported.items(name)[items]:
        window = np.s_[item.y : item.y + item.h, item.x : item.x + item.w]
        painted[window] = mask[window]
    return painted
