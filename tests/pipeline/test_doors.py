"""Every door by which a file is read refuses a device, a pipe, a part of /proc, and a file without end."""

from __future__ import annotations

import ast
import os
import re
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from flows.deployments import read_deployments
from flows.prefect_server import private_password
from pipeline.config import ModelConfig
from pipeline.config.starter import read_label_map
from pipeline.data.images import read_image
from pipeline.data.listings import read_groups, read_list
from pipeline.data.masks import MaskCodec, read_mask
from pipeline.data.project import load_project
from pipeline.errors import UserError
from pipeline.files import LARGEST_FILE, file_sha256, open_plain, read_plain
from pipeline.labeling.cvat.annotations import read_annotations as read_cvat
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.label_studio.annotations import read_annotations as read_label_studio
from pipeline.labeling.manifest import read_manifest
from pipeline.labeling.untrusted.archives import open_files
from pipeline.labeling.untrusted.coco_index import coco_items
from pipeline.labeling.voc.annotations import read_annotations as read_voc
from pipeline.model.build import read_tensors
from pipeline.model.checkpoints import (
    CARD_FILE,
    RESUME_FILE,
    WEIGHTS_FILE,
    load_model,
    load_resume,
    read_card,
)
from pipeline.regions.sources import read_region_map
from tests.conftest import write_config
from tests.factories import new_card

ROOT = Path(__file__).parents[2]
PLACES = {
    "pipe": "no plain file",
    "device": "no plain file",
    "kernel": "no plain file",
    "large": "more than the .* GiB|more than the .* MiB|more than .* bytes in line 1",
}


@pytest.fixture(autouse=True)
def _no_door_hangs() -> Generator[None]:
    """A blocked read of a pipe is an error after ten seconds."""

    def end(_signal: int, _frame: object) -> None:
        raise TimeoutError("A door hangs.")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, what: str) -> None:
    """Put something that is no plain small file at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "kernel":
        path.symlink_to("/proc/self/environ")
    else:
        with path.open("wb") as stream:
            stream.truncate(LARGEST_FILE + 1)  # sparse: it takes no space


def labels(folder: Path) -> LabelMap:
    folder.mkdir()
    return LabelMap(load_project(write_config(folder)).config.data)


def resume(path: Path) -> None:
    path.rename(path.with_name(RESUME_FILE))
    load_resume(path.parent)


def card(path: Path) -> None:
    path.rename(path.with_name(CARD_FILE))
    read_card(path.parent)


def archive(path: Path) -> None:
    with open_files(path):
        pass


def mask(path: Path) -> None:
    config = load_project(write_config(path.parent)).config.data
    read_mask(path, MaskCodec.from_config(config), size=None)


DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "configuration": ("segcurate.yaml", load_project),
    "label map": ("labels.txt", read_label_map),
    "deployments": ("prefect.yaml", lambda path: read_deployments(path, config=path)),
    "image": ("a.png", lambda path: read_image(path, channels=3, max_pixels=10**6)),
    "TIFF": ("a.tif", lambda path: read_image(path, channels=3, max_pixels=10**6)),
    "mask": ("mask.png", mask),
    "region map": ("map.png", lambda path: read_region_map(path, size=(10, 10), max_pixels=100)),
    "list": ("list.txt", lambda path: list(read_list(path))),
    "CSV": ("groups.csv", lambda path: list(read_groups(path))),
    "card": ("card", card),
    "resume": ("resume", resume),
    "weights": ("w.safetensors", read_tensors),
    "manifest": ("manifest.jsonl", lambda path: list(read_manifest(path))),
    "archive": ("a.zip", archive),
    "COCO": ("a.json", lambda path: list(coco_items(path))),
    "VOC": ("a.zip", lambda path: list(read_voc(path, labels(path.parent / "p")))),
    "CVAT": ("a.xml", lambda path: list(read_cvat(path, labels(path.parent / "p")))),
    "Label Studio": ("a.json", lambda path: list(read_label_studio(path, labels(path.parent / "p")))),
    "hash": ("a.bin", file_sha256),
    "bytes": ("a.bin", read_plain),
}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("door", DOORS)
def test_a_door_refuses_what_has_no_end(tmp_path: Path, door: str, what: str) -> None:
    name, read = DOORS[door]
    put(tmp_path / name, what)
    with pytest.raises(UserError, match=PLACES[what]):
        read(tmp_path / name)


@pytest.mark.parametrize("what", PLACES)
def test_a_checkpoint_refuses_weights_that_have_no_end(tmp_path: Path, what: str) -> None:
    put(tmp_path / WEIGHTS_FILE, what)
    card = new_card(ModelConfig(), ["a", "b"])
    (tmp_path / CARD_FILE).write_text(card.model_dump_json())
    with pytest.raises(UserError, match=PLACES[what]):
        load_model(tmp_path, device=torch.device("cpu"), class_names=None)


def test_the_password_of_a_server_is_in_a_plain_file(tmp_path: Path) -> None:
    put(tmp_path / "password", "pipe")
    with pytest.raises(UserError, match="no plain file"):
        private_password(tmp_path / "password")


def test_a_file_that_is_swapped_for_a_pipe_between_the_check_and_the_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, pipe = tmp_path / "plain", tmp_path / "pipe"
    plain.write_bytes(b"x")
    os.mkfifo(pipe)
    status = plain.stat()
    monkeypatch.setattr(Path, "stat", lambda _path, **_options: status)
    with pytest.raises(UserError, match="no plain file"):
        open_plain(pipe)


def test_a_line_of_a_list_is_bounded_and_its_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"a.png\n" + b"x" * (1 << 16) + b"\n")
    with pytest.raises(UserError, match="65536 bytes in line 2"):
        list(read_list(path))


READERS = re.compile("read_text|read_bytes|open")
WRITES = re.compile("[wax]")
OWN = {
    ("pipeline/files.py", "open"): "the door itself",
    ("pipeline/labeling/untrusted/archives.py", "open"): "a member of an archive",
    ("pipeline/processes.py", "read_text"): "/proc, of a running process",
    ("pipeline/machine.py", "read_text"): "/proc and /sys, of this machine",
    ("pipeline/report/page.py", "read_text"): "a template of the package",
    ("pipeline/data/remote.py", "open"): "an entry of the cache, by `BoundedFolder`",
    ("pipeline/model/encoder_cache.py", "open"): "an entry of the cache, by `BoundedFolder`",
    ("pipeline/labeling/voc/layout.py", "open"): "a list that was written just before",
    ("pipeline/labeling/coco_document.py", "open"): "parts that were written just before",
    ("flows/prefect_server.py", "read_text"): "checked by `require_plain`",
}


def test_no_module_opens_a_file_by_another_door() -> None:
    """A call of `open`, `read_text` or `read_bytes` that reads a path is in `OWN`, or the door is new."""
    found: set[tuple[str, str]] = set()
    for folder in ("pipeline", "flows"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and (name := _reader(call)) is not None:
                    found.add((path.relative_to(ROOT).as_posix(), name))
    assert found == OWN.keys()


def _reader(call: ast.Call) -> str | None:
    """The name of a call that opens a path to read it."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if READERS.fullmatch(name) is None:
        return None
    owner = function.value if isinstance(function, ast.Attribute) else None
    if isinstance(owner, ast.Name) and owner.id in ("Image", "os", "webbrowser"):  # of a stream; of a handle
        return None
    if any(keyword.arg == "longest" for keyword in call.keywords):  # a member of an archive
        return None
    modes = [argument.value for argument in call.args[:2] if isinstance(argument, ast.Constant)]
    return None if any(WRITES.search(str(mode)) for mode in modes) else name
