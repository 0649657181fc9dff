"""What a hostile labeling server costs: memory and time of one pull, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.labeling.recorded_cvat import Asked, RecordedCvat, StoredTask
from tests.pipeline.labeling.servers.attacked import TOKEN
from tests.pipeline.labeling.servers.hostile import Attack, attacking, bomb, endless, raw, streamed, whole

TASKS, ANNOTATIONS, RESULT, JOBS = "/api/tasks/", "/api/tasks/1/annotations/", r"/results/\d+", "/api/jobs"
OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
AWAY = b"HTTP/1.1 503 Away\r\nConnection: close\r\nRetry-After: 86400\r\n"
ELSEWHERE = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\nContent-Length: 0\r\n\r\n"
GZIP, TWICE = b"Content-Encoding: gzip\r\n", b"Content-Encoding: gzip, gzip\r\n"
MEBIBYTE = b"a" * (1 << 20)
TOO_LONG, TOO_MANY = "MiB that an answer may have", "too many values"
UNLIKE, BROKEN = "does not answer like", "cannot be reached"
LATE = "has not finished an answer within 1 seconds. See the server's log"
MIB, SECONDS = 40, 20
ONCE = {"PAUSES": [0, 0]}


@dataclass(frozen=True)
class Case:
    """An attack and its bounds: peak of memory in MiB, and seconds."""

    name: str
    tool: str
    path: str
    attack: Attack
    outcome: str
    settings: dict[str, Any] = field(default_factory=lambda: ONCE)
    mib: float = MIB
    seconds: float = SECONDS

    def __str__(self) -> str:
        return f"{self.tool}, {self.path}: {self.name}"


Victim = Callable[[Case, str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def victim() -> Generator[Victim]:
    """A process that pulls from a server, and measures it."""
    program = [sys.executable, "-m", "tests.pipeline.labeling.servers.attacked"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        program, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def pull(case: Case, url: str, folder: Path) -> dict[str, Any]:
            print(json.dumps([case.tool, url, str(folder), case.settings]), file=asked, flush=True)
            measured = json.loads(answers.readline())
            shown = measured["outcome"].replace(url, "URL")
            print(f"| {case} | {shown} | {measured['mib']:.0f} | {measured['seconds']:.1f} |")
            return measured

        yield pull
        asked.close()


def cvats(path: str, change: dict[str, Any]) -> bytes:
    """CVAT's own answer, with changed members."""
    cvat = RecordedCvat()
    cvat.url = "http://127.0.0.1:1"
    cvat.tasks[1] = StoredTask(1, "streets round-03 (1/1)", [], frames=["a.png"])
    head = {"authorization": f"Bearer {TOKEN}"}
    content = json.loads(cvat.answer(Asked("GET", path, {"task_id": "1"}, head, b""))[2])
    return json.dumps(content | change).encode()


def check(victim: Victim, case: Case, folder: Path) -> list[str]:
    """Attack; returns what the server was asked."""
    state = "new" if case.path == ANNOTATIONS else "completed"
    with attacking(case.tool, case.path, case.attack, state=state) as (url, asked):
        measured = victim(case, url, folder)
    assert case.outcome in measured["outcome"]
    assert "Traceback" not in measured["outcome"]
    assert measured["mib"] < case.mib
    assert measured["seconds"] < case.seconds
    return asked


def everywhere(tool: str, path: str, *, longest: int) -> list[Case]:
    """Answers that any server may give where it should give JSON.

    Args:
        longest: MiB that such an answer may have.
    """
    begin, packed = b'{"results":[', bomb(longest + 32 << 20)
    away = "fails repeatedly" if tool == "cvat" else "error 503"
    attacks: list[tuple[str, Attack, str, float]] = [
        ("JSON without end", streamed(endless(b"[", then=MEBIBYTE)), TOO_LONG, 2.5 * longest),
        ("gzip bomb", whole(packed, head=GZIP), TOO_LONG, 2.5 * longest),
        ("gzip in gzip", whole(bomb(256 << 20, wrapped=2), head=TWICE), UNLIKE, MIB),
        ("endless after gzip", streamed(endless(bomb(0), then=MEBIBYTE), head=GZIP), UNLIKE, MIB),
        ("damaged gzip", whole(packed[:500] + b"x" * 500, head=GZIP), UNLIKE, MIB),
        ("gzip cut off", whole(packed[:500], head=GZIP), UNLIKE, MIB),
        ("unknown compression", whole(packed, head=b"Content-Encoding: zstd\r\n"), UNLIKE, MIB),
        ("lists in lists", whole(b"[" * 100_000), UNLIKE, MIB),
        ("three million lists", whole(begin + b"[]," * 3_000_000 + b"0]}"), TOO_MANY, MIB),
        ("three million objects", whole(begin + b"{}," * 3_000_000 + b"0]}"), TOO_MANY, MIB),
        ("an integer of 10 MB", whole(b'{"id": ' + b"9" * 10_000_000 + b"}"), UNLIKE, 80),
        ("a redirect to another host", raw(lambda: [ELSEWHERE]), "redirects to http://127.0.0.1:9/x", MIB),
        ("away for a day", raw(lambda: [AWAY + b"Content-Length: 0\r\n\r\n"]), away, MIB),
        ("away without end", raw(endless(AWAY + b"\r\n", then=MEBIBYTE)), TOO_LONG, 2.5 * longest),
        ("headers without end", raw(endless(OK, then=b"X: %s\r\n" % (b"a" * 999))), BROKEN, MIB),
        ("a header without end", raw(endless(OK + b"X: ", then=MEBIBYTE)), BROKEN, MIB),
        ("a chunk's size without end", raw(endless(OK + CHUNKED, then=b"0" * 9999)), BROKEN, MIB),
        ("less than stated", raw(lambda: [OK, b"Content-Length: 999\r\n\r\n{}"]), BROKEN, MIB),
        ("nothing", raw(list), BROKEN, MIB),
    ]
    return [Case(name, tool, path, attack, outcome, mib=mib) for name, attack, outcome, mib in attacks]


@pytest.mark.parametrize(
    "case",
    everywhere("label-studio", TASKS, longest=64) + everywhere("cvat", JOBS, longest=32),
    ids=str,
)
def test_an_attack_ends_with_a_message(victim: Victim, case: Case, tmp_path: Path) -> None:
    check(victim, case, tmp_path)


SLOW = {
    "body": raw(endless(OK + b"Content-Length: 999999\r\n\r\n", then=b" "), pause=0.05),
    "header": raw(endless(OK + b"X: ", then=b"a"), pause=0.05),
    "interim answers": raw(endless(then=b"HTTP/1.1 100 Continue\r\n\r\n"), pause=0.001),
    "size of a chunk": raw(endless(OK + CHUNKED, then=b"0"), pause=0.05),
    "trailers": raw(endless(OK + CHUNKED + b"2\r\n{}\r\n0\r\n", then=b"X: y\r\n"), pause=0.05),
    "silence": raw(endless(OK, then=b""), pause=0.05),
}


@pytest.mark.parametrize("part", SLOW)
@pytest.mark.parametrize(
    ("tool", "path"),
    [("label-studio", TASKS), ("cvat", JOBS), ("cvat", ANNOTATIONS), ("cvat", RESULT)],
)
def test_an_answer_that_comes_slowly_ends_at_its_time(
    victim: Victim, tmp_path: Path, tool: str, path: str, part: str
) -> None:
    settings = {"LONGEST_SECONDS": 1.0, "PAUSES": []}
    check(victim, Case(f"slow {part}", tool, path, SLOW[part], LATE, settings, mib=10, seconds=10), tmp_path)


def labels(number: int) -> bytes:
    """A page of finished tasks; the numbers rise from page to page."""
    annotation = {"updated_at": "2026-11-01T10:00:00Z", "result": [], "text": "a" * 100_000}
    data = {"queue": "round-03"}
    tasks = [{"id": 10 * number + at, "data": data, "annotations": [annotation]} for at in range(8)]
    return json.dumps({"tasks": tasks}).encode()


def expanding(number: int) -> bytes:
    """As `labels`, with numbers that take four times as much space when they are written."""
    annotation = b'{"updated_at": "2026-11-01T10:00:00Z", "x": [' + b"1e15," * 200_000 + b"1]}"
    return (
        b'{"tasks": [{"id": %d, "data": {"queue": "round-03"}, "total_annotations": 1, "annotations": [%s]}]}'
        % (
            number,
            annotation,
        )
    )


def spoiled(number: int) -> bytes:
    """A task whose annotation has numbers that are none."""
    if number > 9:
        return b'{"tasks": []}'
    annotation = b'{"updated_at": "2026-11-01T10:00:00Z", "lead_time": NaN, "x": -Infinity, "y": 1e999}'
    return (
        b'{"tasks": [{"id": %d, "data": {"queue": "round-03"}, "total_annotations": 1, "annotations": [%s]}]}'
        % (
            number,
            annotation,
        )
    )


def request(status: str, result: str | None = None) -> bytes:
    """The state of CVAT's work."""
    operation = {
        "type": "export:annotations",
        "target": "task",
        "project_id": None,
        "task_id": 1,
        "job_id": None,
    }
    return json.dumps(
        {
            "id": "action=export&id=1",
            "status": status,
            "message": "",
            "operation": operation | {"format": "CVAT for images 1.1"},
            "created_date": "2026-11-01T09:00:00Z",
            "result_url": result,
        }
    ).encode()


def annotated(count: int) -> bytes:
    """A task with so many annotations."""
    one = b'{"updated_at":"2026-01-01T00:00:00Z"},'
    return b'{"tasks":[{"id":1,"annotations":[' + (one * count)[:-1] + b"]}]}"


def numbered(count: int) -> bytes:
    """So many tasks on a page."""
    return json.dumps({"tasks": [{"id": number} for number in range(1, count + 1)]}).encode()


JOB = {
    "id": 11,
    "type": "annotation",
    "state": "completed",
    "stage": "annotation",
    "updated_date": "2026-11-01T09:00:00Z",
}
MORE = {"count": 1, "next": "http://127.0.0.1:1/more", "previous": None}
REQUESTS = "/api/requests/.*"
SMALL = {"MOST_BYTES": 48 << 20}
PAST = b'{"shapes": ['
NEVER = {"ALTOGETHER_SECONDS": 2.0}

OTHERS = [
    Case("pages without end", "label-studio", TASKS, whole(labels), "has sent more than", SMALL),
    Case("numbers that grow", "label-studio", TASKS, whole(expanding), "has sent labels of", SMALL, mib=80),
    Case("500000 annotations of a task", "label-studio", TASKS, whole(annotated(500_000)), UNLIKE, mib=500),
    Case("200000 tasks", "label-studio", TASKS, whole(numbered(200_000)), UNLIKE, mib=200),
    Case("NaN and infinity", "label-studio", TASKS, whole(spoiled), "pulled 1 files"),
    Case(
        *("projects without end", "label-studio", "/api/projects/"),
        whole(b'{"results": [], "next": "http://127.0.0.1:1/more"}'),
        *("more than 300 answers", {"MOST_ANSWERS": 300, "places": []}),
    ),
    Case(
        "pages without end", "cvat", JOBS, whole(json.dumps(MORE | {"results": [JOB]}).encode()), "1000 pages"
    ),
    Case(
        "a page of 30000 jobs", "cvat", JOBS, whole(json.dumps({"results": [JOB] * 30_000}).encode()), UNLIKE
    ),
    Case(
        *("a job with a state of 10 MB", "cvat", JOBS),
        *(whole(json.dumps({"results": [JOB | {"state": "a" * 10_000_000}]}).encode()), UNLIKE),
        mib=60,
    ),
    Case(
        *("a task with a name of 10 MB", "cvat", "/api/tasks/1"),
        *(whole(cvats("/api/tasks/1", {"name": "a" * 10_000_000})), "pulled 1 files"),
        mib=100,
    ),
    Case(
        *("a task with 150000 owners", "cvat", "/api/tasks/1"),
        *(whole(cvats("/api/tasks/1", {"owner": [{"id": 1}] * 150_000})), TOO_MANY),
    ),
    Case(
        "an archive without end",
        "cvat",
        RESULT,
        streamed(endless(then=MEBIBYTE)),
        "has sent more than",
        SMALL,
    ),
    Case("a gzip bomb for an archive", "cvat", RESULT, whole(bomb(96 << 20), head=GZIP), TOO_LONG, SMALL),
    Case("an archive cut off", "cvat", RESULT, raw(lambda: [OK, b"Content-Length: 999\r\n\r\nPK"]), BROKEN),
    Case(
        "work that never ends", "cvat", REQUESTS, whole(request("queued")), "has not finished within", NEVER
    ),
    Case(
        *(
            "a result on another host",
            "cvat",
            REQUESTS,
            whole(request("finished", "http://localhost:9/x.zip")),
        ),
        "names an address on another server: http://localhost:9/x.zip",
    ),
    Case(
        *("annotations without end", "cvat", ANNOTATIONS),
        *(
            streamed(endless(PAST, then=b'{"source": "file"},' * 999)),
            "has sent more than",
            {"MOST_BYTES": 1 << 20},
        ),
    ),
    Case(
        *("an annotation without end", "cvat", ANNOTATIONS),
        *(streamed(endless(PAST + b'{"a": "', then=MEBIBYTE)), "has sent more than", SMALL),
        mib=2.5 * 48,
    ),
    Case(
        *("annotations in chunks of a byte", "cvat", ANNOTATIONS),
        *(streamed(endless(PAST + b'{"a": "', then=b"a")), LATE, {"LONGEST_SECONDS": 1.0}),
    ),
    Case("deep annotations", "cvat", ANNOTATIONS, whole(PAST + b"[" * 1_000_000 + b"]" * 1_000_000), UNLIKE),
]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_an_attack_on_a_tool_ends_within_its_bounds(victim: Victim, case: Case, tmp_path: Path) -> None:
    check(victim, case, tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written < 100 << 20
