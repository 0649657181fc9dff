"""How fast scores are written and read back, on SQLite and on PostgreSQL, through the code that scoring uses.

    python -m benchmarks.bench_db [--rows 10000000] [--json figures.json] [--setting max_wal_size=4GB]

The scores are made up: 64 regions an image, shards of 256 images, every measure filled. PostgreSQL is a
private server on a socket, or the one that `SEGCURATE_TEST_POSTGRESQL` names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, insert, make_url, select, text
from sqlalchemy.orm import Session

from db.bulk import Columns
from db.engine import Database
from db.queries import pruning, runs, scores, shards
from db.queries.candidates import eligible_images, last_eligible, region_candidates
from db.queries.shards import PlannedShard
from db.tables import Image, Model, RegionScore, Round
from tests.db.private_server import empty_database, private_server

REGIONS, SHARD_IMAGES, PAGE_IMAGES, TOP = 64, 256, 4096, 1000
ROUNDS = 5
BACKENDS = ("sqlite", "postgresql")
MEASURES = ("class_share", "impurity", "least_confidence", "margin", "entropy", "expected_entropy")
MEASURES += (
    "mutual_information",
    "variation_ratio",
    "energy",
    "max_logit",
    "max_logit_norm",
    "entropy_top10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="regions of the run")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--setting", action="append", default=[], help="of the private server: name=value")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for backend in arguments.backend or BACKENDS:
        with _open(backend, dict(setting.split("=", 1) for setting in arguments.setting)) as database:
            figures[backend] = _measure(database, rows=arguments.rows)
    print(f"{'':32}" + "".join(f"{backend:>14}" for backend in figures))
    for name in next(iter(figures.values())):
        print(f"{name:32}" + "".join(f"{found[name]:14,.1f}" for found in figures.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


@contextmanager
def _open(backend: str, settings: dict[str, str]) -> Generator[Database]:
    given = os.environ.get("SEGCURATE_TEST_POSTGRESQL")
    if backend == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield Database(f"sqlite:///{folder}/store.db")
    elif given:
        with empty_database(make_url(given)) as url:
            yield Database(url)
    else:
        with private_server(settings) as server, empty_database(server.url) as url:
            yield Database(url)


def _measure(database: Database, *, rows: int) -> dict[str, float]:
    images = -(-rows // REGIONS)
    _fill(database, images=images)
    found: dict[str, float] = {"rows": images * REGIONS}
    seconds, cpu = _write(database)
    found["written, rows/s"] = found["rows"] / seconds
    found["written, rows/s of this CPU"] = found["rows"] / cpu
    with database.session() as session:
        found["finishing the run, s"] = _time(lambda: runs.finish_run(session, run_id=1))
    again = Database(database.engine.url.render_as_string(hide_password=False))
    found["top 1,000, first, ms"] = 1000 * _time(lambda: _top(again))
    found["top 1,000, median of 5, ms"] = 1000 * statistics.median(
        _time(lambda: _top(again)) for _ in range(ROUNDS)
    )
    found["mean and maximum an image, s"] = _time(lambda: _aggregate(again))
    found["candidates read, s"] = _time(lambda: _candidates(again))
    found |= _sizes(again, rows=images * REGIONS)
    found["pruned, ms"] = 1000 * _time(lambda: _prune(again))
    found["rows deleted after it, s"] = _time(lambda: _delete(again))
    with again.session(write=False) as session:
        if scores.count_scored(session, run_id=1) != 0:
            raise RuntimeError("The pruned run still has scores.")
    again.close()
    database.close()
    return found


def _time(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _fill(database: Database, *, images: int) -> None:
    """Images, a run of a model that serves no more, and one that serves."""
    with database.session() as session:
        for number in (1, 2):
            session.add(Round(id=number, number=number, state="closed"))
            session.flush()
            document = {"config": {}, "config_hash": "", "labels_hash": "", "checkpoint_uri": ""}
            named = {"name": f"r0{number}", "status": "promoted", "seed": 0, "iterations": 0}
            session.add(Model(id=number, round_id=number, **named, **document))
            session.flush()
        row = {"width": 2048, "height": 1024, "channels": 3, "group_name": "g", "split": "pool"}
        for start in range(0, images, 10_000):
            part = range(start, min(start + 10_000, images))
            session.execute(
                insert(Image), [{"uri": f"{n}.png", "sha256": f"{n:064x}", "position": n} | row for n in part]
            )
        runs.open_run(session, model_id=1, scorer_hash="a", scorer={})
        shards.plan_shards(session, run_id=1, shard_images=SHARD_IMAGES)


def _write(database: Database) -> tuple[float, float]:
    """Seconds on the clock and of this process's CPU, without those that make the numbers up."""
    seconds = cpu = 0.0
    rng = np.random.default_rng(0)
    while True:
        started, cpu_started = time.perf_counter(), time.process_time()
        shard = database.transact(_claim)
        if shard is None:
            return seconds, cpu
        seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - cpu_started
        ids = np.arange(shard.first, shard.last + 1)
        images, regions = _scores(rng, ids)
        replace = partial(_replace, shard=shard, image_ids=ids.tolist(), images=images, regions=regions)
        started, cpu_started = time.perf_counter(), time.process_time()
        written = database.transact(replace)
        seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - cpu_started
        if not written:
            raise RuntimeError(f"Shard {shard} was taken over.")


def _claim(session: Session) -> PlannedShard | None:
    return shards.claim_shard(session, run_id=1, owner="a", seconds=600)


def _replace(session: Session, **shard: Any) -> bool:
    return shards.replace_shard(session, run_id=1, owner="a", **shard)


def _scores(rng: np.random.Generator, ids: np.ndarray) -> tuple[Columns, Columns]:
    def common(rows: int) -> dict[str, Any]:
        drawn = rng.random((len(MEASURES), rows), dtype=np.float32)
        classes = rng.integers(0, 19, rows, dtype=np.int16)
        return {
            "pixels": np.full(rows, 1024),
            "predicted_class": classes,
            **dict(zip(MEASURES, drawn, strict=True)),
        }

    rows = len(ids) * REGIONS
    index = np.tile(np.arange(REGIONS, dtype=np.int32), len(ids))
    boxes = {"x": index % 8 * 32, "y": index // 8 * 32, "w": np.full(rows, 32), "h": np.full(rows, 32)}
    regions = {"image_id": np.repeat(ids, REGIONS), "region_index": index, **boxes, "outline": [None] * rows}
    heatmaps = [
        {"entropy": f"heatmaps/1/{image}_entropy.png"} if image % 16 == 0 else None for image in ids.tolist()
    ]
    images = {"image_id": ids, "regions": [REGIONS] * len(ids), "heatmaps": heatmaps}
    return images | common(len(ids)), regions | common(rows)


def _top(database: Database) -> None:
    with database.session(write=False) as session:
        found = scores.top_regions(session, run_id=1, limit=TOP)
        if len(found) != TOP:
            raise RuntimeError(f"Expected {TOP} regions, but got {len(found)}.")


def _aggregate(database: Database) -> None:
    statement = (
        select(RegionScore.image_id, func.avg(RegionScore.entropy), func.max(RegionScore.entropy))
        .where(RegionScore.run_id == 1)
        .group_by(RegionScore.image_id)
    )
    with database.session(write=False) as session:
        session.execute(statement).all()


def _candidates(database: Database) -> None:
    with database.session(write=False) as session:
        last, after, codes = last_eligible(session, run_id=1), 0, {}
        while after < last:
            images = eligible_images(
                session, run_id=1, after_id=after, last_id=last, limit=PAGE_IMAGES, codes=codes
            )
            region_candidates(session, run_id=1, images=images, measure="entropy")
            after = int(images.id[-1])


def _sizes(database: Database, *, rows: int) -> dict[str, float]:
    """Bytes a region: of the table, of its key, and of the rows and indexes of images."""
    with database.session(write=False) as session:
        if database.engine.dialect.name == "postgresql":
            asked = text(
                "SELECT pg_table_size('region_score_1'), pg_indexes_size('region_score_1'),"
                " pg_total_relation_size('image_score_1')"
            )
            table, key, image_scores = session.execute(asked).one()
        else:
            asked = text("SELECT name, SUM(pgsize) FROM dbstat GROUP BY name")
            sizes = {str(name): int(size) for name, size in session.execute(asked)}
            table, key = sizes["region_score"], 0  # the table is its key
            image_scores = sum(size for name, size in sizes.items() if "image_score" in name)
    return {
        "table, bytes a row": table / rows,
        "key, bytes a row": key / rows,
        "image scores, bytes a row": image_scores / rows,
    }


def _prune(database: Database) -> None:
    with database.session() as session:
        if not pruning.prune_run(session, run_id=1, patience=5):
            raise RuntimeError("The run is needed.")


def _delete(database: Database) -> None:
    while database.transact(lambda session: pruning.delete_pruned_rows(session, run_id=1, rows=20_000)):
        pass


if __name__ == "__main__":
    main()
