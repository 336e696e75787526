"""TimescaleDB, where the server has it: which storage ticks are in, its chunks, its background jobs.

The SQL that only TimescaleDB knows is here and in two migrations, `0013_timescale.sql` and `0020_live_candles.sql`.
Each function says what it does where there is none.
"""

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import psycopg2
from psycopg2.extensions import connection, cursor

from dhan_pipeline.store.engine import connect

Licence = Literal["timescale", "apache"]

# Of a plain table; a natively partitioned one is of the kind p.
_IS_HYPERTABLE = "SELECT relkind = 'r' FROM pg_class WHERE oid = 'tick_rows'::regclass"

_SCHEMA = "(SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'tick_rows'::regclass)"

CHUNKS = f"""
SELECT chunk_name, range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = {_SCHEMA} AND hypertable_name = 'tick_rows' ORDER BY range_start
"""

ATTACH_CHUNK = """
CALL attach_chunk('tick_rows', %(table)s::regclass, jsonb_build_object('time', ARRAY[%(start)s, %(end)s]))
"""

#: Those that lie in a range as a whole. Their bars of `live_bars_1m` go when that is next refreshed.
DROP_CHUNKS = """
SELECT drop_chunks('tick_rows', older_than => %(end)s::timestamptz, newer_than => %(start)s::timestamptz)
"""

#: Without it a statement fails once it has unpacked 100,000 rows. A setting of this name is harmless elsewhere, too.
UNPACK_WITHOUT_LIMIT = "SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0"

# Those of `tick_rows` and `live_bars_1m`, and of nobody else's tables in the database.
JOBS = f"""
SELECT job_id, application_name, last_run_status, last_successful_finish, stats.next_start,
    coalesce(stats.next_start < now() - interval '1 hour', last_run_status IS NULL), (
        SELECT err_message FROM timescaledb_information.job_errors errors
        WHERE errors.job_id = jobs.job_id ORDER BY finish_time DESC LIMIT 1
    )
FROM timescaledb_information.jobs LEFT JOIN timescaledb_information.job_stats stats USING (job_id)
WHERE jobs.hypertable_schema = {_SCHEMA} AND jobs.hypertable_name IN ('tick_rows', 'live_bars_1m')
ORDER BY job_id
"""

RUN_JOB = "CALL run_job(%s)"

SIZES = """
SELECT count(*), count(*) FILTER (WHERE compression_status = 'Compressed') AS compressed,
    coalesce(sum(before_compression_total_bytes), 0)::bigint, coalesce(sum(after_compression_total_bytes), 0)::bigint
FROM chunk_columnstore_stats('tick_rows')
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A background job of TimescaleDB's on our tables."""

    job_id: int
    name: str
    status: str | None
    """How its last run ended, `Success` or `Failed`; None before the first."""
    succeeded_at: datetime | None
    next_start: datetime | None
    late: bool
    """Whether it never ran, or should have started an hour ago: no background worker takes care of it."""
    error: str | None
    """What the last of its failures said, however long ago."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where ticks are. Sizes are in bytes, and include indexes."""

    version: str | None
    """Of TimescaleDB; None where ticks are in native partitions."""
    licence: Licence | None
    partitions: int
    """Chunks, or native partitions."""
    size: int
    compressed: int = 0
    """Of the chunks."""
    size_before: int = 0
    """What the compressed chunks took before."""
    size_after: int = 0
    """What they take now."""


def is_hypertable(conn: connection) -> bool:
    """Whether ticks are in a hypertable, not in native partitions. Leaves the transaction open."""
    with conn.cursor() as cur:
        cur.execute(_IS_HYPERTABLE)
        found: bool = cur.fetchall()[0][0]
    return found


def version(conn: connection) -> str | None:
    """TimescaleDB's version, None where the database does not have it. Leaves the transaction open."""
    with conn.cursor() as cur:
        cur.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
        found: list[tuple[str]] = cur.fetchall()
    return found[0][0] if found else None


def licence(conn: connection) -> Licence | None:
    """What TimescaleDB's licence allows, None where the database does not have it. Leaves the transaction open.

    `apache` has neither compression nor background jobs nor continuous aggregates, and makes its chunks by itself.
    """
    with conn.cursor() as cur:
        cur.execute(
            "SELECT current_setting('timescaledb.license', true) "
            "WHERE EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"
        )
        rows = cur.fetchall()
    if not rows:
        return None
    return "timescale" if rows[0][0] == "timescale" else "apache"


def unpack_without_limit(cur: cursor) -> None:
    """Let the transaction change any number of rows of compressed hours. Does nothing where there are none.

    Readers do not wait: they see the compressed rows until the transaction commits. The policy compresses the hours
    again.
    """
    cur.execute(UNPACK_WITHOUT_LIMIT)


def storage(conn: connection) -> Storage:
    """Where ticks are, and how large they are. Leaves the transaction open."""
    hypertable = is_hypertable(conn)
    with conn.cursor() as cur:
        if not hypertable:
            cur.execute(
                "SELECT count(*), coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint "
                "FROM pg_inherits WHERE inhparent = 'tick_rows'::regclass"
            )
            return Storage(None, None, *cur.fetchall()[0])
        allowed = licence(conn)
        cur.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
        version = cur.fetchall()[0][0]
        cur.execute("SELECT hypertable_size('tick_rows')")
        size = cur.fetchall()[0][0] or 0
        if allowed == "apache":
            cur.execute("SELECT count(*) FROM show_chunks('tick_rows')")
            return Storage(version, allowed, cur.fetchall()[0][0], size)
        cur.execute(SIZES)
        chunks, *sizes = cur.fetchall()[0]
    return Storage(version, allowed, chunks, size, *sizes)


def jobs(conn: connection) -> list[Job]:
    """The background jobs on our tables; none on native partitions. Leaves the transaction open."""
    if not is_hypertable(conn):
        return []
    with conn.cursor() as cur:
        cur.execute(JOBS)
        return [Job(*row) for row in cur.fetchall()]


def run_job(url: str, job_id: int) -> str | None:
    """Run a background job now, in the foreground. Returns what went wrong, None where nothing did.

    Raises DatabaseError where the database cannot be reached.
    """
    with closing(connect(url)) as conn:
        conn.autocommit = True  # a job commits by itself
        try:
            with conn.cursor() as cur:
                cur.execute(RUN_JOB, (job_id,))
        except psycopg2.Error as error:
            return str(error).strip().partition("\n")[0] or type(error).__name__
    return None
