"""What the brokers' lists of all instruments have in common: download a CSV file, and read it row by row.

Rows are one line each. A row that cannot be read is quarantined with its line and a reason, and harms no other; a file
that is no such list, lacks a column or holds no instrument is refused whole.
"""

import contextlib
import csv
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
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
from dhan_pipeline.feeds.auth import can_be_sent

Layout = Literal["compact", "detailed", "kite"]
Progress = Callable[[int, int | None], None]

#: Columns of `InstrumentMaster.rows`, named as in the `instruments` table. Prices are in rupees.
COLUMNS = (
    "instrument_token",
    "security_id",
    "exchange_token",
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

TEXT_COLUMNS = (
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

_NONE = ("", "NA")
_NO_DATE = ("", "NA", "0001-01-01")

#: One line whose quoted fields all end. A quote inside an unquoted field is an ordinary character.
_FIELD = rb'(?:"(?:[^"]++|"")*+"|(?!")[^,]*+)'
_WELL_QUOTED = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+")

#: Real files hold 65.0, -0.01000 and, once an editor has saved them, 1.00E+07.
NUMBER = r"-?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,3})?"

#: A day that a database and a calendar can hold, and a time that says nothing.
_DATE = r"(?:19|[2-9][0-9])[0-9]{2}-[0-9]{2}-[0-9]{2}(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)?"

_MAX_STRIKE = 1e10
_MAX_TICK_SIZE = 1e6
_MAX_LOT_SIZE = 2**31 - 1

#: Characters of a field. The longest of real files has 100; an index of PostgreSQL takes 2704 bytes.
_MAX_FIELD = 500


class InstrumentMasterError(PipelineError):
    """A broker's list of instruments cannot be had, or is not one."""


@dataclass(frozen=True, slots=True)
class InstrumentMaster:
    """What a broker's list of all instruments says."""

    rows: pd.DataFrame
    """One row an instrument, with the columns of `COLUMNS`; `expiry` is a date at midnight, without a zone."""
    quarantined: pd.DataFrame
    """Rows that could not be read: `row` (line in the file, the header is 1), `reason`, `raw`."""
    layout: Layout
    segment_counts: dict[str, int]
    """Rows by the exchange segment of their tokens."""
    skipped: dict[str, int]
    """Rows left out on purpose, by reason: no feed carries them, or they are the exchange's test instruments."""


def download(
    what: str,
    url: str,
    destination: Path,
    column: str,
    progress: Progress | None = None,
    headers: Mapping[str, str] | None = None,
    meanings: Mapping[int, str] | None = None,
) -> Path:
    """Download `what` to `destination`, which is replaced only by a complete one whose first line names `column`.

    `progress` is told the bytes received so far and the total, where the server says it; `meanings` is what an HTTP
    status means that is no success. Returns `destination`. Raises InstrumentMasterError.
    """
    destination = Path(destination)
    headers = headers or {}
    if not can_be_sent(headers):
        raise InstrumentMasterError(
            f"The {what} could not be downloaded from {url}: the access token has characters that none has."
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=destination.name, suffix=".part", dir=destination.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _download(what, url, file.write, progress, headers, meanings or {})
                file.flush()
                os.fsync(file.fileno())
            _refuse_other_files(what, Path(part), column)
            Path(part).replace(destination)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(part).unlink()
            raise
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, zlib.error) as error:  # UnicodeError: "http://.com"
        raise InstrumentMasterError(f"The {what} could not be downloaded from {url}: {error}.") from error
    except OSError as error:
        raise InstrumentMasterError(f"The {what} could not be written to {destination}: {error.strerror}.") from error
    return destination


def _download(
    what: str,
    url: str,
    write: Callable[[bytes], Any],
    progress: Progress | None,
    headers: Mapping[str, str],
    meanings: Mapping[int, str],
) -> None:
    timeout = httpx.Timeout(30, connect=10)
    headers = {"Accept-Encoding": "gzip", **headers}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as response:
        if response.status_code != 200:
            status = response.status_code
            meaning = f", {meanings[status]}" if status in meanings else ""
            raise InstrumentMasterError(
                f"The {what} could not be downloaded from {url}: the server answered {status}{meaning}."
            )
        length = response.headers.get("content-length", "")
        total = int(length) if length.isdigit() else None
        for chunk in _decoded(response):
            write(chunk)
            if progress:
                progress(response.num_bytes_downloaded, total)


def _decoded(response: httpx.Response) -> Iterator[bytes]:
    """The body. Raises zlib.error for a compressed one that is not whole, which httpx would take for one that is."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        yield from response.iter_raw()
        return
    if encoding != "gzip":
        raise zlib.error(f"the answer is encoded as {encoding}, which was not asked for")
    gunzip = zlib.decompressobj(wbits=31)  # gzip only
    for chunk in response.iter_raw():
        yield gunzip.decompress(chunk)
    if not gunzip.eof or gunzip.unused_data:
        raise zlib.error(f"the compressed answer {'goes on after its end' if gunzip.eof else 'ends early'}")


def _refuse_other_files(what: str, path: Path, column: str) -> None:
    with path.open("rb") as file:
        first = file.read(65_536).lstrip()
    if not first:
        raise InstrumentMasterError(f"The downloaded {what} is empty.")
    if first.startswith(b"<"):
        raise InstrumentMasterError(f"The downloaded {what} is a web page, not a CSV file.")
    if column.encode() not in first.splitlines()[0]:
        raise InstrumentMasterError(f"The downloaded file is no {what}: its first line names no {column} column.")


def read_lines(what: str, path: Path) -> list[bytes]:
    """The lines of a file; what is not UTF-8 loses its letters only. Raises InstrumentMasterError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InstrumentMasterError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    return content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").encode().splitlines()


def read_header(lines: list[bytes]) -> list[str]:
    """The names in the first line, without blanks around them, as they are written."""
    try:
        return [name.strip() for name in next(csv.reader([lines[0].decode()]), [])] if lines else []
    except csv.Error:  # a name of more than 128 KiB
        return []


def check_columns(what: str, path: Path, header: list[str], needed: Collection[str], layout: str = "") -> None:
    """Raises InstrumentMasterError where a needed column is not there exactly once."""
    if missing := [name for name in needed if name not in header]:
        raise InstrumentMasterError(f"The {what} {path}{layout} lacks the column {', '.join(missing)}.")
    if repeated := [name for name in needed if header.count(name) > 1]:
        raise InstrumentMasterError(f"The {what} {path} names the column {', '.join(repeated)} more than once.")


def read_fields(lines: list[bytes], names: list[str], blank_end: bool) -> tuple[pd.DataFrame, dict[int, str]]:
    """The fields that we read, indexed by line number, and why a line has none.

    `names` has our name of each of the file's columns, or "" for one that we do not read. `blank_end`: the last column
    has no name, and may be missing in all rows.
    """
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
    rows = [lines[n - 1] for n in numbers]
    table, wrong = _split(rows, names)

    # A comma more at the end of rows than of the header, or one less, is the way of a whole file. In a row alone it may
    # have come or gone anywhere, and what follows would be read as other columns.
    counts = Counter(wrong.values())
    right = len(rows) - len(wrong)
    if counts[len(names) + 1] > right:
        table, wrong = _split([row.removesuffix(b",") for row in rows], names)
    elif blank_end and counts[len(names) - 1] > right:
        names = names[:-1]
        table, wrong = _split(rows, names)

    quarantine |= {numbers[i]: f"{count} fields instead of {len(names)}" for i, count in wrong.items()}
    frame = table.to_pandas()
    frame.index = pd.Index(np.delete(np.array(numbers, np.int64), list(wrong)))
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
    data = b"\n".join([*lines, b""])  # the last may be empty
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


class Rows:
    """The rows that are read: which are good so far, which are skipped, and why each other one is refused."""

    def __init__(self, fields: pd.DataFrame) -> None:
        """All are good, but for those with a text that no index would take."""
        self.skipped: dict[str, int] = {}
        self._lines = fields.index.to_numpy(np.int64)
        self._ok = np.ones(len(fields), bool)
        self._reason = np.full(len(fields), None, object)
        for name in fields.columns.intersection(list(TEXT_COLUMNS)):
            self.refuse(fields[name].str.len() > _MAX_FIELD, f"a field of more than {_MAX_FIELD} characters")

    def skip(self, mask: Any, why: str) -> None:
        """Leave these rows out on purpose."""
        first = np.asarray(mask, bool) & self._ok
        self.skipped[why] = int(first.sum())
        self._ok &= ~first

    def refuse(self, mask: Any, why: str) -> None:
        """Quarantine these rows, for this reason where they have none yet."""
        first = np.asarray(mask, bool) & self._ok
        self._reason[first] = why
        self._ok &= ~first

    def expiries(self, values: "pd.Series[str]", derivative: NDArray[np.bool_]) -> "pd.Series[pd.Timestamp]":
        """Dates, NaT where there is none, which a derivative has to have."""
        expiry, bad = _dates(values)
        self.refuse(bad, "an expiry that is not a date")
        self.refuse(derivative & np.asarray(expiry.isna()), "a derivative without expiry")
        return expiry

    def strikes(
        self, values: "pd.Series[str]", option: NDArray[np.bool_], option_type: "pd.Series[str]"
    ) -> NDArray[np.float64]:
        """Strikes in rupees, NaN for what is no option."""
        strike, bad = numbers(values, NUMBER)
        strike = strike.round(2)
        self.refuse(bad | (strike >= _MAX_STRIKE), "a strike that is not a price")
        self.refuse(option & ~(strike > 0), "an option without strike")
        neither = ~np.asarray(option_type.isin(["CE", "PE"]), bool)
        self.refuse(option & neither, "an option that is neither CE nor PE")
        return np.where(option, strike, np.nan)

    def tick_sizes(self, values: "pd.Series[str]", per_rupee: int | NDArray[np.int64] = 1) -> NDArray[np.float64]:
        """Tick sizes in rupees, NaN where they are 0, which says nothing."""
        tick_size, bad = numbers(values, NUMBER)
        tick_size = (tick_size / per_rupee).round(4)
        self.refuse(bad | (tick_size < 0) | (tick_size >= _MAX_TICK_SIZE), "a tick size that is not a price")
        tick_size[tick_size == 0] = np.nan
        return tick_size

    def lot_sizes(self, values: "pd.Series[str]") -> NDArray[np.float64]:
        """Lot sizes, NaN where they are 0, which says nothing."""
        lot_size, bad = numbers(values, NUMBER)
        bad = bad | (lot_size < 0) | (lot_size > _MAX_LOT_SIZE) | (lot_size % 1 > 0)
        self.refuse(bad, "a lot size that is not a whole number")
        lot_size[lot_size == 0] = np.nan
        return lot_size

    def master(
        self,
        facts: dict[str, Any],
        segments: "pd.Series[str]",
        layout: Layout,
        lines: list[bytes],
        quarantine: dict[int, str],
        repeated: str,
    ) -> InstrumentMaster | None:
        """The good rows and those of `quarantine` beside the refused ones; None without a good one.

        Of rows with one token the first counts. A later one is quarantined as `repeated`, which gets the first's line.
        """
        rows = pd.DataFrame(facts, index=pd.Index(self._lines), columns=list(COLUMNS))
        ok, token = self._ok, rows["instrument_token"].to_numpy(np.int64)
        again = np.zeros(len(rows), bool)
        again[ok] = pd.Series(token[ok]).duplicated().to_numpy()
        if again.any():
            first_line = dict(zip(token[ok][::-1].tolist(), self._lines[ok][::-1].tolist(), strict=True))
            for line, of in zip(self._lines[again].tolist(), token[again].tolist(), strict=True):
                quarantine[line] = f"{repeated} as row {first_line[of]}"
        refused = np.array([why is not None for why in self._reason], bool)
        quarantine.update(zip(self._lines[refused].tolist(), self._reason[refused].tolist(), strict=True))
        kept = ok & ~again
        if not kept.any():
            return None
        rows = rows[kept].reset_index(drop=True)
        places = sorted(quarantine)
        counts = segments[kept].value_counts(sort=False).sort_index()
        return InstrumentMaster(
            rows.astype(
                dict.fromkeys(TEXT_COLUMNS, "str")
                | dict.fromkeys(("security_id", "exchange_token", "lot_size"), "Int64")
            ),
            pd.DataFrame(
                {
                    "row": np.array(places, np.int64),
                    "reason": pd.Series([quarantine[n] for n in places], dtype="str"),
                    "raw": pd.Series([lines[n - 1].decode() for n in places], dtype="str"),
                }
            ),
            layout,
            {str(k): int(v) for k, v in counts.items()},
            self.skipped,
        )


def texts(values: "pd.Series[str]") -> "pd.Series[str]":
    """Texts, null where they say that there is none."""
    return values.where(~values.isin(_NONE))


def is_none(values: "pd.Series[str]") -> "pd.Series[bool]":
    """Which texts say that there is none."""
    return values.isin(_NONE)


def numbers(values: "pd.Series[str]", pattern: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers, NaN where there is none, and which values are neither."""
    none = values.isin(_NONE)
    number = values.str.fullmatch(pattern)
    found = pd.to_numeric(values.where(number)).to_numpy(np.float64, na_value=np.nan, copy=True)
    overflown = np.isinf(found)
    found[overflown] = np.nan
    return found, np.asarray(~none & ~number, bool) | overflown


def _dates(values: "pd.Series[str]") -> tuple["pd.Series[pd.Timestamp]", NDArray[np.bool_]]:
    """Dates (the time that Dhan's compact layout adds is unreliable), NaT where there is none, and what is neither."""
    day = values.str.slice(0, 10)
    none = day.isin(_NO_DATE)
    formed = values.str.fullmatch(_DATE)
    dates = pd.to_datetime(day.where(formed & ~none), format="%Y-%m-%d", errors="coerce").astype("datetime64[s]")
    return dates, np.asarray(~none & dates.isna(), bool)
