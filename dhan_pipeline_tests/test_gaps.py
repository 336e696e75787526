"""Whatever breaks, the missing time is in `feed_gaps`, and everything outside of it is stored."""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhan_pipeline.feeds.simulator import dhan as dhan_simulator
from dhan_pipeline.feeds.simulator.dhan import MAX_INSTRUMENTS, DhanSimulator
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.holder import Holder
from dhan_pipeline.journal.reader import capture_dir, list_files
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.child import Child, capture, settled, until
from dhan_pipeline_tests.conservation import check
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    SUBSCRIBED,
    SUBSCRIPTIONS_OF,
    add_instruments,
    assert_stored_exactly_once,
    prepare_capture,
    query,
    simulator_of,
)
from dhan_pipeline_tests.ingest.running import ingest

RATE = 2000.0


@pytest.fixture
def settings(tmp_path: Path, database_url: str, source: Source) -> Settings:
    settings = Settings(
        _env_file=None,
        data_source=source,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        kite_token_file=tmp_path / "token.json",
        feed_silence_s=10.0,
    )
    prepare_capture(settings)
    return settings


@asynccontextmanager
async def captured(settings: Settings, simulator: DhanSimulator | KiteSimulator) -> AsyncIterator[Child]:
    """A capture that has stored something; ended in order where the test did not end it."""
    simulator.rate = RATE
    async with capture(settings, simulator.feed_url) as child:
        await more(child)
        yield child
        if child.process.returncode is None:
            # What is on its way when it is asked to stop would be missed after the last gap that is recorded.
            simulator.rate = 0
            simulator.flush()
            await settled(child)
            child.process.send_signal(signal.SIGTERM)
            assert await child.ended() == 0


async def more(child: Child, ticks: float = RATE / 2) -> None:
    """Wait until so many more ticks are stored."""
    before = child.stored
    await until(lambda: child.stored >= before + ticks)


def assert_conserved(simulator: DhanSimulator | KiteSimulator, settings: Settings) -> None:
    """What the exchange sent is in the journal or in a gap, what is in the journal is stored or rejected, once."""
    report = check(simulator.logs, settings, settings.database_url or "")
    assert report.problems == []
    assert report.packets > RATE / 2


def gaps(settings: Settings) -> list[tuple[Any, ...]]:
    """Cause, detail and recovery of each gap in the table, by start."""
    assert settings.database_url is not None
    return query(settings.database_url, "SELECT cause, detail, recovery FROM feed_gaps ORDER BY started_at, gap_id")


@BOTH_SOURCES
async def test_a_reset_connection_leaves_a_gap_with_its_instruments_and_its_end(
    settings: Settings, database_url: str
) -> None:
    async with simulator_of(settings, rate=RATE, record=True) as simulator, captured(settings, simulator) as child:
        simulator.reset()
        await until(lambda: child.last_status["gaps"] == 1)
        await more(child)
        status = child.last_status
    [(cause, detail, recovery)] = gaps(settings)
    assert (cause, recovery) == ("reset", "connected and subscribed again")
    assert detail.startswith("the connection was lost")
    [(instruments, seconds)] = query(
        database_url, "SELECT instruments, extract(epoch FROM ended_at - started_at)::float FROM feed_gaps"
    )
    subscribed = [subscription.instrument_token for subscription in SUBSCRIPTIONS_OF[settings.source]]
    assert sorted(instruments) == sorted(subscribed)  # type: ignore[call-overload]
    assert 0 < seconds < 30  # type: ignore[operator]
    assert status["gap_open_s"] == 0
    assert status["gap_recent_s"] == pytest.approx(seconds, abs=0.001)
    events = [event for event in child.events if event["event"] == "gap"]
    assert [event["ended_at"] is None for event in events] == [True, False]
    assert_conserved(simulator, settings)


async def test_a_capture_that_was_stopped_missed_what_came_until_it_was_started_again(settings: Settings) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator:
        async with captured(settings, simulator):
            pass
        async with captured(settings, simulator) as child:
            status = child.last_status
    assert gaps(settings) == [("stop", "", "the capture ran again")]
    assert status["gap_stopped_s"] > 0
    assert (status["gap_open_s"], status["gap_recent_s"], status["gaps"]) == (0, 0, 1)
    assert_conserved(simulator, settings)


@BOTH_SOURCES
async def test_the_gap_after_a_kill_begins_with_the_last_packet_that_was_durable(
    settings: Settings, database_url: str
) -> None:
    async with simulator_of(settings, rate=RATE, record=True) as simulator:
        async with captured(settings, simulator) as child:
            child.process.kill()
            await child.ended()
        last_ns = query(database_url, "SELECT max(last_received) FROM ingest_ledger")[0][0]
        async with captured(settings, simulator):
            pass
    assert gaps(settings) == [("restart", "", "the capture ran again")]
    [(started_at,)] = query(database_url, "SELECT started_at FROM feed_gaps")
    assert started_at >= last_ns  # type: ignore[operator]
    assert_conserved(simulator, settings)


async def test_after_the_machine_went_down_the_gap_says_so(settings: Settings) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator:
        async with captured(settings, simulator) as child:
            child.process.kill()
            await child.ended()
        with (capture_dir(settings.journal_dir, 0) / "lock").open("r+b") as lock:
            Holder(child.process.pid, "another run of the machine").write(lock.fileno())
        async with captured(settings, simulator):
            pass
    assert gaps(settings) == [("host down", "", "the capture ran again")]
    assert_conserved(simulator, settings)


async def test_a_kill_while_a_connection_is_away_leaves_no_gap_open(settings: Settings, database_url: str) -> None:
    refusing = True
    async with DhanSimulator(
        SUBSCRIBED, rate=RATE, record=True, accept=lambda *_: 800 if refusing else None
    ) as simulator:
        async with capture(settings, simulator.feed_url) as child:
            refusing = False
            await more(child)
            refusing = True
            simulator.reset()
            await until(lambda: child.last_status["gap_open_s"] > 0)
            await until(lambda: query(database_url, "SELECT count(*) FROM feed_gaps WHERE ended_at IS NULL")[0][0])
            child.process.kill()
            await child.ended()
        refusing = False
        async with captured(settings, simulator):
            pass
    causes = [cause for cause, _, _ in gaps(settings)]
    assert causes[-2:] == ["reset", "restart"]
    assert query(database_url, "SELECT count(*) FROM feed_gaps WHERE ended_at IS NULL") == [(0,)]
    [(seam,)] = query(
        database_url,
        "SELECT extract(epoch FROM (SELECT started_at FROM feed_gaps WHERE cause = 'restart') - ended_at)::float "
        "FROM feed_gaps WHERE cause = 'reset' ORDER BY gap_id DESC LIMIT 1",
    )
    assert seam == 0  # one goes over into the other
    assert_conserved(simulator, settings)


async def test_an_exchange_that_vanishes_without_a_word_is_missed_and_found_again(settings: Settings) -> None:
    hasty = settings.model_copy(update={"feed_silence_s": 3.0})
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator, captured(hasty, simulator) as child:
        async with happening(simulator, parse_fault("vanish")):
            await until(lambda: child.last_status["gap_open_s"] > hasty.feed_silence_s)
        await until(lambda: child.last_status["gap_open_s"] == 0)
        await more(child)
    cause, _, recovery = gaps(settings)[0]
    assert (cause, recovery) == ("stall", "connected and subscribed again")
    assert_conserved(simulator, settings)


async def test_a_process_that_was_suspended_knows_that_it_missed_packets(settings: Settings, database_url: str) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator, captured(settings, simulator) as child:
        child.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(6)  # the fault itself
        child.process.send_signal(signal.SIGCONT)
        await more(child)
    assert ("suspended", "the process stood still", "the process went on") in gaps(settings)
    assert any("The process stood still for" in event.get("message", "") for event in child.events)
    assert_conserved(simulator, settings)


async def test_blocks_that_rot_before_they_are_stored_leave_a_gap_with_their_place(
    settings: Settings, database_url: str
) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator:
        async with capture(away, simulator.feed_url) as child:
            await until(lambda: child.last_status.get("messages", 0) > RATE)
            child.process.kill()
            await child.ended()
        path = max(list_files(settings.journal_dir, 0), key=lambda path: path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"rotten")
        async with captured(settings, simulator):
            pass
    [(_, detail, recovery)] = [gap for gap in gaps(settings) if gap[0] == Cause.DISK]
    assert f"{path}: " in detail
    assert "bytes at offset" in detail
    assert recovery == "what follows was read"
    assert_stored_exactly_once(settings, database_url)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="this system cannot limit another process's files")
async def test_a_disk_that_takes_no_more_ends_the_capture_with_a_sentence_and_the_next_one_notes_the_gap(
    settings: Settings, database_url: str
) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator:
        async with capture(settings, simulator.feed_url) as child:
            await more(child)
            size = max(path.stat().st_size for path in list_files(settings.journal_dir, 0)) + 50_000
            resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (size, size))
            assert await child.ended() == 1
        assert child.events[-1]["event"] == "error"
        assert "The journal cannot be written" in child.events[-1]["message"]
        assert "Traceback" not in child.log
        async with captured(settings, simulator):
            pass
    assert gaps(settings) == [("disk", "", "the capture ran again")]
    assert_conserved(simulator, settings)


async def test_two_connections_have_gaps_of_their_own(settings: Settings, database_url: str) -> None:
    many = [
        Subscription(generate_instrument_token("NSE_EQ", 200_000 + n), Mode.TICKER, f"T{n}")
        for n in range(MAX_INSTRUMENTS + 50)
    ]
    write_subscriptions(settings.subscriptions_path, many)
    add_instruments(database_url, [subscription.instrument_token for subscription in many])
    tokens = [subscription.instrument_token for subscription in many]
    async with DhanSimulator(tokens, rate=RATE, record=True) as simulator, captured(settings, simulator) as child:
        await until(lambda: len(simulator.connections) == 2)
        simulator.connections[-1].reset()
        await until(lambda: child.last_status["gaps"] == 1)
        await until(lambda: child.last_status["gap_open_s"] == 0)
        await more(child)
    [(connection, instruments)] = query(database_url, "SELECT connection, instruments FROM feed_gaps")
    assert connection == 1
    assert sorted(instruments) == tokens[len(tokens) // 2 :]  # type: ignore[call-overload]
    assert_conserved(simulator, settings)


async def test_what_moves_to_another_connection_is_watched_there_and_missed_from_where_it_was_lost(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dhan_simulator, "MAX_INSTRUMENTS", 60)
    tokens = [generate_instrument_token("NSE_EQ", 200_000 + n) for n in range(100)]
    write_subscriptions(settings.subscriptions_path, [Subscription(token, Mode.TICKER, str(token)) for token in tokens])
    add_instruments(database_url, tokens)
    async with DhanSimulator(tokens, rate=RATE, record=True) as simulator:
        of_feed = settings.model_copy(update={"dhan_feed_url": simulator.feed_url})
        async with ingest(of_feed) as running:
            liveliness = running.capture._writer.liveliness
            await until(
                lambda: sorted(np.bincount(liveliness._connection_of[liveliness._connection_of >= 0])) == [50, 50]
            )
            await until(lambda: not running.capture._gaps._open)
            of_feed_now = {number: running.capture._feed.instruments(number) for number in (0, 1)}
            watched = {
                number: tuple(liveliness._instruments.tokens[liveliness._connection_of == number]) for number in (0, 1)
            }
            assert {number: tuple(sorted(each)) for number, each in of_feed_now.items()} == watched
            simulator.rate = 0
            simulator.flush()
            await until(lambda: running.of_kind("status")[-1]["backlog_seconds"] == 0.0)
    rows = query(
        database_url,
        "SELECT connection, cause, array_length(instruments, 1), started_at FROM feed_gaps ORDER BY connection",
    )
    assert [row[:3] for row in rows] == [(0, "limit", 100), (1, "limit", 50)]
    assert rows[0][3] == rows[1][3]
    assert_conserved(simulator, settings)
