"""Hours are rebuilt by comparison: what differs is told, and nothing else is written."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.store import differences
from dhan_pipeline.store.differences import EXAMPLES, Difference, Differences
from dhan_pipeline.store.digests import hour_digest, records
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.rebuilds import HourRebuild, replace_hour
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

HOUR = "2026-11-20T09:00"
CLOCK = StandingClock(7200)
FIRST = 1 << 16  # its row is full, and the one three later a ticker's


def run(conn: connection, statement: str) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def stored(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2, rejected=1)], StandingClock(10))
    run(conn, "UPDATE tick_rows SET oi = 0 WHERE mode = 'full'")


def rebuild(conn: connection, **options: Any) -> HourRebuild:
    """The hour's rows anew; of full ones all that differs is that `oi` was 0."""
    return replace_hour(conn, HOUR, [make_block(1), make_block(2, rejected=1)], CLOCK, **options)


def places(conn: connection) -> dict[int, str]:
    """Where each row lies: another place, and it was written again."""
    return dict(run(conn, "SELECT tick_id, ctid::text FROM tick_rows"))


def told(found: Differences) -> dict[str, int]:
    return dict(found.columns)


def test_an_hour_that_is_right_already_keeps_every_row(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2, rejected=1)], StandingClock(10))
    before, digest = places(conn), hour_digest(conn, HOUR)
    conn.commit()
    rebuilt = rebuild(conn)
    assert (rebuilt.same, rebuilt.differences) == (True, Differences())
    assert (rebuilt.rows, rebuilt.digest, rebuilt.digest_before) == (12, digest.digest, digest.digest)
    assert places(conn) == before
    assert run(conn, "SELECT count(*) FROM ingest_ledger WHERE rebuilt_at IS NULL") == [(0,)]


def test_only_rows_that_differ_are_written_and_all_of_them_are_named(conn: connection) -> None:
    stored(conn)
    before = places(conn)
    rebuilt = rebuild(conn)
    after = places(conn)
    wrong = {FIRST, FIRST + 1, FIRST + 2, 2 * FIRST, 2 * FIRST + 1, 2 * FIRST + 2}
    assert {tick_id for tick_id, place in after.items() if before[tick_id] != place} == wrong
    found = rebuilt.differences
    assert (rebuilt.same, found.added, found.removed, found.changed) == (False, 0, 0, 6)
    assert found.columns == (("oi", 6),)
    (at,) = run(conn, f"SELECT time FROM ticks WHERE tick_id = {FIRST}")
    assert found.examples[0] == Difference(FIRST, at[0], 1 << 40, "oi", 0, 8)
    assert [example.tick_id for example in found.examples] == sorted(wrong)
    assert rebuild(conn).same


def test_what_follows_from_a_column_is_counted_too_and_arrays_as_a_whole(conn: connection) -> None:
    stored(conn)
    rebuild(conn)
    run(conn, f"UPDATE tick_rows SET last_price = NULL WHERE tick_id = {FIRST + 1}")
    run(conn, f"UPDATE tick_rows SET depth = set_byte(set_byte(depth, 45, 9), 49, 9) WHERE tick_id = {FIRST + 2}")
    run(conn, f"UPDATE tick_rows SET depth = NULL WHERE tick_id = {FIRST}")
    found = rebuild(conn).differences
    arrays = [f"{side}_{what}" for side in ("bid", "ask") for what in ("prices", "quantities", "orders")]
    depth = {*arrays, "bid_ask_spread", "mid_price"}
    assert found.changed == 3
    assert told(found) == {"last_price": 1, "change": 1, "change_percent": 1} | dict.fromkeys(depth, 1) | {
        "bid_quantities": 2
    }
    (of_array,) = [e for e in found.examples if e.tick_id == FIRST + 2]
    assert (of_array.column, of_array.before[:2], len(of_array.after)) == ("bid_quantities", [9, 9], 5)


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ("day_low = 0", {"day_low": 6}),
        ("day_low = 'NaN'", {"day_low": 3, "bytes": 3}),
        ("tradable = false", {"tradable": 6}),
        ("last_trade_time = '-infinity'", {"bytes": 6}),
    ],
)
def test_every_column_counts_and_how_it_is_stored(conn: connection, change: str, columns: dict[str, int]) -> None:
    write_blocks(conn, [make_block(1)], CLOCK)
    run(conn, f"UPDATE tick_rows SET {change}")
    before = hour_digest(conn, HOUR)
    rebuilt = replace_hour(conn, HOUR, [make_block(1)], CLOCK)
    assert (rebuilt.differences.changed, told(rebuilt.differences)) == (6, columns)
    assert rebuilt.digest_before == before.digest != rebuilt.digest
    assert hour_digest(conn, HOUR).digest == rebuilt.digest


def test_rows_too_many_too_few_twice_and_unreadable_are_mended(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2, rejected=1)], StandingClock(10))
    digest = hour_digest(conn, HOUR)
    run(conn, f"INSERT INTO tick_rows SELECT * FROM tick_rows WHERE tick_id = {FIRST}")
    run(conn, f"UPDATE tick_rows SET tick_id = 77 WHERE tick_id = {FIRST + 1}")
    run(conn, f"UPDATE tick_rows SET mode = 'other' WHERE tick_id = {FIRST + 2}")
    run(conn, f"UPDATE tick_rows SET depth = 'x' WHERE tick_id = {2 * FIRST}")
    rebuilt = rebuild(conn)
    found = rebuilt.differences
    # Of the row that was there twice both go, and the one comes again.
    assert (found.added, found.removed, found.changed) == (4, 5, 0)
    assert [(e.tick_id, e.column, e.before, e.after) for e in found.examples] == [
        *((t, None, "present", "absent") for t in (77, FIRST, FIRST, FIRST + 2, 2 * FIRST)),
        *((t, None, "absent", "present") for t in (FIRST, FIRST + 1, FIRST + 2, 2 * FIRST)),
    ]
    assert hour_digest(conn, HOUR) == digest
    assert rebuild(conn).same


def test_compared_only_nothing_is_changed(conn: connection) -> None:
    stored(conn)
    run(conn, f"DELETE FROM tick_rows WHERE tick_id = {FIRST}; DELETE FROM rejected_packets")
    kept = "SELECT block_id, stored_at, rebuilt_at FROM ingest_ledger ORDER BY 1"
    before = places(conn), run(conn, kept)
    rows: list[Sequence[Difference]] = []
    rebuilt = rebuild(conn, compare_only=True, each_row=rows.append)
    assert (rebuilt.differences.added, rebuilt.differences.changed) == (1, 5)
    assert [row[0].tick_id for row in rows][-1] == FIRST
    assert (places(conn), run(conn, kept)) == before
    assert run(conn, "SELECT count(*) FROM rejected_packets") == [(0,)]
    assert records(conn, HOUR, 2) == ()


def test_an_hour_that_is_not_there_is_compared_and_filled(conn: connection) -> None:
    compared = rebuild(conn, compare_only=True)
    assert (compared.differences.added, len(compared.differences.examples)) == (12, 12)
    assert places(conn) == {}
    assert run(conn, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tick_rows'::regclass") == [(0,)]
    filled = rebuild(conn)
    assert (filled.differences, filled.rows) == (Differences(added=12), 12)
    assert hour_digest(conn, HOUR).digest == filled.digest == compared.digest
    assert rebuild(conn).same


def test_all_rows_that_differ_are_told_of_in_whatever_pieces_they_are_read(
    conn: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "_ROWS_AT_ONCE", 3)
    blocks = [make_block(number, ticks=4) for number in range(1, 6)]
    write_blocks(conn, blocks, CLOCK)
    run(conn, "UPDATE tick_rows SET last_trade_time = time; DELETE FROM tick_rows WHERE tick_id & 7 = 0")
    rows: list[Sequence[Difference]] = []
    found = replace_hour(conn, HOUR, blocks, CLOCK, each_row=rows.append).differences
    assert (found.added, found.changed, found.columns) == (5, 35, (("last_trade_time", 35),))
    ids = [number << 16 | at for number in range(1, 6) for at in range(8)]
    assert [row[0].tick_id for row in rows] == [t for t in ids if t & 7] + [t for t in ids if not t & 7]
    assert found.examples == tuple(row[0] for row in rows)[:EXAMPLES]


def test_neither_readers_nor_writers_of_other_hours_wait_while_rows_are_compared(
    database_url: str, conn: connection
) -> None:
    stored(conn)
    seen: list[int] = []
    with closing(connect(database_url)) as other:
        run(other, "SET lock_timeout = '5s'")

        def meanwhile(of_row: Sequence[Difference]) -> None:
            number = 10 + len(seen)
            assert write_blocks(other, [make_block(number, hour="2026-11-20T10:00")], CLOCK) == [number]
            seen.append(run(other, "SELECT count(*) FROM ticks WHERE oi = 0")[0][0])

        rebuild(conn, each_row=meanwhile)
    assert seen == 6 * [6]
