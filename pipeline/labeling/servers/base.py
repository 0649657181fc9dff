"""The server of a labeling tool: an exported queue is pushed to it, and finished labels are pulled from it.

A pull writes files for the tool's own reader, so that labels from a server are checked like any others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.labeling.exchange import shown


class ServerError(UserError):
    """A labeling server cannot be reached, rejects the token, or answers with an error."""


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL: what a token may be sent to."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def check_url(url: str, *, tool: str) -> None:
    """Check that a URL may belong to a labeling server.

    Raises:
        ServerError: it has another scheme, no host, or the name of a user.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except ValueError:
        good = False
    if not good:
        raise ServerError(
            f"{shown(url)} is no address of a {tool} server.", "Write `http://…` or `https://…`."
        )


def check_token(token: str, *, url: str, tool: str, remedy: str) -> None:
    """Check that a token may be sent in a header.

    Raises:
        ServerError: it is empty, or has other characters than visible ASCII.
    """
    if not re.fullmatch("[!-~]+", token):
        raise ServerError(f"The token for {url} is no token of {tool}.", remedy)


def another_server(url: str, *, tool: str) -> ServerError:
    """The error for a server whose answers are not those of the tool."""
    return ServerError(
        f"{url} does not answer like {tool}.",
        f"Check the address: it is that of {tool}'s pages in a browser.",
    )


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        places: the numbers of the server's projects or tasks that have the queue now.
        created, unchanged: images that were sent, and images that were on the server already.
        page: the URL where people label it.
    """

    places: list[str]
    created: int
    unchanged: int
    page: str


@dataclass(frozen=True)
class Pulled:
    """Finished labels as files, and the server's time of the newest one, where the next pull begins."""

    files: list[Path]
    newest: datetime | None


class LabelingServer(Protocol):
    """A server, with a token from the environment. Every method raises a ServerError where it fails."""

    url: str

    def push(self, folder: Path, *, places: Sequence[str]) -> Pushed:
        """Create the images of an exported queue that the server lacks. A push that was killed is completed
        by the next one, without duplicates.

        Args:
            folder: written by the tool's writer, with its manifest.
            places: the numbers of the server's projects or tasks that have this queue already, or else the
                other queues of the project.
        """
        ...

    def pull(self, *, queue: str, places: Sequence[str], into: Path, since: datetime | None = None) -> Pulled:
        """Download the finished and skipped labels of a queue as files in the folder `into`.

        Args:
            since: only labels that were changed at this time or later. A label that is pulled twice counts
                once.
        """
        ...

    def is_begun(self, *, queue: str, places: Sequence[str]) -> bool:
        """Whether an annotator has worked on a queue on this server; drafts count."""
        ...

    def retire(self, *, queue: str, places: Sequence[str]) -> int:
        """Delete the images of a queue that no annotator has begun from the server; returns their number."""
        ...
