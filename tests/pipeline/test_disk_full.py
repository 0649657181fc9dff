"""A disk that is really full: a small file system of its own, with a filler that is taken away again."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as PillowImage

from db.engine import Database
from flows.cli import main
from pipeline.data.project import load_project
from pipeline.errors import UserError
from pipeline.files import PARTIAL
from pipeline.steps.export import export
from pipeline.steps.score import score
from pipeline.steps.train import train
from tests.factories import make_pool
from tests.pipeline.labeling.exported_project import make_exported
from tests.pipeline.steps.test_train import fill, make_training_project

SCORING: dict[str, Any] = {
    "samples": 2,
    "regions": {"kind": "grid", "cell": 16},
    "batch_size": 2,
    "shard_images": 2,
    "workers": 0,
    "heatmaps": {"images": "all", "measures": ["entropy", "mutual_information"]},
}
IMAGES = 12
Outcome = tuple[dict[str, list[Any]], dict[str, bytes]]


@dataclass(frozen=True)
class Disk:
    """A file system of its own, of a few megabytes."""

    folder: Path

    @property
    def free(self) -> int:
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    def leave(self, room: int) -> None:
        """Fill it up to so many bytes."""
        self.clear()
        with (self.folder / "filler").open("wb") as filler:
            filler.write(b"x" * max(0, self.free - room))

    def clear(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounted in memory: by root in place, by anybody else in a user namespace of its own, where a sleeping
    process holds it, and seen from here through /proc."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0777", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield Disk(folder)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        return
    inside = f"{' '.join(mount)} && echo ready && exec sleep 600"
    try:
        holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("a small disk needs `mount` as root, or `unshare`")
    assert holder.stdout is not None
    assert holder.stderr is not None
    try:
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"no small disk can be mounted here: {holder.stderr.read().strip()}")
        yield Disk(Path(f"/proc/{holder.pid}/root{folder}"))
    finally:
        holder.kill()
        holder.wait()


def rows(root: Path) -> dict[str, list[Any]]:
    """What the store says of the scores."""
    queries = {
        "regions": "SELECT image_id, region_index, x, y, predicted_class, entropy, mutual_information "
        "FROM region_score ORDER BY 1, 2",
        "images": "SELECT image_id, entropy, heatmaps FROM image_score ORDER BY 1",
        "shards": "SELECT first_image_id, status FROM shard ORDER BY 1",
        "runs": "SELECT finished_at IS NULL FROM scoring_run",
        "rounds": "SELECT number, state FROM round",
    }
    with sqlite3.connect(root / ".segcurate" / "segcurate.db") as connection:
        return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def heatmaps(root: Path) -> dict[str, bytes]:
    folder = root / ".segcurate" / "heatmaps"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def half_written(folder: Path) -> list[Path]:
    """Files that were begun, and images that are no images."""
    found = list(folder.rglob(f"*{PARTIAL}"))
    for path in folder.rglob("*.png"):
        try:
            PillowImage.open(path).verify()
        except Exception:
            found.append(path)
    return found


def segcurate(root: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The console script, in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["segcurate", "--config", str(root / "segcurate.yaml"), *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that is to be scored, all its heat maps included."""
    root = tmp_path_factory.mktemp("pool")
    project, database = make_pool(root, [(96, 64)] * IMAGES, scoring=SCORING)
    database.close()
    document = project.config.model_dump(mode="json", exclude_defaults=True)
    document["data"]["images"] = ["images"]
    (root / "segcurate.yaml").write_text(yaml.safe_dump(document))
    return root


@pytest.fixture(scope="module")
def undisturbed(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Rows and heat maps of a run that nothing stopped."""
    root = shutil.copytree(pool, tmp_path_factory.mktemp("undisturbed") / "project")
    project = load_project(root / "segcurate.yaml")
    database = Database(project.database_url)
    score(project, database)
    database.close()
    assert len(heatmaps(root)) == 2 * IMAGES
    return rows(root), heatmaps(root)


def test_heat_maps_on_a_full_disk_stop_the_run_and_once_there_is_room_it_goes_on(
    disk: Disk,
    tmp_path: Path,
    pool: Path,
    undisturbed: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(pool, tmp_path / "project")
    (root / ".segcurate" / "heatmaps").symlink_to(disk.folder)
    disk.leave(sum(-(-len(data) // 4096) * 4096 for data in undisturbed[1].values()) // 2)
    assert segcurate(root, "score", monkeypatch=monkeypatch) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the disk is full" in said
    assert str(root / ".segcurate" / "heatmaps") in said.replace(" ", "")
    assert "Free some space, then run the command again." in said
    stopped = rows(root)
    done = [first for first, status in stopped["shards"] if status == "done"]
    assert 0 < len(done) < IMAGES // 2
    assert len(stopped["images"]) == 2 * len(done)
    assert set(stopped["regions"]) < set(undisturbed[0]["regions"])
    assert half_written(disk.folder) == []
    disk.clear()
    assert segcurate(root, "score", monkeypatch=monkeypatch) == 0
    assert (rows(root), heatmaps(root)) == undisturbed


@pytest.mark.parametrize("room", [0, 240_000])
def test_a_disk_that_is_full_for_the_database_too_loses_nothing_that_was_committed(
    disk: Disk,
    room: int,
    pool: Path,
    undisturbed: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(pool, disk.folder / "project")
    disk.leave(room)
    assert segcurate(root, "score", monkeypatch=monkeypatch) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "full" in said
    assert "to do: " in said
    assert str(root / ".segcurate") in said.replace(" ", "")
    disk.clear()
    stopped = rows(root)
    assert set(stopped["regions"]) < set(undisturbed[0]["regions"])
    done = sum(status == "done" for _, status in stopped["shards"])
    assert len(stopped["images"]) == 2 * done
    assert (done > 0) == (room > 0)
    assert half_written(root) == []
    assert segcurate(root, "score", monkeypatch=monkeypatch) == 0
    assert (rows(root), heatmaps(root)) == undisturbed


def test_a_checkpoint_on_a_full_disk_stops_the_training_which_then_resumes(
    disk: Disk, tmp_path: Path
) -> None:
    weights: list[bytes] = []
    for name in ("undisturbed", "stopped"):
        project, _ = make_training_project(tmp_path / name, iterations=6, checkpoint_every=2)
        seen: list[int] = []
        with closing(Database(f"sqlite:///{tmp_path}/{name}.db")) as database:
            fill(project, database)
            if name == "stopped":
                (project.workdir / "models").symlink_to(disk.folder)
                # A checkpoint takes three times the weights; the second one does not fit beside the first.
                disk.leave(5 * len(weights[0]))
                refusal = "Cannot write 'resume.safetensors' in .*: the disk is full"
                with pytest.raises(UserError, match=refusal):
                    train(project, database)
                assert [path.name for path in (disk.folder / "r01").iterdir()] == ["resume.safetensors"]
                disk.clear()

            def note(title: str, done: int, total: int | None, _: str = "", seen: list[int] = seen) -> None:
                if title == "train r01":
                    seen.append(done)

            model = train(project, database, progress=note).model
        weights.append((project.path(model.checkpoint_uri) / "model.safetensors").read_bytes())
        assert seen == list(range(1 if name == "undisturbed" else 3, 7))
    assert weights[0] == weights[1]


def test_an_export_to_a_full_disk_leaves_nothing_and_can_be_run_again(disk: Disk, tmp_path: Path) -> None:
    made = make_exported(tmp_path)
    export_config = made.project.config.export.model_copy(update={"images": "copy"})
    project = replace(made.project, config=made.project.config.model_copy(update={"export": export_config}))
    folder = disk.folder / "queue"
    disk.leave(60_000)
    with pytest.raises(UserError, match="the disk is full") as caught:
        export(project, made.database, folder=folder)
    assert str(disk.folder) in caught.value.problem
    assert [path.name for path in disk.folder.iterdir()] == ["filler"]
    assert made.state() == (1, "export")
    disk.clear()
    assert export(project, made.database, folder=folder).folder == folder
    assert half_written(disk.folder) == []
    assert len((folder / "manifest.jsonl").read_text().splitlines()) == len(made.images())
