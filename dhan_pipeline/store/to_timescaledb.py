"""Moves ticks from native partitions into a hypertable of TimescaleDB, every row of them, in one transaction."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.sessions import HOUR_NS, hour_key
from dhan_pipeline.store import timescale
from dhan_pipeline.store.copy import STORED
from dhan_pipeline.store.digests import Digest, hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate, migration_files
from dhan_pipeline.store.partitions import HOUR_LOCK, PARTITIONS_LOCK, attach, partition_name, partition_starts

#: Makes the hypertable, and the views that depend on what it is.
_FILES = ("0013_timescale", "0020_live_candles")


class MoveError(PipelineError):
    """Ticks cannot be moved; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move found and did."""

    hours: int
    """0 where ticks were in a hypertable already, or there were none."""
    rows: int
    licence: timescale.Licence


def to_timescaledb(url: str, progress: Callable[[str], object]) -> Moved:
    """Move all ticks into a hypertable, after the migrations that the database lacks. `progress` gets sentences.

    All or nothing: the digest of each hour is compared before the commit. With the Timescale licence no row is
    written, for the partitions themselves become the chunks; with the Apache licence they are copied. Who writes waits,
    a capture in its journal; who reads waits once the first digests are taken.

    In a hypertable already, ticks stay where they are, and get what the licence allows by now: compression, jobs, a
    continuous aggregate. Raises MoveError where the server has no TimescaleDB that can be used, MigrationError, and
    psycopg2.Error.
    """
    migrate(url)
    with closing(connect(url)) as conn, conn:
        if timescale.is_hypertable(conn):
            _run_files(conn)
            return Moved(0, 0, _licence(conn))
        if not _is_loaded(conn):
            raise MoveError(
                "The server has no TimescaleDB, or does not load it (shared_preload_libraries). Nothing was changed;"
                " docs/timescaledb.md says how to install it."
            )
        with conn.cursor() as cursor:
            # In this order: who waits for an hour has no table locked yet, and so cannot be waited for.
            cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (PARTITIONS_LOCK,))
            starts_ns = partition_starts(conn)
            for start_ns in starts_ns:
                cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (HOUR_LOCK, start_ns // HOUR_NS))
            cursor.execute("LOCK TABLE tick_rows IN SHARE ROW EXCLUSIVE MODE")
            before = _digests(conn, starts_ns, "Read", progress)
            for start_ns in starts_ns:
                name = sql.Identifier(partition_name(start_ns))
                cursor.execute(sql.SQL("ALTER TABLE tick_rows DETACH PARTITION {}").format(name))
            _run_files(conn)
            licence = _licence(conn)
            for start_ns in starts_ns:
                _take_over(conn, partition_name(start_ns), licence)
            after = _digests(conn, starts_ns, "Moved and compared", progress)
        if differing := [hour for hour in before if before[hour] != after[hour]]:
            raise MoveError(f"Moved, {', '.join(differing)} would differ from what was there; nothing was changed.")
        return Moved(len(before), sum(digest.rows for digest in after.values()), licence)


def _is_loaded(conn: connection) -> bool:
    with conn.cursor() as cursor:
        cursor.execute("SELECT current_setting('timescaledb.disable_load', true) IS NOT NULL")
        loaded: bool = cursor.fetchall()[0][0]
    return loaded


def _digests(conn: connection, starts_ns: list[int], done: str, progress: Callable[[str], object]) -> dict[str, Digest]:
    found = {}
    for number, start_ns in enumerate(starts_ns, 1):
        hour = hour_key(start_ns)
        found[hour] = hour_digest(conn, hour)
        progress(f"{done} {hour}, {number} of {len(starts_ns)}: {found[hour].rows:,} ticks.")
    return found


def _run_files(conn: connection) -> None:
    """Run the files again. What they warn of is why there is no hypertable, if there is none then."""
    files = {file.stem: file for file in migration_files()}
    conn.notices.clear()
    with conn.cursor() as cursor:
        for name in _FILES:
            try:
                cursor.execute(files[name].read_text())
            except psycopg2.errors.DependentObjectsStillExist as error:
                raise MoveError(
                    "Views of yours are in the way; drop them, move, and make them again: "
                    + " ".join((error.diag.message_detail or "").split())
                ) from None
    if not timescale.is_hypertable(conn):
        raise MoveError(_why_not(conn))


def _why_not(conn: connection) -> str:
    # The last one: that something exists already is said of TimescaleDB, too, and comes first.
    said = [notice.partition("\n")[0].partition(":  ")[2] for notice in conn.notices if "TimescaleDB" in notice]
    reason = said[-1] if said else "TimescaleDB cannot be used."
    return f"{reason} Nothing was changed."


def _licence(conn: connection) -> timescale.Licence:
    found = timescale.licence(conn)
    assert found is not None
    return found


def _take_over(conn: connection, name: str, licence: timescale.Licence) -> None:
    """Make a table that was a partition a chunk, or copy its rows where that is not allowed."""
    if licence == "timescale":
        attach(conn, name, hypertable=True)
        return
    columns, table = sql.SQL(", ").join(map(sql.Identifier, STORED)), sql.Identifier(name)
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL("INSERT INTO tick_rows ({0}) SELECT {0} FROM {1}").format(columns, table))
        cursor.execute(sql.SQL("DROP TABLE {}").format(table))
