"""The exceptions for a user's mistake: each has a problem and a remedy."""

from __future__ import annotations

from datetime import datetime
from typing import Any


class UserError(Exception):
    """An error that the user can correct: what is wrong, and what to do about it.

    Args:
        problem: what is wrong, naming the file, key or command concerned.
        remedy: what to do instead, as an instruction.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())

    def __reduce__(self) -> tuple[Any, ...]:
        # so that it can be unpickled from a worker process, whatever its own arguments
        return _rebuilt, (type(self), self.problem, self.remedy)


def _rebuilt(kind: type[UserError], problem: str, remedy: str) -> UserError:
    error = kind.__new__(kind)
    UserError.__init__(error, problem, remedy)
    return error


class ConfigError(UserError):
    """The project's YAML, or an environment override, is not valid."""


class DataError(UserError):
    """A file (image, mask, label map, list) cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint cannot be loaded, or does not fit the project."""


class NotYourTurn(UserError):
    """A command was called while another step of the round comes next."""


class NothingLeft(UserError):
    """No candidate is left: every region of the pool is queued or labeled."""


class Busy(UserError):
    """Another process has the lease of this work.

    Args:
        work: the name of the lease, such as `train`.
        owner: the process, as `pipeline.leases.this_process` names it.
        since: when it took the lease.
    """

    def __init__(self, work: str, *, owner: str, since: datetime) -> None:
        host, _, rest = owner.partition(":")
        process = rest.partition(":")[0]
        super().__init__(
            f"Another process already runs `{work}`: process {process} on {host}, "
            f"since {since:%Y-%m-%d %H:%M} UTC.",
            "Wait until it has ended; nothing is lost. If it hangs, stop it, and run this again.",
        )
