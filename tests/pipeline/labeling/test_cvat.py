"""A queue as CVAT's XML, and what strangers send back as such."""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
import zipfile
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
import pytest
from cvat_sdk.masks import decode_mask, encode_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from pipeline.config import DataConfig
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.cvat import CVAT
from pipeline.labeling.cvat.labels import LOOK_HERE, label_colors, label_names, meanings
from pipeline.labeling.cvat.pieces import encode
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected
from pipeline.labeling.unchanged import PROPOSALS
from pipeline.labeling.untrusted.canvas import Canvas
from pipeline.labeling.untrusted.coco_shapes import read_shape
from tests.pipeline.labeling.small_queue import (
    MASKS,
    NAMES,
    decoded,
    label_map,
    outgoing_queue,
    shapes,
    write_queue,
)

LABELS = label_map()
META = """<meta><task><id>7</id><name>streets</name>
<created>2026-11-01 09:00:00.5+00:00</created><updated>2026-11-02 10:00:00.25+02:00</updated>
<owner><username>boss</username></owner><assignee><username>ann</username></assignee></task></meta>"""


def painted(source: Path, *sizes: tuple[int, int], labels: LabelMap = LABELS) -> list[DecodedMask | str]:
    """What the answers of a source paint, or why not, given the widths and heights of its images."""
    found = list(CVAT.read(source, labels))
    return [decoded(answer, size) for answer, size in zip(found, cycle(sizes), strict=False)]


def document(path: Path, *inside: str, size: tuple[int, int] = (8, 6), meta: str = META) -> Path:
    """A file of one image of 8 × 6 pixels with these shapes in it."""
    image = f'<image id="0" name="a.png" width="{size[0]}" height="{size[1]}">{"".join(inside)}</image>'
    path.write_text(f"<annotations><version>1.1</version>{meta}{image}</annotations>")
    return path


def mask_element(label: str = "road", rle: str = "1, 2, 1", **changes: Any) -> str:
    values = {"left": 1, "top": 2, "width": 2, "height": 2, "z_order": 0, "occluded": 0, **changes}
    said = " ".join(f"{key}={quoteattr(str(value))}" for key, value in values.items() if value is not None)
    return f'<mask label={quoteattr(label)} source="manual" rle="{rle}" {said}></mask>'


def polygon(points: str, label: str = "road", **changes: Any) -> str:
    said = " ".join(f'{key}="{value}"' for key, value in changes.items())
    return f'<polygon label={quoteattr(label)} points="{points}" {said}/>'


def read_one(path: Path, *inside: str, **how: Any) -> DecodedMask | str:
    (said,) = painted(document(path, *inside, **how), (8, 6))
    return said


def reference(folder: Path) -> list[Mask]:
    """The masks of an exported document, read by the standard library and CVAT's own decoder."""
    masks: list[Mask] = []
    classes = {name: index for index, name in enumerate(label_names(NAMES))}
    for image in ElementTree.parse(folder / "annotations.xml").getroot().iter("image"):
        width, height = int(image.attrib["width"]), int(image.attrib["height"])
        mask = np.full((height, width), 255, dtype=np.uint8)
        for shape in image.iter("mask"):
            left, top, w, h = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
            runs = [float(run) for run in shape.attrib["rle"].split(",")]
            inside = decode_mask(
                [*runs, left, top, left + w - 1, top + h - 1], image_width=width, image_height=height
            )
            assert (mask[inside] == 255).all(), "two pieces claim a pixel"
            mask[inside] = classes[shape.attrib["label"]]
        masks.append(mask)
    return masks


@settings(deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=3))
def test_masks_come_back_as_they_went_out_and_as_cvat_decodes_them(masks: list[Mask]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_queue(CVAT, Path(root), masks)
        for mask, seen in zip(masks, reference(folder), strict=True):
            assert np.array_equal(mask, seen)
        (folder / PROPOSALS).unlink()
        found = [answer for answer in CVAT.read(folder, LABELS) if isinstance(answer, Annotation)]
        assert [answer.image for answer in found] == sorted(
            path.name for path in (folder / "images").iterdir()
        )
        for answer, mask in zip(found, masks, strict=True):
            said = answer.read(*mask.shape[::-1])
            assert np.array_equal(said.mask, mask)
            assert said.overlapping == 0


@settings(deadline=None)
@given(MASKS)
def test_a_piece_is_one_component_and_its_runs_are_cvats(mask: Mask) -> None:
    pieces = list(encode(mask))
    expected = [ndimage.label(mask == index, np.ones((3, 3)))[1] for index in range(len(NAMES))]  # pyright: ignore[reportIndexIssue]
    assert [sum(piece.index == index for piece in pieces) for index in range(len(NAMES))] == expected
    for piece in pieces:
        box = [piece.left, piece.top, piece.left + piece.width - 1, piece.top + piece.height - 1]
        encoded = [*piece.runs.tolist(), *box]
        inside = decode_mask(encoded, image_width=mask.shape[1], image_height=mask.shape[0])
        assert encode_mask(inside) == encoded
        assert (mask[inside] == piece.index).all()


def test_of_thousands_of_pieces_the_smallest_of_a_class_are_one_shape(tmp_path: Path) -> None:
    mask = np.full((200, 200), 255, dtype=np.uint8)
    mask[::2, ::2] = 0
    mask[1::4, 1::4] = 1
    mask[50:100, 50:100] = 2
    assert len(list(encode(mask))) <= 2000 + 3
    assert any(piece.index == 2 and piece.runs.tolist() == [0, 2500] for piece in encode(mask))
    folder = write_queue(CVAT, tmp_path, [mask])
    assert np.array_equal(reference(folder)[0], mask)


def test_images_are_in_the_order_of_their_ranks_with_boxes_where_to_look(tmp_path: Path) -> None:
    folder = write_queue(CVAT, tmp_path, [np.zeros((6, 8), np.uint8)] * 3)
    images = list(ElementTree.parse(folder / "annotations.xml").getroot().iter("image"))
    assert [image.attrib["id"] for image in images] == ["0", "1", "2"]
    assert [image.attrib["name"] for image in images] == sorted(
        path.name for path in (folder / "images").iterdir()
    )
    (box,) = images[0].iter("box")
    assert box.attrib["label"] == LOOK_HERE
    assert [box.attrib[key] for key in ("xtl", "ytl", "xbr", "ybr")] == ["0.00", "0.00", "8.00", "6.00"]
    assert int(box.attrib["z_order"]) < 0


def test_labels_are_declared_as_they_are_used(tmp_path: Path) -> None:
    folder = write_queue(CVAT, tmp_path, [np.arange(7, dtype=np.uint8)[None]])
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    declared = [label.findtext("name") for label in root.iter("label")]
    assert declared == [label["name"] for label in json.loads((folder / "labels.json").read_text())]
    assert {shape.attrib["label"] for shape in root.iter("mask")} == set(declared) - {LOOK_HERE}
    assert declared[-1] == LOOK_HERE


def test_what_was_exported_is_not_taken_for_labels(tmp_path: Path) -> None:
    folder = write_queue(CVAT, tmp_path, [np.zeros((6, 8), np.uint8)])
    for source in (folder, folder / "annotations.xml"):
        with pytest.raises(DataError, match="holds proposals"):
            list(CVAT.read(source, LABELS))
    document(folder / "job_7.xml", mask_element())
    assert [answer.subject for answer in CVAT.read(folder, LABELS)] == ["job_7.xml, image a.png"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=100).filter(bool), min_size=2, max_size=20, unique=True))
def test_any_class_names_have_labels_of_their_own(names: list[str]) -> None:
    called = label_names(names)
    assert len(set(called)) == len(names)
    assert not {"background", LOOK_HERE} & set(called)
    for index, (name, label) in enumerate(zip(names, called, strict=True)):
        assert 0 < len(label) <= 64
        assert label == label.strip()
        assert not set(label) & set(":\n\r\0\t")
        assert ElementTree.fromstring(f"<a b={quoteattr(label)}/>").attrib["b"] == label
        assert meanings(names)[name] == meanings(names)[label] == index


def test_plain_names_stay_and_long_ones_are_told_apart() -> None:
    plain = ["road", "日本 語", 'a<b>&"c"']
    assert label_names(plain) == plain
    assert label_names(["x" * 70, "x" * 80, "background", "look here", "a:b", "a_b"]) == [
        *("x" * 64, "x" * 62 + " 2", "background 2", "look here 2", "a_b 2", "a_b")
    ]


def test_no_class_has_the_colour_of_the_background_or_of_another() -> None:
    colors = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (9, 9, 9)]
    classes = [{"name": str(index), "color": color} for index, color in enumerate(colors)]
    labels = LabelMap(DataConfig(images=["images"], classes=classes))  # pyright: ignore[reportArgumentType]
    chosen = label_colors(labels)
    assert len({(0, 0, 0), *chosen}) == 5
    assert chosen[1:] == colors[1:]


def test_an_answer_says_who_labeled_it_and_when(tmp_path: Path) -> None:
    (answer,) = CVAT.read(document(tmp_path / "a.xml", mask_element()), LABELS)
    assert isinstance(answer, Annotation)
    assert answer.annotator == "ann"
    assert answer.labeled_at == datetime(2026, 11, 2, 8, 0, 0, 250_000, tzinfo=UTC)
    assert answer.origin == "a.png of task 7 of 2026-11-01 09:00:00.5+00:00"


def test_a_projects_images_are_of_their_own_tasks(tmp_path: Path) -> None:
    tasks = "".join(
        f"<task><id>{number}</id><updated>2026-11-0{number} 00:00:00+00:00</updated>"
        f"<assignee><username>{who}</username></assignee></task>"
        for number, who in ((1, "ann"), (2, "bob"))
    )
    images = "".join(
        f'<image id="{number}" name="sub/{number}.png" subset="x" task_id="{number}" width="8" height="6"/>'
        for number in (2, 1, 3)
    )
    path = tmp_path / "project.xml"
    path.write_text(
        f"<annotations><meta><project><id>5</id><tasks>{tasks}</tasks></project></meta>{images}</annotations>"
    )
    found = [answer for answer in CVAT.read(path, LABELS) if isinstance(answer, Annotation)]
    assert [answer.annotator for answer in found] == ["bob", "ann", None]
    assert [answer.image for answer in found] == ["sub/2.png", "sub/1.png", "sub/3.png"]


def test_an_archive_with_images_is_read_whatever_its_folders_are_called(tmp_path: Path) -> None:
    xml = document(tmp_path / "annotations.xml", mask_element()).read_bytes()
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.writestr("task_1/annotations.xml", xml)
        archive.writestr("task_1/images/a.png", b"no picture")
        archive.writestr("default.xml", xml.replace(b"a.png", b"b.png"))
        archive.writestr("Annotations/a.xml", b"<annotation><object/></annotation>")
        archive.writestr("../annotations.xml", xml)
    assert CVAT.recognises(tmp_path / "task.zip")
    slipped, other, answer = CVAT.read(tmp_path / "task.zip", LABELS)
    assert isinstance(slipped, Rejected)
    assert slipped.subject == "../annotations.xml"
    assert isinstance(answer, Annotation)
    assert other.subject == "task.zip, default.xml, image b.png"
    assert answer.subject == "task.zip, task_1/annotations.xml, image a.png"
    assert answer.read(8, 6).mask[2, 2] == 0


def test_what_is_of_another_kind_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotation><object/></annotation>")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 and no more")
    for source in (tmp_path, tmp_path / "a.xml", tmp_path / "b.zip", tmp_path / "none.xml"):
        assert not CVAT.recognises(source)


def test_the_upper_shape_wins_and_the_contested_pixels_are_counted(tmp_path: Path) -> None:
    whole = {"rle": "0, 4", "left": 1, "top": 1}
    below, above = mask_element("road", **whole, z_order=0), mask_element("日本", **whole, z_order=3)
    for inside in ((below, above), (above, below)):
        said = read_one(tmp_path / "a.xml", *inside)
        assert isinstance(said, DecodedMask)
        assert said.mask[1:3, 1:3].tolist() == [[3, 3], [3, 3]]
        assert said.overlapping == 4
    said = read_one(
        tmp_path / "a.xml",
        mask_element("日本", **whole),
        mask_element("road", **whole),
        mask_element(**whole),
    )
    assert isinstance(said, DecodedMask)
    assert said.mask[1, 1] == 0
    assert said.overlapping == 4


def test_boxes_where_to_look_and_tags_are_passed_over(tmp_path: Path) -> None:
    look = f'<box label="{LOOK_HERE}" xtl="0" ytl="0" xbr="8" ybr="6"/>'
    said = read_one(tmp_path / "a.xml", look, '<tag label="road"/>', mask_element())
    assert isinstance(said, DecodedMask)
    assert (said.mask != 255).sum() == 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2200)), min_size=3, max_size=8), st.booleans())
def test_a_polygon_is_what_cocos_tools_make_of_it(points: list[tuple[int, int]], outside: bool) -> None:
    width, height = 30, 22
    values = [value / 100 - (outside and value % 7 == 0) for point in points for value in point]
    canvas = Canvas(width=width, height=height)
    canvas.paint(read_shape([values], width=width, height=height), 4)
    expected = coco_mask.decode(coco_mask.frPyObjects([values], height, width))[:, :, 0]  # pyright: ignore
    assert np.array_equal(canvas.decoded().mask == 4, expected.astype(bool))


def test_polygons_and_masks_mix(tmp_path: Path) -> None:
    said = read_one(
        tmp_path / "a.xml", polygon("0,0;4,0;4,3;0,3"), mask_element("日本", "0, 4", left=3, top=2)
    )
    assert isinstance(said, DecodedMask)
    assert said.mask[:3, :4].tolist() == [[0] * 4, [0] * 4, [0] * 3 + [3]]
    assert said.overlapping == 1


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (mask_element("unheard <of>"), "label 'unheard <of>', which is no class"),
        (mask_element("a\x85b" * 300), r"label 'a\\x85"),
        (mask_element(rle=""), "runs are no counts"),
        (mask_element(rle="1, -2, 5"), "runs are no counts"),
        (mask_element(rle="nan"), "runs are no counts"),
        (mask_element(rle="1e3, 4"), "runs are no counts"),
        (mask_element(rle="1 2, 1"), "runs are no counts"),
        (mask_element(rle="1,,3"), "runs are no counts"),
        (mask_element(rle="4,"), "do not fill its box of 2×2"),
        (mask_element(rle="1.0, 3.0"), "runs are no counts"),
        (mask_element(rle="٣, 1"), "runs are no counts"),
        (mask_element(rle="5"), "do not fill its box of 2×2"),
        (mask_element(rle="1, 2"), "do not fill its box of 2×2"),
        (mask_element(rle="0, " + "9" * 30), "do not fill its box of 2×2"),
        (mask_element(rle="9223372036854775807, 9223372036854775807, 6"), "do not fill its box of 2×2"),
        (mask_element(left=7), "not inside the image"),
        (mask_element(top=-1), "not inside the image"),
        (mask_element(width=999_999_999, height=999_999_999), "not inside the image"),
        (mask_element(width=0), "without a size"),
        (mask_element(width="1e9"), "width is no whole number"),
        (mask_element(width="9" * 5000), "width is no whole number"),
        (mask_element(left="nan"), "left is no whole number"),
        (mask_element(height=None), "height is no whole number"),
        (mask_element(z_order="inf"), "z_order is no whole number"),
        (polygon("0,0;1,1"), "whose points are none"),
        (polygon(""), "whose points are none"),
        (polygon("0,0;1,1;x,y"), "whose points are none"),
        (polygon("0,0;1,1;1"), "whose points are none"),
        (polygon("0,0;1,nan;1,0"), "whose points are none"),
        (polygon("0,0;1,inf;1,0"), "whose points are none"),
        (polygon("0,0;1e9,1;1,0"), "far outside"),
        (polygon("0,0;-1e300,1;1,0"), "far outside"),
        (polygon("0,0;" * 100_000 + "1,1"), "more than 100000 points"),
        (polygon("0,0;1,1;1,0", "unheard of"), "'unheard of', which is no class"),
        ('<box label="road" xtl="0" ytl="0" xbr="8" ybr="6"/>', "of the kind box, of the label 'road'"),
        ('<polyline label="look here" points="0,0;1,1"/>', "of the kind polyline"),
        ('<ellipse label="road" cx="1" cy="1" rx="1" ry="1"/>', "of the kind ellipse"),
        ("<cuboid/>", "of the kind cuboid"),
    ],
)
def test_a_shape_that_cannot_be_refuses_its_image_alone(tmp_path: Path, shape: str, reason: str) -> None:
    xml = document(tmp_path / "a.xml", mask_element(), shape).read_text()
    good = f'<image id="1" name="b.png" width="8" height="6">{mask_element()}</image>'
    (tmp_path / "a.xml").write_text(xml.replace("</annotations>", f"{good}</annotations>"))
    refused, said = painted(tmp_path / "a.xml", (8, 6))
    assert isinstance(refused, str)
    assert reason in refused
    assert len(refused) < 600
    assert isinstance(said, DecodedMask)
    assert (said.mask == 0).sum() == 2


@pytest.mark.parametrize("size", [("9", "6"), ("8", "x"), ("-8", "6"), ("8" * 400, "6"), ("8.0", "6")])
def test_an_image_of_another_size_is_refused(tmp_path: Path, size: tuple[str, str]) -> None:
    said = read_one(tmp_path / "a.xml", mask_element(), size=size)
    assert isinstance(said, str)
    assert "and the image 8×6" in said


def test_tracks_and_images_without_names_are_refused_by_line(tmp_path: Path) -> None:
    track = (
        '<track id="0" label="road"><mask frame="0" rle="4" left="0" top="0" width="2" height="2"/></track>'
    )
    path = tmp_path / "a.xml"
    path.write_text(f'<annotations>\n{track}{track}\n<image id="0" width="8" height="6"/></annotations>')
    found = list(CVAT.read(path, LABELS))
    assert [(rejection.subject, type(rejection)) for rejection in found] == [
        ("a.xml, line 2", Rejected),
        ("a.xml, line 3", Rejected),
    ]


def test_what_came_before_damage_goes_in(tmp_path: Path) -> None:
    xml = document(tmp_path / "a.xml", mask_element()).read_text()
    (tmp_path / "a.xml").write_text(xml.replace("</annotations>", "<image name='b'>"))
    found = CVAT.read(tmp_path / "a.xml", LABELS)
    first = next(found)
    assert isinstance(first, Annotation)
    assert first.image == "a.png"
    with pytest.raises(DataError, match="cannot be read as XML from its line 3"):
        next(found)


def test_a_file_without_annotations_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotations></annotations>")
    for source in (tmp_path / "a.xml", tmp_path):
        with pytest.raises(DataError, match="holds no annotations"):
            list(CVAT.read(source, LABELS))
    with pytest.raises(DataError, match="cannot be read"):
        list(CVAT.read(tmp_path / "none.xml", LABELS))


def test_shapes_that_cover_an_image_again_and_again_cost_bounded_time(tmp_path: Path) -> None:
    side = 2000
    whole = mask_element(rle=f"0, {side * side}", left=0, top=0, width=side, height=side)
    sparse = mask_element(rle=f"{side * side - 1}, 1", left=0, top=0, width=side, height=side)
    around = polygon(";".join(f"{number % 2 * side},{number * side / 2000:.1f}" for number in range(2000)))
    started = time.process_time()
    for inside, reason in (([whole] * 100, "more than 64 times"), ([around] * 100, "64 times|too long")):
        path = document(tmp_path / "a.xml", *inside, size=(side, side))
        (said,) = painted(path, (side, side))
        assert isinstance(said, str)
        assert any(part in said for part in reason.split("|"))
    (said,) = painted(document(tmp_path / "a.xml", *[sparse] * 20_000, size=(side, side)), (side, side))
    assert isinstance(said, DecodedMask)
    assert (said.mask == 0).sum() == 1
    assert time.process_time() - started < 20


def test_a_photograph_full_of_pieces_is_written_and_read_fast(tmp_path: Path) -> None:
    mask: npt.NDArray[np.uint8] = shapes(np.random.default_rng(1), height=1024, width=1024)
    started = time.monotonic()
    folder = write_queue(CVAT, tmp_path, [mask])
    (folder / PROPOSALS).unlink()
    (said,) = painted(folder, (1024, 1024))
    assert isinstance(said, DecodedMask)
    assert np.array_equal(said.mask, mask)
    assert time.monotonic() - started < 10


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    inside = mask_element(rle="0, " + "1, " * 4094 + "1", left=0, top=0, width=64, height=64)
    image = f'<image id="0" name="a.png" width="64" height="64">{inside}</image>'
    with (tmp_path / "a.xml").open("w") as stream:
        stream.write("<annotations>")
        for _ in range(3000):
            stream.write(image)
        stream.write("</annotations>")
    tracemalloc.start()
    for answer in CVAT.read(tmp_path / "a.xml", LABELS):
        assert isinstance(answer, Annotation)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_the_writer_keeps_no_image(tmp_path: Path) -> None:
    mask = shapes(np.random.default_rng(0), height=150, width=200)
    write_queue(CVAT, tmp_path / "warm", [mask], queue=outgoing_queue())
    tracemalloc.start()
    write_queue(CVAT, tmp_path / "few", [mask] * 2)
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    write_queue(CVAT, tmp_path / "many", [mask] * 8)
    assert tracemalloc.get_traced_memory()[1] < few + (2 << 20)
    tracemalloc.stop()
