import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection

from dhan_pipeline.enrich import MarketState, derived, enrich
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Mode, TickBatch
from dhan_pipeline_tests.ingest.feed import SECOND_NS, START_NS, TOKENS, market_messages

#: Columns of `ticks` that are no sum or difference of others.
TOLD = [column for column in COLUMNS if column.name in STORED or column.kind.endswith("[]")]
NAMES = ", ".join(column.name for column in TOLD)
SCALE = 100
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = datetime(2026, 11, 20, 4, 0, 0, 123457, tzinfo=UTC)
AT_NS, OTHER_NS = 1_795_147_200_000_000_000, 946_684_799_000_000_000

#: What a mode never has.
ABSENT = {
    Mode.TICKER: {c.name for c in COLUMNS if not c.required} - {"last_price", "last_trade_time", "day_close", "change"},
    Mode.QUOTE: {c.name for c in COLUMNS if c.kind.endswith("[]")} | {"mid_price", "bid_ask_spread", "oi_day_high"},
    Mode.FULL: set[str](),
}

Row = dict[str, Any]


def make_row(tick_id: int, mode: Mode) -> Row:
    """A row in which no two values are the same, and no column that the mode has is NULL."""
    row: Row = {}
    for number, column in enumerate(TOLD):
        value: Any = tick_id * 1000 + number
        if column.name in ABSENT[mode]:
            value = None
        elif column.name == "mode":
            value = mode.value
        elif column.kind == "bool":
            value = tick_id % 2 == 0
        elif column.kind == "timestamptz":
            value = AT + timedelta(microseconds=value)
        elif column.kind == "float8":
            value += 0.05
        elif column.kind == "float8[]":
            value = [(value * 100 + level) / 100 for level in range(DEPTH_LEVELS)]
        elif column.kind.endswith("[]"):
            value = [(value + level) % (1 << 16) for level in range(DEPTH_LEVELS)]
        row[column.name] = value
    return row | {"tick_id": tick_id, "instrument_token": 1 << 40 | tick_id, "time": AT}


def batch_of(rows: list[Row], mode: Mode) -> TickBatch:
    def number(value: Any, kind: str) -> Any:
        if isinstance(value, list):
            return [number(item, kind) for item in value]
        if value is None:
            return np.nan if kind.startswith("float8") else NULL_INT
        return (value - EPOCH) // timedelta(microseconds=1) if kind == "timestamptz" else value

    return TickBatch(
        mode,
        {
            column.name: np.array([number(row[column.name], column.kind) for row in rows])
            for column in TOLD
            if column.name != "mode" and column.name not in ABSENT[mode]
        },
        np.full(len(rows), float(SCALE)),
    )


def stored(conn: connection, batches: list[TickBatch]) -> list[Row]:
    """What PostgreSQL has read from the stream, by tick_id; nothing stays."""
    with conn.cursor() as cursor:
        ensure_partitions(conn, AT_NS, AT_NS + 1)
        ensure_partitions(conn, OTHER_NS, OTHER_NS + 1)
        cursor.copy_expert(
            f"COPY tick_rows ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(tick_copy(batches))
        )
        cursor.execute(f"SELECT {NAMES} FROM ticks ORDER BY tick_id")
        rows = [dict(zip((column.name for column in TOLD), row, strict=True)) for row in cursor.fetchall()]
    conn.rollback()
    return rows


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("count", [1, 3, 2500])
def test_every_column_of_every_mode_arrives(conn: connection, mode: Mode, count: int) -> None:
    rows = [make_row(tick_id, mode) for tick_id in range(count)]
    assert stored(conn, [batch_of(rows, mode)]) == rows


NULLABLE = [column for column in TOLD if not column.required and column.kind not in ("int8[]", "int4[]")]


@pytest.mark.parametrize("name", [column.name for column in NULLABLE])
def test_an_absent_value_arrives_as_null(conn: connection, name: str) -> None:
    rows = [make_row(tick_id, Mode.FULL) for tick_id in range(3)]
    in_array = isinstance(rows[1][name], list)
    rows[1][name] = [None] * DEPTH_LEVELS if in_array else None
    assert stored(conn, [batch_of(rows, Mode.FULL)]) == rows


def test_rows_of_all_modes_travel_together(conn: connection) -> None:
    rows = [make_row(tick_id, list(Mode)[tick_id % 3]) for tick_id in range(30)]
    batches = [batch_of([row], Mode(row["mode"])) for row in rows]
    assert stored(conn, batches) == rows


def test_batches_of_one_mode_with_different_columns_travel_together(conn: connection) -> None:
    rows = [make_row(0, Mode.QUOTE), make_row(1, Mode.QUOTE)]
    rows[1]["oi"] = None
    batches = [batch_of([row], Mode.QUOTE) for row in rows]
    batches[1] = TickBatch(Mode.QUOTE, {name: batches[1].columns[name] for name in batches[1].columns if name != "oi"})
    assert stored(conn, batches) == rows


def test_values_keep_every_bit(conn: connection) -> None:
    rows = [make_row(0, Mode.FULL)]
    rows[0] |= {"volume_traded": 2**63 - 1, "oi": -1, "last_price": 0.1 + 0.2, "day_low": 5e-324}
    rows[0] |= {"bid_orders": [2**16 - 1, 0, 1, 2, 3], "time": datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)}
    rows[0] |= {"ask_quantities": [2**32 - 1, 0, 2**31, 2, 3], "bid_prices": [(2**32 - 1) / 100, 0.01, 1.1, 0.29, None]}
    assert stored(conn, [batch_of(rows, Mode.FULL)]) == rows


def test_views_of_the_wire_serve_as_columns(conn: connection) -> None:
    row = make_row(7, Mode.FULL) | {"volume_traded": 2**32 - 1, "bid_orders": [65535, 1, 2, 3, 4]}
    columns = dict(batch_of([row], Mode.FULL).columns)
    wire = np.frombuffer(
        b"\0" + struct.pack("<I5H", 2**32 - 1, 65535, 1, 2, 3, 4), [("", "u1"), ("v", "<u4"), ("o", "<u2", 5)]
    )
    columns |= {"volume_traded": wire["v"], "bid_orders": wire["o"]}
    assert stored(conn, [TickBatch(Mode.FULL, columns, np.array([float(SCALE)]))]) == [row]


def test_depth_prices_have_the_decimals_of_their_row(conn: connection) -> None:
    rows = [make_row(tick_id, Mode.FULL) for tick_id in range(2)]
    rows[0]["ask_prices"] = [85.0025, 85.005, 85.0075, 85.01, 429_496.7295]
    batches = [batch_of([row], Mode.FULL) for row in rows]
    batches[0] = TickBatch(Mode.FULL, batches[0].columns, np.array([10_000.0]))
    rows[0]["bid_prices"] = rows[1]["bid_prices"]
    columns = {**batches[0].columns, "bid_prices": batches[1].columns["bid_prices"]}
    batches[0] = TickBatch(Mode.FULL, columns, np.array([10_000.0]))
    assert stored(conn, batches) == rows


@pytest.mark.parametrize("seed", range(3))
def test_the_view_has_every_column_as_it_was_enriched_to_the_last_bit(conn: connection, seed: int) -> None:
    messages = market_messages(3000, seed)
    offsets = np.array([0, *np.cumsum(list(map(len, messages)))])
    received_ns = np.full(len(messages), START_NS + SECOND_NS)
    instruments = InstrumentIndex(TOKENS)
    decoded = decode(b"".join(messages), offsets)
    state = MarketState(len(instruments))
    enriched = enrich(decoded, np.array([1]), np.array([0, len(messages)]), received_ns, instruments, state)
    expected: dict[int, dict[str, Any]] = {}
    for batch in enriched.ticks:
        columns = {**batch.columns, **derived(batch.columns)}
        for at, tick_id in enumerate(columns["tick_id"].tolist()):
            row = {name: values[at].tolist() for name, values in columns.items()}
            expected[tick_id] = dict.fromkeys((c.name for c in COLUMNS), None) | row | {"mode": batch.mode.value}
    with conn.cursor() as cursor:
        ensure_partitions(conn, START_NS, START_NS + 1)
        cursor.copy_expert(
            f"COPY tick_rows ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(tick_copy(enriched.ticks))
        )
        cursor.execute(f"SELECT {', '.join(c.name for c in COLUMNS)} FROM ticks")
        stored = [dict(zip((c.name for c in COLUMNS), row, strict=True)) for row in cursor.fetchall()]
    assert len(stored) == len(expected) > 2000
    for row in stored:
        assert {name: bits(value) for name, value in row.items()} == {
            name: bits(value) for name, value in expected[row["tick_id"]].items()
        }


def bits(value: Any) -> Any:
    """What tells values apart to the last bit; all that is absent is alike."""
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(microseconds=1)
    if value is None or value == NULL_INT or value != value:
        return None
    return struct.pack(">d", value) if isinstance(value, float) else value


def test_no_rows_make_an_empty_stream(conn: connection) -> None:
    assert tick_copy([]) == b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff"
    assert stored(conn, []) == []


def test_a_batch_without_rows_leaves_no_trace() -> None:
    rows = [make_row(tick_id, Mode.FULL) for tick_id in range(3)]
    nothing = [batch_of(rows, mode) for mode in Mode]
    nothing = [
        replace(batch, columns={name: values[:0] for name, values in batch.columns.items()}) for batch in nothing
    ]
    assert tick_copy(nothing) == tick_copy([])
    batch = batch_of(rows, Mode.FULL)
    assert tick_copy([*nothing[:2], batch]) == tick_copy([batch])


def test_a_ticker_row_is_these_bytes() -> None:
    columns = {
        "tick_id": np.array([1]),
        "time": np.array([946_684_800_000_002]),
        "instrument_token": np.array([3]),
        "last_price": np.array([1.5]),
        "day_close": np.array([np.nan]),
        "tradable": np.array([True]),
    }
    null = b"\xff\xff\xff\xff"
    values = {
        "tick_id": struct.pack(">iq", 8, 1),
        "time": struct.pack(">iq", 8, 2),
        "instrument_token": struct.pack(">iq", 8, 3),
        "last_price": struct.pack(">id", 8, 1.5),
        "tradable": struct.pack(">i?", 1, True),
        "mode": struct.pack(">i", 6) + b"ticker",
    }
    row = struct.pack(">h", len(STORED)) + b"".join(values.get(name, null) for name in STORED)
    assert tick_copy([TickBatch(Mode.TICKER, columns)])[19:-2] == row


nullable = st.sampled_from(NULLABLE)
holes = st.tuples(st.integers(0, 19), nullable, st.integers(0, DEPTH_LEVELS - 1))


@settings(max_examples=100)
@given(st.lists(holes, max_size=80), st.integers(0, 20))
def test_any_pattern_of_nulls_is_laid_out_as_the_format_says(gaps: list[tuple[int, Any, int]], cut: int) -> None:
    rows = [make_row(tick_id, Mode.FULL) for tick_id in range(20)]
    for at, column, level in gaps:
        if isinstance(rows[at][column.name], list):
            rows[at][column.name][level] = None
        else:
            rows[at][column.name] = None
    batches = [batch_of(part, Mode.FULL) for part in (rows[:cut], rows[cut:]) if part]
    assert tick_copy(batches)[19:-2] == b"".join(map(encoded, rows))


def encoded(row: Row) -> bytes:
    """The row by the letter of PostgreSQL's manual, one value after another."""
    formats = {"bool": "?", "int8": "q", "float8": "d"}

    def sized(value: bytes | None) -> bytes:
        return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value

    def field(value: Any, kind: str) -> bytes | None:
        if value is None:
            return None
        if kind == "text":
            return str(value).encode()
        if kind == "timestamptz":
            return struct.pack(">q", (value - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
        return struct.pack(">" + formats[kind], value)

    prices = [round((price or 0) * SCALE) for price in (*row["bid_prices"], *row["ask_prices"])]
    numbers = [*row["bid_quantities"], *row["ask_quantities"], *row["bid_orders"], *row["ask_orders"]]
    fields = [field(row[column.name], column.kind) for column in COLUMNS if column.name in STORED]
    return struct.pack(">h", len(STORED)) + b"".join(
        map(sized, [*fields, struct.pack(">H10I10I10H", SCALE, *prices, *numbers)])
    )
