"""Whether two projects hold the same: every row by its natural key, every file by its content.

Left out is what may differ between two runs that did the same: surrogate ids, times (but not whether there
is one), who held a lease, and how often a shard was begun. A foreign key is compared by the natural key of
the row that it names, and so is an id inside a file name, a manifest or a JSON document.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, UniqueConstraint, select
from sqlalchemy.engine import Engine

from db.base import UtcDateTime
from db.tables import Base

Row = dict[str, Any]
Names = dict[str, dict[Any, Any]]
"""Of each table with a surrogate id: the natural key by id."""

OF_ONE_PROCESS = {"owner", "lease_until", "attempts"}
TIMES_AND_CUTS = {"lease", "shard"}
"""Compared apart: no lease may be left, and shards may be cut elsewhere after a kill."""
NOT_COMPARED = re.compile(
    r"(^|/)(segcurate\.db(-wal|-shm)?|victim\.log|marker\.json)$|^(images|masks|later)/"
)
MANIFEST = "manifest.jsonl"
REGIONS = "regions.csv"
WITHOUT_FOREIGN_KEY = {"image_id": "image", "run_id": "scoring_run"}
"""Columns of the score tables, which the database does not check, and what they name."""
ID_KEYS = {"image_id": "image", "item": "queue_item"}
"""Keys of JSON documents that hold a surrogate id, and of which table."""


def differences(engine: Engine, root: Path, other_engine: Engine, other_root: Path) -> list[str]:
    """What is in one project and not in the other, in words; empty when they hold the same.

    Args:
        engine, root: the database and the folder of the project that was killed.
        other_engine, other_root: those of the project that was not.
    """
    with engine.connect() as mine, other_engine.connect() as theirs:
        my_names, their_names = _names(mine), _names(theirs)
        found = [
            line for table in _tables() for line in _compare_table(table, mine, theirs, my_names, their_names)
        ]
        found += _compare_shards(mine, theirs, my_names, their_names)
        found += _leases(mine)
    files, other_files = _files(root, my_names), _files(other_root, their_names)
    return found + _compare("file", Counter(files.items()), Counter(other_files.items()))


def leftovers(root: Path) -> list[str]:
    """Unfinished files and folders: what a kill left behind and nothing has taken away."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.name.endswith(".partial") or path.name == "resume.safetensors"
    )


def _tables() -> Iterator[Table]:
    yield from (table for table in Base.metadata.sorted_tables if table.name not in TIMES_AND_CUTS)


def _key_columns(table: Table) -> list[str]:
    """The columns of the natural key: those of a unique constraint, else of the primary key."""
    unique = sorted(
        (
            [column.name for column in constraint.columns]
            for constraint in table.constraints
            if isinstance(constraint, UniqueConstraint)
        ),
        key=lambda names: (len(names), names),
    )
    if table.name == "queue":
        return ["name"]  # a round need not have one
    if table.name == "queue_item":
        return ["queue_id", "rank"]
    if table.name == "scoring_run":
        return ["scorer_hash"]  # unique by an index; its id has gaps where PostgreSQL rolled one back
    return unique[0] if unique else [column.name for column in table.primary_key.columns]


def _names(connection: Connection) -> Names:
    """The natural key of each row that has an id, for every table."""
    names: Names = {}
    for table in Base.metadata.sorted_tables:
        if "id" not in table.c:
            continue
        keys = _key_columns(table)
        names[table.name] = {}
        for row in connection.execute(select(table)).mappings():
            names[table.name][row["id"]] = tuple(_translated(table, key, row[key], names) for key in keys)
    return names


def _translated(table: Table, column: str, value: Any, names: Names) -> Any:
    """A value, or, where it names a row, that row's natural key."""
    foreign = next(iter(table.c[column].foreign_keys), None)
    if foreign is not None and foreign.column.name == "id":
        named = foreign.column.table.name
    elif column in WITHOUT_FOREIGN_KEY:
        named = WITHOUT_FOREIGN_KEY[column]
    else:
        return value
    return None if value is None else names[named].get(value, f"no row, or a later one: {value}")


def _rows(table: Table, connection: Connection, names: Names) -> Counter[Hashable]:
    rows: Counter[Hashable] = Counter()
    for row in connection.execute(select(table)).mappings():
        rows[
            _as_hashable(
                {
                    name: _told(table, name, value, names)
                    for name, value in row.items()
                    if name != "id" and name not in OF_ONE_PROCESS
                }
            )
        ] += 1
    return rows


def _told(table: Table, name: str, value: Any, names: Names) -> Any:
    if isinstance(table.c[name].type, UtcDateTime):
        return value is not None
    if isinstance(value, str):
        return _without_ids(value, names)
    if isinstance(value, (dict, list)):
        return _document(value, names)
    return _translated(table, name, value, names)


def _document(value: Any, names: Names) -> Any:
    """A JSON document, its ids translated."""
    if isinstance(value, Mapping):
        return {
            key: names[ID_KEYS[key]].get(item, item)
            if key in ID_KEYS and isinstance(item, int)
            else _document(item, names)
            for key, item in value.items()
            if key != "checked_through"  # the largest image id that a run was compared up to
        }
    if isinstance(value, list):
        return [_document(item, names) for item in value]
    return _without_ids(value, names) if isinstance(value, str) else value


def _without_ids(text: str, names: Names) -> str:
    """A path whose ids are replaced by what they name: those of heat maps, and those of exported images."""

    def of_heatmap(match: re.Match[str]) -> str:
        run, image, rest = match.groups()
        run, image = names["scoring_run"].get(int(run), run), names["image"].get(int(image), image)
        return f"heatmaps/{run}/{image}_{rest}"

    def of_export(match: re.Match[str]) -> str:
        rank, image, rest = match.groups()
        return f"{rank}<{names['image'].get(int(image), image)}>{rest}"

    text = re.sub(r"heatmaps/(\d+)/(\d+)_(\w+\.png)", of_heatmap, text)
    return re.sub(r"\b(\d{4}_)(\d+)(_\w+)", of_export, text)


def _as_hashable(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def _compare_table(
    table: Table, mine: Connection, theirs: Connection, my_names: Names, their_names: Names
) -> list[str]:
    return _compare(f"row of {table.name}", _rows(table, mine, my_names), _rows(table, theirs, their_names))


def _compare(what: str, mine: Counter[Any], theirs: Counter[Any]) -> list[str]:
    found = [f"{what}: {count} × too much: {_short(item)}" for item, count in (mine - theirs).items()]
    return found + [f"{what}: {count} × missing: {_short(item)}" for item, count in (theirs - mine).items()]


def _compare_shards(mine: Connection, theirs: Connection, my_names: Names, their_names: Names) -> list[str]:
    """Which images the shards of each run cover, and how many they say were scored; all must be done."""
    return _compare("shards", Counter(_cover(mine, my_names)), Counter(_cover(theirs, their_names)))


def _cover(connection: Connection, names: Names) -> list[str]:
    shard = Base.metadata.tables["shard"]
    covered: dict[Any, Counter[Any]] = defaultdict(Counter)
    told: dict[Any, Row] = defaultdict(lambda: defaultdict(int))
    for row in connection.execute(select(shard)).mappings():
        run = names["scoring_run"][row["run_id"]]
        if row["scored"] or row["failed"] or row["status"] != "done":
            for column in ("scored", "failed", "regions"):
                told[run][column] += row.get(column, 0)
            told[run][row["status"]] = True
            ids = range(row["first_image_id"], row["last_image_id"] + 1)
            covered[run].update(names["image"][image_id] for image_id in ids if image_id in names["image"])
    scores = Base.metadata.tables["image_score"]
    lines: list[str] = []
    for run_id, run in names["scoring_run"].items():
        ids = connection.scalars(select(scores.c.image_id).where(scores.c.run_id == run_id))
        uncovered = [
            names["image"][image_id] for image_id in ids if names["image"][image_id] not in covered[run]
        ]
        lines.append(f"{run}: {dict(told[run])}, scored and in no shard: {uncovered}")
    return lines


def _leases(connection: Connection) -> list[str]:
    names = connection.scalars(select(Base.metadata.tables["lease"].c.name))
    return [f"lease: {name} is held still" for name in names]


def _files(root: Path, names: Names) -> dict[str, str]:
    """Content hash, or target, of every file of a project, by its path without ids."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        if NOT_COMPARED.search(relative) or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            told = f"link to {os.path.relpath(path.resolve(), root.resolve())}"
        else:
            told = hashlib.sha256(_readers(path)(path.read_bytes(), names)).hexdigest()
        found[_without_ids(relative, names)] = told
    return found


def _readers(path: Path) -> Callable[[bytes, Names], bytes]:
    if path.name == MANIFEST:
        return lambda data, names: "\n".join(
            json.dumps(_document(json.loads(line), names), sort_keys=True, default=str)
            for line in data.decode().splitlines()
        ).encode()
    if path.name == REGIONS:
        return lambda data, names: json.dumps(
            [
                {
                    key: _document({key: int(value) if key in ID_KEYS else value}, names)
                    for key, value in row.items()
                }
                for row in csv.DictReader(io.StringIO(data.decode()))
            ],
            default=str,
        ).encode()
    return lambda data, _: data


def _short(item: Any) -> str:
    text = item if isinstance(item, str) else str(item)
    return text if len(text) < 300 else f"{text[:300]}…"
