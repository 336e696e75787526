"""Pauses of a lively connection are found, and nothing else: over streams of receive times, cut into blocks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dhan_pipeline.journal.block import Block
from dhan_pipeline.quality.pauses import PauseWatch

START_NS = 1_795_000_000 * 10**9
SECOND_NS = 10**9


def make_block(times_ns: Sequence[int], connections: Sequence[int]) -> Block:
    n = len(times_ns)
    return Block(
        1, np.array(times_ns, np.int64), np.array(connections, np.uint8), np.zeros(n, bool), b"", np.zeros(n + 1, int)
    )


def pauses(
    watch: PauseWatch, times_s: Sequence[float], connection: int = 0, in_block: int = 7
) -> list[tuple[int, float, float]]:
    """Found in messages at these times, in seconds from the start."""
    times_ns = [START_NS + round(at_s * SECOND_NS) for at_s in times_s]
    found = []
    for start in range(0, len(times_ns), in_block):
        part = times_ns[start : start + in_block]
        found += list(watch.see(make_block(part, [connection] * len(part))))
    return [(number, (since - START_NS) / SECOND_NS, (until - START_NS) / SECOND_NS) for number, since, until in found]


@pytest.mark.parametrize("in_block", [1, 7, 1000])
def test_a_pause_is_found_when_it_is_over_however_messages_are_cut_into_blocks(in_block: int) -> None:
    steady = np.arange(0, 60, 0.1)
    watch = PauseWatch(5.0)
    assert pauses(watch, steady, in_block=in_block) == []
    found = pauses(watch, 59.9 + 12 + np.arange(0, 10, 0.1), in_block=in_block)
    assert found == [(0, 59.9, 71.9)]


def test_a_pause_makes_no_habit_of_pauses() -> None:
    watch = PauseWatch(5.0)
    times = np.concatenate([n * 40 + np.arange(0, 30, 0.1) for n in range(6)])
    assert len(pauses(watch, times)) == 5


def test_a_night_is_one_pause_and_the_morning_has_its_own() -> None:
    watch = PauseWatch(5.0)
    pauses(watch, np.arange(0, 60, 0.1))
    morning = 17 * 3600 + np.arange(0, 60, 0.1)
    assert len(pauses(watch, morning)) == 1
    assert len(pauses(watch, morning + 70)) == 1


def test_what_is_rare_by_habit_has_no_pauses() -> None:
    times = np.cumsum(np.random.default_rng(7).exponential(2.0, 20_000))
    assert pauses(PauseWatch(5.0), times) == []


def test_bursts_with_quiet_between_them_are_no_pauses() -> None:
    times = np.concatenate([n * 10 + np.arange(0, 4, 0.05) for n in range(100)])
    assert pauses(PauseWatch(7.0), times) == []


def test_before_a_connection_is_known_nothing_is_said() -> None:
    assert pauses(PauseWatch(5.0), [0.0, 0.1, 0.2, 30.0, 30.1, 60.0]) == []


def test_a_connection_that_goes_on_does_not_hide_the_pause_of_another() -> None:
    watch = PauseWatch(5.0)
    found = []
    for tick in range(600):
        at_ns = START_NS + tick * SECOND_NS // 10
        both = not 400 < tick <= 500
        found += list(watch.see(make_block([at_ns] * (1 + both), [0, 3][: 1 + both])))
    assert [(number, until - since) for number, since, until in found] == [(3, 10_100_000_000)]


def test_the_pauses_of_two_connections_are_told_in_the_blocks_that_end_them() -> None:
    watch = PauseWatch(5.0)
    away = {0: [(3000, 3700), (6000, 6700)], 3: [(3300, 4000), (6000, 6700), (9000, 9600)]}
    told = []
    for tick in range(10_000):
        at_ns = START_NS + tick * SECOND_NS // 100
        here = [number for number, gone in away.items() if not any(since < tick < until for since, until in gone)]
        if here:
            told += [
                (tick, number, (since_ns - START_NS) * 100 // SECOND_NS, (until_ns - START_NS) * 100 // SECOND_NS)
                for number, since_ns, until_ns in watch.see(make_block([at_ns] * len(here), here))
            ]
    assert told == [
        (3700, 0, 3000, 3700),
        (4000, 3, 3300, 4000),
        (6700, 0, 6000, 6700),
        (6700, 3, 6000, 6700),
        (9600, 3, 9000, 9600),
    ]


def test_a_pause_that_ends_at_the_end_of_a_block_is_told_in_it() -> None:
    watch = PauseWatch(5.0)
    for tick in range(4000):
        at_ns = START_NS + tick * SECOND_NS // 100
        assert list(watch.see(make_block([at_ns, at_ns + 1], [0, 3][: 1 + (tick < 3000)] * (1 + (tick >= 3000))))) == []
    at_ns = START_NS + 40 * SECOND_NS
    since_ns = START_NS + 2999 * SECOND_NS // 100 + 1
    assert list(watch.see(make_block([at_ns, at_ns + 1, at_ns + 2], [0, 0, 3]))) == [(3, since_ns, at_ns + 2)]


def test_with_a_clock_that_runs_fast_seconds_are_those_of_the_machine() -> None:
    steady = np.arange(0, 3600, 6.0)
    assert pauses(PauseWatch(5.0, speed=60.0), [*steady, 3600 + 240]) == []
    assert pauses(PauseWatch(5.0, speed=60.0), [*steady, 3600 + 360]) == [(0, 3594.0, 3960.0)]


@pytest.mark.parametrize("in_block", [1, 7])
def test_heartbeats_do_not_hide_a_pause_of_data(in_block: int) -> None:
    data, beats = np.arange(0, 60, 0.1), np.arange(60, 72, 2.5)
    times = START_NS + (np.concatenate([data, beats, 72 + np.arange(0, 10, 0.1)]) * SECOND_NS).astype(np.int64)
    size = np.full(len(times), 100)
    size[len(data) : len(data) + len(beats)] = 1
    found: list[tuple[int, int, int]] = []
    watch = PauseWatch(5.0, heartbeat_size=1)
    for start in range(0, len(times), in_block):
        block = make_block(times[start : start + in_block].tolist(), [0] * len(times[start : start + in_block]))
        offsets = np.concatenate(([0], size[start : start + in_block].cumsum()))
        found += watch.see(replace(block, offsets=offsets))
    assert [(since - START_NS, until - START_NS) for _, since, until in found] == [(59_900_000_000, 72_000_000_000)]


def test_a_connection_that_is_to_be_learned_anew_has_no_pauses_until_then() -> None:
    watch = PauseWatch(5.0)
    assert pauses(watch, np.arange(0, 60, 0.1)) == []
    watch.forget(0)
    watch.forget(1)  # of which nothing is known
    slower = 60 + np.concatenate([np.arange(0, 200, 8.0), 200 + np.arange(0, 60, 0.1)])
    assert pauses(watch, slower) == []
    assert pauses(watch, [slower[-1] + 40]) == [(0, slower[-1] - 0, slower[-1] + 40)]
