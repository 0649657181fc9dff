"""The one exception that a user's mistake may become."""

from __future__ import annotations

from datetime import datetime


class UserError(Exception):
    """Something that the user can mend: what is wrong, and what to do about it.

    Args:
        problem: what is wrong, naming the file, key or command concerned.
        remedy: what to do instead, as an instruction.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())


class ConfigError(UserError):
    """The project's YAML, or an environment override, is not valid."""


class DataError(UserError):
    """A file (image, mask, label map, list) cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint cannot be loaded, or does not fit the project."""


class NotYourTurn(UserError):
    """A command was called at a point of the round where another one comes next."""


class Busy(UserError):
    """Another process is at the same work.

    Args:
        work: what it does.
        owner: who does it, as `pipeline.leases.this_process` names processes.
        since: when it began.
    """

    def __init__(self, work: str, *, owner: str, since: datetime) -> None:
        host, _, rest = owner.partition(":")
        process = rest.partition(":")[0]
        super().__init__(
            f"Another process does `{work}` already: process {process} on {host}, "
            f"since {since:%Y-%m-%d %H:%M} UTC.",
            "Wait until it is through; nothing is lost. If it hangs, stop it, and run this again.",
        )
