"""Requests to a Label Studio server: tokens, repeated attempts, and errors."""

from __future__ import annotations

import json
import re
import time
import weakref
from collections.abc import Mapping
from typing import Any, cast

import httpx

from pipeline.labeling.exchange import shown
from pipeline.labeling.servers.base import ServerError, another_server, check_token, check_url
from pipeline.labeling.servers.limits import PAUSES, UNAVAILABLE, Limits
from pipeline.labeling.untrusted.json_items import MOST_CONTAINERS

TOOL = "Label Studio"

LONGEST_ANSWER = 64 << 20
"""Bytes of an answer, after decompression; text takes up to ten times as much memory."""
_TOKEN_REMEDY = "Copy a token from Account & Settings in Label Studio."


class GoneError(ServerError):
    """The requested object is not on the server."""


class UnansweredError(ServerError):
    """It is unknown whether the server has carried out a request."""


class LabelStudioHttp:
    """A server and a token.

    Args:
        url: of the server, such as `https://labels.example.org`.
        token: a personal access token, or a legacy one where the server still accepts these.
        timeout: seconds to wait for an answer.
        transport: of the requests, for tests.
    """

    def __init__(
        self, url: str, token: str, *, timeout: float, transport: httpx.BaseTransport | None = None
    ) -> None:
        check_url(url, tool=TOOL)
        check_token(token, url=url, tool=TOOL, remedy=_TOKEN_REMEDY)
        self.url = url.rstrip("/")
        self._token = token
        self._refreshes = token.count(".") == 2  # a JSON web token
        self._authorization = None if self._refreshes else f"Token {token}"
        self._limits = Limits(self.url)
        self._client = httpx.Client(timeout=timeout, transport=transport)
        weakref.finalize(self, self._client.close)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        repeatable: bool = True,
        authorized: bool = True,
    ) -> Any:
        """Send a request; repeat it where the server cannot be reached.

        Args:
            body: is sent as JSON; bytes are sent as they are.
            files: names and contents, by the names of the form's fields.
            repeatable: whether the request may be sent again although it may have been carried out.
            authorized: whether the token is sent with it.

        Returns:
            The parsed answer; None for an empty one.

        Raises:
            GoneError: the server does not have the requested object.
            UnansweredError: the request was sent without an answer; only where it is not repeatable.
            ServerError: the server cannot be reached, rejects the token or the request, or is another server.
        """
        sent: dict[str, Any] = {"params": params, "files": files, "repeatable": repeatable}
        if body is not None:
            sent["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()
        if not authorized:
            return self._checked(self._answer(method, path, authorization=None, **sent))
        response = self._answer(method, path, authorization=self._authorized(), **sent)
        if response.status_code == 401 and self._refreshes:
            response = self._answer(method, path, authorization=self._authorized(renew=True), **sent)
        return self._checked(response)

    def unanswered(self) -> UnansweredError:
        """The error for a request that may have been carried out."""
        return UnansweredError(
            f"{self.url} has taken a request and not answered it.",
            "Run the command again; nothing is created twice.",
        )

    def another_server(self) -> ServerError:
        """The error for a server that is not Label Studio."""
        return another_server(self.url, tool=TOOL)

    def _authorized(self, *, renew: bool = False) -> str:
        """The header; a personal access token is exchanged for one that is valid for some minutes."""
        if self._authorization is None or renew:
            answer = self.send("POST", "/api/token/refresh/", body={"refresh": self._token}, authorized=False)
            access = answer.get("access") if isinstance(answer, dict) else None
            if not isinstance(access, str) or not re.fullmatch("[!-~]+", access):
                raise self.another_server()
            self._authorization = f"Bearer {access}"
        return self._authorization

    def _answer(
        self, method: str, path: str, *, repeatable: bool, authorization: str | None, **sent: Any
    ) -> httpx.Response:
        """The server's answer, after as many attempts as there are pauses."""
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
        if authorization is not None:
            headers["Authorization"] = authorization
        if "content" in sent:
            headers["Content-Type"] = "application/json"
        for pause in (*PAUSES, None):
            try:
                response = self._once(method, path, headers=headers, **sent)
                if response.status_code not in UNAVAILABLE or pause is None:
                    return response
                if not repeatable:
                    raise self.unanswered()
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                if pause is None:
                    raise self._unreachable(error) from error
            except httpx.TransportError as error:
                if not repeatable:
                    raise self.unanswered() from error
                if pause is None:
                    raise self._unreachable(error) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.another_server() from error
            time.sleep(pause or 0)
        raise AssertionError("the last attempt answers or raises")

    def _once(self, method: str, path: str, **sent: Any) -> httpx.Response:
        content = bytearray()
        sent["extensions"] = {"trace": self._trace}
        with (
            self._limits.answer() as answer,
            self._client.stream(method, self.url + path, **sent) as response,
        ):
            # the decoders of httpx have no limit for what a part unpacks to
            parts = cast(httpx.SyncByteStream, response.stream)
            try:
                for part in answer.decoded(
                    parts, response.headers.get("content-encoding"), longest=LONGEST_ANSWER
                ):
                    content += part
            except ValueError as error:
                raise self.another_server() from error
        self._limits.check_values(content, containers=MOST_CONTAINERS)
        location = {"location": response.headers["location"]} if "location" in response.headers else None
        return httpx.Response(response.status_code, headers=location, content=bytes(content))

    def _checked(self, response: httpx.Response) -> Any:
        """The parsed answer of a request that was carried out."""
        status = response.status_code
        if status == 401:
            raise ServerError(f"{self.url} refuses the token{self._reason(response)}.", _TOKEN_REMEDY)
        if status == 403:
            raise ServerError(
                f"{self.url} does not let the token's owner do this{self._reason(response)}.",
                "Use the token of a user who may manage projects.",
            )
        if status == 404:
            raise GoneError(f"{self.url} has no such thing{self._reason(response)}.", "Push the queue again.")
        if 300 <= status < 400:
            raise ServerError(
                f"{self.url} redirects to {shown(response.headers.get('location', 'nowhere'))}.",
                "Use the address that it redirects to.",
            )
        if status >= 400:
            raise ServerError(
                f"{self.url} answers with error {status}{self._reason(response)}.",
                "See the server's log." if status >= 500 else "Correct what it names, or update the server.",
            )
        if not response.content:
            return None
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise self.another_server() from error

    @staticmethod
    def _reason(response: httpx.Response) -> str:
        """The reason that the server gives, after a colon; empty without one."""
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            return ""
        if not isinstance(answer, dict):
            return ""
        errors = answer.get("validation_errors")
        reason = json.dumps(errors, ensure_ascii=False) if errors else answer.get("detail")
        return f": {shown(str(reason).rstrip('.'))}" if reason else ""

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Tell the limits of each new connection."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._limits.opened(info["return_value"].get_extra_info("socket"))

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(
            f"{self.url} cannot be reached: {shown(error) or type(error).__name__}.",
            "Start Label Studio, or check the address and the network.",
        )
