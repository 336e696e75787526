import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.sessions import (
    HOUR_NS,
    IST,
    Session,
    calendar_known,
    calendar_problem,
    day_start_ns,
    hour_key,
    hour_start_ns,
    in_closing_auction,
    in_session,
    packets_due,
    packets_due_throughout,
    parse_hour_key,
    session_bounds,
    sessions,
)
from dhan_pipeline.special_days import use_special_days

NSE_EQ, NSE_FNO, NSE_CURRENCY, MCX_COMM, IDX_I, BSE_EQ, BSE_FNO = (
    ExchangeSegment[name] for name in ("NSE_EQ", "NSE_FNO", "NSE_CURRENCY", "MCX_COMM", "IDX_I", "BSE_EQ", "BSE_FNO")
)
FRIDAY = date(2026, 11, 20)


def ns(text: str) -> int:
    """An IST wall time as nanoseconds since the Unix epoch."""
    return int(datetime.fromisoformat(text).replace(tzinfo=IST).timestamp()) * 1_000_000_000


def text(of_day: Iterable[Session]) -> list[str]:
    return [f"{s.kind} {s.open:%H:%M}-{s.close:%H:%M}" for s in of_day]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """The site's own file of special days, which is not there yet."""
    use_special_days(tmp_path / "holidays.csv", tmp_path / "sessions.csv")
    yield tmp_path / "sessions.csv"
    use_special_days(tmp_path / "none", tmp_path / "none")


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_an_hour_is_named_by_its_start_in_ist(at_ns: int) -> None:
    start = hour_start_ns(at_ns)
    assert 0 <= at_ns - start < HOUR_NS
    assert parse_hour_key(hour_key(at_ns)) == start
    assert day_start_ns(at_ns) <= start


def test_an_ist_hour_starts_at_half_past_in_utc() -> None:
    assert hour_start_ns(ns("2026-11-20T09:59:59")) == ns("2026-11-20T09:00")
    assert hour_key(ns("2026-11-20T00:10")) == "2026-11-20T00:00"
    assert day_start_ns(ns("2026-11-20T00:10")) == ns("2026-11-20T00:00")
    assert day_start_ns(ns("2026-11-20T23:59:59")) == ns("2026-11-20T00:00")


@pytest.mark.parametrize("key", ["2026-11-20T09:30", "2026-11-20T9:00", "2026-11-20", "2026-02-30T09:00", ""])
def test_a_key_that_names_no_hour_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_hour_key(key)


@pytest.mark.parametrize("segment", [NSE_EQ, BSE_EQ, IDX_I])
def test_the_closing_auction_came_on_2026_08_03(segment: ExchangeSegment) -> None:
    assert text(sessions(segment, date(2026, 7, 31))) == [
        "pre_open 09:00-09:15",
        "continuous 09:15-15:30",
        "post_close 15:40-16:00",
    ]
    assert text(sessions(segment, date(2026, 8, 3))) == [
        "pre_open 09:00-09:15",
        "continuous 09:15-15:30",
        "closing_auction 15:15-15:35",
        "post_close 15:50-16:00",
    ]


@pytest.mark.parametrize("segment", [NSE_FNO, BSE_FNO])
def test_derivatives_trade_to_1540_since_2026_08_03(segment: ExchangeSegment) -> None:
    assert text(sessions(segment, date(2025, 12, 5))) == ["continuous 09:15-15:30"]
    assert text(sessions(segment, date(2026, 7, 31))) == ["pre_open 09:00-09:15", "continuous 09:15-15:30"]
    assert text(sessions(segment, date(2026, 8, 3))) == ["pre_open 09:00-09:15", "continuous 09:15-15:40"]


@pytest.mark.parametrize(
    ("day", "close"),
    [
        (date(2026, 3, 6), "23:55"),
        (date(2026, 3, 9), "23:30"),
        (date(2026, 10, 30), "23:30"),
        (date(2026, 11, 2), "23:55"),
        (date(2025, 3, 10), "23:30"),
        (date(2025, 11, 3), "23:55"),
    ],
)
def test_commodities_close_with_the_daylight_saving_of_new_york(day: date, close: str) -> None:
    assert text(sessions(MCX_COMM, day)) == ["morning 09:00-17:00", f"evening 17:00-{close}"]


def test_currency_trades_to_five_and_cross_currency_to_half_past_seven() -> None:
    assert text(sessions(NSE_CURRENCY, FRIDAY)) == ["continuous 09:00-17:00", "cross_currency 17:00-19:30"]


@pytest.mark.parametrize("segment", list(ExchangeSegment))
def test_nothing_trades_on_a_weekend_or_a_national_holiday(segment: ExchangeSegment) -> None:
    for day in (date(2026, 11, 21), date(2026, 11, 22), date(2026, 1, 26), date(2026, 10, 2), date(2025, 12, 25)):
        assert sessions(segment, day) == []
        assert session_bounds(day) is None


def test_a_market_holiday_leaves_the_evening_of_commodities() -> None:
    holiday = date(2026, 11, 24)
    assert sessions(NSE_EQ, holiday) == []
    assert text(sessions(MCX_COMM, holiday)) == ["evening 17:00-23:55"]
    assert not in_session(ns("2026-11-24T11:00"))
    assert in_session(ns("2026-11-24T17:00"))


def test_new_year_leaves_the_morning_of_commodities() -> None:
    assert text(sessions(MCX_COMM, date(2026, 1, 1))) == ["morning 09:00-17:00"]
    assert len(sessions(NSE_EQ, date(2026, 1, 1))) == 3


def test_a_holiday_of_banks_closes_currency_alone() -> None:
    assert sessions(NSE_CURRENCY, date(2026, 4, 1)) == []
    assert sessions(NSE_EQ, date(2026, 4, 1)) != []
    assert sessions(NSE_CURRENCY, date(2025, 9, 5)) != []
    assert sessions(NSE_CURRENCY, date(2025, 9, 8)) == []


@pytest.mark.parametrize("day", [date(2025, 2, 1), date(2026, 2, 1)])
def test_the_budget_is_traded_on_a_weekend(day: date) -> None:
    assert day.weekday() >= 5
    assert "continuous 09:15-15:30" in text(sessions(NSE_FNO, day))
    assert text(sessions(MCX_COMM, day)) == ["morning 09:00-17:00"]
    assert sessions(NSE_CURRENCY, day) == []


def test_muhurat_trading_replaces_the_day() -> None:
    diwali = date(2025, 10, 21)
    assert text(sessions(NSE_EQ, diwali)) == ["pre_open 13:30-13:45", "special 13:45-14:45"]
    assert text(sessions(MCX_COMM, diwali)) == ["special 13:45-14:45"]
    assert not in_session(ns("2025-10-21T10:00"))
    assert in_session(ns("2025-10-21T13:30"))
    assert in_session(ns("2026-11-08T18:30"))


def test_a_session_holds_its_opening_and_not_its_close() -> None:
    assert not in_session(ns("2026-11-20T09:00") - 1)
    assert in_session(ns("2026-11-20T09:00"))
    assert in_session(ns("2026-11-20T23:55") - 1)
    assert not in_session(ns("2026-11-20T23:55"))


def test_between_two_sessions_of_a_segment_is_not_in_session_but_within_its_bounds() -> None:
    assert not in_session(ns("2026-11-20T15:40"), [NSE_EQ])
    assert in_session(ns("2026-11-20T15:39"), [NSE_EQ, NSE_FNO])
    bounds = session_bounds(FRIDAY, [NSE_EQ])
    assert bounds is not None
    assert [f"{at:%H:%M}" for at in bounds] == ["09:00", "16:00"]


def test_the_bounds_of_a_day_reach_from_the_first_opening_to_the_last_close() -> None:
    bounds = session_bounds(FRIDAY)
    assert bounds is not None
    assert [at.isoformat() for at in bounds] == ["2026-11-20T09:00:00+05:30", "2026-11-20T23:55:00+05:30"]


def test_weekdays_of_a_year_without_calendar_are_open_and_said_to_be_unknown() -> None:
    assert calendar_known(date(2025, 1, 1))
    assert calendar_known(date(2026, 12, 31))
    assert not calendar_known(date(2027, 1, 1))
    assert not calendar_known(date(2024, 12, 31))
    assert sessions(NSE_EQ, date(2027, 1, 26)) != []
    assert sessions(NSE_EQ, date(2027, 1, 2)) == []


@pytest.mark.parametrize(("year", "trading_days"), [(2025, 249), (2026, 247)])
def test_a_year_has_as_many_trading_days_as_the_exchanges_said(year: int, trading_days: int) -> None:
    days = [date(year, 1, 1) + timedelta(n) for n in range(365)]
    assert sum(bool(sessions(NSE_EQ, day)) for day in days) == trading_days


@pytest.mark.parametrize("day", [date(2025, 1, 1), date(2026, 6, 30), date(2026, 11, 30)])
def test_a_calendar_that_goes_on_for_a_month_has_no_problem(day: date) -> None:
    assert calendar_problem(day) is None


def test_from_december_on_a_calendar_that_ends_with_the_year_is_said() -> None:
    problem = calendar_problem(date(2026, 12, 1))
    assert problem is not None
    assert problem.startswith("The calendar ends on 2026-12-31, and knows no holidays of 2027. Upgrade")


def test_a_year_without_calendar_is_said() -> None:
    problem = calendar_problem(date(2027, 1, 26))
    assert problem is not None
    assert problem.startswith("The calendar knows no holidays of 2027: every weekday counts as a trading day.")


def test_the_site_s_own_file_wins(own: Path) -> None:
    own.write_text(
        "date,equity,currency,commodity,occasion\n"
        "2026-11-08,18:15-19:15,18:15-19:15,18:00-19:15,Muhurat\n"
        "2026-11-10,,,closed,\n"
        "2026-11-24,open,,,Guru Nanak Jayanti is traded this year\n"
        "2026-11-28,09:15-10:00 11:30-12:30,,,from the second site\n"
        "2026-11-30,closed,,evening,a day of mourning\n"
    )
    assert text(sessions(NSE_EQ, date(2026, 11, 8))) == ["pre_open 18:00-18:15", "special 18:15-19:15"]
    assert text(sessions(MCX_COMM, date(2026, 11, 8))) == ["special 18:00-19:15"]
    assert sessions(NSE_FNO, date(2026, 11, 10)) == sessions(MCX_COMM, date(2026, 11, 10)) == []
    assert "continuous 09:15-15:40" in text(sessions(NSE_FNO, date(2026, 11, 24)))
    assert sessions(NSE_CURRENCY, date(2026, 11, 24)) == []
    assert text(sessions(BSE_EQ, date(2026, 11, 28))) == [
        "pre_open 09:00-09:15",
        "special 09:15-10:00",
        "special 11:30-12:30",
    ]
    assert sessions(NSE_EQ, date(2026, 11, 30)) == []
    assert text(sessions(MCX_COMM, date(2026, 11, 30))) == ["evening 17:00-23:55"]
    assert len(sessions(NSE_CURRENCY, date(2026, 11, 30))) == 2
    assert calendar_problem(FRIDAY) is None


def test_a_day_that_is_entered_counts_at_once(own: Path) -> None:
    assert in_session(ns("2026-11-20T10:00"))
    own.write_text("date,equity,currency,commodity\n2026-11-20,closed,closed,closed\n")
    assert not in_session(ns("2026-11-20T10:00"))
    own.unlink()
    assert in_session(ns("2026-11-20T10:00"))


def test_a_year_is_known_once_the_site_has_written_its_holidays_down(own: Path) -> None:
    days = [date(2027, 3, 1) + timedelta(7 * week) for week in range(10)]
    own.write_text("date,equity\n" + "".join(f"{day},closed\n" for day in days[:9]))
    assert not calendar_known(date(2027, 1, 1))
    own.write_text("date,equity\n" + "".join(f"{day},closed\n" for day in days))
    assert calendar_known(date(2027, 1, 1))
    assert calendar_problem(date(2026, 12, 31)) is None


def test_what_is_wrong_in_the_site_s_own_file_is_a_problem_of_the_calendar(own: Path) -> None:
    own.write_text("date,equity\n2026-11-31,closed\n")
    assert calendar_problem(FRIDAY) == (
        f"{own}, line 2: 2026-11-31 is no date such as 2026-11-08; the line is left out."
    )


def test_sessions_do_without_pandas() -> None:
    code = "import sys, dhan_pipeline.sessions; sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packets_are_due_while_a_segment_trades_continuously_and_not_while_orders_are_collected() -> None:
    assert not packets_due(ns("2026-11-20T09:10"), [NSE_EQ])
    assert packets_due(ns("2026-11-20T09:15"), [NSE_EQ])
    assert not packets_due(ns("2026-11-20T15:55"), [NSE_EQ])
    assert packets_due(ns("2026-11-20T15:39"), [NSE_EQ, NSE_FNO])
    assert not packets_due(ns("2026-11-22T11:00"))
    assert not packets_due(ns("2026-11-20T15:31"), [NSE_EQ])  # the closing auction is matched


@pytest.mark.parametrize(
    ("start", "end", "segments", "due"),
    [
        ("2026-11-20T09:15", "2026-11-20T15:29", [NSE_EQ], True),
        ("2026-11-20T09:14", "2026-11-20T09:20", [NSE_EQ], False),
        ("2026-11-20T15:20", "2026-11-20T15:30", [NSE_EQ], False),
        ("2026-11-20T15:20", "2026-11-20T15:35", [NSE_EQ, NSE_FNO], True),
        ("2026-11-20T16:59", "2026-11-20T17:01", [ExchangeSegment.MCX_COMM], True),  # one half goes over into the other
        ("2026-11-20T15:00", "2026-11-23T10:00", [NSE_EQ], False),
    ],
)
def test_packets_are_due_throughout_where_no_break_lies_between(
    start: str, end: str, segments: list[ExchangeSegment], due: bool
) -> None:
    assert packets_due_throughout(ns(start), ns(end), segments) is due


def test_the_closing_auction_is_that_of_stocks_alone() -> None:
    assert in_closing_auction(ns("2026-11-20T15:15"), NSE_EQ)
    assert not in_closing_auction(ns("2026-11-20T15:14"), NSE_EQ)
    assert not in_closing_auction(ns("2026-11-20T15:20"), NSE_FNO)
    assert not in_closing_auction(ns("2026-07-31T15:20"), NSE_EQ)
