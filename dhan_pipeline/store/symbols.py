"""Instruments of a source by what people write, now or as of a day. `dhan_pipeline/symbols.py` says how it is read."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.instruments import segment_of
from dhan_pipeline.sessions import IST
from dhan_pipeline.sources import Source
from dhan_pipeline.symbols import KITE_NAMES, Reading, read_symbol, write_symbol

if TYPE_CHECKING:
    import pandas as pd

#: Columns of `find_instruments`.
COLUMNS = (
    "instrument_token",
    "exchange_segment",
    "security_id",
    "trading_symbol",
    "name",
    "instrument_type",
    "expiry",
    "strike",
    "option_type",
    "lot_size",
    "valid_from",
    "valid_to",
)

_DTYPES = dict.fromkeys(("exchange_segment", "trading_symbol", "name", "instrument_type", "option_type"), "str") | {
    "instrument_token": "int64",
    "security_id": "Int64",
    "expiry": "datetime64[s]",
    "strike": "float64",
    "lot_size": "Int64",
}

_SUGGESTIONS = 3


class SymbolError(PipelineError):
    """What was written is the name of no instrument, or of several."""


#: Those that are meant first where nothing else is said.
_PLACES = ("IDX_I", "NSE_EQ", "BSE_EQ", "MCX_COMM", "NSE_CURRENCY", "NSE_FNO", "BSE_CURRENCY", "BSE_FNO")
_EXCHANGES = ("NSE", "BSE", "MCX")

#: What masters write for an exchange: Dhan's its name, Kite's that of each of its markets.
_MARKETS = {"NSE": ["NSE", "NFO", "CDS", "NCO"], "BSE": ["BSE", "BFO", "BCD"], "MCX": ["MCX"]}
_MARKET_OF_SEGMENT = {"NSE_FNO": "NFO", "NSE_CURRENCY": "CDS", "BSE_FNO": "BFO", "BSE_CURRENCY": "BCD"}

_DERIVATIVE = "upper(underlying_symbol) = %(symbol)s AND expiry BETWEEN %(first)s AND %(last)s"
_FUTURE = "strike IS NULL AND instrument_type LIKE 'FUT%%'"

#: What Kite writes on NSE of a share that is not of series EQ. The bounds are for the index.
_WITH_SERIES = """upper(trading_symbol) BETWEEN %(symbol)s || '-' AND %(symbol)s || '-ZZ'
    AND upper(trading_symbol) = %(symbol)s || '-' || series"""

#: Each arm has an index (0009). `spellings` are what was written, capitals and all, and what Kite writes instead.
_NAME = f"""
(
    (expiry IS NULL AND upper(trading_symbol) = %(symbol)s)
    OR (expiry IS NULL AND {_WITH_SERIES})
    OR (expiry IS NULL AND upper(name) = %(symbol)s)
    OR trading_symbol = ANY(%(spellings)s)
    OR (expiry IS NOT NULL AND {_DERIVATIVE} AND {_FUTURE})
)
AND (%(series)s IS NULL OR series = %(series)s)
"""
_CONDITIONS = {
    "token": "instrument_token = %(token)s",
    "name": _NAME,
    "future": f"{_DERIVATIVE} AND {_FUTURE}",
    "option": f"{_DERIVATIVE} AND strike = %(strike)s AND option_type = %(option_type)s",
}
_PLACE = """
AND (%(exchange)s IS NULL OR exchange = ANY(%(markets)s::text[]))
AND (%(segment)s IS NULL OR exchange_segment = %(segment)s OR exchange = %(market)s)
AND source = %(source)s
"""

_LIVES = """
SELECT instrument_token, exchange_segment, security_id, trading_symbol, name, instrument_type, expiry, strike::float8,
    option_type, lot_size, nullif(valid_from, '-infinity') AS valid_from, nullif(valid_to, 'infinity') AS valid_to,
    exchange, series, {listed} AS listed
FROM instrument_lives l
WHERE instrument_token = ANY(%(tokens)s) AND {condition} AND valid_from < %(until)s AND valid_to >= %(until)s
"""
_LISTED_NOW = "EXISTS (SELECT FROM instruments i WHERE i.instrument_token = l.instrument_token AND i.is_active)"
_LISTED_THEN = """
EXISTS (
    SELECT FROM instrument_versions v
    WHERE v.instrument_token = l.instrument_token AND v.valid_from < %(until)s
        AND (v.valid_to IS NULL OR v.valid_to >= %(until)s)
)
"""

_NEAREST = """
SELECT DISTINCT abs(expiry - %(meant)s) AS days, coalesce(abs(strike - %(strike)s), 0) AS points,
    underlying_symbol, expiry, strike::float8, option_type
FROM instrument_lives l
WHERE upper(underlying_symbol) = %(symbol)s AND expiry IS NOT NULL AND {condition}
    AND valid_from < %(until)s AND valid_to >= %(until)s AND {listed}
ORDER BY days, points, expiry, strike LIMIT %(limit)s
"""
_UNDERLYINGS = f"SELECT upper(underlying_symbol) FROM instruments WHERE is_active AND expiry IS NOT NULL {_PLACE}"
_NAMES = f"SELECT upper(trading_symbol) FROM instruments WHERE is_active AND expiry IS NULL {_PLACE}"

_Row = dict[str, Any]


def find_instruments(conn: connection, text: str, *, source: Source, on: date | None = None) -> "pd.DataFrame":
    """All instruments of a source that `text` may mean, the best match first, with the columns of `COLUMNS`.

    `on` is the IST day as of whose end it is meant; without it, it means what the latest master names. A plain name
    prefers an index, then a share on NSE (series EQ first), on BSE, then the nearest future of a commodity, of a
    currency, of anything else. `expiry` is a date at midnight, without a zone; `strike` is in rupees; `valid_from` and
    `valid_to` are in IST and NaT where the meaning has no bound. A token is found whether it is active or not, and
    whosesoever it is. Leaves the transaction open.
    """
    import pandas as pd

    found: dict[int, _Row] = {}
    for _, rows in _matches(conn, text, on, source):
        for row in rows:
            found.setdefault(row["instrument_token"], row)
    frame = pd.DataFrame(list(found.values()), columns=list(COLUMNS))
    for name in ("valid_from", "valid_to"):
        frame[name] = pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]").dt.tz_convert(IST)
    return frame.astype(_DTYPES)


def resolve_symbols(
    conn: connection, symbols: Sequence[str | int], *, source: Source, on: date | None = None
) -> list[int]:
    """A source's instrument token of each symbol, its best match; a number is a token. `on` as in `find_instruments`.

    Raises SymbolError that names all that mean nothing, with what is near them, and all that mean several instruments
    alike. Leaves the transaction open.
    """
    tokens, problems = [], []
    for symbol in symbols:
        matches = list(_matches(conn, str(symbol), on, source))
        if not matches:
            problems.append(str(not_found(conn, str(symbol), on=on, source=source)))
            continue
        reading, rows = matches[0]
        best = [row for row in rows if _rank(reading, row) == _rank(reading, rows[0])]
        if reading.kind in ("future", "option"):  # 26NOV: a day on BSE, but a month on NSE
            best += [other[0] for _, other in matches[1:] if _place(other[0]) < _place(best[0])]
        if len(best) > 1:
            names = " or ".join(f"{_exact(row)} ({row['name'] or row['trading_symbol']})" for row in best)
            problems.append(f"{symbol} may be {names}; write one of these instead.")
        tokens.append(int(best[0]["instrument_token"]))
    if problems:
        raise SymbolError(" ".join(problems))
    return tokens


def not_found(conn: connection, text: str, *, source: Source, on: date | None = None) -> SymbolError:
    """The error that says that nothing is called `text`, and what is near it."""
    if not read_symbol(text, on or _today(), source):
        return SymbolError(f"{text.strip() or 'An empty text'} is the name of no instrument.")
    near = _suggestions(conn, text, on, source)
    with conn.cursor() as cursor:
        cursor.execute("SELECT FROM instruments WHERE source = %s LIMIT 1", (source,))
        if not cursor.rowcount:
            return SymbolError(
                f"The database has no instruments of {source} yet; run: dhan-pipeline sync-instruments --download."
            )
    when = f" on {on}" if on else ""
    return SymbolError(
        f"No instrument is called {text.strip()}{when}" + (f"; near it: {', '.join(near)}." if near else ".")
    )


def _matches(conn: connection, text: str, on: date | None, source: Source) -> Iterator[tuple[Reading, list[_Row]]]:
    """Each reading that something matches, with its matches, the best first."""
    readings = read_symbol(text, on or _today(), source)
    some = False
    # Instruments that have no version are another tool's, and found without an index.
    for table in ("instrument_versions", "instruments"):
        for reading in readings if not some else ():
            if rows := _instruments(conn, table, reading, text, on, source):
                some = True
                yield reading, rows


def _instruments(
    conn: connection, table: str, reading: Reading, text: str, on: date | None, source: Source
) -> list[_Row]:
    condition = _CONDITIONS[reading.kind] + (_PLACE if reading.kind != "token" else "")
    values = _values(reading, on, source)
    values["spellings"] = [text.strip(), reading.symbol, _kite_name(reading)]
    with conn.cursor() as cursor:
        cursor.execute(f"SELECT DISTINCT instrument_token FROM {table} WHERE {condition}", values)
        values["tokens"] = [token for (token,) in cursor.fetchall()]
        if not values["tokens"]:
            return []
        listed = _LISTED_THEN if on else _LISTED_NOW
        cursor.execute(_LIVES.format(listed=listed, condition=condition), values)
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    # What was not named then is the second choice as of a day, and none now; a token is what it is.
    rows = [row for row in rows if row["listed"] or on or reading.kind == "token"]
    return sorted(rows, key=lambda row: (_rank(reading, row), row["instrument_token"]))


def _rank(reading: Reading, row: _Row) -> tuple[int, ...]:
    """How good a match is, the best least; the same for those between which only the token decides."""
    exchange, expiry = row["exchange"], row["expiry"]
    days = expiry.toordinal() if expiry else 0
    spellings = (reading.symbol, _kite_name(reading), f"{reading.symbol}-{row['series']}")
    return (
        not row["listed"],
        expiry is None and row["trading_symbol"].upper() not in spellings,
        _place(row),
        _EXCHANGES.index(exchange) if exchange in _EXCHANGES else len(_EXCHANGES),
        row["exchange_segment"] == "NSE_EQ" and row["series"] != "EQ",
        -days if reading.latest else days,
    )


def _kite_name(reading: Reading) -> str:
    return KITE_NAMES.get(reading.symbol, reading.symbol)


def _place(row: _Row) -> int:
    try:  # the rows of the existing system do not say it
        return _PLACES.index(row["exchange_segment"] or segment_of(row["instrument_token"]).name)
    except ValueError:
        return len(_PLACES)


def _suggestions(conn: connection, text: str, on: date | None, source: Source) -> list[str]:
    readings = read_symbol(text, on or _today(), source)
    derivatives = [reading for reading in readings if reading.kind in ("future", "option")]
    nearest: set[tuple[Any, ...]] = set()
    with conn.cursor() as cursor:
        for reading in derivatives:
            meant = reading.last if reading.latest else reading.first
            values = _values(reading, on, source) | {"meant": meant, "limit": _SUGGESTIONS}
            condition = _FUTURE if reading.kind == "future" else "option_type = %(option_type)s"
            listed = "true" if on else _LISTED_NOW
            cursor.execute(_NEAREST.format(condition=condition + _PLACE, listed=listed), values)
            nearest.update(cursor.fetchall())
        if nearest:
            return list(dict.fromkeys(write_symbol(*row[2:]) for row in sorted(nearest)))[:_SUGGESTIONS]
        symbols_of = _UNDERLYINGS if derivatives else f"{_NAMES} UNION {_UNDERLYINGS}"
        cursor.execute(f"SELECT DISTINCT * FROM ({symbols_of}) symbols ORDER BY 1", _values(readings[0], on, source))
        symbols = [symbol for (symbol,) in cursor.fetchall() if symbol]
    written = [*derivatives, *(reading for reading in readings if reading.kind == "name")][0].symbol
    near = difflib.get_close_matches(written, [symbol for symbol in symbols if symbol != written], _SUGGESTIONS)
    return [" ".join(text.upper().split()).replace(written, symbol, 1) for symbol in near]


def _values(reading: Reading, on: date | None, source: Source) -> dict[str, Any]:
    return {
        **asdict(reading),
        "source": source,
        "markets": _MARKETS.get(reading.exchange or ""),
        "market": _MARKET_OF_SEGMENT.get(reading.segment or ""),
        "until": datetime.combine(on + timedelta(1), time(), IST) if on and on < date.max else "infinity",
    }


def _exact(row: _Row) -> str:
    if row["exchange_segment"] is None or row["security_id"] is None:
        return str(row["instrument_token"])
    return f"{row['exchange_segment']}:{row['security_id']}"


def _today() -> date:
    return Clock().now().astimezone(IST).date()
