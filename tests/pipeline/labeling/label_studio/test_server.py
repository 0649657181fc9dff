"""A Label Studio server that fails, is old, or is none at all: what comes of it, in words.

The server here is made of canned answers; what a real one answers is in `tests/real`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.errors import DataError
from pipeline.labeling.label_studio.config import masks_of
from pipeline.labeling.servers import label_studio, label_studio_http, limits
from pipeline.labeling.servers.base import ServerError
from pipeline.labeling.servers.label_studio import LabelStudioServer
from tests.pipeline.labeling.label_studio.synthetic import export, outgoing_images, outgoing_queue

URL = "http://labels.example.org"
OURS, OTHERS = "a" * 32, "b" * 32
FORMER = "Queues of segcurate.\nsegcurate project: streets"
"""The description of a project that was made before segcurate's projects had an id."""


class Canned:
    """A server with at most one project, which remembers what it was asked."""

    def __init__(self, *, release: str = "1.23.2") -> None:
        self.release = release
        self.project: dict[str, Any] | None = None
        self.tasks: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.before: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.after: Callable[[httpx.Request], httpx.Response | None] = lambda request: None

    def tool(self, **settings: Any) -> LabelStudioServer:
        wanted: dict[str, Any] = {
            "project": "streets",
            "project_id": OURS,
            "images": "https://frames.example.org/",
        } | settings
        return LabelStudioServer(URL, "token", transport=httpx.MockTransport(self._handle), **wanted)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        answer = self.before(request)
        if answer is None:
            answer = self._answered(request)
            answer = self.after(request) or answer
        return answer

    def _answered(self, request: httpx.Request) -> httpx.Response:
        method, path = request.method, request.url.path
        if path == "/api/version":
            return httpx.Response(200, json={"release": self.release})
        if path == "/api/users/":
            return httpx.Response(200, json=[{"id": 1, "email": "ann@example.org"}])
        if path == "/api/projects/" and method == "POST":
            self.project = {"id": 9, "model_version": None, **json.loads(request.content)}
            return httpx.Response(201, json=self.project)
        if path == "/api/projects/":
            return httpx.Response(200, json={"results": [self.project] if self.project else [], "next": None})
        if path == "/api/projects/9/" and self.project is not None:
            if method == "PATCH":
                self.project |= json.loads(request.content)
            return httpx.Response(200, json=self.project)
        if path.endswith("/file-uploads"):
            return httpx.Response(200, json=[])
        if path.startswith("/api/import/file-upload/"):
            return httpx.Response(200, json={"file": f"upload/9/x-{path.rpartition('/')[2]}.png"})
        if path == "/api/projects/9/import" and "commit_to_project" in request.url.params:
            return httpx.Response(201, json={"file_upload_ids": [len(self.asked)]})
        if path == "/api/projects/9/import":
            self.tasks += [
                task | {"id": len(self.tasks) + number}
                for number, task in enumerate(json.loads(request.content), start=1)
            ]
            return httpx.Response(201, json={"task_count": 1})
        if path == "/api/tasks/":
            query = json.loads(request.url.params["query"])
            if query["ordering"] == ["-tasks:id"]:
                return httpx.Response(200, json={"tasks": self.tasks[-1:]})
            after = query["filters"]["items"][-1]["value"]
            size = int(request.url.params["page_size"])
            return httpx.Response(
                200, json={"tasks": [task for task in self.tasks if task["id"] > after][:size]}
            )
        return httpx.Response(404, json={"detail": "Not found."})


def is_import(request: httpx.Request) -> bool:
    """Whether it brings tasks, not a picture."""
    return request.url.path.endswith("/import") and "commit_to_project" not in request.url.params


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_studio_http, "PAUSES", (0.0, 0.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export(tmp_path / "round-03", outgoing_queue(), outgoing_images(tmp_path / "source"))


def test_a_project_gets_the_masks_that_its_server_knows_and_keeps_them(folder: Path) -> None:
    old = Canned(release="1.20.0")
    old.tool().push(folder)
    assert old.project is not None
    assert masks_of(old.project["label_config"]) == "brush"
    kinds = {region["type"] for task in old.tasks for region in task["predictions"][0]["result"]}
    assert kinds == {"brushlabels", "rectanglelabels"}
    old.release = "1.23.2"
    old.tool().push(folder)
    assert masks_of(old.project["label_config"]) == "brush"
    new = Canned()
    new.tool().push(folder)
    assert new.project is not None
    assert masks_of(new.project["label_config"]) == "bitmask"


def test_the_sampling_and_the_newest_queue_are_set(folder: Path) -> None:
    canned = Canned()
    canned.tool().push(folder)
    assert canned.project is not None
    assert (canned.project["sampling"], canned.project["model_version"]) == (
        "Sequential sampling",
        "round-03 r02",
    )
    canned.asked.clear()
    canned.tool(sampling="Uncertainty sampling").push(folder)
    assert canned.project["sampling"] == "Uncertainty sampling"
    assert [asked for asked in canned.asked if asked.startswith(("POST", "PATCH"))] == [
        "PATCH /api/projects/9/"
    ]


def test_two_projects_of_one_name_never_use_each_others_tasks(folder: Path, tmp_path: Path) -> None:
    canned = Canned()
    canned.tool().push(folder)
    canned.tasks[0]["total_annotations"] = 1
    twin = canned.tool(project_id=OTHERS)
    canned.asked.clear()

    with pytest.raises(
        ServerError,
        match=r"Project 9 .* project 'streets' \(id aaaaaaaa\), and this is 'streets' \(id bbbbbbbb\)",
    ):
        twin.pull(queue="round-03", places=["9"], into=tmp_path)
    with pytest.raises(ServerError, match=r"has no project of 'streets' \(id bbbbbbbb\)"):
        twin.pull(queue="round-03", into=tmp_path)
    for places in ([], ["9"]):
        assert not twin.is_begun(queue="round-03", places=places)
        assert twin.retire(queue="round-03", places=places) == 0
    assert {asked.split()[0] for asked in canned.asked} == {"GET"}
    for places in ([], ["9"]):
        canned.project = canned.project and canned.project | {"description": f"segcurate id: {OURS}"}
        twin.push(folder, places=places)
        assert canned.project is not None
        assert f"segcurate id: {OTHERS}" in canned.project["description"].splitlines()
    assert canned.asked.count("POST /api/projects/") == 2


def test_a_project_with_a_new_name_finds_what_it_had(folder: Path) -> None:
    canned = Canned()
    canned.tool().push(folder)
    assert canned.tool(project="avenues").push(folder).unchanged == 7
    assert canned.asked.count("POST /api/projects/") == 1


@pytest.mark.parametrize("places", [["9"], []])
def test_a_project_from_before_there_were_ids_is_used_for_the_queue_that_it_has(
    folder: Path, places: list[str]
) -> None:
    canned = Canned()
    canned.tool().push(folder)
    assert canned.project is not None
    canned.project["description"] = FORMER
    assert canned.tool().push(folder, places=places).unchanged == 7
    assert canned.project["description"] == f"{FORMER}\nsegcurate id: {OURS}"
    assert canned.asked.count("POST /api/projects/") == 1


@pytest.mark.parametrize("change", ["image", "queue", "name", "no tasks"])
def test_a_project_from_before_there_were_ids_with_other_tasks_is_not_taken(
    folder: Path, change: str
) -> None:
    canned = Canned()
    canned.tool().push(folder)
    assert canned.project is not None
    canned.project["description"] = FORMER if change != "name" else FORMER + "-2"
    if change == "image":
        canned.tasks[3]["data"]["sha256"] = "another"
    elif change == "queue":
        for task in canned.tasks:
            task["data"]["queue"] = "round-02"
    elif change == "no tasks":
        canned.tasks.clear()
    canned.tool().push(folder)
    assert canned.asked.count("POST /api/projects/") == 2


def test_an_import_that_is_never_answered_is_looked_at_and_not_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_studio, "CHUNK_TASKS", 3)
    canned = Canned()
    lost: list[str] = []

    def lose_the_second(request: httpx.Request) -> None:
        if is_import(request):
            lost.append("import")
            if len(lost) == 2:
                raise httpx.ReadTimeout("too slow", request=request)

    canned.after = lose_the_second
    pushed = canned.tool().push(folder)
    assert (pushed.created, pushed.unchanged) == (7, 0)
    assert [task["data"]["place"] for task in canned.tasks] == list(range(7))


def test_an_import_that_is_lost_each_time_is_an_error(folder: Path) -> None:
    canned = Canned()

    canned.before = lambda request: httpx.Response(504) if is_import(request) else None
    with pytest.raises(ServerError, match="not answered it. Run the command again"):
        canned.tool().push(folder)
    assert canned.asked.count("POST /api/projects/") == 1


def test_an_edition_that_imports_in_the_background_is_waited_for(folder: Path) -> None:
    canned = Canned()
    states = ["created", "in_progress", "completed"]

    def later(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == "/api/projects/9/imports/3/":
            return httpx.Response(200, json={"status": states.pop(0)})
        return None

    canned.before = later
    canned.after = lambda request: httpx.Response(201, json={"import": 3}) if is_import(request) else None
    assert canned.tool().push(folder).created == 7
    assert states == []


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_is_away_for_a_moment_is_asked_again(folder: Path, status: int) -> None:
    canned = Canned()
    away = [status, status]
    canned.before = lambda request: httpx.Response(away.pop()) if away else None
    assert canned.tool().push(folder).created == 7


def test_a_server_that_cannot_be_reached_is_asked_some_times(folder: Path) -> None:
    canned = Canned()

    def refuse(request: httpx.Request) -> None:
        raise httpx.ConnectError("Connection refused", request=request)

    canned.before = refuse
    with pytest.raises(ServerError, match="cannot be reached: Connection refused. Start Label Studio"):
        canned.tool().push(folder)
    assert len(canned.asked) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(200, text="<html>"), "does not answer like Label Studio"),
        (httpx.Response(200, text="[" * 10**5), "does not answer like Label Studio"),
        (httpx.Response(200, json={"release": 5}), "does not answer like Label Studio"),
        (httpx.Response(200, json={"release": "1.23.2", "tasks": 5}), "does not answer like Label Studio"),
        (httpx.Response(404), "does not answer like Label Studio"),
        (httpx.Response(301, headers={"location": "https://b.example"}), "redirects to https://b.example"),
        (httpx.Response(401, json={"detail": "Invalid token."}), "refuses the token: Invalid token. Copy"),
        (httpx.Response(403, json={"detail": "No."}), "does not let the token's owner do this: No."),
        (httpx.Response(400, json={"validation_errors": {"a": ["b\x1b"]}}), r'error 400: {"a": \["b'),
        (httpx.Response(500, text="oops"), "answers with error 500. See the server's log"),
    ],
)
def test_a_server_that_answers_something_else_is_said_to(
    folder: Path, answer: httpx.Response, message: str
) -> None:
    canned = Canned()
    canned.before = lambda request: httpx.Response(
        answer.status_code, headers=answer.headers, content=answer.content
    )
    with pytest.raises(ServerError, match=message) as caught:
        canned.tool().push(folder)
    assert caught.value.remedy
    assert "\x1b" not in str(caught.value)


def test_an_answer_without_end_is_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_studio_http, "LONGEST_ANSWER", 1000)
    canned = Canned()
    canned.before = lambda request: httpx.Response(200, content=b"x" * 2000)
    with pytest.raises(ServerError, match="MiB that an answer may have"):
        canned.tool().push(folder)


@pytest.mark.parametrize(
    ("limit", "value", "body", "message"),
    [
        ("MOST_CONTAINERS", 100, b"[" + b"{}," * 100 + b"{}]", "too many values"),
        ("MOST_CONTAINERS", 100, b"[" * 200 + b"]" * 200, "too many values"),
        ("MOST_VALUES", 100, b"[" + b"1," * 200 + b"1]", "too many values"),
        ("MOST_BYTES", 100, b" " * 200 + b"{}", "has sent more than"),
        ("MOST_ANSWERS", 0, b"{}", "more than 0 answers"),
        ("LONGEST_SECONDS", -1.0, b"{}", "has not finished an answer within"),
        ("ALTOGETHER_SECONDS", -1.0, b"{}", "has not finished within"),
    ],
)
def test_what_an_answer_may_cost_is_limited(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, body: bytes, message: str
) -> None:
    monkeypatch.setattr(label_studio_http if limit == "MOST_CONTAINERS" else limits, limit, value)
    canned = Canned()
    canned.before = lambda request: httpx.Response(200, content=body)
    with pytest.raises(ServerError, match=message):
        canned.tool().push(folder)


def test_a_compressed_answer_is_limited_by_what_it_unpacks_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_studio_http, "LONGEST_ANSWER", 1 << 20)
    bomb = gzip.compress(b" " * (64 << 20))
    canned = Canned()
    canned.before = lambda request: httpx.Response(200, headers={"content-encoding": "gzip"}, content=bomb)
    with pytest.raises(ServerError, match="MiB that an answer may have"):
        canned.tool().push(folder)


@pytest.mark.parametrize(
    "url", ["labels.example.org", "ftp://a", "http://", "http://[", "http://me:pw@a", ""]
)
def test_what_is_no_address_is_refused_and_no_password_shown(url: str) -> None:
    with pytest.raises(ServerError, match="no address"):
        LabelStudioServer(url, "token", project="x", project_id=OURS)


@pytest.mark.parametrize("token", ["", "a b", "é", "a\nb"])
def test_what_is_no_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ServerError, match="no token of Label Studio") as caught:
        LabelStudioServer(URL, token, project="x", project_id=OURS)
    assert not token or token not in str(caught.value)


def test_a_folder_of_another_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--to label-studio"):
        Canned().tool().push(tmp_path)


def test_another_way_of_showing_images_is_refused(folder: Path) -> None:
    with pytest.raises(ServerError, match="no way to bring images"):
        Canned().tool(images="by post").push(folder)


def test_pulled_lines_are_of_the_queue_and_of_the_time_that_was_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    canned = Canned()
    canned.tool().push(folder)
    for number, task in enumerate(canned.tasks):
        stamp = f"2026-10-1{number}T00:00:00Z"
        task["annotations"] = [{"id": number, "updated_at": stamp, "completed_by": 1, "result": []}]
    canned.tasks[6]["data"]["queue"] = "round-02"
    since = datetime(2026, 10, 13, tzinfo=UTC)
    pulled = canned.tool().pull(queue="round-03", into=tmp_path, since=since)
    (file,) = pulled.files
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["annotations"][0]["id"] for line in lines] == [3, 4, 5]
    assert lines[0]["annotations"][0]["completed_by"] == {"id": 1, "email": "ann@example.org"}
    assert pulled.newest == datetime(2026, 10, 15, tzinfo=UTC)
    assert canned.tool().pull(queue="round-09", into=tmp_path / "new" / "folder").files == []


def test_a_server_that_counts_tasks_in_circles_is_no_label_studio(folder: Path) -> None:
    canned = Canned()
    canned.tool().push(folder)
    canned.before = lambda request: (
        httpx.Response(200, json={"tasks": [{"id": 1}]}) if request.url.path == "/api/tasks/" else None
    )
    with pytest.raises(ServerError, match="does not answer like Label Studio"):
        canned.tool().is_begun(queue="round-03")
