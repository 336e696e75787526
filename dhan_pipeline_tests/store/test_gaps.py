from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection

from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.journal.notes import Note, Started
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.gaps import apply_notes, read_gaps
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

START_NS = parse_hour_key("2026-11-20T09:00")
SECOND_NS = 1_000_000_000

OPENED = Gap(START_NS + 5 * SECOND_NS, 1, START_NS, Cause.RESET, "the connection was lost", (3, 1, 2))
EXPLAINED = replace(OPENED, cause=Cause.TOKEN, detail="the token was refused", instruments=None)
ENDED = replace(EXPLAINED, ended_ns=START_NS + 9 * SECOND_NS, recovery="connected again")


def table(conn: connection) -> list[tuple[object, ...]]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT capture, gap_id, connection, instruments, started_at, ended_at, cause, detail, recovery "
            "FROM feed_gaps ORDER BY capture, gap_id"
        )
        return cursor.fetchall()


def apply(conn: connection, *notes: tuple[int, Note]) -> None:
    with conn.cursor() as cursor:
        apply_notes(cursor, 0, notes)


def test_a_gap_is_there_from_its_beginning_and_keeps_its_instruments(conn: connection) -> None:
    apply(conn, (OPENED.gap_id, OPENED))
    [gap] = read_gaps(conn, START_NS, START_NS + SECOND_NS)
    assert (gap.started_ns, gap.ended_ns, gap.cause, gap.instruments.tolist()) == (
        START_NS,
        None,
        Cause.RESET,
        [3, 1, 2],
    )
    apply(conn, (OPENED.gap_id + 1, EXPLAINED), (OPENED.gap_id + 2, ENDED))
    [gap] = read_gaps(conn, START_NS, START_NS + SECOND_NS)
    assert (gap.ended_ns, gap.cause, gap.detail, gap.recovery, gap.instruments.tolist()) == (
        START_NS + 9 * SECOND_NS,
        Cause.TOKEN,
        "the token was refused",
        "connected again",
        [3, 1, 2],
    )


def test_a_process_that_begins_ends_what_the_one_before_left_open_where_the_journal_ended(conn: connection) -> None:
    since_ns = START_NS + 20 * SECOND_NS
    started = Started(7, since_ns, Cause.RESTART, since_ns)
    own = replace(OPENED, gap_id=since_ns + 2, started_ns=since_ns, cause=Cause.RESTART)
    apply(conn, (OPENED.gap_id, OPENED), (since_ns + 1, started), (since_ns + 2, own))
    first, second = read_gaps(conn, START_NS, since_ns + SECOND_NS)
    assert (first.ended_ns, first.recovery) == (since_ns, "the process ended")
    assert (second.started_ns, second.ended_ns) == (since_ns, None)


def test_only_gaps_that_overlap_are_read(conn: connection) -> None:
    apply(conn, (OPENED.gap_id, OPENED), (OPENED.gap_id, ENDED))
    assert len(read_gaps(conn, START_NS + 8 * SECOND_NS, START_NS + 90 * SECOND_NS)) == 1
    assert read_gaps(conn, START_NS + 9 * SECOND_NS, START_NS + 90 * SECOND_NS) == []
    assert read_gaps(conn, START_NS - SECOND_NS, START_NS) == []


NOTES: list[tuple[int, Note]] = [
    (OPENED.gap_id, OPENED),
    (OPENED.gap_id + 1, EXPLAINED),
    (OPENED.gap_id + 2, ENDED),
    (START_NS + 10 * SECOND_NS, replace(OPENED, gap_id=START_NS + 10 * SECOND_NS, connection=2)),
    (START_NS + 20 * SECOND_NS, Started(8, START_NS + 15 * SECOND_NS, Cause.HOST_DOWN, START_NS + 15 * SECOND_NS)),
    (START_NS + 21 * SECOND_NS, replace(OPENED, gap_id=START_NS + 21 * SECOND_NS, cause=Cause.HOST_DOWN)),
]


@given(restarts=st.lists(st.tuples(st.integers(0, len(NOTES)), st.integers(0, len(NOTES))), max_size=6))
@settings(max_examples=40)
def test_notes_that_are_told_again_from_any_place_on_change_nothing(
    conn: connection, restarts: list[tuple[int, int]]
) -> None:
    apply(conn, *NOTES)
    once = table(conn)
    conn.rollback()
    through = 0
    for back, forward in restarts:
        # A writer that begins again goes back to any place that it has passed, and on from there.
        start = min(back, through)
        through = max(through, min(start + forward, len(NOTES)))
        apply(conn, *NOTES[start:through])
    apply(conn, *NOTES[through:])
    assert table(conn) == once
    conn.rollback()


def test_notes_are_committed_with_their_block_and_also_with_one_that_a_rebuild_stored_before(
    conn: connection,
) -> None:
    block = make_block(1)
    clock = StandingClock(10)
    assert write_blocks(conn, [block], clock) == [1]
    assert table(conn) == []
    with_notes = replace(block, notes=((OPENED.gap_id, OPENED), (OPENED.gap_id, ENDED)))
    assert write_blocks(conn, [with_notes], clock) == []
    assert len(table(conn)) == 1


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_can_be_kept(conn: connection, cause: Cause) -> None:
    apply(conn, (1, replace(OPENED, cause=cause)))
    assert read_gaps(conn, START_NS, START_NS + SECOND_NS)[0].cause is cause
