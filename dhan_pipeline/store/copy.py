"""Ticks as PostgreSQL's binary COPY stream, built a column at a time.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". A row is the number of its fields, then
each field's length in bytes and its value, big endian; a NULL has length -1 and no value. So rows with NULLs are
shorter: all are laid out as if nothing were NULL, and the bytes of absent values are left out at the end.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Kind, Mode, TickBatch

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_TRAILER = b"\xff\xff"

#: PostgreSQL counts microseconds from 2000-01-01, UTC.
_EPOCH_US = 946_684_800_000_000

#: Rows that are laid out together. Each column writes all over them, so they should fit the processor's cache.
_ROWS_AT_ONCE = 1000

_NULL = -1
_TYPES: dict[Kind, str] = {"bool": "?", "int4": ">i4", "int8": ">i8", "float8": ">f8", "timestamptz": ">i8"}
_ELEMENT_OIDS: dict[Kind, int] = {"int4": 23, "int8": 20, "float8": 701}
_ELEMENTS: dict[Kind, Kind] = {"int4[]": "int4", "int8[]": "int8", "float8[]": "float8"}


_COLUMNS = [(column.name, column.kind, column.required) for column in COLUMNS if column.name != "mode"]


@cache
def _template(mode: Mode, present: frozenset[str]) -> NDArray[np.void]:
    """One row with everything but the values: its dtype says where they go."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    constants: dict[str, Any] = {"fields": len(COLUMNS)}
    for column in COLUMNS:
        length = f"{column.name} length"
        fields.append((length, ">i4"))
        if column.name == "mode":
            text = mode.encode()
            fields.append(("mode", f"S{len(text)}"))
            constants |= {length: len(text), "mode": text}
        elif column.name not in present:
            constants[length] = _NULL
        elif column.kind in _ELEMENTS:
            kind = _ELEMENTS[column.kind]
            element = np.dtype([("length", ">i4"), ("value", _TYPES[kind])])
            fields += [(f"{column.name} head", (">i4", 5)), (column.name, (element, DEPTH_LEVELS))]
            constants[length] = 5 * 4 + DEPTH_LEVELS * element.itemsize
            # One dimension, no NULLs, type, size, first subscript.
            constants[f"{column.name} head"] = (1, 0, _ELEMENT_OIDS[kind], DEPTH_LEVELS, 1)
            constants[column.name] = np.array((element["value"].itemsize, 0), element)
        else:
            fields.append((column.name, _TYPES[column.kind]))
            constants[length] = np.dtype(_TYPES[column.kind]).itemsize
    template = np.zeros(1, fields)
    for name, value in constants.items():
        template[name] = value
    return template


def tick_copy(batches: Sequence[TickBatch]) -> bytes:
    """Body of `COPY ticks (columns of ticks.COLUMNS, in that order) FROM STDIN (FORMAT binary)`.

    Rows come by mode, and within a mode in the order of the batches. NaN and NULL_INT become NULL, also inside arrays;
    so does every column that a batch does not have.
    """
    groups: dict[tuple[Mode, frozenset[str]], list[TickBatch]] = {}
    for batch in batches:
        groups.setdefault((batch.mode, frozenset(batch.columns)), []).append(batch)
    parts: list[bytes | memoryview] = [_HEADER]
    for (mode, names), group in groups.items():
        template = _template(mode, names)
        columns = group[0].columns
        if len(group) > 1:
            columns = {name: np.concatenate([batch.columns[name] for batch in group]) for name in names}
        for first in range(0, sum(map(len, group)), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            parts.append(_rows(template, {name: values[some] for name, values in columns.items()}))
    return b"".join((*parts, _TRAILER))


def _rows(template: NDArray[np.void], columns: Mapping[str, NDArray[Any]]) -> memoryview:
    """The rows' bytes."""
    laid_out = np.empty((len(columns["tick_id"]), template.itemsize), np.uint8)
    laid_out[:] = template.view(np.uint8)
    rows = laid_out.view(template.dtype)[:, 0]
    kept = None
    for name, kind, required in _COLUMNS:
        values = columns.get(name)
        if values is None:
            continue
        in_array = kind in _ELEMENTS
        slot = rows[name]["value"] if in_array else rows[name]
        slot[...] = values - _EPOCH_US if kind == "timestamptz" else values
        if required or values.dtype.kind == "u":
            continue
        null = np.isnan(values) if values.dtype.kind == "f" else values == NULL_INT
        if not np.count_nonzero(null):
            continue
        if kept is None:
            kept = np.ones(laid_out.shape, np.bool_)
            kept_rows = kept.view(template.dtype)[:, 0]
        lengths = rows[f"{name} length"]
        if in_array:
            np.copyto(kept_rows[name]["value"], 0, where=null)
            np.copyto(rows[name]["length"], _NULL, where=null)
            absent = np.count_nonzero(null, axis=1)
            lengths -= absent * slot.dtype.itemsize
            rows[f"{name} head"][:, 1] = absent > 0
        else:
            np.copyto(kept_rows[name], 0, where=null)
            np.copyto(lengths, _NULL, where=null)
    return (laid_out if kept is None else laid_out[kept]).data
