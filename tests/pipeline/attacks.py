"""Hostile files, and the doors that they go through, each measured in a process of its own."""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.data.images import read_image
from pipeline.data.listings import read_groups, read_list
from pipeline.data.masks import MaskCodec, read_mask
from pipeline.data.project import Project, load_project
from pipeline.data.sources import find_images, mask_path
from pipeline.errors import UserError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Rejected
from pipeline.labeling.manifest import BadLine, read_manifest
from pipeline.labeling.tools import tool_named
from pipeline.labeling.untrusted.archives import open_files
from pipeline.model.build import read_tensors
from pipeline.model.checkpoints import CARD_FILE, WEIGHTS_FILE, load_model
from pipeline.regions.superpixels import _load as load_superpixels
from tests.conftest import write_config
from tests.memory import status
from tests.pipeline.claiming_png import claiming_png

MIB = 1 << 20
SECONDS = 60
"""After so many the process ends."""


class Attack(NamedTuple):
    """A hostile file.

    Attributes:
        build: writes it into a folder, and returns its path.
        door: reads it.
        outcome: matches the error, or the rejections.
        mib: memory that reading it may take.
    """

    build: Callable[[Path], Path]
    door: Callable[[Path], object]
    outcome: str
    mib: int = 64


class Measured(NamedTuple):
    """What an attack has cost."""

    outcome: str
    mib: float
    seconds: float


def measure(name: str, path: Path, answer: Connection) -> None:
    """Run an attack; send what it has cost. The process has imported everything before."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (6 << 30), resource.RLIM_INFINITY))
    begun = time.monotonic()
    try:
        outcome = f"read: {ATTACKS[name].door(path)}"
    except UserError as error:
        outcome = str(error)
    except BaseException as error:
        outcome = f"TRACEBACK {error!r}"
    seconds = time.monotonic() - begun
    answer.send(Measured(outcome[:300], (status("VmHWM") - before) / MIB, seconds))


def write(folder: Path, name: str, content: bytes | Iterable[bytes]) -> Path:
    path = folder / name
    with path.open("wb") as stream:
        for part in [content] if isinstance(content, bytes) else content:
            stream.write(part)
    return path


def sparse(folder: Path, name: str, size: int, *, head: bytes = b"") -> Path:
    """A file of zeros that takes no space, after some bytes."""
    path = write(folder, name, head)
    os.truncate(path, size)
    return path


def zeros(mib: int) -> bytes:
    """Zeros, compressed."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(MIB)) for _ in range(mib)]
    return b"".join([*parts, packer.flush()])


def tiff(
    folder: Path, name: str, *, data: bytes = bytes(16), next_page: int = 0, **tags: tuple[int, int]
) -> Path:
    """A TIFF of 4×4 grey pixels. `tags`: of `t<code>`, a count and a value (or the place of the values)."""
    known = {256: (1, 4), 257: (1, 4), 258: (1, 8), 259: (1, 1), 262: (1, 1), 273: (1, 8)}
    known |= {277: (1, 1), 278: (1, 4), 279: (1, len(data))}
    known |= {int(code[1:]): value for code, value in tags.items()}
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", code, 4, *value) for code, value in sorted(known.items()))
    begin = 8 + len(data)
    page = struct.pack("<H", len(known)) + entries + struct.pack("<I", next_page)
    return write(folder, name, b"II*\0" + struct.pack("<I", begin) + data + page)


def looping_tiff(folder: Path) -> Path:
    return tiff(folder, "a.tif", next_page=24)


def tiff_of_pages(folder: Path) -> Path:
    """200 000 pages that share one strip."""
    size = 2 + 9 * 12 + 4
    plain = tiff(folder, "one.tif").read_bytes()
    head, page = plain[:24], plain[24:-4]
    places = (24 + size * (number + 1) for number in range(200_000))
    return write(folder, "a.tif", [head, *(page + struct.pack("<I", place) for place in places)])


def tiff_of_strips(folder: Path) -> Path:
    """100 million strips, whose places lie in a hole of the file."""
    path = tiff(folder, "a.tif", t273=(100_000_000, 4096), t279=(100_000_000, 4096))
    os.truncate(path, 900 * MIB)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_texts(folder: Path) -> Path:
    """2000 texts that unpack to 1 MiB each."""
    plain = claiming_png(4, 4)
    text = chunk(b"zTXt", b"a\0\0" + zeros(1))
    return write(folder, "a.png", [plain[:33], *[text] * 2000, plain[33:]])


def jpeg_of_exif(folder: Path) -> Path:
    """An EXIF block whose directory has 65 535 entries, each of four billion values, and itself inside."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="JPEG")
    entry = struct.pack("<HHII", 0x8769, 4, 0xFFFFFFFF, 8)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 0xFFFF) + entry * 5400
    block = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    plain = stream.getvalue()
    return write(folder, "a.jpg", [plain[:2], *[block] * 200, plain[2:]])


def gif_of_frames(folder: Path) -> Path:
    """100 000 frames of 60 000×60 000 pixels, under the ending of a PNG."""
    head = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x44\x01\0"
    return write(folder, "a.png", head + frame * 100_000 + b";")


def archive(folder: Path, **members: bytes) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/") + (".png" if "__" in name else ".zip"), content)
    return path


def zip_bomb(folder: Path) -> Path:
    """A mask of 2 GB of zeros, in 2 MB."""
    path = folder / "a.zip"
    name = "SegmentationClass/a.png"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labelmap.txt", "road:0,0,0::\n")
        with file.open(name, "w") as member:
            for _ in range(2000):
                member.write(bytes(MIB))
    return path


def nested_zip(folder: Path) -> Path:
    """Ten archives in each other, the innermost of 100 MB of zeros."""
    content = archive(folder, SegmentationClass__a=bytes(100 * MIB)).read_bytes()
    for _ in range(10):
        content = archive(folder, inner=content).read_bytes()
    return folder / "a.zip"


def billion_laughs(folder: Path) -> Path:
    entities = ['<!ENTITY a0 "ha">']
    entities += [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)]
    document = (
        f"<?xml version='1.0'?><!DOCTYPE annotations [{''.join(entities)}]><annotations>&a11;</annotations>"
    )
    return write(folder, "a.xml", document.encode())


def yaml_bomb(folder: Path) -> Path:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    lines.append("name: *a11")
    return write(folder, "segcurate.yaml", "\n".join(lines).encode())


def device(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "images" / "a.png").symlink_to("/dev/zero")
    return folder


def pipe(folder: Path) -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir()
    Image.new("RGB", (4, 4)).save(folder / "images" / "a.png")
    os.mkfifo(folder / "masks" / "a.png")
    return folder


def manifest_of_regions(folder: Path) -> Path:
    """A line of 16 MiB with five million empty regions."""
    line = b'{"regions": [' + b"{}," * 5_000_000 + b"{}]}"
    return write(folder, "manifest.jsonl", line + b"\n")


def manifest_of_wrong_regions(folder: Path) -> Path:
    line = b'{"regions": [' + b"{}," * 190_000 + b"{}]}"
    return write(folder, "manifest.jsonl", line + b"\n")


def superpixels(folder: Path) -> Path:
    """A map that declares 100 000×100 000 pixels."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<u4", "fortran_order": False, "shape": (100_000, 100_000)}
    )
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("superpixel.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(500):
            member.write(bytes(MIB))
    return path


def checkpoint(folder: Path) -> Path:
    """Weights of 15 GB beside a card that is nested too deeply."""
    sparse(folder, WEIGHTS_FILE, 15 << 30)
    return write(folder, CARD_FILE, b'{"model":' * 80_000).parent


def project_of(folder: Path, **changes: object) -> Project:
    folder.mkdir(exist_ok=True)
    return load_project(write_config(folder, **changes))


def image(path: Path) -> object:
    return read_image(path, channels=3, max_pixels=200_000_000).shape


def mask(path: Path) -> object:
    config = project_of(path.parent).config.data
    return read_mask(path, MaskCodec.from_config(config), size=None).shape


def images(folder: Path) -> object:
    found = list(find_images(project_of(folder, data={"images": "images", "classes": ["a", "b"]})))
    return [read_image(one.path, channels=3, max_pixels=10**6).shape for one in found]


def masks(folder: Path) -> object:
    project = project_of(folder)
    paths = [mask_path(project, found) for found in find_images(project)]
    codec = MaskCodec.from_config(project.config.data)
    return [read_mask(path, codec, size=None).shape for path in paths if path is not None]


def imported(tool: str) -> Callable[[Path], object]:
    """The door of a labeling tool: each annotation is read at once, as the import reads it."""

    def door(path: Path) -> object:
        labels = LabelMap(project_of(path.parent / "project").config.data)
        problems: list[str] = []
        for one in tool_named(tool).read(path, labels):
            if isinstance(one, Rejected):
                problems.append(one.reason)
                continue
            try:
                one.read(64, 48)
            except UserError as error:
                problems.append(str(error))
        return problems[:3]

    return door


def manifest(path: Path) -> object:
    return [one.reason for one in read_manifest(path) if isinstance(one, BadLine)]


def opened_archive(path: Path) -> object:
    with open_files(path) as files:
        return files.names


ATTACKS: dict[str, Attack] = {
    "TIFF mask of 12 000 channels": Attack(
        lambda folder: tiff(folder, "a.tif", data=zeros(1), t277=(1, 12_000), t259=(1, 8)),
        mask,
        "12000 channels; a mask has at most 4|not a readable image",
    ),
    "TIFF image of 12 000 channels": Attack(
        lambda folder: tiff(folder, "a.tif", data=zeros(1), t277=(1, 12_000), t259=(1, 8)),
        image,
        "12000 channels, where the model sees 3|not a readable image",
    ),
    "TIFF of 100 000×100 000 pixels in a strip": Attack(
        lambda folder: tiff(folder, "a.tif", t256=(1, 100_000), t257=(1, 100_000), t278=(1, 100_000)),
        image,
        "100000×100000 pixels, more than",
    ),
    "TIFF of 200 000 pages": Attack(tiff_of_pages, image, "more than 1024 pages"),
    "TIFF whose page follows itself": Attack(looping_tiff, image, "more than 1024 pages"),
    "TIFF of 100 million strips, sparse": Attack(tiff_of_strips, image, "more than 4194304 values"),
    "TIFF of 4 million pages below a page": Attack(
        lambda folder: tiff(folder, "a.tif", t330=(4_000_000, 8)), image, "values in its header"
    ),
    "TIFF strip that unpacks to 1 GB": Attack(
        lambda folder: tiff(folder, "a.tif", data=zeros(1000), t259=(1, 8)), image, "content is damaged"
    ),
    "PNG that declares 60 000×60 000 pixels": Attack(
        lambda folder: write(folder, "a.png", claiming_png(60_000, 60_000)),
        image,
        "more than `data.max_pixels`",
    ),
    "PNG of 10 GB, sparse": Attack(
        lambda folder: sparse(folder, "a.png", 10 << 30, head=claiming_png(4, 4)),
        image,
        "the file has 10240 MiB",
    ),
    "PNG of 2000 texts that unpack to 2 GB": Attack(png_of_texts, image, "content is damaged", mib=160),
    "JPEG of EXIF directories": Attack(jpeg_of_exif, image, "read: |content is damaged", mib=128),
    "GIF of 100 000 frames as PNG": Attack(gif_of_frames, image, "not what its ending says"),
    "link to /dev/zero among the images": Attack(device, images, "no plain file"),
    "pipe among the masks": Attack(pipe, masks, "no plain file"),
    "CSV listing of 10 GB, sparse": Attack(
        lambda folder: sparse(folder, "a.csv", 10 << 30),
        lambda path: list(read_groups(path)),
        "more than the 1 GiB",
    ),
    "CSV listing of one line of 900 MB": Attack(
        lambda folder: sparse(folder, "a.csv", 900 * MIB), lambda path: list(read_groups(path)), "in line 1"
    ),
    "list of one line of 900 MB": Attack(
        lambda folder: sparse(folder, "a.txt", 900 * MIB), lambda path: list(read_list(path)), "in line 1"
    ),
    "configuration of 100 000 brackets": Attack(
        lambda folder: write(folder, "segcurate.yaml", b"[" * 100_000), load_project, "nested too deeply"
    ),
    "configuration of 100 000 dashes": Attack(
        lambda folder: write(folder, "segcurate.yaml", b"- " * 100_000), load_project, "nested too deeply"
    ),
    "configuration of aliases of aliases": Attack(yaml_bomb, load_project, "is not valid"),
    "configuration of 10 GB, sparse": Attack(
        lambda folder: sparse(folder, "segcurate.yaml", 10 << 30), load_project, "more than the 1 MiB"
    ),
    "archive of a mask of 2 GB": Attack(zip_bomb, imported("voc"), "128 MiB that it may have", mib=200),
    "ten archives in each other": Attack(nested_zip, imported("voc"), "holds no masks"),
    "/dev/zero as an archive": Attack(lambda _: Path("/dev/zero"), opened_archive, "no plain file"),
    "JSON of 100 000 brackets": Attack(
        lambda folder: write(
            folder, "a.json", b'[{"annotations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
        ),
        imported("label-studio"),
        "nested too deeply",
    ),
    "COCO of 100 000 brackets": Attack(
        lambda folder: write(
            folder, "a.json", b'{"images": [' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}"
        ),
        imported("coco"),
        "nested|longer than|lists no images",
    ),
    "XML of entities of entities": Attack(billion_laughs, imported("cvat"), "declares a document type"),
    "manifest of five million regions": Attack(manifest_of_regions, manifest, "too many lists", mib=128),
    "manifest of 190 000 empty regions": Attack(
        manifest_of_wrong_regions, manifest, "Field required", mib=256
    ),
    "superpixels that declare 10 billion pixels": Attack(
        superpixels, lambda path: load_superpixels(path, size=(48, 64)), "read: None"
    ),
    "weights of 15 GB, sparse": Attack(
        lambda folder: sparse(folder, "a.safetensors", 15 << 30), read_tensors, "more than the 8 GiB"
    ),
    "weights whose header has 2^60 bytes": Attack(
        lambda folder: write(folder, "a.safetensors", struct.pack("<Q", 1 << 60) + bytes(100)),
        read_tensors,
        "not a readable safetensors",
    ),
    "card of 80 000 braces": Attack(
        checkpoint,
        lambda folder: load_model(folder, device=torch.device("cpu"), class_names=None),
        "not a model card",
    ),
}
