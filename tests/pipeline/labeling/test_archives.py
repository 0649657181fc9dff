"""The files of a zip archive or folder, whatever a stranger has put there."""

from __future__ import annotations

import io
import os
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.labeling.untrusted import archives
from pipeline.labeling.untrusted.archives import is_zip, open_files, read_file

MIB = 1 << 20


def archive(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def names(path: Path) -> list[str]:
    with open_files(path) as files:
        return files.names


def refusals(path: Path) -> dict[str, str]:
    with open_files(path) as files:
        return {rejection.subject: rejection.reason for rejection in files.rejected}


def content(path: Path, name: str, *, longest: int = MIB) -> bytes:
    with open_files(path) as files:
        return read_file(files, name, longest=longest)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_and_a_folder_give_the_same_files(tmp_path: Path, method: int) -> None:
    wanted = {"a.txt": b"a", "deep/ä b.png": os.urandom(3 * MIB), "empty": b""}
    for name, data in wanted.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    archive(tmp_path / "made.zip", wanted, method=method)
    for source in (tmp_path / "folder", tmp_path / "made.zip"):
        with open_files(source) as files:
            found = {name: read_file(files, name, longest=4 * MIB) for name in files.names}
        assert found == wanted


def test_two_thousand_masks_go_through_in_little_memory(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8), (1024, 32))).save(stream, format="PNG")
    mask = stream.getvalue()
    path = archive(tmp_path / "masks.zip", {f"masks/{number}.png": mask for number in range(2000)})
    tracemalloc.start()
    with open_files(path) as files:
        assert len(files.names) == 2000
        assert all(read_file(files, name, longest=MIB) == mask for name in files.names)
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["../up.png", "/root.png", "a/../../b.png", "..\\c.png", "C:\\d.png", "C:e.png", "a\\b.png"]
)
def test_a_member_that_would_leave_is_refused_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "slip.zip", {name: b"out", "in.png": b"in"})
    assert refusals(path) == {name: "Its path leads out of the archive."}
    assert names(path) == ["in.png"]
    assert content(path, "in.png") == b"in"


def test_a_name_is_cut_at_no_zero(tmp_path: Path) -> None:
    path = archive(tmp_path / "zero.zip", {"good.pngX../../x": b"out", "in.png": b"in"})
    path.write_bytes(path.read_bytes().replace(b"good.pngX", b"good.png\0"))
    assert names(path) == ["in.png"]
    assert list(refusals(path)) == ["good.png\\x00../../x"]


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_special_files_are_refused(tmp_path: Path, mode: int) -> None:
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as made:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (mode | 0o777) << 16
        made.writestr(info, "/etc/passwd")
    assert names(tmp_path / "link.zip") == []
    assert refusals(tmp_path / "link.zip") == {"link.png": "It is a link, or no plain file."}


def test_encrypted_members_and_other_methods_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "encrypted.zip", {"a.png": b"secret"})
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert refusals(path) == {"a.png": "It is encrypted."}
    path = archive(tmp_path / "lzma.zip", {"a.png": b"x"}, method=zipfile.ZIP_LZMA)
    assert refusals(path) == {"a.png": "It is compressed by a method that cannot be read."}


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.png": b"a", "b.png": b"b"})
    path.write_bytes(path.read_bytes().replace(b"a.png", b"\0.png"))
    assert names(path) == ["b.png"]
    assert list(refusals(path)) == ["\\x00.png"]


def test_a_name_that_two_members_have_is_neithers(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as made:
        made.writestr("a.png", "one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("a.png", "two")
        made.writestr("b.png", "b")
    assert names(tmp_path / "twice.zip") == ["b.png"]
    assert refusals(tmp_path / "twice.zip") == {"a.png": "The archive has more than one file of this name."}


def test_what_operating_systems_add_is_passed_over(tmp_path: Path) -> None:
    path = archive(tmp_path / "mac.zip", {"__MACOSX/._a.png": b"", "x/.DS_Store": b"", "a.png": b"a"})
    assert names(path) == ["a.png"]
    assert refusals(path) == {}


def test_a_bomb_gives_no_more_than_is_asked_for(tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb.zip", {"a.xml": bytes(200 * MIB), "b.png": b"b"})
    tracemalloc.start()
    with open_files(path) as files:
        with pytest.raises(DataError, match="a.xml has more than the 1 MiB"):
            read_file(files, "a.xml", longest=MIB)
        assert read_file(files, "b.png", longest=MIB) == b"b"
    assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    tracemalloc.stop()


def test_a_stated_size_is_not_believed(tmp_path: Path) -> None:
    path = archive(tmp_path / "liar.zip", {"a.xml": bytes(5 * MIB)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<L", 5 * MIB), struct.pack("<L", 10)))
    with pytest.raises(DataError, match="damaged"):
        content(path, "a.xml", longest=6 * MIB)


def test_all_members_together_give_no_more_than_a_share_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "ALWAYS_BYTES", 3 * MIB)
    path = archive(tmp_path / "many.zip", {f"{number}.png": bytes(MIB) for number in range(9)})
    with open_files(path) as files:
        read: list[int] = []
        with pytest.raises(DataError, match="far more than its own size"):
            read += [len(read_file(files, name, longest=2 * MIB)) for name in files.names]
    assert path.stat().st_size < 12_000  # 3 MiB, and 100 times that: the fifth is too much


def test_more_entries_than_the_limit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "many.zip", {f"{number}.png": b"" for number in range(101)})
    monkeypatch.setattr(archives, "MOST_MEMBERS", 100)
    with pytest.raises(DataError, match="more than 100 files"):
        names(path)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<HH", raw, len(raw) - 14, 3, 3)  # it states three
    path.write_bytes(raw)
    with pytest.raises(DataError, match="more than 100 files"):
        names(path)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 101)
    assert len(names(path)) == 101
    monkeypatch.setattr(archives, "LARGEST_DIRECTORY", 1000)
    with pytest.raises(DataError, match="files"):
        names(path)


def test_an_archive_of_more_than_65535_members_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "zip64.zip", {f"{number}": b"" for number in range(65_600)})
    assert b"PK\x06\x06" in path.read_bytes()[-100:]
    assert len(names(path)) == 65_600


def test_a_zip64_record_with_a_gigantic_directory_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "zip64.zip", {f"{number}": b"" for number in range(65_600)})
    raw = bytearray(path.read_bytes())
    struct.pack_into("<Q", raw, raw.rindex(b"PK\x06\x06") + 40, 1 << 60)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="files"):
        names(path)


def test_an_archive_with_a_comment_and_bytes_before_it_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.png": b"a"})
    with zipfile.ZipFile(path, "a") as made:
        made.comment = b"exported on a Sunday"
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert content(path, "a.png") == b"a"


@pytest.mark.parametrize("keep", [0, 3, 10, 100, 5000, -1, -22, -40])
def test_a_truncated_archive_is_a_data_error(tmp_path: Path, keep: int) -> None:
    path = archive(tmp_path / "cut.zip", {"a.png": os.urandom(9000), "b.png": b"b"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged, or no zip archive"):
        names(path)


def test_flipped_bytes_are_data_errors_or_harmless(tmp_path: Path) -> None:
    path = archive(tmp_path / "flip.zip", {"a.png": b"abcdefgh" * 20, "b.png": os.urandom(50)})
    raw, generator = path.read_bytes(), np.random.default_rng(0)
    damaged = 0
    for _ in range(600):
        flipped = bytearray(raw)
        for place in generator.integers(0, len(raw), size=3).tolist():
            flipped[place] = int(generator.integers(256))
        path.write_bytes(flipped)
        try:
            with open_files(path) as files:
                for name in files.names:
                    read_file(files, name, longest=MIB)
        except DataError:
            damaged += 1
    assert damaged > 300


def test_a_folder_gives_plain_files_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(b"a")
    (folder / ".hidden").write_bytes(b"h")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    (folder / "link.png").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    assert names(folder) == ["sub/a.png"]
    assert refusals(folder) == {
        "link.png": "It is a link.",
        "loop": "It is a link.",
        "pipe.png": "It is not a plain file.",
        "\\xdcff.png": "Its name is not valid text.",
    }
    with pytest.raises(DataError, match="more than the 0 MiB"):
        content(folder, "sub/a.png", longest=0)


def test_only_an_archive_is_taken_for_one(tmp_path: Path) -> None:
    assert is_zip(archive(tmp_path / "a.zip", {"a": b""}))
    assert is_zip(archive(tmp_path / "empty.zip", {}))
    (tmp_path / "text.zip").write_text("PKhello")
    assert not is_zip(tmp_path / "text.zip")
    assert not is_zip(tmp_path)
