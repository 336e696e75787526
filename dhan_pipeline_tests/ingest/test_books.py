from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Thread

import numpy as np
import pytest

from dhan_pipeline.ingest import books as books_module
from dhan_pipeline.ingest import retrying
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.books import Books
from dhan_pipeline.ingest.logbook import Logbook
from dhan_pipeline.ingest.parts import PartProcessor
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import leases
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.ingest.feed import (
    EQUITY,
    HOUR,
    SECOND_NS,
    START_NS,
    TOKENS,
    HandClock,
    backlog_of,
    market_messages,
    outage,
    query,
    record,
    ticker,
    until,
)
from dhan_pipeline_tests.ingest.lanes import parts_of

ALL = (1, 2, 3)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_RETRY_S", (0.02, 0.05))
    monkeypatch.setattr(books_module, "_POLL_S", 0.01)


def store(database_url: str, blocks: Sequence[Block], lanes: Sequence[int] = ALL) -> None:
    """As workers do that have these lanes, two seconds after 09:00."""
    processor = PartProcessor(np.array(sorted(TOKENS)))
    with closing(connect(database_url)) as conn:
        for run in parts_of(blocks, TOKENS):
            for part in run:
                if part.lane in lanes:
                    write_blocks(conn, [processor.process(part)], HandClock(START_NS + 2 * SECOND_NS))


@contextmanager
def following(books: Books) -> Iterator[Books]:
    """The books in a thread of their own."""
    thread = Thread(target=books.run)
    thread.start()
    try:
        yield books
    finally:
        books.stop()
        thread.join(20)
        assert not thread.is_alive()


def books_of(settings: Settings, database_url: str, backlog: Backlog) -> tuple[Books, list[str]]:
    """The books, and what they will warn of."""
    warnings: list[str] = []
    return Books(settings, database_url, backlog, warnings.append), warnings


def in_ledger(database_url: str) -> tuple[object, ...]:
    [row] = query(
        database_url,
        "SELECT count(DISTINCT block_id), sum(packets), sum(ticks), sum(state), sum(control), sum(rejected) "
        "FROM ingest_ledger",
    )
    return row


def counted(books: Books) -> tuple[object, ...]:
    counts = books.counts
    return (counts.blocks, counts.packets, counts.ticks, counts.state, counts.control, counts.rejected)


def test_a_block_is_counted_when_all_of_its_parts_are_stored_and_once(
    settings: Settings, database_url: str, postgres_url: str, journal: JournalWriter
) -> None:
    blocks = record(journal, market_messages(90), START_NS)
    books, warnings = books_of(settings, database_url, backlog_of(journal, settings))
    with following(books):
        assert books.begin(20)
        assert books.whole is None
        store(database_url, blocks[:6])
        until(lambda: books.counts.blocks == 6)
        assert books.counts.committed_through_ns == blocks[5].last_received_ns + 999
        store(database_url, blocks, lanes=(1, 3))
        until(lambda: query(database_url, "SELECT max(block_id) FROM ingest_ledger") == [(blocks[-1].block_id,)])
        with outage(postgres_url, database_url):
            until(lambda: warnings)
            assert books.workers is None
        assert books.counts.blocks == 6
        store(database_url, blocks)
        until(lambda: books.counts.blocks == 9)
        assert counted(books) == in_ledger(database_url)
        assert books.counts.latency.counts.sum() == books.counts.packets
        assert books.whole == (blocks[-1].block_id, blocks[-1].last_received_ns + 999)
        assert "What workers have stored is not known for now; trying again." in warnings[0]


def test_what_was_stored_before_the_start_is_not_counted_but_its_hours_are_known(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    before, after = record(journal, market_messages(20), START_NS)
    store(database_url, [before])
    books, _ = books_of(settings, database_url, backlog_of(journal, settings))
    with following(books):
        assert books.begin(20)
        assert books.whole == (before.block_id, before.last_received_ns // 1000 * 1000)
        assert books.counts.blocks == 0
        assert books.counts.hours == {HOUR}
        assert sorted(books.tokens.tolist()) == sorted(TOKENS)
        store(database_url, [after])
        until(lambda: books.counts.blocks == 1)
    assert books.counts.committed_through_ns >= after.last_received_ns


def test_an_empty_journal_says_where_to_begin_with_its_first_block(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    backlog = backlog_of(journal, settings)
    books, warnings = books_of(settings, database_url, backlog)
    with following(books):
        until(lambda: books.workers is not None)
        assert not books.begin(0)
        (block,) = record(journal, [ticker(EQUITY, 100.0)], START_NS)
        backlog.put(block)
        assert books.begin(20)
    assert warnings == []


def test_workers_are_counted_and_the_status_of_the_capture_is_kept(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    record(journal, market_messages(10), START_NS)
    books, _ = books_of(settings, database_url, backlog_of(journal, settings))
    assert books.workers is None
    with closing(connect(database_url)) as worker, following(books):
        until(lambda: books.workers == 0)
        leases.join(worker)
        until(lambda: books.workers == 1)
        for number in (1, 2):
            books.book.say({"event": "status", "number": number})
            until(lambda: query(database_url, "SELECT status->'number' FROM captures") == [(number,)])  # noqa: B023
        worker.close()
        until(lambda: books.workers == 0)


def test_latencies_of_many_rows_are_counted_a_few_at_a_time(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_module, "_ROWS", 2)
    blocks = record(journal, market_messages(70), START_NS)
    books, _ = books_of(settings, database_url, backlog_of(journal, settings))
    with following(books):
        assert books.begin(20)
        store(database_url, blocks)
        until(lambda: books.counts.blocks == 7)
    latency = books.counts.latency
    assert latency.counts.sum() == books.counts.packets
    found = latency.percentile(50)
    assert found is not None
    assert 1900 < found < 2100  # they were stored two seconds after the first was received


def test_captures_are_counted_apart(settings: Settings, database_url: str, journal: JournalWriter) -> None:
    other = Settings(_env_file=None, **{**settings.model_dump(), "capture": 1})
    blocks = record(journal, market_messages(20), START_NS)
    with closing(JournalWriter(other.journal_dir, 1)) as its_journal:
        its_blocks = record(its_journal, market_messages(30), START_NS)
        books, _ = books_of(settings, database_url, backlog_of(journal, settings))
        its_books, _ = books_of(other, database_url, backlog_of(its_journal, other))
    with following(books), following(its_books):
        store(database_url, [*its_blocks])
        store(database_url, blocks)
        until(lambda: (books.counts.blocks, its_books.counts.blocks) == (2, 3))


def test_what_the_capture_is_subscribed_to_is_written_before_there_is_a_block(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    book = Logbook(settings)
    book.begin({TOKENS[0]: Mode.FULL}, HandClock().now(), None)
    with following(Books(settings, database_url, backlog_of(journal, settings), print, book)):
        until(lambda: query(database_url, "SELECT instrument_token FROM subscribed_instruments") == [(TOKENS[0],)])


def test_the_last_word_of_a_capture_is_written_though_it_ends_at_once(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    books, _ = books_of(settings, database_url, backlog_of(journal, settings))
    with following(books):
        until(lambda: books.workers is not None)
        books.book.say({"stopped": True})
        books.stop()
    assert query(database_url, "SELECT status->'stopped' FROM captures") == [(True,)]
