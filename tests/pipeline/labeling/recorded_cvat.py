"""A CVAT server as far as segcurate asks one: its answers have the shapes of CVAT's API, and it writes down
what it is asked and sent.
"""

from __future__ import annotations

import base64
import email.parser
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

TOKEN = "abc123.secret"
PAGE = 2
"""Tasks on a page of a list."""
BEGAN = "2026-11-01T09:00:00.500000Z"


@dataclass
class StoredTask:
    """A task on the server."""

    id: int
    name: str
    labels: list[dict[str, Any]]
    frames: list[str] = field(default_factory=list)
    received: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    document: bytes | None = None
    shapes: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, str]] = field(default_factory=list)
    updated: str = BEGAN

    def sources(self, source: str) -> None:
        """Say how all shapes came to be."""
        for shape in self.shapes:
            shape["source"] = source


@dataclass
class Asked:
    """A request. `before` of the server may answer it with a status instead."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def is_a(self, method: str, pattern: str) -> re.Match[str] | None:
        return re.fullmatch(pattern, self.path) if self.method == method else None


class RecordedCvat:
    """The server's memory, and its answers."""

    def __init__(self) -> None:
        self.url = ""
        self.tasks: dict[int, StoredTask] = {}
        self.asked: list[Asked] = []
        self.uploads: dict[str, tuple[int, str, str, bytes]] = {}
        self.requests: dict[str, tuple[str, str, str | None]] = {}
        """Status, message, and result of what it does behind the scenes."""
        self.before: Callable[[Asked], int | bytes | None] = lambda asked: None
        self._numbers = iter(range(1, 10_000))
        self._finished: dict[str, bytes] = {}

    def log(self) -> list[str]:
        """What was asked, without questions."""
        return [f"{asked.method} {asked.path}" for asked in self.asked if asked.method not in ("GET", "HEAD")]

    def answer(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(asked)
        instead = self.before(asked)
        if isinstance(instead, bytes):
            return 200, {"Content-Type": "application/json"}, instead
        if instead is not None:
            return instead, {}, b'{"detail": "no"}'
        if asked.is_a("POST", "/api/auth/login"):
            given = json.loads(asked.body)
            if given != {"username": "ann", "password": "pass:word"}:
                return 400, {}, b'{"non_field_errors": ["Unable to log in with provided credentials."]}'
            cookies = {"Set-Cookie": "sessionid=one; Path=/", "set-cookie": "csrftoken=two; Path=/"}
            return 200, cookies, b'{"key": "three"}'
        if asked.headers.get("authorization") != f"Bearer {TOKEN}" and "sessionid=one" not in str(
            asked.headers.get("cookie")
        ):
            return 401, {}, b'{"detail": "Invalid token."}'
        for method, pattern, way in self._ways():
            match = asked.is_a(method, pattern)
            if match is not None:
                numbers = [int(group) for group in match.groups() if group.isdecimal()]
                if numbers and "tasks/" in pattern and numbers[0] not in self.tasks:
                    return 404, {}, b'{"detail": "Not found."}'
                return way(asked, match)
        return 404, {}, b'{"detail": "Not found."}'

    def _ways(self) -> list[tuple[str, str, Callable[..., tuple[int, dict[str, str], bytes]]]]:
        return [
            ("GET", "/api/tasks", self._list_tasks),
            ("POST", "/api/tasks", self._create_task),
            ("GET", r"/api/tasks/(\d+)", lambda asked, match: _json(self._task(match))),
            ("DELETE", r"/api/tasks/(\d+)", self._delete_task),
            ("GET", r"/api/tasks/(\d+)/data/meta", self._meta),
            ("GET", r"/api/jobs", self._list_jobs),
            ("GET", r"/api/tasks/(\d+)/annotations/", self._annotations),
            ("POST", r"/api/tasks/(\d+)/(data|annotations)/?", self._upload),
            ("PATCH", r"/uploads/(.+)", self._chunk),
            ("POST", r"/api/tasks/(\d+)/dataset/export", self._export),
            ("GET", r"/api/requests/(.+)", self._request),
            ("GET", r"/results/(\d+)", self._result),
        ]

    def _list_tasks(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        part, variable = json.loads(asked.query["filter"])["in"]
        assert variable == {"var": "name"}
        found = [task for task in self.tasks.values() if part.lower() in task.name.lower()]
        page = int(asked.query.get("page", 1))
        shown = found[(page - 1) * PAGE : page * PAGE]
        following = f"{self.url}/api/tasks?page={page + 1}" if len(found) > page * PAGE else None
        return _json(
            {
                "count": len(found),
                "next": following,
                "previous": None,
                "results": [self._described(task) for task in shown],
            }
        )

    def _create_task(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        given = json.loads(asked.body)
        number = next(self._numbers)
        self.tasks[number] = StoredTask(number, given["name"], given["labels"])
        return _json(self._described(self.tasks[number]), 201)

    def _delete_task(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        del self.tasks[int(match[1])]
        return 204, {}, b""

    def _task(self, match: re.Match[str]) -> dict[str, Any]:
        return self._described(self.tasks[int(match[1])])

    def _described(self, task: StoredTask) -> dict[str, Any]:
        summary = {"url": f"{self.url}/api/jobs?task_id={task.id}"}
        return {
            "url": f"{self.url}/api/tasks/{task.id}",
            "id": task.id,
            "name": task.name,
            "project_id": None,
            "mode": "annotation",
            "owner": {"url": f"{self.url}/api/users/1", "id": 1, "username": "ann"},
            "assignee": None,
            "bug_tracker": "",
            "created_date": BEGAN,
            "updated_date": task.updated,
            "overlap": None,
            "segment_size": len(task.frames),
            "status": "annotation",
            "dimension": "2d",
            "subset": "",
            "size": len(task.frames),
            "organization": None,
            "target_storage": None,
            "source_storage": None,
            "jobs": {"count": len(task.jobs), "completed": 0, "validation": 0, **summary},
            "labels": summary,
        }

    def _meta(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        task = self.tasks[int(match[1])]
        frames = [
            {"name": name, "width": 1, "height": 1, "related_files": 0, "has_related_context": False}
            for name in task.frames
        ]
        return _json(
            {
                "chunks_updated_date": BEGAN,
                "frames": frames,
                "deleted_frames": [],
                "chunk_size": 36,
                "size": len(frames),
                "image_quality": task.settings.get("image_quality", 70),
                "start_frame": 0,
                "stop_frame": max(0, len(frames) - 1),
                "frame_filter": "",
                "included_frames": None,
            }
        )

    def _list_jobs(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        task = self.tasks[int(asked.query["task_id"])]
        jobs = [
            {
                "url": f"{self.url}/api/jobs/{task.id * 10 + number}",
                "id": task.id * 10 + number,
                "task_id": task.id,
                "project_id": None,
                "assignee": None,
                "dimension": "2d",
                "bug_tracker": None,
                "status": "annotation",
                "mode": "annotation",
                "created_date": BEGAN,
                "updated_date": BEGAN,
                "issues": {"url": f"{self.url}/api/issues", "count": 0},
                "labels": {"url": f"{self.url}/api/labels"},
                "organization": None,
                "target_storage": None,
                "source_storage": None,
                **job,
            }
            for number, job in enumerate(task.jobs)
        ]
        return _json({"count": len(jobs), "next": None, "previous": None, "results": jobs})

    def _annotations(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        return _json({"version": 0, "tags": [], "shapes": self.tasks[int(match[1])].shapes, "tracks": []})

    def _upload(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        """CVAT's protocol: a start, files in one request or in chunks, and a finish that begins the work."""
        number, what = int(match[1]), match[2]
        task = self.tasks[number]
        if "upload-start" in asked.headers:
            return 202, {}, b""
        if "upload-multiple" in asked.headers:
            task.received |= _files(asked)
            return 200, {}, b""
        if "upload-length" in asked.headers:
            given = dict(pair.split(" ") for pair in asked.headers["upload-metadata"].split(","))
            name = base64.b64decode(given["filename"]).decode()
            key = f"{what}-{number}-{name}"
            self.uploads[key] = (number, what, name, b"")
            return 201, {"Location": f"{self.url}/uploads/{key}", "Upload-Filename": name}, b""
        assert "upload-finish" in asked.headers
        rq_id = f"action={what}&id={number}"
        work = self._take_images if what == "data" else self._take_annotations
        problem = work(task, asked)
        self.requests[rq_id] = ("failed" if problem else "finished", problem, None)
        return _json({"rq_id": rq_id}, 202)

    def _chunk(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        number, what, name, before = self.uploads[match[1]]
        assert int(asked.headers["upload-offset"]) == len(before)
        content = before + asked.body
        self.uploads[match[1]] = (number, what, name, content)
        if what == "data":
            self.tasks[number].received[name] = content
        return 204, {"Upload-Offset": str(len(content))}, b""

    def _take_images(self, task: StoredTask, asked: Asked) -> str:
        task.settings = json.loads(asked.body)
        wanted = task.settings.get("upload_file_order", sorted(task.received))
        if task.settings.get("sorting_method") != "predefined":
            wanted = sorted(task.received)
        if set(wanted) != set(task.received):
            return "Files in the order do not match the uploaded files"
        task.frames = list(wanted)
        task.jobs = [{"state": "new", "stage": "annotation", "type": "annotation"}]
        return ""

    def _take_annotations(self, task: StoredTask, asked: Asked) -> str:
        assert asked.query["format"] == "CVAT 1.1"
        _, _, _, content = self.uploads[f"annotations-{task.id}-{asked.query['filename']}"]
        labels = {label["name"] for label in task.labels}
        shapes: list[dict[str, Any]] = []
        for image in ElementTree.fromstring(content).iter("image"):
            if image.attrib["name"] not in task.frames:
                return f"Could not match item id: {image.attrib['name']!r} with any task frame"
            for shape in image:
                if shape.attrib["label"] not in labels:
                    return f"Label {shape.attrib['label']!r} is not registered for this task"
                frame = task.frames.index(image.attrib["name"])
                kind = "rectangle" if shape.tag == "box" else shape.tag
                shapes.append({"type": kind, "frame": frame, "source": "file", "points": [0.0, 1.0]})
        task.document, task.shapes = content, shapes
        return ""

    def _export(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        number = int(match[1])
        assert asked.query["format"] == "CVAT for images 1.1"
        assert asked.query["save_images"].lower() == "false"
        rq_id = f"action=export&id={number}"
        self.requests[rq_id] = ("finished", "", f"{self.url}/results/{number}")
        return _json({"rq_id": rq_id}, 202)

    def _request(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        status, message, result = self.requests[match[1].replace("%3D", "=").replace("%26", "&")]
        return _json(
            {
                "status": status,
                "message": message,
                "id": match[1],
                "operation": {"type": "create:task", "target": "task"},
                "created_date": BEGAN,
                "result_url": result,
            }
        )

    def _result(self, asked: Asked, match: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        task = self.tasks[int(match[1])]
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("annotations.xml", task.document or b"<annotations></annotations>")
        return 200, {"Content-Type": "application/zip"}, stream.getvalue()


def _json(content: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/vnd.cvat+json"}, json.dumps(content).encode()


def _files(asked: Asked) -> dict[str, bytes]:
    """The files of a form, by the last parts of their names, as a server keeps them."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    parsed = email.parser.BytesParser().parsebytes(head + asked.body)
    files: dict[str, bytes] = {}
    for part in parsed.get_payload():  # pyright: ignore[reportAssignmentType]
        name = part.get_filename()  # pyright: ignore[reportAttributeAccessIssue]
        if name:
            files[name.rsplit("/")[-1]] = part.get_payload(decode=True)  # pyright: ignore
    return files


@contextmanager
def running_cvat() -> Generator[RecordedCvat]:
    """A server on a free port of this machine, until the block ends."""
    cvat = RecordedCvat()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer goes out at once, whole

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            headers = {key.lower(): value for key, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            status, said, content = cvat.answer(Asked(self.command, parts.path, query, headers, body))
            self.send_response(status)
            for key, value in said.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_HEAD = _handle

        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    cvat.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield cvat
    finally:
        server.shutdown()
        server.server_close()
