"""Holidays of years that our own table of special days lacks, from pandas-market-calendars into the data directory.

The package knows the stock exchanges alone. What follows for the others is what has been so for years: currency closes
with them, and on 1 April; commodities close for the morning, on five days of the nation or of the world altogether.
Whoever captures does not come here: pandas alone is 50 MB.
"""

import csv
import os
from collections.abc import Iterable
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

from dhan_pipeline.sessions import HOLIDAYS_OF_A_YEAR, WARN_AHEAD, calendar_known, calendar_problem
from dhan_pipeline.settings import Settings
from dhan_pipeline.special_days import COLUMNS

_REGULAR = ("09:15", "15:30")


def keep_holidays_known(path: Path, day: date) -> list[int]:
    """Write the holidays of the day's year, and of the one that begins within a month, where they are not known yet.

    Returns the years that were written; not those that the package does not know either.
    """
    lacking = [year for year in sorted({day.year, (day + WARN_AHEAD).year}) if not calendar_known(date(year, 1, 1))]
    found = {year: rows for year in lacking if len(rows := holidays(year)) >= HOLIDAYS_OF_A_YEAR}
    if found:
        kept = [row for row in _written(path) if int(row["date"][:4]) not in found]
        _write(path, [*kept, *(row for rows in found.values() for row in rows)])
    return list(found)


def calendar_problem_left(settings: Settings, day: date) -> str | None:
    """Keep the holidays known as of an IST day, and say what a person should mend all the same (`calendar_problem`).

    None where the settings have no sessions that a calendar would end.
    """
    if settings.sessions == "always":
        return None
    keep_holidays_known(settings.holidays_path, day)
    return calendar_problem(day)


def holidays(year: int) -> list[dict[str, str]]:
    """The special days of a year as rows of `sessions.csv`, by day; few or none where the package does not know it."""
    import pandas as pd
    import pandas_market_calendars as calendars

    schedule = calendars.get_calendar("NSE").schedule(f"{year}-01-01", f"{year}-12-31", tz="Asia/Kolkata")
    hours = {
        at.date(): (f"{opens:%H:%M}", f"{closes:%H:%M}")
        for at, opens, closes in schedule[["market_open", "market_close"]].itertuples()
    }
    closed_altogether = {date(year, *of) for of in ((1, 26), (8, 15), (10, 2), (12, 25))}
    easter = pd.offsets.Easter().rollforward(pd.Timestamp(year, 1, 1)).date()
    closed_altogether.add(easter - timedelta(days=2))
    said_by = f"pandas-market-calendars {version('pandas-market-calendars')}"
    rows = []
    for day in pd.bdate_range(f"{year}-01-01", f"{year}-12-31").date:
        equity = currency = commodity = ""
        if day not in hours:
            equity = currency = "closed"
            commodity = "closed" if day in closed_altogether else "evening"
        elif hours[day] != _REGULAR:
            equity = currency = commodity = "-".join(hours[day])
        elif (day.month, day.day) == (1, 1):
            commodity = "morning"
        elif (day.month, day.day) == (4, 1):
            currency = "closed"
        if equity or currency or commodity:
            rows.append(dict(zip(COLUMNS, (str(day), equity, currency, commodity, said_by), strict=True)))
    return rows


def _written(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
