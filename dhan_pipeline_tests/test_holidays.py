"""Our table of special days beside that of pandas-market-calendars, and years that only that has."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pandas_market_calendars as calendars
import pytest

from dhan_pipeline.holidays import holidays, keep_holidays_known
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.sessions import calendar_known, sessions
from dhan_pipeline.special_days import use_special_days

NSE_EQ, BSE_EQ, NSE_CURRENCY, MCX_COMM = (
    ExchangeSegment[name] for name in ("NSE_EQ", "BSE_EQ", "NSE_CURRENCY", "MCX_COMM")
)

#: Weekdays that the package takes for holidays of an exchange, and that are none: BSE had its Muhurat session.
OPEN_IN_OURS = {("BSE", 2025): {date(2025, 10, 21)}, ("BSE", 2026): set[date]()}

#: Weekends that are traded, of which the package knows nothing: the budget, and Muhurat on a Sunday.
OURS_ALONE = {2025: {date(2025, 2, 1)}, 2026: {date(2026, 2, 1), date(2026, 11, 8)}}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where holidays are kept; the process follows it."""
    use_special_days(tmp_path / "data" / "holidays.csv", tmp_path / "none")
    yield tmp_path / "data" / "holidays.csv"
    use_special_days(tmp_path / "none", tmp_path / "none")


def days_of(year: int) -> list[date]:
    return [date(year, 1, 1) + timedelta(n) for n in range((date(year + 1, 1, 1) - date(year, 1, 1)).days)]


@pytest.mark.parametrize("year", [2025, 2026])
@pytest.mark.parametrize(("exchange", "segment"), [("NSE", NSE_EQ), ("BSE", BSE_EQ)])
def test_our_holidays_are_those_of_pandas_market_calendars(exchange: str, segment: ExchangeSegment, year: int) -> None:
    valid = calendars.get_calendar(exchange).valid_days(f"{year}-01-01", f"{year}-12-31")
    theirs = {day.date() for day in valid}
    ours = {day for day in days_of(year) if sessions(segment, day)}
    assert theirs - ours == set()
    assert ours - theirs == OPEN_IN_OURS.get((exchange, year), set()) | OURS_ALONE[year]


def test_a_year_that_our_table_lacks_is_filled_from_pandas_market_calendars(path: Path) -> None:
    assert not calendar_known(date(2024, 6, 3))
    assert keep_holidays_known(path, date(2024, 6, 3)) == [2024]
    assert calendar_known(date(2024, 6, 3))
    muhurat, ram_mandir, republic_day = date(2024, 11, 1), date(2024, 1, 22), date(2024, 1, 26)
    assert [s.kind for s in sessions(NSE_EQ, muhurat)] == ["pre_open", "special"]
    assert f"{sessions(MCX_COMM, muhurat)[0].open:%H:%M}" == "18:00"
    assert sessions(NSE_EQ, ram_mandir) == sessions(NSE_CURRENCY, ram_mandir) == []
    assert [s.kind for s in sessions(MCX_COMM, ram_mandir)] == ["evening"]
    assert sessions(MCX_COMM, republic_day) == []
    assert sessions(MCX_COMM, date(2024, 3, 29)) == []  # Good Friday
    assert [s.kind for s in sessions(MCX_COMM, date(2024, 1, 1))] == ["morning"]
    assert sessions(NSE_CURRENCY, date(2024, 4, 1)) == []
    assert sum(bool(sessions(NSE_EQ, day)) for day in days_of(2024) if day.weekday() < 5) == 246


def test_a_year_that_is_filled_stays_when_another_is(path: Path) -> None:
    keep_holidays_known(path, date(2024, 6, 3))
    assert keep_holidays_known(path, date(2022, 12, 1)) == [2022, 2023]
    assert all(calendar_known(date(year, 1, 1)) for year in (2022, 2023, 2024))


def test_a_year_that_the_package_does_not_know_either_is_left_open(path: Path) -> None:
    assert len(holidays(2090)) < 5
    assert keep_holidays_known(path, date(2090, 6, 1)) == []
    assert not path.exists()


def test_years_that_our_table_has_cost_no_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from datetime import date; from pathlib import Path;"
        " from dhan_pipeline.holidays import keep_holidays_known;"
        f" assert keep_holidays_known(Path({str(tmp_path / 'holidays.csv')!r}), date(2026, 6, 1)) == [];"
        " sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
