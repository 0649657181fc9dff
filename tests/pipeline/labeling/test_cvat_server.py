"""A queue on a CVAT server. The client is CVAT's own; the server answers with the shapes of CVAT's API."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.labeling.cvat import CVAT
from pipeline.labeling.exchange import Annotation
from pipeline.labeling.servers import cvat_client, cvat_http
from pipeline.labeling.servers.base import Pushed, ServerError
from pipeline.labeling.servers.cvat import CvatServer
from tests.pipeline.labeling.recorded_cvat import TOKEN, Asked, RecordedCvat, running_cvat
from tests.pipeline.labeling.small_queue import label_map, shapes, write_queue

OURS, OTHERS = "a" * 32, "b" * 32
MASKS = [shapes(np.random.default_rng(seed), height=20 + seed, width=30) for seed in range(5)]
DONE = {"state": "completed", "stage": "annotation", "type": "annotation"}


@pytest.fixture
def cvat(monkeypatch: pytest.MonkeyPatch) -> Generator[RecordedCvat]:
    monkeypatch.setattr(cvat_client, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cvat_http, "PAUSES", (0.0, 0.0))
    with running_cvat() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_queue(CVAT, tmp_path, MASKS)


def server(cvat: RecordedCvat, token: str = TOKEN, *, project_id: str = OURS, **changes: Any) -> CvatServer:
    settings: dict[str, Any] = {"project": "streets", "batch": 2} | changes
    return CvatServer(cvat.url, token, project_id=project_id, timeout=5, **settings)


def push(cvat: RecordedCvat, folder: Path, *, places: list[str] | None = None, batch: int = 2) -> Pushed:
    return server(cvat, batch=batch).push(folder, places=places or [])


def names(folder: Path) -> list[str]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return [Path(json.loads(line)["image"]).name for line in lines]


def check_all_there(cvat: RecordedCvat, folder: Path) -> None:
    """Every image is in one task, as it is, with its annotations, in the order of the ranks."""
    tasks = sorted(cvat.tasks.values(), key=lambda task: task.frames)
    assert [name for task in tasks for name in task.frames] == names(folder)
    whole = {
        image.attrib["name"]: ElementTree.tostring(image).strip()
        for image in ElementTree.parse(folder / "annotations.xml").getroot().iter("image")
    }
    for task in tasks:
        assert task.received == {name: (folder / "images" / name).read_bytes() for name in task.frames}
        assert task.document is not None
        images = list(ElementTree.fromstring(task.document).iter("image"))
        assert [ElementTree.tostring(image).strip() for image in images] == [
            whole[name] for name in task.frames
        ]


def test_a_queue_becomes_tasks_of_a_batch_each_in_its_order(cvat: RecordedCvat, folder: Path) -> None:
    assert any((folder / "images" / name).is_symlink() for name in names(folder))
    pushed = push(cvat, folder)
    assert pushed == Pushed(places=["1", "2", "3"], created=5, unchanged=0, page=f"{cvat.url}/tasks")
    assert [task.name for task in cvat.tasks.values()] == [
        f"streets round-03 [aaaaaaaa] ({number}/3)" for number in (1, 2, 3)
    ]
    check_all_there(cvat, folder)
    for task in cvat.tasks.values():
        assert task.settings["sorting_method"] == "predefined"
        assert task.settings["image_quality"] == 100
        assert task.settings["upload_file_order"] == task.frames
        assert [label["name"] for label in task.labels][-1] == "look here"
        assert {label["type"] for label in task.labels} == {"any", "rectangle"}
    imports = [
        asked for asked in cvat.asked if "upload-finish" in asked.headers and "annotations" in asked.path
    ]
    assert {asked.query["conv_mask_to_poly"] for asked in imports} == {"false"}


def test_one_task_has_its_own_page(cvat: RecordedCvat, folder: Path) -> None:
    assert push(cvat, folder, batch=100).page == f"{cvat.url}/tasks/1"


def test_a_second_push_changes_nothing(cvat: RecordedCvat, folder: Path) -> None:
    first = push(cvat, folder)
    del cvat.asked[:]
    for places in (first.places, []):
        again = push(cvat, folder, places=places)
        assert again == Pushed(places=first.places, created=0, unchanged=5, page=first.page)
    assert cvat.log() == []


def test_another_batch_size_sends_no_image_again(cvat: RecordedCvat, folder: Path) -> None:
    push(cvat, folder)
    assert push(cvat, folder, batch=4).unchanged == 5
    assert len(cvat.tasks) == 3


def test_a_task_that_is_gone_is_made_anew(cvat: RecordedCvat, folder: Path) -> None:
    first = push(cvat, folder)
    del cvat.tasks[2]
    again = push(cvat, folder, places=first.places)
    assert (again.created, again.unchanged, again.places) == (2, 3, ["1", "3", "4"])
    assert cvat.tasks[4].name == "streets round-03 [aaaaaaaa] (3/3)"
    check_all_there(cvat, folder)


WRITING = [
    r"POST /api/tasks",
    r"POST /api/tasks/\d+/data/",
    r"GET /api/requests/action=data.*",
    r"GET /api/tasks/\d+/annotations/",
    r"POST /api/tasks/\d+/annotations/",
    r"PATCH /uploads/annotations.*",
    r"GET /api/requests/action=annotations.*",
]


@pytest.mark.parametrize("where", WRITING)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_push_that_fails_anywhere_is_taken_up(
    cvat: RecordedCvat, folder: Path, where: str, times: int
) -> None:
    seen = 0

    def fail(asked: Asked) -> int | None:
        nonlocal seen
        if re.fullmatch(where, f"{asked.method} {asked.path.replace('%3D', '=')}"):
            seen += 1
            return 400 if seen == times else None
        return None

    cvat.before = fail
    with pytest.raises(ServerError):
        push(cvat, folder)
    cvat.before = lambda asked: None
    pushed = push(cvat, folder)
    assert pushed.created + pushed.unchanged == 5
    assert pushed.places == [str(number) for number in sorted(cvat.tasks)]
    assert len({task.name for task in cvat.tasks.values()}) == len(cvat.tasks) == 3
    check_all_there(cvat, folder)


def test_nothing_of_peoples_work_is_touched(cvat: RecordedCvat, folder: Path) -> None:
    push(cvat, folder)
    cvat.tasks[1].sources("manual")
    cvat.tasks[2].shapes = []  # everything was erased
    cvat.tasks[2].jobs[0]["state"] = "in progress"
    before = {number: (task.document, list(task.shapes)) for number, task in cvat.tasks.items()}
    del cvat.asked[:]
    assert push(cvat, folder).unchanged == 5
    assert cvat.log() == []
    assert before == {number: (task.document, task.shapes) for number, task in cvat.tasks.items()}


def test_strangers_tasks_of_a_like_name_are_left_alone(cvat: RecordedCvat, folder: Path) -> None:
    push(cvat, folder)
    cvat.tasks[1].name = "streets round-03 [aaaaaaaa] (1/3) old"
    cvat.tasks[2].name = "my streets round-03 (2/3)"
    cvat.tasks[3].frames = ["another.png"]
    pushed = push(cvat, folder)
    assert pushed.created == 5
    assert pushed.places == ["4", "5", "6"]
    assert sorted(cvat.tasks) == [1, 2, 3, 4, 5, 6]


def test_two_projects_of_one_name_never_use_each_others_tasks(
    cvat: RecordedCvat, folder: Path, tmp_path: Path
) -> None:
    places = push(cvat, folder).places
    for task in cvat.tasks.values():
        task.jobs = [DONE]
    twin = server(cvat, project_id=OTHERS)
    del cvat.asked[:]

    assert not twin.is_begun(queue="round-03", places=places)
    assert twin.retire(queue="round-03", places=places) == 0
    assert twin.pull(queue="round-03", places=places, into=tmp_path).files == []
    assert cvat.log() == []
    pushed = twin.push(folder, places=places)
    assert (pushed.created, pushed.places) == (5, ["4", "5", "6"])
    assert cvat.tasks[4].name == "streets round-03 [bbbbbbbb] (1/3)"
    assert push(cvat, folder).places == places


def test_a_project_with_a_new_name_finds_what_it_had(cvat: RecordedCvat, folder: Path) -> None:
    places = push(cvat, folder).places
    assert server(cvat, project="avenues").push(folder, places=[]).places == places
    assert server(cvat, project="avenues").retire(queue="round-03", places=places) == 5


def test_a_very_long_name_leaves_the_id_whole(cvat: RecordedCvat, folder: Path) -> None:
    places = server(cvat, project="s" * 300).push(folder, places=[]).places
    assert all(len(task.name) < 256 for task in cvat.tasks.values())
    assert server(cvat, project="s" * 300).push(folder, places=[]).places == places
    assert server(cvat, project="s" * 300, project_id=OTHERS).push(folder, places=[]).created == 5


def test_tasks_from_before_names_had_an_id_are_used_and_only_own_empty_ones_removed(
    cvat: RecordedCvat, folder: Path
) -> None:
    places = push(cvat, folder).places
    for number, task in cvat.tasks.items():
        task.name = f"streets round-03 ({number}/3)"
    for known in (places, []):
        assert push(cvat, folder, places=known).unchanged == 5
    cvat.tasks[1].frames = []  # its images may be on their way, of another project with this name
    again = push(cvat, folder, places=[])
    assert (again.created, again.unchanged) == (2, 3)
    assert sorted(cvat.tasks) == [1, 2, 3, 4]
    assert server(cvat).retire(queue="round-02", places=places) == 0
    assert server(cvat).retire(queue="round-03", places=["2", "3"]) == 3


def test_what_the_server_says_of_a_failed_import_is_passed_on(cvat: RecordedCvat, folder: Path) -> None:
    labels = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps(labels[1:]))
    with pytest.raises(ServerError, match="could not carry out the request: .*not registered"):
        push(cvat, folder)


def test_completed_tasks_are_pulled_as_files_that_the_reader_reads(
    cvat: RecordedCvat, folder: Path, tmp_path: Path
) -> None:
    places = push(cvat, folder).places
    cvat.tasks[1].jobs = [DONE, DONE, {**DONE, "type": "ground_truth", "state": "new"}]
    cvat.tasks[1].updated = "2026-11-05T10:00:00Z"
    cvat.tasks[2].jobs = [DONE, {**DONE, "state": "in progress"}]
    cvat.tasks[3].jobs = [{**DONE, "state": "rejected"}]
    pulled = server(cvat).pull(queue="round-03", places=[*places, "99"], into=tmp_path)
    assert [path.name for path in pulled.files] == ["task_1.zip"]
    assert pulled.newest == datetime(2026, 11, 5, 10, tzinfo=UTC)
    found = [answer for answer in CVAT.read(pulled.files[0], label_map()) if isinstance(answer, Annotation)]
    assert [answer.image for answer in found] == names(folder)[:2]
    for answer, mask in zip(found, MASKS, strict=False):
        assert np.array_equal(answer.read(*mask.shape[::-1]).mask, mask)


def test_only_what_has_changed_since_is_pulled(cvat: RecordedCvat, folder: Path, tmp_path: Path) -> None:
    places = push(cvat, folder).places
    for number, task in cvat.tasks.items():
        task.jobs = [{**DONE, "updated_date": f"2026-11-0{number + 4}T00:00:00Z"}]
    tool = server(cvat)
    for since, expected in ((None, [1, 2, 3]), (6, [2, 3]), (7, [3]), (8, [])):
        time = None if since is None else datetime(2026, 11, since, tzinfo=UTC)
        pulled = tool.pull(queue="round-03", places=places, into=tmp_path, since=time)
        assert [path.name for path in pulled.files] == [f"task_{number}.zip" for number in expected]
        assert pulled.newest == (datetime(2026, 11, 7, tzinfo=UTC) if expected else None)


@pytest.mark.parametrize("by", ["state", "stage", "shapes"])
def test_a_queue_is_begun_once_anybody_has_worked_on_it(cvat: RecordedCvat, folder: Path, by: str) -> None:
    places = push(cvat, folder).places
    tool = server(cvat)
    assert not tool.is_begun(queue="round-03", places=places)
    if by == "shapes":
        cvat.tasks[3].shapes[0]["source"] = "semi-auto"
    else:
        cvat.tasks[3].jobs[0][by] = {"state": "in progress", "stage": "validation"}[by]
    assert tool.is_begun(queue="round-03", places=places)
    assert not tool.is_begun(queue="round-03", places=["99"])


def test_what_nobody_has_begun_is_retired(cvat: RecordedCvat, folder: Path) -> None:
    places = push(cvat, folder).places
    cvat.tasks[1].sources("manual")
    assert server(cvat).retire(queue="round-03", places=places) == 3
    assert sorted(cvat.tasks) == [1]
    assert server(cvat).retire(queue="round-03", places=places) == 0


def test_a_password_is_taken_in_the_place_of_a_token(cvat: RecordedCvat, folder: Path) -> None:
    server(cvat, "ann:pass:word").push(folder, places=[])
    check_all_there(cvat, folder)
    with pytest.raises(ServerError, match="Unable to log in") as error:
        server(cvat, "ann:wrong-word").push(folder, places=[])
    assert "wrong-word" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (401, "does not accept the token. Create an access token in CVAT's profile page"),
        (403, "does not allow this user to do that"),
        (404, "has no such page. Check the address"),
        (500, "has failed (status 500)"),
        (503, "fails repeatedly"),
        (429, 'refuses this (status 429): {"detail": "no"}'),
        (b"<html>Welcome</html>", "does not answer like CVAT"),
        (b"[]", "does not answer like CVAT"),
        (b"{}", "does not answer like CVAT"),
        (b'{"count": 1, "results": [{"id": "x"}]}', "does not answer like CVAT"),
    ],
)
def test_what_a_server_answers_instead_is_said_in_words(
    cvat: RecordedCvat, folder: Path, answer: int | bytes, reason: str
) -> None:
    cvat.before = lambda asked: answer
    with pytest.raises(ServerError) as error:
        push(cvat, folder)
    assert reason in str(error.value)
    assert TOKEN not in str(error.value)


def test_annotations_that_are_no_json_are_said_in_words(cvat: RecordedCvat, folder: Path) -> None:
    places = push(cvat, folder).places
    cvat.before = lambda asked: b"<html>" if asked.path.endswith("/annotations/") else None
    with pytest.raises(ServerError, match="does not answer like CVAT"):
        server(cvat).is_begun(queue="round-03", places=places)


def test_without_a_server_it_is_said_where_none_is(folder: Path) -> None:
    tool = CvatServer("http://127.0.0.1:9", TOKEN, project="streets", project_id=OURS, batch=2, timeout=2)
    with pytest.raises(ServerError, match="http://127.0.0.1:9 cannot be reached"):
        tool.push(folder, places=[])
    with pytest.raises(ServerError, match="ftp://x is no address"):
        CvatServer("ftp://x", TOKEN, project="streets", project_id=OURS).is_begun(queue="q", places=["1"])
    with pytest.raises(ServerError, match="is no token of CVAT") as error:
        CvatServer("http://x", "two\nlines", project="streets", project_id=OURS).is_begun(
            queue="q", places=["1"]
        )
    assert "lines" not in str(error.value)


@pytest.mark.parametrize("missing", ["manifest.jsonl", "annotations.xml", "labels.json", "images"])
def test_an_incomplete_folder_is_a_data_error(cvat: RecordedCvat, folder: Path, missing: str) -> None:
    path = folder / missing
    if path.is_dir():
        sorted(path.iterdir())[0].unlink()
    else:
        path.unlink()
    with pytest.raises(DataError, match="missing|cannot be pushed"):
        push(cvat, folder)
