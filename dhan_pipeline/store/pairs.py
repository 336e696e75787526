"""Which of Dhan's tokens and which of Kite's are the same instrument.

Neither master knows the other's numbers of everything, and Kite's has no ISIN; so what a person would go by decides:

- a share: exchange and symbol; on NSE its series, too, which Kite writes behind the symbol (`RCOM-BE`);
- a derivative: exchange segment, underlying, expiry, strike, call or put;
- an index: exchange and name, without blanks. `symbols.KITE_INDICES` has the names that derivatives and Dhan use
  (NIFTY is Kite's NIFTY 50), `INDEX_NAMES` what else is written in two ways.

Where several instruments of a broker would be the same, the exchange's own numbers decide; of indices, which each
broker numbers as it likes, none is paired then.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.instruments import (
    ExchangeSegment,
    KiteSegment,
    segment_of,
    source_of,
    split_instrument_token,
    split_kite_token,
)
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.symbols import KITE_INDICES

#: Kite's names of indices that are not Dhan's, both in capitals and without anything but letters and digits.
INDEX_NAMES = {
    "NIFTYMIDCAP100": "NIFTYMID100FREE",
    "NIFTYSMLCAP50": "NIFTYSMALLCAP50",
    "NIFTYSMLCAP100": "NIFTYSMALLCAP100",
    "NIFTYSMLCAP250": "NIFTYSMALLCAP250",
    "NIFTYMIDSML400": "NIFTYMIDSMALLCAP400",
    "NIFTY100EQLWGT": "NIFTY100EQUALWEIGHT",
    "NIFTY100LOWVOL30": "NIFTY100LOWVOLATILITY30",
}

#: What Kite writes behind the symbol of an NSE share that is not of the series EQ.
_SERIES = re.compile(r"(.+)-([A-Z][A-Z0-9])")

_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One instrument, as both brokers have it."""

    dhan_token: int
    kite_token: int
    symbol: str
    """As Dhan writes it."""
    tick_size: float | None
    """In rupees, as far as either master says it."""


@dataclass(frozen=True, slots=True)
class Unpaired:
    """An instrument of which the other broker has none that would be the same, or several."""

    source: Source
    instrument_token: int
    segment: str
    """Exchange segment; empty where `instruments` does not know the token."""
    symbol: str


@dataclass(frozen=True, slots=True)
class Pairing:
    """What the tokens asked for came to: each is in one pair, or unpaired."""

    pairs: list[Pair]
    unpaired: list[Unpaired]


@dataclass(frozen=True, slots=True)
class _Instrument:
    instrument_token: int
    key: _Key
    segment: str
    symbol: str
    tick_size: float | None

    @property
    def number(self) -> int:
        """The exchange's own number of it; of an index, the broker's."""
        token = self.instrument_token
        return split_kite_token(token)[1] if source_of(token) == "kite" else split_instrument_token(token)[1]


def pair_instruments(conn: connection, tokens: Collection[int], at_ns: int) -> Pairing:
    """Pair instruments among these tokens of both brokers, by what they meant at a time (ns since the epoch, UTC).

    Pairs are in order of Dhan's tokens, what is left over in order of its own. Leaves the transaction open.
    """
    known = _instruments(conn, tokens, at_ns)
    by_key: dict[_Key, dict[Source, list[_Instrument]]] = defaultdict(lambda: {source: [] for source in SOURCES})
    for instrument in known.values():
        by_key[instrument.key][source_of(instrument.instrument_token)].append(instrument)
    pairs = [
        Pair(dhan.instrument_token, kite.instrument_token, dhan.symbol, dhan.tick_size or kite.tick_size)
        for sides in by_key.values()
        for dhan, kite in _matches(sides["dhan"], sides["kite"])
    ]
    paired = {token for pair in pairs for token in (pair.dhan_token, pair.kite_token)}
    unpaired = [
        Unpaired(source_of(token), token, known[token].segment, known[token].symbol)
        if token in known
        else Unpaired(source_of(token), token, "", str(token))
        for token in sorted(set(tokens) - paired)
    ]
    return Pairing(sorted(pairs, key=lambda pair: pair.dhan_token), unpaired)


def _matches(dhan: list[_Instrument], kite: list[_Instrument]) -> Iterable[tuple[_Instrument, _Instrument]]:
    if len(dhan) == len(kite) == 1:
        return [(dhan[0], kite[0])]
    if not dhan or not kite or dhan[0].segment == ExchangeSegment.IDX_I.name:
        return []
    by_number = {instrument.number: instrument for instrument in kite}
    return [(one, by_number[one.number]) for one in dhan if one.number in by_number]


def _instruments(conn: connection, tokens: Collection[int], at_ns: int) -> dict[int, _Instrument]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, exchange, trading_symbol, name, series, instrument_type, underlying_symbol, "
            "expiry, strike::float8, option_type, nullif(tick_size, 0)::float8 FROM instrument_lives "
            "WHERE instrument_token = ANY(%(tokens)s::bigint[]) AND valid_from <= %(at)s AND valid_to > %(at)s",
            {"tokens": list(tokens), "at": instant(at_ns)},
        )
        return {row[0]: _instrument(*row) for row in cursor.fetchall()}


def _instrument(
    token: int,
    exchange: str,
    symbol: str,
    name: str | None,
    series: str | None,
    instrument_type: str | None,
    underlying: str | None,
    expiry: date | None,
    strike: float | None,
    option_type: str | None,
    tick_size: float | None,
) -> _Instrument:
    is_kite, segment = source_of(token) == "kite", _segment(token)
    key: _Key
    if not segment:
        key = (token,)
    elif expiry is not None:
        # Rows from before the option type had a column have it as their instrument type, and a future's strike is 0.
        option = option_type or (instrument_type if instrument_type in ("CE", "PE") else None)
        key = (segment, (underlying or name or "").upper(), expiry, strike if option else None, option)
    elif segment == ExchangeSegment.IDX_I.name:
        bare = re.sub(r"[^A-Z0-9]", "", KITE_INDICES.get(symbol, symbol).upper())
        key = (segment, exchange, INDEX_NAMES.get(bare, bare))
    elif segment == ExchangeSegment.NSE_EQ.name:
        match = _SERIES.fullmatch(symbol) if is_kite and series != "EQ" else None
        key = (segment, *(match.groups() if match else (symbol, "EQ" if is_kite else series or "EQ")))
    else:
        key = (segment, symbol)
    return _Instrument(token, key, segment, symbol, tick_size)


def _segment(token: int) -> str:
    """The exchange segment; empty for a number that no broker gives."""
    try:
        segment = segment_of(token)
    except ValueError:
        return ""
    # NSE's commodities, which no feed of Dhan's carries, count as MCX's elsewhere.
    is_nco = source_of(token) == "kite" and split_kite_token(token)[0] is KiteSegment.NCO
    return KiteSegment.NCO.name if is_nco else segment.name
