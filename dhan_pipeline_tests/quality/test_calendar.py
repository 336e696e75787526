"""A capture runs around the sessions of what is subscribed."""

from datetime import datetime
from pathlib import Path

import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.quality.calendar import (
    TOKEN_AHEAD,
    capture_expected,
    feed_expected,
    hours_in_session,
    next_session,
    session_name,
    token_needed_until,
)
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode


def at(time: str) -> Clock:
    return Clock(start_ns=int(datetime.fromisoformat(time).replace(tzinfo=IST).timestamp()) * 10**9, speed=1e-9)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path)


def subscribe(settings: Settings, *segments: ExchangeSegment) -> None:
    subscriptions = [Subscription(generate_instrument_token(segment, 1), Mode.FULL, "X") for segment in segments]
    write_subscriptions(settings.subscriptions_path, subscriptions)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-11-20T08:54:59", False),  # a Friday
        ("2026-11-20T08:55:00", True),  # in time for the opening
        ("2026-11-20T15:35:00", True),  # between two sessions
        ("2026-11-20T16:01:59", True),  # the last hour is being sealed
        ("2026-11-20T16:02:00", False),
        ("2026-11-21T10:00:00", False),
    ],
)
def test_shares_are_captured_from_before_the_pre_open_to_the_end_of_the_last_hour(
    settings: Settings, time: str, expected: bool
) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    assert capture_expected(settings, at(time)) is expected


@pytest.mark.parametrize(
    ("time", "expected", "session"),
    [
        ("2026-11-20T23:59:59", True, "2026-11-20"),
        ("2026-11-21T00:01:59", True, "2026-11-20"),
        ("2026-11-21T00:02:00", False, "2026-11-21"),
    ],
)
def test_the_last_hour_of_commodities_is_sealed_after_midnight(
    settings: Settings, time: str, expected: bool, session: str
) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ, ExchangeSegment.MCX_COMM)
    assert capture_expected(settings, at(time)) is expected
    assert session_name(settings, at(time)) == session
    assert session_name(settings.model_copy(update={"sessions": "always"}), at(time)) == time[:10]


def test_new_subscriptions_change_the_hours(settings: Settings) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    assert not capture_expected(settings, at("2026-11-20T20:00:00"))
    subscribe(settings, ExchangeSegment.MCX_COMM)
    assert capture_expected(settings, at("2026-11-20T20:00:00"))


def test_without_readable_subscriptions_every_segment_counts(settings: Settings) -> None:
    settings.subscriptions_path.write_text("nonsense")
    assert capture_expected(settings, at("2026-11-20T20:00:00"))


def test_a_silent_feed_is_a_fault_only_while_a_session_is_on(settings: Settings) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    assert feed_expected(settings, at("2026-11-20T10:00:00"))
    assert not feed_expected(settings, at("2026-11-20T08:57:00"))


def test_the_simulator_never_closes(settings: Settings) -> None:
    always = settings.model_copy(update={"sessions": "always"})
    assert capture_expected(always, at("2026-11-21T03:00:00"))
    assert feed_expected(always, at("2026-11-21T03:00:00"))


def test_a_token_is_needed_until_the_last_session_of_the_day_closes(settings: Settings) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    assert token_needed_until(settings, at("2026-11-20T08:00:00")) == datetime(2026, 11, 20, 16, 0, tzinfo=IST)
    subscribe(settings, ExchangeSegment.NSE_EQ, ExchangeSegment.MCX_COMM)
    assert token_needed_until(settings, at("2026-11-20T17:00:00")) == datetime(2026, 11, 20, 23, 55, tzinfo=IST)


@pytest.mark.parametrize("time", ["2026-11-20T16:00:00", "2026-11-21T10:00:00"])
def test_a_token_is_not_needed_where_no_session_of_the_day_is_left(settings: Settings, time: str) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    assert token_needed_until(settings, at(time)) is None


@pytest.mark.parametrize(
    ("time", "day"),
    [
        ("2026-11-20T08:59:59", 20),
        ("2026-11-20T09:00:00", 23),
        ("2026-11-21T12:00:00", 23),
        ("2026-11-23T10:00:00", 25),
    ],
)
def test_the_next_session_is_one_that_has_not_opened_yet(settings: Settings, time: str, day: int) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    opens, closes = datetime(2026, 11, day, 9, 0, tzinfo=IST), datetime(2026, 11, day, 16, 0, tzinfo=IST)
    assert next_session(settings, at(time)) == (opens, closes)
    assert next_session(settings.model_copy(update={"sessions": "always"}), at(time)) is None


def test_where_sessions_never_end_a_token_is_always_needed_for_a_while(settings: Settings) -> None:
    always = settings.model_copy(update={"sessions": "always"})
    clock = at("2026-11-21T03:00:00")
    assert token_needed_until(always, clock) == clock.now() + TOKEN_AHEAD


def test_whole_hours_with_a_session_between_two_instants(settings: Settings) -> None:
    subscribe(settings, ExchangeSegment.NSE_EQ)
    evening, late = (at(time).now_ns() for time in ("2026-11-19T14:30:00", "2026-11-20T10:59:59"))
    assert hours_in_session(settings, evening, late) == {"2026-11-19T15:00", "2026-11-20T09:00"}
    assert hours_in_session(settings, evening, at("2026-11-19T15:59:59").now_ns()) == set()
    ten, eleven = (at(f"2026-11-20T{hour}:00:00").now_ns() for hour in (10, 11))
    assert hours_in_session(settings, ten, eleven) == {"2026-11-20T10:00"}
    always = settings.model_copy(update={"sessions": "always"})
    assert len(hours_in_session(always, evening, late)) == 19
