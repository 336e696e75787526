"""Stored rows as Arrow tables: what was written, and what the view `ticks` says, to the last bit."""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection, cursor

from dhan_pipeline.enrich import DERIVED, derived
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.rows import each_tick_table, read_tick_table, tick_batches
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Mode, TickBatch, arrow_schema

AT_NS = 1_795_147_200_000_000_000  # 2026-11-20 10:30 IST
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RELIANCE, USDINR = generate_instrument_token("NSE_EQ", 2885), generate_instrument_token("NSE_CURRENCY", 1)

#: What a mode never has.
ABSENT = {
    Mode.TICKER: {c.name for c in COLUMNS if not c.required} - {"last_price", "last_trade_time", "day_close"},
    Mode.QUOTE: {c.name for c in COLUMNS if c.kind.endswith("[]")} | {"oi_day_high", "oi_day_low"},
    Mode.FULL: set[str](),
}


def make_batch(mode: Mode, rows: int, seed: int = 0, absent: float = 0.0) -> TickBatch:
    """Rows of a rupee and of a currency instrument; any value that may be absent is, as often as told."""
    random = np.random.default_rng([seed, list(Mode).index(mode)])
    token = random.choice([RELIANCE, USDINR], rows)
    scale = np.where(token == USDINR, 10_000.0, 100.0)
    columns: dict[str, Any] = {}
    for column in COLUMNS:
        if column.name in ABSENT[mode] or column.name in DERIVED or column.name == "mode":
            continue
        shape = (rows, DEPTH_LEVELS) if column.kind.endswith("[]") else (rows,)
        if column.kind.startswith("float8"):
            values: Any = random.integers(1, 2**32, shape) / scale.reshape(-1, *[1] * (len(shape) - 1))
            values[random.random(shape) < absent] = np.nan
        elif column.kind == "int4[]":
            values = random.choice([0, 1, 2**16 - 1], shape)
        elif column.kind == "int8[]":
            values = random.choice([0, 1, 2**31, 2**32 - 1], shape)
        elif column.kind == "bool":
            values = random.random(rows) < 0.5
        elif column.name.startswith("total"):
            values = random.choice([0, 1, 2**53 + 1], rows)
        else:
            values = random.choice([0, 1, -1, 2**63 - 1], rows)
        if column.kind in ("int8", "timestamptz") and not column.required:
            values[random.random(rows) < absent] = NULL_INT
        columns[column.name] = values
    columns["tick_id"] = list(Mode).index(mode) * 1_000 + np.arange(rows)
    columns["time"] = AT_NS // 1000 + random.permutation(rows)
    columns["last_trade_time"] = np.where(random.random(rows) < absent, NULL_INT, 946_684_799_999_999)
    columns["instrument_token"] = token
    return TickBatch(mode, columns, scale)


@contextmanager
def stored(conn: connection, batches: list[TickBatch], relation: str = "tick_rows") -> Iterator[cursor]:
    """The rows in `tick_rows` or in a temporary table like it, until the end of the block."""
    ensure_partitions(conn, AT_NS, AT_NS + 1)
    with conn.cursor() as cur:
        if relation != "tick_rows":
            cur.execute(f"CREATE TEMPORARY TABLE {relation} (LIKE tick_rows) ON COMMIT DROP")
        cur.copy_expert(
            f"COPY {relation} ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(tick_copy(batches))
        )
        yield cur
    conn.rollback()


def bits(value: Any) -> Any:
    """What tells values apart to the last bit; all that is absent is alike."""
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(microseconds=1)
    if value is None or value == NULL_INT or value != value:
        return None
    return struct.pack(">d", value) if isinstance(value, float) else value


def bits_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: bits(value) for name, value in row.items()} for row in rows]


def rows_of(batches: list[TickBatch]) -> list[dict[str, Any]]:
    """Every column of every row of the batches."""
    rows = []
    for batch in batches:
        columns = {**batch.columns, **derived(batch.columns)}
        for at in range(len(batch)):
            row: dict[str, Any] = {column.name: None for column in COLUMNS} | {"mode": batch.mode.value}
            rows.append(row | {name: values[at].tolist() for name, values in columns.items()})
    return rows


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sets(st.sampled_from(list(Mode)), min_size=1))
def test_what_is_written_is_read_back_to_the_last_bit(
    conn: connection, seed: int, absent: float, modes: set[Mode]
) -> None:
    batches = [make_batch(mode, 20, seed, absent) for mode in Mode if mode in modes]
    with stored(conn, batches) as cur:
        table = read_tick_table(conn, "TRUE", [], order="tick_id")
        cur.execute(f"SELECT {', '.join(column.name for column in COLUMNS)} FROM ticks ORDER BY tick_id")
        seen = [dict(zip((column.name for column in COLUMNS), row, strict=True)) for row in cur.fetchall()]
    table.validate(full=True)
    assert table.schema.equals(arrow_schema(), check_metadata=True)
    assert bits_of(table.to_pylist()) == bits_of(rows_of(batches)) == bits_of(seen)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 1.0]))
def test_batches_of_a_table_are_those_that_were_written(conn: connection, seed: int, absent: float) -> None:
    batches = [make_batch(mode, 20, seed, absent) for mode in Mode]
    with stored(conn, batches):
        table = read_tick_table(conn, "TRUE", [], order="tick_id")
    again = tick_batches(table)
    assert bits_of(rows_of(again)) == bits_of(rows_of(batches))
    with stored(conn, again, "again"):
        assert read_tick_table(conn, "TRUE", [], order="tick_id", relation="again").equals(table)


def test_rows_come_in_parts_in_the_order_asked_for(conn: connection) -> None:
    parts: list[pa.Table] = []
    with stored(conn, [make_batch(mode, 20) for mode in Mode]):
        each_tick_table(conn, "mode <> %s", ["quote"], parts.append, order="tick_id DESC", rows_at_once=15)
    assert [part.num_rows for part in parts] == [15, 15, 10]
    assert pa.concat_tables(parts)["tick_id"].to_pylist() == [*range(2019, 1999, -1), *range(19, -1, -1)]


def test_without_rows_the_table_is_empty(conn: connection) -> None:
    table = read_tick_table(conn, "instrument_token = %(token)s", {"token": 1})
    assert table.num_rows == 0
    assert table.schema == arrow_schema()
    assert tick_batches(table) == []


def test_batches_of_a_part_of_a_table_are_of_that_part(conn: connection) -> None:
    batches = [make_batch(mode, 20, absent=0.3) for mode in Mode]
    with stored(conn, batches):
        table = read_tick_table(conn, "TRUE", [], order="tick_id")
    part = pa.concat_tables([table.slice(5, 30), table.slice(50, 7)])
    assert bits_of(rows_of(tick_batches(part))) == bits_of(part.to_pylist())


@pytest.mark.parametrize("mode", list(Mode))
def test_a_mode_has_only_the_derived_columns_that_its_own_lead_to(mode: Mode) -> None:
    names = {
        Mode.TICKER: DERIVED[:2],
        Mode.QUOTE: ("change", "change_percent", "order_imbalance"),
        Mode.FULL: DERIVED,
    }
    assert set(derived(make_batch(mode, 3).columns)) == set(names[mode])
