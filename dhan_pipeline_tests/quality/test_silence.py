"""Lively instruments that stop are found, and nobody else: over synthetic streams, hours of them in a second."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from dhan_pipeline.quality.silence import SILENT_INTERVALS, SILENT_S, SilenceWatch

START_NS = 1_795_000_000 * 10**9
RNG_SEED = 20261120

Fell = list[tuple[int, float]]
Back = list[tuple[int, float, float]]


def one_connection(instruments: int) -> NDArray[np.int16]:
    return np.zeros(instruments, np.int16)


class Stream:
    """Packets of many instruments, a block a second; tells in seconds from its start what the watch found when."""

    def __init__(self, connections: NDArray[np.int16]) -> None:
        self.watch = SilenceWatch(connections)
        self.instruments = len(connections)
        self.random = np.random.default_rng(RNG_SEED)
        self.now_s = 0
        self.fell: list[tuple[float, int, float]] = []
        """(when it was found, instrument, last packet)"""
        self.back: list[tuple[float, int, float, float]] = []
        """(when it was found, instrument, last packet before, first packet after)"""

    def run(self, seconds: int, rates: NDArray[np.float64]) -> None:
        """As many packets a second of each instrument, independent of each other."""
        for packets in self.random.poisson(rates, (seconds, self.instruments)):
            index = np.repeat(np.arange(self.instruments), packets)
            self.random.shuffle(index)
            self.second(index)

    def second(self, index: NDArray[np.int64]) -> None:
        offsets = np.sort(self.random.integers(0, 10**9, len(index)))
        self.watch.update(index.astype(np.int32), START_NS + self.now_s * 10**9 + offsets)
        self.now_s += 1
        fell, back = self.watch.check(START_NS + self.now_s * 10**9)
        self.fell += [(self.now_s, at, (last - START_NS) / 1e9) for at, last in fell]
        self.back += [(self.now_s, at, (last - START_NS) / 1e9, (first - START_NS) / 1e9) for at, last, first in back]


def spread(instruments: int, slowest: float = 0.02, fastest: float = 20.0) -> NDArray[np.float64]:
    """Rates of every order between the two, in packets a second."""
    return np.geomspace(slowest, fastest, instruments)


@pytest.mark.parametrize("rate", [0.02, 0.08, 0.12, 0.3, 1.0, 5.0])
def test_independent_packets_at_a_steady_rate_never_look_silent(rate: float) -> None:
    stream = Stream(one_connection(500))
    stream.run(3 * 3600, np.full(500, rate))
    assert stream.fell == []


def test_bursts_with_minutes_between_them_are_no_silence() -> None:
    stream = Stream(one_connection(200))
    steady = np.full(200, 1.0)
    steady[:20] = 0.0
    for _ in range(25):
        stream.run(20, np.where(steady == 0, 10.0, 1.0))
        stream.run(100, steady)
    assert stream.fell == []


def test_one_of_a_thousand_that_stops_is_found_within_the_bound_and_when_it_comes_back_both_times_are_known() -> None:
    stream = Stream(one_connection(1000))
    rates = spread(1000)
    stream.run(900, rates)
    victim = 800
    stopped = rates.copy()
    stopped[victim] = 0.0
    bound_s = max(SILENT_S, SILENT_INTERVALS / rates[victim])
    stream.run(120, stopped)
    [(found_s, index, last_s)] = stream.fell
    assert index == victim
    assert 900 - 40 / rates[victim] < last_s <= 900
    assert found_s - last_s < 1.5 * bound_s + 2
    assert stream.back == []

    stream.run(60, rates)
    [(_, index, before_s, first_s)] = stream.back
    assert (index, before_s) == (victim, last_s)
    assert 1020 < first_s < 1080
    assert len(stream.fell) == 1


def test_a_slow_but_steady_instrument_is_missed_after_minutes() -> None:
    stream = Stream(one_connection(1000))
    rates = np.full(1000, 2.0)
    rates[7] = 0.2
    stream.run(1800, rates)
    rates[7] = 0.0
    stream.run(400, rates)
    [(found_s, index, last_s)] = stream.fell
    assert index == 7
    assert 100 < found_s - last_s < 400


def test_a_stall_of_the_whole_connection_is_nobodys_silence_neither_while_it_lasts_nor_after() -> None:
    stream = Stream(one_connection(1000))
    rates = spread(1000)
    for seconds in (31, 45, 90, 600):
        stream.run(900, rates)
        stream.run(seconds, rates * 0)
    stream.run(900, rates)
    assert stream.fell == []


def test_a_market_that_slows_down_as_a_whole_is_nobodys_silence() -> None:
    stream = Stream(one_connection(1000))
    rates = spread(1000)
    stream.run(900, rates)
    stream.run(900, rates / 30)
    stream.run(900, rates)
    assert stream.fell == []


def test_where_most_of_a_connection_stops_at_once_it_is_not_the_instruments_matter() -> None:
    stream = Stream(one_connection(1000))
    rates = spread(1000)
    stream.run(900, rates)
    most = np.where(np.arange(1000) % 5 == 0, rates, 0.0)
    stream.run(900, most)
    assert stream.fell == []


def test_a_connection_that_stalls_does_not_hide_an_instrument_of_another() -> None:
    stream = Stream(np.repeat(np.array([0, 1], np.int16), 500))
    rates = np.full(1000, 2.0)
    stream.run(600, rates)
    rates[:500] = 0.0
    rates[777] = 0.0
    stream.run(60, rates)
    assert [index for _, index, _ in stream.fell] == [777]


def test_one_that_was_never_lively_may_stop() -> None:
    stream = Stream(one_connection(100))
    rates = np.full(100, 2.0)
    rates[3] = 0.05
    stream.run(3600, rates)
    rates[3] = 0.0
    stream.run(3600, rates)
    assert stream.fell == []


def test_a_burst_at_its_beginning_does_not_make_one_lively() -> None:
    stream = Stream(one_connection(100))
    rates = np.full(100, 2.0)
    rates[3] = 20.0
    stream.run(60, rates)
    rates[3] = 0.0
    stream.run(600, rates)
    assert stream.fell == []


def test_instruments_that_are_not_subscribed_are_not_watched() -> None:
    stream = Stream(np.where(np.arange(100) == 3, -1, 0).astype(np.int16))
    rates = np.full(100, 2.0)
    stream.run(600, rates)
    rates[3:5] = 0.0
    stream.run(60, rates)
    assert [index for _, index, _ in stream.fell] == [4]


def test_after_a_reset_everything_is_watched_anew() -> None:
    stream = Stream(one_connection(100))
    rates = np.full(100, 2.0)
    stream.run(600, rates)
    stopped = np.where(np.arange(100) == 3, 0.0, 2.0)
    stream.run(20, stopped)
    stream.watch.reset(0)
    stream.run(600, stopped)
    assert stream.fell == []
    stream.run(600, rates)
    assert stream.back == []
    stream.run(60, stopped)
    assert [index for _, index, _ in stream.fell] == [3]


def test_a_reset_of_one_connection_leaves_the_others_as_they_are() -> None:
    stream = Stream(np.repeat(np.array([0, 1], np.int16), 50))
    rates = np.full(100, 2.0)
    stream.run(600, rates)
    stopped = np.where(np.isin(np.arange(100), (3, 77)), 0.0, 2.0)
    stream.run(20, stopped)
    stream.watch.reset(1)
    stream.run(60, stopped)
    assert [index for _, index, _ in stream.fell] == [3]
    stream.watch.reset(1)
    stream.run(10, rates)
    assert [index for _, index, _, _ in stream.back] == [3]


def test_a_night_between_two_packets_is_no_silence_and_the_morning_begins_anew() -> None:
    stream = Stream(one_connection(1000))
    rates = np.full(1000, 2.0)
    stream.run(600, rates)
    stream.now_s += 17 * 3600
    opening = np.where(np.arange(1000) < 100, 2.0, 0.0)
    stream.run(600, opening)
    stream.run(600, rates)
    assert stream.fell == []
    rates[5] = 0.0
    stream.run(60, rates)
    assert [index for _, index, _ in stream.fell] == [5]


def test_one_that_comes_back_after_hours_is_reported_too() -> None:
    stream = Stream(one_connection(10))
    rates = np.full(10, 2.0)
    stream.run(600, rates)
    rates[5] = 0.0
    stream.run(5000, rates)
    rates[5] = 2.0
    stream.run(10, rates)
    assert [index for _, index, _ in stream.fell] == [5]
    assert [index for _, index, _, _ in stream.back] == [5]


def blocks(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    yield from (index[start : start + size] for start in range(0, len(index), size))


def test_it_does_not_matter_how_packets_are_cut_into_blocks() -> None:
    random = np.random.default_rng(RNG_SEED)
    index = random.integers(0, 50, 600 * 100)
    index = index[(index != 7) | (np.arange(len(index)) < 500 * 100)]
    received_ns = START_NS + np.arange(len(index)) * 10**7
    found = []
    for size in (1, 7, 500):
        watch = SilenceWatch(one_connection(50))
        fell = []
        for part in blocks(np.arange(len(index)), size):
            watch.update(index[part].astype(np.int32), received_ns[part])
            if part[-1] % 100 == 99 or size == 500:
                fell += watch.check(int(received_ns[part[-1]]))[0]
        found.append(fell)
    assert found[0] == found[1] == found[2]
    assert [at for at, _ in found[0]] == [7]


def test_what_is_known_of_others_stays_when_instruments_come_and_go() -> None:
    connections = one_connection(100)
    connections[90:] = -1
    stream = Stream(connections)
    rates = np.where(connections >= 0, 1.0, 0.0)
    stream.run(400, rates)
    changed = connections.copy()
    changed[:10], changed[90:] = -1, 1  # on a connection that was not there before
    anew = np.zeros(100, np.bool_)
    anew[20] = True
    stream.watch.change(changed, anew)
    rates = np.where(changed >= 0, 1.0, 0.0)
    rates[[5, 20, 30, 95]] = 0.0  # only the third of them is watched, and known to be lively
    stream.run(120, rates)
    assert [at for _, at, _ in stream.fell] == [30]
    stream.watch.change(changed, anew | (np.arange(100) == 30))  # who begins anew is not silent any more
    rates[[30, 95]] = 1.0
    stream.run(400, rates)
    assert (len(stream.fell), stream.back) == (1, [])
    rates[[30, 95]] = 0.0
    stream.run(120, rates)
    assert sorted(at for _, at, _ in stream.fell) == [30, 30, 95]
