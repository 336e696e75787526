"""Dhan's scrip master: download it, and read either of its layouts into rows of the `instruments` table.

https://dhanhq.co/docs/v2/instruments/ describes the columns. What the page does not say is handled here: rows are one
line each, columns at the end of the detailed layout come and go, and "no value" is written in many ways.
"""

import contextlib
import csv
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.instruments import ExchangeSegment, dhan_tokens, generate_instrument_token

__all__ = [
    "COLUMNS",
    "ScripMaster",
    "ScripMasterError",
    "download_instruments_csv",
    "generate_instrument_token",
    "parse_dhan_csv",
]

Layout = Literal["compact", "detailed"]

#: Columns of `ScripMaster.rows`, named as in the `instruments` table. Prices are in rupees.
COLUMNS = (
    "instrument_token",
    "security_id",
    "exchange",
    "exchange_segment",
    "trading_symbol",
    "name",
    "segment",
    "instrument_type",
    "series",
    "isin",
    "underlying_symbol",
    "expiry",
    "strike",
    "option_type",
    "tick_size",
    "lot_size",
)

_TEXT_COLUMNS = (
    "exchange",
    "exchange_segment",
    "trading_symbol",
    "name",
    "segment",
    "instrument_type",
    "series",
    "isin",
    "underlying_symbol",
    "option_type",
)

#: Where each layout keeps what we read. All of it is needed; other columns may come and go.
_LAYOUTS: dict[Layout, dict[str, str]] = {
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

_NONE = ("", "NA")
_NO_DATE = ("", "NA", "0001-01-01")

#: One line whose quoted fields all end. A quote inside an unquoted field is an ordinary character.
_FIELD = rb'(?:"(?:[^"]++|"")*+"|(?!")[^,]*+)'
_WELL_QUOTED = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+")

#: Real files hold 65.0, -0.01000 and, once an editor has saved them, 1.00E+07.
_NUMBER = r"-?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,3})?"

#: A day that a database and a calendar can hold, and a time that says nothing.
_DATE = r"(?:19|[2-9][0-9])[0-9]{2}-[0-9]{2}-[0-9]{2}(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)?"

_MAX_SECURITY_ID = 2**32 - 1
_MAX_STRIKE = 1e10
_MAX_TICK_SIZE = 1e6
_MAX_LOT_SIZE = 2**31 - 1

#: Characters of a field. The longest of real files has 100; an index of PostgreSQL takes 2704 bytes.
_MAX_FIELD = 500


class ScripMasterError(PipelineError):
    """The scrip master cannot be had, or is not one."""


@dataclass(frozen=True, slots=True)
class ScripMaster:
    """What a scrip master says."""

    rows: pd.DataFrame
    """One row an instrument, with the columns of `COLUMNS`; `expiry` is a date at midnight, without a zone."""
    quarantined: pd.DataFrame
    """Rows that could not be read: `row` (line in the file, the header is 1), `reason`, `raw`."""
    layout: Layout
    segment_counts: dict[str, int]
    """Rows by exchange segment."""
    skipped: dict[str, int]
    """Rows left out on purpose, by reason: no feed carries them, or they are the exchange's test instruments."""


def download_instruments_csv(
    url: str, destination: Path, progress: Callable[[int, int | None], None] | None = None
) -> Path:
    """Download a scrip master to `destination`, which is replaced only by a complete one.

    `progress` is told the bytes received so far and the total, where the server says it. Returns `destination`.
    Raises ScripMasterError where it cannot be downloaded, or is not a scrip master.
    """
    destination = Path(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=destination.name, suffix=".part", dir=destination.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _download(url, file.write, progress)
                file.flush()
                os.fsync(file.fileno())
            _refuse_other_files(Path(part))
            Path(part).replace(destination)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(part).unlink()
            raise
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ScripMasterError(f"The scrip master could not be downloaded from {url}: {error}.") from error
    except OSError as error:
        raise ScripMasterError(f"The scrip master could not be written to {destination}: {error.strerror}.") from error
    return destination


def _download(url: str, write: Callable[[bytes], Any], progress: Callable[[int, int | None], None] | None) -> None:
    timeout = httpx.Timeout(30, connect=10)
    with httpx.stream("GET", url, follow_redirects=True, timeout=timeout) as response:
        if response.status_code != 200:
            raise ScripMasterError(
                f"The scrip master could not be downloaded from {url}: the server answered {response.status_code}."
            )
        length = response.headers.get("content-length", "")
        total = int(length) if length.isdigit() else None
        for chunk in response.iter_bytes():
            write(chunk)
            if progress:
                progress(response.num_bytes_downloaded, total)


def _refuse_other_files(path: Path) -> None:
    with path.open("rb") as file:
        first = file.read(65_536).lstrip()
    if not first:
        raise ScripMasterError("The downloaded scrip master is empty.")
    if first.startswith(b"<"):
        raise ScripMasterError("The downloaded scrip master is a web page, not a CSV file.")
    if b"SECURITY_ID" not in first.splitlines()[0]:
        raise ScripMasterError("The downloaded file is not a scrip master: its first line names no SECURITY_ID column.")


def parse_dhan_csv(path: Path) -> ScripMaster:
    """Read a scrip master, compact or detailed; rows that cannot be read are quarantined, the rest is returned.

    Raises ScripMasterError where the file cannot be read, is not a scrip master, lacks a needed column, or holds no
    instrument.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ScripMasterError(f"The scrip master {path} cannot be read: {error.strerror}.") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").encode().splitlines()
    header = _header(lines[0]) if lines else []
    layout, names = _layout(path, header)
    fields, quarantine = _fields(lines, names, blank_end=header[-1] == "")
    rows, skipped, reasons = _interpret(fields, layout)
    if rows.empty:
        raise ScripMasterError(f"The scrip master {path} holds no instrument that can be read.")
    quarantine.update(reasons)
    numbers = sorted(quarantine)
    quarantined = pd.DataFrame(
        {
            "row": np.array(numbers, np.int64),
            "reason": pd.Series([quarantine[n] for n in numbers], dtype="str"),
            "raw": pd.Series([lines[n - 1].decode() for n in numbers], dtype="str"),
        }
    )
    counts = rows["exchange_segment"].value_counts(sort=False).sort_index()
    return ScripMaster(rows, quarantined, layout, {str(k): int(v) for k, v in counts.items()}, skipped)


def _header(line: bytes) -> list[str]:
    try:
        return [name.strip().upper() for name in next(csv.reader([line.decode()]), [])]
    except csv.Error:  # a name of more than 128 KiB
        return []


def _layout(path: Path, header: list[str]) -> tuple[Layout, list[str]]:
    """The layout, and for each of the file's columns our name, or "" for one that we do not read."""
    layout = max(_LAYOUTS, key=lambda name: len(_LAYOUTS[name].keys() & set(header)))
    needed = _LAYOUTS[layout]
    missing = [name for name in needed if name not in header]
    if len(missing) == len(needed):
        raise ScripMasterError(f"{path} is not a Dhan scrip master: its first line names none of the columns.")
    if missing:
        raise ScripMasterError(f"The scrip master {path} ({layout} layout) lacks the column {', '.join(missing)}.")
    repeated = [name for name in needed if header.count(name) > 1]
    if repeated:
        raise ScripMasterError(f"The scrip master {path} names the column {', '.join(repeated)} more than once.")
    return layout, [needed.get(name, "") for name in header]


def _fields(lines: list[bytes], names: list[str], blank_end: bool) -> tuple[pd.DataFrame, dict[int, str]]:
    """The fields that we read, indexed by line number, and why a line has none."""
    quarantine: dict[int, str] = {}
    numbers: list[int] = []
    for number, line in enumerate(lines[1:], 2):
        if not line or line.isspace():
            continue
        if b"\0" in line:
            quarantine[number] = "a NUL byte"
        elif b'"' in line and not _WELL_QUOTED.fullmatch(line):
            quarantine[number] = "a quote that does not end"
        else:
            numbers.append(number)
    table, wrong = _split([lines[n - 1] for n in numbers], names)
    frame = table.to_pandas()
    frame.index = pd.Index(np.delete(np.array(numbers, np.int64), list(wrong)))

    # A comma more at the end of a row, or one less, is not an error where that field is blank anyway.
    mended: dict[int, bytes] = {}
    for index, count in wrong.items():
        number = numbers[index]
        line = lines[number - 1]
        if count == len(names) + 1 and line.endswith(b","):
            mended[number] = line[:-1]
        elif count == len(names) - 1 and blank_end:
            mended[number] = line + b","
        else:
            quarantine[number] = f"{count} fields instead of {len(names)}"
    if mended:
        more = _split(list(mended.values()), names)[0].to_pandas()
        more.index = pd.Index(list(mended))
        frame = pd.concat([frame, more]).sort_index()
    return frame, quarantine


def _split(lines: list[bytes], names: list[str]) -> tuple[pa.Table, dict[int, int]]:
    """Split lines at their commas, and say which (index: number of fields) have the wrong number of them."""
    wrong: dict[int, int] = {}

    def wrong_length(row: Any) -> str:
        wrong[row.number - 1] = row.actual_columns
        return "skip"

    read = [name for name in names if name]
    if not lines:
        return pa.table({name: pa.array([], pa.string()) for name in read}), wrong
    data = b"\n".join(lines)
    # By position, because blank and repeated names are allowed. One block, in order, so that row numbers are true.
    table = pacsv.read_csv(
        pa.BufferReader(data),
        pacsv.ReadOptions(
            use_threads=False,
            block_size=len(data) + 1,
            column_names=[name or f"#{position}" for position, name in enumerate(names)],
        ),
        pacsv.ParseOptions(invalid_row_handler=wrong_length, ignore_empty_lines=False),
        pacsv.ConvertOptions(include_columns=read, column_types=dict.fromkeys(read, pa.string())),
    )
    trimmed = {name: pc.utf8_trim_whitespace(table[name]) for name in read}
    return pa.table(trimmed), wrong


def _interpret(fields: pd.DataFrame, layout: Layout) -> tuple[pd.DataFrame, dict[str, int], dict[int, str]]:
    """Rows of `COLUMNS`, counts of rows skipped by reason, and the reason of each quarantined line."""
    reason = np.full(len(fields), None, object)
    ok = np.ones(len(fields), bool)

    def refuse(mask: Any, why: str) -> None:
        nonlocal ok
        first = np.asarray(mask, bool) & ok
        reason[first] = why
        ok &= ~first

    symbol = _symbols(fields, layout)
    test = symbol.str.contains("NSETEST", regex=False)
    nse_commodity = (fields["exchange"] == "NSE") & (fields["segment"] == "M")
    skipped = {
        "NSE commodity": int(nse_commodity.sum()),
        "test instrument": int((test & ~nse_commodity).sum()),
    }
    skip = np.asarray(nse_commodity | test, bool)
    ok &= ~skip

    for name in fields.columns.intersection(list(_TEXT_COLUMNS)):
        refuse(fields[name].str.len() > _MAX_FIELD, f"a field of more than {_MAX_FIELD} characters")

    place = fields["exchange"] + " " + fields["segment"]
    segment = place.map({name: float(member) for name, member in _SEGMENTS.items()}).to_numpy(np.float64)
    refuse(np.isnan(segment), "unknown exchange and segment")
    segment = np.nan_to_num(segment).astype(np.int64)

    security_id, bad = _numbers(fields["security_id"], "[0-9]{1,10}")
    refuse(bad | np.isnan(security_id) | (security_id > _MAX_SECURITY_ID), "no security id of 32 bits")
    token = dhan_tokens(segment, np.nan_to_num(security_id))

    kind = fields["instrument_type"]
    option = np.asarray(kind.str.startswith("OPT"), bool)
    derivative = option | np.asarray(kind.str.startswith("FUT"), bool)
    refuse(kind.isin(_NONE), "no instrument type")

    expiry, bad = _dates(fields["expiry"])
    refuse(bad, "an expiry that is not a date")
    refuse(derivative & np.asarray(expiry.isna()), "a derivative without expiry")

    strike, bad = _numbers(fields["strike"], _NUMBER)
    strike = strike.round(2)
    refuse(bad | (strike >= _MAX_STRIKE), "a strike that is not a price")
    refuse(option & ~(strike > 0), "an option without strike")
    refuse(option & ~np.asarray(fields["option_type"].isin(["CE", "PE"]), bool), "an option that is neither CE nor PE")
    strike = np.where(option, strike, np.nan)

    tick_size, bad = _numbers(fields["tick_size"], _NUMBER)
    # Tradable instruments have it in paise, indices in rupees. 0 says nothing.
    tick_size = np.where(segment == ExchangeSegment.IDX_I, tick_size, tick_size / 100).round(4)
    refuse(bad | (tick_size < 0) | (tick_size >= _MAX_TICK_SIZE), "a tick size that is not a price")
    tick_size[tick_size == 0] = np.nan

    lot_size, bad = _numbers(fields["lot_size"], _NUMBER)
    bad = bad | (lot_size < 0) | (lot_size > _MAX_LOT_SIZE) | (lot_size % 1 > 0)
    refuse(bad, "a lot size that is not a whole number")
    lot_size[lot_size == 0] = np.nan

    underlying = _underlyings(fields, layout).where(derivative)
    symbol = _unambiguous_symbols(symbol, underlying, expiry, strike, fields["option_type"])
    refuse(symbol == "", "no trading symbol")

    rows = pd.DataFrame(
        {
            "instrument_token": token,
            "security_id": np.nan_to_num(security_id).astype(np.int64),
            "exchange": fields["exchange"],
            "exchange_segment": place.map({name: member.name for name, member in _SEGMENTS.items()}),
            "trading_symbol": symbol,
            "name": _text(fields["name"]),
            "segment": fields["segment"],
            "instrument_type": kind,
            # Indices have no series; the compact layout writes X.
            "series": _text(fields["series"]).where(segment != ExchangeSegment.IDX_I),
            "isin": _text(fields["isin"]) if "isin" in fields else None,
            "underlying_symbol": underlying,
            "expiry": expiry,
            "strike": strike,
            "option_type": fields["option_type"].where(option),
            "tick_size": tick_size,
            "lot_size": lot_size,
        },
        index=fields.index,
    )
    refused = ~ok & ~skip
    lines = fields.index.to_numpy(np.int64)
    quarantine: dict[int, str] = dict(zip(lines[refused].tolist(), reason[refused].tolist(), strict=True))

    repeated = np.zeros(len(fields), bool)
    repeated[ok] = pd.Series(token[ok]).duplicated().to_numpy()
    if repeated.any():
        first_line = dict(zip(token[ok][::-1].tolist(), lines[ok][::-1].tolist(), strict=True))
        for line, repeated_token in zip(lines[repeated].tolist(), token[repeated].tolist(), strict=True):
            quarantine[line] = f"the same segment and security id as row {first_line[repeated_token]}"

    kept = rows[ok & ~repeated].reset_index(drop=True)
    return kept.astype(dict.fromkeys(_TEXT_COLUMNS, "str") | {"lot_size": "Int64"}), skipped, quarantine


def _text(values: "pd.Series[str]") -> "pd.Series[str]":
    return values.where(~values.isin(_NONE))


def _numbers(values: "pd.Series[str]", pattern: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers, NaN where there is none, and which values are neither."""
    none = values.isin(_NONE)
    number = values.str.fullmatch(pattern)
    numbers = pd.to_numeric(values.where(number)).to_numpy(np.float64, na_value=np.nan, copy=True)
    overflown = np.isinf(numbers)
    numbers[overflown] = np.nan
    return numbers, np.asarray(~none & ~number, bool) | overflown


def _dates(values: "pd.Series[str]") -> tuple["pd.Series[pd.Timestamp]", NDArray[np.bool_]]:
    """Dates (the time that the compact layout adds is unreliable), NaT where there is none, and what is neither."""
    day = values.str.slice(0, 10)
    none = day.isin(_NO_DATE)
    formed = values.str.fullmatch(_DATE)
    dates = pd.to_datetime(day.where(formed & ~none), format="%Y-%m-%d", errors="coerce").astype("datetime64[s]")
    return dates, np.asarray(~none & dates.isna(), bool)


def _symbols(fields: pd.DataFrame, layout: Layout) -> "pd.Series[str]":
    if layout == "compact":
        return fields["trading_symbol"]
    # The detailed layout has no trading symbol: for shares it is the underlying, SYMBOL_NAME being the company.
    symbol = fields["trading_symbol"].where(fields["segment"] != "E", fields["underlying_symbol"])
    return symbol.where(fields["segment"] != "I", symbol.replace(_INDEX_ALIASES))


def _underlyings(fields: pd.DataFrame, layout: Layout) -> "pd.Series[str]":
    if layout == "detailed":
        return _text(fields["underlying_symbol"])
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
