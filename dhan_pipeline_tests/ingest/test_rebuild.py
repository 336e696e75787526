"""The promise: the rows of an hour are a function of the journal, whoever makes them."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.ingest import writer
from dhan_pipeline.ingest.rebuild import HourRefusedError, rebuild_hour, rebuild_hours
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal import stretch
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.quality.hours import measure_hour
from dhan_pipeline.quality.measures import CheckOutcome, hour_outcomes
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.differences import Difference
from dhan_pipeline.store.digests import Digest, hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ledger import hour_totals
from dhan_pipeline.store.rebuilds import JournalIncompleteError
from dhan_pipeline.ticks import Decoded, RawTicks
from dhan_pipeline_tests.ingest import kite_feed
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    CURRENCY,
    EQUITY,
    FUTURE,
    HOUR,
    INDEX,
    NEXT_HOUR,
    START_NS,
    HandClock,
    add_instruments,
    assert_stored_exactly_once,
    backlog_of,
    full,
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


def named(outcomes: list[CheckOutcome], name: str) -> CheckOutcome:
    return next(outcome for outcome in outcomes if outcome.name == name)


def execute(database_url: str, statement: str) -> None:
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(statement)


def damage(conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM ticks WHERE tick_id % 3 = 0")
        cursor.execute("UPDATE ticks SET last_price = 1, oi = 2 WHERE tick_id % 3 = 1")
        cursor.execute("DELETE FROM rejected_packets")


@pytest.mark.parametrize(
    ("source", "restarts", "stretch_bytes"),
    [
        *(("dhan", restarts, size) for restarts in (1, 4) for size in (1, 3000, stretch.STRETCH_BYTES)),
        ("kite", 4, 3000),
    ],
    indirect=["source"],
)
def test_a_rebuilt_hour_has_the_rows_of_the_live_one_to_the_byte(
    settings: Settings,
    database_url: str,
    journal: JournalWriter,
    clock: HandClock,
    conn: connection,
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[..., list[bytes]],
    source: Source,
    restarts: int,
    stretch_bytes: int,
) -> None:
    monkeypatch.setattr(stretch, "STRETCH_BYTES", stretch_bytes)
    if source == "dhan":
        record(journal, [previous_close(EQUITY, 90.0), open_interest(FUTURE, 777)], START_NS)
        store(settings, database_url, journal, clock)
    for part in range(restarts):  # the last of them begins in the middle of the second hour
        record(journal, messages(200, seed=part), START_NS + 10**9 + part * (HOUR_NS // 2))
        store(settings, database_url, journal, clock)
    record(journal, messages(200, seed=100), START_NS + HOUR_NS + 10**9 + (restarts // 4) * HOUR_NS)
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


@BOTH_SOURCES
def test_an_hour_that_was_never_stored_is_made_from_the_journal_and_not_again_by_the_writer(
    settings: Settings,
    database_url: str,
    journal: JournalWriter,
    clock: HandClock,
    messages: Callable[..., list[bytes]],
) -> None:
    record(journal, messages(200), START_NS)
    assert rebuild_hour(settings, database_url, HOUR, clock).rows > 0
    assert_stored_exactly_once(settings, database_url)
    record(journal, messages(200, seed=2), START_NS + HOUR_NS)
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


def test_an_hour_in_which_both_sources_were_captured_is_rebuilt_whole_whichever_is_captured_now(
    settings: Settings, database_url: str, journal: JournalWriter, clock: HandClock, conn: connection
) -> None:
    add_instruments(database_url, kite_feed.TOKENS)
    record(journal, market_messages(200), START_NS)
    store(settings, database_url, journal, clock)
    kite = settings.of("kite")
    with closing(JournalWriter(settings.journal_dir, kite.capture_number)) as second:
        record(second, kite_feed.market_messages(200), START_NS)
        store(kite, database_url, second, clock)
    live = hour_digest(conn, HOUR)
    sources = "SELECT DISTINCT instrument_token < 4294967296 FROM ticks ORDER BY 1"
    assert query(database_url, sources) == [(False,), (True,)]
    conn.rollback()
    for now in (settings, kite, settings.model_copy(update={"data_source": "kite,dhan"})):
        damage(conn)
        rebuild_hour(now, database_url, HOUR, clock)
        assert hour_digest(conn, HOUR) == live
        conn.rollback()


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


def digests(database_url: str, *hours: str) -> list[Digest]:
    with closing(connect(database_url)) as conn:
        return [hour_digest(conn, hour) for hour in hours]


def record_three_hours(journal: JournalWriter) -> list[str]:
    """The last is of the next day; the first says what the second needs, which nothing else does."""
    record(journal, [previous_close(EQUITY, 90.0), open_interest(FUTURE, 777)], START_NS)
    record(journal, market_messages(40, seed=1), START_NS + 10**9)
    record(journal, [previous_close(INDEX, 80.0), open_interest(CURRENCY, 55)], START_NS + 2 * 10**9)
    record(journal, [ticker(INDEX, 100.0), quote(CURRENCY, 70.0), *market_messages(40, seed=2)], START_NS + HOUR_NS)
    record(journal, [ticker(INDEX, 100.0), *market_messages(40, seed=3)], START_NS + 24 * HOUR_NS)
    return [HOUR, NEXT_HOUR, "2026-11-21T09:00"]


@pytest.mark.parametrize("order", [(1,), (2, 1, 0)])
@pytest.mark.parametrize("before", ["UPDATE tick_rows SET oi = 1, day_close = 2", "TRUNCATE tick_rows"])
def test_hours_rebuilt_alone_or_out_of_order_are_the_live_ones(
    settings: Settings, database_url: str, journal: JournalWriter, order: tuple[int, ...], before: str
) -> None:
    clock = HandClock(START_NS + 48 * HOUR_NS)
    hours = record_three_hours(journal)
    store(settings, database_url, journal, clock)
    live = digests(database_url, *hours)
    execute(database_url, before)
    for at in order:
        rebuild_hour(settings, database_url, hours[at], clock)
        assert digests(database_url, hours[at]) == [live[at]]


def test_hours_rebuilt_in_one_go_are_the_live_ones(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HandClock(START_NS + 48 * HOUR_NS)
    monkeypatch.setattr(stretch, "STRETCH_BYTES", 2000)
    hours = record_three_hours(journal)
    store(settings, database_url, journal, clock)
    live = digests(database_url, *hours)
    made: Counter[str] = Counter()
    execute(database_url, "DELETE FROM tick_rows WHERE tick_id % 5 = 0")
    execute(database_url, "UPDATE tick_rows SET oi = 1 WHERE tick_id % 5 = 1")

    def progress(hour: str, ticks: int) -> None:
        made[hour] += ticks

    rebuilt = list(rebuild_hours(settings, database_url, hours[0], "2026-11-21T23:00", clock, progress))
    assert digests(database_url, *hours) == live
    assert [(r.hour, r.rows, r.digest) for r in rebuilt] == [
        (hour, digest.rows, digest.digest) for hour, digest in zip(hours, live, strict=True)
    ]
    assert made == {hour: digest.rows for hour, digest in zip(hours, live, strict=True)}
    assert not any(r.same for r in rebuilt)
    assert all(r.same for r in rebuild_hours(settings, database_url, hours[1], hours[2], clock))


def test_an_hour_of_a_range_that_the_journal_lost_in_part_is_named_and_the_others_are_done(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    clock = HandClock(START_NS + 48 * HOUR_NS)
    hours = record_three_hours(journal)
    store(settings, database_url, journal, clock)
    live = digests(database_url, *hours)
    execute(database_url, "UPDATE tick_rows SET oi = 1")
    path = hour_path(settings.journal_dir, 0, HOUR)
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 255  # in the last block, which holds state
    path.write_bytes(damaged)
    done: list[str] = []
    with pytest.raises(JournalIncompleteError, match=f"lacks 1 blocks of {HOUR}"):
        done.extend(r.hour for r in rebuild_hours(settings, database_url, hours[0], hours[2], clock))
    assert digests(database_url, hours[2]) == live[2:]
    assert {hour for hour, digest in zip(hours, digests(database_url, *hours), strict=True) if digest in live} == {
        hours[2]
    }


def test_a_range_that_reaches_into_the_open_hour_is_refused_before_anything_changes(
    settings: Settings, database_url: str, journal: JournalWriter
) -> None:
    hours = record_three_hours(journal)
    open_at = HandClock(START_NS + HOUR_NS + 1)
    with pytest.raises(HourRefusedError, match=f"The hour {NEXT_HOUR} is still open"):
        list(rebuild_hours(settings, database_url, hours[0], hours[1], open_at))
    assert query(database_url, "SELECT 1 FROM tick_rows") == []
    # Hours of which the journal holds nothing yet do not stand in the way.
    whole_day = rebuild_hours(settings, database_url, "2026-11-20T00:00", "2026-11-20T09:00", open_at)
    assert [rebuilt.hour for rebuilt in whole_day] == [HOUR]
    with pytest.raises(HourRefusedError, match="nothing of the hours from 2026-11-19T00:00 to 2026-11-19T23:00"):
        list(rebuild_hours(settings, database_url, "2026-11-19T00:00", "2026-11-19T23:00", open_at))


def test_once_a_broken_decoder_is_mended_the_rebuild_names_exactly_the_rows_that_it_broke(
    settings: Settings, database_url: str, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HandClock(START_NS + 5 * HOUR_NS)
    day = [quote(EQUITY, 100.0 + n) for n in range(3)] + market_messages(100) + [full(EQUITY, 200.0)]
    record(journal, [*day, previous_close(EQUITY, 90.0)], START_NS)
    record(journal, [ticker(EQUITY, 99.0), *market_messages(50, seed=7)], START_NS + HOUR_NS)
    factors = {"day_high": 2, "day_low": 4}

    def broken(*arguments: Any) -> Decoded:
        decoded = decode(*arguments)
        return replace(decoded, ticks=[replace(ticks, columns=wrong_columns(ticks)) for ticks in decoded.ticks])

    def wrong_columns(ticks: RawTicks) -> dict[str, NDArray[Any]]:
        of_equity = ticks.instrument_token == generate_instrument_token(*EQUITY)
        columns = dict(ticks.columns)
        for name in factors.keys() & columns.keys():
            columns[name] = np.where(of_equity, columns[name] * factors[name], columns[name])
        return columns

    with monkeypatch.context() as patch:
        patch.setattr(writer, "decoder", lambda settings: broken)
        store(settings, database_url, journal, clock)
    measured = measure_hour(settings, HOUR, clock)
    assert named(hour_outcomes(measured, settings), "digest").passed
    of_equity = "instrument_token = %s AND day_high IS NOT NULL AND time < '2026-11-20 10:00+05:30'"
    broke = query(
        database_url, f"SELECT tick_id FROM ticks WHERE {of_equity} ORDER BY 1", generate_instrument_token(*EQUITY)
    )
    assert len(broke) > 20
    changed: list[Sequence[Difference]] = []
    (compared,) = rebuild_hours(settings, database_url, HOUR, HOUR, clock, compare_only=True, each_row=changed.append)
    rebuilt = rebuild_hour(settings, database_url, HOUR, clock)
    assert rebuilt == compared
    found = rebuilt.differences
    assert (found.added, found.removed, found.changed) == (0, 0, len(broke))
    assert found.columns == (("day_high", len(broke)), ("day_low", len(broke)))
    assert [of_row[0].tick_id for of_row in changed] == [tick_id for (tick_id,) in broke]
    assert [[d.column for d in of_row] for of_row in changed] == len(broke) * [["day_high", "day_low"]]
    assert all(d.before == d.after * factors[d.column or ""] for of_row in changed for d in of_row)

    warned = named(hour_outcomes(measure_hour(settings, HOUR, clock), settings), "digest")
    assert (warned.passed, warned.severity) == (False, "WARN")
    assert f"0 added, 0 removed, {len(broke)} changed" in warned.description
    assert rebuild_hour(settings, database_url, HOUR, clock).same
    assert named(hour_outcomes(measure_hour(settings, HOUR, clock), settings), "digest").passed
