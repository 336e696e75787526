"""Bars of a minute: what each case gives, and the same as a loop over packets gives for random streams."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhan_pipeline.candles import HOUR_US, LATE_US, MINUTE_US, Bars, Earlier, GapTimes, minute_bars
from dhan_pipeline.sessions import day_start_ns, parse_hour_key
from dhan_pipeline.ticks import NULL_INT

HOUR = parse_hour_key("2026-11-20T10:00") // 1000
MIDNIGHT = parse_hour_key("2026-11-20T00:00") // 1000
S = 1_000_000
DAY = 24 * HOUR_US


@dataclass
class Tick:
    """Times in seconds after the hour. A trade of `ago` seconds before, or none."""

    at: float
    price: float = 100.0
    volume: int | None = None
    ago: float | None = 0.0
    quantity: int = 1
    oi: int | None = None
    token: int = 7
    tick_id: int | None = None
    stands_in: bool = False
    """The time of receipt, for that of the trade."""


def arrays(ticks: list[Tick], hour: int = HOUR) -> dict[str, np.ndarray[Any, Any]]:
    def ints(values: list[int | None]) -> np.ndarray[Any, Any]:
        return np.array([NULL_INT if value is None else value for value in values], np.int64)

    at = [hour + round(t.at * S) for t in ticks]
    traded = [None if t.ago is None else a - round(t.ago * S) for a, t in zip(at, ticks, strict=True)]
    return {
        "tick_id": ints([n if t.tick_id is None else t.tick_id for n, t in enumerate(ticks)]),
        "time": ints(list(at)),
        "instrument_token": ints([t.token for t in ticks]),
        "last_trade_time": ints([None if t is None else t // S * S for t in traded]),
        "trade_time_is_receipt": np.array([t.stands_in for t in ticks], np.bool_),
        "last_price": np.array([t.price for t in ticks], np.float64),
        "last_traded_quantity": ints([t.quantity for t in ticks]),
        "volume_traded": ints([t.volume for t in ticks]),
        "oi": ints([t.oi for t in ticks]),
    }


@dataclass
class Heard:
    """What came before, of one instrument; `at` in seconds after the hour."""

    volume: int = 0
    days_ago: int | None = 0
    at: float = -400.0
    seen: bool = True
    printed: bool = True
    token: int = 7


def earlier(*heard: Heard, hour: int = HOUR) -> Earlier:
    heard = tuple(sorted(heard, key=lambda h: h.token))
    today = ist_day(hour - LATE_US)
    return Earlier(
        np.array([h.token for h in heard], np.int64),
        np.array([0 if h.days_ago is None else today - h.days_ago for h in heard], np.int64),
        np.array([h.volume for h in heard], np.int64),
        np.array([hour + round(h.at * S) for h in heard], np.int64),
        np.array([h.seen for h in heard], np.bool_),
        np.array([h.printed for h in heard], np.bool_),
    )


def gap_times(*gaps: tuple[int, float, float], hour: int = HOUR) -> GapTimes:
    """Each of an instrument, from and to in seconds after the hour."""
    at = [(hour + round(start * S), hour + round(end * S)) for _, start, end in gaps]
    return GapTimes(
        np.array([token for token, _, _ in gaps], np.int64),
        np.array([start for start, _ in at], np.int64),
        np.array([end for _, end in at], np.int64),
    )


def bars(
    *ticks: Tick, before: Earlier | None = None, gaps: GapTimes | None = None, hour: int = HOUR
) -> list[dict[str, Any]]:
    """The bars as dictionaries; the time in minutes after the hour, NULL is None."""
    found = minute_bars(arrays(list(ticks), hour), before or earlier(), gaps or gap_times(), hour)
    return as_rows(found, hour)


def as_rows(found: Bars, hour: int = HOUR) -> list[dict[str, Any]]:
    columns = {f.name: getattr(found, f.name).tolist() for f in fields(found)}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        row["time"] = (row["time"] - hour) // MINUTE_US
        for name, value in row.items():
            if value == NULL_INT or value != value:
                row[name] = None
    return rows


def volumes(*ticks: Tick, **given_: Any) -> dict[int, int | None]:
    return {row["time"]: row["volume"] for row in bars(*ticks, **given_)}


def test_a_bar_has_prices_volume_turnover_and_open_interest() -> None:
    (bar,) = bars(
        Tick(1, 100.0, 1010, oi=5),
        Tick(2, 103.0, 1030, oi=6),
        Tick(3, 98.0, 1040, oi=None),
        Tick(4, 99.0, 1040, ago=1),
        before=earlier(Heard(1000)),
    )
    assert bar == {
        "instrument_token": 7,
        "time": 0,
        "open": 100.0,
        "high": 103.0,
        "low": 98.0,
        "close": 99.0,
        "volume": 40,
        "turnover": 10 * 100.0 + 20 * 103.0 + 10 * 98.0,
        "oi": 6,
        "ticks": 4,
        "touches_gap": False,
        "starts_late": False,
    }


def test_packets_are_taken_in_order_of_receipt_whatever_their_order_here() -> None:
    (bar,) = bars(
        Tick(3, 98.0, 30),
        Tick(1, 101.0, 20, tick_id=9),
        Tick(1, 100.0, 10, tick_id=8),
        before=earlier(Heard(0)),
    )
    assert (bar["open"], bar["close"], bar["turnover"]) == (100.0, 98.0, 1000.0 + 1010.0 + 980.0)


def test_a_packet_of_the_last_second_that_comes_in_the_next_hour_is_of_the_hour_before() -> None:
    late = Tick(3600.2, 101.0, 120, ago=0.3)
    stream = [Tick(1, 100.0, 100), late, Tick(3601, 102.0, 130)]
    assert volumes(*stream, before=earlier(Heard(90))) == {0: 10, 59: 20}
    next_hour = [Tick(t.at - 3600, t.price, t.volume, t.ago) for t in (late, stream[2])]
    assert volumes(*next_hour, before=earlier(Heard(100), hour=HOUR + HOUR_US), hour=HOUR + HOUR_US) == {0: 10}


def test_a_capture_that_starts_late_does_not_say_what_was_traded_before() -> None:
    first, second = bars(Tick(10, volume=5000), Tick(70, volume=5010))
    assert (first["volume"], first["turnover"], first["starts_late"]) == (0, 0.0, True)
    assert (second["volume"], second["starts_late"]) == (10, False)


def test_the_first_bar_of_a_day_says_that_it_starts_late_also_if_a_snapshot_came_before() -> None:
    (bar,) = bars(Tick(10, volume=5000, ago=4000), Tick(130, volume=5010))
    assert (bar["time"], bar["volume"], bar["starts_late"]) == (2, 10, True)
    # The snapshot came hours before, and no trade since.
    (bar,) = bars(Tick(130, volume=5010), before=earlier(Heard(5000, printed=False)))
    assert (bar["volume"], bar["starts_late"]) == (10, True)


def test_a_first_packet_whose_trade_is_all_of_the_volume_is_the_first_trade() -> None:
    (bar,) = bars(Tick(10, volume=75, quantity=75))
    assert (bar["volume"], bar["starts_late"]) == (75, False)
    assert bars(Tick(10, volume=75, quantity=75, ago=20 * 3600)) == []  # yesterday's


def test_a_snapshot_of_yesterday_makes_way_for_the_first_trade_of_today() -> None:
    (bar,) = bars(Tick(10, volume=90_000, ago=20 * 3600), Tick(20, volume=75), Tick(30, volume=100))
    assert (bar["volume"], bar["ticks"], bar["starts_late"]) == (100, 2, False)
    assert volumes(Tick(20, volume=75), before=earlier(Heard(90_000, days_ago=1))) == {0: 75}


def test_what_never_traded_begins_at_zero() -> None:
    (bar,) = bars(Tick(10, volume=0, ago=None), Tick(20, volume=75, quantity=25))
    assert (bar["volume"], bar["starts_late"]) == (75, False)


def test_a_minute_without_packets_has_no_bar_and_its_volume_is_in_the_next() -> None:
    assert volumes(Tick(10, volume=10), Tick(130, volume=40), before=earlier(Heard(0))) == {0: 10, 2: 30}


def test_the_break_between_pre_open_and_continuous_trading_counts_nothing_twice() -> None:
    hour = parse_hour_key("2026-11-20T09:00") // 1000
    stream = [
        Tick(5, 99.0, 80_000, ago=18 * 3600),  # after subscribing
        Tick(7 * 60 + 55, 101.0, 500),  # the auction's match
        *(Tick(60 * minute, 101.0, 500, ago=60 * minute - 475) for minute in range(8, 15)),
        Tick(15 * 60 + 1, 102.0, 700),
    ]
    found = bars(*stream, hour=hour)
    assert [(bar["time"], bar["volume"], bar["close"]) for bar in found] == [(7, 500, 101.0), (15, 200, 102.0)]


def test_at_midnight_a_new_day_begins() -> None:
    stream = [Tick(-1, volume=1000), Tick(1, volume=1010, ago=2), Tick(70, volume=20), Tick(80, volume=25)]
    before = earlier(Heard(900), hour=MIDNIGHT)
    assert volumes(*stream, before=before, hour=MIDNIGHT) == {1: 25}
    evening = [Tick(t.at + 3600, t.price, t.volume, t.ago) for t in stream]
    hour = MIDNIGHT - HOUR_US
    # The packet after midnight is the first of its day.
    assert volumes(*evening, before=earlier(Heard(900), hour=hour), hour=hour) == {59: 100}


def test_two_captures_of_an_instrument_count_each_trade_once() -> None:
    one = [Tick(second, volume=100 + 10 * second) for second in range(1, 120)]
    other = [Tick(second + 0.7, volume=100 + 10 * second, ago=0.7) for second in range(1, 120)]
    lags = [Tick(second + 4.1, volume=100 + 10 * second, ago=4.1) for second in range(1, 115)]
    found = bars(*one, *other, *lags, before=earlier(Heard(100)))
    assert [bar["volume"] for bar in found] == [590, 600]
    assert sum(bar["ticks"] for bar in found) == len(one + other + lags)


def test_a_step_back_counts_nothing_until_it_is_made_good() -> None:
    stream = [Tick(1, volume=100), Tick(2, volume=60), Tick(3, volume=90), Tick(4, volume=120)]
    assert volumes(*stream, before=earlier(Heard(80))) == {0: 40}


def test_a_packet_of_a_trade_day_that_is_over_counts_nothing() -> None:
    stream = [Tick(1, volume=100), Tick(2, volume=90_000, ago=20 * 3600), Tick(3, volume=120)]
    assert volumes(*stream, before=earlier(Heard(80))) == {0: 40}


def test_a_repeated_trade_of_long_ago_makes_no_bar_but_new_volume_does() -> None:
    before = earlier(Heard(80))
    assert bars(Tick(1000, volume=80, ago=301), before=before) == []
    # It may not be further from its receipt than five minutes.
    assert volumes(Tick(1000, volume=90, ago=900), before=before) == {(1000 - 300) // 60: 10}


def test_what_has_no_volume_has_prices_only() -> None:
    (bar,) = bars(Tick(1, 100.0), Tick(2, 101.0))
    assert (bar["open"], bar["close"], bar["volume"], bar["turnover"], bar["oi"]) == (100.0, 101.0, None, None, None)
    assert not bar["starts_late"]


def test_a_packet_without_a_price_is_no_trade() -> None:
    assert bars(Tick(1, np.nan, 10), before=earlier(Heard(0))) == []


@pytest.mark.parametrize(
    ("gap", "touched"),
    [
        ((7, 70.0, 80.0), [False, True, False]),  # in a minute
        ((7, 30.0, 70.0), [True, True, False]),
        ((7, 125.0, 170.0), [False, False, True]),  # in a minute without a bar, whose volume is in the next
        ((7, 70.0, 170.0), [False, True, True]),
        ((8, 70.0, 80.0), [False, False, False]),
        ((7, -900.0, -800.0), [False, False, False]),  # ended before what was heard of it last
        ((7, -900.0, -400.0), [False, False, False]),  # with what was heard of it last
        ((7, -900.0, -30.0), [True, False, False]),
        ((7, 60.0, 61.0), [False, True, False]),
        ((7, 59.0, 60.0), [True, True, False]),
        ((7, 3700.0, 9000.0), [False, False, False]),
    ],
)
def test_a_bar_touches_the_gaps_in_its_minute_and_those_that_its_volume_was_traded_across(
    gap: tuple[int, float, float], touched: list[bool]
) -> None:
    stream = [Tick(10, volume=10), Tick(90, volume=20), Tick(200, volume=30)]
    assert [bar["touches_gap"] for bar in bars(*stream, before=earlier(Heard(0)), gaps=gap_times(gap))] == touched


def test_the_last_packet_before_a_gap_is_not_across_it() -> None:
    stream = [Tick(61, volume=10, ago=2), Tick(200, volume=30)]
    touched = [bar["touches_gap"] for bar in bars(*stream, before=earlier(Heard(0)), gaps=gap_times((7, 61.0, 90.0)))]
    assert touched == [False, True]


def test_without_a_trade_time_a_packet_that_traded_nothing_makes_no_bar() -> None:
    quotes = (Tick(at, volume=volume, stands_in=True) for at, volume in ((-10, 50), (10, 50), (70, 55), (130, 55)))
    assert [(bar["time"], bar["volume"]) for bar in bars(*quotes)] == [(1, 5)]
    [index] = bars(Tick(10, price=7.0, stands_in=True))
    assert (index["close"], index["volume"]) == (7.0, None)


def test_nothing_gives_no_bars() -> None:
    assert bars() == bars(Tick(1, ago=None)) == bars(Tick(-200)) == []


def ist_day(at_us: int) -> int:
    return int(day_start_ns(at_us * 1000) // 1000 + 19_800 * S) // DAY


def naive(ticks: list[dict[str, Any]], before: Earlier, gaps: GapTimes, hour: int) -> list[dict[str, Any]]:
    """The definition, a packet at a time."""
    today = ist_day(hour - LATE_US)
    state: dict[tuple[int, int], dict[str, Any]] = {}
    for n, token in enumerate(before.instrument_token.tolist()):
        state[token, today] = {
            "day": before.trade_day[n],
            "volume": before.volume[n],
            "seen": before.seen[n],
            "printed": before.printed[n],
        }
    last = dict(zip(before.instrument_token.tolist(), before.received_us.tolist(), strict=True))
    of_gaps = list(zip(*(getattr(gaps, f.name).tolist() for f in fields(gaps)), strict=True))
    made: dict[tuple[int, int], dict[str, Any]] = {}
    for t in sorted(ticks, key=lambda t: (t["time"], t["tick_id"])):
        token, at, traded_at, volume = t["instrument_token"], t["time"], t["last_trade_time"], t["volume_traded"]
        now = state.setdefault((token, ist_day(at)), {"day": 0, "volume": 0, "seen": False, "printed": False})
        is_trade = traded_at is not None and t["last_price"] is not None
        traded, known = 0, now["volume"] if now["day"] == ist_day(at) else 0
        if is_trade and volume is not None:
            day = ist_day(traded_at)
            if day > now["day"]:
                all_of_it = day == ist_day(at) and (now["seen"] or volume == t["last_traded_quantity"])
                now["day"], now["volume"] = day, 0 if all_of_it else volume
                known = now["volume"] if day == ist_day(at) else 0
            if day == now["day"]:
                traded = max(0, volume - now["volume"])
                now["volume"] += traded
        now["seen"] |= volume is not None
        previous, last[token] = last.get(token, 0), at
        if not is_trade or (traded == 0 and abs(at - traded_at) > LATE_US):
            continue
        if traded == 0 and t["trade_time_is_receipt"] and volume is not None:
            continue
        first_print, now["printed"] = not now["printed"], True
        minute = min(max(traded_at, at - LATE_US), at + LATE_US) // MINUTE_US * MINUTE_US
        if not hour <= minute < hour + HOUR_US:
            continue
        bar = made.setdefault(
            (token, minute),
            {"prices": [], "volume": None, "turnover": None, "oi": None, "gap": False, "late": False},
        )
        bar["prices"].append(t["last_price"])
        if volume is not None:
            bar["volume"] = (bar["volume"] or 0) + traded
            bar["turnover"] = (bar["turnover"] or 0.0) + traded * t["last_price"]
        bar["oi"] = bar["oi"] if t["oi"] is None else t["oi"]
        bar["late"] |= first_print and known > 0
        for concerned, start, end in of_gaps:
            if concerned == token:
                bar["gap"] |= start < minute + MINUTE_US and end > minute
                bar["gap"] |= traded > 0 and start < at and end > previous
    return [
        {
            "instrument_token": token,
            "time": (minute - hour) // MINUTE_US,
            "open": bar["prices"][0],
            "high": max(bar["prices"]),
            "low": min(bar["prices"]),
            "close": bar["prices"][-1],
            "volume": bar["volume"],
            "turnover": bar["turnover"],
            "oi": bar["oi"],
            "ticks": len(bar["prices"]),
            "touches_gap": bar["gap"],
            "starts_late": bar["late"],
        }
        for (token, minute), bar in sorted(made.items())
    ]


TOKENS = st.sampled_from([7, 8])
#: Around the edges of the hour, and within it; exact to a quarter of a second.
SECONDS = st.one_of(st.integers(-1200, 1200), st.integers(3600 * 4 - 1200, 3600 * 4 + 1199)).map(lambda n: n / 4)
AGO = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.25, 1.0, 30.0, 299.75, 300.0, 300.25, -300.0, -300.25, -1.0, 900.0]),
    st.sampled_from([9.0 * 3600, 12.0 * 3600, 24.0 * 3600, 36.0 * 3600]),
)
TICKS = st.builds(
    Tick,
    at=SECONDS,
    price=st.one_of(st.integers(1, 9).map(float), st.just(np.nan)),
    volume=st.one_of(st.none(), st.integers(0, 60)),
    ago=AGO,
    quantity=st.integers(0, 60),
    oi=st.one_of(st.none(), st.integers(0, 9)),
    token=TOKENS,
    stands_in=st.booleans(),
)
HEARD = st.lists(
    st.builds(
        Heard,
        volume=st.integers(0, 60),
        days_ago=st.sampled_from([0, 0, 1]),
        at=st.sampled_from([-300.25, -900.0, -3000.0]),
        seen=st.booleans(),
        printed=st.booleans(),
        token=st.sampled_from([7, 8, 9]),
    ),
    unique_by=lambda heard: heard.token,
    max_size=3,
)
GAPS = st.lists(
    st.tuples(st.sampled_from([7, 8, 9]), SECONDS, st.sampled_from([0.0, 0.25, 30.0, 90.0, 700.0, 4000.0])).map(
        lambda gap: (gap[0], gap[1], gap[1] + gap[2])
    ),
    max_size=3,
)


@settings(max_examples=400)
@given(
    ticks=st.lists(TICKS, max_size=25),
    heard=HEARD,
    gaps=GAPS,
    hour=st.sampled_from([HOUR, MIDNIGHT, MIDNIGHT - HOUR_US]),
)
def test_the_bars_are_those_of_a_loop_over_packets(
    ticks: list[Tick], heard: list[Heard], gaps: list[tuple[int, float, float]], hour: int
) -> None:
    before, times, columns = earlier(*heard, hour=hour), gap_times(*gaps, hour=hour), arrays(ticks, hour)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    for row in rows:
        row |= {name: None for name, value in row.items() if value == NULL_INT or value != value}
    assert as_rows(minute_bars(columns, before, times, hour), hour) == naive(rows, before, times, hour)
