"""Bars of an hour: made anew from its ticks, with the broker's own where packets were missed; and read back.

An hour of `candles_1m` is a pure function of `ticks`, `feed_gaps` and the broker's bars, as far as they were asked for
(`broker_candles`, `broker_fetches`): neither what is in it already nor other hours of it matter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection, cursor

from dhan_pipeline.candles import LATE_S, Bars, Earlier, GapTimes, minute_bars
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.history import SETTLED_AFTER_S
from dhan_pipeline.sessions import HOUR_NS, day_start_ns, hour_key, hour_start_ns, parse_hour_key
from dhan_pipeline.sources import source_of_capture
from dhan_pipeline.store.gaps import read_gaps
from dhan_pipeline.store.ledger import hour_bounds
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.records import RecordKind, read_records
from dhan_pipeline.ticks import NULL_INT

#: Where bars of so many minutes are.
RELATIONS = {1: "candles_1m", 5: "candles_5m", 15: "candles_15m", 60: "candles_60m", 1440: "candles_1d"}

#: An hour of more ticks is made in parts, by instrument. They take 220 bytes each.
TICKS_AT_ONCE = 4_000_000

#: First number of the advisory lock that lets one process make an hour at a time.
_CANDLES_LOCK = 0x6468_0008

_LATE_NS = LATE_S * 1_000_000_000
_NULL = str(NULL_INT)

#: The broker has a minute's bar so long after the minute's start.
_SETTLED = timedelta(seconds=60 + SETTLED_AFTER_S)

#: The volume of an index is 0 for ever, and none.
_VOLUME = "CASE WHEN tradable THEN volume_traded END"

#: Kite says when the last trade was in full mode only. What comes in others before 09:00 IST is no trade of today's.
_HAS_NO_TRADE_TIME = """
(last_trade_time IS NULL AND instrument_token < 4294967296 AND (time AT TIME ZONE 'Asia/Kolkata')::time >= '09:00')
"""
_TRADED_AT = f"CASE WHEN {_HAS_NO_TRADE_TIME} THEN time ELSE last_trade_time END"

_TICKS = f"""
SELECT tick_id, time, instrument_token, coalesce({_TRADED_AT}, '-infinity'), {_HAS_NO_TRADE_TIME},
    coalesce(last_price, 'NaN'), coalesce(last_traded_quantity, {_NULL}), coalesce({_VOLUME}, {_NULL}),
    coalesce(oi, {_NULL})
FROM tick_rows WHERE time >= %s AND time < %s AND (%s = 1 OR instrument_token %% %s = %s)
"""
_TICK_COLUMNS: dict[str, RecordKind] = {
    "tick_id": "int8",
    "time": "timestamptz",
    "instrument_token": "int8",
    "last_trade_time": "timestamptz",
    "trade_time_is_receipt": "bool",
    "last_price": "float8",
    "last_traded_quantity": "int8",
    "volume_traded": "int8",
    "oi": "int8",
}

#: A trade day and its volume as one number, of which the highest is the latest day's highest volume.
_VOLUME_BITS = 44

_EARLIER = f"""
SELECT instrument_token,
    coalesce(max(((({_TRADED_AT} AT TIME ZONE 'Asia/Kolkata')::date - DATE '1970-01-01')::bigint << {_VOLUME_BITS})
        + {_VOLUME}) FILTER (WHERE last_price IS NOT NULL), 0),
    max(time),
    count({_VOLUME}) > 0,
    coalesce(bool_or({_TRADED_AT} BETWEEN time - %(late)s AND time + %(late)s AND last_price IS NOT NULL), false)
FROM tick_rows WHERE time >= %(start)s AND time < %(end)s AND instrument_token = ANY(%(tokens)s)
GROUP BY instrument_token
"""
_EARLIER_COLUMNS: dict[str, RecordKind] = {
    "instrument_token": "int8",
    "day_and_volume": "int8",
    "received": "timestamptz",
    "seen": "bool",
    "printed": "bool",
}

_COLUMNS = (
    "instrument_token",
    "time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "turnover",
    "oi",
    "ticks",
    "touches_gap",
    "starts_late",
    "source",
)

_MAY_BE_ABSENT = ("volume", "turnover", "oi")

# The broker's bars for the minutes of instruments with a gap in them (of all, where the gap names none), and for our
# bars that touch one. An index is not traded, whatever the broker's bar says; a minute in which nothing else was traded
# is no bar.
_STAND_INS = """
WITH gaps AS (
    SELECT concerned, capture < 16 AS of_dhan, greatest(started_at, %(start)s) AS start,
        least(ended_at, %(end)s) AS until
    FROM feed_gaps LEFT JOIN LATERAL unnest(instruments) AS concerned ON true
    WHERE started_at < %(end)s AND (ended_at IS NULL OR ended_at > %(start)s)
), minutes AS (
    SELECT DISTINCT concerned, of_dhan, minute
    FROM gaps, generate_series(date_trunc('minute', start), until, interval '1 minute') AS minute WHERE minute < until
), wanted AS (
    SELECT concerned AS instrument_token, minute AS time FROM minutes WHERE concerned IS NOT NULL
    UNION
    SELECT instrument_token, time FROM candles_1m WHERE time >= %(start)s AND time < %(end)s AND touches_gap
    UNION
    SELECT instrument_token, time FROM broker_candles
    WHERE minutes = 1 AND time >= %(start)s AND time < %(end)s
        AND (time, instrument_token >= 4294967296) IN (SELECT minute, of_dhan FROM minutes WHERE concerned IS NULL)
), stand_ins AS (
    SELECT instrument_token, time, open, high, low, close,
        CASE WHEN NOT is_index(instrument_token) THEN volume END AS volume, oi
    FROM broker_candles JOIN wanted USING (instrument_token, time)
    WHERE minutes = 1 AND time >= %(start)s AND time < %(end)s AND (volume > 0 OR is_index(instrument_token))
)
"""
_STAND_IN = f"""{_STAND_INS}
INSERT INTO candles_1m AS ours
SELECT instrument_token, time, open, high, low, close, volume, NULL, oi, 0, true, false, 'rest' FROM stand_ins
ON CONFLICT (instrument_token, time) DO UPDATE SET
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close, volume = excluded.volume,
    turnover = NULL, oi = excluded.oi, touches_gap = true, source = 'rest'
"""

# After a gap the first packet may tell of a trade of long ago, which is in the broker's bar of another minute.
_NOT_TRADED = """
candles_1m AS ours WHERE time >= %(start)s AND time < %(end)s AND touches_gap AND source = 'ticks'
    AND EXISTS (
        SELECT FROM broker_fetches AS asked
        WHERE asked.instrument_token = ours.instrument_token AND started_at <= ours.time AND ended_at > ours.time
            AND fetched_at >= ours.time + %(settled)s AND bars > 0 AND NOT partial)
    AND NOT EXISTS (
        SELECT FROM broker_candles AS theirs
        WHERE theirs.instrument_token = ours.instrument_token AND minutes = 1 AND theirs.time = ours.time
            AND (theirs.volume > 0 OR is_index(theirs.instrument_token)))
"""
_CAN_CHANGE = f"""{_STAND_INS}
SELECT EXISTS (SELECT FROM {_NOT_TRADED}) OR EXISTS (
    SELECT instrument_token, time, open, high, low, close, volume, oi FROM stand_ins
    EXCEPT
    SELECT instrument_token, time, open, high, low, close, volume, oi FROM candles_1m
    WHERE time >= %(start)s AND time < %(end)s AND source = 'rest')
"""


class CandlesRefusedError(PipelineError):
    """The hour's bars cannot be made."""


@dataclass(frozen=True, slots=True)
class CandleHour:
    """What an hour of `candles_1m` adds up to."""

    bars: int
    instruments: int
    touching_gap: int
    """Bars that touch a gap, those of the broker's among them."""
    from_rest: int
    """Bars of the broker's."""
    of_minute: tuple[int, ...]
    """Bars of each of the 60 minutes."""


def rebuild_candles(conn: connection, hour: str, now_ns: int) -> CandleHour:
    """Replace an hour's bars by what its ticks say, in one transaction. `hour` is a partition key (IST).

    Where a minute touches a gap, or has no bar and lies in a gap of the instrument, the broker's own bar stands in, if
    `broker_candles` has it; where the broker was asked and has none, nothing was traded. `now_ns` is in ns since the
    Unix epoch, UTC. What was known of an instrument before comes from the day's ticks: from those of the hour before,
    and from earlier hours for what was not in it.

    Raises ValueError for what is no hour, CandlesRefusedError where packets of the hour may still come, and where
    `ticks` holds nothing of it, unless nothing came and the broker has bars. Nothing is changed then.
    """
    start_ns = parse_hour_key(hour)
    end_ns = start_ns + HOUR_NS
    if now_ns < end_ns + _LATE_NS:
        raise CandlesRefusedError(
            f"The hour {hour} cannot have its candles yet: trades come up to {LATE_S // 60} minutes late."
        )
    with conn, conn.cursor() as cur:
        cur.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_CANDLES_LOCK, start_ns // HOUR_NS))
        booked = ticks_booked(conn, hour)
        has_ticks = False

        def bars() -> Iterator[Bars]:
            nonlocal has_ticks
            parts = 1 + booked // TICKS_AT_ONCE
            for part in range(parts):
                ticks, earlier, gaps = read_hour(conn, hour, part, parts)
                has_ticks |= bool(((ticks["time"] >= start_ns // 1000) & (ticks["time"] < end_ns // 1000)).any())
                yield minute_bars(ticks, earlier, gaps, start_ns // 1000)

        made = replace_bars(cur, hour, bars())
        if not has_ticks:
            if booked:
                raise CandlesRefusedError(
                    f"The ticks of the hour {hour} are no longer in the database: materialise them first."
                )
            if not made.bars:
                raise CandlesRefusedError(f"The table of ticks holds nothing of the hour {hour}.")
    return made


def read_hour(
    conn: connection, hour: str, part: int = 0, parts: int = 1
) -> tuple[dict[str, NDArray[Any]], Earlier, GapTimes]:
    """What `minute_bars` makes the bars of an hour of. `hour` is a partition key (IST). Leaves the transaction open.

    With `parts`, of every so many-th instrument, `part` counting from 0.
    """
    start_ns = parse_hour_key(hour) - _LATE_NS
    end_ns = start_ns + HOUR_NS + 2 * _LATE_NS
    ticks = read_records(conn, _TICKS, (instant(start_ns), instant(end_ns), parts, parts, part), _TICK_COLUMNS)
    gaps = _gaps(conn, day_start_ns(start_ns), end_ns, np.unique(ticks["instrument_token"]))
    return ticks, _earlier(conn, start_ns, ticks), gaps


def replace_bars(cur: cursor, hour: str, parts: Iterable[Bars]) -> CandleHour:
    """Replace an hour's bars by these, then some of these by the broker's. Leaves the transaction open."""
    start, end = hour_bounds(hour)
    bounds = {"start": start, "end": end, "settled": _SETTLED}
    cur.execute("DELETE FROM candles_1m WHERE time >= %(start)s AND time < %(end)s", bounds)
    for bars in parts:
        _copy(cur, bars)
    cur.execute(_STAND_IN, bounds)
    cur.execute(f"DELETE FROM {_NOT_TRADED}", bounds)
    return _summary(cur, bounds)


def ticks_booked(conn: connection, hour: str) -> int:
    """Ticks that the ledger has of the hour of a partition key: also where `ticks` holds them no more.

    Leaves the transaction open.
    """
    with conn.cursor() as cur:
        cur.execute("SELECT coalesce(sum(ticks), 0) FROM ingest_ledger WHERE hour = %s", hour_bounds(hour)[:1])
        ticks: int = cur.fetchall()[0][0]
    return ticks


def hours_to_renew(conn: connection, start_ns: int, end_ns: int) -> list[str]:
    """Keys of the hours in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC) in which other bars can stand in.

    Those with a minute in a gap, or a bar that touches one, of which the broker's bar came since, or is another now.
    Leaves the transaction open.
    """
    hours = [hour_key(hour_ns) for hour_ns in range(hour_start_ns(start_ns), end_ns, HOUR_NS)]
    with conn.cursor() as cur:

        def renewable(hour: str) -> bool:
            start, end = hour_bounds(hour)
            cur.execute(_CAN_CHANGE, {"start": start, "end": end, "settled": _SETTLED})
            return bool(cur.fetchall()[0][0])

        return [hour for hour in hours if renewable(hour)]


def read_candles(
    conn: connection, instrument_tokens: Sequence[int], start: datetime, end: datetime, minutes: int = 1
) -> pa.Table:
    """Bars of 1, 5, 15, 60 or 1440 minutes that begin in [start, end) (aware), by instrument and time.

    The columns are those of `candles_1m`; times are UTC. Leaves the transaction open. Raises ValueError for another
    length.
    """
    if minutes not in RELATIONS:
        raise ValueError(f"there are bars of {', '.join(map(str, RELATIONS))} minutes, not of {minutes}")
    kinds: dict[str, RecordKind] = {"instrument_token": "int8", "time": "timestamptz"}
    kinds |= dict.fromkeys(("open", "high", "low", "close"), "float8")
    kinds |= {"volume": "int8", "turnover": "float8", "oi": "int8", "ticks": "int8"}
    kinds |= {"touches_gap": "bool", "starts_late": "bool", "source": "int2"}
    sources = ("ticks", "rest", "mixed")
    query = sql.SQL(
        "SELECT instrument_token, time, open, high, low, close, coalesce(volume, {null}), coalesce(turnover, 'NaN'),"
        " coalesce(oi, {null}), ticks::bigint, touches_gap, starts_late, array_position({sources}, source)::smallint"
        " FROM {relation} WHERE instrument_token = ANY(%s) AND time >= %s AND time < %s ORDER BY instrument_token, time"
    ).format(
        null=sql.Literal(NULL_INT), sources=sql.Literal(list(sources)), relation=sql.Identifier(RELATIONS[minutes])
    )
    rows = read_records(conn, query.as_string(conn), (list(instrument_tokens), start, end), kinds)
    source = pa.DictionaryArray.from_arrays(rows["source"] - 1, pa.array(sources, pa.string()))
    columns = [_arrow(name, values) for name, values in rows.items() if name != "source"]
    table = pa.table([*columns, source.cast(pa.string())], names=_COLUMNS)
    return table.cast(pa.schema(field.with_nullable(field.name in _MAY_BE_ABSENT) for field in table.schema))


def _earlier(conn: connection, begins_ns: int, ticks: dict[str, NDArray[Any]]) -> Earlier:
    """What the packets of the IST day before `begins_ns` (UTC) said about the instruments of `ticks`.

    Goes back hour by hour, and only for as many instruments as were not met yet. One that trades now and did not in the
    hour in which it was met is looked for further: whether it traded at all today decides what its bar says of itself.
    """
    tokens = np.unique(ticks["instrument_token"])
    size = len(tokens)
    day_and_volume, received = np.zeros(size, np.int64), np.zeros(size, np.int64)
    seen, printed = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    recent = ticks["last_trade_time"] > ticks["time"] - _LATE_NS // 1000
    trades_now = np.isin(tokens, ticks["instrument_token"][recent])
    day_ns, until_ns = day_start_ns(begins_ns), begins_ns
    while until_ns > day_ns:
        wanted = tokens[(received == 0) | (trades_now & ~printed)]
        if not len(wanted):
            break
        from_ns = hour_start_ns(until_ns - 1)
        parameters = {
            "start": instant(from_ns),
            "end": instant(until_ns),
            "tokens": wanted.tolist(),
            "late": timedelta(seconds=LATE_S),
        }
        found = read_records(conn, _EARLIER, parameters, _EARLIER_COLUMNS)
        at = tokens.searchsorted(found["instrument_token"])
        printed[at] |= found["printed"]
        new = received[at] == 0
        for known, said in ((day_and_volume, "day_and_volume"), (seen, "seen"), (received, "received")):
            known[at[new]] = found[said][new]
        until_ns = from_ns
    volume = day_and_volume & ((1 << _VOLUME_BITS) - 1)
    return Earlier(tokens, day_and_volume >> _VOLUME_BITS, volume, received, seen, printed)


def _gaps(conn: connection, start_ns: int, end_ns: int, tokens: NDArray[np.int64]) -> GapTimes:
    """The gaps between two instants. One that names no instrument concerns all tokens of its capture's source."""
    gaps = read_gaps(conn, start_ns, end_ns)
    is_dhan = tokens >= 1 << 32
    of_source = {"dhan": tokens[is_dhan], "kite": tokens[~is_dhan]}
    concerned = [gap.instruments if len(gap.instruments) else of_source[source_of_capture(gap.capture)] for gap in gaps]
    counts = [len(tokens) for tokens in concerned]
    ends_ns = [end_ns if gap.ended_ns is None else gap.ended_ns for gap in gaps]
    return GapTimes(
        np.concatenate([np.empty(0, np.int64), *concerned]),
        np.array([gap.started_ns for gap in gaps], np.int64).repeat(counts) // 1000,
        np.array(ends_ns, np.int64).repeat(counts) // 1000,
    )


def _copy(cur: cursor, bars: Bars) -> None:
    columns = [_arrow(name, getattr(bars, name)) for name in _COLUMNS if name != "source"]
    table = pa.table([*columns, pa.repeat("ticks", len(bars))], names=_COLUMNS)
    stream = BytesIO()
    pyarrow.csv.write_csv(table, stream, pyarrow.csv.WriteOptions(include_header=False))
    stream.seek(0)
    names = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
    cur.copy_expert(sql.SQL("COPY candles_1m ({}) FROM STDIN (FORMAT csv)").format(names), stream)


def _arrow(name: str, values: NDArray[Any]) -> pa.Array:
    """A column with NULLs for what is absent."""
    if name == "time":
        return pa.array(values, pa.timestamp("us", tz="UTC"))
    if values.dtype.kind == "f":
        return pa.array(values, from_pandas=True)
    return pa.array(values, mask=values == NULL_INT if values.dtype == np.int64 else None)


def _summary(cur: cursor, bounds: Mapping[str, Any]) -> CandleHour:
    cur.execute(
        "SELECT (extract(epoch FROM time - %(start)s) / 60)::int, count(*), count(*) FILTER (WHERE touches_gap), "
        "count(*) FILTER (WHERE source = 'rest') FROM candles_1m WHERE time >= %(start)s AND time < %(end)s GROUP BY 1",
        bounds,
    )
    minutes = {minute: counts for minute, *counts in cur.fetchall()}
    cur.execute(
        "SELECT count(DISTINCT instrument_token) FROM candles_1m WHERE time >= %(start)s AND time < %(end)s", bounds
    )
    instruments: int = cur.fetchall()[0][0]
    bars, touching, rest = (sum(counts[n] for counts in minutes.values()) for n in range(3))
    return CandleHour(bars, instruments, touching, rest, tuple(minutes.get(n, [0])[0] for n in range(60)))
