"""Where a file belongs: its group, its position in the group's sequence, and its split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from db.engine import Database
from db.queries import images
from db.tables import Image
from pipeline.data.listings import Named, Sequences
from pipeline.data.project import Project
from pipeline.data.sources import Found
from pipeline.data.splits import join_splits
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Assigned:
    """A found file with its place.

    Attributes:
        position: as it is stored.
        lies_at: where it lies among known positions; between two of them, half a step behind the first.
        named: the held-out split that lists it.
    """

    found: Found
    group: str
    position: int
    lies_at: float
    named: str | None


class Assignments:
    """Group, position and split of each file, in the order of the walk.

    While splits are open, an image without a written position takes the next one of its group. Afterwards a
    new image in the middle of a sequence shares the position of the known image before it.
    """

    def __init__(self, project: Project, locked: Database | None, held_out: dict[str, Named]) -> None:
        self._config = project.config.splits
        self._sequences = Sequences(project)
        self._held_out = held_out
        self._last: dict[str, int] = {}
        self._highest: dict[str, int] = {}
        self._late: dict[str, int] = dict.fromkeys(held_out, 0)
        self.locked = locked is not None
        if locked is not None:
            with locked.session(write=False) as session:
                self._columns = images.split_columns(session)
            order = np.argsort(self._columns.groups, kind="stable")
            edges = np.searchsorted(self._columns.groups[order], np.arange(len(self._columns.names) + 1))
            self._members = {
                name: order[edges[index] : edges[index + 1]] for index, name in enumerate(self._columns.names)
            }
            self._highest = {
                name: int(self._columns.positions[rows].max()) for name, rows in self._members.items()
            }

    def assign(self, found: Found, *, known: Image | None) -> Assigned:
        """The place of a file.

        Raises:
            DataError: its group or position cannot be told.
            ConfigError: two held-out splits name it.
        """
        group, written = self._sequences.locate(found)
        named = [name for name, listed in self._held_out.items() if listed.given and found in listed]
        if len(named) > 1:
            raise ConfigError(
                f"`splits.test` and `splits.calibration` both name {found.uri}.", "Name it in one of them."
            )
        if known is not None and self.locked:
            self._last[group] = known.position
            return Assigned(found, group, known.position, known.position, named[0] if named else None)
        last = self._last.get(group, -1)
        between = written is None and self.locked and last < self._highest.get(group, -1)
        lies_at = written if written is not None else last + 0.5 if between else last + 1
        position = max(0, last) if between else int(lies_at)
        self._last[group] = last if between else position
        self._highest[group] = max(position, self._highest.get(group, -1))
        return Assigned(found, group, position, lies_at, named[0] if named else None)

    def splits(self, assigned: Sequence[Assigned]) -> list[str]:
        """The split of each new image."""
        chosen = [entry.named or "pool" for entry in assigned]
        rows_of: dict[str, list[int]] = {}
        for row, entry in enumerate(assigned):
            if self.locked and entry.named is None and entry.group in self._members:
                rows_of.setdefault(entry.group, []).append(row)
        for group, rows in rows_of.items():
            members = self._members[group]
            codes = join_splits(
                self._config,
                group_splits=self._columns.splits[members],
                group_positions=self._columns.positions[members],
                positions=np.array([assigned[row].lies_at for row in rows]),
            )
            for row, code in zip(rows, codes.tolist(), strict=True):
                chosen[row] = images.SPLITS[code]
        return chosen

    def name_late(self, split: str) -> None:
        """Count an image that a held-out split names too late."""
        self._late[split] += 1

    def warnings(self) -> Iterator[str]:
        """What lists say too late."""
        for name, number in self._late.items():
            if number:
                yield (
                    f"`splits.{name}` now names {number} known images that are labeled, queued or in another "
                    "split: they stay where they are."
                )
