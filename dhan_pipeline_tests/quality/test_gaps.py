"""How much of a gap was in session: counted over kinds of sessions, over midnight, over holidays, for each segment."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.quality.gaps import parts, session_seconds
from dhan_pipeline.sessions import HOUR_NS, IST, in_session, parse_hour_key
from dhan_pipeline.store.gaps import StoredGap

EQUITY, COMMODITY = ExchangeSegment.NSE_EQ, ExchangeSegment.MCX_COMM


def ns(time: str) -> int:
    """Of IST wall time."""
    return int(datetime.fromisoformat(time).replace(tzinfo=IST).timestamp() * 1000) * 1_000_000


def seconds(started: str, ended: str, *segments: ExchangeSegment, always: bool = False) -> float:
    return session_seconds(ns(started), ns(ended), segments, always)


@pytest.mark.parametrize(
    ("started", "ended", "segments", "expected"),
    [
        ("2026-11-20T10:00:00", "2026-11-20T10:00:01.500", [EQUITY], 1.5),
        ("2026-11-20T08:59:58", "2026-11-20T09:00:03", [EQUITY], 3),
        ("2026-11-20T15:34:50", "2026-11-20T15:50:05", [EQUITY], 15),  # between two sessions nothing is due
        ("2026-11-20T15:10:00", "2026-11-20T15:40:00", [EQUITY], 1500),  # kinds overlap, seconds count once
        ("2026-11-20T16:00:00", "2026-11-20T16:30:00", [EQUITY], 0),
        ("2026-11-20T16:00:00", "2026-11-20T16:30:00", [EQUITY, COMMODITY], 1800),
        ("2026-11-20T23:54:00", "2026-11-21T00:30:00", [COMMODITY], 60),  # a Friday, without daylight saving there
        ("2026-11-20T15:59:00", "2026-11-23T09:00:30", [EQUITY], 90),  # over a weekend
        ("2026-11-23T15:59:00", "2026-11-25T09:00:30", [EQUITY], 90),  # over a holiday
        ("2026-11-08T00:00:00", "2026-11-09T00:00:00", [], 0),
        ("2026-11-20T10:00:00", "2026-11-20T10:00:00", [EQUITY], 0),
        ("2026-11-20T10:00:01", "2026-11-20T10:00:00", [EQUITY], 0),
    ],
)
def test_seconds_in_session(started: str, ended: str, segments: list[ExchangeSegment], expected: float) -> None:
    assert seconds(started, ended, *segments) == pytest.approx(expected)


def test_where_every_minute_is_in_session_every_second_counts() -> None:
    assert seconds("2026-11-21T03:00:00", "2026-11-22T03:00:00", EQUITY, always=True) == 86_400
    assert seconds("2026-11-21T03:00:01", "2026-11-21T03:00:00", EQUITY, always=True) == 0


@given(
    minute=st.integers(0, 14 * 24 * 60),
    minutes=st.integers(0, 3 * 24 * 60),
    segments=st.sets(st.sampled_from(ExchangeSegment), min_size=1),
)
def test_it_counts_the_minutes_in_which_a_session_is_on(
    minute: int, minutes: int, segments: set[ExchangeSegment]
) -> None:
    start_ns, minute_ns = ns("2026-11-02T00:00:00") + minute * 60 * 10**9, 60 * 10**9
    on = sum(in_session(start_ns + n * minute_ns, segments) for n in range(minutes))
    assert session_seconds(start_ns, start_ns + minutes * minute_ns, segments, always=False) == 60 * on


def test_a_gap_of_a_year_counts_its_days() -> None:
    year = seconds("2025-11-24T00:00:00", "2026-11-24T00:00:00", *ExchangeSegment)
    days = sum(
        seconds(f"{day:%Y-%m-%d}T00:00:00", f"{day + timedelta(days=1):%Y-%m-%d}T00:00:00", *ExchangeSegment)
        for day in (datetime(2025, 11, 24) + timedelta(days=n) for n in range(365))
    )
    assert year == days > 200 * 14 * 3600


HOUR = "2026-11-20T10:00"
START_NS, END_NS = parse_hour_key(HOUR), parse_hour_key(HOUR) + HOUR_NS


def stored(started: str, ended: str | None, *segments: ExchangeSegment, each: int = 1) -> StoredGap:
    tokens = [generate_instrument_token(segment, n) for segment in segments for n in range(1, each + 1)]
    return StoredGap(
        capture=0,
        gap_id=1,
        connection=2,
        instruments=np.array(tokens, np.int64),
        started_ns=ns(started),
        ended_ns=None if ended is None else ns(ended),
        cause=Cause.RESET,
        detail="no close frame",
        recovery="connected again",
    )


def test_of_a_gap_that_reaches_beyond_the_hour_the_part_in_it_counts_and_its_real_ends_are_kept() -> None:
    gap = stored("2026-11-20T09:50:00", "2026-11-20T11:20:00", EQUITY, each=3)
    [part] = parts([gap], START_NS, END_NS, always=False)
    assert (part.started_ns, part.ended_ns, part.seconds) == (START_NS, END_NS, 3600)
    assert (part.gap_started_ns, part.gap_ended_ns, part.lasts) == (gap.started_ns, gap.ended_ns, False)
    assert (part.connection, part.cause, part.detail, part.recovery, part.instruments) == (
        2,
        Cause.RESET,
        "no close frame",
        "connected again",
        3,
    )


def test_a_gap_that_lasts_lasts_to_the_end_of_the_hour() -> None:
    [part] = parts([stored("2026-11-20T10:59:00", None, EQUITY)], START_NS, END_NS, always=False)
    assert (part.seconds, part.lasts, part.gap_ended_ns) == (60, True, None)


def test_a_gap_out_of_session_of_its_instruments_is_left_out() -> None:
    evening = parse_hour_key("2026-11-20T18:00")
    gaps = [
        stored("2026-11-20T18:00:00", "2026-11-20T18:10:00", EQUITY),
        stored("2026-11-20T18:00:00", "2026-11-20T18:10:00", EQUITY, COMMODITY, each=2500),
        stored("2026-11-20T18:00:00", "2026-11-20T18:10:00"),  # of all, where none are named
    ]
    assert [part.instruments for part in parts(gaps, evening, evening + HOUR_NS, always=False)] == [5000, 0]
    assert len(parts(gaps, evening, evening + HOUR_NS, always=True)) == 3
