"""Rows of a query as NumPy columns: the way back from what `copy.py` does.

PostgreSQL's binary COPY has a length before each value, and a NULL has no value. Where nothing is NULL all rows are of
one size, and a million of them are an array without a loop: https://www.postgresql.org/docs/current/sql-copy.html
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.store.copy import EPOCH_US
from dhan_pipeline.ticks import NULL_INT

#: What a column may be. An int is the size of a bytea, in bytes, that is the same in every row.
RecordKind = Literal["bool", "int2", "int4", "int8", "float8", "timestamptz"] | int

_TYPES: dict[RecordKind, str] = {
    "bool": "?",
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "float8": ">f8",
    "timestamptz": ">i8",
}
_HEADER_BYTES, _TRAILER_BYTES = 19, 2


def read_records(
    conn: connection, query: str, parameters: Sequence[Any] | Mapping[str, Any], columns: Mapping[str, RecordKind]
) -> dict[str, NDArray[Any]]:
    """All rows of a query, an array of shape (rows,) a column; a bytea is uint8 of shape (rows, its size).

    The query gives exactly these columns, none of them NULL: coalesce them, numbers to what stands for absent, and
    times to '-infinity', which becomes NULL_INT. Times are int64 microseconds since the Unix epoch, UTC. Leaves the
    transaction open. Raises ValueError where a value is NULL or of another type, and psycopg2.Error.
    """
    parts: list[dict[str, NDArray[Any]]] = []
    each_records(conn, query, parameters, columns, parts.append)
    if not parts:
        return _columns(np.empty(0, _row(columns)), columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def each_records(
    conn: connection,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any],
    columns: Mapping[str, RecordKind],
    take: Callable[[dict[str, NDArray[Any]]], object],
    rows_at_once: int = 100_000,
) -> None:
    """Like `read_records`, but `take` gets so many rows at a time, in the query's order: memory stays flat."""
    row = _row(columns)
    sink = _Sink(row, columns, take, rows_at_once * row.itemsize)
    with conn.cursor() as cursor:
        statement = cursor.mogrify(query, parameters).decode()
        cursor.copy_expert(f"COPY ({statement}) TO STDOUT (FORMAT binary)", sink)
    sink.finish()


class _Sink:
    """Where psycopg2 writes the stream to."""

    def __init__(
        self,
        row: np.dtype[np.void],
        columns: Mapping[str, RecordKind],
        take: Callable[[dict[str, NDArray[Any]]], object],
        enough: int,
    ) -> None:
        self._row, self._columns, self._take, self._enough = row, columns, take, enough
        self._buffer = bytearray()
        self._skip = _HEADER_BYTES

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= self._skip + self._enough + _TRAILER_BYTES:
            self._hand_over(self._enough)

    def finish(self) -> None:
        rest = len(self._buffer) - self._skip - _TRAILER_BYTES
        if rest > 0:
            self._hand_over(rest)

    def _hand_over(self, size: int) -> None:
        rows, rest = divmod(size, self._row.itemsize)
        if rest:
            raise ValueError("the rows of the query are not of the size that its columns say: is a value NULL?")
        taken = np.frombuffer(bytes(self._buffer[self._skip : self._skip + size]), self._row, rows)
        del self._buffer[: self._skip + size]
        self._skip = 0
        self._take(_columns(taken, self._columns))


def _row(columns: Mapping[str, RecordKind]) -> np.dtype[np.void]:
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    for name, kind in columns.items():
        fields.append((f"{name} length", ">i4"))
        fields.append((name, ("u1", (kind,)) if isinstance(kind, int) else _TYPES[kind]))
    return np.dtype(fields)


def _columns(rows: NDArray[np.void], columns: Mapping[str, RecordKind]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    if (rows["fields"] != len(columns)).any():
        raise ValueError("the query gives other columns than it should")
    for name, kind in columns.items():
        size = kind if isinstance(kind, int) else np.dtype(_TYPES[kind]).itemsize
        if (rows[f"{name} length"] != size).any():
            raise ValueError(f"the column {name} is NULL somewhere, or of another type")
        values = rows[name]
        values = values.astype(values.dtype.newbyteorder("="))
        if kind == "timestamptz":
            values[values != NULL_INT] += EPOCH_US
        found[name] = values
    return found
