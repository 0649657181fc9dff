"""Fast inserts of columns into a table: the driver's `executemany` on SQLite, COPY on PostgreSQL.

PostgreSQL's binary format (its manual, COPY, "Binary Format"): a signature; for each row the number of fields
and for each field its length and its bytes in network order, length −1 for NULL; −1 at the end. numpy lays
out the fields whose types have one width; texts are inserted between them row by row.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import JSON, REAL, BigInteger, Boolean, Double, Integer, SmallInteger, String, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from db.later import later

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = later("numpy")

Values: TypeAlias = "npt.NDArray[Any] | Sequence[Any]"
Columns = Mapping[str, Values]
"""Columns of a table by name, all of one length. None and NaN are NULL."""

INSERT_ROWS = 50_000
COPY_ROWS = 4_096
"""Rows of a block. While the server reads one block, the next one is prepared."""
SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
END = struct.pack("!h", -1)
NULL = struct.pack("!i", -1)
JSONB_VERSION = b"\x01"
WIDTHS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (Boolean, ">u1"),
    (SmallInteger, ">i2"),
    (BigInteger, ">i8"),
    (Integer, ">i4"),
    (Double, ">f8"),
    (REAL, ">f4"),
)
"""numpy's name of each type of fixed width, as PostgreSQL sends it; derived types come first."""


def insert_columns(session: Session, table: Table, columns: Columns) -> int:
    """Insert rows that are given as columns, in the session's transaction.

    Returns:
        The number of rows.

    Raises:
        ValueError: the columns differ in length, the table has no such column, or a number does not fit.
        DBAPIError: as for any other statement, such as IntegrityError.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Expected columns of one length, but got {lengths}.")
    unknown = sorted(set(columns) - set(table.columns.keys()))
    if unknown:
        raise ValueError(f"Expected columns of {table.name}, but got {', '.join(unknown)}.")
    rows = next(iter(lengths.values()), 0)
    if not rows:
        return 0
    kinds = {name: table.columns[name].type for name in columns}
    if session.get_bind().dialect.name == "postgresql":
        _copy(session, table.name, kinds, _parts(columns, rows, COPY_ROWS))
    else:
        for part in _parts(columns, rows, INSERT_ROWS):
            _execute_many(session, table.name, kinds, part)
    return rows


def _parts(columns: Columns, rows: int, length: int) -> Iterator[Columns]:
    for start in range(0, rows, length):
        yield {name: values[start : start + length] for name, values in columns.items()}


def _execute_many(
    session: Session, table: str, kinds: Mapping[str, TypeEngine[Any]], columns: Columns
) -> None:
    lists = {name: _objects(kinds[name], name, values) for name, values in columns.items()}
    filled = {name: values for name, values in lists.items() if values is not None}
    names = ", ".join(f'"{name}"' for name in filled)
    marks = ", ".join("?" * len(filled))
    session.connection().exec_driver_sql(
        f'INSERT INTO "{table}" ({names}) VALUES ({marks})', list(zip(*filled.values(), strict=True))
    )


def _objects(kind: TypeEngine[Any], name: str, values: Values) -> list[Any] | None:
    """The values as the driver's objects; None where every value is NULL."""
    width = _width(kind)
    if width is None:
        wrap: Callable[[Any], str] = json.dumps if isinstance(kind, JSON) else str
        texts = [None if value is None else wrap(value) for value in values]
        return texts if any(text is not None for text in texts) else None
    array, missing = _numbers(values, name, width)
    listed = array.tolist()
    if missing is None:
        return listed
    if missing.all():
        return None
    return [None if gone else value for value, gone in zip(listed, missing.tolist(), strict=True)]


def _copy(
    session: Session, table: str, kinds: Mapping[str, TypeEngine[Any]], parts: Iterator[Columns]
) -> None:
    names = ", ".join(f'"{name}"' for name in kinds)
    statement = f'COPY "{table}" ({names}) FROM STDIN (FORMAT BINARY)'
    blocks = (
        _binary_rows([_field(kinds[name], name, values) for name, values in part.items()]) for part in parts
    )
    connection = session.connection()
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for block in chain([SIGNATURE], blocks, [END]):
                copy.write(block)
    except (
        connection.dialect.loaded_dbapi.Error
    ) as error:  # the driver's error, which SQLAlchemy did not catch
        lost = connection.dialect.is_disconnect(error, driver, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement,
            None,
            error,
            connection.dialect.loaded_dbapi.Error,
            connection_invalidated=lost,
            dialect=connection.dialect,
        ) from error


def _width(kind: TypeEngine[Any]) -> str | None:
    """numpy's name of the type of a column; None for texts and documents."""
    for known, width in WIDTHS:
        if isinstance(kind, known):
            return width
    if isinstance(kind, (String, JSON)):
        return None
    raise ValueError(f"Expected a column of numbers, text or JSON, but got {kind!r}.")


def _numbers(values: Values, name: str, width: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """The values [rows] in a type of the column's kind, and a mask of the NULLs; None without NULLs."""
    array = np.asarray(values)
    missing: npt.NDArray[np.bool_] | None = None
    if array.dtype == np.object_:
        missing = np.array([value is None for value in values], dtype=bool)
        array = np.asarray([0 if value is None else value for value in values])
    if array.dtype.kind == "f":
        nan = np.isnan(array)
        missing = nan if missing is None else nan | missing
    target = np.dtype(width)
    if target.kind == "f" and array.dtype.kind in "fiub":
        return array.astype(target.newbyteorder("="), copy=False), _some(missing)
    if array.dtype.kind not in "iub":
        raise ValueError(f"Expected integers for {name}, but got {array.dtype}.")
    low, high = (0, 1) if width == ">u1" else (np.iinfo(target).min, np.iinfo(target).max)
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"Expected {name} from {low} to {high}, but got {array.min()} to {array.max()}.")
    return array, _some(missing)


def _some(missing: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    return None if missing is None or not missing.any() else missing


Fixed: TypeAlias = "tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]"
"""Bytes [rows, width] of a field with its length, and a mask of the NULLs."""


def _field(kind: TypeEngine[Any], name: str, values: Values) -> Fixed | list[bytes]:
    """One column in binary format: as bytes of one width, or as the bytes of each row."""
    width = _width(kind)
    if width is None:
        if any(value is not None for value in values):
            return [_text(kind, value) for value in values]
        return np.full((len(values), 4), 255, dtype=np.uint8), None
    array, missing = _numbers(values, name, width)
    record = np.empty(len(array), dtype=[("length", ">i4"), ("value", width)])
    record["length"] = np.dtype(width).itemsize
    record["value"] = array
    if missing is not None:
        record["length"][missing] = -1
    return record.view(np.uint8).reshape(len(array), record.dtype.itemsize), missing


def _text(kind: TypeEngine[Any], value: Any) -> bytes:
    if value is None:
        return NULL
    data = JSONB_VERSION + json.dumps(value).encode() if isinstance(kind, JSON) else str(value).encode()
    return struct.pack("!i", len(data)) + data


def _binary_rows(fields: Sequence[Fixed | list[bytes]]) -> bytes:
    """Rows in binary format: one buffer without texts, else joined row by row."""
    rows = len(fields[0] if isinstance(fields[0], list) else fields[0][0])
    count = np.frombuffer(struct.pack("!h", len(fields)), dtype=np.uint8)
    fixed: list[Fixed] = [(np.broadcast_to(count, (rows, 2)), None)]
    parts: list[list[bytes]] = []
    for field in fields:
        if isinstance(field, list):
            parts.extend([_row_by_row(fixed), field] if fixed else [field])
            fixed = []
        else:
            fixed.append(field)
    if not parts:
        return _side_by_side(fixed)[0]
    if fixed:
        parts.append(_row_by_row(fixed))
    return b"".join(chain.from_iterable(zip(*parts, strict=True)))


def _side_by_side(fields: Sequence[Fixed]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The bytes of fields beside each other, without those of NULLs, and the start of each row and the end of
    the last one."""
    block = np.concatenate([field for field, _ in fields], axis=1)
    rows, width = len(block), block.shape[1]
    if all(missing is None for _, missing in fields):
        return block.tobytes(), np.arange(rows + 1) * width
    kept = np.ones(block.shape, dtype=bool)
    start = 0
    for field, missing in fields:
        if missing is not None:
            kept[missing, start + len(NULL) : start + field.shape[1]] = False
        start += field.shape[1]
    return block[kept].tobytes(), np.concatenate([[0], np.cumsum(kept.sum(axis=1))])


def _row_by_row(fields: Sequence[Fixed]) -> list[bytes]:
    data, starts = _side_by_side(fields)
    bounds: list[int] = starts.tolist()
    return [data[start:end] for start, end in pairwise(bounds)]
