"""Kite's instruments dump of the same synthetic market that a synthetic scrip master of Dhan's describes."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.master import csv_lines
from dhan_pipeline.instruments import KiteSegment
from dhan_pipeline.symbols import KITE_NAMES, MONTH_CODES

#: What no reader should stumble over: a row without its exchange token, as the documentation has it, one of a segment
#: that does not exist, an option that never expires, and a token a second time.
DIRT = (
    "645639,SILVER15DECFUT,,7800.0,2015-12-31,,1,1,FUT,MCX,MCX",
    "2570,10,NOWHERE,,0,,0,0.05,1,EQ,NSE,NSE",
    "4294967042,16777215,ETERNAL26CE,ETERNAL,0,,26,0.05,1,CE,NFO-OPT,NFO",
    "256265,1001,NIFTY FIFTY,NIFTY FIFTY,0,,0,0,0,EQ,INDICES,NSE",
)


def write_synthetic_dump(path: Path, master_csv: Path, *, dirty: bool = False) -> None:
    """Write the dump that names what a scrip master names, with Kite's tokens and spelling; `dirty`: and `DIRT`.

    The same master gives the same bytes. Raises ScripMasterError for a file that is none.
    """
    columns = _columns(parse_dhan_csv(master_csv).rows)
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join([",".join(columns), *csv_lines(columns), *(DIRT if dirty else ())]) + "\n")


def _columns(rows: pd.DataFrame) -> dict[str, Any]:
    token = pd.Series([kite_token_of(token) for token in rows["instrument_token"].tolist()], dtype="int64")
    place = (token & 0xFF).map({segment.value: segment.name for segment in KiteSegment})
    index, share = place == "INDICES", rows["expiry"].isna()
    option = rows["option_type"].notna()
    kind = rows["option_type"].fillna("FUT").where(~share, "EQ")
    strike = _text(rows["strike"].fillna(0))

    # NSE writes the series of whatever is no ordinary share behind its symbol.
    series = "-" + rows["series"].where((place == "NSE") & (rows["series"] != "EQ"))
    symbol = rows["trading_symbol"] + series.fillna("")
    symbol = symbol.where(~index, rows["trading_symbol"].replace(KITE_NAMES))
    derivative = rows["underlying_symbol"] + _expiry_codes(rows) + strike.where(option, "") + kind
    return {
        "instrument_token": token,
        "exchange_token": token // 256,
        "tradingsymbol": symbol.where(share, derivative),
        "name": rows["underlying_symbol"].where(~share, rows["name"].fillna("").str.upper()).where(~index, symbol),
        "last_price": "0",
        "expiry": rows["expiry"].dt.strftime("%Y-%m-%d").fillna(""),
        "strike": strike,
        "tick_size": _text(rows["tick_size"].fillna(0).where(~index, 0)),
        "lot_size": rows["lot_size"].fillna(0).where(~index, 0),
        "instrument_type": kind,
        "segment": place.where(share, place + np.where(option, "-OPT", "-FUT")),
        "exchange": place.where(~index, rows["exchange"]),
    }


def _expiry_codes(rows: pd.DataFrame) -> "pd.Series[str]":
    """`26NOV` of the last expiry of an underlying's month, `26N24` of one before."""
    days = {expiry: expiry.date() for expiry in rows["expiry"].dropna().unique()}
    month = rows["expiry"].map({expiry: f"{day:%y%b}".upper() for expiry, day in days.items()})
    week = rows["expiry"].map({expiry: _weekly_code(day) for expiry, day in days.items()})
    chain = rows.groupby([rows["exchange_segment"], rows["underlying_symbol"], month])["expiry"]
    return month.where(rows["expiry"] == chain.transform("max"), week)


def _weekly_code(expiry: date) -> str:
    return f"{expiry:%y}{MONTH_CODES[expiry.month - 1]}{expiry:%d}"


def _text(numbers: "pd.Series[float]") -> "pd.Series[str]":
    return numbers.map({number: f"{number:.12g}" for number in numbers.unique()})
