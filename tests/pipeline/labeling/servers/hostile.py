"""A server that answers like a labeling tool, except where it attacks: it writes bytes of its own choice."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from tests.pipeline.labeling.recorded_cvat import Asked, RecordedCvat, StoredTask

Attack = Callable[[BinaryIO, int], None]
"""Writes a whole answer; its second argument counts the requests."""

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_LABEL_STUDIO: dict[str, Any] = {
    "/api/version": {"release": "1.23.2"},
    "/api/users/": [],
    "/api/projects/1/": {"id": 1},
    "/api/tasks/": {"tasks": []},
}


def whole(content: bytes | Callable[[int], bytes], *, head: bytes = b"") -> Attack:
    """An answer of this content."""

    def write(out: BinaryIO, number: int) -> None:
        body = content if isinstance(content, bytes) else content(number)
        out.write(_HEAD + head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return write


def streamed(parts: Callable[[], Iterable[bytes]], *, head: bytes = b"", pause: float = 0.0) -> Attack:
    """An answer in chunks."""

    def write(out: BinaryIO, number: int) -> None:
        out.write(_HEAD + head + _CHUNKED)
        for part in parts():
            out.write(b"%x\r\n" % len(part) + part + b"\r\n")
            time.sleep(pause)
        out.write(b"0\r\n\r\n")

    return write


def raw(parts: Callable[[], Iterable[bytes]], *, pause: float = 0.0) -> Attack:
    """Bytes as they are, status line included; then the connection ends."""

    def write(out: BinaryIO, number: int) -> None:
        for part in parts():
            out.write(part)
            time.sleep(pause)

    return write


def endless(*begin: bytes, then: bytes) -> Callable[[], Iterable[bytes]]:
    """The first parts, and then one part for ever."""
    return lambda: itertools.chain(begin, itertools.repeat(then))


def bomb(size: int, *, wrapped: int = 1) -> bytes:
    """Spaces, compressed by gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    part = b" " * (1 << 20)
    packed = b"".join(packer.compress(part) for _ in range(size >> 20)) + packer.flush()
    for _ in range(wrapped - 1):
        packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        packed = packer.compress(packed) + packer.flush()
    return packed


@contextmanager
def attacking(
    tool: str, path: str, attack: Attack, *, state: str = "completed"
) -> Generator[tuple[str, list[str]]]:
    """A server of `tool` that attacks where a path matches; yields its address and what it is asked.

    Args:
        state: of CVAT's job.
    """
    cvat = RecordedCvat()
    job = {"state": state, "stage": "annotation", "type": "annotation"}
    cvat.tasks[1] = StoredTask(1, "streets round-03 (1/1)", [], frames=["a.png"], jobs=[job])
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(f"{self.command} {parts.path}")
            if re.fullmatch(path, parts.path):
                with suppress(OSError):  # the client has had enough
                    attack(self.wfile, len(asked))  # pyright: ignore[reportArgumentType]
                self.close_connection = True
                return
            status, head, content = 404, dict[str, str](), b"{}"
            if tool == "cvat":
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                headers = {key.lower(): value for key, value in self.headers.items()}
                status, head, content = cvat.answer(Asked(self.command, parts.path, query, headers, body))
            elif parts.path in _LABEL_STUDIO:
                status, content = 200, json.dumps(_LABEL_STUDIO[parts.path]).encode()
            self.send_response(status)
            for key, value in head.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = _handle

        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    cvat.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield cvat.url, asked
    finally:
        server.shutdown()
        server.server_close()
