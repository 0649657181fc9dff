"""Labeling tools as an annotator meets them: what they show of an export, and what they export themselves.

Everything here is done by the tools' own code where there is some (pycocotools, cvat_sdk), and otherwise by a
few plain lines that share nothing with the writers and readers under test. Masks are class indices, uint8
[H, W], 255 where nothing is labeled; images are called by the stem of their file.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from cvat_sdk.masks import decode_mask, encode_mask
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.config import IGNORE

Mask = npt.NDArray[np.uint8]
Masks = Mapping[str, Mask]


@dataclass(frozen=True)
class AnnotatorsTool:
    """One tool.

    Attributes:
        shows: the masks that the tool shows of an exported folder.
        exports: writes what the tool exports once these masks are painted; the file or folder to import.
    """

    name: str
    shows: Callable[[Path], dict[str, Mask]]
    exports: Callable[[Path, Masks, Path], Path]


def _classes(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "labelmap.json").read_text())["classes"]


def _names(folder: Path) -> list[str]:
    return [item["name"] for item in _classes(folder)]


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return {Path(line["image"]).stem: line for line in lines}


def _blank(size: tuple[int, int]) -> Mask:
    return np.full(size, IGNORE, dtype=np.uint8)


# --- a folder of masks ------------------------------------------------------------------------------------


def _folder_shows(folder: Path) -> dict[str, Mask]:
    found: dict[str, Mask] = {}
    for path in (folder / "premasks").iterdir():
        ids = np.asarray(Image.open(path))
        found[path.stem] = _blank(ids.shape)
        for index, item in enumerate(_classes(folder)):
            found[path.stem][ids == item["id"]] = index
    return found


def _folder_exports(folder: Path, masks: Masks, into: Path) -> Path:
    ids = [item["id"] for item in _classes(folder)]
    unpainted = json.loads((folder / "labelmap.json").read_text())["not_labeled"]["id"]
    for stem, mask in masks.items():
        painted = np.full(mask.shape, unpainted, dtype=np.uint8)
        for index, id_ in enumerate(ids):
            painted[mask == index] = id_
        Image.fromarray(painted).save(folder / "masks" / f"{stem}.png")
    return folder


# --- COCO -------------------------------------------------------------------------------------------------


def _coco_shows(folder: Path) -> dict[str, Mask]:
    coco = COCO(folder / "annotations" / "instances_default.json")
    names = _names(folder)
    found: dict[str, Mask] = {}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = _blank((image["height"], image["width"]))
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            (category,) = coco.loadCats(annotation["category_id"])
            mask[coco.annToMask(annotation) == 1] = names.index(category["name"])
        found[Path(image["file_name"]).stem] = mask
    return found


def _coco_exports(folder: Path, masks: Masks, into: Path) -> Path:
    """One annotation a class, and only COCO's own keys."""
    document = json.loads((folder / "annotations" / "instances_default.json").read_text())
    images = [
        {key: image[key] for key in ("id", "file_name", "width", "height")} for image in document["images"]
    ]
    annotations: list[dict[str, Any]] = []
    by_name = {item["name"]: item["id"] for item in document["categories"]}
    for image in images:
        mask = masks[Path(image["file_name"]).stem]
        for index, name in enumerate(_names(folder)):
            if not (mask == index).any():
                continue
            rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask == index, dtype=np.uint8))  # pyright: ignore[reportAssignmentType]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": by_name[name],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "area": int(coco_mask.area(rle)),  # pyright: ignore[reportArgumentType]
                    "bbox": coco_mask.toBbox(rle).tolist(),  # pyright: ignore[reportArgumentType]
                    "iscrowd": 0,
                }
            )
    categories = [{"id": item["id"], "name": item["name"]} for item in document["categories"]]
    file = into / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def _panoptic_shows(folder: Path) -> dict[str, Mask]:
    document = json.loads((folder / "annotations" / "panoptic_default.json").read_text())
    names = {item["id"]: _names(folder).index(item["name"]) for item in document["categories"]}
    found: dict[str, Mask] = {}
    for annotation in document["annotations"]:
        path = folder / "annotations" / "panoptic_default" / annotation["file_name"]
        ids = np.asarray(Image.open(path)).astype(np.int64) @ np.array([1, 256, 65536])
        mask = _blank(ids.shape)
        for segment in annotation["segments_info"]:
            mask[ids == segment["id"]] = names[segment["category_id"]]
        found[path.stem] = mask
    return found


def _panoptic_exports(folder: Path, masks: Masks, into: Path) -> Path:
    document = json.loads((folder / "annotations" / "panoptic_default.json").read_text())
    by_name = {item["name"]: item["id"] for item in document["categories"]}
    (into / "finished").mkdir()
    for annotation in document["annotations"]:
        mask = masks[Path(annotation["file_name"]).stem]
        ids = np.zeros(mask.shape, dtype=np.uint32)
        segments: list[dict[str, Any]] = []
        for index, name in enumerate(_names(folder)):
            if (mask == index).any():
                segments.append({"id": 1000 * (index + 1), "category_id": by_name[name], "iscrowd": 0})
                ids[mask == index] = 1000 * (index + 1)
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colors).save(into / "finished" / annotation["file_name"])
        annotation["segments_info"] = segments
    file = into / "finished.json"
    file.write_text(json.dumps(document))
    return file


# --- CVAT -------------------------------------------------------------------------------------------------


def _cvat_shows(folder: Path) -> dict[str, Mask]:
    names = _names(folder)
    found: dict[str, Mask] = {}
    for image in ElementTree.parse(folder / "annotations.xml").iter("image"):
        width, height = int(image.attrib["width"]), int(image.attrib["height"])
        mask = _blank((height, width))
        for shape in image.iter("mask"):
            left, top, w, h = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
            runs = [float(run) for run in shape.attrib["rle"].split(",")]
            points = [*runs, left, top, left + w - 1, top + h - 1]
            mask[decode_mask(points, image_width=width, image_height=height)] = names.index(
                shape.attrib["label"]
            )
        found[Path(image.attrib["name"]).stem] = mask
    return found


def _cvat_exports(folder: Path, masks: Masks, into: Path) -> Path:
    """A zip, as "export task dataset" makes it, with one shape a class."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, (stem, line) in enumerate(_manifest(folder).items()):
        height, width = masks[stem].shape
        attributes = {"id": str(number), "name": Path(line["image"]).name, "width": str(width)}
        image = ElementTree.SubElement(root, "image", {**attributes, "height": str(height)})
        for index, name in enumerate(_names(folder)):
            if (masks[stem] == index).any():
                *runs, x1, y1, x2, y2 = map(int, encode_mask(masks[stem] == index))
                box = {"left": x1, "top": y1, "width": x2 - x1 + 1, "height": y2 - y1 + 1, "z_order": 0}
                shape = {"label": name, "source": "manual", "occluded": "0", "rle": ", ".join(map(str, runs))}
                ElementTree.SubElement(image, "mask", {**shape, **{key: str(box[key]) for key in box}})
    file = into / "task.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", ElementTree.tostring(root, encoding="unicode"))
    return file


# --- Pascal VOC and CVAT's "Segmentation mask" ------------------------------------------------------------


def _label_colors(folder: Path) -> dict[str, tuple[int, int, int]]:
    colors: dict[str, tuple[int, int, int]] = {}
    for line in (folder / "labelmap.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, color, _, _ = line.rsplit(":", 3)
            red, green, blue = map(int, color.split(","))
            colors[name] = (red, green, blue)
    return colors


def _voc_shows(folder: Path) -> dict[str, Mask]:
    colors = _label_colors(folder)
    found: dict[str, Mask] = {}
    for path in (folder / "SegmentationClass").iterdir():
        rgb = np.asarray(Image.open(path).convert("RGB"))
        found[path.stem] = _blank(rgb.shape[:2])
        for index, name in enumerate(_names(folder)):
            found[path.stem][(rgb == colors[name]).all(axis=2)] = index
    return found


def _voc_exports(folder: Path, masks: Masks, into: Path) -> Path:
    """A zip of RGB masks, as CVAT writes it: black where nothing is labeled."""
    colors = _label_colors(folder)
    file = into / "masks.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", (folder / "labelmap.txt").read_text())
        archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{stem}\n" for stem in masks))
        for stem, mask in masks.items():
            rgb = np.zeros((*mask.shape, 3), dtype=np.uint8)
            for index, name in enumerate(_names(folder)):
                rgb[mask == index] = colors[name]
            stream = io.BytesIO()
            Image.fromarray(rgb).save(stream, format="PNG")
            archive.writestr(f"SegmentationClass/{stem}.png", stream.getvalue())
            archive.writestr(f"SegmentationObject/{stem}.png", stream.getvalue())
    return file


# --- Label Studio -----------------------------------------------------------------------------------------


def _label_studio_shows(folder: Path) -> dict[str, Mask]:
    stems = {line["image_id"]: stem for stem, line in _manifest(folder).items()}
    names = _names(folder)
    found: dict[str, Mask] = {}
    for task in json.loads((folder / "tasks.json").read_text()):
        data = task["data"]
        mask = _blank((data["height"], data["width"]))
        for region in task["predictions"][0]["result"]:
            if region["type"] == "bitmasklabels":
                (name,) = region["value"]["bitmasklabels"]
                content = base64.b64decode(region["value"]["imageDataURL"].partition(",")[2])
                mask[_bitmask(content)] = names.index(name)
            elif region["type"] == "brushlabels":
                (name,) = region["value"]["brushlabels"]
                alpha = unpacked(region["value"]["rle"]).reshape(*mask.shape, 4)[:, :, 3]
                mask[alpha > 127] = names.index(name)
        found[stems[data["image_id"]]] = mask
    return found


def _label_studio_exports(folder: Path, masks: Masks, into: Path) -> Path:
    """Brush masks for every other class, bitmasks for the rest."""
    stems = {line["image_id"]: stem for stem, line in _manifest(folder).items()}
    tasks = json.loads((folder / "tasks.json").read_text())
    for number, task in enumerate(tasks, start=1):
        mask = masks[stems[task["data"]["image_id"]]]
        height, width = mask.shape
        result: list[dict[str, Any]] = []
        for index, name in enumerate(_names(folder)):
            if not (mask == index).any():
                continue
            kind = "brushlabels" if index % 2 else "bitmasklabels"
            painted = np.repeat((mask == index).astype(np.uint8)[:, :, None] * 255, 4, axis=2)
            value: dict[str, Any] = {kind: [name]}
            if kind == "brushlabels":
                value |= {"format": "rle", "rle": _packed(painted.ravel())}
            else:
                stream = io.BytesIO()
                Image.fromarray(painted).save(stream, format="PNG")
                value["imageDataURL"] = (
                    "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
                )
            result.append(
                {
                    "id": f"drawn{index}",
                    "from_name": "mask",
                    "to_name": "image",
                    "type": kind,
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "value": value,
                }
            )
        task["id"] = number
        task["annotations"] = [
            {
                "id": number,
                "completed_by": 1,
                "was_cancelled": False,
                "created_at": "2026-11-01T09:00:00.000000Z",
                "updated_at": "2026-11-01T10:00:00.000000Z",
                "lead_time": 12.5,
                "result": result,
            }
        ]
    file = into / "project-1.json"
    file.write_text(json.dumps(tasks))
    return file


def _bitmask(content: bytes) -> npt.NDArray[np.bool_]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[:, :, 3] > 127


def _packed(values: npt.NDArray[np.uint8]) -> list[int]:
    """thi.ng's rle-pack, with runs only, each of up to 2^16 values."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    borders = np.flatnonzero(np.diff(values)) + 1
    for run in np.split(values, borders):
        for start in range(0, len(run), 1 << 16):
            count = min(len(run) - start, 1 << 16)
            bits += f"1{3:02b}{count - 1:016b}{int(run[0]):08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def unpacked(packed: list[int]) -> npt.NDArray[np.uint8]:
    """The values behind thi.ng's rle-pack, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeats = take(1)
        count = take(sizes[take(2)]) + 1
        values += [take(word)] * count if repeats else [take(word) for _ in range(count)]
    return np.array(values, dtype=np.uint8)


ANNOTATORS_TOOLS = {
    tool.name: tool
    for tool in (
        AnnotatorsTool("folder", _folder_shows, _folder_exports),
        AnnotatorsTool("label-studio", _label_studio_shows, _label_studio_exports),
        AnnotatorsTool("cvat", _cvat_shows, _cvat_exports),
        AnnotatorsTool("cvat-masks", _voc_shows, _voc_exports),
        AnnotatorsTool("coco", _coco_shows, _coco_exports),
        AnnotatorsTool("coco-panoptic", _panoptic_shows, _panoptic_exports),
        AnnotatorsTool("voc", _voc_shows, _voc_exports),
    )
}
