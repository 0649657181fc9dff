"""A queue in the layout of Pascal VOC, and what strangers send back in it."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import tracemalloc
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from pipeline.config import DataConfig
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.cvat.labels import label_names
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, Tool
from pipeline.labeling.unchanged import PROPOSALS
from pipeline.labeling.voc import CVAT_MASKS, VOC
from pipeline.labeling.voc.label_map import write_label_map
from pipeline.labeling.voc.layout import object_numbers
from tests.pipeline.claiming_png import chunk, claiming_png
from tests.pipeline.labeling.small_queue import MASKS, NAMES, decoded, label_map, write_queue

LABELS = label_map()
BOTH = pytest.mark.parametrize("tool", [VOC, CVAT_MASKS], ids=["voc", "cvat-masks"])
ROAD, JAPAN = (10, 20, 30), (40, 50, 60)
PLAIN = ("road", "sky", "pole", "日本")
LABEL_MAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:10,20,30::\n日本:40,50,60:hand,foot:sit\n"
)


def png(pixels: npt.NDArray[Any], **how: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels, **how).save(stream, format="PNG")
    return stream.getvalue()


def colored(*rows: list[tuple[int, int, int]]) -> bytes:
    return png(np.array(rows, dtype=np.uint8))


def source(root: Path, masks: dict[str, bytes], *, colors: str | None = LABEL_MAP) -> Path:
    """A folder with these masks."""
    for name, content in masks.items():
        path = root / "SegmentationClass" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if colors is not None:
        (root / "labelmap.txt").write_text(colors)
    return root


def said_of(path: Path, size: tuple[int, int], *, names: tuple[str, ...] = PLAIN) -> list[DecodedMask | str]:
    """What the answers of a source paint, or why not."""
    return [decoded(answer, size) for answer in VOC.read(path, label_map(names))]


def said_of_one(root: Path, mask: bytes, *, size: tuple[int, int] = (3, 1), **how: Any) -> DecodedMask | str:
    names = how.pop("names", PLAIN)
    (said,) = said_of(source(root, {"a.png": mask}, **how), size, names=names)
    return said


def mask_of(said: DecodedMask | str) -> list[list[int]]:
    assert isinstance(said, DecodedMask), said
    return said.mask.tolist()


def reference(folder: Path) -> dict[str, Mask]:
    """The masks of an exported folder, by their colours alone."""
    names = label_names(NAMES)
    meaning: dict[tuple[int, ...], int] = {}
    for line in (folder / "labelmap.txt").read_text().splitlines()[1:]:
        name, color, _, _ = line.split(":")
        meaning[tuple(map(int, color.split(",")))] = names.index(name) if name in names else 255
    masks: dict[str, Mask] = {}
    for path in sorted((folder / "SegmentationClass").iterdir()):
        rgb = np.array(Image.open(path).convert("RGB"))
        masks[path.stem] = np.array(
            [[meaning[tuple(color)] for color in row] for row in rgb.tolist()], dtype=np.uint8
        )
    return masks


@BOTH
@settings(max_examples=30, deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=3))
def test_masks_come_back_as_they_went_out_and_as_their_colours_say(tool: Tool, masks: list[Mask]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_queue(tool, Path(root), masks)
        for mask, seen in zip(masks, reference(folder).values(), strict=True):
            assert np.array_equal(mask, seen)
        (folder / PROPOSALS).unlink()
        sources = [folder / "annotations.zip"] if tool is CVAT_MASKS else [folder]
        found = (answer for one in sources for answer in tool.read(one, LABELS))
        names = [f"{name}.png" for name in reference(folder)]
        for answer, name, mask in zip(found, names, masks, strict=True):
            assert isinstance(answer, Annotation)
            assert answer.image == name
            assert np.array_equal(answer.read(*mask.shape[::-1]).mask, mask)


@BOTH
@settings(max_examples=30, deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=3))
def test_an_archive_of_the_folder_is_the_folder(tool: Tool, masks: list[Mask]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_queue(tool, Path(root), masks)
        path = Path(root) / "elsewhere" / "all.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*"):
                archive.write(file, Path("my folder") / file.relative_to(folder))
        assert tool.recognises(path)
        for answer, mask in zip(tool.read(path, LABELS), masks, strict=True):
            assert isinstance(answer, Annotation)
            assert np.array_equal(answer.read(*mask.shape[::-1]).mask, mask)


@settings(deadline=None)
@given(MASKS)
def test_objects_are_the_connected_pieces(mask: Mask) -> None:
    numbers = object_numbers(mask)
    assert np.array_equal(numbers == 0, mask == 255)
    pieces = sum(ndimage.label(mask == index, np.ones((3, 3)))[1] for index in range(7))  # pyright: ignore[reportIndexIssue]
    found = np.unique(numbers[numbers > 0])
    assert len(found) == min(pieces, len(found))
    assert pieces > 248 or len(found) == pieces
    for number in found.tolist():
        assert len(np.unique(mask[numbers == number])) == 1


def test_of_more_pieces_than_a_palette_has_the_smallest_of_a_class_are_one() -> None:
    mask = np.full((64, 64), 255, dtype=np.uint8)
    mask[::2, ::2] = 3
    mask[1::8, 1::8] = 4
    mask[40:60, 40:60] = 5
    numbers = object_numbers(mask)
    assert 250 <= numbers.max() <= 255
    assert np.unique(mask[numbers == numbers[50, 50]]).tolist() == [5]
    assert all(len(np.unique(mask[numbers == number])) == 1 for number in range(1, numbers.max() + 1))


@BOTH
def test_images_are_listed_in_the_order_of_their_ranks(tool: Tool, tmp_path: Path) -> None:
    folder = write_queue(tool, tmp_path, [np.zeros((6, 8), np.uint8)] * 3)
    listed = (folder / "ImageSets" / "Segmentation" / "default.txt").read_text().split()
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert listed == [Path(line["image"]).stem for line in manifest]
    assert all((folder / line["image"]).exists() and (folder / line["mask"]).exists() for line in manifest)


def test_cvats_archive_holds_the_folders_masks(tmp_path: Path) -> None:
    folder = write_queue(CVAT_MASKS, tmp_path, [np.zeros((6, 8), np.uint8)] * 2)
    with zipfile.ZipFile(folder / "annotations.zip") as archive:
        assert archive.namelist()[:2] == ["labelmap.txt", "ImageSets/Segmentation/default.txt"]
        assert len(archive.namelist()) == 6
        assert all(archive.read(name) == (folder / name).read_bytes() for name in archive.namelist())


@BOTH
def test_what_was_exported_is_not_taken_for_labels(tool: Tool, tmp_path: Path) -> None:
    masks = [np.zeros((6, 8), np.uint8), np.ones((6, 8), np.uint8)]
    folder = write_queue(tool, tmp_path, masks)
    sources = [folder, folder / "annotations.zip"] if tool is CVAT_MASKS else [folder]
    for one in sources:
        with pytest.raises(DataError, match="holds proposals"):
            list(tool.read(one, LABELS))
    path = sorted((folder / "SegmentationClass").iterdir())[1]
    corrected = Image.fromarray(np.full((6, 8), 3, np.uint8))  # the palette's index 3 is the third class
    corrected.putpalette(Image.open(path).getpalette() or [])
    corrected.save(path)
    found = [answer for answer in tool.read(folder, LABELS) if isinstance(answer, Annotation)]
    said = {answer.image: answer.read(8, 6).mask[0, 0] for answer in found if ".zip" not in answer.subject}
    assert list(said.values()) == [0, 2]


def test_cvats_export_is_read_from_the_exported_folder(tmp_path: Path) -> None:
    folder = write_queue(CVAT_MASKS, tmp_path, [np.zeros((1, 3), np.uint8)])
    with zipfile.ZipFile(folder / "task_7.zip", "w") as archive:
        archive.writestr("labelmap.txt", LABEL_MAP)
        archive.writestr("SegmentationClass/sub/a.png", colored([ROAD, (0, 0, 0), JAPAN]))
    found = CVAT_MASKS.read(folder, label_map(PLAIN))
    answer = next(found)
    assert isinstance(answer, Annotation)
    assert (answer.subject, answer.image) == ("task_7.zip, SegmentationClass/sub/a.png", "sub/a.png")
    assert answer.read(3, 1).mask.tolist() == [[0, 255, 3]]
    assert answer.labeled_at is None
    assert list(found) == []


def test_colours_mean_what_the_sources_label_map_says(tmp_path: Path) -> None:
    mask = [ROAD, (0, 0, 0), JAPAN]
    assert mask_of(said_of_one(tmp_path, colored(mask), names=("road", "日本"))) == [[0, 255, 1]]
    swapped = (
        LABEL_MAP.replace("10,20,30", "0,0,9").replace("40,50,60", "10,20,30").replace("0,0,9", "40,50,60")
    )
    assert mask_of(said_of_one(tmp_path, colored(mask), names=("road", "日本"), colors=swapped)) == [
        [1, 255, 0]
    ]


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA"])
def test_masks_of_several_kinds_are_read(tmp_path: Path, mode: str) -> None:
    picture = Image.open(io.BytesIO(colored([ROAD, (0, 0, 0), JAPAN])))
    stream = io.BytesIO()
    picture.convert(mode, palette=Image.Palette.ADAPTIVE).save(stream, format="PNG")
    assert mask_of(said_of_one(tmp_path, stream.getvalue())) == [[0, 255, 3]]


def test_grey_masks_are_read_by_their_colours(tmp_path: Path) -> None:
    colors = "background:0,0,0::\nroad:7,7,7::\n"
    assert mask_of(said_of_one(tmp_path, png(np.array([[0, 7, 0]], np.uint8)), colors=colors)) == [
        [255, 0, 255]
    ]


def with_colors(**options: Any) -> LabelMap:
    classes = [{"name": "road", "color": ROAD}, {"name": "日本", "color": JAPAN}]
    return LabelMap(DataConfig.model_validate({"images": ["images"], "classes": classes, **options}))


def test_without_a_label_map_colours_are_the_projects(tmp_path: Path) -> None:
    root = source(tmp_path, {"a.png": colored([ROAD, (0, 0, 0), JAPAN])}, colors=None)
    (answer,) = VOC.read(root, with_colors())
    assert mask_of(decoded(answer, (3, 1))) == [[0, 255, 1]]


def test_colours_of_nobody_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    car = colored([(128, 128, 128)] * 3)  # Pascal VOC's car, and the colour of another class in pictures
    said = said_of_one(tmp_path, car, colors=None, names=tuple(f"class {n}" for n in range(21)))
    assert isinstance(said, str)
    assert "has no labelmap.txt" in said
    assert "Put the labelmap.txt" in said


@pytest.mark.parametrize("colors", [LABEL_MAP, None])
@pytest.mark.parametrize(
    ("void", "options"), [((224, 224, 192), {}), ((7, 7, 7), {"ignore_color": [(7, 7, 7)]})]
)
def test_the_void_of_pascal_voc_and_of_the_project_is_not_labeled(
    tmp_path: Path, colors: str | None, void: tuple[int, int, int], options: dict[str, Any]
) -> None:
    picture = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 255]] = ROAD, void
    picture.putpalette(palette.ravel().tolist())
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    root = source(tmp_path, {"a.png": stream.getvalue()}, colors=colors)
    (answer,) = VOC.read(root, with_colors(**options))
    assert mask_of(decoded(answer, (3, 1))) == [[255, 0, 255]]


def test_without_colours_labels_have_those_of_pascal_voc(tmp_path: Path) -> None:
    mask = colored([(128, 0, 0), (0, 0, 0), (0, 128, 0)])
    colors = "background:::\nroad:::\n日本:::\n"
    assert mask_of(said_of_one(tmp_path, mask, colors=colors)) == [[0, 255, 3]]


def test_a_class_that_is_called_background_is_not_the_background(tmp_path: Path) -> None:
    assert "background 2:" in write_label_map(LABELS)
    mask = colored([(0, 0, 0), ROAD, (0, 0, 0)])
    with_both = LABEL_MAP + "background 2:9,9,9::\n"
    assert mask_of(said_of_one(tmp_path, mask, colors=with_both, names=NAMES)) == [[255, 0, 255]]
    its_own = LABEL_MAP  # a stranger's, where only one label is called so: the class
    assert mask_of(said_of_one(tmp_path, mask, colors=its_own, names=NAMES)) == [[6, 0, 6]]
    assert mask_of(said_of_one(tmp_path, mask, names=("road", "pole"))) == [[255, 0, 255]]


@pytest.mark.parametrize(
    ("colors", "reason"),
    [
        ("background:0,0,0::\nroad:10,20,30::\nunheard <of>:40,50,60::\n", "1 of the label 'unheard <of>'"),
        ("background:0,0,0::\nroad:10,20,30::\n", "1 of the colour (40, 50, 60), which no label has"),
        ("road:10,20,30::\n日本:40,50,60::\n", "1 of the colour (0, 0, 0)"),
        (
            "background:0,0,0::\nroad:10,20,30::\n日本:10,20,30::\n",
            "of the colour (10, 20, 30), which two labels",
        ),
        ("", "No label of its label map is a class"),
        ("nothing:1,2,3::\n", "No label of its label map is a class"),
        ("road\n", "Line 1 of its label map is no label"),
        ("\nroad::\n", "Line 2 of its label map is no label"),
        ("road:10,20,30::\n日本:::\n", "of the colour (40, 50, 60), which no label has"),
        ("road:1,2::\n", "is no label with a colour"),
        ("road:1,2,nan::\n", "is no label with a colour"),
        ("road:1,2,-3::\n", "is no label with a colour"),
        ("road:1,2,²::\n", "is no label with a colour"),
        ("road:1,2,256::\n", "no colour of 0 to 255"),
        ("road:1,2," + "9" * 6000 + "::\n", "no colour of 0 to 255"),
        ("x" * (2 << 20), "labelmap.txt has more than the 1 MiB"),
    ],
)
def test_what_the_label_map_does_not_say_is_refused(tmp_path: Path, colors: str, reason: str) -> None:
    said = said_of_one(tmp_path, colored([ROAD, (0, 0, 0), JAPAN]), colors=colors, names=("road", "日本"))
    assert isinstance(said, str)
    assert reason in said
    assert len(said) < 800


def test_an_unknown_label_refuses_only_the_masks_that_have_it(tmp_path: Path) -> None:
    colors = LABEL_MAP + "unheard of:9,9,9::\n"
    masks = {"a.png": colored([ROAD, (9, 9, 9), ROAD]), "b.png": colored([ROAD, ROAD, ROAD])}
    refused, taken = said_of(source(tmp_path, masks, colors=colors), (3, 1))
    assert isinstance(refused, str)
    assert "1 of the label 'unheard of'" in refused
    assert mask_of(taken) == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (b"", "not a readable PNG"),
        (b"GIF89a", "not a readable PNG"),
        (colored([ROAD] * 3)[:-30], "not a readable PNG"),
        (colored([ROAD] * 4), "has 4×1 pixels, and the image 3×1"),
        (claiming_png(1_000_000, 1_000_000), "has 1000000×1000000 pixels"),
        (png(np.array([[1, 2, 3]], np.uint16)), "has 16-bit colours"),
        (png(np.array([[[*ROAD, 0]] * 3], np.uint8)), "transparent pixels"),
        (png(np.array([[[*ROAD, 254]] * 3], np.uint8)), "transparent pixels"),
    ],
)
def test_a_mask_that_cannot_be_is_refused_alone(tmp_path: Path, mask: bytes, reason: str) -> None:
    masks = {"a.png": mask, "b.png": colored([ROAD] * 3)}
    tracemalloc.start()
    refused, taken = said_of(source(tmp_path, masks), (3, 1))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert isinstance(refused, str)
    assert reason in refused
    assert mask_of(taken) == [[0, 0, 0]]


def test_an_index_that_the_palette_lacks_is_no_colour(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([0, 0, 0, *ROAD, 0, 0, 0])
    stream = io.BytesIO()
    picture.save(stream, format="PNG", bits=8)
    whole = stream.getvalue()
    begin = whole.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", whole, begin)
    cut = whole[:begin] + chunk(b"PLTE", bytes([0, 0, 0, *ROAD])) + whole[begin + 12 + length :]
    assert mask_of(said_of_one(tmp_path, whole)) == [[255, 0, 255]]
    said = said_of_one(tmp_path, cut)
    assert isinstance(said, str)
    assert "lacks a colour" in said


def test_links_and_other_files_are_refused_and_the_images_beside_are_not_looked_at(tmp_path: Path) -> None:
    root = source(tmp_path / "in", {"a.png": colored([ROAD] * 3), "b.jpg": b"jpeg"})
    (root / "SegmentationClass" / "c.png").symlink_to(root / "SegmentationClass" / "a.png")
    (root / "JPEGImages").mkdir()
    (root / "JPEGImages" / "a.jpg").symlink_to(root / "labelmap.txt")
    found = list(VOC.read(root, LABELS))
    assert [
        (rejection.subject, rejection.reason) for rejection in found if isinstance(rejection, Rejected)
    ] == [
        ("SegmentationClass/c.png", "It is a link."),
        ("SegmentationClass/b.jpg", "It is no PNG."),
    ]
    (answer,) = [answer for answer in found if isinstance(answer, Annotation)]
    written = datetime.fromtimestamp((root / "SegmentationClass" / "a.png").stat().st_mtime, tz=UTC)
    assert answer.labeled_at == written


def test_a_source_without_masks_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    for path, reason in ((tmp_path / "empty", "holds no masks"), (tmp_path / "a.zip", "is damaged")):
        assert not VOC.recognises(path)
        with pytest.raises(DataError, match=reason):
            list(VOC.read(path, LABELS))
