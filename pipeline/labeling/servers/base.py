"""A labeling tool's server: a queue's exported folder is pushed to it, finished work is pulled from it.

What is pulled are files that the tool's own reader reads, so that a server's answers are imported, and
distrusted, like anybody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError


class ServerError(UserError):
    """A labeling server cannot be reached, refuses the token, or answers with an error."""


@dataclass(frozen=True)
class Pushed:
    """What a push has come to.

    Attributes:
        places: what the server calls the places where the queue lies now: of a project, or of tasks.
        created, unchanged: images that were sent, and that were there already.
        page: where people label it.
    """

    places: list[str]
    created: int
    unchanged: int
    page: str


@dataclass(frozen=True)
class Pulled:
    """Finished work as files, and the server's time of the newest of it, from where the next pull goes on."""

    files: list[Path]
    newest: datetime | None


class LabelingServer(Protocol):
    """One server, with a token from the environment. Every method raises a ServerError in plain words."""

    url: str

    def push(self, folder: Path, *, places: Sequence[str]) -> Pushed:
        """Bring an exported queue onto the server: create what is not there, leave what is. A push that was
        killed is taken up by the next one; nothing is there twice.

        Args:
            folder: as the tool's writer has written it, with its manifest.
            places: where this queue lies already, or where the project's queues do.
        """
        ...

    def pull(self, *, queue: str, places: Sequence[str], into: Path, since: datetime | None = None) -> Pulled:
        """Fetch the work on a queue that is finished or skipped, as files in the folder `into`.

        Args:
            since: only what was changed at this time or later. What comes twice is imported once.
        """
        ...

    def is_begun(self, *, queue: str, places: Sequence[str]) -> bool:
        """Whether anybody has worked on a queue there, drafts included."""
        ...

    def retire(self, *, queue: str, places: Sequence[str]) -> int:
        """Take the images of a queue that nobody has begun off the server; how many there were."""
        ...
