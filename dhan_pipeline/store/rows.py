"""Stored rows as Arrow tables with all columns of `ticks`, and such tables as batches that can be stored.

It is what the view `ticks` says, to the last bit. PostgreSQL sends the rows as they lie in `tick_rows`, and depth is
unpacked here, a column at a time: 3 seconds a million full rows, which is half of what the view alone takes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.enrich import DERIVED, derived
from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.store.copy import DEPTH, DEPTH_NUMBERS, DEPTH_PRICES, STORED
from dhan_pipeline.store.records import RecordKind, each_records
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Kind, Mode, TickBatch, arrow_schema

_MODES = list(Mode)
_SCHEMA = arrow_schema()
_KINDS: dict[str, Kind] = {column.name: column.kind for column in COLUMNS}
_ABSENT = {"int8": str(NULL_INT), "float8": "'NaN'", "timestamptz": "'-infinity'"}


def _record(name: str) -> tuple[str, RecordKind]:
    """How a stored column is asked for, and what comes: absent values as `read_records` wants them."""
    if name == "depth":
        return rf"coalesce(depth, '\x{'00' * DEPTH.itemsize}')", DEPTH.itemsize
    if name == "mode":
        cases = " ".join(f"WHEN '{mode}' THEN {number}" for number, mode in enumerate(_MODES))
        return f"(CASE mode {cases} END)::int2", "int2"
    kind = _KINDS[name]
    assert kind == "bool" or kind == "int8" or kind == "float8" or kind == "timestamptz"
    return f"coalesce({name}, {_ABSENT[kind]})" if kind in _ABSENT else name, kind


_RECORD = {name: _record(name) for name in STORED}
_SELECTED = ", ".join(asked for asked, _ in _RECORD.values())
_RECORD_KINDS = {name: kind for name, (_, kind) in _RECORD.items()}


def read_tick_table(
    conn: connection,
    condition: str,
    parameters: Mapping[str, Any] | Sequence[Any],
    *,
    relation: str = "tick_rows",
    order: str = "",
) -> pa.Table:
    """The rows of `relation` that the SQL `condition` holds for, as one table of `ticks.arrow_schema()`.

    `relation` is any table with the columns of `tick_rows`; `order` is what stands after ORDER BY, if anything. Absent
    values are NULL, the arrays of depth as a whole where the row has none. A million full rows are 410 MB.
    Leaves the transaction open. Raises psycopg2.Error.
    """
    tables: list[pa.Table] = []
    each_tick_table(conn, condition, parameters, tables.append, relation=relation, order=order)
    return pa.concat_tables(tables) if tables else _SCHEMA.empty_table()


def each_tick_table(
    conn: connection,
    condition: str,
    parameters: Mapping[str, Any] | Sequence[Any],
    take: Callable[[pa.Table], object],
    *,
    relation: str = "tick_rows",
    order: str = "",
    rows_at_once: int = 100_000,
) -> None:
    """Like `read_tick_table`, but `take` gets so many rows at a time (the last time fewer): memory stays flat."""
    query = f"SELECT {_SELECTED} FROM {relation} WHERE {condition}" + (f" ORDER BY {order}" if order else "")
    each_records(conn, query, parameters, _RECORD_KINDS, lambda rows: take(_table(rows)), rows_at_once)


def tick_batches(table: pa.Table) -> list[TickBatch]:
    """The rows of a table of `ticks.arrow_schema()` as `tick_copy` takes them; other columns are left alone.

    Rows keep their order within a batch: there is one for each mode, with depth and without.
    """
    batches = []
    for mode in _MODES:
        of_mode = table.filter(pc.equal(table["mode"], mode.value))
        for depth in (True, False):
            rows = of_mode.filter(pc.is_valid(of_mode["bid_prices"]) if depth else pc.is_null(of_mode["bid_prices"]))
            if rows.num_rows:
                batches.append(_batch(mode, rows, depth))
    return batches


def _table(rows: dict[str, NDArray[Any]]) -> pa.Table:
    packed = np.ascontiguousarray(rows["depth"]).view(DEPTH)[:, 0]
    has_depth = packed["scale"] > 0
    depth: dict[str, NDArray[Any]] = {name: packed[name].astype("=i8") for name in DEPTH_NUMBERS}
    with np.errstate(invalid="ignore"):  # 0 / 0: no depth
        for name in DEPTH_PRICES:
            depth[name] = packed[name] / packed["scale"].astype(np.float64)[:, None]
            np.copyto(depth[name], np.nan, where=depth[name] == 0)
    followed = derived({**rows, **depth})

    arrays: list[pa.Array] = []
    for field in _SCHEMA:
        if field.name == "mode":
            codes = pa.array(rows["mode"].astype(np.int8))
            arrays.append(pa.DictionaryArray.from_arrays(codes, [mode.value for mode in _MODES]).cast(field.type))
        elif field.name in depth:
            arrays.append(_lists(depth[field.name][has_depth], has_depth, field.type.value_type))
        else:
            values = followed[field.name] if field.name in DERIVED else rows[field.name]
            arrays.append(_array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """With NULL for NaN and NULL_INT."""
    if values.dtype.kind == "b":
        return pa.array(values, kind)
    absent = np.isnan(values) if values.dtype.kind == "f" else values == NULL_INT
    if pa.types.is_timestamp(kind):
        values = values.view("M8[us]")
    return pa.array(values, kind, mask=absent if np.count_nonzero(absent) else None)


def _lists(values: NDArray[Any], present: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Lists of `values`, shape (rows that are present, levels), and NULL between them."""
    offsets = np.zeros(len(present) + 1, np.int32)
    np.cumsum(present * DEPTH_LEVELS, out=offsets[1:])
    flat = _array(values.reshape(-1), pa.int64() if values.dtype.kind == "i" else kind).cast(kind)
    mask = None if present.all() else pa.array(~present)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask)


def _batch(mode: Mode, rows: pa.Table, depth: bool) -> TickBatch:
    columns: dict[str, NDArray[Any]] = {}
    for name, kind in _KINDS.items():
        values = rows[name]
        if name == "mode" or name in DERIVED:
            continue
        if kind.endswith("[]"):
            if depth:
                flat = pc.list_flatten(values).to_numpy()
                columns[name] = flat.reshape(-1, DEPTH_LEVELS)
        elif kind in ("int8", "timestamptz"):
            columns[name] = values.cast(pa.int64()).fill_null(NULL_INT).to_numpy()
        else:
            columns[name] = values.to_numpy()
    tokens = columns["instrument_token"]
    instruments = InstrumentIndex(np.unique(tokens))
    return TickBatch(mode, columns, instruments.scale.take(instruments.lookup(tokens)))
