"""The promise: the rows of an hour are a function of the journal, whoever makes them."""

from contextlib import closing

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.ingest.rebuild import HourRefusedError, rebuild_hour
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.journal import stretch
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.ledger import hour_totals
from dhan_pipeline.store.ticks import JournalIncompleteError
from dhan_pipeline_tests.ingest.feed import (
    EQUITY,
    FUTURE,
    HOUR,
    NEXT_HOUR,
    START_NS,
    HandClock,
    assert_stored_exactly_once,
    backlog_of,
    market_messages,
    open_interest,
    previous_close,
    query,
    quote,
    record,
    running,
    ticker,
    until,
)

AFTER_NS = START_NS + 5 * HOUR_NS


@pytest.fixture
def clock() -> HandClock:
    return HandClock(AFTER_NS)


def store(settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock) -> None:
    """Run a writer until all of the journal is committed."""
    backlog = backlog_of(journal, settings)
    writer = Writer(settings, database_url, backlog, clock, pytest.fail)
    with running(writer, backlog):
        until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)


def damage(conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM ticks WHERE tick_id % 3 = 0")
        cursor.execute("UPDATE ticks SET last_price = 1, oi = 2 WHERE tick_id % 3 = 1")
        cursor.execute("DELETE FROM rejected_packets")


@pytest.mark.parametrize("stretch_bytes", [1, 3000, stretch.STRETCH_BYTES])
@pytest.mark.parametrize("restarts", [1, 4])
def test_a_rebuilt_hour_has_the_rows_of_the_live_one_to_the_byte(
    settings: Settings,
    database_url: str,
    journal: JournalWriter,
    clock: HandClock,
    conn: connection,
    monkeypatch: pytest.MonkeyPatch,
    restarts: int,
    stretch_bytes: int,
) -> None:
    monkeypatch.setattr(stretch, "STRETCH_BYTES", stretch_bytes)
    record(journal, [previous_close(EQUITY, 90.0), open_interest(FUTURE, 777)], START_NS)
    store(settings, database_url, journal, clock)
    for part in range(restarts):  # the last of them begins in the middle of the second hour
        record(journal, market_messages(200, seed=part), START_NS + 10**9 + part * (HOUR_NS // 2))
        store(settings, database_url, journal, clock)
    record(journal, market_messages(200, seed=100), START_NS + HOUR_NS + 10**9 + (restarts // 4) * HOUR_NS)
    store(settings, database_url, journal, clock)
    assert_stored_exactly_once(settings, database_url)
    modes = query(database_url, "SELECT DISTINCT mode FROM ticks")
    assert sorted(modes) == [("full",), ("quote",), ("ticker",)]

    hours = [hour for (hour,) in query(database_url, "SELECT DISTINCT hour FROM ingest_ledger ORDER BY 1")]
    keys = [HOUR, NEXT_HOUR, "2026-11-20T11:00"][: len(hours)]
    live = {key: (hour_digest(conn, key), hour_totals(conn, key)) for key in keys}
    conn.rollback()
    damage(conn)
    assert hour_digest(conn, NEXT_HOUR) != live[NEXT_HOUR][0]
    conn.rollback()
    for key in reversed(keys):
        assert rebuild_hour(settings, database_url, key, clock).rows == live[key][1].rows
    assert {key: (hour_digest(conn, key), hour_totals(conn, key)) for key in keys} == live
    assert_stored_exactly_once(settings, database_url)


def test_state_is_carried_over_the_edge_of_the_hour_live_and_rebuilt(
    settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock, conn: connection
) -> None:
    record(journal, [previous_close(EQUITY, 90.0), open_interest(FUTURE, 777)], START_NS + HOUR_NS - 10_000_000)
    record(journal, [ticker(EQUITY, 99.0), quote(FUTURE, 10.0)], START_NS + HOUR_NS)
    store(settings, database_url, journal, clock)
    expected = [("quote", 777, None), ("ticker", None, 9.0)]
    for _ in range(2):
        assert query(database_url, "SELECT mode, oi, change FROM ticks ORDER BY mode") == expected
        damage(conn)
        rebuild_hour(settings, database_url, NEXT_HOUR, clock)


def test_an_hour_that_was_never_stored_is_made_from_the_journal_and_not_again_by_the_writer(
    settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock
) -> None:
    record(journal, market_messages(200), START_NS)
    assert rebuild_hour(settings, database_url, HOUR, clock).rows > 0
    assert_stored_exactly_once(settings, database_url)
    record(journal, market_messages(200, seed=2), START_NS + HOUR_NS)
    store(settings, database_url, journal, clock)
    assert_stored_exactly_once(settings, database_url)


def test_the_hours_of_all_captures_are_rebuilt_each_with_its_own_state(
    settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock, conn: connection
) -> None:
    other = settings.model_copy(update={"capture": 7})
    record(journal, [previous_close(EQUITY, 90.0), ticker(EQUITY, 99.0)], START_NS)
    store(settings, database_url, journal, clock)
    with closing(JournalWriter(settings.journal_dir, 7)) as second:
        record(second, [previous_close(EQUITY, 80.0), ticker(EQUITY, 99.0)], START_NS)
        store(other, database_url, second, clock)
    live = hour_digest(conn, HOUR)
    conn.rollback()
    damage(conn)
    assert rebuild_hour(settings, database_url, HOUR, clock).rows == 2
    assert hour_digest(conn, HOUR) == live
    assert query(database_url, "SELECT change FROM ticks ORDER BY tick_id") == [(9.0,), (19.0,)]


def test_an_open_hour_is_refused(settings: Settings, database_url: str, journal: JournalWriter) -> None:
    record(journal, [ticker(EQUITY, 99.0)], START_NS)
    with pytest.raises(HourRefusedError, match=f"The hour {HOUR} is still open"):
        rebuild_hour(settings, database_url, HOUR, HandClock(START_NS + HOUR_NS - 1))
    assert rebuild_hour(settings, database_url, HOUR, HandClock(START_NS + HOUR_NS)).rows == 1


def test_an_hour_without_a_journal_is_refused(settings: Settings, database_url: str, clock: HandClock) -> None:
    with pytest.raises(HourRefusedError, match=f"The journal holds nothing of the hour {HOUR}"):
        rebuild_hour(settings, database_url, HOUR, clock)


def test_what_is_no_hour_is_refused(settings: Settings, database_url: str, clock: HandClock) -> None:
    with pytest.raises(ValueError, match="10:30"):
        rebuild_hour(settings, database_url, "2026-11-20T10:30", clock)


def test_an_hour_of_which_the_journal_lost_a_block_is_left_as_it_is(
    settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock, conn: connection
) -> None:
    record(journal, market_messages(100), parse_hour_key(HOUR))
    store(settings, database_url, journal, clock)
    live = hour_digest(conn, HOUR)
    conn.rollback()
    path = hour_path(settings.journal_dir, 0, HOUR)
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(JournalIncompleteError):
        rebuild_hour(settings, database_url, HOUR, clock)
    assert hour_digest(conn, HOUR) == live


def test_an_hour_rebuilt_before_the_writer_came_to_it_keeps_no_earlier_block_from_being_stored(
    settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock
) -> None:
    record(journal, market_messages(100, seed=1), START_NS)
    record(journal, market_messages(100, seed=2), START_NS + HOUR_NS)
    rebuild_hour(settings, database_url, NEXT_HOUR, clock)
    store(settings, database_url, journal, clock)
    assert_stored_exactly_once(settings, database_url)
