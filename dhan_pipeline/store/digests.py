"""Digests of hours: whether rows are the same in every column, and what is on record of them in `hour_digests`.

A row's hash is PostgreSQL's own of records, which takes half of the time of one of the row's bytes: 0.4 s a million
rows where two processors are free. As it stands it has holes: its sum over rows may stay the same where rows swap
values, NULL may be 0, and a token another one. The seed, which differs with the row's place and its token, closes them.
What is left: 0 and -0 are the same to it, as they are to every query, and one NaN is the other.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store.partitions import HOUR_LOCK, instant
from dhan_pipeline.ticks import POSITION_BITS

#: The 64-bit hash of a row `t`. It is the same in every session, whatever table of these columns the row is in.
ROW_HASH = "hash_record_extended(t, tick_id # (instrument_token << 16))"

_DIGEST = f"SELECT count(*), coalesce(sum({ROW_HASH}), 0) FROM"
_OF_HOUR = "tick_rows t WHERE time >= %(start)s AND time < %(end)s"

Origin = Literal["capture", "rebuild", "redrive"]


@dataclass(frozen=True, slots=True)
class Digest:
    """Of rows in any order: equal when the rows are, and else not, but by a chance of about 1 in 2^64."""

    rows: int
    digest: str
    """16 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class DigestRecord:
    """A row of `hour_digests`."""

    made_at: datetime
    origin: Origin
    rows: int
    digest: str
    added: int | None = None
    """Rows that a rebuild added to those it found; None, like the next two, where nothing was compared."""
    removed: int | None = None
    changed: int | None = None

    @property
    def of(self) -> Digest:
        """What was recorded."""
        return Digest(self.rows, self.digest)


def hour_digest(conn: connection, hour: str) -> Digest:
    """The digest of the rows that the table holds of an hour, by its partition key. Leaves the transaction open.

    It depends neither on the order of the rows on disk nor on the session. Raises ValueError for what is no hour.
    """
    return _digest(conn, f"{_DIGEST} {_OF_HOUR}", _bounds(hour))


def table_digest(conn: connection, table: str) -> Digest:
    """The digest of all rows of a table that has the columns of `tick_rows`. Leaves the transaction open."""
    return _digest(conn, f"{_DIGEST} {table} t", {})


def lock_hour(conn: connection, hour: str) -> None:
    """Keep out who writes or rebuilds the hour until the transaction ends. Writers of other hours do not wait."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (HOUR_LOCK, parse_hour_key(hour) // HOUR_NS))


def records(conn: connection, hour: str, last: int) -> tuple[DigestRecord, ...]:
    """The `last` few records of an hour, the oldest first. Leaves the transaction open."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT made_at, origin, rows, digest, added, removed, changed FROM hour_digests "
            "WHERE hour = %s ORDER BY made_at DESC LIMIT %s",
            (_bounds(hour)["start"], last),
        )
        return tuple(DigestRecord(*row) for row in reversed(cursor.fetchall()))


def record(
    conn: connection,
    hour: str,
    origin: Origin,
    found: Digest,
    now: datetime,
    changes: tuple[int, int, int] | None = None,
) -> None:
    """Put a digest on record. `changes` are the rows added, removed and changed. Leaves the transaction open."""
    added, removed, changed = changes or (None, None, None)
    with conn.cursor() as cursor:
        # Later than the one before, whatever the clock says: the order is what counts.
        cursor.execute(
            "INSERT INTO hour_digests (hour, made_at, origin, rows, digest, added, removed, changed) "
            "SELECT %(hour)s, greatest(%(now)s, max(made_at) + interval '1 us'), %(origin)s, %(rows)s, %(digest)s, "
            "%(added)s, %(removed)s, %(changed)s FROM hour_digests WHERE hour = %(hour)s",
            {
                "hour": _bounds(hour)["start"],
                "now": now,
                "origin": origin,
                "rows": found.rows,
                "digest": found.digest,
                "added": added,
                "removed": removed,
                "changed": changed,
            },
        )


def record_capture(conn: connection, hour: str, found: Digest, now: datetime) -> None:
    """Put on record what the capture left of a complete hour that is locked, as `found` in the table.

    That is where nothing is on record yet, and where nothing but blocks that were stored since came to what is: late
    ones. Rows that anything else has changed are left to be seen. Leaves the transaction open.
    """
    last = records(conn, hour, 1)
    if not last or (last[0].of != found and _without_late(conn, hour, last[0].made_at) == last[0].of):
        record(conn, hour, "capture", found, now)


def record_redrive(conn: connection, hour: str, now: datetime) -> None:
    """Put on record what a redrive left of an hour, if anything was on record of it. Leaves the transaction open."""
    last = records(conn, hour, 1)
    if last and last[0].of != (found := hour_digest(conn, hour)):
        record(conn, hour, "redrive", found, now)


def _without_late(conn: connection, hour: str, since: datetime) -> Digest:
    """The digest of the hour's rows but for those of blocks that were first stored after a time."""
    late = "SELECT block_id FROM ingest_ledger WHERE hour = %(start)s AND stored_at > %(since)s"
    query = f"{_DIGEST} {_OF_HOUR} AND tick_id >> {POSITION_BITS} NOT IN ({late})"
    return _digest(conn, query, {**_bounds(hour), "since": since})


def _bounds(hour: str) -> dict[str, datetime]:
    start_ns = parse_hour_key(hour)
    return {"start": instant(start_ns), "end": instant(start_ns + HOUR_NS)}


def _digest(conn: connection, query: str, parameters: dict[str, Any]) -> Digest:
    with conn.cursor() as cursor:
        cursor.execute(query, parameters)
        rows, total = cursor.fetchall()[0]
    return Digest(rows, f"{int(total) % 2**64:016x}")
