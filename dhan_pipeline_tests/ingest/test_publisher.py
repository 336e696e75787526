from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from threading import Thread, get_ident
from typing import Any

import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.ingest import backlog, books, publisher, retrying
from dhan_pipeline.ingest.backlog import BATCH_BLOCKS, Backlog
from dhan_pipeline.ingest.liveliness import Liveliness
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.ingest.publisher import Publisher
from dhan_pipeline.ingest.rebuild import rebuild_hours
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.ticks import Decoded
from dhan_pipeline.transport import broker
from dhan_pipeline.transport.inlet import PREFETCH, inlet
from dhan_pipeline.transport.lanes import LANES
from dhan_pipeline.transport.message import decode
from dhan_pipeline.transport.outlet import outlet
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.ingest.feed import (
    CLIENT_ID,
    EQUITY,
    HOUR,
    SECOND_NS,
    START_NS,
    SUBSCRIBED,
    TOKENS,
    HandClock,
    backlog_of,
    market_messages,
    open_interest,
    outage,
    prepare_capture,
    previous_close,
    query,
    quote,
    record,
    running,
    ticker,
)
from dhan_pipeline_tests.ingest.lanes import assert_committed_in_order, working
from dhan_pipeline_tests.ingest.running import ingest, with_feed
from dhan_pipeline_tests.program import run, sentence
from dhan_pipeline_tests.proxy import proxy
from dhan_pipeline_tests.rabbitmq import Node

CONNECTIONS = dict.fromkeys(TOKENS, 0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_RETRY_S", (0.02, 0.05))


@pytest.fixture
def settings(settings: Settings, rabbitmq_url: str) -> Settings:
    return Settings(_env_file=None, **{**settings.model_dump(), "transport": "rabbitmq", "rabbitmq_url": rabbitmq_url})


class Publishing:
    """A publisher over a journal that the test appends to."""

    def __init__(
        self, settings: Settings, database_url: str, journal: JournalWriter, connections: dict[int, int]
    ) -> None:
        self.journal = journal
        self.clock = HandClock(START_NS + 10 * SECOND_NS)
        self.warnings: list[str] = []
        self.backlog: Backlog = backlog_of(journal, settings)
        self.publisher = Publisher(settings, database_url, self.backlog, self.clock, self.warnings.append, connections)
        self.number = 0

    def put(self, messages: int, at_ns: int | None = None) -> list[Block]:
        """Record messages in blocks of ten, and put them."""
        self.number += 1
        at_ns = START_NS + self.number * SECOND_NS if at_ns is None else at_ns
        blocks = record(self.journal, market_messages(messages, seed=self.number), at_ns)
        for block in blocks:
            self.backlog.put(block)
        return blocks

    @property
    def handed_over(self) -> bool:
        """Whether RabbitMQ has all blocks."""
        return self.publisher._handed_over is not None and self.publisher._handed_over[0] == self.journal.last_block_id

    @property
    def stored(self) -> bool:
        """Whether it knows that workers have stored all."""
        return self.publisher.counts.committed_through_ns >= self.journal.last_received_ns


@asynccontextmanager
async def publishing(
    settings: Settings,
    database_url: str,
    journal: JournalWriter,
    drain_s: float = 0.0,
    connections: dict[int, int] = CONNECTIONS,
) -> AsyncIterator[Publishing]:
    """The publisher in a thread of its own, stopped at the end."""
    made = Publishing(settings, database_url, journal, connections)
    thread = Thread(target=made.publisher.run)
    thread.start()
    try:
        yield made
    finally:
        made.backlog.close()
        made.publisher.stop(drain_s)
        await until(lambda: not thread.is_alive())


async def in_lanes(rabbitmq_url: str) -> list[list[int]]:
    """Ids of the blocks in each lane, as they come; what is taken goes back."""
    found: list[list[int]] = [[] for _ in range(LANES)]
    async with outlet(rabbitmq_url) as lanes:
        messages = sum((await lanes.depths()).ready)
    async with inlet(rabbitmq_url, PREFETCH) as source:
        for lane in range(LANES):
            await source.consume(lane + 1)
        while messages:
            deliveries = await source.take(messages, 5)
            assert deliveries, "there are fewer messages"
            messages -= len(deliveries)
            for delivery in deliveries:
                found[delivery.lane - 1] += decode(delivery.body).block_ids.tolist()
    return found


def assert_rows_are_those_of_the_journal(settings: Settings, database_url: str) -> None:
    (rebuilt,) = rebuild_hours(settings, database_url, HOUR, HOUR, HandClock(START_NS + HOUR_NS), compare_only=True)
    assert rebuilt.same, rebuilt.differences
    assert rebuilt.rows > 0
    assert query(database_url, "SELECT count(*) - count(DISTINCT tick_id) FROM ticks") == [(0,)]


async def test_every_lane_gets_every_block_in_order(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    async with publishing(settings, database_url, journal) as made:
        blocks = []
        for _ in range(3):
            blocks += made.put(100)
            await until(lambda: made.handed_over)
        assert made.warnings == []
        await until(lambda: made.publisher.facts()["queue_depth"] is not None)
        assert made.publisher.facts()["workers"] == 0
    assert await in_lanes(rabbitmq_url) == [[block.block_id for block in blocks]] * LANES


async def test_workers_store_it_and_the_capture_knows(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    async with (
        working(settings, rabbitmq_url, HandClock(START_NS + 60 * SECOND_NS)),
        publishing(settings, database_url, journal) as made,
    ):
        blocks = []
        for _ in range(5):
            blocks += made.put(100)
        await until(lambda: made.stored)
        counts = made.publisher.counts
        assert counts.blocks == len(blocks)
        assert counts.packets == counts.ticks + counts.state + counts.control + counts.rejected > 500
        assert counts.hours == {HOUR}
        assert counts.latency.percentile(50) is not None
        await until(lambda: made.publisher.facts() == {"queue_depth": 0, "dead_letters": 0, "workers": 1})
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert_committed_in_order(database_url)


async def test_it_goes_on_where_the_ledger_says_that_all_is_stored(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    """And what it hands over again carries what the packets of the day before it said."""
    said, later = record(
        journal,
        [previous_close(EQUITY, 90.0), open_interest(EQUITY, 500), ticker(EQUITY, 99.0), quote(EQUITY, 99.0)],
        START_NS,
        in_block=2,
    )
    direct = Writer(settings, database_url, backlog_of(journal, settings), HandClock(), print)
    direct._backlog._last_durable = said.block_id  # as if the second had not come yet
    with running(direct, direct._backlog):
        await until(lambda: direct.counts.blocks == 1)
    async with publishing(settings, database_url, journal) as made:
        await until(lambda: made.handed_over)
        assert await in_lanes(rabbitmq_url) == [[later.block_id]] * LANES
        async with working(settings, rabbitmq_url, HandClock(START_NS + 60 * SECOND_NS)):
            await until(lambda: made.stored)
    assert query(database_url, "SELECT mode, day_close, oi FROM ticks ORDER BY tick_id") == [
        ("ticker", 90.0, None),
        ("quote", 90.0, 500),
    ]


async def test_it_remembers_instruments_that_are_subscribed_no_more(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    """What a process before has left may be of them."""
    record(journal, [previous_close(EQUITY, 90.0)], START_NS)
    async with working(settings, rabbitmq_url, HandClock(START_NS + 60 * SECOND_NS)):
        async with publishing(settings, database_url, journal) as made:
            await until(lambda: made.stored)
        record(journal, [quote(EQUITY, 99.0)], START_NS + SECOND_NS)
        async with publishing(settings, database_url, journal, connections={}) as made:
            await until(lambda: made.stored)
    assert query(database_url, "SELECT day_close FROM ticks") == [(90.0,)]
    assert_rows_are_those_of_the_journal(settings, database_url)


async def test_what_was_said_on_one_day_is_forgotten_on_the_next(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    async with (
        working(settings, rabbitmq_url, HandClock(START_NS + 48 * HOUR_NS)),
        publishing(settings, database_url, journal) as made,
    ):
        for at_ns in (START_NS, START_NS + 24 * HOUR_NS):
            messages = [quote(EQUITY, 99.0), open_interest(EQUITY, 5), quote(EQUITY, 99.0)]
            for block in record(journal, messages, at_ns, in_block=2):
                made.backlog.put(block)
        await until(lambda: made.stored)
    assert query(database_url, "SELECT oi FROM ticks ORDER BY tick_id") == [(None,), (5,), (None,), (5,)]


async def test_blocks_before_one_that_cannot_be_decoded_are_handed_over_once_and_it_is_tried_again(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = record(journal, market_messages(BATCH_BLOCKS + 3), START_NS, in_block=1)
    tries = 0

    class Mistaken(BlockProcessor):
        def decode(self, stretch: Stretch) -> Decoded:
            nonlocal tries
            if mistaken and stretch.last_block_id > blocks[BATCH_BLOCKS].block_id:
                tries += 1
                raise ZeroDivisionError("a mistake")
            return super().decode(stretch)

    mistaken = True
    monkeypatch.setattr(publisher, "BlockProcessor", Mistaken)
    async with publishing(settings, database_url, journal) as made:
        await until(lambda: tries > 3)
        mistaken = False
        await until(lambda: made.handed_over)
        assert made.warnings == ["Nothing can be handed over for now, the journal keeps all; trying again. a mistake"]
    assert await in_lanes(rabbitmq_url) == [[block.block_id for block in blocks]] * LANES


async def test_while_rabbitmq_answers_nothing_little_is_kept_in_memory(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "ANSWER_S", 0.3)
    monkeypatch.setattr(broker, "CONNECT_S", 0.3)
    monkeypatch.setattr(broker, "_CLOSE_S", 0.1)
    monkeypatch.setattr(backlog, "MEMORY_LIMIT_BYTES", 10_000)
    async with proxy(rabbitmq_url) as between:
        through = Settings(_env_file=None, **{**settings.model_dump(), "rabbitmq_url": between.url})
        async with publishing(through, database_url, journal) as made:
            blocks = made.put(10)
            await until(lambda: made.handed_over)
            with between.black_hole():
                for _ in range(20):
                    blocks += made.put(100)
                await until(lambda: any("does not answer" in told for told in made.warnings))
                assert made.publisher.facts()["queue_depth"] is None
                assert made.backlog._recent_bytes <= 10_000
                assert sum(len(run.blocks.stretch.block_ids) for run in made.publisher._runs) <= 2 * BATCH_BLOCKS
            await until(lambda: made.handed_over)
    for lane in await in_lanes(rabbitmq_url):  # what was on its way may have come twice
        assert list(dict.fromkeys(lane)) == [block.block_id for block in blocks]


async def test_while_rabbitmq_is_away_the_journal_keeps_all_and_nothing_is_lost(
    settings: Settings, database_url: str, rabbitmq_url: str, rabbitmq: Node, journal: JournalWriter
) -> None:
    async with publishing(settings, database_url, journal) as made:
        made.put(100)
        await until(lambda: made.handed_over)
        rabbitmq.stop()
        made.put(100)
        made.put(100)
        await until(lambda: made.warnings)
        assert made.publisher.facts()["queue_depth"] is None
        rabbitmq.start()
        made.put(100)
        await until(lambda: made.handed_over)
        assert all("Nothing can be handed over for now, the journal keeps all" in told for told in made.warnings)
        async with working(settings, rabbitmq_url, HandClock(START_NS + 60 * SECOND_NS)):
            await until(lambda: made.stored)
    assert_rows_are_those_of_the_journal(settings, database_url)


async def test_a_lane_that_takes_no_more_holds_the_capture_back_and_loses_nothing(
    settings: Settings, database_url: str, rabbitmq_url: str, rabbitmq: Node, journal: JournalWriter
) -> None:
    vhost = rabbitmq_url.rpartition("/")[2]
    async with publishing(settings, database_url, journal) as made:
        made.put(10)
        await until(lambda: made.handed_over)
        rabbitmq.control("set_policy", "-p", vhost, "--apply-to", "queues", "small", "2$", '{"max-length":1}')
        for _ in range(4):
            made.put(10)
            made.put(10)
            await until(lambda: made.handed_over or made.warnings)
        assert "takes no more for lane 2" in made.warnings[0]
        assert made.backlog.blocks > 0
        rabbitmq.control("clear_policy", "-p", vhost, "small")
        await until(lambda: made.handed_over)
        assert made.backlog.blocks == 0
        async with working(settings, rabbitmq_url, HandClock(START_NS + 60 * SECOND_NS)):
            await until(lambda: made.stored)
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert_committed_in_order(database_url)


async def test_it_begins_when_the_database_has_said_where(
    settings: Settings, database_url: str, rabbitmq_url: str, postgres_url: str, journal: JournalWriter
) -> None:
    with outage(postgres_url, database_url):
        async with publishing(settings, database_url, journal) as made:
            made.put(10)
            await until(lambda: made.warnings)
            assert not made.handed_over
            assert made.publisher.facts() == {"queue_depth": None, "dead_letters": None, "workers": None}
    async with publishing(settings, database_url, journal) as made:
        await until(lambda: made.handed_over)
        with outage(postgres_url, database_url):
            made.number = 5
            made.put(10)
            await until(lambda: made.handed_over)  # it needs no database any more


async def test_what_is_subscribed_while_it_runs_is_known_before_it_comes_to_the_thread_that_sees_it(
    settings: Settings,
    database_url: str,
    rabbitmq_url: str,
    journal: JournalWriter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *known, new = TOKENS
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM instruments WHERE instrument_token = %s", (new,))
    threads = set()

    def noted(call: Callable[..., None]) -> Callable[..., None]:
        def noting(*args: Any) -> None:
            threads.add(get_ident())
            call(*args)

        return noting

    for name in ("know", "see"):
        monkeypatch.setattr(Liveliness, name, noted(getattr(Liveliness, name)))
    async with publishing(settings, database_url, journal, connections=dict.fromkeys(known, 0)) as made:
        made.put(50)
        await until(lambda: made.handed_over)
        assert new not in made.publisher._processor.instruments.tokens
        threads.clear()
        made.publisher.subscribe(CONNECTIONS, {new})
        made.put(50)
        await until(lambda: made.handed_over)
        assert new in made.publisher._processor.instruments.tokens
        assert new in made.publisher.liveliness._instruments.tokens
        assert made.publisher.liveliness._connections == CONNECTIONS
        with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(
                "INSERT INTO instruments (instrument_token, trading_symbol, exchange, exchange_segment, source,"
                " security_id, instrument_type, expiry)"
                " VALUES (%s, 'NEW-FUT', 'NSE', 'NSE_FNO', 'dhan', 9, 'FUT', '2030-01-01')",
                (future := generate_instrument_token("NSE_FNO", 9),),
            )
        made.publisher.subscribe(CONNECTIONS | {future: 0}, {future})
        made.put(10)
        await until(lambda: future in made.publisher._books.futures)
        made.put(10)
        await until(lambda: made.handed_over)
        assert future in made.publisher.liveliness._futures
    assert len(threads) == 1
    assert made.warnings == []


async def test_stopping_waits_for_workers_where_there_are_some(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    async with working(settings, rabbitmq_url, HandClock(START_NS + 60 * SECOND_NS)) as worker:
        await until(lambda: worker.worker.lanes)
        async with publishing(settings, database_url, journal, drain_s=60.0) as made:
            await until(lambda: made.publisher.facts()["workers"])
            made.put(300)
        assert made.stored


async def test_stopping_hands_over_the_first_blocks_of_a_journal_before_the_database_was_asked_about_them(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "_POLL_S", 0.5)
    monkeypatch.setattr(publisher, "_POLL_S", 0.01)
    async with publishing(settings, database_url, journal, drain_s=60.0) as made:
        await until(lambda: made.publisher.facts()["workers"] is not None)
        made.put(30)
    assert made.handed_over


async def test_stopping_ends_at_once_where_there_is_nobody_to_wait_for(
    settings: Settings, database_url: str, rabbitmq_url: str, rabbitmq: Node, journal: JournalWriter
) -> None:
    async with publishing(settings, database_url, journal, drain_s=1e6) as made:
        made.put(30)
    assert made.handed_over
    async with publishing(settings, database_url, journal, drain_s=1e6) as made:
        await until(lambda: made.publisher.facts()["queue_depth"] is not None)
        rabbitmq.stop()
        await until(lambda: made.warnings)


async def test_stopping_ends_at_once_where_rabbitmq_was_never_there(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_RETRY_S", (1e6,))
    nowhere = Settings(_env_file=None, **{**settings.model_dump(), "rabbitmq_url": "amqp://127.0.0.1:1/v"})
    async with publishing(nowhere, database_url, journal, drain_s=1e6) as made:
        made.put(10)
        await until(lambda: made.warnings)


async def test_stopping_waits_for_no_worker_once_rabbitmq_is_away(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    async with proxy(rabbitmq_url) as between, working(settings, rabbitmq_url) as worker:
        await until(lambda: worker.worker.lanes)
        through = Settings(_env_file=None, **{**settings.model_dump(), "rabbitmq_url": between.url})
        with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor, ExitStack() as network:
            cursor.execute("LOCK TABLE ingest_ledger IN SHARE MODE")  # nobody commits
            async with publishing(through, database_url, journal, drain_s=1e6) as made:
                await until(lambda: made.publisher.facts()["workers"])
                made.put(10)
                await until(lambda: made.handed_over)
                network.enter_context(between.cutting(lambda: (1, 1)))
                await until(lambda: made.warnings)


async def test_from_writing_directly_to_workers_and_back_every_row_stays_once(
    settings: Settings, database_url: str, rabbitmq_url: str, journal: JournalWriter
) -> None:
    clock = HandClock(START_NS + 60 * SECOND_NS)

    async def write_directly(number: int) -> None:
        waiting = backlog_of(journal, settings)
        writer = Writer(settings, database_url, waiting, clock, print)
        with running(writer, waiting):
            for block in record(journal, market_messages(50, seed=number), START_NS + number * SECOND_NS):
                waiting.put(block)
            await until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)

    await write_directly(1)
    async with publishing(settings, database_url, journal) as made:
        async with working(settings, rabbitmq_url, clock):
            made.put(50, START_NS + 2 * SECOND_NS)
            await until(lambda: made.stored)
        made.put(50, START_NS + 3 * SECOND_NS)
        await until(lambda: made.handed_over)
    await write_directly(4)  # with parts on their way
    async with working(settings, rabbitmq_url, clock), publishing(settings, database_url, journal) as made:
        made.put(50, START_NS + 5 * SECOND_NS)
        await until(lambda: made.stored)
    assert_rows_are_those_of_the_journal(settings, database_url)


@pytest.mark.parametrize("empty", [False, True])
async def test_a_database_that_was_filled_from_another_journal_is_told(
    settings: Settings, database_url: str, journal: JournalWriter, tmp_path: Path, empty: bool
) -> None:
    waiting = backlog_of(journal, settings)
    later = Writer(settings, database_url, waiting, HandClock(), print)
    with running(later, waiting):
        for block in record(journal, market_messages(10), START_NS + 9 * SECOND_NS):
            waiting.put(block)
        await until(lambda: later.counts.blocks == 1)
    other = Settings(_env_file=None, **{**settings.model_dump(), "data_dir": tmp_path / "other"})
    with closing(JournalWriter(other.journal_dir, 0)) as its_journal:
        if not empty:
            record(its_journal, market_messages(10), START_NS)
        async with publishing(other, database_url, its_journal) as made:
            if empty:
                made.put(10, START_NS)
            await until(lambda: made.warnings)
            assert "they come from another journal" in made.warnings[0]
            assert not made.handed_over


async def test_a_capture_tells_its_status_and_each_hour_that_workers_have_stored(
    settings: Settings, database_url: str, rabbitmq_url: str
) -> None:
    prepare_capture(settings)
    clock = Clock(START_NS + HOUR_NS - 200 * SECOND_NS, speed=100.0)
    save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6, clock=clock), CLIENT_ID)
    async with (
        DhanSimulator(SUBSCRIBED, rate=2000, clock=clock) as simulator,
        ingest(with_feed(settings, simulator), clock) as capture,
    ):
        await until(lambda: clock.now_ns() > START_NS + HOUR_NS)
        await until(lambda: capture.of_kind("status")[-1]["queue_depth"])
        status = capture.of_kind("status")[-1]
        assert (status["workers"], status["blocks"], status["packets"]) == (0, 0, 0)
        assert status["backlog_seconds"] > 0
        async with working(settings, rabbitmq_url, clock):
            await until(lambda: capture.complete_hours == [HOUR])
            simulator.rate = 0
            await until(lambda: capture.of_kind("status")[-1]["backlog_seconds"] == 0)
            status = capture.of_kind("status")[-1]
            assert (status["workers"], status["dead_letters"], status["backlog_blocks"]) == (1, 0, 0)
            assert status["packets"] > 0
            assert status["latency_total_p99_ms"] > 0


def test_an_address_that_is_missing_is_asked_for(tmp_path: Path, database_url: str) -> None:
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path,
        database_url=database_url,
        dhan_token_file=tmp_path / "token",
        transport="rabbitmq",
    )
    prepare_capture(settings)
    done = run("ingest", cwd=tmp_path, data_dir=tmp_path, database_url=database_url, transport="rabbitmq")
    assert "RABBITMQ_URL is not set" in sentence(done)
