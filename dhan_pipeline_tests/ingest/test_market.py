import json
from collections.abc import Sequence

import numpy as np
import pytest

from dhan_pipeline.ingest.market import MOVERS, Market
from dhan_pipeline.instruments import InstrumentIndex, generate_instrument_token, make_kite_token
from dhan_pipeline_tests.ingest.feed import SECOND_NS, START_NS

SHARES = [generate_instrument_token("NSE_EQ", number) for number in range(1, 26)]
INDEX = generate_instrument_token("IDX_I", 13)
FUTURE, OPTION = (generate_instrument_token("NSE_FNO", number) for number in (1, 2))
TOKENS = [*SHARES, INDEX, FUTURE, OPTION]


class Shown:
    """A market that is told of ticks a second."""

    def __init__(self, subscribed: Sequence[int] = TOKENS, speed: float = 1.0) -> None:
        self.market = Market(speed)
        self.know(TOKENS, subscribed)

    def know(self, tokens: Sequence[int], subscribed: Sequence[int] = TOKENS) -> None:
        self.instruments = InstrumentIndex(tokens)
        self.market.know(self.instruments, np.isin(self.instruments.tokens, subscribed), np.array([FUTURE, 99]))

    def see(self, at_ns: int, *ticks: tuple[int, float, float]) -> None:
        """(token, last price, previous close) of each."""
        if ticks:
            tokens, price, close = zip(*ticks, strict=True)
            received_us = np.full(len(ticks), at_ns // 1000)
            index = self.instruments.lookup(np.array(tokens))
            self.market.update(index, received_us, np.array(price), np.array(close))
        self.market.look(at_ns)


@pytest.fixture
def shown() -> Shown:
    return Shown()


def test_before_the_first_look_nothing_is_told() -> None:
    assert Market().facts(START_NS) == {"segments": {}, "movers": {}}


def test_of_a_feed_that_brings_nothing_it_is_told_what_is_subscribed(shown: Shown) -> None:
    segments = shown.market.facts(START_NS)["segments"]
    assert segments["NSE_EQ"] == {
        "ticks": 0,
        "ticks_per_second": 0.0,
        "last_at": None,
        "instruments": 25,
        "heard": 0,
    }
    shown.see(START_NS, (INDEX, 26_000.0, 25_900.0))
    assert shown.market.facts(START_NS)["segments"]["IDX_I"]["heard"] == 1


def test_ticks_are_counted_by_segment_with_their_rate_over_ten_seconds(shown: Shown) -> None:
    for second in range(30):
        at_ns = START_NS + second * SECOND_NS
        shown.see(at_ns, *[(token, 100.0, 99.0) for token in SHARES[:20]], (INDEX, 26_000.0, 25_900.0))
    segments = shown.market.facts(at_ns)["segments"]
    assert segments["NSE_EQ"] == {
        "ticks": 600,
        "ticks_per_second": 20.0,
        "last_at": "2026-11-20T03:30:29+00:00",
        "instruments": 25,
        "heard": 20,
    }
    assert segments["IDX_I"]["ticks_per_second"] == 1.0
    assert segments["NSE_FNO"] == {
        "ticks": 0,
        "ticks_per_second": 0.0,
        "last_at": None,
        "instruments": 2,
        "heard": 0,
    }
    assert list(segments) == ["IDX_I", "NSE_EQ", "NSE_FNO"]


def test_what_still_comes_of_one_that_is_subscribed_no_more_is_neither_heard_nor_a_mover(shown: Shown) -> None:
    shown.know(TOKENS, SHARES)
    shown.see(START_NS, (INDEX, 26_000.0, 25_900.0), (SHARES[0], 100.0, 99.0))
    facts = shown.market.facts(START_NS)
    assert facts["segments"]["IDX_I"]["heard"] == facts["segments"]["IDX_I"]["instruments"] == 0
    assert list(facts["movers"]) == ["shares"]


def test_rates_are_of_real_seconds_whatever_the_speed_of_the_clock() -> None:
    shown = Shown(speed=10.0)
    for second in range(0, 200, 10):
        at_ns = START_NS + second * SECOND_NS
        shown.see(at_ns, *[(SHARES[0], 100.0, 99.0)] * 50)
    assert shown.market.facts(at_ns)["segments"]["NSE_EQ"]["ticks_per_second"] == 50.0


def test_where_nothing_comes_any_more_rates_fall(shown: Shown) -> None:
    for second in range(12):
        at_ns = START_NS + second * SECOND_NS
        shown.see(at_ns, *[(SHARES[0], 100.0, 99.0)] * 60)
    rates = [
        shown.market.facts(at_ns + later * SECOND_NS)["segments"]["NSE_EQ"]["ticks_per_second"]
        for later in (0, 2, 7, 14)
    ]
    assert rates[:2] == [60.0, 60.0]
    assert 0 < rates[2] < 60.0
    assert rates[3] == 0.0


def test_the_last_tick_of_each_segment_is_told_when_they_come_together(shown: Shown) -> None:
    index = shown.instruments.lookup(np.array([INDEX, SHARES[0], INDEX, SHARES[1]]))
    received_us = START_NS // 1000 + np.array([1, 2, 3, 4])
    shown.market.update(index, received_us, np.ones(4), np.ones(4))
    shown.market.look(START_NS + SECOND_NS)
    segments = shown.market.facts(START_NS + SECOND_NS)["segments"]
    assert segments["IDX_I"]["last_at"].endswith("00.000003+00:00")
    assert segments["NSE_EQ"]["last_at"].endswith("00.000004+00:00")


def test_movers_are_those_of_each_group_and_options_are_none(shown: Shown) -> None:
    prices = [100.0 + number for number in range(-12, 13)]
    shown.see(START_NS, *[(token, price, 100.0) for token, price in zip(SHARES, prices, strict=True)])
    shown.see(
        START_NS + SECOND_NS,
        (INDEX, 26_000.0, 25_000.0),
        (FUTURE, 99.0, 100.0),
        (OPTION, 200.0, 100.0),
        (SHARES[24], 120.0, 100.0),
        (SHARES[24], 150.0, 100.0),
    )
    movers = shown.market.facts(START_NS)["movers"]
    assert movers["shares"]["up"][:2] == [
        {"instrument_token": SHARES[24], "last_price": 150.0, "change_percent": 50.0},
        {"instrument_token": SHARES[23], "last_price": 111.0, "change_percent": 11.0},
    ]
    down = [mover["change_percent"] for mover in movers["shares"]["down"]]
    assert down == [float(-12 + number) for number in range(MOVERS)]
    assert [mover["instrument_token"] for mover in movers["indices"]["up"]] == [INDEX]
    assert movers["indices"]["down"] == movers["futures"]["up"] == []
    assert [mover["instrument_token"] for mover in movers["futures"]["down"]] == [FUTURE]
    assert json.loads(json.dumps(movers)) == movers


def test_what_has_no_price_or_no_previous_close_is_no_mover(shown: Shown) -> None:
    shown.see(START_NS, (SHARES[0], np.nan, 100.0), (SHARES[1], 100.0, np.nan), (SHARES[2], 100.0, 100.0))
    facts = shown.market.facts(START_NS)
    assert facts["movers"]["shares"] == {"up": [], "down": []}
    assert facts["segments"]["NSE_EQ"]["heard"] == 3


def test_a_tick_without_a_price_leaves_the_one_that_was_known(shown: Shown) -> None:
    shown.see(START_NS, (INDEX, 26_000.0, 25_000.0), (SHARES[0], 101.0, 100.0))
    shown.see(
        START_NS + SECOND_NS,
        (INDEX, np.nan, np.nan),
        (SHARES[0], 102.0, 100.0),
        (SHARES[0], np.nan, 100.0),
        (SHARES[1], np.nan, np.nan),
        (SHARES[1], 103.0, 100.0),
        (SHARES[2], np.nan, np.nan),
    )
    assert shown.market.prices([INDEX, *SHARES[:3]]) == {INDEX: 26_000.0, SHARES[0]: 102.0, SHARES[1]: 103.0}
    facts = shown.market.facts(START_NS)
    assert [mover["change_percent"] for mover in facts["movers"]["indices"]["up"]] == [4.0]
    assert [mover["change_percent"] for mover in facts["movers"]["shares"]["up"]] == [3.0, 2.0]
    assert facts["segments"]["NSE_EQ"]["heard"] == 3


def test_prices_stay_where_more_instruments_become_known(shown: Shown) -> None:
    kite = make_kite_token(1, 7)  # type: ignore[arg-type]
    shown.see(START_NS, (SHARES[0], 101.0, 100.0))
    shown.know([kite, *TOKENS[::-1]], [kite, *TOKENS])
    shown.see(START_NS + SECOND_NS, (kite, 102.0, 100.0))
    up = shown.market.facts(START_NS)["movers"]["shares"]["up"]
    assert [(mover["instrument_token"], mover["change_percent"]) for mover in up] == [(kite, 2.0), (SHARES[0], 1.0)]


def test_the_last_price_of_an_instrument_can_be_had_where_there_was_one() -> None:
    market = Market()
    assert market.prices([5, 7]) == {}
    market.know(InstrumentIndex([5, 7, 9]), np.array([True, True, True]), np.zeros(0, np.int64))
    market.update(np.array([0, 1, 0]), np.array([1, 2, 3]), np.array([10.0, np.nan, 11.5]), np.full(3, np.nan))
    assert market.prices([5, 7, 9, 11]) == {5: 11.5}
    market.know(InstrumentIndex([5, 7, 9]), np.array([False, True, True]), np.zeros(0, np.int64))
    assert market.prices({5}) == {}  # it is not subscribed any more


def test_what_is_subscribed_no_more_is_no_mover(shown: Shown) -> None:
    shown.see(START_NS, (SHARES[0], 101.0, 100.0), (SHARES[1], 102.0, 100.0))
    shown.know(TOKENS, TOKENS[1:])
    shown.see(START_NS + SECOND_NS, (SHARES[2], 103.0, 100.0))
    facts = shown.market.facts(START_NS)
    assert [mover["instrument_token"] for mover in facts["movers"]["shares"]["up"]] == [SHARES[2], SHARES[1]]
    assert (facts["segments"]["NSE_EQ"]["instruments"], facts["segments"]["NSE_EQ"]["heard"]) == (24, 2)
