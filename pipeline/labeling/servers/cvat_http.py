"""The requests of CVAT's client: within limits, to the server's own address only, and with repeated attempts.

CVAT's client reads whole answers, follows redirects and addresses that answers name with its token, and waits
as long as an answer says. Its pool of connections is replaced by one that does not.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from pipeline.labeling.exchange import shown
from pipeline.labeling.servers.base import ServerError, origin
from pipeline.labeling.servers.limits import MOST_BYTES, PAUSES, UNAVAILABLE, Limits
from pipeline.labeling.untrusted.json_items import load_item

LONGEST_PARSED = 32 << 20
"""Bytes of an answer that is parsed."""
MOST_PARSED = 200_000
"""Lists and objects in such an answer."""
MOST_MODELS = 2000
"""Lists and objects in an answer that CVAT's client parses: it needs some milliseconds for each."""

_PART = 1 << 18
_REPEATABLE = urllib3.Retry.DEFAULT_ALLOWED_METHODS
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")


class CvatHttp:
    """The pool of connections of CVAT's client.

    Args:
        pools: the pool that the client has made.
        url: of the server.
        timeout: seconds to wait for a part of an answer.
    """

    def __init__(self, pools: urllib3.PoolManager, *, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = urllib3.Timeout(connect=timeout, read=timeout)
        self._limits = Limits(url)
        self._pools = pools
        self._pools.pool_classes_by_scheme = _pool_classes(self._limits)

    def request(
        self, method: str, url: str, *, preload_content: bool, timeout: object = None, **sent: Any
    ) -> urllib3.HTTPResponse:
        """Send a request; repeat it where it changes nothing and the server is unavailable.

        Args:
            preload_content: whether the answer is read at once. Else it is a stream, which the caller closes.
            timeout: of CVAT's client; ignored.

        Raises:
            ServerError: the address is another server's, or an answer exceeds a limit.
            HTTPError: the connection fails.
            ValueError: an answer is damaged.
        """
        if origin(url) != origin(self._url):
            raise ServerError(
                f"{self._url} names an address on another server: {shown(url)}.",
                "Check the server; the token is sent to its own address only.",
            )
        for pause in (*PAUSES, None):
            try:
                response = self._once(method, url, preload=preload_content, **sent)
                if response.status not in UNAVAILABLE or method not in _REPEATABLE or pause is None:
                    return response
            except SSLError:
                raise
            except HTTPError as error:
                unsent = isinstance(error, (NewConnectionError, ConnectTimeoutError))
                if pause is None or not (unsent or method in _REPEATABLE):
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt answers or raises")

    def parsed(self, response: urllib3.HTTPResponse) -> Any:
        """The JSON of an answer that is a stream; closes it.

        Raises:
            ServerError: it has too many bytes or values.
            DataError: it is no JSON.
        """
        with response:
            content = response.read(LONGEST_PARSED + 1)
        if len(content) > LONGEST_PARSED:
            raise self._limits.too_long(LONGEST_PARSED)
        self._limits.check_values(content, containers=MOST_PARSED)
        return load_item(content)

    def _once(self, method: str, url: str, *, preload: bool, **sent: Any) -> urllib3.HTTPResponse:
        with ExitStack() as stack:
            answer = stack.enter_context(self._limits.answer())
            response = self._pools.request(
                method,
                url,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=self._timeout,
                **sent,
            )
            stack.callback(response.close)
            if 300 <= response.status < 400:
                raise ServerError(
                    f"{self._url} redirects to {shown(response.headers.get('location', 'nowhere'))}.",
                    "Use the address that it redirects to.",
                )
            coding = response.headers.get("content-encoding")
            headers = urllib3.HTTPHeaderDict(response.headers)
            for name in _OF_THE_BODY:
                headers.discard(name)
            body: io.BufferedIOBase
            if preload or not 200 <= response.status < 300:
                content = bytearray()
                for part in answer.decoded(_parts(response), coding, longest=LONGEST_PARSED):
                    content += part
                self._limits.check_values(content, containers=MOST_MODELS)
                body = io.BytesIO(content)
            else:
                parts = answer.decoded(_parts(response), coding, longest=MOST_BYTES)
                body = io.BufferedReader(_Body(parts, stack.pop_all()), _PART)
            return urllib3.HTTPResponse(
                body,
                headers=headers,
                status=response.status,
                reason=response.reason,
                preload_content=preload,
                decode_content=False,
            )
        raise AssertionError("the block returns or raises")


class _Body(io.RawIOBase):
    """A body as a stream; its end closes the answer.

    Args:
        parts: of the body.
        answer: closed with the stream.
    """

    def __init__(self, parts: Iterator[bytes], answer: ExitStack) -> None:
        self._parts = parts
        self._answer = answer
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._answer.close()


def _parts(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body's parts, as soon as they come."""
    while part := response.read1(_PART, decode_content=False):
        yield part


def _pool_classes(limits: Limits) -> dict[str, type[HTTPConnectionPool]]:
    """Pools whose connections the limits know."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            limits.opened(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            limits.opened(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain  # pyright: ignore[reportAssignmentType]

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure  # pyright: ignore[reportAssignmentType]

    return {"http": PlainPool, "https": SecurePool}
