"""On 2026-11-20, a Friday: shares trade from 09:15 to their closing auction at 15:15, derivatives until 15:40."""

from typing import Any

import pytest

from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.quality.rates import hour_insert_rate, hour_tick_rate, live_insert_rate, live_tick_rate
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.flow import HourFlow

SETTINGS = Settings(_env_file=None)
WHY = "the database was away: look at it"
HOUR = "2026-11-20T09:00"
FROM_THE_OPEN = (0,) * 15 + (1000,) * 45


def flow(a_minute: int, **facts: Any) -> HourFlow:
    return HourFlow(ticks_by_minute=(0,) * 15 + (a_minute,) * 45, **facts)


def status(at: str = "10:00:00", shares: int = 600, options: int = 400, **facts: Any) -> dict[str, Any]:
    return {
        "at": f"2026-11-20T{at}+05:30",
        "backlog_seconds": 0.0,
        "messages_per_second": 300.0,
        "ticks_per_minute": 18_000.0,
        "segments": {
            "NSE_EQ": {"instruments": shares, "heard": shares},
            "NSE_FNO": {"instruments": options, "heard": options},
        },
        **facts,
    }


def state(outcome: CheckOutcome) -> tuple[bool, str, float | None]:
    return outcome.passed, outcome.severity, outcome.value


@pytest.mark.parametrize(
    ("a_minute", "passed", "severity"), [(10_000, True, "WARN"), (9_999, False, "WARN"), (4_999, False, "ERROR")]
)
def test_an_hour_is_judged_by_its_ticks_a_minute_of_trading(a_minute: int, passed: bool, severity: str) -> None:
    outcome = hour_tick_rate(HOUR, flow(a_minute), FROM_THE_OPEN, SETTINGS)
    assert state(outcome) == (passed, severity, a_minute)
    assert "of 1,000 instruments in the 45 minutes of continuous trading in 2026-11-20T09:00" in outcome.description
    assert ("TICK_RATE_WARN" in outcome.description) is not passed


def test_what_comes_before_the_open_is_not_counted() -> None:
    before = HourFlow(ticks_by_minute=(100_000,) * 15 + (1,) * 45)
    assert state(hour_tick_rate(HOUR, before, FROM_THE_OPEN, SETTINGS)) == (False, "ERROR", 1.0)


def test_a_small_watch_list_has_small_floors() -> None:
    twenty = (0,) * 15 + (20,) * 45
    assert hour_tick_rate(HOUR, flow(200), twenty, SETTINGS).passed
    outcome = hour_tick_rate(HOUR, flow(199), twenty, SETTINGS)
    assert state(outcome) == (False, "WARN", 199)
    assert "At least 200 a minute are due of so many" in outcome.description
    assert outcome.limits == (
        "of 20 instruments in continuous trading: target 300 to 500 ticks a minute, warning below 200,"
        " critical below 100"
    )
    assert hour_tick_rate(HOUR, flow(1), None, SETTINGS).limits == (
        "of every 1,000 instruments in continuous trading: target 15,000 to 25,000 ticks a minute, warning below"
        " 10,000, critical below 5,000"
    )
    assert live_tick_rate(status(shares=2, options=0, ticks_per_minute=20.0), SETTINGS).passed


def test_an_hour_without_trading_is_not_judged_nor_one_of_unknown_subscriptions() -> None:
    closed = hour_tick_rate(HOUR, flow(0), (0,) * 60, SETTINGS)
    assert state(closed) == (True, "WARN", None)
    assert "traded continuously" in closed.description
    unknown = hour_tick_rate(HOUR, flow(80), None, SETTINGS)
    assert state(unknown) == (True, "WARN", 60.0)
    assert "not on record" in unknown.description


@pytest.mark.parametrize(
    ("a_minute", "passed", "severity"), [(10_000, True, "WARN"), (9_999, False, "WARN"), (4_999, False, "ERROR")]
)
def test_the_last_minute_is_judged_while_the_market_trades(a_minute: float, passed: bool, severity: str) -> None:
    assert state(live_tick_rate(status(ticks_per_minute=a_minute), SETTINGS)) == (passed, severity, a_minute)


@pytest.mark.parametrize("at", ["09:08:00", "09:15:30", "15:45:00", "20:00:00"])
def test_outside_of_continuous_trading_no_tick_is_due(at: str) -> None:
    outcome = live_tick_rate(status(at, ticks_per_minute=0.0), SETTINGS)
    assert outcome.passed
    assert "no tick is due" in outcome.description


def test_in_the_closing_auction_only_what_trades_on_is_judged() -> None:
    outcome = live_tick_rate(status("15:20:00", ticks_per_minute=3_999.0), SETTINGS)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert "of 400 instruments in continuous trading" in outcome.description


def test_a_feed_that_never_closes_is_always_judged() -> None:
    always = SETTINGS.model_copy(update={"sessions": "always"})
    assert not live_tick_rate(status("03:00:00", ticks_per_minute=1.0), always).passed


def test_what_waits_for_the_database_does_not_count_against_the_feed() -> None:
    outcome = live_tick_rate(status(ticks_per_minute=0.0, backlog_seconds=90.0), SETTINGS)
    assert outcome.passed
    assert "300 messages a second arrive in the journal" in outcome.description


def test_a_capture_younger_than_a_minute_is_not_judged() -> None:
    young = status(ticks_per_minute=None, backlog_seconds=90.0)
    assert state(live_tick_rate(young, SETTINGS)) == (True, "WARN", None)
    assert state(live_insert_rate(young, SETTINGS)) == (True, "WARN", None)


def test_a_database_that_takes_all_that_comes_passes_however_little_that_is() -> None:
    assert state(hour_insert_rate(HOUR, flow(60), FROM_THE_OPEN, SETTINGS, WHY)) == (True, "WARN", 0.75)
    assert state(live_insert_rate(status(ticks_per_minute=60.0, backlog_seconds=5.0), SETTINGS)) == (True, "WARN", 1.0)


@pytest.mark.parametrize(
    ("taken", "passed", "severity"), [(500, True, "WARN"), (499, False, "WARN"), (99, False, "ERROR")]
)
def test_while_ticks_wait_the_database_has_to_take_enough(taken: int, passed: bool, severity: str) -> None:
    waited = flow(60, waited_ticks=600 * taken, waited_s=600.0)
    outcome = hour_insert_rate(HOUR, waited, FROM_THE_OPEN, SETTINGS, WHY)
    assert state(outcome) == (passed, severity, taken)
    assert "For 10 min of 2026-11-20T09:00 ticks waited" in outcome.description
    assert ("The database was away: look at it. Nothing is lost" in outcome.description) is not passed
    now = live_insert_rate(status(ticks_per_minute=60.0 * taken, backlog_seconds=31.0), SETTINGS)
    assert state(now) == (passed, severity, taken)
    assert ("the journal holds what waits" in now.description) is not passed


def test_a_stall_of_seconds_is_left_to_the_latency() -> None:
    outcome = hour_insert_rate(HOUR, flow(60, waited_ticks=1, waited_s=59.0), FROM_THE_OPEN, SETTINGS, WHY)
    assert state(outcome) == (True, "WARN", 0.75)
    assert "some waited, for 59 s in all" in outcome.description


def test_of_few_instruments_the_database_has_to_take_less() -> None:
    waited = flow(60, waited_ticks=600 * 10, waited_s=600.0)
    assert hour_insert_rate(HOUR, waited, (0,) * 15 + (20,) * 45, SETTINGS, WHY).passed
    few = status(ticks_per_minute=600.0, backlog_seconds=31.0, shares=20, options=0)
    assert live_insert_rate(few, SETTINGS).passed


def test_out_of_session_a_backlog_is_not_judged() -> None:
    assert live_insert_rate(status("20:00:00", ticks_per_minute=0.0, backlog_seconds=90.0), SETTINGS).passed
    assert hour_insert_rate(HOUR, flow(0, waited_ticks=1, waited_s=90.0), (0,) * 60, SETTINGS, WHY).passed


def test_limits_are_settings() -> None:
    strict = SETTINGS.model_copy(update={"tick_rate_warn": 50_000.0, "rate_instruments": 500, "insert_rate_warn": 1e6})
    outcome = live_tick_rate(status(), strict)
    assert state(outcome) == (False, "WARN", 18_000)
    assert "of 1,000 instruments in continuous trading" in outcome.limits
    assert "warning below 100,000, critical below 10,000" in outcome.limits
    assert not live_insert_rate(status(backlog_seconds=6.0), strict).passed
