"""The manifest of an exported queue: one JSON line an image, and the small files beside it.

What comes back is untrusted: a manifest names a queue and its images, and every path, size and box is taken
from the store instead.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.files import atomic_write_bytes

MANIFEST = "manifest.jsonl"
REGIONS = "regions.csv"
LABEL_MAP = "labelmap.json"
README = "README.md"
IMAGES, PREMASKS, OVERLAYS, MASKS = "images", "premasks", "overlays", "masks"

_OUTLINES = f"""
## Regions that are no rectangles

The overlay shows their borders, and the proposals end there; what is painted outside of them is taken too.
For a program, `{MANIFEST}` says which pixels of its box a region holds: `polygons` are its outer borders,
lists of x, y in pixels of the image; `outline` is exact, the `counts` of a COCO run-length encoding whose
`size` is [h, w] of the box. `pycocotools.mask.decode({{"size": [h, w], "counts": outline}})` is the mask to
put at x, y. Both are empty where a region fills its box.
"""
_LONGEST_LINE = 1 << 26
_LONGEST_STEM = 60


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
    """Which pixels of the box the region holds, in COCO's compressed run-length encoding; None for all."""
    polygons: list[list[tuple[int, int]]] = []
    """The outer borders of a region with an outline, a list of x, y for each part."""
    measure: str | None = None
    score: float | None = None
    predicted_class: str | None = None
    slice: str
    inclusion_probability: float | None = None
    """Of the audit slice only: the chance that it was drawn."""
    reason: str


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
    mask: PathInside
    """Where the annotator puts the mask."""
    regions: list[ManifestRegion]


class BadLine(BaseModel):
    """A line that is not an entry of a manifest."""

    number: int
    reason: str


def export_name(*, rank: int, image_id: int, uri: str) -> str:
    """The name that an image's files share in an export: plain ASCII, and one image's only.

    >>> export_name(rank=3, image_id=12, uri="left/Été d'hier (1).jpg")
    '0003_12_Ete_d_hier_1'
    >>> export_name(rank=4, image_id=13, uri="景色.png")
    '0004_13'
    """
    plain = unicodedata.normalize("NFKD", PurePosixPath(uri).stem).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:_LONGEST_STEM].rstrip("_-")
    return f"{rank:04d}_{image_id}" + (f"_{stem}" if stem else "")


def write_manifest(folder: Path, entries: Sequence[ManifestImage], *, label_map: dict[str, Any]) -> None:
    """Write the manifest, the regions as CSV, the label map and the annotator's README.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    lines = "".join(entry.model_dump_json() + "\n" for entry in entries)
    atomic_write_bytes(folder / MANIFEST, lines.encode())
    atomic_write_bytes(folder / REGIONS, _regions_csv(entries).encode())
    document = json.dumps(label_map, indent=2, ensure_ascii=False) + "\n"
    atomic_write_bytes(folder / LABEL_MAP, document.encode())
    atomic_write_bytes(folder / README, _readme(entries, label_map).encode())


def read_manifest(path: Path) -> Iterator[ManifestImage | BadLine]:
    """The entries of a manifest that came back, and the lines that are none, without trusting any."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                yield ManifestImage.model_validate_json(line)
            except ValidationError as error:
                yield BadLine(number=number, reason=_explain(error))


def _explain(error: ValidationError) -> str:
    """The first problem, without the value that caused it."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _regions_csv(entries: Sequence[ManifestImage]) -> str:
    columns = ["rank", "image", "mask", *ManifestRegion.model_fields, "image_id", "uri"]
    columns = [name for name in dict.fromkeys(columns) if name != "polygons"]
    rows = [
        {**region.model_dump(exclude={"polygons"}), "image": entry.image, "mask": entry.mask}
        | {"image_id": entry.image_id, "uri": entry.uri}
        for entry in entries
        for region in entry.regions
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["rank"]))
    return stream.getvalue()


def _readme(entries: Sequence[ManifestImage], label_map: dict[str, Any]) -> str:
    regions = sum(len(entry.regions) for entry in entries)
    classes = "\n".join(
        f"| {item['id']} | {item['name'].replace('|', '/')} | {_hex(item['color'])} |"
        for item in label_map["classes"]
    )
    unpainted = label_map["not_labeled"]
    review = entries[0].regions[0].slice == "review"
    shown = "what of the label the model doubts" if review else "where the model is unsure"
    start = "the label as it is now" if review else "the model's own proposal"
    leave = ", or leave it as it is where it is right" if review else ""
    return f"""# {entries[0].queue}: {regions} regions in {len(entries)} images

The most useful first: names begin with the rank, and `{REGIONS}` lists every region with its box (x, y, width
and height in pixels, from the top left of the upright image) and the reason why it was picked.

1. Open an image of `{IMAGES}/`. The overlay of the same name in `{OVERLAYS}/` shows the regions to
   label, and {shown}.
2. Paint every pixel inside the regions, and save the mask as a PNG of the image's size under the same name
   in `{MASKS}/`. You may start from {start}: copy it from `{PREMASKS}/` to `{MASKS}/`,
   and correct it{leave}. Whole images are welcome too.
3. Run `segcurate import` with this folder. Only what is in `{MASKS}/` counts, and it can be run again:
   a corrected mask replaces the one before it.

A mask's pixel values are the class ids below; or its colours are, in a palette or RGB mask.

| id | class | colour |
|---:|---|---|
{classes}
| {unpainted["id"]} | not labeled | {_hex(unpainted["color"])} |

A pixel that you cannot tell stays "not labeled". A region counts as labeled once half of it is painted.
{_OUTLINES if any(region.outline for entry in entries for region in entry.regions) else ""}"""


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)
