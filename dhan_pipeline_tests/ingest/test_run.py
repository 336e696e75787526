from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.requests import MAX_CONNECTIONS, MAX_INSTRUMENTS_PER_CONNECTION
from dhan_pipeline.feeds.errors import CredentialsError
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.ingest import run as run_module
from dhan_pipeline.ingest.capture import Receiver
from dhan_pipeline.ingest.rebuild import rebuild_hour
from dhan_pipeline.ingest.run import ClockBehindError, Ingest
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.journal.reader import hour_path, hour_summary, read_blocks
from dhan_pipeline.journal.writer import JournalWriter, LockHeldError
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.special_days import use_special_days
from dhan_pipeline.store import ledger
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.subscriptions import Subscription, SubscriptionError, read_subscriptions, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    CLIENT_ID,
    EQUITY,
    HOUR,
    NEXT_HOUR,
    SECOND_NS,
    START_NS,
    SUBSCRIBED,
    HandClock,
    assert_stored_exactly_once,
    feed_messages,
    outage,
    prepare_capture,
    query,
    record,
    simulator_of,
    ticker,
)
from dhan_pipeline_tests.ingest.running import Running, ingest, stored, with_feed


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """Settings of a capture that lacks nothing."""
    prepare_capture(settings)
    return settings


async def test_what_the_exchange_sent_over_the_edge_of_an_hour_is_stored_and_the_hour_told_complete(
    ready: Settings, database_url: str, conn: connection
) -> None:
    clock = Clock(START_NS + HOUR_NS - 500 * SECOND_NS, speed=100.0)
    save_token(ready.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6, clock=clock), CLIENT_ID)
    async with DhanSimulator(SUBSCRIBED, rate=4000, clock=clock) as simulator:
        async with ingest(with_feed(ready, simulator), clock) as running:
            await until(lambda: HOUR in running.complete_hours)
            assert ledger.hour_totals(conn, HOUR).packets > 1000
            conn.rollback()
            at_ns = clock.now_ns()
            await until(lambda: clock.now_ns() > at_ns + 60 * SECOND_NS)
            simulator.rate = 0
            simulator.flush()
            sent = sum(simulator.sent.values())
            await until(lambda: stored(database_url)[1] == sent)
            assert running.capture._feed.connections_up == 1
        assert sum(simulator.sent.values()) == sent
        assert simulator.skipped == 0

    assert running.events[0]["event"] == "started"
    assert running.events[-1] == {"event": "stopped", "reason": "asked to stop"}
    assert running.of_kind("warning") == []
    assert running.complete_hours == [HOUR]
    status = running.of_kind("status")[-1]
    assert (status["packets"], status["messages"], status["rejected"]) == (
        sent + 1,
        sent,
        0,
    )  # and the note that it started
    assert status["packets"] == status["ticks"] + status["state"] + status["control"]
    assert status["backlog_seconds"] == 0.0
    assert {name: facts["instruments"] for name, facts in status["segments"].items()} == {"NSE_EQ": 30, "NSE_FNO": 30}
    assert 0 < sum(facts["ticks"] for facts in status["segments"].values()) <= status["ticks"]
    assert list(status["movers"]) == ["shares"]
    assert query(database_url, "SELECT status->'stopped' FROM captures") == [(True,)]
    assert_stored_exactly_once(ready, database_url)
    modes = query(database_url, "SELECT mode, count(*) > 100 FROM ticks GROUP BY mode ORDER BY mode")
    assert modes == [("full", True), ("quote", True), ("ticker", True)]
    assert query(database_url, "SELECT count(*) FROM ticks WHERE mode = 'ticker' AND change IS NULL") == [(0,)]

    later = Clock(START_NS + 3 * HOUR_NS, speed=1e-9)
    for hour in (HOUR, NEXT_HOUR):
        live = hour_digest(conn, hour), ledger.hour_totals(conn, hour)
        assert live[1].messages == hour_summary(ready.journal_dir, 0, hour).messages
        conn.rollback()
        rebuild_hour(ready, database_url, hour, later)
        assert (hour_digest(conn, hour), ledger.hour_totals(conn, hour)) == live
        conn.rollback()


async def test_a_capture_that_starts_again_tells_the_complete_hours_though_nothing_arrives(
    ready: Settings, database_url: str
) -> None:
    silent = ready.model_copy(update={"dhan_feed_url": "ws://127.0.0.1:9"})
    with closing(JournalWriter(ready.journal_dir, 0)) as journal:
        record(journal, [ticker((ExchangeSegment.NSE_EQ, 100_000), 99.0)] * 20, START_NS + HOUR_NS - 10_000_000)
    clock = Clock(START_NS + HOUR_NS + 60 * SECOND_NS)
    async with ingest(silent, clock) as first:
        await until(lambda: first.complete_hours)
    async with ingest(silent, clock) as second:
        await until(lambda: second.complete_hours)
        await until(lambda: second.of_kind("status")[-1]["backlog_seconds"] == 0.0)
        await until(lambda: second.of_kind("warning"))
        await until(lambda: len(second.of_kind("status")) > 2)
    assert first.complete_hours == second.complete_hours == [HOUR]
    assert "cannot be reached" in second.of_kind("warning")[0]["message"]
    assert_stored_exactly_once(ready, database_url)


async def test_the_open_hour_is_not_told_complete(ready: Settings) -> None:
    clock = Clock(START_NS + 1800 * SECOND_NS)
    save_token(ready.dhan_token_file, make_token(CLIENT_ID, clock=clock), CLIENT_ID)
    exchange = DhanSimulator(SUBSCRIBED, rate=500, clock=clock)
    async with exchange, ingest(with_feed(ready, exchange), clock) as running:
        await until(lambda: len(running.of_kind("status")) >= 2 and running.of_kind("status")[-1]["ticks"])
    assert running.complete_hours == []


async def test_the_database_knows_how_the_capture_is(ready: Settings, database_url: str) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=500) as simulator, ingest(with_feed(ready, simulator)) as running:
        await until(lambda: query(database_url, "SELECT 1 FROM captures WHERE (status->>'ticks')::int > 0"))
        [(status,)] = query(database_url, "SELECT status FROM captures")
        assert status in running.of_kind("status")


@BOTH_SOURCES
async def test_the_database_knows_what_the_capture_was_subscribed_to_and_when(
    ready: Settings, database_url: str
) -> None:
    def rows() -> list[tuple[object, ...]]:
        return query(database_url, "SELECT * FROM subscribed_instruments ORDER BY instrument_token")

    listed = read_subscriptions(ready.subscriptions_path)
    async with simulator_of(ready, rate=500) as simulator:
        settings = ready.model_copy(update={f"{ready.source}_feed_url": simulator.feed_url})
        async with ingest(settings) as first:
            await until(rows)
            await until(lambda: first.of_kind("status") and first.of_kind("status")[-1]["ticks"])
        before = rows()
        assert [(row[:3], row[4]) for row in before] == [
            ((settings.capture_number, s.instrument_token, s.mode.value), None)
            for s in sorted(listed, key=lambda s: s.instrument_token)
        ]
        write_subscriptions(ready.subscriptions_path, listed[1:])
        async with ingest(settings):
            await until(lambda: rows() != before)
    assert [row for row in rows() if row in before] == [row for row in before if row[1] != listed[0].instrument_token]
    [(until_stop,)] = query(
        database_url,
        "SELECT until <= (SELECT min(started_at) FROM feed_gaps WHERE cause = 'stop') FROM subscribed_instruments "
        "WHERE until IS NOT NULL",
    )
    assert until_stop


async def test_a_second_capture_of_the_same_number_is_refused(ready: Settings) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=500) as simulator, ingest(with_feed(ready, simulator)) as running:
        await until(lambda: running.of_kind("status"))
        with pytest.raises(LockHeldError, match="Capture 0 is already running: process"):
            Ingest(ready, ready.database_url or "", print, Clock())
        other = ready.model_copy(update={"capture": 1})
        Ingest(other, ready.database_url or "", print, Clock()).close()


async def test_everything_received_until_the_last_connection_is_closed_is_captured(
    ready: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Receiver.receive
    received = []

    def counted_receive(self: Receiver, payload: bytes | str, connection: int, count: int) -> None:
        received.extend([connection] * count)
        receive(self, payload, connection, count)

    monkeypatch.setattr(Receiver, "receive", counted_receive)
    async with DhanSimulator(SUBSCRIBED, rate=20_000) as simulator, ingest(with_feed(ready, simulator)):
        await until(lambda: len(received) > 5000)
        at_stop = len(received)
    assert len(received) >= at_stop
    assert stored(database_url)[0] == len(received)
    assert_stored_exactly_once(ready, database_url)


async def test_a_block_is_flushed_after_the_interval_though_no_further_message_comes(
    ready: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_LONGEST_FLUSHES", 1_000_000)  # that the writer waits has to do
    alone = ready.model_copy(update={"dhan_feed_url": "ws://127.0.0.1:9", "flush_interval_ms": 20})
    async with ingest(alone, Clock(START_NS)) as running:
        for number in range(1, 6):
            running.capture._receiver.receive(ticker(EQUITY, 100.0), 0)
            await until(lambda number=number: query(database_url, "SELECT count(*) FROM ticks") == [(number,)])  # type: ignore[misc]
    assert_blocks_are_apart(alone, 20_000_000)


async def test_while_the_writer_does_not_wait_blocks_grow_up_to_five_intervals(ready: Settings) -> None:
    away = ready.model_copy(
        update={
            "dhan_feed_url": "ws://127.0.0.1:9",
            "database_url": "postgresql://nobody@127.0.0.1:9/away",
            "flush_interval_ms": 20,
        }
    )
    async with ingest(away, Clock(START_NS)) as running:

        def several_blocks() -> bool:
            running.capture._receiver.receive(ticker(EQUITY, 100.0), 0)
            return len(list(read_blocks(away.journal_dir, 0))) > 4

        await until(several_blocks)
        assert not running.capture._backlog.awaited
    assert_blocks_are_apart(away, 5 * 20_000_000)
    assert max(feed_messages(block) for block in read_blocks(away.journal_dir, 0)) > 1


def assert_blocks_are_apart(settings: Settings, apart_ns: int) -> None:
    """No block was begun sooner than so long after the one before it, but for a millisecond."""
    begun = [block.first_received_ns for block in read_blocks(settings.journal_dir, 0)]
    assert len(begun) > 4
    assert min(later - earlier for earlier, later in pairwise(begun)) > apart_ns - 1_000_000


async def test_capture_goes_on_through_an_outage_and_catches_up(
    ready: Settings, postgres_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhan_pipeline.ingest.backlog.MEMORY_LIMIT_BYTES", 100_000)
    async with DhanSimulator(SUBSCRIBED, rate=4000) as simulator, ingest(with_feed(ready, simulator)) as running:
        await until(lambda: stored(database_url)[0] > 500)
        with outage(postgres_url, database_url):
            await until(lambda: running.of_kind("warning"))
            before = running.of_kind("status")[-1]
            await until(lambda: running.of_kind("status")[-1]["messages"] > before["messages"] + 4000)
            await until(lambda: running.of_kind("status")[-1]["backlog_seconds"] > 0.5)
            assert running.of_kind("status")[-1]["connections_up"] == 1
        simulator.rate = 0
        simulator.flush()
        sent = sum(simulator.sent.values())
        await until(lambda: stored(database_url)[1] == sent)
    assert running.of_kind("status")[-1]["backlog_seconds"] == 0.0
    assert_stored_exactly_once(ready, database_url)


async def test_stopped_during_an_outage_it_leaves_the_rest_to_the_next_start(
    ready: Settings, postgres_url: str, database_url: str
) -> None:
    async with DhanSimulator(SUBSCRIBED, rate=4000) as simulator:
        async with ingest(with_feed(ready, simulator)) as first:
            await until(lambda: stored(database_url)[0] > 500)
            with outage(postgres_url, database_url):
                await until(lambda: first.of_kind("warning"))
                first.stop.set()
                await until(lambda: first.of_kind("stopped"))
        written = first.of_kind("status")[-1]["messages"]
        assert stored(database_url)[0] < written
        async with ingest(with_feed(ready, simulator)):
            await until(lambda: stored(database_url)[0] > written)
    assert_stored_exactly_once(ready, database_url)


async def test_a_journal_that_cannot_be_written_ends_the_capture_with_its_reason(ready: Settings) -> None:
    clock = Clock(START_NS + HOUR_NS - 500 * SECOND_NS, speed=100.0)
    save_token(ready.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6, clock=clock), CLIENT_ID)
    async with DhanSimulator(SUBSCRIBED, rate=1000, clock=clock) as simulator:
        running = Running(with_feed(ready, simulator), clock)
        hour_path(ready.journal_dir, 0, NEXT_HOUR).mkdir(parents=True)
        with closing(running.capture), pytest.raises(OSError, match="The journal cannot be written"):
            await running.capture.run(running.stop)
    assert hour_summary(ready.journal_dir, 0, HOUR).messages > 0
    assert running.of_kind("stopped") == []


async def test_a_mistake_in_the_journals_thread_ends_the_capture_too(
    ready: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    async with DhanSimulator(SUBSCRIBED, rate=1000) as simulator:
        monkeypatch.setattr(JournalWriter, "append", append)
        running = Running(with_feed(ready, simulator), Clock())
        with closing(running.capture), pytest.raises(ZeroDivisionError, match="a mistake"):
            await running.capture.run(running.stop)
    assert running.of_kind("stopped") == []


async def test_a_segment_that_trades_though_the_calendar_calls_it_closed_is_said_once(
    ready: Settings, tmp_path: Path
) -> None:
    own = tmp_path / "sessions.csv"
    own.write_text("date,equity,currency,commodity\n2026-11-20,closed,closed,closed\n")
    use_special_days(tmp_path / "none", own)
    try:
        in_session, clock = ready.model_copy(update={"sessions": "exchange"}), Clock(START_NS)
        async with (
            DhanSimulator(SUBSCRIBED, rate=1000, clock=clock) as simulator,
            ingest(with_feed(in_session, simulator), clock) as running,
        ):
            await until(lambda: [said for said in running.of_kind("status") if said["traded_though_closed"]])
            begun = len(running.of_kind("status"))
            await until(lambda: len(running.of_kind("status")) > begun + 1)
    finally:
        use_special_days(tmp_path / "none", tmp_path / "none")
    said = [event["message"] for event in running.of_kind("warning") if "calendar is wrong" in event["message"]]
    assert len(said) == 1
    assert "NSE_EQ" in said[0]


async def test_a_capture_without_a_token_ends_with_a_sentence(ready: Settings) -> None:
    ready.dhan_token_file.unlink()
    running = Running(ready, Clock())
    with closing(running.capture), pytest.raises(CredentialsError):
        await running.capture.run(running.stop)
    assert running.of_kind("stopped") == []


async def test_a_capture_without_subscriptions_is_refused(settings: Settings) -> None:
    with pytest.raises(SubscriptionError):
        Ingest(settings, settings.database_url or "", print, Clock())


async def test_a_refused_start_leaves_the_capture_free(ready: Settings) -> None:
    with closing(JournalWriter(ready.journal_dir, 0)) as journal:
        record(journal, [b"\0" * 8], START_NS + 2 * HOUR_NS)
    behind = Clock(START_NS, speed=1e-9)
    with pytest.raises(ClockBehindError, match="2026-11-20 03:30:00 UTC, which is before the journal's last message"):
        Ingest(ready, ready.database_url or "", print, behind)
    too_many = [
        Subscription(generate_instrument_token("NSE_EQ", number), Mode.TICKER, "S")
        for number in range(MAX_CONNECTIONS * MAX_INSTRUMENTS_PER_CONNECTION + 1)
    ]
    write_subscriptions(ready.subscriptions_path, too_many)
    with pytest.raises(Exception, match="25001"):
        Ingest(ready, ready.database_url or "", print, Clock())
    JournalWriter(ready.journal_dir, 0).close()


async def test_a_disk_that_is_nearly_full_is_told_once(ready: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "DISK_WARN_GB", 1e9)
    async with DhanSimulator(SUBSCRIBED, rate=500) as simulator, ingest(with_feed(ready, simulator)) as running:
        await until(lambda: len(running.of_kind("status")) > 2)
    [warning] = running.of_kind("warning")
    assert "GB left; the capture ends when it is full" in warning["message"]


async def test_a_clock_that_somebody_sets_is_told_and_costs_nothing(ready: Settings, database_url: str) -> None:
    clock = HandClock()
    async with DhanSimulator(SUBSCRIBED, rate=500) as simulator, ingest(with_feed(ready, simulator), clock) as running:
        await until(lambda: stored(database_url)[0] > 200)
        for step_s, words in ((3600, "forward"), (-3600, "back; receive times stand still")):
            clock.at_ns += step_s * SECOND_NS
            await until(lambda words=words: any(words in w["message"] for w in running.of_kind("warning")))  # type: ignore[misc]
            before = stored(database_url)[0]
            await until(lambda before=before: stored(database_url)[0] > before + 200)  # type: ignore[misc]
    blocks = list(read_blocks(ready.journal_dir, 0))
    times = [int(at_ns) for block in blocks for at_ns in block.received_ns]
    assert times == sorted(times)
    assert_stored_exactly_once(ready, database_url)
    # It may be started again, and again, although the journal is an hour ahead.
    for _ in range(2):
        async with DhanSimulator(SUBSCRIBED, rate=500) as simulator, ingest(with_feed(ready, simulator), clock):
            before = stored(database_url)[0]
            await until(lambda before=before: stored(database_url)[0] > before + 200)  # type: ignore[misc]
    assert_stored_exactly_once(ready, database_url)
    gaps = query(database_url, "SELECT cause, ended_at IS NULL FROM feed_gaps WHERE cause = 'stop' ORDER BY gap_id")
    assert gaps == [("stop", False), ("stop", False)]


async def test_a_feed_that_writes_its_trade_times_in_true_utc_is_told_and_stored_as_it_comes(
    ready: Settings, database_url: str
) -> None:
    clock = Clock(START_NS, speed=60.0)
    save_token(ready.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6, clock=clock), CLIENT_ID)
    async with (
        DhanSimulator(SUBSCRIBED, rate=1000, clock=clock) as simulator,
        ingest(with_feed(ready, simulator), clock) as running,
    ):

        def verdict() -> object:
            return next((event["trade_clock"] for event in reversed(running.of_kind("status"))), None)

        await until(lambda: verdict() == "ok")
        async with happening(simulator, parse_fault("wrong-epoch")):
            await until(lambda: verdict() == "moved")
        await until(lambda: verdict() == "ok")
    told = [event["message"] for event in running.of_kind("warning")]
    assert sum("DHAN_TRADE_TIME_OFFSET_S=0" in message for message in told) == 1
    [(late,)] = query(database_url, "SELECT count(*) FROM ticks WHERE time - last_trade_time > interval '5 hours'")
    assert isinstance(late, int)
    assert late > 1000
