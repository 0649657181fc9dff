"""Errors of the store that a user can fix."""

from __future__ import annotations


class StoreError(Exception):
    """The database cannot be used as it is: what is wrong, and what to do about it.

    Args:
        problem: what is wrong, with the database's URL stripped of secrets.
        remedy: the command to run, or the setting to change.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())
