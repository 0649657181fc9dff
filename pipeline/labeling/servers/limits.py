"""What a labeling server may cost: the bytes, values, number and time of its answers.

A server may be hostile, damaged, or none of the tool at all. Bytes are counted while an answer arrives, as
they come and after decompression. Time is limited by shutting the connections down: a server that sends a
byte from time to time never exceeds the time limit of a single read.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from pipeline.labeling.servers.base import ServerError

LONGEST_SECONDS = 600.0
"""Seconds that one request and its answer may take, however steadily it comes."""
ALTOGETHER_SECONDS = 4 * 3600.0
"""Seconds that a push or a pull may take."""
MOST_VALUES = 16_000_000
"""Values in one answer: each takes many times its bytes of memory."""
MOST_BYTES, MOST_ANSWERS = 4 << 30, 200_000
"""Of all answers of a push or a pull together: a server may send pages without end."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the attempts to reach a server."""
UNAVAILABLE = (502, 503, 504)
"""Statuses after which a request is sent again."""

_PART = 1 << 20


class Limits:
    """Counts what the answers of a server cost, from the first request of a push or a pull to its last.

    Args:
        url: of the server, for messages.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._bytes = self._answers = 0
        self._ends = time.monotonic() + ALTOGETHER_SECONDS
        self._sockets: list[socket.socket] = []
        self._is_late = False
        self._lock = threading.Lock()

    def opened(self, connection: socket.socket) -> None:
        """Take a connection to the server into account; a late answer shuts it down."""
        with self._lock:
            self._sockets = [known for known in self._sockets if known.fileno() >= 0]
            self._sockets.append(connection)
            if self._is_late:
                _shut_down(connection)

    def answer(self) -> Answer:
        """Begin a request; the block of the answer ends with the answer.

        Raises:
            ServerError: the server has sent too many answers, or taken too much time.
        """
        self._answers += 1
        if self._answers > MOST_ANSWERS:
            raise self._endless(f"has sent more than {MOST_ANSWERS} answers")
        left = self._ends - time.monotonic()
        seconds = min(LONGEST_SECONDS, left)
        late = ServerError(
            f"{self._url} has not finished an answer within {LONGEST_SECONDS:.0f} seconds."
            if seconds < left
            else f"{self._url} has not finished within {ALTOGETHER_SECONDS / 3600:.3g} hours.",
            "See the server's log; then run the command again.",
        )
        if seconds <= 0:
            raise late
        self._is_late = False
        return Answer(self, seconds, late=late)

    def spend(self, size: int) -> None:
        """Count bytes.

        Raises:
            ServerError: the server has sent too many.
        """
        self._bytes += size
        if self._bytes > MOST_BYTES:
            raise self._endless(f"has sent more than {MOST_BYTES / 2**30:.3g} GiB")

    def check_values(self, content: bytes | bytearray, *, containers: int) -> None:
        """Check how many values a JSON document has, before it is parsed.

        Args:
            containers: lists and objects that it may have.

        Raises:
            ServerError: it has more, or more than `MOST_VALUES` values.
        """
        if content.count(b"{") + content.count(b"[") > containers or content.count(b",") > MOST_VALUES:
            raise self._endless(
                f"answers with too many values: more than {containers} lists and objects, "
                f"or {MOST_VALUES} values"
            )

    def too_long(self, longest: int) -> ServerError:
        """The error for an answer with too many bytes."""
        return self._endless(f"answers with more than the {longest / 2**20:.4g} MiB that an answer may have")

    def shut_down(self) -> None:
        """End all connections, also while another thread reads from them."""
        with self._lock:
            self._is_late = True
            for connection in self._sockets:
                _shut_down(connection)

    def _endless(self, what: str) -> ServerError:
        return ServerError(f"{self._url} {what}.", "Check the address, and the server's log.")


class Answer:
    """A request and its answer: a context manager that ends late answers."""

    def __init__(self, limits: Limits, seconds: float, *, late: ServerError) -> None:
        self._limits = limits
        self._error = late
        self._ends = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, limits.shut_down)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the error of a late answer: what a connection that was shut down has sent is cut off.

        Raises:
            ServerError: the answer took too long.
        """
        self._timer.cancel()
        if time.monotonic() >= self._ends and (error is None or isinstance(error, Exception)):
            raise self._error from error

    def decoded(self, parts: Iterable[bytes], coding: str | None, *, longest: int) -> Iterator[bytes]:
        """The body, decompressed, a part after another.

        Args:
            parts: of the body, as they came.
            coding: the answer's `Content-Encoding`.
            longest: bytes of the answer, after decompression.

        Raises:
            ServerError: it has too many bytes, or takes too long.
            ValueError: it is damaged, or compressed in another way than by gzip.
        """
        left = longest
        for part in _decompressed(self._counted(parts), (coding or "identity").strip().lower()):
            left -= len(part)
            if left < 0:
                raise self._limits.too_long(longest)
            yield part

    def _counted(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self._limits.spend(len(part))
            if time.monotonic() >= self._ends:
                raise self._error
            yield part


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        # the method of an SSL socket drops the encryption under the reading thread
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _decompressed(parts: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The content of a body; never much more than a mebibyte at once."""
    if coding == "identity":
        yield from parts
        return
    if coding != "gzip":
        raise ValueError(f"The answer is compressed by {coding[:20]}.")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for packed in parts:
        rest = packed
        while rest and not unpacker.eof:
            try:
                yield unpacker.decompress(rest, _PART)
            except zlib.error as error:
                raise ValueError("The answer is damaged.") from error
            rest = unpacker.unconsumed_tail
        if unpacker.unused_data or (rest and unpacker.eof):
            raise ValueError("More follows the compressed answer.")
    yield unpacker.flush()
    if not unpacker.eof:
        raise ValueError("The compressed answer ends too early.")
