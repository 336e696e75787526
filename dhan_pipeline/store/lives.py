"""What an instrument was when a tick came: the columns that `ticks_with_symbols` adds, for Arrow tables of ticks."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg2.extensions import connection

_TEXT = pa.dictionary(pa.int32(), pa.string())

#: The columns added, in this order: text is dictionary encoded, and all are NULL where no instrument is known.
SYMBOL_FIELDS: tuple[pa.Field, ...] = tuple(
    pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})
    for name, kind, unit, meaning in (
        ("trading_symbol", _TEXT, "", "symbol as the exchange writes it"),
        ("exchange", _TEXT, "", "NSE, BSE or MCX"),
        ("instrument_type", _TEXT, "", "kind of instrument as the master writes it: INDEX, EQUITY, FUTIDX, OPTSTK ..."),
        ("underlying_symbol", _TEXT, "", "what a derivative derives from"),
        ("expiry", pa.date32(), "", "day on which a derivative expires"),
        ("strike", pa.float64(), "rupees", "strike of an option"),
        ("option_type", _TEXT, "", "CE or PE"),
    )
)


@dataclass(frozen=True, slots=True)
class Lives:
    """Lives of instruments, by token and beginning."""

    token: NDArray[np.int64]
    from_us: NDArray[np.int64]
    """When each begins, Unix microseconds, UTC; the first of a token, at the latest when those asked for begin."""
    columns: pa.Table
    """Those of `SYMBOL_FIELDS`, text plain."""


def read_lives(conn: connection, tokens: Iterable[int], start: datetime, end: datetime) -> Lives:
    """What the tokens meant between two instants, the second exclusive. Leaves the transaction open."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, (extract(epoch FROM greatest(valid_from, %(start)s)) * 1000000)::bigint, "
            "trading_symbol, exchange, instrument_type, underlying_symbol, expiry, strike::float8, option_type "
            "FROM instrument_lives WHERE instrument_token = ANY(%(tokens)s::bigint[]) "
            "AND valid_from < %(end)s AND valid_to > %(start)s ORDER BY 1, 2",
            {"tokens": list(tokens), "start": start, "end": end},
        )
        rows = cursor.fetchall()
    plain = [pa.string() if field.type == _TEXT else field.type for field in SYMBOL_FIELDS]
    return Lives(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        pa.table(
            {
                field.name: pa.array([row[at] for row in rows], kind)
                for at, (field, kind) in enumerate(zip(SYMBOL_FIELDS, plain, strict=True), 2)
            }
        ),
    )


def with_symbols(table: pa.Table, lives: Lives) -> pa.Table:
    """A table of ticks with the columns of `SYMBOL_FIELDS` appended; each row says what its token meant at its time."""
    token = table["instrument_token"].to_numpy()
    time_us = table["time"].cast(pa.int64()).to_numpy()
    at = lives.token.searchsorted(token, side="right") - 1  # the last life
    known = at >= 0
    if len(lives.token):
        known &= lives.token[at] == token
        while (later := known & (lives.from_us[at] > time_us)).any():
            at -= later
            known &= lives.token[at] == token
    places = pa.array(at, mask=~known)
    for field in SYMBOL_FIELDS:
        values = lives.columns[field.name].combine_chunks().take(places)
        table = table.append_column(field, values.dictionary_encode() if field.type == _TEXT else values)
    return table
