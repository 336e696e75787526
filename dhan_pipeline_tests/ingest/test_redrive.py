import threading
from contextlib import closing

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.ingest import redrive as module
from dhan_pipeline.ingest.rebuild import rebuild_hour
from dhan_pipeline.ingest.redrive import RedriveResult, redrive
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ticks import hour_digest
from dhan_pipeline_tests.ingest.feed import (
    EQUITY,
    HOUR,
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


def know_the_unknown(database_url: str) -> None:
    add_instruments(database_url, [generate_instrument_token(*UNKNOWN)])


def test_packets_of_instruments_that_were_synced_later_become_the_rows_of_a_rebuild(
    settings: Settings, database_url: str, journal: JournalWriter, conn: connection
) -> None:
    record(journal, market_messages(300), START_NS)
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
    replace_blocks = module.replace_blocks

    def cut_off(*args: object) -> int:
        def blocks() -> object:
            for number, block in enumerate(args[3]):  # type: ignore[arg-type,var-annotated]
                if number == 20:
                    end_sessions(postgres_url, database_url)
                yield block

        return replace_blocks(*args[:3], blocks(), args[4])  # type: ignore[arg-type]

    monkeypatch.setattr(module, "replace_blocks", cut_off)
    with pytest.raises(psycopg2.Error):
        redrive(settings, database_url, AFTER)
    with closing(connect(database_url)) as fresh:
        assert hour_digest(fresh, HOUR) == digest
    assert_stored_exactly_once(settings, database_url)


def test_the_capture_may_go_on_meanwhile(settings: Settings, database_url: str, journal: JournalWriter) -> None:
    record(journal, market_messages(200), START_NS)
    backlog = backlog_of(journal, settings)
    writer = Writer(settings, database_url, backlog, AFTER, pytest.fail)
    with running(writer, backlog):
        until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)
        know_the_unknown(database_url)
        driving = threading.Thread(target=redrive, args=(settings, database_url, AFTER))
        driving.start()
        for second in range(1, 20):
            for block in record(journal, market_messages(20, seed=second), START_NS + second * SECOND_NS):
                backlog.put(block)
        driving.join(60)
        until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)
    assert_stored_exactly_once(settings, database_url)
