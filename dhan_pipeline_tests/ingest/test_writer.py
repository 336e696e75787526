import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.ingest import retrying
from dhan_pipeline.ingest import writer as writer_module
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded, ledger
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.store.ticks import StoredBlocks
from dhan_pipeline_tests.ingest.feed import (
    EQUITY,
    HOUR,
    NEXT_HOUR,
    SECOND_NS,
    START_NS,
    TOKENS,
    UNKNOWN,
    HandClock,
    add_instruments,
    assert_stored_exactly_once,
    backlog_of,
    end_sessions,
    market_messages,
    outage,
    previous_close,
    query,
    record,
    running,
    ticker,
    until,
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_RETRY_S", (0.02, 0.05))


class Writing:
    """A writer over a journal that the test appends to."""

    def __init__(self, settings: Settings, database_url: str, journal: JournalWriter) -> None:
        self.journal = journal
        self.clock = HandClock(START_NS + 10 * SECOND_NS)
        self.warnings: list[str] = []
        self.backlog: Backlog = backlog_of(journal, settings)
        self.writer = Writer(settings, database_url, self.backlog, self.clock, self.warnings.append)
        self.number = 0

    def put(self, messages: int, at_ns: int | None = None) -> list[Block]:
        """Record messages in blocks of ten, and put them."""
        self.number += 1
        if at_ns is None:
            at_ns = START_NS + self.number * SECOND_NS
        blocks = record(self.journal, market_messages(messages, seed=self.number), at_ns)
        for block in blocks:
            self.backlog.put(block)
        return blocks

    @property
    def all_committed(self) -> bool:
        return self.writer.counts.committed_through_ns == self.journal.last_received_ns


@pytest.fixture
def writing(settings: Settings, database_url: str, journal: JournalWriter) -> Writing:
    return Writing(settings, database_url, journal)


def test_every_block_is_stored_once_and_counted(writing: Writing, settings: Settings, database_url: str) -> None:
    with running(writing.writer, writing.backlog):
        for _ in range(5):
            writing.put(100)
        until(lambda: writing.all_committed)
        counts = writing.writer.counts
        assert counts.blocks == 50
        assert counts.packets == counts.ticks + counts.state + counts.control + counts.rejected > 500
        assert counts.hours == {HOUR}
        assert writing.writer.counts.latency.counts.sum() == 500
    assert_stored_exactly_once(settings, database_url)
    assert query(database_url, "SELECT sum(packets)::int, sum(rejected)::int FROM ingest_ledger") == [
        (counts.packets, counts.rejected)
    ]
    assert writing.warnings == []


def test_latency_is_in_real_milliseconds(writing: Writing) -> None:
    writing.clock.speed = 4.0
    writing.clock.at_ns = START_NS + 40 * SECOND_NS
    with running(writing.writer, writing.backlog):
        writing.put(1, at_ns=START_NS + 36 * SECOND_NS)
        until(lambda: writing.all_committed)
    assert writing.writer.counts.latency.percentile(50) == pytest.approx(1000.0, rel=0.05)


def test_what_an_earlier_run_left_is_stored_and_what_it_stored_is_not_stored_again(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    first = Writing(settings, database_url, journal)
    with running(first.writer, first.backlog):
        first.put(50)
        until(lambda: first.all_committed)
    record(journal, market_messages(50, seed=9), START_NS + 5 * SECOND_NS)
    second = Writing(settings, database_url, journal)
    with running(second.writer, second.backlog):
        until(lambda: second.all_committed)
        second.put(50, at_ns=START_NS + 6 * SECOND_NS)
        until(lambda: second.all_committed)
    assert second.writer.counts.blocks == 10
    assert_stored_exactly_once(settings, database_url)


def test_a_gap_of_damage_after_a_restart_begins_with_what_was_stored_last(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    first = Writing(settings, database_url, journal)
    with running(first.writer, first.backlog):
        [stored] = first.put(10)
        until(lambda: first.all_committed)
    [lost] = record(journal, market_messages(10), START_NS + 5 * SECOND_NS)
    path = hour_path(settings.journal_dir, 0, HOUR)
    content = bytearray(path.read_bytes())
    content[-20] ^= 255
    path.write_bytes(content)
    [later] = record(journal, market_messages(10), START_NS + 6 * SECOND_NS)
    told: list[tuple[int, int, str]] = []
    backlog = Backlog(
        settings.journal_dir, 0, journal.last_block_id, journal.last_received_ns, lambda *facts: told.append(facts)
    )
    second = Writer(settings, database_url, backlog, HandClock(), pytest.fail)
    with running(second, backlog):
        until(lambda: second.counts.committed_through_ns == journal.last_received_ns)
    assert [(since_ns, until_ns) for since_ns, until_ns, _ in told] == [
        (stored.last_received_ns, later.first_received_ns)
    ]
    ledger_ids = query(database_url, "SELECT block_id FROM ingest_ledger ORDER BY 1")
    assert lost.block_id not in {block_id for (block_id,) in ledger_ids}


def test_a_start_without_anything_to_store_knows_that_all_is_committed(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    first = Writing(settings, database_url, journal)
    with running(first.writer, first.backlog):
        first.put(10)
        until(lambda: first.all_committed)
    second = Writing(settings, database_url, journal)
    with running(second.writer, second.backlog):
        until(lambda: second.all_committed)
        assert second.writer.counts.hours == {HOUR}
        assert second.writer.counts.blocks == 0


def test_a_database_that_is_ahead_of_the_journal_is_refused_by_name_until_it_no_longer_is(
    settings: Settings, database_url: str, journal: JournalWriter, tmp_path: Path
) -> None:
    first = Writing(settings, database_url, journal)
    with running(first.writer, first.backlog):
        first.put(10, at_ns=START_NS + 60 * SECOND_NS)
        until(lambda: first.all_committed)
    elsewhere = settings.model_copy(update={"journal_dir": tmp_path / "elsewhere"})
    with closing(JournalWriter(elsewhere.journal_dir, 0)) as another:
        second = Writing(elsewhere, database_url, another)
        with running(second.writer, second.backlog):
            second.put(10, at_ns=START_NS + 5 * SECOND_NS)
            until(lambda: second.warnings)
            assert second.writer.counts.committed_through_ns == 0
            second.put(10, at_ns=START_NS + 61 * SECOND_NS)
            until(lambda: second.all_committed)
    assert "This database has blocks of capture 0 up to 2026-11-20 09:01:00 IST" in second.warnings[0]
    assert "CAPTURE" in second.warnings[0]


def test_a_database_that_comes_late_gets_everything(
    settings: Settings, postgres_url: str, database_url: str, journal: JournalWriter
) -> None:
    url = urlsplit(postgres_url)._replace(path="/comes_late").geturl()
    writing = Writing(settings, url, journal)
    with running(writing.writer, writing.backlog):
        writing.put(50)
        until(lambda: writing.warnings)
        writing.put(50)
        assert writing.writer.counts.blocks == 0
        # The template is the test's own database: it has the schema and the instruments, and nobody is connected.
        create_database(postgres_url, "comes_late", template=urlsplit(database_url).path[1:])
        until(lambda: writing.all_committed)
    assert_stored_exactly_once(settings, url)
    assert "does not exist" in writing.warnings[0]


def test_the_writer_outlives_ended_sessions(
    writing: Writing, settings: Settings, postgres_url: str, database_url: str
) -> None:
    with running(writing.writer, writing.backlog):
        for _ in range(6):
            writing.put(100)
            end_sessions(postgres_url, database_url)
        writing.put(100)
        until(lambda: writing.all_committed)
    assert_stored_exactly_once(settings, database_url)
    assert writing.writer.counts.blocks == 70


def test_an_outage_is_told_once_and_caught_up_with(
    writing: Writing, settings: Settings, postgres_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhan_pipeline.ingest.backlog.MEMORY_LIMIT_BYTES", 5000)
    attempts = []

    def counted_connect(url: str) -> object:
        attempts.append(url)
        return connect(url)

    monkeypatch.setattr(retrying, "connect", counted_connect)
    with running(writing.writer, writing.backlog):
        writing.put(100)
        until(lambda: writing.all_committed)
        with outage(postgres_url, database_url):
            for _ in range(5):
                writing.put(100)
            tried = len(attempts)
            until(lambda: len(attempts) > tried + 5)
            assert 1 <= len(writing.warnings) <= 2  # sessions ended, then no new ones
        until(lambda: writing.all_committed)
        with outage(postgres_url, database_url):
            writing.put(100)
            until(lambda: "not currently accepting" in writing.warnings[-1] and len(writing.warnings) >= 3)
        until(lambda: writing.all_committed)
    assert_stored_exactly_once(settings, database_url)


def test_a_catch_up_is_faster_than_what_arrives_meanwhile(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_LARGE_MESSAGES", 500)
    writing = Writing(settings, database_url, journal)
    blocks = writing.put(10 * 640)
    put, left = len(blocks), []
    take = writing.backlog.take

    def take_while_more_arrives(timeout_s: float, **unless: Callable[[], bool]) -> list[Block]:
        nonlocal put
        if len(left) < 20:  # blocks of 20 ms: so many arrive in the time that a commit may take
            put += len(writing.put(10 * 5, at_ns=journal.last_received_ns))
        left.append(put - writing.writer.counts.blocks)
        return take(timeout_s, **unless)

    writing.backlog.take = take_while_more_arrives  # type: ignore[method-assign]
    with running(writing.writer, writing.backlog):
        until(lambda: len(left) > 20 and writing.all_committed)
    # The second batch is taken while the first is being committed, and so on: two are under way.
    assert left[:10] == [645, *range(650, 0, -59)][:10]
    assert max(left[12:20]) <= 128
    assert_stored_exactly_once(settings, database_url)


@pytest.mark.parametrize("first", ["is stored", "is lost", "is held up"])
def test_rows_of_the_next_go_in_beside_a_transaction_and_are_committed_after_it_or_not_at_all(
    writing: Writing, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(writer_module, "_LARGE_MESSAGES", 500)
    if first == "is held up":  # until the next gives way, as where it waits for a lock of the next
        monkeypatch.setattr(writer_module, "_TURN_S", 0.05)
    write_blocks = writer_module.ticks.write_blocks
    rows_are_in, gave_way = threading.Event(), threading.Event()
    firsts = iter([True])
    committed: list[int] = []
    seen: list[Any] = []

    def write(*arguments: Any, turn: Callable[[], object] | None = None) -> list[int]:
        def rows_in() -> None:
            assert turn is not None
            rows_are_in.set()
            try:
                turn()
            except TimeoutError:
                gave_way.set()
                raise

        if next(firsts, False):
            seen.append(rows_are_in.wait(10))
            seen.append(query(database_url, "SELECT count(*) FROM ticks"))
            if first == "is lost":
                arguments[0].close()
            if first == "is held up":
                seen.append(gave_way.wait(10))
        written = write_blocks(*arguments, turn=turn and rows_in)
        committed.extend(written)
        return written

    monkeypatch.setattr(writer_module.ticks, "write_blocks", write)
    writing.put(10 * 640)
    with running(writing.writer, writing.backlog):
        until(lambda: writing.all_committed)
    assert seen in ([True, [(0,)]], [True, [(0,)], True])
    assert committed == sorted(committed)
    assert len(writing.warnings) == (first != "is stored")
    assert_stored_exactly_once(settings, database_url)


class Folds:
    """Counts how often a writer brings a state up from the journal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._resume = writer_module.resume
        monkeypatch.setattr(writer_module, "resume", self._counted)

    def _counted(self, *args: Any) -> bool:
        self.count += 1
        return self._resume(*args)


def changes(database_url: str) -> list[tuple[object, ...]]:
    return query(database_url, "SELECT last_price, change FROM ticks ORDER BY tick_id")


@pytest.mark.parametrize("committed", [False, True])
def test_a_lost_connection_costs_no_fold_whether_the_last_commit_came_through_or_not(
    writing: Writing, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    folds = Folds(monkeypatch)
    write_blocks = writer_module.ticks.write_blocks
    losses = iter([True])

    def lose(conn: connection, blocks: list[StoredBlocks], *rest: Any) -> list[int]:
        lost = blocks[-1].stretch.last_received_ns >= START_NS + 2 * SECOND_NS and next(losses, False)
        if lost and not committed:
            conn.close()
        written = write_blocks(conn, blocks, *rest)
        if lost:
            conn.close()
            raise psycopg2.OperationalError("the answer was lost")
        return written

    monkeypatch.setattr(writer_module.ticks, "write_blocks", lose)
    with running(writing.writer, writing.backlog):
        for second, message in enumerate(
            [previous_close(EQUITY, 90.0), ticker(EQUITY, 99.0), previous_close(EQUITY, 80.0), ticker(EQUITY, 99.0)]
        ):
            for block in record(writing.journal, [message], START_NS + second * SECOND_NS):
                writing.backlog.put(block)
            until(lambda: writing.all_committed)
    assert next(losses, None) is None
    assert folds.count == 0
    assert changes(database_url) == [(99.0, 9.0), (99.0, 19.0)]
    assert_stored_exactly_once(settings, database_url)


def test_a_state_that_is_in_doubt_is_folded_again(
    writing: Writing, settings: Settings, database_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = Folds(monkeypatch)
    process = BlockProcessor.process
    mistakes = iter([True])

    def process_half(self: BlockProcessor, stretch: Stretch) -> StoredBlocks:
        stored = process(self, stretch)
        if stretch.last_received_ns >= START_NS + SECOND_NS and next(mistakes, False):
            raise ZeroDivisionError("a mistake")
        return stored

    monkeypatch.setattr(BlockProcessor, "process", process_half)
    with running(writing.writer, writing.backlog):
        for second, message in enumerate([previous_close(EQUITY, 90.0), ticker(EQUITY, 99.0)]):
            for block in record(writing.journal, [message], START_NS + second * SECOND_NS):
                writing.backlog.put(block)
            until(lambda: writing.all_committed)
        assert folds.count == 1
        add_instruments(database_url, [generate_instrument_token(*UNKNOWN)])
        end_sessions(postgres_url, database_url)
        for block in record(writing.journal, [ticker(UNKNOWN, 50.0)], START_NS + 2 * SECOND_NS):
            writing.backlog.put(block)
        until(lambda: writing.all_committed)
    assert folds.count == 2
    assert changes(database_url) == [(99.0, 9.0), (50.0, None)]
    assert_stored_exactly_once(settings, database_url)


def test_stopping_does_not_wait_for_a_fold(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Writing(settings, database_url, journal)
    with running(first.writer, first.backlog):
        first.put(10)
        until(lambda: first.all_committed)
    folding = threading.Event()

    def endless(*args: Any) -> bool:
        folding.set()
        until(args[-1])
        return False

    monkeypatch.setattr(writer_module, "resume", endless)
    second = Writing(settings, database_url, journal)
    second.put(10, at_ns=START_NS + 5 * SECOND_NS)
    with running(second.writer, second.backlog, drain_s=0.0):
        assert folding.wait(20)
    assert second.writer.counts.blocks == 0


def test_an_embedded_server_that_was_killed_is_started_again(open_dir: Path) -> None:
    settings = Settings(_env_file=None, data_dir=open_dir / "own", database_url=None)
    url = embedded.start(settings.data_dir).url
    migrate(url)
    add_instruments(url, TOKENS)
    with closing(JournalWriter(settings.journal_dir, 0)) as journal:
        writing = Writing(settings, url, journal)
        with running(writing.writer, writing.backlog):
            writing.put(50)
            until(lambda: writing.all_committed)
            pid_file = next(settings.data_dir.glob("postgresql-*/data/postmaster.pid"))
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
            writing.put(50)
            until(lambda: writing.all_committed, within_s=60)
    assert_stored_exactly_once(settings, embedded.url(settings.data_dir) or "")
    embedded.stop(settings.data_dir)


def test_a_mistake_in_processing_stops_neither_thread_nor_later_blocks(
    writing: Writing, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = BlockProcessor.process
    mistakes = iter(range(3))

    def process_badly(self: BlockProcessor, stretch: Stretch) -> StoredBlocks:
        if writing.writer.counts.blocks >= 10 and next(mistakes, None) is not None:
            raise ZeroDivisionError("a mistake")
        return process(self, stretch)

    monkeypatch.setattr(BlockProcessor, "process", process_badly)
    with running(writing.writer, writing.backlog):
        writing.put(100)
        until(lambda: writing.all_committed)
        writing.put(100)
        until(lambda: writing.all_committed)
    assert next(mistakes, None) is None
    assert writing.warnings == ["Nothing can be stored for now, the journal keeps all; trying again. a mistake"]
    assert_stored_exactly_once(settings, database_url)


def test_a_writer_waits_while_another_process_writes_its_capture(
    writing: Writing, settings: Settings, database_url: str
) -> None:
    with closing(connect(database_url)) as other:
        assert ledger.lock_writer(other, settings.capture)
        with running(writing.writer, writing.backlog):
            writing.put(10)
            until(lambda: writing.warnings)
            assert writing.warnings == [
                "Nothing can be stored for now, the journal keeps all; trying again. "
                "Another process writes capture 0 into this database."
            ]
            assert writing.writer.counts.blocks == 0
            other.close()
            until(lambda: writing.all_committed)
    assert_stored_exactly_once(settings, database_url)


def test_stopping_stores_what_waits(writing: Writing, settings: Settings, database_url: str) -> None:
    for _ in range(20):
        writing.put(100)
    with running(writing.writer, writing.backlog):
        pass
    assert writing.all_committed
    assert_stored_exactly_once(settings, database_url)


def test_stopping_leaves_to_the_journal_what_cannot_be_stored_in_time(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    writing = Writing(settings, database_url, journal)
    for _ in range(30):
        writing.put(100)
    with running(writing.writer, writing.backlog, drain_s=0.0):
        pass
    assert writing.writer.counts.blocks < 300
    later = Writing(settings, database_url, journal)
    with running(later.writer, later.backlog):
        pass
    assert later.writer.counts.blocks == 300 - writing.writer.counts.blocks
    assert_stored_exactly_once(settings, database_url)


def test_stopping_during_an_outage_does_not_wait_for_its_end(
    writing: Writing, settings: Settings, postgres_url: str, database_url: str
) -> None:
    with outage(postgres_url, database_url), running(writing.writer, writing.backlog):
        writing.put(10)
        until(lambda: writing.warnings)
    assert writing.writer.counts.blocks == 0


def test_the_published_status_is_kept_in_the_database(writing: Writing, database_url: str) -> None:
    with running(writing.writer, writing.backlog):
        for number in (1, 2):
            writing.writer.book.say({"messages": number})
            until(lambda number=number: query(database_url, "SELECT status FROM captures") == [({"messages": number},)])
    with closing(connect(database_url)) as conn:
        [status] = ledger.statuses(conn)
    assert (status.capture, status.source) == (0, "dhan")


def test_a_database_whose_disk_is_full_hears_of_it_and_gets_all_once_there_is_room(
    writing: Writing, settings: Settings, database_url: str
) -> None:
    def execute(statement: str) -> None:
        with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(statement)

    with running(writing.writer, writing.backlog):
        writing.put(10)
        until(lambda: writing.all_committed)
        assert writing.writer.facts() == {"store_problem": None}
        execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION"
            " 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;"
            "CREATE TRIGGER full_disk BEFORE INSERT ON tick_rows FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        writing.put(10)
        until(lambda: writing.writer.facts()["store_problem"])
        assert writing.writer.facts() == {"store_problem": "could not extend file: No space left on device"}
        for number in (1, 2):
            writing.writer.book.say({"messages": number})
            until(lambda number=number: query(database_url, "SELECT status FROM captures") == [({"messages": number},)])
        assert not writing.all_committed
        execute("DROP TRIGGER full_disk ON tick_rows")
        until(lambda: writing.all_committed and writing.writer.facts() == {"store_problem": None})
    assert_stored_exactly_once(settings, database_url)


def test_the_status_is_kept_while_the_day_so_far_is_read_again(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Writing(settings, database_url, journal)
    with running(first.writer, first.backlog):
        first.put(10)
        until(lambda: first.all_committed)
    kept: list[object] = []

    def read_again(*args: Any) -> bool:
        assert not args[-1]()
        kept.extend(query(database_url, "SELECT status FROM captures"))
        return True

    monkeypatch.setattr(writer_module, "resume", read_again)
    second = Writing(settings, database_url, journal)
    second.writer.book.say({"messages": 1})
    with running(second.writer, second.backlog):
        until(lambda: second.all_committed)
    assert kept == [({"messages": 1},)]


@pytest.mark.usefixtures("partitions_ahead")
def test_partitions_are_made_ahead_as_the_clock_goes_on(writing: Writing, database_url: str) -> None:
    def partitions() -> set[object]:
        names = query(
            database_url, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'tick_rows'::regclass"
        )
        return {name for (name,) in names}

    with running(writing.writer, writing.backlog):
        until(lambda: "ticks_20261120_11" in partitions())
        writing.clock.at_ns += HOUR_NS
        writing.put(10, at_ns=START_NS + HOUR_NS)
        until(lambda: "ticks_20261120_12" in partitions())
        until(lambda: writing.all_committed)
    assert writing.writer.counts.hours == {NEXT_HOUR}


def test_a_database_without_instruments_is_told_once_with_what_to_do(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LEARN_S", 0.0)
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM instruments")
    writing = Writing(settings, database_url, journal)
    with running(writing.writer, writing.backlog):
        for _ in range(2):
            writing.put(10)
            until(lambda: writing.all_committed)
    assert writing.warnings == [
        "The database has no instruments of dhan, so all packets are rejected. They are kept; run:"
        " dhan-pipeline sync-instruments --download --source dhan, then: dhan-pipeline redrive."
    ]


def test_instruments_that_are_synced_meanwhile_are_known_from_then_on(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LEARN_S", 0.0)
    writing = Writing(settings, database_url, journal)

    def put_unknown(at_ns: int) -> None:
        for block in record(journal, [ticker(UNKNOWN, 100.0)], at_ns):
            writing.backlog.put(block)

    with running(writing.writer, writing.backlog):
        put_unknown(START_NS)
        until(lambda: writing.writer.counts.rejected == 1)
        add_instruments(database_url, [generate_instrument_token(*UNKNOWN)])
        put_unknown(START_NS + SECOND_NS)  # the packet that makes the writer look
        until(lambda: writing.writer.counts.rejected == 2)
        put_unknown(START_NS + 2 * SECOND_NS)
        until(lambda: writing.writer.counts.ticks == 1)
    assert_stored_exactly_once(settings, database_url)
