"""What is read of Label Studio's JSON, and what is not."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.labeling.exchange import Annotation, Rejected
from pipeline.labeling.label_studio import LABEL_STUDIO, annotations, bitmask
from pipeline.labeling.label_studio.config import Masks
from pipeline.labeling.label_studio.shapes import MOST_SHAPES, paint
from pipeline.labeling.label_studio.tasks import mask_results
from tests.pipeline.claiming_png import RGBA, claiming_png
from tests.pipeline.labeling.label_studio.synthetic import CLASSES, label_map, truth

WIDTH, HEIGHT = 12, 8
MASK = truth(WIDTH, HEIGHT)


def annotation(result: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "id": 5,
        "completed_by": {"id": 3, "email": "ann@example.org"},
        "created_at": "2026-10-10T12:00:00.000001Z",
        "updated_at": "2026-10-10T14:00:00.500000+02:00",
        "lead_time": 12.5,
        "was_cancelled": False,
        "result": shapes() if result is None else result,
    } | more


def task(*annotations: Any, **more: Any) -> dict[str, Any]:
    data = {"image_id": 40, "queue": "round-03", "sha256": "ab" * 32}
    return {
        "id": 7,
        "annotations": list(annotations),
        "drafts": [{}],
        "predictions": [1],
        "data": data,
    } | more


def shapes(mask: Any = MASK, masks: Masks = "bitmask") -> list[dict[str, Any]]:
    return mask_results(mask, CLASSES, image_id=40, masks=masks)


def read(folder: Path, content: Any) -> list[Annotation | Rejected]:
    path = folder / "project-1.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return list(LABEL_STUDIO.read(path, label_map()))


def one(folder: Path, content: Any) -> Annotation:
    (answer,) = read(folder, content)
    assert isinstance(answer, Annotation), answer
    return answer


@pytest.mark.parametrize("masks", ["bitmask", "brush"])
def test_an_annotation_is_an_answer_with_all_that_the_file_says(tmp_path: Path, masks: Masks) -> None:
    answer = one(tmp_path, [task(annotation(shapes(masks=masks)))])
    painted = answer.read(WIDTH, HEIGHT)
    np.testing.assert_array_equal(painted.mask, MASK)
    assert painted.overlapping == 0
    assert answer.subject == "project-1.json, task 7, annotation 5"
    assert (answer.image, answer.queue, answer.sha256) == (40, "round-03", "ab" * 32)
    assert (answer.annotator, answer.seconds, answer.skipped) == ("ann@example.org", 12.5, False)
    assert answer.labeled_at == datetime(2026, 10, 10, 12, 0, 0, 500000, tzinfo=UTC)
    assert answer.origin == "annotation 5 of 2026-10-10T12:00:00.000001+00:00"


def test_a_list_lines_and_a_single_task_are_all_read(tmp_path: Path) -> None:
    whole = [task(annotation()), task(), task(annotation(), annotation(id=6))]
    lines = "\n".join(json.dumps(one_task) for one_task in whole).encode()
    assert len(read(tmp_path, whole)) == len(read(tmp_path, lines)) == 3
    assert len(read(tmp_path, whole[2])) == 2


def test_a_skipped_task_is_said_to_be_one(tmp_path: Path) -> None:
    assert one(tmp_path, [task(annotation([], was_cancelled=True))]).skipped


def test_nothing_painted_is_an_empty_mask(tmp_path: Path) -> None:
    look = {"from_name": "look", "type": "rectanglelabels", "value": {"rectanglelabels": ["look here"]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    mask = one(tmp_path, [task(annotation([look, relation]))]).read(WIDTH, HEIGHT).mask
    assert (mask == 255).all()


@pytest.mark.parametrize(
    ("completed_by", "annotator"),
    [
        (3, "user 3"),
        ({"id": 3, "email": "", "username": "ann"}, "ann"),
        ({"id": 3}, "user 3"),
        ("ann", "ann"),
        (None, None),
        (True, None),
        (-1, None),
        ([3], None),
        ("a\x1b[31m", "a\\x1b[31m"),
    ],
)
def test_who_it_was_is_taken_as_far_as_the_file_says_it(
    tmp_path: Path, completed_by: Any, annotator: str | None
) -> None:
    assert one(tmp_path, [task(annotation(completed_by=completed_by))]).annotator == annotator


@pytest.mark.parametrize("odd", [None, "soon", "2026-10-10T12:00:00", "0001-01-01T00:00:00+14:00", 5, [], {}])
def test_odd_times_and_numbers_are_left_out(tmp_path: Path, odd: Any) -> None:
    odd_annotation = annotation(id=odd, created_at=odd, updated_at=odd, lead_time="x" if odd == 5 else odd)
    answer = one(tmp_path, [task(odd_annotation)])
    assert (answer.labeled_at, answer.seconds) == (None, None)


@pytest.mark.parametrize("lead_time", [-1, True, 10**400, 1e300])
def test_an_effort_that_cannot_be_is_none(tmp_path: Path, lead_time: Any) -> None:
    assert one(tmp_path, [task(annotation(lead_time=lead_time))]).seconds is None


def test_of_overlapping_shapes_the_later_one_counts() -> None:
    left, right = np.full((2, HEIGHT, WIDTH), 255, dtype=np.uint8)
    left[:, :8], right[:, 4:] = 3, 1
    painted = paint(shapes(left) + shapes(right), None, label_map(), WIDTH, HEIGHT)
    assert painted.mask[0].tolist() == [3] * 4 + [1] * 8
    assert painted.overlapping == 4 * HEIGHT
    assert paint(shapes(left) + shapes(left), None, label_map(), WIDTH, HEIGHT).overlapping == 0


def test_what_was_painted_goes_before_what_was_proposed() -> None:
    """The first class is extended over the second, which comes later in the list and is left as it was."""
    proposal, more = np.zeros((2, HEIGHT, WIDTH), dtype=np.uint8)
    proposal[:, 6:], more[:, 9:] = 1, 255
    proposed = shapes(proposal)
    result = [shapes(more)[0], proposed[1]]
    painted = paint(result, proposed, label_map(), WIDTH, HEIGHT)
    assert painted.mask[0].tolist() == [0] * 9 + [1] * 3
    assert painted.overlapping == 0
    assert paint(result, None, label_map(), WIDTH, HEIGHT).mask[0].tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("where", ["annotation", "task"])
def test_the_proposal_is_found_with_the_annotation_or_the_task(tmp_path: Path, where: str) -> None:
    proposal, more = np.zeros((2, HEIGHT, WIDTH), dtype=np.uint8)
    proposal[:, 6:] = 1
    result = [shapes(more)[0], shapes(proposal)[1]]
    prediction = {"id": 1, "result": shapes(proposal)}
    whole = (
        task(annotation(result, prediction=prediction))
        if where == "annotation"
        else task(annotation(result), predictions=[prediction])
    )
    assert (one(tmp_path, [whole]).read(WIDTH, HEIGHT).mask == 0).all()


@pytest.mark.parametrize("proposal", [5, {}, [5], [{"type": "brushlabels"}], shapes(truth(3, 3))])
def test_a_proposal_that_cannot_be_read_is_none(proposal: Any) -> None:
    np.testing.assert_array_equal(paint(shapes(), proposal, label_map(), WIDTH, HEIGHT).mask, MASK)


def changed(**more: Any) -> list[dict[str, Any]]:
    return [shapes()[0] | more]


def valued(**more: Any) -> list[dict[str, Any]]:
    return changed(value=shapes()[0]["value"] | more)


def png(make: Callable[[], bytes]) -> list[dict[str, Any]]:
    return valued(imageDataURL=bitmask.PREFIX + base64.b64encode(make()).decode())


def opaque() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (5, "no list"),
        ({"a": 1}, "no list"),
        ([5], "no region"),
        (changed(original_width=10**6), r"1000000×8 pixels, and the image 12×8"),
        (changed(original_height=None), r"12×None pixels"),
        (changed(original_width=[0] * 9), r"pixels, and the image 12×8"),
        (changed(image_rotation=90), "turned"),
        (changed(image_rotation="x"), "turned"),
        (changed(type="polygonlabels"), "shape of the kind polygonlabels"),
        (changed(from_name="other"), "shape of the kind bitmasklabels"),
        (changed(value=None), "without a value"),
        (valued(bitmasklabels=[]), "not exactly one class"),
        (valued(bitmasklabels=[CLASSES[0], CLASSES[1]]), "not exactly one class"),
        (valued(bitmasklabels="sky"), "not exactly one class"),
        (valued(bitmasklabels=["<script>"]), "label '<script>', which is no class of the project"),
        (valued(bitmasklabels=[{"a": 1}]), "which is no class of the project"),
        (valued(imageDataURL=None), "not a PNG in a data URL"),
        (valued(imageDataURL="https://evil.example/a.png"), "not a PNG in a data URL"),
        (valued(imageDataURL=bitmask.PREFIX + "é"), "not a readable PNG"),
        (valued(imageDataURL=bitmask.PREFIX + "AAAA"), "not a readable PNG"),
        (png(lambda: claiming_png(10**6, 10**6, color=RGBA)), "1000000×1000000 pixels, and the image 12×8"),
        (png(lambda: claiming_png(WIDTH, HEIGHT, color=RGBA)), "not a readable PNG"),
        (png(opaque), "no transparency"),
        (shapes() * (MOST_SHAPES + 1), "more than 2000"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, result: Any, message: str
) -> None:
    refused, fine = read(tmp_path, [task(annotation(result)), task(annotation())])
    assert isinstance(refused, Annotation)
    assert isinstance(fine, Annotation)
    with pytest.raises(DataError, match=message) as caught:
        refused.read(WIDTH, HEIGHT)
    assert caught.value.remedy
    np.testing.assert_array_equal(fine.read(WIDTH, HEIGHT).mask, MASK)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (5, "no task"),
        ("x\x1b", "no task"),
        ({"id": 1, "annotations": 5}, "no list"),
        ({"id": 1, "annotations": [{}]}, "names no image"),
        ({"id": 1, "annotations": [{}], "data": {"image_id": "40"}}, "names no image"),
        ({"id": 1, "annotations": [{}], "data": {"image_id": 10**30}}, "names no image"),
        ({"id": 1, "annotations": [{}], "data": {"image_id": True}}, "names no image"),
        (task(5), "an annotation that is no object"),
        ({"id": 1, "x": float("nan")}, "NaN"),
    ],
)
def test_a_task_that_cannot_be_is_refused_and_the_next_one_read(
    tmp_path: Path, bad: Any, reason: str
) -> None:
    rejection, answer = read(tmp_path, [bad, task(annotation())])
    assert isinstance(rejection, Rejected)
    assert reason in rejection.reason
    assert isinstance(answer, Annotation)


def test_a_task_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "LONGEST_TASK", 5000)
    rejection, answer = read(tmp_path, [task(annotation(), padding="x" * 10**6), task(annotation())])
    assert isinstance(rejection, Rejected)
    assert "MiB" in rejection.reason
    assert isinstance(answer, Annotation)


def test_deep_nesting_and_a_file_that_ends_too_early_are_errors_in_words(tmp_path: Path) -> None:
    (rejection,) = read(tmp_path, b'[{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}]")
    assert isinstance(rejection, Rejected)
    with pytest.raises(DataError, match="no JSON"):
        read(tmp_path, json.dumps([task(annotation())]).encode()[:-40])


def test_many_shapes_take_bounded_memory_and_time() -> None:
    mask = np.zeros((512, 512), dtype=np.uint8)
    start = time.perf_counter()
    paint(shapes(mask, "brush") * 300, None, label_map(), 512, 512)
    assert time.perf_counter() - start < 10


def test_a_file_is_recognised_by_what_it_begins_with(tmp_path: Path) -> None:
    def recognised(content: Any, name: str = "a.json") -> bool:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return LABEL_STUDIO.recognises(path)

    assert recognised([task(annotation())])
    assert recognised(task(annotation()), "a.jsonl")
    assert not recognised([task(annotation())], "a.txt")
    assert not recognised({"images": [], "annotations": [], "categories": []})
    assert not recognised("[]")
    assert not LABEL_STUDIO.recognises(tmp_path)
    assert not LABEL_STUDIO.recognises(tmp_path / "missing.json")


def test_an_exported_folder_is_read_where_label_studios_files_were_put_into_it(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text("[]")
    assert LABEL_STUDIO.recognises(tmp_path)
    with pytest.raises(DataError, match="holds no annotations"):
        list(LABEL_STUDIO.read(tmp_path, label_map()))
    assert len(read(tmp_path, [task(annotation())])) == 1
    (answer,) = LABEL_STUDIO.read(tmp_path, label_map())
    assert isinstance(answer, Annotation)


def test_shapes_of_a_huge_image_are_fewer_because_each_is_as_large_as_the_image() -> None:
    shape = {"type": "brushlabels", "from_name": "mask", "value": {}}
    with pytest.raises(DataError, match="It has 100 shapes, more than 85"):
        paint([shape] * 100, [], label_map(), 10_000, 10_000)


def test_json_min_is_recognised_and_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps([{"id": 1, "image": "a.png", "annotation_id": 2, "lead_time": 3.5}]))
    assert LABEL_STUDIO.recognises(path)
    with pytest.raises(DataError, match="JSON-MIN"):
        list(LABEL_STUDIO.read(path, label_map()))
