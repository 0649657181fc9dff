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
    everywhere("label-studio", TASKS, longest=128) + everywhere("cvat", JOBS, longest=32),
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
