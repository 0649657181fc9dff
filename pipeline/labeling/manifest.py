"""The manifest of an exported queue, in every format: a JSON line for each image, and small files beside it.

An imported manifest is untrusted: it names a queue and its images, and every path, size and box is taken
from the database instead.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from pipeline.files import append_text, atomic_write_bytes, open_plain
from pipeline.format import csv_line

MANIFEST = "manifest.jsonl"
REGIONS = "regions.csv"
LABEL_MAP = "labelmap.json"
README = "README.md"
IMAGES, PREMASKS, OVERLAYS, HEATMAPS, MASKS = "images", "premasks", "overlays", "heatmaps", "masks"

_CSV_COLUMNS = (
    *("rank", "image", "mask", "item", "x", "y", "w", "h", "outline", "measure", "score", "predicted_class"),
    *("slice", "inclusion_probability", "reason", "clicks", "image_id", "uri"),
)
_LONGEST_LINE = 1 << 24
_MOST_CONTAINERS = 200_000
"""Opening braces and brackets of a line: each takes many times more memory than text."""
_LONGEST_STEM = 60
_EXPORT_NAME = re.compile(r"([0-9]{4,9})_([0-9]{1,18})(?:_|$)")


def _stays_inside(value: str) -> str:
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", value):
        raise ValueError("a path leaves the folder")
    return value


PathInside = Annotated[str, AfterValidator(_stays_inside)]


class ManifestRegion(BaseModel):
    """A queue item: its box and shape in pixels of the upright image, and why it was picked."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    item: int
    rank: int
    x: int
    y: int
    w: int
    h: int
    outline: str | None = None
    """The region's pixels of the box, in COCO's compressed run-length encoding; None for all of them."""
    polygons: list[list[tuple[int, int]]] = []
    """The outer borders of a region with an outline, a list of x, y for each part."""
    measure: str | None = None
    score: float | None = None
    predicted_class: str | None = None
    slice: str
    inclusion_probability: float | None = None
    """Of the audit slice only: the probability that it was drawn."""
    reason: str
    clicks: float | None = None
    """Estimated effort of labeling it."""


class ManifestImage(BaseModel):
    """A line of the manifest. Paths are relative to the exported folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    queue: str
    round: int | None = None
    image_id: int
    uri: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: int
    height: int
    rank: int
    """The best rank among the image's regions."""
    scores: dict[str, float | None] = {}
    model: str | None = None
    image: PathInside
    premask: PathInside | None = None
    overlay: PathInside | None = None
    heatmap: PathInside | None = None
    """A grey PNG at a quarter of the image's resolution: 255 where checking matters most."""
    mask: PathInside | None = None
    """The path for the annotator's mask, in a format with a folder for labels."""
    regions: Annotated[list[ManifestRegion], FailFast()]


def manifest_of(source: Path) -> Path | None:
    """The manifest of an exported folder, of its `masks`, or of a file in it; None where there is none."""
    folders = [source, source.parent] if source.is_dir() else [source.parent]
    if source.is_dir() and source.name != MASKS:
        folders = [source]
    paths = [folder.resolve() / MANIFEST for folder in folders]
    return next((path for path in paths if path.is_file() and not path.is_symlink()), None)


class BadLine(BaseModel):
    """A line that is not an entry of a manifest."""

    number: int
    reason: str


def export_name(*, rank: int, image_id: int, uri: str) -> str:
    """The name that an image's files share in an export: plain ASCII, and unique to the image.

    >>> export_name(rank=3, image_id=12, uri="left/Été d'hier (1).jpg")
    '0003_12_Ete_d_hier_1'
    >>> export_name(rank=4, image_id=13, uri="景色.png")
    '0004_13'
    """
    plain = unicodedata.normalize("NFKD", PurePosixPath(uri).stem).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:_LONGEST_STEM].rstrip("_-")
    return f"{rank:04d}_{image_id}" + (f"_{stem}" if stem else "")


def rank_and_image(name: str) -> tuple[int, int] | None:
    """The rank and the image's id in a name that looks like one of `export_name`; None for any other name.

    >>> rank_and_image("0003_12_Ete_d_hier_1")
    (3, 12)
    >>> rank_and_image("frame_12")
    """
    match = _EXPORT_NAME.match(name)
    return None if match is None else (int(match[1]), int(match[2]))


class ManifestWriter:
    """Writes a manifest line by line, and at the end the small files beside it: the regions as CSV, the label
    map, and a README.

    Args:
        folder: exists, and has no other writer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[tuple[int, str]] = []
        self.images = 0
        self.regions = 0
        self.outlines = False
        """Whether any region is no rectangle."""

    def add(self, entry: ManifestImage) -> None:
        """Write an image's line.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        append_text(self._folder / MANIFEST, entry.model_dump_json() + "\n")
        self._lines += _region_lines(entry)
        self.images += 1
        self.regions += len(entry.regions)
        self.outlines = self.outlines or any(region.outline for region in entry.regions)

    def finish(self, *, label_map: dict[str, Any], readme: str) -> None:
        """Write the files that belong to the whole queue.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        lines = [csv_line(_CSV_COLUMNS), *(line for _, line in sorted(self._lines))]
        atomic_write_bytes(self._folder / REGIONS, "".join(lines).encode())
        document = json.dumps(label_map, indent=2, ensure_ascii=False) + "\n"
        atomic_write_bytes(self._folder / LABEL_MAP, document.encode())
        atomic_write_bytes(self._folder / README, readme.encode())


def read_manifest(path: Path) -> Iterator[ManifestImage | BadLine]:
    """The entries of an untrusted manifest, and a `BadLine` for each line that is not an entry.

    Raises:
        DataError: it is no plain file.
    """
    with open_plain(path) as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if not line.strip():
                continue
            if line.count(b"[") + line.count(b"{") > _MOST_CONTAINERS:
                yield BadLine(number=number, reason="it has too many lists in it")
                continue
            try:
                yield ManifestImage.model_validate_json(line)
            except ValidationError as error:
                yield BadLine(number=number, reason=_explain(error))


def _explain(error: ValidationError) -> str:
    """The first problem, without the value that caused it."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    location = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def _region_lines(entry: ManifestImage) -> Iterator[tuple[int, str]]:
    """The rank and the CSV line of each region of an image."""
    of_image = {"image": entry.image, "mask": entry.mask, "image_id": entry.image_id, "uri": entry.uri}
    for region in entry.regions:
        row = {**region.model_dump(exclude={"polygons"}), **of_image}
        yield region.rank, csv_line([row[name] for name in _CSV_COLUMNS])
