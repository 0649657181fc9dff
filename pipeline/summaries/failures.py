"""The files that could not be used, grouped by the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from db.tables import Failure

EXAMPLES = 3


@dataclass(frozen=True)
class FailureGroup:
    """The files of one step with one reason; reasons that differ in numbers or in the file's name are one.

    Attributes:
        reason: of the first file.
        examples: the first files.
    """

    step: str
    reason: str
    files: int
    examples: tuple[str, ...]


def grouped_failures(failures: Iterable[Failure]) -> list[FailureGroup]:
    """The groups of failures, the largest first."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault((failure.step, _kind(failure)), []).append(failure)
    found = [
        FailureGroup(step, rows[0].reason, len(rows), tuple(row.subject for row in rows[:EXAMPLES]))
        for (step, _), rows in groups.items()
    ]
    return sorted(found, key=lambda group: -group.files)


def _kind(failure: Failure) -> str:
    """The reason without numbers and without the name of the file, where it stands as a word."""
    reason, subject = (re.sub(r"\d+", "0", text) for text in (failure.reason, failure.subject))
    path = PurePosixPath(subject)
    for name in (subject, path.name, path.stem):
        if name not in ("", "0"):
            reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", reason)
    return reason
