from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest import redrive as module
from dhan_pipeline.ingest import writer as writer_module
from dhan_pipeline.ingest.rebuild import rebuild_hour
from dhan_pipeline.ingest.redrive import RedriveResult, redrive
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal import stretch
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.quality.hours import measure_hour
from dhan_pipeline.quality.measures import CheckOutcome, hour_outcomes
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.rebuilds import JournalIncompleteError, replace_blocks
from dhan_pipeline.store.ticks import StoredBlocks
from dhan_pipeline_tests.ingest import kite_feed
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    EQUITY,
    HOUR,
    NEXT_HOUR,
    SECOND_NS,
    START_NS,
    UNKNOWN,
    HandClock,
    add_instruments,
    assert_stored_exactly_once,
    backlog_of,
    end_sessions,
    market_messages,
    previous_close,
    query,
    record,
    running,
    ticker,
    until,
)

AFTER = HandClock(START_NS + 5 * HOUR_NS)


def store(settings: Settings, database_url: str, journal: JournalWriter) -> None:
    """Run a writer until all of the journal is committed."""
    backlog = backlog_of(journal, settings)
    writer = Writer(settings, database_url, backlog, AFTER, pytest.fail)
    with running(writer, backlog):
        until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)


def interrupted(at: int, then: Callable[[], None]) -> Callable[..., int]:
    """A `replace_blocks` during which something happens, before its stretch of blocks number `at`."""

    def replace(
        conn: connection, first: int, before: int, renew: Callable[[int, int], Iterable[StoredBlocks]], clock: Clock
    ) -> int:
        number = 0

        def renewed(first: int, last: int) -> Iterator[StoredBlocks]:
            nonlocal number
            for part in renew(first, last):
                if number == at:
                    then()
                number += 1
                yield part

        return replace_blocks(conn, first, before, renewed, clock)

    return replace


def assert_rows_are_those_of_a_rebuild(settings: Settings, database_url: str, *hours: str) -> None:
    with closing(connect(database_url)) as conn:
        before = [hour_digest(conn, hour) for hour in hours]
        conn.rollback()
        for hour in hours:
            rebuild_hour(settings, database_url, hour, AFTER)
        assert [hour_digest(conn, hour) for hour in hours] == before


def know_the_unknown(database_url: str) -> None:
    add_instruments(database_url, [generate_instrument_token(*UNKNOWN), kite_feed.UNKNOWN])


@BOTH_SOURCES
def test_packets_of_instruments_that_were_synced_later_become_the_rows_of_a_rebuild(
    settings: Settings,
    database_url: str,
    journal: JournalWriter,
    conn: connection,
    messages: Callable[..., list[bytes]],
) -> None:
    record(journal, messages(300), START_NS)
    store(settings, database_url, journal)
    [(unknown, others)] = query(
        database_url,
        "SELECT count(*) FILTER (WHERE reason = 'unknown instrument'), "
        "count(*) FILTER (WHERE reason <> 'unknown instrument') FROM rejected_packets",
    )
    assert unknown
    assert others
    know_the_unknown(database_url)
    told: list[str] = []
    result = redrive(settings, database_url, AFTER, progress=told.append)
    assert (result.examined, result.driven, result.still_rejected) == (unknown + others, unknown, others)  # type: ignore[operator]
    assert len(told) == 1
    assert query(database_url, "SELECT count(*) FROM rejected_packets") == [(others,)]
    assert_stored_exactly_once(settings, database_url)
    driven = hour_digest(conn, HOUR)
    conn.rollback()
    rebuild_hour(settings, database_url, HOUR, AFTER)
    assert hour_digest(conn, HOUR) == driven


def test_done_again_it_finds_nothing_and_changes_nothing(
    settings: Settings, database_url: str, journal: JournalWriter, conn: connection
) -> None:
    record(journal, market_messages(200), START_NS)
    store(settings, database_url, journal)
    know_the_unknown(database_url)
    first = redrive(settings, database_url, AFTER)
    digest = hour_digest(conn, HOUR)
    conn.rollback()
    again = redrive(settings, database_url, AFTER)
    assert again == RedriveResult(first.still_rejected, 0, first.still_rejected)
    assert hour_digest(conn, HOUR) == digest


def test_only_the_reason_that_is_asked_for_is_examined(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    record(journal, [ticker(UNKNOWN, 1.0), ticker(EQUITY, -1.0)], START_NS)
    store(settings, database_url, journal)
    know_the_unknown(database_url)
    assert redrive(settings, database_url, AFTER, reason="impossible price") == RedriveResult(1, 0, 1)
    assert redrive(settings, database_url, AFTER, reason="unknown instrument") == RedriveResult(1, 1, 0, blocks=1)


def test_what_an_accepted_packet_says_about_later_ones_reaches_their_rows(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    record(journal, [previous_close(UNKNOWN, 90.0), ticker(EQUITY, 5.0)], START_NS)
    store(settings, database_url, journal)
    know_the_unknown(database_url)
    # Known from here on, but not what was said about it before.
    record(journal, [ticker(UNKNOWN, 100.0)], START_NS + HOUR_NS)
    store(settings, database_url, journal)
    token = generate_instrument_token(*UNKNOWN)
    change = "SELECT change FROM ticks WHERE instrument_token = %s"
    assert redrive(settings, database_url, AFTER).driven == 1
    assert query(database_url, change, token) == [(10.0,)]
    assert_stored_exactly_once(settings, database_url)


def test_rejected_packets_that_the_journal_no_longer_has_stay(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    record(journal, [ticker(UNKNOWN, 1.0)], START_NS)
    store(settings, database_url, journal)
    hour_path(settings.journal_dir, 0, HOUR).unlink()
    know_the_unknown(database_url)
    assert redrive(settings, database_url, AFTER) == RedriveResult(1, 0, 0, no_journal=1)
    assert query(database_url, "SELECT count(*) FROM rejected_packets") == [(1,)]


def test_interrupted_it_has_changed_nothing(
    settings: Settings,
    database_url: str,
    postgres_url: str,
    journal: JournalWriter,
    conn: connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record(journal, market_messages(300), START_NS)
    store(settings, database_url, journal)
    digest = hour_digest(conn, HOUR)
    conn.rollback()
    conn.close()
    know_the_unknown(database_url)
    monkeypatch.setattr(stretch, "STRETCH_BYTES", 1)
    monkeypatch.setattr(module, "replace_blocks", interrupted(20, lambda: end_sessions(postgres_url, database_url)))
    with pytest.raises(psycopg2.Error):
        redrive(settings, database_url, AFTER)
    with closing(connect(database_url)) as fresh:
        assert hour_digest(fresh, HOUR) == digest
    assert_stored_exactly_once(settings, database_url)


def test_the_capture_goes_on_meanwhile_and_all_its_rows_are_those_of_a_rebuild(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LEARN_S", 0.0)
    record(journal, [previous_close(UNKNOWN, 90.0), ticker(UNKNOWN, 1.0)], START_NS)
    record(journal, market_messages(200), START_NS + SECOND_NS)
    backlog = backlog_of(journal, settings)
    writer = Writer(settings, database_url, backlog, AFTER, pytest.fail)

    def go_on(at_ns: int) -> None:
        messages = [ticker(UNKNOWN, 500.0), *market_messages(20), ticker(UNKNOWN, 501.0)]
        for block in record(journal, messages, at_ns):
            backlog.put(block)
        until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)

    monkeypatch.setattr(stretch, "STRETCH_BYTES", 1)
    # The writer stores in the hours that are being renewed, and does not wait.
    monkeypatch.setattr(module, "replace_blocks", interrupted(5, lambda: go_on(START_NS + 30 * SECOND_NS)))
    with running(writer, backlog):
        until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)
        know_the_unknown(database_url)
        go_on(START_NS + 20 * SECOND_NS)  # known from here on, but not what was said of it before
        assert redrive(settings, database_url, AFTER).driven > 0
        go_on(START_NS + 40 * SECOND_NS)
        go_on(START_NS + HOUR_NS)
    assert_stored_exactly_once(settings, database_url)
    token = generate_instrument_token(*UNKNOWN)
    change = "SELECT change FROM ticks WHERE instrument_token = %s AND last_price >= 500 ORDER BY tick_id"
    assert query(database_url, change, token) == 4 * [(410.0,), (411.0,)]
    assert_rows_are_those_of_a_rebuild(settings, database_url, HOUR, NEXT_HOUR)


def test_a_sealed_hour_that_it_changed_is_on_record_and_passes_once_a_rebuild_comes_to_the_same(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    record(journal, market_messages(100), START_NS)
    store(settings, database_url, journal)

    def judged() -> CheckOutcome:
        return hour_outcomes(measure_hour(settings, HOUR, AFTER), settings)[-1]

    assert judged().passed
    know_the_unknown(database_url)
    assert redrive(settings, database_url, AFTER).driven
    assert (judged().name, judged().passed, judged().severity) == ("digest", False, "WARN")
    assert rebuild_hour(settings, database_url, HOUR, AFTER).same
    assert judged().passed
    origins = query(database_url, "SELECT origin FROM hour_digests ORDER BY made_at")
    assert origins == [("capture",), ("redrive",), ("rebuild",)]


def test_two_at_once_come_to_the_rows_of_one(settings: Settings, database_url: str, journal: JournalWriter) -> None:
    record(journal, market_messages(300), START_NS)
    store(settings, database_url, journal)
    know_the_unknown(database_url)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(redrive, settings, database_url, AFTER) for _ in range(2)]:
            done.result(60)
    assert_stored_exactly_once(settings, database_url)
    assert_rows_are_those_of_a_rebuild(settings, database_url, HOUR)


def test_a_day_of_which_the_journal_lost_a_block_is_named_and_does_not_hold_up_the_others(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    days_ns = [START_NS + day * 24 * HOUR_NS for day in range(3)]
    for at_ns in days_ns:
        record(journal, [ticker(UNKNOWN, 1.0), ticker(EQUITY, 1.0)], at_ns, in_block=1)
    store(settings, database_url, journal)
    path = hour_path(settings.journal_dir, 0, "2026-11-21T09:00")
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 255
    path.write_bytes(damaged)
    know_the_unknown(database_url)
    told: list[str] = []
    after = HandClock(days_ns[-1] + 5 * HOUR_NS)
    for _ in range(2):
        with pytest.raises(JournalIncompleteError, match=r"^Capture 0, 2026-11-21: The journal lacks 1 blocks"):
            redrive(settings, database_url, after, progress=told.append)
    assert [sentence.partition(":")[0] for sentence in told] == ["Capture 0, 2026-11-20", "Capture 0, 2026-11-22"]
    assert query(database_url, "SELECT (received AT TIME ZONE 'Asia/Kolkata')::date::text FROM rejected_packets") == [
        ("2026-11-21",)
    ]
