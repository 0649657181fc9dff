"""The comparison finds what is lost, what is there twice, and what is otherwise; and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

from db.engine import Database
from db.tables import Failure, Image, ImageScore, Lease, Round, Shard, utc_now
from tests.factories import add_model, new_image, new_run, put, score_columns
from tests.real.kill.comparison import differences, leftovers

HEATMAP = ".segcurate/heatmaps/{}/{}_entropy.png"


def make(root: Path, *, first_id: int = 1, run_id: int = 1) -> Database:
    """Two scored images with heat maps; their ids begin where they are told to, and so does the run's."""
    (root / ".segcurate").mkdir(parents=True)
    database = Database(f"sqlite:///{root / '.segcurate' / 'segcurate.db'}")
    with database.session() as session:
        add_model(session, state="select")
        put(session, new_run(id=run_id))
        for position in range(2):
            image_id = first_id + position
            put(session, new_image(f"{position}.png", id=image_id, position=position))
            uri = HEATMAP.format(run_id, image_id)
            values = score_columns(run_id=run_id, image_id=image_id, regions=1, heatmaps={"entropy": uri})
            session.add(ImageScore(**values))
            (root / uri).parent.mkdir(parents=True, exist_ok=True)
            (root / uri).write_bytes(f"map {position}".encode())
        shard = {"status": "done", "scored": 2, "finished_at": utc_now()}
        session.add(Shard(run_id=run_id, first_image_id=first_id, last_image_id=first_id + 1, **shard))
        session.add(Failure(step="ingest", subject="bad.png", reason="Damaged."))
    return database


def compare(mine: Database, my_root: Path, theirs: Database, their_root: Path) -> list[str]:
    return differences(mine.engine, my_root, theirs.engine, their_root)


def test_the_same_with_other_ids_other_times_and_other_cuts_is_the_same(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", first_id=41, run_id=2)
    with other.session() as session:
        session.execute(update(Image).values(ingested_at=utc_now() - timedelta(days=3)))
        session.execute(update(Shard).values(last_image_id=41, scored=1, attempts=2, owner="somebody"))
        done = {"status": "done", "scored": 1, "finished_at": utc_now()}
        session.add(Shard(run_id=2, first_image_id=42, last_image_id=42, **done))
    assert compare(one, tmp_path / "one", other, tmp_path / "other") == []


def lose_a_row(session: Session, root: Path) -> None:
    session.execute(delete(ImageScore).where(ImageScore.image_id == 2))


def change_a_number_by_its_last_bit(session: Session, root: Path) -> None:
    session.execute(update(ImageScore).where(ImageScore.image_id == 2).values(entropy=0.50000006))


def have_a_row_twice(session: Session, root: Path) -> None:
    session.execute(text("DROP TABLE failure"))
    session.execute(text("CREATE TABLE failure (id INTEGER, step TEXT, subject TEXT, reason TEXT, at TEXT)"))
    for number in (1, 2):
        session.execute(
            text("INSERT INTO failure VALUES (:id, 'ingest', 'bad.png', 'Damaged.', '2026-11-22 02:00:00')"),
            {"id": number},
        )


def leave_a_time_out(session: Session, root: Path) -> None:
    session.execute(update(Round).values(closed_at=utc_now()))


def hold_a_lease(session: Session, root: Path) -> None:
    session.add(Lease(name="train", owner="a:1:1", taken_at=utc_now(), until=utc_now()))


def leave_a_shard_open(session: Session, root: Path) -> None:
    session.execute(update(Shard).values(status="running"))


def damage_a_file(session: Session, root: Path) -> None:
    (root / HEATMAP.format(1, 1)).write_bytes(b"ma")


def lose_a_file(session: Session, root: Path) -> None:
    (root / HEATMAP.format(1, 1)).unlink()


def leave_half_a_file(session: Session, root: Path) -> None:
    (root / ".segcurate" / ".x.partial").write_bytes(b"ha")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lose_a_row, ["row of image_score: 1 × missing"]),
        (change_a_number_by_its_last_bit, ["image_score: 1 × too much", "image_score: 1 × missing"]),
        (have_a_row_twice, ["row of failure: 1 × too much"]),
        (leave_a_time_out, ["round: 1 × too much", "round: 1 × missing"]),
        (hold_a_lease, ["lease: train is held still"]),
        (leave_a_shard_open, ["shards: 1 × too much", "shards: 1 × missing"]),
        (damage_a_file, ["file: 1 × too much", "file: 1 × missing"]),
        (lose_a_file, ["file: 1 × missing"]),
        (leave_half_a_file, ["file: 1 × too much"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_difference_is_told(
    tmp_path: Path, change: Callable[[Session, Path], None], told: list[str]
) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    with one.session() as session:
        change(session, tmp_path / "one")
    found = compare(one, tmp_path / "one", other, tmp_path / "other")
    assert len(found) == len(told), found
    for part in told:
        assert any(part in line for line in found), found


def test_what_a_kill_leaves_behind_is_told(tmp_path: Path) -> None:
    make(tmp_path / "one").close()
    assert leftovers(tmp_path / "one") == []
    for name in (".x.partial", "resume.safetensors"):
        (tmp_path / "one" / name).write_bytes(b"")
    shutil.copytree(tmp_path / "one" / ".segcurate", tmp_path / "one" / ".queue.partial")
    assert leftovers(tmp_path / "one") == [".queue.partial", ".x.partial", "resume.safetensors"]
