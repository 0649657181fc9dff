"""A queue as COCO instances, and what strangers send back as such."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as Reference

from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.coco import COCO
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected
from pipeline.labeling.unchanged import PROPOSALS
from pipeline.labeling.untrusted import archives, coco_index, coco_shapes
from pipeline.labeling.untrusted.canvas import Canvas
from pipeline.labeling.untrusted.coco_shapes import decode_counts, read_shape
from tests.pipeline.labeling.small_queue import (
    MASKS,
    NAMES,
    label_map,
    read_masks,
    shapes,
    sizes_of,
    write_queue,
)

LABELS = label_map()
SQUARE: list[float] = [1, 1, 5, 1, 5, 4, 1, 4]


def document_of(folder: Path) -> Path:
    return folder / "annotations" / "instances_default.json"


def reopened(folder: Path) -> Path:
    """The exported file as a tool would send it back."""
    (folder / PROPOSALS).unlink()
    return document_of(folder)


def write(path: Path, **changes: Any) -> Path:
    """A file of one image of 8 × 6 pixels with a square on it, and with changes."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "categories": [{"id": 3, "name": "road"}, {"id": 4, "name": "日本"}, {"id": 5, "name": "unheard of"}],
        "annotations": [annotation(segmentation=[SQUARE])],
        **changes,
    }
    path.write_text(json.dumps(document))
    return path


def annotation(**fields: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 3, **fields}


def read(path: Path, *, size: tuple[int, int] = (8, 6)) -> list[tuple[int | str, DecodedMask | str]]:
    answers = list(COCO.read(path, LABELS))
    sizes = {answer.image: size for answer in answers if isinstance(answer, Annotation)}
    return list(read_masks(answers, sizes))


def the_mask(path: Path) -> Mask:
    ((_, painted),) = read(path)
    assert isinstance(painted, DecodedMask), painted
    return painted.mask


def why(path: Path) -> str:
    ((_, reason),) = read(path)
    assert isinstance(reason, str)
    return reason


@settings(deadline=None, max_examples=60)
@given(st.lists(MASKS, min_size=1, max_size=3))
def test_masks_come_back_as_they_went_out(masks: list[Mask]) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = reopened(write_queue(COCO, Path(root), masks))
        found = dict(read_masks(COCO.read(path, LABELS), sizes_of(masks)))
    assert found.keys() == {1000 + place for place, mask in enumerate(masks) if (mask != 255).any()}
    for image_id, painted in found.items():
        assert isinstance(painted, DecodedMask)
        assert painted.overlapping == 0
        assert np.array_equal(painted.mask, masks[int(image_id) - 1000])


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_pycocotools_reads_the_same_masks(mask: Mask) -> None:
    with tempfile.TemporaryDirectory() as root:
        reference: Any = Reference(str(document_of(write_queue(COCO, Path(root), [mask]))))
    seen = np.full(mask.shape, 255)
    for found in reference.loadAnns(reference.getAnnIds()):
        part = reference.annToMask(found).astype(bool)
        assert (seen[part] == 255).all()
        seen[part] = NAMES.index(reference.loadCats(found["category_id"])[0]["name"])
        encoded: Any = coco_mask.encode(np.asfortranarray(part, dtype=np.uint8))
        assert found["segmentation"]["counts"] == encoded["counts"].decode()
        assert found["area"] == part.sum()
        assert found["bbox"] == coco_mask.toBbox(encoded).tolist()
    assert np.array_equal(seen, mask)


def test_images_stand_in_the_order_of_their_ranks_with_what_tells_whose_they_are(tmp_path: Path) -> None:
    masks = [shapes(np.random.default_rng(seed), height=20, width=30) for seed in range(3)]
    folder = write_queue(COCO, tmp_path, masks)
    document = json.loads(document_of(folder).read_text())
    assert [image["id"] for image in document["images"]] == [1, 2, 3]
    assert [image["rank"] for image in document["images"]] == [1, 2, 3]
    assert [category["id"] for category in document["categories"]] == list(range(1, len(NAMES) + 1))
    assert [category["name"] for category in document["categories"]] == list(NAMES)
    annotations = document["annotations"]
    assert [item["id"] for item in annotations] == list(range(1, len(annotations) + 1))
    for image in document["images"]:
        content = (folder / "images" / image["file_name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
    (answer, *_) = COCO.read(reopened(folder), LABELS)
    assert isinstance(answer, Annotation)
    assert (answer.image, answer.queue, answer.sha256) == (1000, "round-03", document["images"][0]["sha256"])


def test_the_same_queue_gives_the_same_bytes(tmp_path: Path) -> None:
    masks = [shapes(np.random.default_rng(1), height=20, width=30)]
    first, second = (write_queue(COCO, tmp_path / name, masks) for name in ("a", "b"))
    assert document_of(first).read_bytes() == document_of(second).read_bytes()
    assert sorted(path.name for path in first.iterdir()) == [
        *("README.md", "annotations", "images", "labelmap.json", "manifest.jsonl", PROPOSALS, "regions.csv"),
    ]
    assert [path.name for path in (first / "annotations").iterdir()] == ["instances_default.json"]


def test_an_exported_folder_that_nobody_has_touched_holds_no_labels(tmp_path: Path) -> None:
    folder = write_queue(COCO, tmp_path, [np.zeros((4, 4), np.uint8)])
    for source in (folder, document_of(folder)):
        with pytest.raises(DataError, match="proposals, not labels"):
            list(COCO.read(source, LABELS))
    document_of(folder).write_text(document_of(folder).read_text() + " ")
    assert len(list(COCO.read(folder, LABELS))) == 1


def test_what_a_tool_exports_into_the_folder_is_read_and_the_proposals_beside_it_are_not(
    tmp_path: Path,
) -> None:
    folder = write_queue(COCO, tmp_path, [np.zeros((4, 4), np.uint8)])
    write(folder / "corrected.json")
    (answer,) = COCO.read(folder, LABELS)
    assert isinstance(answer, Annotation)
    assert answer.image == "a.png"


def test_a_later_shape_has_the_pixels_and_those_that_two_classes_claim_are_counted(tmp_path: Path) -> None:
    moved = [3, 1, 8, 1, 8, 4, 3, 4]
    path = write(
        tmp_path / "a.json",
        annotations=[
            annotation(segmentation=[SQUARE]),
            annotation(segmentation=[SQUARE]),
            annotation(segmentation=[moved], category_id=4),
        ],
    )
    ((_, painted),) = read(path)
    assert isinstance(painted, DecodedMask)
    expected = np.full((6, 8), 255)
    expected[1:4, 1:5] = 0
    expected[1:4, 3:8] = 3
    assert np.array_equal(painted.mask, expected)
    assert painted.overlapping == 6


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.floats(-20, 60), min_size=6, max_size=12).map(lambda p: p[: len(p) // 2 * 2]), min_size=1
    ),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_polygons_are_filled_as_pycocotools_fills_them(
    polygons: list[list[float]], width: int, height: int
) -> None:
    runs = read_shape(polygons, width=width, height=height)
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))  # pyright: ignore
    canvas = Canvas(width=width, height=height)
    canvas.paint(runs, 1)
    assert np.array_equal(canvas.decoded().mask == 1, expected == 1)


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_run_lengths_are_decoded_as_pycocotools_encodes_them_compressed_or_not(mask: Mask) -> None:
    height, width = mask.shape
    chosen = np.asfortranarray(mask == 1, dtype=np.uint8)
    encoded: Any = coco_mask.encode(chosen)
    text = encoded["counts"].decode()
    for counts in (text, decode_counts(text).tolist()):
        canvas = Canvas(width=width, height=height)
        canvas.paint(read_shape({"size": [height, width], "counts": counts}, width=width, height=height), 1)
        assert np.array_equal(canvas.decoded().mask == 1, chosen == 1)


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40))
def test_any_text_is_run_lengths_of_this_image_or_is_refused(counts: str) -> None:
    try:
        runs = read_shape({"size": [6, 8], "counts": counts}, width=8, height=6)
    except DataError:
        return
    assert 0 <= runs.area <= 48
    assert (runs.lengths > 0).all()
    assert (runs.starts[1:] >= runs.starts[:-1] + runs.lengths[:-1]).all()


BAD_SHAPES: list[tuple[Any, str]] = [
    (None, "no mask and no polygon"),
    ([], "no mask and no polygon"),
    ("0", "no mask and no polygon"),
    ([[1, 1, 5, 1]], "fewer than three corners"),
    ([[1, 1, 5, 1, 5]], "fewer than three corners"),
    ([[1, 1, 5, 1, 5, 4, 1]], "fewer than three corners"),
    ([SQUARE, 7], "fewer than three corners"),
    ([[1, 1, 5, 1, 5, 1e300]], "far outside"),
    ([[1, 1, 5, 1, 5, -(10**400)]], "far outside"),
    ([[1, 1, 5, 1, 5, True]], "far outside"),
    ([[1, 1, 5, 1, 5, "4"]], "far outside"),
    ([[0, 0, 9000, 9000, 0, 9000] * 100], "too long"),
    ({"counts": "T1"}, "no size"),
    ({"size": [6], "counts": "T1"}, "no size"),
    ({"size": [6, 8.0], "counts": "T1"}, "no size"),
    ({"size": [6, True], "counts": "T1"}, "no size"),
    ({"size": [8, 6], "counts": "T1"}, "6×8 pixels"),
    ({"size": [10**9, 10**9], "counts": "T1"}, "of 8×6"),
    ({"size": [6, 8]}, "no run lengths"),
    ({"size": [6, 8], "counts": ""}, "not those of this image"),
    ({"size": [6, 8], "counts": [47]}, "not those of this image"),
    ({"size": [6, 8], "counts": [49]}, "not those of this image"),
    ({"size": [6, 8], "counts": [-1, 49]}, "not those of this image"),
    ({"size": [6, 8], "counts": [2**63, 2**63, 48]}, "not those of this image"),
    ({"size": [6, 8], "counts": [10**400]}, "not those of this image"),
    ({"size": [6, 8], "counts": [47.5, 0.5]}, "no run lengths"),
    ({"size": [6, 8], "counts": [True, 47]}, "no run lengths"),
    ({"size": [6, 8], "counts": "é"}, "characters"),
    ({"size": [6, 8], "counts": "\x00"}, "characters"),
    ({"size": [6, 8], "counts": "oooo"}, "cut off"),
    ({"size": [6, 8], "counts": "o" * 30 + "0"}, "cut off"),
    ({"size": [6, 8], "counts": "oooooo1"}, "not those of this image"),
    ({"size": [6, 8], "counts": "O" * 7}, "not those of this image"),
]


@pytest.mark.parametrize(("segmentation", "reason"), BAD_SHAPES)
def test_a_shape_that_cannot_be_is_refused(tmp_path: Path, segmentation: Any, reason: str) -> None:
    path = write(tmp_path / "a.json", annotations=[annotation(segmentation=segmentation)])
    assert reason in why(path)


def test_shapes_that_cover_an_image_again_and_again_are_refused_before_long(tmp_path: Path) -> None:
    whole = annotation(segmentation={"size": [2000, 2000], "counts": [0, 4_000_000]})
    path = write(
        tmp_path / "a.json",
        images=[{"id": 1, "file_name": "a.png", "width": 2000, "height": 2000}],
        annotations=[whole] * 5000,
    )
    start = time.perf_counter()
    ((_, reason),) = read(path, size=(2000, 2000))
    assert "more than 64 times" in str(reason)
    assert time.perf_counter() - start < 10


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"annotations": [annotation(segmentation=[SQUARE], category_id=5)]}, "no class 'unheard of'"),
    ({"annotations": [annotation(segmentation=[SQUARE], category_id=6)]}, "no category 6"),
    ({"annotations": [annotation(segmentation=[SQUARE], category_id=True)]}, "`category_id`"),
    ({"annotations": [annotation(segmentation=[SQUARE], category_id=3.0)]}, "`category_id`"),
    ({"annotations": [annotation(segmentation=[SQUARE], image_id="1")]}, "`image_id`"),
    ({"annotations": [annotation(segmentation=[SQUARE], image_id=-1)]}, "`image_id`"),
    ({"annotations": [annotation(segmentation=[SQUARE], image_id=10**40)]}, "`image_id`"),
    ({"annotations": [annotation(segmentation=[SQUARE], image_id=2)]}, "no image 2"),
    ({"annotations": [7]}, "no object"),
    ({"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 6}]}, "9×6"),
    ({"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}] * 2}, "same id"),
]


@pytest.mark.parametrize(("changes", "reason"), CHANGES)
def test_an_entry_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    reasons = [said for _, said in read(write(tmp_path / "a.json", **changes))]
    assert reasons
    assert all(reason in str(said) for said in reasons)


@pytest.mark.parametrize(
    "image",
    [
        {"id": 1, "width": 8, "height": 6},
        {"id": 1, "file_name": "", "width": 8, "height": 6},
        {"id": 1, "file_name": "a" * 2000, "width": 8, "height": 6},
        {"id": 1, "file_name": "\ud800.png", "width": 8, "height": 6},
        {"id": 1, "file_name": "a\0.png", "width": 8, "height": 6},
        {"id": 1, "file_name": ["a.png"], "width": 8, "height": 6},
        {"id": 1.5, "file_name": "a.png", "width": 8, "height": 6},
        {"id": 1, "file_name": "a.png", "width": "8", "height": 6},
        {"id": 1, "file_name": "a.png", "width": 8, "height": None},
        "a.png",
        None,
    ],
)
def test_an_image_without_a_name_an_id_or_a_size_is_refused_and_the_others_go_in(
    tmp_path: Path, image: Any
) -> None:
    other = {"id": 2, "file_name": "b.png", "width": 8, "height": 6}
    path = write(
        tmp_path / "a.json",
        images=[image, other],
        annotations=[annotation(segmentation=[SQUARE]), annotation(segmentation=[SQUARE], image_id=2)],
    )
    found = read(path)
    assert [subject for subject, said in found if isinstance(said, DecodedMask)] == ["b.png"]
    assert len(found) == 3  # the entry, and the annotation that has no image now


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "lists no images"),
        ('[{"id": 1}]', "no COCO file"),
        ("7", "no COCO file"),
        ("", "lists no images"),
        ('{"images": {}}', "`images` is no list"),
        ('{"images": [', "ends too early"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "two categories 1"),
    ],
)
def test_a_file_that_is_none_of_coco_is_refused_and_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        list(COCO.read(path, LABELS))
    assert str(path) in str(caught.value)


def test_images_without_a_size_are_named_with_what_they_lack(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", images=[{"id": 1, "file_name": "a.png"}])
    found: list[Any] = []
    with pytest.raises(DataError, match="lists no images that can be used"):
        for item in COCO.read(path, LABELS):
            found.append(item)
    (rejected,) = found
    assert (rejected.subject, rejected.reason[:22]) == ("images: a.png", "Its `width` is missing")


def test_a_file_that_is_cut_off_gives_nothing_because_shapes_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="ends too early"):
        list(COCO.read(path, LABELS))


def test_of_several_files_a_broken_one_is_refused_and_the_others_go_in(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    write(tmp_path / "annotations" / "b.json")
    broken = write(tmp_path / "annotations" / "a.json")
    broken.write_bytes(broken.read_bytes()[:-4])
    (tmp_path / "annotations" / "c.json").symlink_to(broken)
    rejection, answer = COCO.read(tmp_path, LABELS)
    assert isinstance(rejection, Rejected)
    assert isinstance(answer, Annotation)
    assert (rejection.subject, answer.image) == ("a.json", "a.png")


def test_a_zip_archive_is_read_like_the_files_in_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    archive = tmp_path / "exported.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.write(path, "annotations/instances_default.json")
        stream.writestr("images/a.png", b"")
        stream.writestr("../../b.json", path.read_bytes())
    assert COCO.recognises(archive)
    with contextlib.closing(COCO.read(archive, LABELS)) as answers:  # pyright: ignore
        (answer,) = [next(answers)]
        assert isinstance(answer, Annotation)
        assert answer.image == "a.png"
        assert np.array_equal(answer.read(8, 6).mask, the_mask(path))
        assert next(answers, None) is None


def test_an_archive_that_unpacks_to_far_more_than_it_is_ends_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "ALWAYS_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("a.json", '{"images": [{"file_name": "a"}]' + " " * (64 << 20))
    with pytest.raises(DataError, match="far more than its own size"):
        list(COCO.read(tmp_path / "a.zip", LABELS))


def test_a_category_named_background_is_a_class_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", categories=[{"id": 3, "name": "background"}])
    assert (the_mask(path) == NAMES.index("background")).sum() == 12


def test_numbers_of_megabytes_and_deep_nesting_are_refused_and_the_rest_goes_in(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    good = json.dumps(annotation(segmentation=[SQUARE]))
    deep = '{"image_id": 1, "segmentation": ' + "[" * 100_000 + "]" * 100_000 + "}"
    huge = '{"image_id": ' + "9" * 100_000 + "}"
    nan = '{"image_id": 1, "segmentation": [[NaN, 1, 2, 3, 4, 5]]}'
    inf = '{"image_id": 1, "segmentation": [[1e999, 1, 2, 3, 4, 5]]}'
    path.write_text(path.read_text().replace(good, ",".join([deep, huge, good, nan, inf])))
    found = read(path)
    assert [type(said) for _, said in found] == [str, str, str, str, DecodedMask]
    assert "nested too deeply" in str(found[0][1])


@pytest.mark.parametrize(("limit", "what"), [("MOST_IMAGES", "images"), ("MOST_ANNOTATIONS", "annotations")])
def test_more_than_what_can_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, what: str
) -> None:
    monkeypatch.setattr(coco_index, limit, 0)
    with pytest.raises(DataError, match=f"more than 0 {what}"):
        read(write(tmp_path / "a.json"))


def test_polygons_of_more_corners_than_anybody_draws_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_shapes, "MOST_CORNERS", 7)
    with pytest.raises(DataError, match="more than 7 corners"):
        read_shape([SQUARE, SQUARE], width=8, height=6)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: write(path), True),
        (lambda path: path.write_text('{"info": {}, "images": [{"file_name": "a"}]}'), True),
        (lambda path: path.write_bytes(b'\xef\xbb\xbf{"images": [{"file_name": "a"}]}'), True),
        (lambda path: path.write_text('[{"id": 1, "annotations": []}]'), False),
        (lambda path: path.write_text('{"id": 1, "annotations": []}'), False),
        (lambda path: path.write_text('{"images": 7}'), False),
        (lambda path: path.write_bytes(b"\x00\xff"), False),
    ],
)
def test_a_file_is_recognised_by_how_it_begins(
    tmp_path: Path, make: Callable[[Path], object], expected: bool
) -> None:
    make(tmp_path / "a.json")
    assert COCO.recognises(tmp_path / "a.json") is expected
    assert COCO.recognises(tmp_path) is expected


def test_an_export_of_many_specks_takes_no_time_that_grows_with_their_number_times_the_image(
    tmp_path: Path,
) -> None:
    mask = np.full((1000, 1000), 255, np.uint8)
    mask[::8, ::8] = 1
    start = time.process_time()
    path = reopened(write_queue(COCO, tmp_path, [mask]))
    ((_, painted),) = read_masks(COCO.read(path, LABELS), sizes_of([mask]))
    assert time.process_time() - start < 15
    assert isinstance(painted, DecodedMask)
    assert np.array_equal(painted.mask, mask)
