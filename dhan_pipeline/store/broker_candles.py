"""The broker's own bars, and what its history was asked for: so an interrupted fetch goes on where it was."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.feeds.history import BrokerBars
from dhan_pipeline.instruments import source_of
from dhan_pipeline.sources import Source
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.records import RecordKind, read_records
from dhan_pipeline.ticks import NULL_INT

#: Lengths of bars, in minutes.
MINUTE, DAY = 1, 1440

_COLUMNS: dict[str, RecordKind] = {
    "instrument_token": "int8",
    "time": "timestamptz",
    "open": "float8",
    "high": "float8",
    "low": "float8",
    "close": "float8",
    "volume": "int8",
    "oi": "int8",
}


def write_broker_candles(
    conn: connection, instrument_token: int, minutes: int, bars: BrokerBars, fetched_at: datetime
) -> None:
    """Insert an instrument's bars, or replace those that are there. `minutes` is MINUTE or DAY.

    Leaves the transaction open, so that `note_fetch` is committed with it.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO broker_candles "
            "(instrument_token, minutes, time, open, high, low, close, volume, oi, fetched_at) "
            "SELECT %s, %s, to_timestamp(time_s), open, high, low, close, volume, nullif(oi, %s), %s "
            "FROM unnest(%s::bigint[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::bigint[], "
            "%s::bigint[]) AS bar (time_s, open, high, low, close, volume, oi) "
            "ON CONFLICT (instrument_token, minutes, time) DO UPDATE SET open = excluded.open, "
            "high = excluded.high, low = excluded.low, close = excluded.close, volume = excluded.volume, "
            "oi = excluded.oi, fetched_at = excluded.fetched_at",
            (
                instrument_token,
                minutes,
                NULL_INT,
                fetched_at,
                *(
                    column.tolist()
                    for column in (bars.time_s, bars.open, bars.high, bars.low, bars.close, bars.volume, bars.oi)
                ),
            ),
        )


def read_broker_candles(conn: connection, minutes: int, start_ns: int, end_ns: int) -> dict[str, NDArray[Any]]:
    """All bars of a length that begin in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC), by instrument and time.

    Columns of shape (bars,): instrument_token, time (microseconds since the Unix epoch, UTC), open, high, low, close,
    volume, oi (NULL_INT: absent). Leaves the transaction open.
    """
    return read_records(
        conn,
        f"SELECT instrument_token, time, open, high, low, close, volume, coalesce(oi, {NULL_INT}) FROM broker_candles "
        "WHERE minutes = %s AND time >= %s AND time < %s ORDER BY instrument_token, time",
        (minutes, instant(start_ns), instant(end_ns)),
        _COLUMNS,
    )


def note_fetch(
    conn: connection,
    instrument_token: int,
    start_ns: int,
    end_ns: int,
    bars: int,
    fetched_at: datetime,
    partial: bool = False,
) -> None:
    """Note that the minutes from `start_ns` to `end_ns` were asked for, and so many bars came. No commit.

    `partial`: the broker may have more.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO broker_fetches (instrument_token, started_at, ended_at, fetched_at, bars, partial) "
            "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (instrument_token, started_at, ended_at) "
            "DO UPDATE SET fetched_at = excluded.fetched_at, bars = excluded.bars, partial = excluded.partial",
            (instrument_token, instant(start_ns), instant(end_ns), fetched_at, bars, partial),
        )


def fetched(conn: connection, start_ns: int, end_ns: int, since_ns: int = 0) -> dict[int, bool]:
    """The instruments of which all minutes of [`start_ns`, `end_ns`) were asked for at `since_ns` or later (ns, UTC).

    Each with whether the broker may have more bars than came. Leaves the transaction open.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, bool_and(partial) FROM broker_fetches "
            "WHERE started_at <= %s AND ended_at >= %s AND fetched_at >= %s GROUP BY instrument_token",
            (instant(start_ns), instant(end_ns), instant(since_ns)),
        )
        return dict(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class Contract:
    """What a token meant at a time, as far as the broker's history asks about it."""

    instrument_token: int
    instrument_type: str
    """As the broker's master writes it: INDEX, EQUITY, FUTIDX, OPTSTK ... of Dhan's; EQ, FUT, CE, PE of Kite's."""
    exchange_segment: str
    symbol: str
    underlying: str | None
    expiry: date | None
    strike: float | None
    option_type: str | None
    """CE or PE."""
    tick_size: float | None
    """In rupees."""
    active: bool
    """Whether the broker's latest master still lists it."""


def contracts(conn: connection, tokens: Collection[int], at_ns: int) -> dict[int, Contract]:
    """What these tokens meant at a time (ns since the Unix epoch, UTC), as far as is known. No commit."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, coalesce(instrument_type, ''), coalesce(exchange_segment, ''), trading_symbol, "
            "underlying_symbol, expiry, strike::float8, option_type, tick_size::float8, "
            "EXISTS (SELECT FROM instruments AS now WHERE now.instrument_token = life.instrument_token "
            "AND now.is_active AND now.expiry IS NOT DISTINCT FROM life.expiry) "
            "FROM instrument_lives AS life "
            "WHERE instrument_token = ANY (%s) AND valid_from <= %s AND valid_to > %s",
            (list(tokens), instant(at_ns), instant(at_ns)),
        )
        return {row[0]: Contract(*row) for row in cursor.fetchall()}


def instruments_with_ticks(conn: connection, source: Source, start_ns: int, end_ns: int) -> list[int]:
    """A source's instruments with ticks received in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC).

    Those with most ticks come first. Leaves the transaction open.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token FROM tick_rows WHERE time >= %s AND time < %s GROUP BY instrument_token "
            "ORDER BY count(*) DESC, instrument_token",
            (instant(start_ns), instant(end_ns)),
        )
        return [token for (token,) in cursor.fetchall() if source_of(token) == source]


def underlying_id(conn: connection, underlying: str, instrument_type: str) -> int | None:
    """Dhan's security id of what options derive from: an index for OPTIDX, an equity of NSE for OPTSTK. No commit."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT security_id FROM instruments WHERE source = 'dhan' AND exchange_segment = %s "
            "AND trading_symbol = %s ORDER BY series = 'EQ' DESC NULLS LAST, is_active DESC LIMIT 1",
            ("IDX_I" if instrument_type == "OPTIDX" else "NSE_EQ", underlying),
        )
        found = cursor.fetchone()
        return None if found is None else int(found[0])


def expiries_from(conn: connection, underlying: str, instrument_type: str, day: date) -> list[date]:
    """The expiries of an underlying's options that Dhan's master had, from a day (IST) on, ascending. No commit."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT expiry FROM instrument_lives WHERE source = 'dhan' "
            "AND upper(underlying_symbol) = upper(%s) AND instrument_type = %s AND expiry >= %s ORDER BY expiry",
            (underlying, instrument_type, day),
        )
        return [expiry for (expiry,) in cursor.fetchall()]


def closes_of(conn: connection, instrument_token: int, first_s: int, last_s: int) -> dict[int, float]:
    """Closes of an instrument's candles built from ticks, by start in seconds since the Unix epoch, UTC. No commit."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM time)::bigint, close FROM candles_1m WHERE instrument_token = %s "
            "AND source = 'ticks' AND time BETWEEN to_timestamp(%s) AND to_timestamp(%s)",
            (instrument_token, first_s, last_s),
        )
        return dict(cursor.fetchall())
