"""The one exception that a user's mistake may become."""

from __future__ import annotations


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
