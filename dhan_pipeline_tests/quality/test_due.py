"""On 2026-11-20, a Friday with a closing auction, and in an hour without any session."""

from datetime import timedelta

import pytest

from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.quality.due import due_in_hour, is_trading, trading_minutes, trading_now
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.subscribed import Subscribed
from dhan_pipeline.ticks import Mode

NINE = parse_hour_key("2026-11-20T09:00")
SHARE = generate_instrument_token("NSE_EQ", 2885)
FUTURE = generate_instrument_token("MCX_COMM", 569900)


def subscribed(token: int, from_minute: float = -60, to_minute: float | None = None) -> Subscribed:
    start = instant(NINE)
    until = None if to_minute is None else start + timedelta(minutes=to_minute)
    return Subscribed(0, token, Mode.FULL, start + timedelta(minutes=from_minute), until)


@pytest.mark.parametrize(
    ("hour", "segment", "minutes"),
    [
        ("09", "NSE_EQ", range(15, 60)),  # after the pre-open
        ("10", "NSE_EQ", range(60)),
        ("15", "NSE_EQ", range(15)),  # then the closing auction
        ("15", "NSE_FNO", range(40)),
        ("16", "NSE_EQ", range(0)),
        ("17", "NSE_CURRENCY", range(0)),  # pairs without the rupee only
        ("23", "MCX_COMM", range(55)),  # New York has no daylight saving time
    ],
)
def test_packets_are_due_while_a_segment_trades_continuously(hour: str, segment: str, minutes: range) -> None:
    start_ns = parse_hour_key(f"2026-11-20T{hour}:00")
    mask = trading_minutes(ExchangeSegment[segment], start_ns, False)
    assert mask.nonzero()[0].tolist() == list(minutes)


def test_where_sessions_never_end_packets_are_always_due() -> None:
    sunday_ns = parse_hour_key("2026-11-22T03:00")
    assert not is_trading(ExchangeSegment.MCX_COMM, sunday_ns, sunday_ns, False)
    assert trading_minutes(ExchangeSegment.MCX_COMM, sunday_ns, True).all()


def test_instruments_are_due_from_the_first_whole_minute_in_which_they_are_subscribed_and_trade() -> None:
    stretches = [subscribed(SHARE, 20, 24.5), subscribed(SHARE, 24.5, 29.5), subscribed(SHARE, 39.5)]
    due = due_in_hour([*stretches, subscribed(FUTURE, 30)], NINE, False)
    assert due.tokens.tolist() == [SHARE, FUTURE]
    assert due.minutes.sum(axis=1).tolist() == [10 + 20, 30]
    assert due.by_minute[[10, 19, 20, 29, 30, 45]].tolist() == [0, 0, 1, 1, 1, 2]


def test_before_the_open_nothing_is_due_and_without_subscriptions_nothing_ever() -> None:
    assert due_in_hour([subscribed(SHARE)], NINE, False).by_minute[:15].sum() == 0
    assert due_in_hour([], NINE, False).by_minute.tolist() == 60 * [0]


def test_now_those_segments_count_that_have_traded_for_a_minute() -> None:
    segments = {"NSE_EQ": {"instruments": 20, "heard": 21}, "MCX_COMM": {"instruments": 3, "heard": 2}}
    status = {"at": "2026-11-20T09:15:30+05:30", "segments": segments}
    settings = Settings(_env_file=None)
    assert trading_now(status, settings) == {"MCX_COMM": (3, 2)}
    later = status | {"at": "2026-11-20T09:16:00+05:30"}
    assert trading_now(later, settings) == {"NSE_EQ": (20, 20), "MCX_COMM": (3, 2)}
    assert trading_now({"at": status["at"]}, settings) == {}
