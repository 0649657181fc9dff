"""No error shows the text of a file: a secret in it stays where it is, whatever the door."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from flows.deployments import read_deployments
from pipeline.config import ModelConfig
from pipeline.config.starter import read_label_map
from pipeline.data.images import read_image
from pipeline.data.listings import Named, read_groups, read_list
from pipeline.data.project import load_project
from pipeline.errors import UserError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Rejected
from pipeline.labeling.manifest import BadLine, read_manifest
from pipeline.labeling.tools import recognise, tool_named
from pipeline.labeling.untrusted.archives import open_files
from pipeline.model.build import _compare_names, read_tensors
from pipeline.model.checkpoints import CARD_FILE, load_weights, read_card
from pipeline.regions.sources import read_region_map
from tests.conftest import write_config

SECRET = "hunter2-s3cret"
SHADOW = f"root:$6${SECRET}:19000:0:99999:7:::\ndaemon:{SECRET}\n".encode()
ENVIRONMENT = f"AWS_SECRET_ACCESS_KEY={SECRET}\nexport TOKEN='{SECRET}\n".encode()
BROKEN_JSON = f'{{"password": "{SECRET}", {SECRET}: [1,}}'.encode()
BROKEN_YAML = f"password: '{SECRET}\n  - {SECRET}: [".encode()
BROKEN_XML = f"<annotations><image name='a'>{SECRET}<{SECRET}></annotations>".encode()
XML_ENCODING = f"<?xml version='1.0' encoding='{SECRET}'?><annotations/>".encode()
CSV = f"image,group,position\na.png,{SECRET},{SECRET}\n".encode()
LATIN = SECRET.encode() + b"\xff\xfe\n"
TEXTS = [SHADOW, ENVIRONMENT, BROKEN_JSON, BROKEN_YAML, BROKEN_XML, XML_ENCODING, CSV, LATIN]


def imported(tool: str | None) -> Callable[[Path], object]:
    def door(path: Path) -> object:
        (path.parent / "project").mkdir()
        labels = LabelMap(load_project(write_config(path.parent / "project")).config.data)
        reader = recognise(path) if tool is None else tool_named(tool)
        return [one.reason for one in reader.read(path, labels) if isinstance(one, Rejected)]

    return door


def manifest(path: Path) -> list[str]:
    return [one.reason for one in read_manifest(path) if isinstance(one, BadLine)]


def archive(path: Path) -> object:
    with open_files(path) as files:
        return files.names


def card(path: Path) -> None:
    path.rename(path.with_name(CARD_FILE))
    read_card(path.parent)


def image(path: Path) -> None:
    read_image(path, channels=3, max_pixels=10**6)


DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "configuration": ("segcurate.yaml", load_project),
    "deployments": ("prefect.yaml", lambda path: read_deployments(path, config=path)),
    "JSON label map": ("labels.json", read_label_map),
    "YAML label map": ("labels.yaml", read_label_map),
    "CSV label map": ("labels.csv", read_label_map),
    "CSV": ("groups.csv", lambda path: list(read_groups(path))),
    "card": ("card", card),
    "weights": ("w.safetensors", read_tensors),
    "manifest": ("manifest.jsonl", manifest),
    "any archive": ("a.zip", archive),
    "any file": ("a.json", imported(None)),
    "Label Studio": ("a.json", imported("label-studio")),
    "COCO": ("a.json", imported("coco")),
    "CVAT": ("a.xml", imported("cvat")),
    "VOC": ("a.zip", imported("voc")),
    **{f"{ending} image": (f"a.{ending}", image) for ending in ("png", "jpg", "tif", "webp", "bmp")},
    "region map": ("map.png", lambda path: read_region_map(path, size=(9, 9), max_pixels=100)),
}


@pytest.mark.parametrize("content", TEXTS, ids=lambda content: content[:12])
@pytest.mark.parametrize("door", DOORS)
def test_a_file_of_another_kind_is_refused_without_its_text(
    tmp_path: Path, door: str, content: bytes
) -> None:
    name, read = DOORS[door]
    (tmp_path / name).write_bytes(content)
    try:
        said = str(read(tmp_path / name))
    except UserError as error:
        said = str(error)
    assert said not in ("None", "[]")
    assert SECRET not in said
    assert len(said) < 2000


def chunked(content: bytes) -> bytes:
    """A file that begins like a PNG, with the secret where a chunk is expected."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", chunked(SECRET.encode())),
        ("a.tif", b"II*\0\x08\0\0\0\x02\0" + SECRET.encode() * 3),
        ("a.bmp", b"BM" + SECRET.encode() * 9),
        ("a.webp", b"RIFF\x40\0\0\0WEBP" + SECRET.encode() * 5),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\x10" + SECRET.encode() * 5),
    ],
)
def test_a_damaged_image_is_refused_without_its_text(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        image(tmp_path / name)
    assert not any(SECRET[start : start + 4] in str(caught.value) for start in range(len(SECRET) - 4))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.json", BROKEN_JSON, "line 1, column"),
        ("labels.yaml", BROKEN_YAML, "line"),
        ("labels.txt", f"{SECRET}\nb\n{SECRET}\n".encode(), "the classes 1 and 3"),
        ("labels.csv", f"name,id\na,{SECRET}\n".encode(), "an unknown format"),
        ("labels.json", json.dumps([{"name": "a", "color": [SECRET]}]).encode(), "not valid, in its `color`"),
    ],
)
def test_a_label_map_names_the_place_of_a_problem(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_label_map(tmp_path / name)
    assert SECRET not in str(caught.value)


def test_a_csv_and_a_list_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_bytes(CSV)
    with pytest.raises(UserError, match="line 2 that is no number") as caught:
        list(read_groups(tmp_path / "groups.csv"))
    assert SECRET not in str(caught.value)
    (tmp_path / "list.txt").write_bytes(b"a.png\n" + LATIN)
    with pytest.raises(UserError, match="not UTF-8 in line 2") as caught:
        list(read_list(tmp_path / "list.txt"))
    assert SECRET not in str(caught.value)


def test_lines_of_a_list_that_name_no_image_are_counted_and_numbered(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(SHADOW * 3)
    project = load_project(write_config(tmp_path, splits={"test": {"list": "list.txt"}}))
    said = Named(project, project.config.splits.test).unmatched()
    assert said is not None
    assert SECRET not in said


def test_the_names_of_tensors_stay_in_their_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({SECRET: torch.zeros(1)}))
    with pytest.raises(UserError, match="tensors are missing") as caught:
        _compare_names(ModelConfig(encoder="tu-mobilenetv3_small_050"), read_tensors(path), path)
    assert SECRET not in str(caught.value)

    class Network:
        def load_weights(self, state: dict[str, Any]) -> None:
            raise RuntimeError(f"Unexpected key(s): {list(state)}")

    with pytest.raises(UserError, match="not those of this network") as caught:
        load_weights(Network(), read_tensors(path), source=path)  # pyright: ignore[reportArgumentType]
    assert SECRET not in str(caught.value)


def test_a_value_of_the_wrong_kind_in_a_configuration_is_not_shown(tmp_path: Path) -> None:
    path = write_config(tmp_path, device={"password": SECRET})
    with pytest.raises(UserError, match="device") as caught:
        load_project(path)
    assert SECRET not in str(caught.value)
