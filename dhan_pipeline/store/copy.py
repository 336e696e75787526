"""Ticks as PostgreSQL's binary COPY stream into `tick_rows`, built a column at a time.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". A row is the number of its fields, then
each field's length in bytes and its value, big endian; a NULL has length -1 and no value. So rows with NULLs are
shorter: all are laid out as if nothing were NULL, and the bytes of absent values are left out at the end.

What the view `ticks` can compute is not stored, and the six arrays of depth are one field of bytes: with its indexes a
row takes 290 bytes instead of 600, and half of the time. sql/0006_tick_rows.sql says what the bytes are.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.enrich import DERIVED
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Column, Kind, Mode, TickBatch

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_TRAILER = b"\xff\xff"

#: PostgreSQL counts microseconds from 2000-01-01, UTC.
EPOCH_US = 946_684_800_000_000

#: Rows that are laid out together. Each column writes all over them, so they should fit the processor's cache.
_ROWS_AT_ONCE = 1000

_NULL = -1
_TYPES: dict[Kind, str] = {"bool": "?", "int8": ">i8", "float8": ">f8", "timestamptz": ">i8"}

#: The bytes of `depth`, as sql/0006_tick_rows.sql says.
DEPTH = np.dtype(
    [
        ("scale", ">u2"),
        ("bid_prices", ">u4", DEPTH_LEVELS),
        ("ask_prices", ">u4", DEPTH_LEVELS),
        ("bid_quantities", ">u4", DEPTH_LEVELS),
        ("ask_quantities", ">u4", DEPTH_LEVELS),
        ("bid_orders", ">u2", DEPTH_LEVELS),
        ("ask_orders", ">u2", DEPTH_LEVELS),
    ]
)
DEPTH_PRICES = ("bid_prices", "ask_prices")
DEPTH_NUMBERS = ("bid_quantities", "ask_quantities", "bid_orders", "ask_orders")

_PLAIN = [column for column in COLUMNS if column.name not in (*DEPTH_PRICES, *DEPTH_NUMBERS, *DERIVED)]

#: Columns of `tick_rows`, in the order of the stream.
STORED = (*(column.name for column in _PLAIN), "depth")


@cache
def _template(mode: Mode, present: frozenset[str]) -> tuple[NDArray[np.void], list[Column]]:
    """One row with everything but the values: its dtype says where they go. And the columns that have values."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    constants: dict[str, Any] = {"fields": len(STORED)}
    for column in _PLAIN:
        length = f"{column.name} length"
        fields.append((length, ">i4"))
        if column.name == "mode":
            text = mode.encode()
            fields.append(("mode", f"S{len(text)}"))
            constants |= {length: len(text), "mode": text}
        elif column.name not in present:
            constants[length] = _NULL
        else:
            fields.append((column.name, _TYPES[column.kind]))
            constants[length] = np.dtype(_TYPES[column.kind]).itemsize
    fields.append(("depth length", ">i4"))
    constants["depth length"] = _NULL
    if DEPTH_PRICES[0] in present:
        fields.append(("depth", DEPTH))
        constants["depth length"] = DEPTH.itemsize
    template = np.zeros(1, fields)
    for name, value in constants.items():
        template[name] = value
    return template, [column for column in _PLAIN if column.name in present]


def tick_copy(batches: Sequence[TickBatch]) -> bytes:
    """Body of `COPY tick_rows (STORED) FROM STDIN (FORMAT binary)`.

    Rows come by mode, and within a mode in the order of the batches. NaN and NULL_INT become NULL, and so does every
    column that a batch does not have. In depth, NaN is the price 0.
    """
    groups: dict[tuple[Mode, frozenset[str]], list[TickBatch]] = {}
    for batch in batches:
        if len(batch):
            groups.setdefault((batch.mode, frozenset(batch.columns)), []).append(batch)
    parts: list[bytearray | memoryview] = []
    for (mode, names), group in groups.items():
        template, plain = _template(mode, names)
        for batch in _merged(group):
            parts.extend(_rows(template, plain, piece) for piece in _pieces(batch))
    return b"".join((_HEADER, *parts, _TRAILER))


def _merged(batches: list[TickBatch]) -> Iterator[TickBatch]:
    """The same rows, with small batches put together: what costs is each batch."""
    waiting: list[TickBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        if rows >= _ROWS_AT_ONCE or batch is batches[-1]:
            yield waiting[0] if len(waiting) == 1 else _concatenated(waiting)
            waiting, rows = [], 0


def _concatenated(batches: list[TickBatch]) -> TickBatch:
    columns = {name: np.concatenate([batch.columns[name] for batch in batches]) for name in batches[0].columns}
    scales = [batch.scale for batch in batches if batch.scale is not None]
    return TickBatch(batches[0].mode, columns, np.concatenate(scales) if scales else None)


def _pieces(batch: TickBatch) -> Iterator[TickBatch]:
    """The same rows, not too many at once."""
    if len(batch) <= _ROWS_AT_ONCE:
        yield batch
        return
    for first in range(0, len(batch), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        columns = {name: values[some] for name, values in batch.columns.items()}
        yield TickBatch(batch.mode, columns, None if batch.scale is None else batch.scale[some])


def _rows(template: NDArray[np.void], plain: list[Column], batch: TickBatch) -> bytearray | memoryview:
    """The bytes of rows, at least one."""
    columns = batch.columns
    laid_out = bytearray(template.tobytes()) * len(batch)
    rows: NDArray[np.void] = np.ndarray(len(batch), template.dtype, laid_out)
    kept = None
    for column in plain:
        name = column.name
        values = columns[name]
        rows[name] = values - EPOCH_US if column.kind == "timestamptz" else values
        if column.required or values.dtype.kind == "u":
            continue
        if values.item(values.argmin()) > NULL_INT:  # it would be NaN if one were
            continue
        null = np.isnan(values) if values.dtype.kind == "f" else values == NULL_INT
        if kept is None:
            kept = np.ones(len(laid_out), np.bool_)
            kept_rows: NDArray[np.void] = np.ndarray(len(batch), template.dtype, kept)
        kept_rows[name][null] = 0
        rows[f"{name} length"][null] = _NULL
    if DEPTH_PRICES[0] in columns:
        assert batch.scale is not None
        _pack_depth(rows["depth"], columns, batch.scale)
    return laid_out if kept is None else np.frombuffer(laid_out, np.uint8)[kept].data


def _pack_depth(depth: NDArray[np.void], columns: Mapping[str, NDArray[Any]], scale: NDArray[np.float64]) -> None:
    depth["scale"] = scale
    for name in DEPTH_PRICES:
        # 0 for NaN. Numbers of their size first: to swap the bytes as well, one by one, takes twice as long.
        depth[name] = np.fmax(np.rint(columns[name] * scale[:, None]), 0).astype(np.uint32)
    for name in DEPTH_NUMBERS:
        depth[name] = columns[name]
