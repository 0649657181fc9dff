"""What is fuzzed: every reader, with valid sources as its writer makes them to begin with."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.coco import COCO
from pipeline.labeling.coco_panoptic import COCO_PANOPTIC
from pipeline.labeling.cvat import CVAT
from pipeline.labeling.exchange import DecodedMask, Tool
from pipeline.labeling.folder import FOLDER
from pipeline.labeling.label_studio import LABEL_STUDIO, TasksWriter, brush
from pipeline.labeling.manifest import MASKS, PREMASKS
from pipeline.labeling.unchanged import PROPOSALS
from pipeline.labeling.untrusted.archives import open_files, read_file
from pipeline.labeling.untrusted.json_items import iter_items, load_item
from pipeline.labeling.untrusted.xml_elements import iter_elements
from pipeline.labeling.voc import CVAT_MASKS, VOC
from tests.fuzz.contract import check_mask, check_tool, expect
from tests.fuzz.sources import Files, Shape
from tests.pipeline.labeling.small_queue import label_map, outgoing_image, outgoing_queue, shapes, write_queue

LABELS = label_map(("road", "sky & <cloud>", "日本"))
SIZES: dict[int | str, tuple[int, int]] = {1000: (12, 10), 1001: (1, 1), 1002: (7, 16)}
LONGEST = 1 << 16
_ID = re.compile(r"\d+_(\d{1,9})_")
_XML_FILE = "annotations.xml"
_OF_VOC = ("labelmap.txt", "ImageSets", "SegmentationClass", "SegmentationObject")


@dataclass(frozen=True)
class Seed:
    """A valid source; `main` is the one file of a source that is a file."""

    files: Files
    shape: Shape
    main: str


@dataclass(frozen=True)
class Target:
    """A reader. `run` reads a source, gives how many masks came out, and raises where a promise is broken."""

    name: str
    seeds: Sequence[Seed]
    run: Callable[[Path], int]


def targets() -> list[Target]:
    """All of them."""
    coco, panoptic = _written(COCO), _written(COCO_PANOPTIC)
    instances = "annotations/instances_default.json"
    tasks = {kind: {"answers.json": _answers(kind)} for kind in ("bitmask", "brush")}
    masks = {name: content for name, content in _written(FOLDER).items() if not name.startswith(PREMASKS)}
    masks |= _moved(_written(FOLDER), PREMASKS, MASKS)
    document = {instances: coco[instances]}
    return [
        _of_tool(COCO, [Seed(document, "file", instances), Seed(coco, "folder", ""), Seed(coco, "zip", "")]),
        _of_tool(COCO, [Seed(_polygons(), "file", "a.json")], name="coco of others"),
        _of_tool(COCO_PANOPTIC, [Seed(panoptic, "folder", "")]),
        _of_tool(LABEL_STUDIO, [Seed(files, "file", "answers.json") for files in tasks.values()]),
        _of_tool(CVAT, [Seed(files, shape, _XML_FILE) for files in _cvat() for shape in ("file", "zip")]),
        _of_tool(CVAT_MASKS, [Seed(_only(CVAT_MASKS, _OF_VOC), "zip", "")]),
        _of_tool(VOC, [Seed(_only(VOC, _OF_VOC), "folder", "")]),
        _of_tool(FOLDER, [Seed(masks, "folder", "")]),
        Target("brush", [Seed({"rle.json": _brush()}, "file", "rle.json")], _read_brush),
        Target("json items", [Seed(document, "file", instances), *_files(tasks)], _read_json_items),
        Target("archives", [Seed(panoptic, "zip", ""), Seed(panoptic, "folder", "")], _read_archive),
        Target("xml elements", [Seed(files, "file", _XML_FILE) for files in _cvat()], _read_xml),
    ]


def size_of(image: int | str) -> tuple[int, int]:
    """Width and height of an image of the seeds; any other one's are those of the first."""
    named = _ID.match(image) if isinstance(image, str) else None
    return SIZES.get(int(named[1]) if named else image, SIZES[1000])


def _of_tool(tool: Tool, seeds: Sequence[Seed], *, name: str | None = None) -> Target:
    return Target(name or tool.name, seeds, lambda source: check_tool(tool, source, LABELS, size_of))


def _masks() -> list[Mask]:
    made: list[Mask] = []
    for seed, (width, height) in enumerate(SIZES.values()):
        mask = shapes(np.random.default_rng(seed), height=height, width=width)
        made.append(np.where(mask == 255, mask, mask % 3).astype(np.uint8))
    return made


@cache
def _written(tool: Tool) -> Files:
    """The files of an exported folder, without what no reader reads."""
    with tempfile.TemporaryDirectory() as root:
        folder = write_queue(tool, Path(root), _masks(), queue=outgoing_queue(labels=LABELS))
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        unread = ("images/", "heatmaps/", "README", "regions.csv", PROPOSALS)
        return {name: path.read_bytes() for name, path in files.items() if not name.startswith(unread)}


def _only(tool: Tool, begins: tuple[str, ...]) -> Files:
    return {name: content for name, content in _written(tool).items() if name.startswith(begins)}


def _cvat() -> list[Files]:
    """As it is written, and as CVAT exports shapes that people draw."""
    return [_only(CVAT, (_XML_FILE,)), {_XML_FILE: _XML}]


def _moved(files: Files, old: str, new: str) -> Files:
    return {name.replace(old, new): content for name, content in files.items() if name.startswith(old)}


def _files(sources: dict[str, Files]) -> list[Seed]:
    return [Seed(files, "file", name) for files in sources.values() for name in files]


def _answers(masks: Any) -> bytes:
    """Label Studio's tasks as it exports them when their proposals have been submitted."""
    with tempfile.TemporaryDirectory() as root:
        folder, pictures = Path(root) / "queue", Path(root) / "pictures"
        folder.mkdir()
        pictures.mkdir()
        writer = TasksWriter(folder, outgoing_queue(labels=LABELS), masks=masks)
        for place, mask in enumerate(_masks()):
            writer.add(outgoing_image(pictures, mask, index=place))
        writer.finish()
        tasks = json.loads((folder / "tasks.json").read_bytes())
    for number, task in enumerate(tasks):
        (prediction,) = task.pop("predictions")
        task["id"] = number + 1
        task["annotations"] = [
            {
                "id": 10 + number,
                "completed_by": {"id": 1, "email": "a@example.org"},
                "result": prediction["result"],
                "was_cancelled": number == 2,
                "lead_time": 12.5,
                "created_at": "2025-01-02T03:04:05.678901Z",
                "updated_at": "2025-01-02T03:05:05.678901Z",
            }
        ]
    return json.dumps(tasks).encode()


def _polygons() -> Files:
    """COCO as other tools write it: polygons, run lengths as lists, images by their names."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 10}],
        "categories": [{"id": 3, "name": "road"}, {"id": 4, "name": "日本"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "segmentation": [[1, 1, 5, 1.5, 5, 4], [6, 6, 9, 6, 9, 9]],
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 4,
                "segmentation": {"size": [10, 12], "counts": [20, 50, 50]},
            },
        ],
    }
    return {"a.json": json.dumps(document).encode()}


def _brush() -> bytes:
    return json.dumps(np.asarray(brush.encode(_masks()[0] == 1)).tolist()).encode()


def _read_brush(source: Path) -> int:
    width, height = SIZES[1000]
    painted = brush.decode(_loaded(source), width=width, height=height)
    expect(painted.dtype == np.bool_, f"a brush mask is {painted.dtype}")
    check_mask(DecodedMask(np.where(painted, 0, 255).astype(np.uint8)), classes=1, size=(width, height))
    return 1


def _loaded(source: Path) -> Any:
    try:
        return json.loads(source.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError("It is no JSON.") from error


def _read_json_items(source: Path) -> int:
    """Both ways; what is taken whole is what `json` says."""
    content, count = source.read_bytes(), 0
    for members in (False, True):
        with source.open("rb") as stream:
            for item in iter_items(stream, longest=LONGEST, members=members):
                expect((item.content is None) == (item.length > LONGEST), "an item's length is not its own")
                if item.content is not None:
                    expect(content[item.offset :].startswith(item.content), "an item is not where it says")
                    load_item(item.content)
                    count += 1
    return count


def _read_archive(source: Path) -> int:
    with open_files(source) as files:
        expect(files.names == sorted(set(files.names)), "names are not sorted, or twice there")
        for rejection in files.rejected:
            expect(rejection.subject.isprintable() and rejection.reason.isprintable(), f"{rejection!r}")
        for name in files.names:
            expect(not name.startswith("/") and ".." not in name.split("/"), f"a name is {name!r}")
            expect(len(read_file(files, name, longest=LONGEST)) <= LONGEST, "a file is longer than it may be")
        return len(files.names)


def _read_xml(source: Path) -> int:
    with source.open("rb") as stream:
        return sum(1 for _ in iter_elements(stream, {"image"}, longest=LONGEST))


_XML = b"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
<version>1.1</version>
<meta><job><id>3</id><created>2025-01-02 03:04:05.678901+00:00</created>
<updated>2025-01-02 03:05:05.678901+00:00</updated>
<assignee><username>ann</username><email></email></assignee>
<labels><label><name>road</name><type>any</type></label></labels></job></meta>
<image id="0" name="0001_1000_image_0.png" width="12" height="10">
<mask label="road" rle="2, 4, 6" left="1" top="1" width="4" height="3" z_order="0"/>
<polygon label="road" points="1.00,1.00;9.50,2.00;4.00,8.00" z_order="1"><attribute name="a">b</attribute>
</polygon>
<box label="look here" xtl="0.00" ytl="0.00" xbr="12.00" ybr="10.00" z_order="-1"/>
</image>
<image id="1" name="0003_1002_image_2.png" width="7" height="16" task_id="3">
<box label="road" xtl="1.00" ytl="2.00" xbr="3.50" ybr="4.00" rotation="30.0" z_order="2"/>
<ellipse label="road" cx="3" cy="4" rx="2" ry="1"/><tag label="road"/>
</image>
<track id="0" label="road"><box frame="0" outside="0" xtl="1" ytl="1" xbr="2" ybr="2"/></track>
</annotations>
"""
