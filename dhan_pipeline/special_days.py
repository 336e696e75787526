"""Days on which exchanges trade otherwise than on others of their weekday: holidays, weekends that trade, Muhurat.

They come from three CSV files with the same columns. A cell of a later one wins; an empty cell leaves what is:

1. `sessions.csv` beside this module, from the circulars of NSE, BSE and MCX;
2. `holidays.csv` in the data directory: years that the first lacks, from pandas-market-calendars (`holidays.py`);
3. the site's own, `SESSIONS_FILE`: what an exchange announces on the day.

A cell is `closed`; `open`, the sessions of an ordinary weekday; of commodities `morning` or `evening`, that half alone;
or one `HH:MM-HH:MM` or several with spaces between, such as a Muhurat session, and nothing else. Files are read again
when they change.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from datetime import date
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

Market = Literal["equity", "currency", "commodity"]

MARKETS: tuple[Market, ...] = get_args(Market)
COLUMNS = ("date", *MARKETS, "occasion")

SpecialDays = Mapping[date, Mapping[Market, str]]

_OURS = Path(__file__).with_name("sessions.csv")
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIMES = re.compile(rf"{_TIME}-{_TIME}(?: +{_TIME}-{_TIME})*")

_File = tuple[Path, int, int]  # with the time of its last change and its size; 0 for one that does not exist

#: Those of the site, which a process names once.
_of_site: tuple[Path, ...] = ()


def use_special_days(holidays: Path, own: Path) -> None:
    """Have this process follow the site's files too, for as long as it lives. They need not exist."""
    global _of_site
    _of_site = (holidays, own)


def special_days() -> SpecialDays:
    """What is special about each special day, by market; an empty cell, or none, is a day like others."""
    return _merged(_files())[0]


def problems() -> tuple[str, ...]:
    """A sentence for each of the site's files that cannot be used as it is. All that can be read of them holds."""
    return _merged(_files())[1]


def _files() -> tuple[_File, ...]:
    return tuple(map(_state, (_OURS, *_of_site)))


def _state(path: Path) -> _File:
    try:
        found = path.stat()
    except OSError:
        return path, 0, 0
    return path, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=2)
def _merged(files: tuple[_File, ...]) -> tuple[SpecialDays, tuple[str, ...]]:
    days: dict[date, dict[Market, str]] = {}
    said = []
    for path, changed_ns, _ in files:
        wrong = []
        for found in _read(path) if changed_ns else ():
            if isinstance(found, str):
                wrong.append(found)
                continue
            day, cells = found
            days[day] = {**days.get(day, {}), **cells}
        if wrong:
            more = f" {len(wrong) - 1} more lines of it are wrong." if len(wrong) > 1 else ""
            said.append(f"{path}{wrong[0]}.{more}")
    return days, tuple(said)


def _read(path: Path) -> Iterator[tuple[date, dict[Market, str]] | str]:
    """Each day with its cells that are not empty; of a line that is wrong, what is wrong with it."""
    seen: set[date] = set()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="more", restval="")
            columns = rows.fieldnames or ()
            if "date" not in columns or not set(columns) <= set(COLUMNS):
                yield f", line 1: the columns are {','.join(COLUMNS)}; nothing of the file holds"
                return
            for row in rows:
                where = f", line {rows.line_num}: "
                try:
                    day = date.fromisoformat(row["date"].strip())
                except ValueError:
                    yield f"{where}{row['date'] or 'nothing'} is no date such as 2026-11-08; the line is left out"
                    continue
                cells = {market: row.get(market, "").strip() for market in MARKETS}
                wrong = next((market for market, cell in cells.items() if not _may_be(market, cell)), None)
                if day in seen:
                    yield f"{where}{day} is there twice; the line is left out"
                elif "more" in row:
                    yield f"{where}it has more than {len(columns)} cells; the line is left out"
                elif wrong:
                    yield f"{where}{cells[wrong]} is nothing that {wrong} can be; the line is left out"
                else:
                    yield day, {market: cell for market, cell in cells.items() if cell}
                seen.add(day)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        yield f" cannot be read: {getattr(error, 'strerror', None) or 'it is not a text file'}"


def _may_be(market: Market, cell: str) -> bool:
    if cell in ("", "closed", "open") or (market == "commodity" and cell in ("morning", "evening")):
        return True
    if not _TIMES.fullmatch(cell):
        return False
    times = re.findall(_TIME, cell)
    return all(earlier < later for earlier, later in pairwise(times))
