"""The archive: a day of ticks as one Parquet file, read back and compared with the table before it gets its name.

It is what research reads, and what lets the database forget: `drop_expired` (`partitions.py`) drops the days that
`day_is_archived` says are safe. The files lie as `archive/ticks/date=2026-11-20/ticks.parquet` in the data directory,
so that DuckDB, polars, pandas and pyarrow see the column `date`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.extensions import connection
from psycopg2.extras import Json

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.sessions import day_bounds_ns
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.digests import Digest, hour_digest, table_digest
from dhan_pipeline.store.lives import SYMBOL_FIELDS, read_lives, with_symbols
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.rows import each_tick_table, tick_batches
from dhan_pipeline.ticks import arrow_schema

#: Rows of a row group, and so of what is in memory at once: some 400 MB, however long the day.
ROW_GROUP = 100_000

#: The archive's order: an instrument's rows lie together, as they came.
ORDER = ("instrument_token", "time", "tick_id")

#: First number of the advisory lock, beside those of `partitions`, that lets one process archive a day at a time.
_ARCHIVE_LOCK = 0x6468_0006


class ArchiveError(PipelineError):
    """The day cannot be archived, or what was written is not what the table holds; the archive is as before."""


@dataclass(frozen=True, slots=True)
class ArchivedDay:
    """A row of `archived_days`."""

    day: date
    rows: int
    digest: str
    """Of the rows of `tick_rows`: the sum of its hours' digests, modulo 2^64."""
    hours: Mapping[str, str]
    """Digest of each hour that has ticks, by the hour of the IST clock: `09`."""
    bytes: int
    file: str
    """Relative to the data directory."""
    archived_at: datetime


def archive_file(day: date) -> Path:
    """Where a day's archive is, relative to the data directory."""
    return Path("archive", "ticks", f"date={day}", "ticks.parquet")


def archive_schema() -> pa.Schema:
    """The columns of the archive, with each one's unit and meaning: those of `ticks_with_symbols`."""
    return pa.schema([*arrow_schema(), *SYMBOL_FIELDS])


def day_bounds(day: date) -> tuple[datetime, datetime]:
    """Start (inclusive) and end (exclusive) of an IST day, as PostgreSQL keeps them."""
    start_ns, end_ns = day_bounds_ns(day)
    return instant(start_ns), instant(end_ns)


def archive_day(
    conn: connection, data_dir: Path, day: date, clock: Clock, *, row_group: int = ROW_GROUP
) -> ArchivedDay:
    """Write the ticks received on an IST day to its file, by `ORDER`, replacing one that is there; and commit.

    Everything is as of one moment. The server sorts, on its disk; in memory are no more than the rows of a row group.
    Before the file gets its name it is read back and stored in a temporary table, whose digest has to be that of the
    day. Takes some 12 seconds a million rows.

    Raises ArchiveError for a day that is not over, has no ticks, or of which the table lacks some that the ledger has;
    where somebody else archives it; where the file cannot be written; and where what was written is not what the table
    holds. Raises psycopg2.Error. The archive is as before then.
    """
    if clock.now() < day_bounds(day)[1]:
        raise ArchiveError(f"The day {day} is not over yet: it can be archived from midnight on (IST).")
    conn.commit()
    with conn, conn.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", (_ARCHIVE_LOCK, day.toordinal()))
        if not cursor.fetchall()[0][0]:
            raise ArchiveError(f"The day {day} is being archived by somebody else.")
        hours = hour_digests(conn, day)
        _refuse_incomplete(conn, day, hours)
        digest = _sum(hours)
        path = data_dir / archive_file(day)
        size = _make(conn, path, day, digest, row_group)
        archived = ArchivedDay(
            day,
            digest.rows,
            digest.digest,
            {hour: found.digest for hour, found in hours.items()},
            size,
            archive_file(day).as_posix(),
            clock.now(),
        )
        cursor.execute(
            "INSERT INTO archived_days (day, rows, digest, hours, bytes, file, archived_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (day) DO UPDATE SET rows = excluded.rows, "
            "digest = excluded.digest, hours = excluded.hours, bytes = excluded.bytes, file = excluded.file, "
            "archived_at = excluded.archived_at",
            (
                day,
                archived.rows,
                archived.digest,
                Json(archived.hours),
                archived.bytes,
                archived.file,
                archived.archived_at,
            ),
        )
    return archived


def hour_digests(conn: connection, day: date) -> dict[str, Digest]:
    """The digest of each hour of an IST day of which the table holds ticks, by the hour of the clock: `09`.

    Takes half a second a million rows. Leaves the transaction open.
    """
    found = {f"{hour:02}": hour_digest(conn, f"{day}T{hour:02}:00") for hour in range(24)}
    return {hour: digest for hour, digest in found.items() if digest.rows}


def archived_days(conn: connection) -> list[ArchivedDay]:
    """What is archived, in order. Leaves the transaction open."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT day, rows, digest, hours, bytes, file, archived_at FROM archived_days ORDER BY day")
        return [ArchivedDay(*row) for row in cursor.fetchall()]


def day_is_archived(conn: connection, data_dir: Path, day: date) -> bool:
    """Whether the archive holds the rows that the table holds of a day, so that they may go. True where it holds none.

    The file has to be there in its full length, and each hour that the table holds has to be as it was archived, to the
    last bit: what was rebuilt, driven again or came late since has to be archived again. Leaves the transaction open.
    """
    hours = hour_digests(conn, day)
    if not hours:
        return True
    archived = next((known for known in archived_days(conn) if known.day == day), None)
    if archived is None or any(archived.hours.get(hour) != found.digest for hour, found in hours.items()):
        return False
    path = data_dir / archived.file
    return path.is_file() and path.stat().st_size == archived.bytes


def _refuse_incomplete(conn: connection, day: date, hours: Mapping[str, Digest]) -> None:
    """Raise ArchiveError unless the table holds all ticks of the day that were ever stored, and any."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT to_char(hour AT TIME ZONE 'Asia/Kolkata', 'HH24'), sum(ticks) FROM ingest_ledger "
            "WHERE hour >= %s AND hour < %s GROUP BY hour ORDER BY hour",
            day_bounds(day),
        )
        booked = dict(cursor.fetchall())
    lost = [hour for hour, ticks in booked.items() if ticks > (hours[hour].rows if hour in hours else 0)]
    if lost:
        raise ArchiveError(
            f"The table lacks ticks of {day} that the ledger has, in the hours {', '.join(lost)} (IST), so"
            " the archive would not be the whole day; materialise these hours of ticks first."
        )
    if not hours:
        raise ArchiveError(f"The table holds no ticks of {day}, so there is nothing to archive.")


def _sum(hours: Mapping[str, Digest]) -> Digest:
    """The digest of the rows of all."""
    total = sum(int(hour.digest, 16) for hour in hours.values()) % 2**64
    return Digest(sum(hour.rows for hour in hours.values()), f"{total:016x}")


def _make(conn: connection, path: Path, day: date, digest: Digest, row_group: int) -> int:
    """Write, verify and name the file. Returns its size in bytes."""
    # Hidden: who reads the folder meanwhile, or after a crash, does not take it for a file of the archive.
    unfinished = path.with_name(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(conn, unfinished, day, digest, row_group)
            _verify(conn, unfinished, day, digest)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return path.stat().st_size
    except OSError as error:
        raise ArchiveError(f"The archive of {day} cannot be written, {path}: {error.strerror or error}.") from error


def _write(conn: connection, path: Path, day: date, digest: Digest, row_group: int) -> None:
    bounds = day_bounds(day)
    with conn.cursor() as cursor:
        cursor.execute("SET LOCAL work_mem = '64MB'")
        cursor.execute("SELECT DISTINCT instrument_token FROM tick_rows WHERE time >= %s AND time < %s", bounds)
        tokens = [token for (token,) in cursor.fetchall()]
    lives = read_lives(conn, tokens, *bounds)
    facts = {
        "dhan_pipeline.version": version("dhan-pipeline"),
        "dhan_pipeline.day": str(day),
        "dhan_pipeline.rows": str(digest.rows),
        "dhan_pipeline.digest": digest.digest,
    }
    schema = archive_schema().with_metadata(facts)
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:

            def take(rows: pa.Table) -> None:
                writer.write_table(with_symbols(rows, lives).cast(schema), row_group)

            each_tick_table(
                conn, "time >= %s AND time < %s", bounds, take, order=", ".join(ORDER), rows_at_once=row_group
            )
        os.fsync(file.fileno())


def _verify(conn: connection, path: Path, day: date, digest: Digest) -> None:
    """Raise ArchiveError unless the file holds the rows of the digest."""
    with conn.cursor() as cursor, pq.ParquetFile(path, page_checksum_verification=True) as file:
        cursor.execute("CREATE TEMPORARY TABLE archived (LIKE tick_rows) ON COMMIT DROP")
        for group in range(file.num_row_groups):
            rows = tick_copy(tick_batches(file.read_row_group(group)))
            cursor.copy_expert(f"COPY archived ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(rows))
    if (found := table_digest(conn, "archived")) != digest:
        raise ArchiveError(
            f"The archive of {day} would not hold what the table holds ({found.rows} rows of {digest.rows},"
            f" digest {found.digest} where it should be {digest.digest}); it was not written. Where the check `digest`"
            " of an hour says that its rows were changed, materialise that hour of ticks first."
        )


def _sync_folder(folder: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
