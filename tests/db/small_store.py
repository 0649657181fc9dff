"""A store with a few images and an empty scoring run, and score rows that no model made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from db.bulk import Columns
from db.engine import Database
from db.queries import runs
from db.tables import Image, Model, Round

MEASURES = ("least_confidence", "margin", "entropy", "energy", "max_logit")


def open_store(url: str, *, images: int = 10) -> Database:
    """Pool images with ids from 1, a promoted model, and its empty run 1."""
    database = Database(url)
    with database.session() as session:
        session.add(Round(number=1, state="score"))
        session.flush()
        session.add(
            Model(
                round_id=1,
                name="r01",
                status="promoted",
                checkpoint_uri="m",
                config={},
                config_hash="",
                labels_hash="",
                seed=0,
                iterations=0,
            )
        )
        session.add_all(
            Image(uri=f"{n}.png", sha256=str(n), width=8, height=8, channels=3, group_name="", position=n)
            for n in range(images)
        )
        session.flush()
        runs.open_run(session, model_id=1, scorer_hash="a", scorer={})
    return database


def rows_for(ids: Sequence[int], entropy: float = 0.5) -> tuple[Columns, Columns]:
    """Image and region columns with two regions an image; NULL where samples would be needed."""
    common = {"pixels": 32, "predicted_class": 1, "class_share": 1.0, "impurity": 0.0, "entropy_top10": 0.5}
    common |= dict.fromkeys(MEASURES, entropy)
    images = {"image_id": list(ids), "regions": [2] * len(ids), "heatmaps": [None] * len(ids)}
    regions = {
        "image_id": np.repeat(ids, 2),
        "region_index": np.tile([0, 1], len(ids)),
        **{name: np.zeros(2 * len(ids), dtype=np.int32) for name in "xywh"},
    }
    return (
        images | {name: [value] * len(ids) for name, value in common.items()},
        regions | {name: [value] * 2 * len(ids) for name, value in common.items()},
    )
