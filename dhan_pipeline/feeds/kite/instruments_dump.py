"""Kite's instruments dump: download it, and read it into rows of the `instruments` table.

https://kite.trade/docs/connect/v3/market-quotes/#instruments describes the columns. The dump is made once a day, and
tokens are used again for other contracts after an expiry. What a list of instruments may be like otherwise, and what is
done about it, is in `feeds/master_csv.py`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dhan_pipeline.feeds.master_csv import (
    InstrumentMaster,
    InstrumentMasterError,
    Progress,
    Rows,
    check_columns,
    download,
    is_none,
    numbers,
    read_fields,
    read_header,
    read_lines,
    texts,
)
from dhan_pipeline.instruments import ExchangeSegment, KiteSegment, segments_of
from dhan_pipeline.symbols import KITE_INDICES

__all__ = ["InstrumentMaster", "InstrumentsDumpError", "download_instruments_csv", "parse_kite_csv"]

InstrumentsDumpError = InstrumentMasterError

_WHAT = "instruments dump"

#: Where the dump keeps what we read. All of it is needed; other columns may come and go, as `last_price`, which is old.
_COLUMNS = {
    "instrument_token": "instrument_token",
    "exchange_token": "exchange_token",
    "tradingsymbol": "trading_symbol",
    "name": "name",
    "expiry": "expiry",
    "strike": "strike",
    "tick_size": "tick_size",
    "lot_size": "lot_size",
    "instrument_type": "instrument_type",
    "segment": "segment",
    "exchange": "exchange",
}

_MEANINGS = {403: "it does not take the access token (dhan-pipeline token generate --source kite makes another)"}

_MAX_TOKEN = 2**32 - 1


def download_instruments_csv(
    url: str, destination: Path, progress: Progress | None = None, *, headers: Mapping[str, str] | None = None
) -> Path:
    """Download a dump of all instruments, or of one exchange's, to `destination`, replaced only by a complete one.

    `url` is `{kite_api_url}/instruments`, or `…/instruments/NSE`; the answer may be compressed. `headers` may hold an
    `Authorization`. `progress` is told the bytes received so far and the total, where the server says it. Returns
    `destination`. Raises InstrumentsDumpError where it cannot be downloaded, or is not a dump.
    """
    signed = {"X-Kite-Version": "3"} | dict(headers or {})
    return download(_WHAT, url, destination, "tradingsymbol", progress, signed, _MEANINGS)


def parse_kite_csv(path: Path) -> InstrumentMaster:
    """Read a dump; rows that cannot be read are quarantined, the rest is returned.

    Of rows with one token the first counts. Raises InstrumentsDumpError where the file cannot be read, is not a dump,
    lacks a needed column, or holds no instrument.
    """
    lines = read_lines(_WHAT, path)
    header = [name.lower() for name in read_header(lines)]
    if "tradingsymbol" not in header:
        raise InstrumentsDumpError(f"{path} is not Kite's instruments dump: its first line names no tradingsymbol.")
    check_columns(_WHAT, path, header, _COLUMNS)
    fields, quarantine = read_fields(lines, [_COLUMNS.get(name, "") for name in header], blank_end=header[-1] == "")
    master = _interpret(fields, lines, quarantine)
    if master is None:
        raise InstrumentsDumpError(f"The instruments dump {path} holds no instrument that can be read.")
    return master


def _interpret(fields: pd.DataFrame, lines: list[bytes], quarantine: dict[int, str]) -> InstrumentMaster | None:
    rows = Rows(fields)
    symbol = fields["trading_symbol"]
    rows.skip(symbol.str.contains("NSETEST", regex=False), "test instrument")

    number, bad = numbers(fields["instrument_token"], "[0-9]{1,10}")
    rows.refuse(bad | np.isnan(number) | (number > _MAX_TOKEN), "no instrument token of 32 bits")
    token = np.clip(np.nan_to_num(number), 0, _MAX_TOKEN).astype(np.int64)
    segment = segments_of(token)
    rows.refuse(segment == 255, "an instrument token of an unknown segment")
    exchange_token, bad = numbers(fields["exchange_token"], "[0-9]{1,10}")
    rows.refuse(bad | (exchange_token != token >> 8), "an exchange token that is not the instrument token's")

    kind = fields["instrument_type"]
    option = np.asarray(kind.isin(["CE", "PE"]), bool)
    derivative = option | np.asarray(kind == "FUT", bool)
    rows.refuse(~derivative & np.asarray(kind != "EQ", bool), "an instrument type that is none of EQ, FUT, CE, PE")
    rows.refuse(is_none(symbol), "no trading symbol")
    rows.refuse(is_none(fields["exchange"]), "no exchange")

    expiry = rows.expiries(fields["expiry"], derivative)
    strike = rows.strikes(fields["strike"], option, kind)
    tick_size = rows.tick_sizes(fields["tick_size"])
    lot_size = rows.lot_sizes(fields["lot_size"])

    index = segment == ExchangeSegment.IDX_I
    # NSE writes the series of whatever is no ordinary share behind its symbol: ELECTCAST-W1, 736KA31-SG.
    series = symbol.str.extract(r"-([A-Z][A-Z0-9])$", expand=False).fillna("EQ")
    segments = pd.Series(segment, fields.index).map({member.value: member.name for member in ExchangeSegment})
    nse_commodity = token & 0xFF == KiteSegment.NCO  # which is a segment of its own, that Dhan has not
    facts = {
        "instrument_token": token,
        "security_id": pd.NA,
        "exchange_token": exchange_token,
        "exchange": fields["exchange"],
        "exchange_segment": segments.where(~nse_commodity),
        "trading_symbol": symbol,
        "name": texts(fields["name"]),
        "segment": fields["segment"],
        "instrument_type": kind,
        "series": series.where(segment == ExchangeSegment.NSE_EQ),
        "isin": None,
        "underlying_symbol": texts(fields["name"]).where(derivative, symbol.map(KITE_INDICES).where(index)),
        "expiry": expiry.where(derivative),
        "strike": strike,
        "option_type": kind.where(option),
        "tick_size": tick_size,
        "lot_size": lot_size,
    }
    return rows.master(facts, segments, "kite", lines, quarantine, "the same instrument token")
