"""Dhan's scrip master: download it, and read either of its layouts into rows of the `instruments` table.

https://dhanhq.co/docs/v2/instruments/ describes the columns. What the page does not say is handled here and in
`feeds/master_csv.py`: rows are one line each, columns at the end of the detailed layout come and go, and "no value" is
written in many ways.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dhan_pipeline.feeds.master_csv import (
    COLUMNS,
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
from dhan_pipeline.instruments import ExchangeSegment, dhan_tokens, generate_instrument_token

__all__ = [
    "COLUMNS",
    "InstrumentMaster",
    "ScripMasterError",
    "download_instruments_csv",
    "generate_instrument_token",
    "parse_dhan_csv",
]

ScripMasterError = InstrumentMasterError

_WHAT = "scrip master"

_Layout = Literal["compact", "detailed"]

#: Where each layout keeps what we read. All of it is needed; other columns may come and go.
_LAYOUTS: dict[_Layout, dict[str, str]] = {
    "compact": {
        "SEM_EXM_EXCH_ID": "exchange",
        "SEM_SEGMENT": "segment",
        "SEM_SMST_SECURITY_ID": "security_id",
        "SEM_INSTRUMENT_NAME": "instrument_type",
        "SEM_TRADING_SYMBOL": "trading_symbol",
        "SEM_LOT_UNITS": "lot_size",
        "SEM_CUSTOM_SYMBOL": "name",
        "SEM_EXPIRY_DATE": "expiry",
        "SEM_STRIKE_PRICE": "strike",
        "SEM_OPTION_TYPE": "option_type",
        "SEM_TICK_SIZE": "tick_size",
        "SEM_SERIES": "series",
    },
    "detailed": {
        "EXCH_ID": "exchange",
        "SEGMENT": "segment",
        "SECURITY_ID": "security_id",
        "ISIN": "isin",
        "INSTRUMENT": "instrument_type",
        "UNDERLYING_SYMBOL": "underlying_symbol",
        "SYMBOL_NAME": "trading_symbol",
        "DISPLAY_NAME": "name",
        "SERIES": "series",
        "LOT_SIZE": "lot_size",
        "SM_EXPIRY_DATE": "expiry",
        "STRIKE_PRICE": "strike",
        "OPTION_TYPE": "option_type",
        "TICK_SIZE": "tick_size",
    },
}

_SEGMENTS = {
    "NSE E": ExchangeSegment.NSE_EQ,
    "NSE D": ExchangeSegment.NSE_FNO,
    "NSE C": ExchangeSegment.NSE_CURRENCY,
    "BSE E": ExchangeSegment.BSE_EQ,
    "BSE D": ExchangeSegment.BSE_FNO,
    "BSE C": ExchangeSegment.BSE_CURRENCY,
    "MCX M": ExchangeSegment.MCX_COMM,
    "NSE I": ExchangeSegment.IDX_I,
    "BSE I": ExchangeSegment.IDX_I,
    "MCX I": ExchangeSegment.IDX_I,
}

#: The detailed layout names this index otherwise than the compact one and its own derivatives do.
_INDEX_ALIASES = {"NIFTY NEXT 50": "NIFTYNXT50"}

_MAX_SECURITY_ID = 2**32 - 1


def download_instruments_csv(url: str, destination: Path, progress: Progress | None = None) -> Path:
    """Download a scrip master to `destination`, which is replaced only by a complete one.

    `progress` is told the bytes received so far and the total, where the server says it. Returns `destination`.
    Raises ScripMasterError where it cannot be downloaded, or is not a scrip master.
    """
    return download(_WHAT, url, destination, "SECURITY_ID", progress)


def parse_dhan_csv(path: Path) -> InstrumentMaster:
    """Read a scrip master, compact or detailed; rows that cannot be read are quarantined, the rest is returned.

    Of rows with one segment and id the first counts. Raises ScripMasterError where the file cannot be read, is not a
    scrip master, lacks a needed column, or holds no instrument.
    """
    lines = read_lines(_WHAT, path)
    header = [name.upper() for name in read_header(lines)]
    layout = max(_LAYOUTS, key=lambda name: len(_LAYOUTS[name].keys() & set(header)))
    needed = _LAYOUTS[layout]
    if not needed.keys() & set(header):
        raise ScripMasterError(f"{path} is not a Dhan scrip master: its first line names none of the columns.")
    check_columns(_WHAT, path, header, needed, f" ({layout} layout)")
    fields, quarantine = read_fields(lines, [needed.get(name, "") for name in header], blank_end=header[-1] == "")
    master = _interpret(fields, layout, lines, quarantine)
    if master is None:
        raise ScripMasterError(f"The scrip master {path} holds no instrument that can be read.")
    return master


def _interpret(
    fields: pd.DataFrame, layout: _Layout, lines: list[bytes], quarantine: dict[int, str]
) -> InstrumentMaster | None:
    rows = Rows(fields)
    symbol = _symbols(fields, layout)
    rows.skip((fields["exchange"] == "NSE") & (fields["segment"] == "M"), "NSE commodity")
    rows.skip(symbol.str.contains("NSETEST", regex=False), "test instrument")

    place = fields["exchange"] + " " + fields["segment"]
    segment = place.map({name: float(member) for name, member in _SEGMENTS.items()}).to_numpy(np.float64)
    rows.refuse(np.isnan(segment), "unknown exchange and segment")
    segment = np.nan_to_num(segment).astype(np.int64)

    security_id, bad = numbers(fields["security_id"], "[0-9]{1,10}")
    rows.refuse(bad | np.isnan(security_id) | (security_id > _MAX_SECURITY_ID), "no security id of 32 bits")

    kind = fields["instrument_type"]
    option = np.asarray(kind.str.startswith("OPT"), bool)
    derivative = option | np.asarray(kind.str.startswith("FUT"), bool)
    rows.refuse(is_none(kind), "no instrument type")

    expiry = rows.expiries(fields["expiry"], derivative)
    strike = rows.strikes(fields["strike"], option, fields["option_type"])
    # Tradable instruments have it in paise, indices in rupees.
    tick_size = rows.tick_sizes(fields["tick_size"], np.where(segment == ExchangeSegment.IDX_I, 1, 100))
    lot_size = rows.lot_sizes(fields["lot_size"])

    underlying = _underlyings(fields, layout).where(derivative)
    symbol = _unambiguous_symbols(symbol, underlying, expiry, strike, fields["option_type"])
    rows.refuse(is_none(symbol), "no trading symbol")

    exchange_segment = place.map({name: member.name for name, member in _SEGMENTS.items()})
    facts = {
        "instrument_token": dhan_tokens(segment, np.nan_to_num(security_id)),
        "security_id": security_id,
        "exchange_token": pd.NA,
        "exchange": fields["exchange"],
        "exchange_segment": exchange_segment,
        "trading_symbol": symbol,
        "name": texts(fields["name"]),
        "segment": fields["segment"],
        "instrument_type": kind,
        # Indices have no series; the compact layout writes X.
        "series": texts(fields["series"]).where(segment != ExchangeSegment.IDX_I),
        "isin": texts(fields["isin"]) if "isin" in fields else None,
        "underlying_symbol": underlying,
        "expiry": expiry.where(derivative),
        "strike": strike,
        "option_type": fields["option_type"].where(option),
        "tick_size": tick_size,
        "lot_size": lot_size,
    }
    return rows.master(facts, exchange_segment, layout, lines, quarantine, "the same segment and security id")


def _symbols(fields: pd.DataFrame, layout: _Layout) -> "pd.Series[str]":
    if layout == "compact":
        return fields["trading_symbol"]
    # The detailed layout has no trading symbol: for shares it is the underlying, SYMBOL_NAME being the company.
    symbol = fields["trading_symbol"].where(fields["segment"] != "E", fields["underlying_symbol"])
    return symbol.where(fields["segment"] != "I", symbol.replace(_INDEX_ALIASES))


def _underlyings(fields: pd.DataFrame, layout: _Layout) -> "pd.Series[str]":
    if layout == "detailed":
        return texts(fields["underlying_symbol"])
    # NIFTY-Sep2026-25000-CE, BAJAJ-AUTO-Sep2026-FUT, CRUDEOIL-19Oct2026-FUT
    return fields["trading_symbol"].str.extract(r"^(.+?)-\d{0,2}[A-Z][a-z]{2}\d{4}-", expand=False)


def _unambiguous_symbols(
    symbol: "pd.Series[str]",
    underlying: "pd.Series[str]",
    expiry: "pd.Series[pd.Timestamp]",
    strike: NDArray[np.float64],
    option_type: "pd.Series[str]",
) -> "pd.Series[str]":
    """Symbols, where a derivative has only its underlying's (detailed: commodity, currency) as compact writes them."""
    bare = np.flatnonzero((symbol == underlying) & expiry.notna())
    if not len(bare):
        return symbol
    symbols = symbol.to_numpy(object, copy=True)
    days = expiry.iloc[bare].map({day: day.strftime("%d%b%Y") for day in expiry.iloc[bare].unique()}).to_numpy(object)
    kinds = option_type.to_numpy(object)
    for i, day in zip(bare, days, strict=True):
        end = "FUT" if np.isnan(strike[i]) else f"{strike[i]:.12g}-{kinds[i]}"
        symbols[i] = f"{symbols[i]}-{day}-{end}"
    return pd.Series(symbols, index=symbol.index, dtype="str")
