"""Writers, rebuilds and redrives of the same blocks at the same time."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import ledger, ticks
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.rebuilds import replace_hour
from dhan_pipeline.store.ticks import RedrivenError, write_blocks
from dhan_pipeline_tests.ingest.feed import query, until
from dhan_pipeline_tests.store.blocks import make_block

HOUR = "2026-11-20T09:00"
NINE = parse_hour_key(HOUR)
CLOCK = Clock()


@pytest.fixture
def other(database_url: str) -> Iterator[connection]:
    """A second connection to the test's database."""
    with closing(connect(database_url)) as opened:
        yield opened


class HookClock(Clock):
    """Calls something whenever it is asked for the time, which a writer does between COPY and commit."""

    def __init__(self, hook: Callable[[], None]) -> None:
        super().__init__()
        self._hook = hook

    def now(self) -> datetime:
        """The time, after the call."""
        self._hook()
        return super().now()


def somebody_waits(database_url: str) -> bool:
    """Whether a session of this database waits for a lock."""
    return bool(
        query(
            database_url,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    )


def contents(database_url: str) -> tuple[list[int], int, int]:
    """Blocks in the ledger, ticks and rejected packets."""
    blocks = query(database_url, "SELECT block_id::int FROM ingest_ledger ORDER BY 1")
    [(rows, distinct)] = query(database_url, "SELECT count(*)::int, count(DISTINCT tick_id)::int FROM ticks")
    [(rejected,)] = query(database_url, "SELECT count(*)::int FROM rejected_packets")
    assert rows == distinct
    return [block for (block,) in blocks], rows, rejected  # type: ignore[misc, return-value]


@pytest.mark.parametrize(
    ("rows", "rejected"), [(3, 1), (0, 1), (0, 0)], ids=["ticks", "nothing but rejected packets", "nothing"]
)
@pytest.mark.parametrize("meanwhile", [[2], [1, 3], [1, 2, 3]])
def test_blocks_that_another_transaction_stores_meanwhile_are_left_out_and_the_rest_is_written_once(
    database_url: str,
    conn: connection,
    other: connection,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    rejected: int,
    meanwhile: list[int],
) -> None:
    blocks = {number: make_block(number, ticks=rows, rejected=rejected) for number in (1, 2, 3)}
    begin = ledger.begin_blocks
    waiting = [meanwhile]

    def overtaken(
        own: connection, capture: int, starts_ns: Collection[int], block_ids: Iterable[int], part: int | None
    ) -> tuple[int, set[int]]:
        found = begin(own, capture, starts_ns, block_ids, part)
        if waiting:
            numbers = waiting.pop()
            assert write_blocks(other, [blocks[number] for number in numbers], CLOCK) == numbers
        return found

    monkeypatch.setattr(ticks, "begin_blocks", overtaken)
    rest = [number for number in blocks if number not in meanwhile]
    assert write_blocks(conn, list(blocks.values()), CLOCK) == rest
    assert contents(database_url) == ([1, 2, 3], 3 * 2 * rows, 3 * rejected)
    assert write_blocks(conn, list(blocks.values()), CLOCK) == []


@pytest.mark.parametrize("committed", [True, False])
def test_a_writer_waits_for_one_that_stores_the_same_block_and_writes_only_what_is_left(
    database_url: str, conn: connection, other: connection, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    blocks = [make_block(number, rejected=1) for number in (1, 2, 3)]
    written: list[int] = []
    late = threading.Thread(target=lambda: written.extend(write_blocks(other, blocks, CLOCK)))
    apply = ticks.apply_notes

    def begin_the_other(*args: Any) -> None:  # called once the ledger rows are in, before the commit
        if late.ident is None:
            late.start()
            until(lambda: somebody_waits(database_url))
            if not committed:
                raise OSError("broken off")
        apply(*args)

    monkeypatch.setattr(ticks, "apply_notes", begin_the_other)
    if committed:
        assert write_blocks(conn, blocks[1:2], CLOCK) == [2]
    else:
        with pytest.raises(OSError, match="broken off"):
            write_blocks(conn, blocks[1:2], CLOCK)
    late.join()
    assert written == ([1, 3] if committed else [1, 2, 3])
    assert contents(database_url) == ([1, 2, 3], 18, 3)


def test_a_rebuild_of_the_hour_waits_for_the_transaction_of_a_writer(
    database_url: str, conn: connection, other: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS)
    rebuilt: list[int] = []
    rebuild = threading.Thread(
        target=lambda: rebuilt.append(replace_hour(other, HOUR, [make_block(1), make_block(2)], CLOCK).rows)
    )

    def begin_the_rebuild() -> None:
        rebuild.start()
        until(lambda: somebody_waits(database_url))

    blocks = [make_block(1), make_block(7, hour="2026-11-20T10:00")]
    assert write_blocks(conn, blocks, HookClock(begin_the_rebuild)) == [1, 7]
    rebuild.join()
    assert rebuilt == [12]
    assert contents(database_url) == ([1, 2, 7], 18, 0)
    kept = "SELECT block_id::int, latency_ms IS NULL, rebuilt_at IS NULL FROM ingest_ledger ORDER BY 1"
    assert query(database_url, kept) == [(1, False, False), (2, True, False), (7, False, True)]


@pytest.mark.parametrize("hour", [HOUR, "2026-11-20T10:00"])
def test_a_writer_of_two_hours_waits_for_the_rebuild_of_either(
    database_url: str, conn: connection, other: connection, hour: str
) -> None:
    ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS)
    blocks = {HOUR: make_block(1), "2026-11-20T10:00": make_block(2, hour="2026-11-20T10:00")}
    written: list[int] = []
    late = threading.Thread(target=lambda: written.extend(write_blocks(other, list(blocks.values()), CLOCK)))

    def renewed() -> Iterator[ticks.StoredBlocks]:
        late.start()
        until(lambda: somebody_waits(database_url))
        yield blocks[hour]

    assert replace_hour(conn, hour, renewed(), CLOCK).rows == 6
    late.join()
    assert written == [block.stretch.last_block_id for key, block in blocks.items() if key != hour]
    assert contents(database_url) == ([1, 2], 12, 0)


def test_a_writer_does_not_wait_for_the_rebuild_of_another_hour(
    database_url: str, conn: connection, other: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS)

    def renewed() -> Iterator[ticks.StoredBlocks]:
        assert write_blocks(other, [make_block(2, hour="2026-11-20T10:00")], CLOCK) == [2]
        yield make_block(1)

    assert replace_hour(conn, HOUR, renewed(), CLOCK).rows == 6
    assert contents(database_url) == ([1, 2], 12, 0)


def test_a_redrive_counted_makes_the_next_write_of_its_capture_fail(conn: connection, database_url: str) -> None:
    before = ledger.redrives(conn, 0)
    assert write_blocks(conn, [make_block(1)], CLOCK, before) == [1]
    ledger.count_redrive(conn, 0)
    conn.commit()
    for blocks in ([make_block(2)], [make_block(1)], [make_block(1), make_block(2)]):
        with pytest.raises(RedrivenError, match="driven again"):
            write_blocks(conn, blocks, CLOCK, before)
    assert contents(database_url) == ([1], 6, 0)
    assert write_blocks(conn, [make_block(3, capture=1)], CLOCK, ledger.redrives(conn, 1))
    assert write_blocks(conn, [make_block(2)], CLOCK, before + 1) == [2]


def test_a_write_waits_for_a_redrive_that_is_being_counted(
    database_url: str, conn: connection, other: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    ends: list[object] = []

    def write(capture: int) -> None:
        try:
            ends.append(write_blocks(other, [make_block(1, capture=capture)], CLOCK, 0))
        except RedrivenError as error:
            ends.append(type(error))

    ledger.count_redrive(conn, 0)
    write(1)  # another capture: nobody waits
    assert len(ends) == 1
    late = threading.Thread(target=write, args=(0,))
    late.start()
    until(lambda: somebody_waits(database_url))
    conn.commit()
    late.join()
    assert ends[1:] == [RedrivenError]


def test_a_write_goes_on_where_a_redrive_that_was_being_counted_is_given_up(
    database_url: str, conn: connection, other: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    written: list[int] = []
    late = threading.Thread(target=lambda: written.extend(write_blocks(other, [make_block(1)], CLOCK, 0)))
    ledger.count_redrive(conn, 0)
    late.start()
    until(lambda: somebody_waits(database_url))
    conn.rollback()
    late.join()
    assert written == [1]


def test_no_redrive_is_counted_while_a_writer_stores_blocks(
    database_url: str, conn: connection, other: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)

    def count() -> None:
        ledger.count_redrive(other, 0)
        other.commit()

    counted = threading.Thread(target=count)

    def begin_to_count() -> None:
        counted.start()
        until(lambda: somebody_waits(database_url))

    assert write_blocks(conn, [make_block(1)], HookClock(begin_to_count), 0) == [1]
    counted.join()
    with pytest.raises(RedrivenError):
        write_blocks(conn, [make_block(2)], CLOCK, 0)
    assert contents(database_url) == ([1], 6, 0)
