"""Images in an object store, tried with fsspec's file systems in memory and on this disk."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image as Picture
from pydantic import ValidationError
from sqlalchemy import select

from db.engine import Database
from db.tables import Failure, Image
from pipeline.config import ProjectConfig
from pipeline.data import bounded_folder, remote
from pipeline.data.image_info import ImageRef
from pipeline.data.images import read_image
from pipeline.data.listings import Named, PathTable
from pipeline.data.loading import Batch, Unreadable, load_batches
from pipeline.data.project import Project
from pipeline.data.remote import ImageCache, RemoteFile, opened
from pipeline.data.sources import FoldersAbove, find_images, mask_path
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.labeling.image_files import write_image
from pipeline.steps.ingest import ingest
from tests.factories import replace_sleep

ODD = ("a b.png", "Straße 東京.png", "#1?x=2&y.png", "100%25.png", 'it\'s+"so".png', "[x]*.png", "a..b.png")

BLOCKS = {name: {"fraction": 0.2, "by": "block", "block": 2} for name in ("calibration", "test")}
FEW = {"minimum_units": 1, "every_class": False}


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    files = MemoryFileSystem()
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def fetched(bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that were asked for, in order."""
    asked: list[str] = []
    get_file = MemoryFileSystem.get_file

    def counting(self: MemoryFileSystem, uri: str, *arguments: Any, **options: Any) -> Any:
        asked.append(uri)
        return get_file(self, uri, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counting)
    return asked


def project(root: Path, **data: Any) -> Project:
    splits = FEW | data.pop("splits", {})
    data = {"images": ["memory://b/frames"], "classes": ["a", "b"], **data}
    document = {"name": "p", "data": data, "splits": splits, "scoring": {"regions": {"cell": 8}}}
    return Project(config=ProjectConfig.model_validate(document), root=root)


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Picture.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def uris(found_in: Project) -> list[str]:
    return [found.uri for found in find_images(found_in)]


def image_of(uri: str, root: Path, *, limit: int = 2**20) -> RemoteFile:
    return RemoteFile(uri, ImageCache(root / "cache", limit))


def read(file: RemoteFile) -> bytes:
    with opened(file) as stream:
        return stream.read()


def kept(root: Path) -> int:
    """Bytes of the finished files in the cache."""
    return sum(path.stat().st_size for path in (root / "cache").glob("*/*") if path.suffix != ".partial")


def test_a_prefix_is_walked_like_the_same_folder(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    names = ["z.tif", "s10/a.JPG", "s2/f10.png", "s2/f9.png", "s2/x/b.png", "s2/readme.txt", ".git/a.png"]
    names += [f"odd/{name}" for name in ODD]
    for name in names:
        bucket.pipe_file(f"memory://b/frames/{name}", b"x")
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames" / name).write_bytes(b"x")
    local = [name.removeprefix("frames/") for name in uris(project(tmp_path, images=["frames"]))]
    assert local[0] == "z.tif"
    assert set(ODD) <= {name.removeprefix("odd/") for name in local}
    assert uris(project(tmp_path)) == [f"memory://b/frames/{name}" for name in local]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["memory://b/frames/*.png"], ["a.png"]),
        (["MEMORY:///b/frames/**/*.png"], ["a.png", "x/b.png", "x/y/c.png"]),
        (["memory://b/frames/x/[bc].???"], ["x/b.png"]),
        (["memory://b/frames/x/y/c.png"], ["x/y/c.png"]),
        (["memory://b/frames/x/", "memory://b"], ["x/b.png", "x/y/c.png", "a.jpg", "a.png"]),
    ],
)
def test_globs_single_objects_and_overlapping_prefixes(
    bucket: MemoryFileSystem, tmp_path: Path, entries: list[str], expected: list[str]
) -> None:
    for name in ("a.png", "a.jpg", "x/b.png", "x/y/c.png"):
        bucket.pipe_file(f"memory://b/frames/{name}", b"x")
    assert uris(project(tmp_path, images=entries)) == [f"memory://b/frames/{name}" for name in expected]


def test_a_prefix_with_nothing_is_named(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing at memory://nowhere/frames"):
        uris(project(tmp_path, images=["memory://nowhere/frames"]))


def test_an_image_is_fetched_once_however_often_it_is_read(
    bucket: MemoryFileSystem, fetched: list[str], tmp_path: Path
) -> None:
    bucket.pipe_file("memory://b/frames/a.png", picture())
    file = project(tmp_path).image("memory://b/frames/a.png")
    first = read_image(file, channels=3, max_pixels=1000)
    for _ in range(3):
        assert (read_image(file, channels=3, max_pixels=1000) == first).all()
    assert fetched == ["memory://b/frames/a.png"]


def test_the_cache_keeps_its_bound_and_lets_the_least_recently_read_go(
    bucket: MemoryFileSystem, fetched: list[str], tmp_path: Path
) -> None:
    files = [image_of(f"memory://b/{number}.png", tmp_path, limit=1000) for number in range(40)]
    for number, file in enumerate(files):
        bucket.pipe_file(file.uri, bytes([number]) * 100)
    for number, file in enumerate(files):
        assert read(file) == bytes([number]) * 100
        assert kept(tmp_path) <= 1000
        os.utime(file.cache.path_of(file.uri), (number, number))  # each later than the one before
        os.utime(files[0].cache.path_of(files[0].uri), (0, 0))
        read(files[0])  # the first to leave but for this
    assert len(fetched) == 40


def test_a_file_that_leaves_the_cache_stays_readable_for_who_has_it_open(
    bucket: MemoryFileSystem, tmp_path: Path
) -> None:
    first, second = (image_of(f"memory://b/{name}.png", tmp_path, limit=100) for name in "ab")
    bucket.pipe_file(first.uri, b"a" * 90)
    bucket.pipe_file(second.uri, b"b" * 90)
    with opened(first) as stream:
        assert stream.read(10) == b"a" * 10
        assert read(second) == b"b" * 90
        assert not first.cache.path_of(first.uri).exists()
        assert stream.read() == b"a" * 80


def test_an_object_larger_than_the_cache_is_read_all_the_same(
    bucket: MemoryFileSystem, fetched: list[str], tmp_path: Path
) -> None:
    file = image_of("memory://b/a.png", tmp_path, limit=10)
    bucket.pipe_file(file.uri, b"a" * 90)
    assert [read(file), read(file)] == [b"a" * 90] * 2
    bucket.pipe_file("memory://b/b.png", b"b" * 9)
    assert read(image_of("memory://b/b.png", tmp_path, limit=10)) == b"b" * 9
    assert kept(tmp_path) <= 10


def test_what_a_killed_process_left_behind_goes_and_a_lost_ledger_is_written_anew(
    bucket: MemoryFileSystem, tmp_path: Path
) -> None:
    for number in range(9):
        file = image_of(f"memory://b/{number}.png", tmp_path, limit=1000)
        bucket.pipe_file(file.uri, b"x" * 100)
        read(file)
    old = tmp_path / "cache" / "00" / ".dead.partial"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    (tmp_path / "cache" / bounded_folder._LEDGER).unlink()
    last = image_of("memory://b/last.png", tmp_path, limit=1000)
    bucket.pipe_file(last.uri, b"x" * 200)
    read(last)
    assert not old.exists()
    assert kept(tmp_path) <= 1000


def test_processes_that_share_a_small_cache_read_every_image_whole(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store" / f"{number}.png").write_bytes(bytes([number]) * 5000)
    reader = (
        "import random, sys; from pathlib import Path; from pipeline.data.remote import *\n"
        "root = Path(sys.argv[1]); cache = ImageCache(root / 'cache', 20_000)\n"
        "for number in random.sample(range(30), 30) * 4:\n"
        "    with opened(RemoteFile(f'file://{root}/store/{number}.png', cache)) as stream:\n"
        "        assert stream.read() == bytes([number]) * 5000, number\n"
    )
    command = [sys.executable, "-c", reader, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(process.wait(60), process.communicate()[1]) for process in running] == [(0, "")] * 3
    assert 0 < kept(tmp_path) <= 20_000


def test_a_damaged_object_is_fetched_anew_once_it_is_mended(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    whole = picture()
    bucket.pipe_file("memory://b/frames/a.png", whole[:-60])
    file = project(tmp_path).image("memory://b/frames/a.png")
    with pytest.raises(DataError, match="^memory://b/frames/a.png is not a readable image"):
        read_image(file, channels=3, max_pixels=1000)
    bucket.pipe_file("memory://b/frames/a.png", whole)
    assert read_image(file, channels=3, max_pixels=1000).shape == (16, 24, 3)


def test_a_store_that_comes_back_in_time_is_only_waited_for(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_file, waits = MemoryFileSystem.get_file, []
    replace_sleep(monkeypatch, waits.append)

    def away(self: MemoryFileSystem, *arguments: Any, **options: Any) -> Any:
        if len(waits) < 3:
            raise ConnectionResetError("Connection reset by peer")
        return get_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", away)
    bucket.pipe_file("memory://b/a.png", b"x")
    assert read(image_of("memory://b/a.png", tmp_path)) == b"x"
    assert waits == [0.5, 1.0, 2.0]


def test_what_cannot_be_fetched_is_unreadable_and_the_rest_goes_on(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_file, attempts = MemoryFileSystem.get_file, []
    replace_sleep(monkeypatch, lambda _: None)
    monkeypatch.setattr(remote, "_away_until", {})

    def broken(self: MemoryFileSystem, uri: str, *arguments: Any, **options: Any) -> Any:
        if "away" not in uri:
            return get_file(self, uri, *arguments, **options)
        attempts.append(uri)
        raise OSError("Cannot connect to http://me:hidden@host/b?X-Amz-Signature=hidden now")

    monkeypatch.setattr(MemoryFileSystem, "get_file", broken)
    names = ["a.png", "away.png", "away too.png", "gone.png", "z.png"]
    for name in set(names) - {"gone.png"}:
        bucket.pipe_file(f"memory://b/frames/{name}", picture())
    refs = [
        ImageRef(number, project(tmp_path).image(f"memory://b/frames/{name}"), 24, 16)
        for number, name in enumerate(names)
    ]
    found = list(
        load_batches(
            refs, channels=3, max_pixels=1000, input_scale=1, mean=[0.5] * 3, std=[1] * 3, batch_size=1,
            workers=0,
        )
    )  # fmt: skip
    assert [item.ids[0] for item in found if isinstance(item, Batch)] == [0, 4]
    reasons = [item.reason for item in found if isinstance(item, Unreadable)]
    assert reasons == [
        "memory://b/frames/away.png cannot be fetched: Cannot connect to http://host/b now. "
        "Check the network and the endpoint, then run the command again.",
        "memory://b/frames/away too.png cannot be fetched: Cannot connect to http://host/b now. "
        "Check the network and the endpoint, then run the command again.",
        "There is no memory://b/frames/gone.png. Put it back, or run `segcurate ingest` again.",
    ]
    assert len(attempts) == len(remote.PAUSES) + 1 + 1  # the second image is not waited for as long


def test_a_full_disk_while_fetching_is_no_fault_of_the_image(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    bucket.pipe_file("memory://b/frames/a.png", picture())
    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(UserError, match="the disk is full") as caught:
        read_image(project(tmp_path).image("memory://b/frames/a.png"), channels=3, max_pixels=1000)
    assert not isinstance(caught.value, DataError)
    assert not list((tmp_path / ".segcurate" / "cache").glob("*/*"))


def test_ingest_writes_the_same_rows_as_from_a_folder(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    names = [f"s1/f{number}.png" for number in range(12)] + [f"odd/{name}" for name in ODD]
    rows: dict[str, list[Any]] = {}
    for seed, name in enumerate(names):
        content = picture(seed)
        bucket.pipe_file(f"memory://b/frames/{name}", content)
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames" / name).write_bytes(content)
        mask = tmp_path / "masks" / name
        mask.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(np.full((16, 24), seed % 2, np.uint8)).save(mask)
    bucket.pipe_file("memory://b/frames/bad.png", picture()[:-60])
    (tmp_path / "frames" / "bad.png").write_bytes(picture()[:-60])
    for entry in ("frames", "memory://b/frames"):
        database = Database(f"sqlite:///{tmp_path / entry.rpartition('/')[0].strip(':/')}.db")
        report = ingest(project(tmp_path, images=[entry], masks="masks", splits=BLOCKS), database)
        assert (report.found, report.added, report.failures, report.masks) == (20, 19, 1, 19)
        with database.session(write=False) as session:
            columns = select(
                Image.uri, Image.sha256, Image.width, Image.position, Image.split, Image.mask_uri
            ).order_by(Image.id)
            rows[entry] = [(row.uri.removeprefix(entry), *row[1:]) for row in session.execute(columns)]
            failure = session.scalars(select(Failure)).one()
            assert failure.subject == f"{entry}/bad.png"
            assert str(tmp_path) not in failure.reason or entry == "frames"
        database.close()
    assert rows["memory://b/frames"] == rows["frames"]


def test_lists_folders_of_splits_templates_and_exports_know_uris(
    bucket: MemoryFileSystem, tmp_path: Path
) -> None:
    content = picture()
    for name in ("val/a.png", "train/b.png"):
        bucket.pipe_file(f"memory://b/frames/{name}", content)
    (tmp_path / "masks" / "val").mkdir(parents=True)
    (tmp_path / "masks" / "val" / "a.png").write_bytes(content)
    with_masks = project(tmp_path, masks="masks", splits={"test": {"folder": "memory://b/frames/val/*"}})
    by_name = {found.name: found for found in find_images(with_masks)}
    held_out = Named(with_masks, with_masks.config.splits.test)
    assert [name for name, found in by_name.items() if found in held_out] == ["a.png"]
    assert mask_path(with_masks, by_name["a.png"]) == tmp_path / "masks" / "val" / "a.png"
    assert mask_path(with_masks, by_name["b.png"]) is None
    assert FoldersAbove(with_masks).parent(by_name["b.png"].path) == "train"
    table = PathTable([("memory:///b/frames/val/a.png", "whole"), ("train/b.png", "below")])
    assert [table.get(by_name[name]) for name in ("a.png", "b.png")] == ["whole", "below"]
    placed = write_image(
        by_name["a.png"].path, tmp_path, name="0001", size=(24, 16), how="link", root=tmp_path
    )
    shutil.rmtree(tmp_path / ".segcurate")
    assert (tmp_path / placed).read_bytes() == content
    assert not (tmp_path / placed).is_symlink()


def test_threads_that_want_one_image_at_once_all_get_it(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.png").write_bytes(b"x" * 1000)
    file = image_of(f"file://{tmp_path}/b/a.png", tmp_path)  # memory:// has one reading position for all
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: read(file), range(64))) == {b"x" * 1000}
    assert kept(tmp_path) == 1000


@pytest.mark.parametrize(
    "options",
    [{"key": "AKIA"}, {"secret": "x"}, {"token": "x"}, {"client_kwargs": {"aws_secret_access_key": "x"}},
     {"account_key": "x"}, {"sas_token": "x"}, {"connection_string": "x"}, {"password": "x"}],
)  # fmt: skip
def test_a_secret_in_the_settings_is_refused_and_not_repeated(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match="which does not belong in this file") as caught:
        project(tmp_path, storage_options=options)
    assert "AKIA" not in caught.value.errors(include_input=False)[0]["msg"]


@pytest.mark.parametrize("uri", ["s3://me:secret@bucket/frames", "https://host/a.png?X-Amz-Signature=1"])
def test_a_uri_that_carries_credentials_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ValidationError, match="credentials do not belong here"):
        project(tmp_path, images=[uri])


def test_endpoints_and_names_with_an_at_sign_are_no_secrets(tmp_path: Path) -> None:
    made = project(
        tmp_path,
        images=["s3://bucket/frames@2x:left"],
        storage_options={
            "endpoint_url": "http://minio:9000",
            "anon": True,
            "client_kwargs": {"region_name": "eu"},
        },
    )
    assert isinstance(made.image("s3://bucket/frames@2x:left/a.png"), RemoteFile)


def test_only_images_may_be_remote(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="s3://bucket/masks is in an object store, where only `data.images`"
    ):
        list(find_images(project(tmp_path, masks="s3://bucket/masks", images=["."])))


def test_a_store_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"pip install 'segcurate\[s3\]'"):
        uris(project(tmp_path, images=["s3://bucket/frames"]))
    with pytest.raises(ConfigError, match="no way to read nosuch://"):
        uris(project(tmp_path, images=["nosuch://bucket/frames"]))
