"""The ticks of both brokers in an hour, for comparing them; and what that came to, written into the database."""

import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection

from dhan_pipeline.store.ledger import hour_bounds
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.records import RecordKind, read_records
from dhan_pipeline.ticks import NULL_INT

#: Columns of `shadow_comparisons` but for the hour, with their types in Arrow.
COLUMNS: dict[str, pa.DataType] = {
    "dhan_token": pa.int64(),
    "kite_token": pa.int64(),
    "dhan_ticks": pa.int64(),
    "kite_ticks": pa.int64(),
    "dhan_seconds": pa.int64(),
    "kite_seconds": pa.int64(),
    "seconds": pa.int64(),
    "agreeing_seconds": pa.int64(),
    "price_differs_seconds": pa.int64(),
    "price_difference": pa.float64(),
    "price_differs_most_at": pa.timestamp("us", "UTC"),
    "volume_differs_seconds": pa.int64(),
    "volume_difference": pa.float64(),
    "dhan_volume": pa.int64(),
    "kite_volume": pa.int64(),
    "dhan_missing_seconds": pa.int64(),
    "kite_missing_seconds": pa.int64(),
    "shared_states": pa.int64(),
    "lag_median_ms": pa.float64(),
    "lag_p99_ms": pa.float64(),
    "dhan_trade_delay_ms": pa.float64(),
    "kite_trade_delay_ms": pa.float64(),
}

_TICK_COLUMNS: dict[str, RecordKind] = {
    "tick_id": "int8",
    "time": "timestamptz",
    "instrument_token": "int8",
    "last_price": "float8",
    "volume_traded": "int8",
    "last_trade_time": "timestamptz",
}


def count_ticks(conn: connection, start_ns: int, end_ns: int) -> dict[int, int]:
    """Ticks received in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC), by instrument. No commit."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, count(*) FROM tick_rows WHERE time >= %s AND time < %s GROUP BY 1",
            (instant(start_ns), instant(end_ns)),
        )
        return dict(cursor.fetchall())


def read_ticks(conn: connection, tokens: Collection[int], start_ns: int, end_ns: int) -> dict[str, NDArray[Any]]:
    """The ticks of some instruments received in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC), in no order.

    Columns of shape (ticks,): tick_id, time, instrument_token, last_price (rupees, NaN: absent), volume_traded (units,
    NULL_INT: absent), last_trade_time (NULL_INT: never); times are microseconds since the Unix epoch, UTC. Leaves the
    transaction open.
    """
    return read_records(
        conn,
        "SELECT tick_id, time, instrument_token, coalesce(last_price, 'NaN'), "
        f"coalesce(volume_traded, {NULL_INT}), coalesce(last_trade_time, '-infinity') FROM tick_rows "
        "WHERE time >= %s AND time < %s AND instrument_token = ANY(%s::bigint[])",
        (instant(start_ns), instant(end_ns), list(tokens)),
        _TICK_COLUMNS,
    )


def replace_shadow_comparisons(conn: connection, hour: str, columns: Mapping[str, NDArray[Any]]) -> None:
    """Replace the rows of an hour, in one transaction. `hour` is a partition key (IST).

    `columns` are those of `COLUMNS`, of shape (pairs,): NaN is NULL, and so is NULL_INT; times are microseconds since
    the Unix epoch, UTC.
    """
    (start, _) = hour_bounds(hour)
    arrays = {
        name: pa.array(columns[name], kind, mask=np.isnan(columns[name]) | (columns[name] == NULL_INT))
        for name, kind in COLUMNS.items()
    }
    table = pa.table({"hour": pa.repeat(pa.scalar(start.isoformat()), len(columns["dhan_token"])), **arrays})
    lines = io.BytesIO()
    pyarrow.csv.write_csv(table, lines, pyarrow.csv.WriteOptions(include_header=False))
    lines.seek(0)
    into = sql.SQL(", ").join(map(sql.Identifier, table.column_names))
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM shadow_comparisons WHERE hour = %s", (start,))
        cursor.copy_expert(sql.SQL("COPY shadow_comparisons ({}) FROM STDIN (FORMAT csv)").format(into), lines)
