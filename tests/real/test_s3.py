"""Images in a bucket: the loop against an S3 server on loopback, through a gate that can be shut.

The server is moto's, a process of its own; with SEGCURATE_TEST_S3 (an endpoint's URL) and AWS credentials in
the environment it is that one instead. Buckets are made and removed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image as Picture

from pipeline.data.project import load_project
from pipeline.data.sources import find_images
from tests.conftest import draw, write_config
from tests.real.house import free_port

pytestmark = pytest.mark.timeout(1200)  # two rounds of commands are the first test's set-up

ROOT = Path(__file__).parents[2]
SECRET = "wJalr-not-a-secret-of-anybody"
ODD = ("a b.png", "Straße 東京.png", "#1?x=2&y.png", "100%25.png", 'it\'s+"so".png', "[x]*.png", "a..b.png")
TO_SCORE, FROM_SCORE = ("ingest", "train", "calibrate", "evaluate"), ("score", "select", "export")


@dataclass(frozen=True)
class Squares:
    """Projects of the same images: after a round from a folder, after one from a bucket, and that one before
    its pool was scored."""

    here: Path
    there: Path
    unscored: Path
    bucket: str


@dataclass
class Gate:
    """A port on loopback that passes bytes on to a server, and can be shut."""

    server: tuple[str, int]
    passed: int = 0
    """Connections so far."""
    cut_after: int | None = None
    """The next answer is cut off after so many bytes."""
    _open: list[socket.socket] = field(default_factory=list)
    _listener: socket.socket | None = None
    port: int = 0

    def open(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse what comes, and end what is under way."""
        for each in (self._listener, *self._open):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(self.server)
            except OSError:
                return
            self.passed += 1
            self._open += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answer: bool) -> None:
        with suppress(OSError):
            passed = 0  # of the answer; its head and its body may come apart
            while data := source.recv(65536):
                passed = 0 if data.startswith(b"HTTP/") else passed
                if answer and self.cut_after is not None and passed + len(data) > self.cut_after:
                    data, self.cut_after = data[: max(0, self.cut_after - passed)], None
                    target.sendall(data)
                    break
                passed += len(data)
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    given = os.environ.get("SEGCURATE_TEST_S3")
    process = None
    if given:
        parts = urlsplit(given)
        server = (parts.hostname or "127.0.0.1", parts.port or 80)
    else:
        server = ("127.0.0.1", free_port())
        command = [sys.executable, "-m", "moto.server", "-H", server[0], "-p", str(server[1])]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = Gate(server)
    for _ in range(200):
        with suppress(OSError), socket.create_connection(server, timeout=1):
            break
        time.sleep(0.1)
    made.open()
    yield made
    made.shut()
    if process is not None:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module", autouse=True)
def environment(gate: Gate) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        if not os.environ.get("SEGCURATE_TEST_S3"):
            patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield


@pytest.fixture(scope="module")
def store(environment: None) -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


@pytest.fixture
def bucket(store: Any) -> Iterator[str]:
    yield from _bucket(store)


def _bucket(store: Any) -> Iterator[str]:
    name = f"segcurate-{uuid.uuid4().hex[:12]}"
    store.mkdir(name)
    yield name
    store.rm(name, recursive=True)


@pytest.fixture(scope="module")
def squares(store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Squares]:
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for index in range(24):
        size = (64, 48) if index % 3 else (48, 64)
        name = f"frame_{index:03d}.png" if index % 4 else f"odd #{index}?ü%41.png"
        draw(here / "images", here / "masks", name=name, seed=index, size=size)
    shutil.copytree(here / "masks", there / "masks")
    buckets = _bucket(store)
    bucket = next(buckets)
    for path in (here / "images").iterdir():
        store.pipe_file(f"{bucket}/some frames/{path.name}", path.read_bytes())
    write_config(here)
    configure(there, bucket)
    loop(here, *TO_SCORE, *FROM_SCORE)
    loop(there, *TO_SCORE)
    unscored = shutil.copytree(there, tmp_path_factory.mktemp("unscored") / "there")
    loop(there, *FROM_SCORE)
    yield Squares(here, there, unscored, bucket)
    next(buckets, None)


def configure(folder: Path, bucket: str, **data: Any) -> Path:
    images = f"s3://{bucket}/some frames"
    return write_config(
        folder,
        data={"images": images, "masks": "masks", "classes": ["ground", "red", "blue"], **data},
    )


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    quiet = {"OMP_NUM_THREADS": "1", "COLUMNS": "240", "NO_ALBUMENTATIONS_UPDATE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        env={**os.environ, **quiet, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def loop(folder: Path, *commands: str) -> None:
    """Several commands in one process."""
    code = "import sys; from flows.cli.app import app; import flows.cli\n"
    code += "for command in sys.argv[1:]: app([command], standalone_mode=False)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def run(folder: Path, *arguments: str, **environment: str) -> str:
    process = start(folder, *arguments, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, f"{arguments}: {errors}{output}"
    return output


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    """What a command says that ends with exit code 1."""
    process = start(folder, *arguments, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, f"{arguments}: {errors}{output}"
    assert "Traceback" not in errors
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in errors + output
    return " ".join(errors.split())


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / ".segcurate" / "segcurate.db") as connection:
        return connection.execute(query).fetchall()


SCORES = (
    "SELECT i.sha256, s.region_index, s.x, s.y, s.w, s.h, s.predicted_class, s.entropy, s.mutual_information "
    "FROM region_score s JOIN image i ON i.id = s.image_id ORDER BY 1, 2"
)


def again(before: Path, to: Path) -> Path:
    """A copy of the project when its pool was to be scored, on a machine that has fetched nothing yet."""
    return shutil.copytree(before, to / "copy", ignore=shutil.ignore_patterns("cache"))


def test_a_round_from_a_bucket_ends_where_one_from_a_folder_does(squares: Squares) -> None:
    here, there, bucket = squares.here, squares.there, squares.bucket
    assert all(
        uri.startswith(f"s3://{bucket}/some frames/") for (uri,) in rows(there, "SELECT uri FROM image")
    )
    for query in (
        "SELECT sha256, width, height, position, split, mask_uri FROM image ORDER BY id",
        "SELECT checkpoint_sha256 FROM model",
        "SELECT sampler, calibrator, parameters FROM calibration ORDER BY 1",
        "SELECT name, class_index, value, low, high FROM metric ORDER BY evaluation_id, 1, 2",
        SCORES,
        "SELECT rank, image_id, x, y, w, h, score, reason FROM queue_item ORDER BY rank",
    ):
        local = rows(here, query)
        assert local
        assert rows(there, query) == local
    names = [
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in (folder / "queues").rglob("*.png")
        }
        for folder in (here, there)
    ]
    assert names[1] == names[0]
    exported = list((there / "queues" / "round-01" / "images").iterdir())
    assert exported
    assert not any(path.is_symlink() for path in exported)
    manifest = (there / "queues" / "round-01" / "manifest.jsonl").read_text().splitlines()
    assert all(json.loads(line)["uri"].startswith(f"s3://{bucket}/some frames/") for line in manifest)


def test_nothing_of_this_machine_is_in_the_store(squares: Squares) -> None:
    there = squares.there
    with sqlite3.connect(there / ".segcurate" / "segcurate.db") as connection:
        dump = "\n".join(connection.iterdump())
    assert str(there) not in dump
    assert ".segcurate/cache" not in dump
    assert SECRET not in dump


def test_more_objects_than_a_page_holds_are_listed_in_natural_order_with_their_own_names(
    store: Any, bucket: str, tmp_path: Path
) -> None:
    names = [f"s{number % 3}/f{number}.png" for number in range(1150)] + [f"odd/{name}" for name in ODD]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.pipe_file(f"{bucket}/some frames/{name}", b"x"), names))
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    local = [
        found.below for found in find_images(load_project(write_config(tmp_path, data=_plain("images"))))
    ]
    prefix = f"s3://{bucket}/some frames"
    found = [each.uri for each in find_images(load_project(write_config(tmp_path, data=_plain(prefix))))]
    assert found == [f"{prefix}/{name}" for name in local]
    assert len(found) == 1150 + len(ODD)
    for glob, count in (
        (f"{prefix}/s1/*.png", 383),
        (f"{prefix}/odd/#1?x=2&y.png", 1),
        (f"s3://{bucket}", 1157),
    ):
        globbed = load_project(write_config(tmp_path, data=_plain(glob)))
        assert len(list(find_images(globbed))) == count


def _plain(images: str) -> dict[str, Any]:
    return {"images": images, "classes": ["a", "b"]}


def test_an_object_that_vanishes_is_a_failure_and_the_rest_is_scored(
    squares: Squares, store: Any, tmp_path: Path
) -> None:
    here, copy = squares.here, again(squares.unscored, tmp_path)
    ((uri, sha256),) = rows(
        copy, "SELECT uri, sha256 FROM image WHERE split = 'pool' ORDER BY id DESC LIMIT 1"
    )
    content = store.cat_file(uri.removeprefix("s3://"))
    store.rm_file(uri.removeprefix("s3://"))
    try:
        assert "1 image could not be read" in run(copy, "score")
    finally:
        store.pipe_file(uri.removeprefix("s3://"), content)
    ((subject, reason),) = rows(copy, "SELECT subject, reason FROM failure WHERE step = 'score'")
    assert (subject, reason) == (
        uri, f"There is no {uri}. Put it back, or run `segcurate ingest` again."
    )  # fmt: skip
    scored, others = rows(copy, SCORES), [row for row in rows(here, SCORES) if row[0] != sha256]
    assert [row[:7] for row in scored] == [row[:7] for row in others]
    # the last bit depends on what an image is batched with, and one is missing there
    assert [value for row in scored for value in row[7:]] == pytest.approx(
        [value for row in others for value in row[7:]], abs=1e-5
    )


def test_a_server_that_is_away_for_three_seconds_costs_no_image(
    squares: Squares, gate: Gate, tmp_path: Path
) -> None:
    here, copy = squares.here, again(squares.unscored, tmp_path)
    before = gate.passed
    process = start(copy, "score")
    while gate.passed == before and process.poll() is None:
        time.sleep(0.002)
    gate.shut()
    began = time.monotonic()
    time.sleep(3)
    assert process.poll() is None
    gate.open()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "could not be read" not in output
    assert rows(copy, SCORES) == rows(here, SCORES)
    assert time.monotonic() - began < 60


def test_an_answer_that_is_cut_off_is_asked_for_again(squares: Squares, gate: Gate, tmp_path: Path) -> None:
    here, copy = squares.here, again(squares.unscored, tmp_path)
    gate.cut_after = 700
    run(copy, "score")
    assert gate.cut_after is None
    assert rows(copy, SCORES) == rows(here, SCORES)


def test_the_cache_keeps_its_bound_while_everything_is_scored(squares: Squares, tmp_path: Path) -> None:
    here, copy = squares.here, again(squares.unscored, tmp_path)
    limit = 20_000
    assert sum(path.stat().st_size for path in (here / "images").iterdir()) > 2 * limit
    most = 0
    process = start(copy, "score", SEGCURATE_DATA__CACHE_GIB=str(limit / 2**30))
    while process.poll() is None:
        time.sleep(0.01)
        sizes = []
        for path in (copy / ".segcurate" / "cache").glob("??/*"):
            with suppress(FileNotFoundError):
                sizes.append(0 if path.suffix == ".partial" else path.stat().st_size)
        most = max(most, sum(sizes))
    assert process.returncode == 0
    assert 0 < most <= limit
    assert rows(copy, SCORES) == rows(here, SCORES)


def test_a_truncated_object_is_recorded_and_taken_once_it_is_whole(
    store: Any, bucket: str, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    Picture.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(stream, "PNG")
    store.pipe_file(f"{bucket}/some frames/bad.png", stream.getvalue()[:3000])
    draw(tmp_path, None, name="good.png", seed=1)
    store.pipe_file(f"{bucket}/some frames/good.png", (tmp_path / "good.png").read_bytes())
    write_config(tmp_path, data=_plain(f"s3://{bucket}/some frames"))
    assert "1 file could not be used" in run(tmp_path, "ingest")
    ((subject, reason),) = rows(tmp_path, "SELECT subject, reason FROM failure")
    assert subject == f"s3://{bucket}/some frames/bad.png"
    assert reason.startswith(f"s3://{bucket}/some frames/bad.png is not a readable image")
    store.pipe_file(f"{bucket}/some frames/bad.png", stream.getvalue())
    run(tmp_path, "ingest")
    assert rows(tmp_path, "SELECT count(*) FROM failure") == [(0,)]
    assert rows(tmp_path, "SELECT count(*) FROM image") == [(2,)]


def test_init_takes_a_bucket(bucket: str, store: Any, tmp_path: Path) -> None:
    draw(tmp_path, None, name="good.png", seed=1)
    store.pipe_file(f"{bucket}/some frames/good.png", (tmp_path / "good.png").read_bytes())
    run(tmp_path, "init", "--images", f"s3://{bucket}/some frames", "--classes", "a,b")
    assert "Found 1 image file, 1 of them new" in run(tmp_path, "ingest")


def test_what_is_missing_is_said_plainly(bucket: str, store: Any, gate: Gate, tmp_path: Path) -> None:
    write_config(tmp_path, data=_plain(f"s3://{bucket}-not/frames"))
    assert f"there is nothing at s3://{bucket}-not/frames" in refused(tmp_path, "ingest")
    store.pipe_file(f"{bucket}/some frames/a.txt", b"x")
    write_config(tmp_path, data=_plain(f"s3://{bucket}/some frames"))
    assert "There is no image in" in refused(tmp_path, "ingest")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    command = start(tmp_path, "ingest", **nobody)
    errors = " ".join(command.communicate(timeout=60)[1].split())
    assert command.returncode == 1
    assert "no credentials were found" in errors
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = refused(tmp_path, "ingest", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    assert "cannot be fetched: Could not connect to the endpoint URL" in said
    assert "Check the network and the endpoint" in said
    assert "list-type" not in said
