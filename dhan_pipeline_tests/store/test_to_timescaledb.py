"""Ticks move from native partitions into a hypertable, or stay as they are."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.cli.timescale import db_to_timescaledb
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import migrate as module
from dhan_pipeline.store import timescale
from dhan_pipeline.store.digests import Digest, hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate, migration_files
from dhan_pipeline.store.partitions import ensure_partitions, partition_starts
from dhan_pipeline.store.ticks import count_ticks, write_blocks
from dhan_pipeline.store.to_timescaledb import Moved, MoveError, to_timescaledb
from dhan_pipeline_tests.store.blocks import StandingClock, make_block
from dhan_pipeline_tests.store.chunks import compress

HOURS = ["2026-11-20T09:00", "2026-11-20T10:00", "2026-11-20T23:00"]
CLOCK = StandingClock(3)


def run(conn: connection, query: str) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def digests(conn: connection) -> dict[str, Digest]:
    with conn:
        return {hour: hour_digest(conn, hour) for hour in HOURS}


@pytest.fixture
def native_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database as it was before it knew of TimescaleDB, with ticks of three hours and a partition without any."""
    with closing(connect(database_url)) as conn:
        run(conn, "DROP EXTENSION IF EXISTS timescaledb CASCADE")
    with closing(connect(database_url)) as conn:
        run(conn, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    old = [file for file in migration_files() if file.name < "0013"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "migration_files", lambda: old)
        migrate(database_url)
    with closing(connect(database_url)) as conn:
        blocks = [make_block(number, hour=hour, at_s=number) for number, hour in enumerate(HOURS, 1)]
        assert write_blocks(conn, blocks, CLOCK) == [1, 2, 3]
        start_ns = parse_hour_key("2026-11-21T09:00")
        ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
    return database_url


@pytest.fixture
def native(native_url: str) -> Iterator[connection]:
    with closing(connect(native_url)) as conn:
        yield conn


def has_timescaledb(conn: connection) -> bool:
    return bool(run(conn, "SELECT current_setting('timescaledb.disable_load', true)")[0][0])


@pytest.fixture
def movable(native: connection) -> connection:
    if not has_timescaledb(native):
        pytest.skip("the server has no TimescaleDB")
    return native


def test_without_timescaledb_nothing_is_changed_and_the_reason_is_said(native_url: str, native: connection) -> None:
    if has_timescaledb(native):
        pytest.skip("the server has TimescaleDB")
    before = digests(native)
    with pytest.raises(MoveError, match=r"TimescaleDB.* Nothing was changed; docs/timescaledb.md says how"):
        to_timescaledb(native_url, print)
    assert not timescale.is_hypertable(native)
    assert digests(native) == before
    assert len(partition_starts(native)) == 4


def test_the_migration_leaves_ticks_where_they_are(
    native_url: str, native: connection, caplog: pytest.LogCaptureFixture
) -> None:
    before = digests(native)
    migrate(native_url)
    assert digests(native) == before
    assert not timescale.is_hypertable(native)
    assert ("Ticks stay in native partitions" in caplog.text) == has_timescaledb(native)


def test_every_hour_is_moved_as_it_was(native_url: str, movable: connection) -> None:
    said: list[str] = []
    starts, before, joined = partition_starts(movable), digests(movable), "SELECT * FROM ticks_with_symbols ORDER BY 1"
    rows = run(movable, joined)
    moved = to_timescaledb(native_url, said.append)
    licence = timescale.licence(movable)
    assert moved == Moved(4, 18, licence or "apache")
    assert digests(movable) == before
    assert run(movable, joined) == rows
    assert [sentence for sentence in said if HOURS[1] in sentence] == [
        f"Read {HOURS[1]}, 2 of 4: 6 ticks.",
        f"Moved and compared {HOURS[1]}, 2 of 4: 6 ticks.",
    ]
    if licence == "timescale":
        assert partition_starts(movable) == starts
        assert run(movable, timescale.CHUNKS)[0][0] == "ticks_20261120_09"
        assert [job.name.partition(" ")[0] for job in timescale.jobs(movable)] == ["Columnstore", "Refresh"]
        compress(movable)
        assert digests(movable) == before
    # The capture goes on where it was.
    assert write_blocks(movable, [make_block(3), make_block(4, hour=HOURS[0])], CLOCK) == [4]
    assert count_ticks(movable) == 24
    # And a second time there is nothing to do.
    assert to_timescaledb(native_url, said.append) == Moved(0, 0, licence or "apache")
    assert count_ticks(movable) == 24


def test_a_move_that_is_interrupted_changes_nothing(native_url: str, movable: connection) -> None:
    before = digests(movable)

    def interrupt(sentence: str) -> None:
        if sentence.startswith("Moved and compared"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_timescaledb(native_url, interrupt)
    assert not timescale.is_hypertable(movable)
    assert digests(movable) == before
    assert write_blocks(movable, [make_block(4)], CLOCK) == [4]


def test_views_on_the_table_itself_stop_a_move(native_url: str, movable: connection) -> None:
    run(movable, "CREATE VIEW mine AS SELECT last_price FROM tick_rows")
    with pytest.raises(MoveError, match="drop them, move, and make them again: view mine depends on"):
        to_timescaledb(native_url, print)
    assert count_ticks(movable) == 18


def test_the_command_says_how_many_ticks_have_moved(
    native_url: str, movable: connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", native_url)
    db_to_timescaledb()
    assert capsys.readouterr().out == "18 ticks of 4 hours are in a hypertable now.\n"
    db_to_timescaledb(as_json=True)
    assert capsys.readouterr().out.startswith('{"hours": 0, "rows": 0, "licence": ')
