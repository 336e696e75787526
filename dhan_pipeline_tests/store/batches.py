"""Batches of ticks in which anything may be absent, stored, and compared to the last bit."""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
from psycopg2.extensions import connection, cursor

from dhan_pipeline.enrich import DERIVED, derived
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Mode, TickBatch

AT_NS = 1_795_147_200_000_000_000  # 2026-11-20 09:30 IST
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RELIANCE, USDINR = generate_instrument_token("NSE_EQ", 2885), generate_instrument_token("NSE_CURRENCY", 1)

#: What a mode never has.
ABSENT = {
    Mode.TICKER: {c.name for c in COLUMNS if not c.required} - {"last_price", "last_trade_time", "day_close"},
    Mode.QUOTE: {c.name for c in COLUMNS if c.kind.endswith("[]")} | {"oi_day_high", "oi_day_low"},
    Mode.FULL: set[str](),
}


def make_batch(
    mode: Mode, rows: int, seed: int = 0, absent: float = 0.0, *, at_ns: int = AT_NS, every_us: int = 1
) -> TickBatch:
    """Rows of a rupee and of a currency instrument, so far apart; any value that may be absent is, as often as told."""
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
    columns["tick_id"] = list(Mode).index(mode) * 1_000 + np.arange(rows) + (at_ns - AT_NS) // 1_000_000
    columns["time"] = at_ns // 1000 + random.permutation(rows) * every_us
    columns["last_trade_time"] = np.where(random.random(rows) < absent, NULL_INT, 946_684_799_999_999)
    columns["instrument_token"] = token
    return TickBatch(mode, columns, scale)


@contextmanager
def stored(conn: connection, batches: list[TickBatch], relation: str = "tick_rows") -> Iterator[cursor]:
    """The rows in `tick_rows` or in a temporary table like it, until the end of the block."""
    with conn.cursor() as cur:
        if relation == "tick_rows":
            ensure_partitions(conn, AT_NS, AT_NS + 1)
        else:
            cur.execute(f"CREATE TEMPORARY TABLE {relation} (LIKE tick_rows) ON COMMIT DROP")
        _copy(cur, batches, relation)
        yield cur
    conn.rollback()


def store(conn: connection, batches: list[TickBatch]) -> None:
    """Make the partitions that they need, and commit them."""
    for batch in batches:
        times = batch.columns["time"]
        ensure_partitions(conn, int(times.min()) * 1000, int(times.max()) * 1000 + 1)
    with conn, conn.cursor() as cur:
        _copy(cur, batches, "tick_rows")


def _copy(cur: cursor, batches: list[TickBatch], relation: str) -> None:
    cur.copy_expert(f"COPY {relation} ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(tick_copy(batches)))


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


def add_lives(conn: connection, token: int, begins: list[datetime], name: str = "RELIANCE") -> None:
    """Let the token mean RELIANCE, RELIANCE-1 … in turn, each from its time on (the first, for ever before)."""
    with conn, conn.cursor() as cur:
        cur.execute(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol, instrument_type) "
            "VALUES (%s, 'dhan', 'NSE', %s, 'FUTSTK')",
            (token, name),
        )
        for at, begin in enumerate(begins):
            cur.execute(
                "INSERT INTO instrument_versions (instrument_token, valid_from, valid_to, source, exchange, "
                "trading_symbol, instrument_type, underlying_symbol, expiry, strike, option_type) "
                "VALUES (%s, %s, %s, 'dhan', 'NSE', %s, 'FUTSTK', %s, '2026-11-26', 12.5, 'CE')",
                (
                    token,
                    begin,
                    begins[at + 1] if at + 1 < len(begins) else None,
                    f"{name}-{at}" if at else name,
                    name,
                ),
            )
