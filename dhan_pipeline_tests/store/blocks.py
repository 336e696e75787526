"""Blocks of made-up ticks, received in one known hour."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.journal.block import make_block_id
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.ticks import StoredBlocks
from dhan_pipeline.ticks import COLUMNS, NULL_INT, POSITION_BITS, Enriched, Mode, Rejection, TickBatch


class StandingClock(Clock):
    """Always shows the same time: seconds after 09:00 IST of 2026-11-20."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._at_ns = parse_hour_key("2026-11-20T09:00") + int(seconds * 1e9)

    def now_ns(self) -> int:
        """The one time."""
        return self._at_ns


def _columns(mode: Mode, rows: int, price: float) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for number, column in enumerate(COLUMNS):
        if mode is Mode.TICKER and column.name not in ("last_price", "last_trade_time"):
            continue
        shape = (rows, 5) if column.kind.endswith("[]") else rows
        if column.kind.startswith("float8"):
            columns[column.name] = np.full(shape, price + number)
        elif column.kind.startswith("int"):
            columns[column.name] = np.full(shape, number, np.int64)
    columns["last_price"][:1] = np.nan
    columns["last_trade_time"] = np.full(rows, NULL_INT)
    return columns


def make_block(
    number: int,
    *,
    ticks: int = 3,
    rejected: int = 0,
    capture: int = 0,
    at_s: float = 0.0,
    hour: str = "2026-11-20T09:00",
    price: float = 100.05,
) -> StoredBlocks:
    """Block `number` of a capture: `ticks` full and as many ticker ticks, received `at_s` into the hour."""
    received_ns = parse_hour_key(hour) + int(at_s * 1e9)
    block_id = make_block_id(capture, number)
    batches = []
    for part, mode in enumerate((Mode.FULL, Mode.TICKER)):
        columns = _columns(mode, ticks, price)
        columns["tick_id"] = (block_id << POSITION_BITS) + np.arange(ticks) + part * ticks
        columns["time"] = np.full(ticks, received_ns // 1000)
        columns["instrument_token"] = (1 << 40) + np.arange(ticks)
        columns["tradable"] = np.ones(ticks, bool)
        batches.append(TickBatch(mode, columns, np.full(ticks, 100.0)))
    enriched = Enriched(
        ticks=batches,
        rejected=[Rejection(2 * ticks + n, 1, f"reason {n}", bytes([n]), block_id) for n in range(rejected)],
        packets=np.array([2 * ticks + rejected + 3]),
        rows=np.array([2 * ticks]),
        state=np.array([2]),
        control=np.array([1]),
    )
    stretch = Stretch(
        block_ids=np.array([block_id]),
        first_messages=np.array([0, 2]),
        received_ns=np.array([received_ns, received_ns + 1_000_000]),
        connection=np.array([0, 3], np.uint8),
        text=np.zeros(2, np.bool_),
        payload=bytes(162 * ticks),
        offsets=np.array([0, 0, 162 * ticks]),
    )
    return StoredBlocks(stretch, enriched)


def fetch(conn: connection, query: str) -> list[tuple[Any, ...]]:
    """All that a query finds, in a transaction of its own."""
    with conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def count(conn: connection, table: str) -> int:
    """Rows of a table."""
    return int(fetch(conn, f"SELECT count(*) FROM {table}")[0][0])
