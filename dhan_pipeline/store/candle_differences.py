"""The two sides of a day's reconciliation, read from the database, and what it found, written into it."""

import io
from collections.abc import Collection, Mapping
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.store.broker_candles import DAY, MINUTE
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.records import RecordKind, read_records
from dhan_pipeline.ticks import NULL_INT

_COLUMNS: dict[str, RecordKind] = {
    "instrument_token": "int8",
    "time": "timestamptz",
    "open": "float8",
    "high": "float8",
    "low": "float8",
    "close": "float8",
    "volume": "int8",
    "rest": "bool",
    "touches_gap": "bool",
    "starts_late": "bool",
}


def read_our_candles(conn: connection, start_ns: int, end_ns: int) -> dict[str, NDArray[Any]]:
    """Bars of `candles_1m` that begin in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC).

    Columns of shape (bars,): instrument_token, time (microseconds since the Unix epoch, UTC), open, high, low, close,
    volume (NULL_INT: unknown), rest (the broker's bar stands in), touches_gap, starts_late. Leaves the transaction
    open.
    """
    return read_records(
        conn,
        f"SELECT instrument_token, time, open, high, low, close, coalesce(volume, {NULL_INT}), source = 'rest', "
        "touches_gap, starts_late FROM candles_1m WHERE time >= %s AND time < %s",
        (instant(start_ns), instant(end_ns)),
        _COLUMNS,
    )


def our_day_volumes(conn: connection, start_ns: int, end_ns: int) -> dict[int, int]:
    """The volume of an IST day by instrument: the highest cumulative one of its ticks, else the sum of its bars.

    The day is [`start_ns`, `end_ns`) in ns since the Unix epoch, UTC. Leaves the transaction open.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, coalesce(of_ticks, of_bars)::bigint FROM "
            "(SELECT instrument_token, sum(volume) AS of_bars FROM candles_1m "
            "WHERE time >= %(start)s AND time < %(end)s GROUP BY 1) AS bars FULL JOIN "
            # The first packet after subscribing may carry the volume of the day before, and its trade's time.
            "(SELECT instrument_token, max(volume_traded) AS of_ticks FROM tick_rows "
            "WHERE time >= %(start)s AND time < %(end)s AND last_trade_time >= %(start)s GROUP BY 1) AS ticks "
            "USING (instrument_token) WHERE coalesce(of_ticks, of_bars) IS NOT NULL",
            {"start": instant(start_ns), "end": instant(end_ns)},
        )
        return dict(cursor.fetchall())


def broker_day_volumes(conn: connection, start_ns: int, end_ns: int) -> dict[int, int]:
    """The volume of an IST day by instrument as the broker says: that of its day's bar, else the sum of its minutes'.

    The day is [`start_ns`, `end_ns`) in ns since the Unix epoch, UTC. Leaves the transaction open.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, coalesce(nullif(sum(volume) FILTER (WHERE minutes = %(day)s), 0), "
            "sum(volume) FILTER (WHERE minutes = %(minute)s), 0)::bigint FROM broker_candles "
            "WHERE time >= %(start)s AND time < %(end)s GROUP BY 1",
            {"day": DAY, "minute": MINUTE, "start": instant(start_ns), "end": instant(end_ns)},
        )
        return dict(cursor.fetchall())


def replace_candle_differences(conn: connection, day: date, columns: Mapping[str, Collection[Any]]) -> None:
    """Replace the differences of an IST day, in one transaction.

    `columns` are instrument_token, time_s (seconds since the Unix epoch, UTC), field, ours, brokers (NaN is NULL),
    explained_by, each of shape (differences,).
    """
    table = pa.table(
        {
            "instrument_token": pa.array(columns["instrument_token"], pa.int64()),
            "time": pa.array(columns["time_s"], pa.timestamp("s", "UTC")),
            "field": pa.array(columns["field"], pa.string()),
            "ours": pa.array(columns["ours"], pa.float64(), from_pandas=True),
            "brokers": pa.array(columns["brokers"], pa.float64(), from_pandas=True),
            "explained_by": pa.array(columns["explained_by"], pa.string()),
        }
    ).add_column(0, "day", pa.repeat(day.isoformat(), len(columns["field"])))
    lines = io.BytesIO()
    # Without its quotes an empty text would be NULL.
    pyarrow.csv.write_csv(table, lines, pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    lines.seek(0)
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM candle_differences WHERE day = %s", (day,))
        cursor.copy_expert(
            "COPY candle_differences (day, instrument_token, time, field, ours, brokers, explained_by) "
            "FROM STDIN (FORMAT csv)",
            lines,
        )


def has_ticks(conn: connection, start_ns: int, end_ns: int) -> bool:
    """Whether there is a tick received in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC). No commit."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM tick_rows WHERE time >= %s AND time < %s)", (instant(start_ns), instant(end_ns))
        )
        return bool(cursor.fetchall()[0][0])
