"""Hourly partitions of `tick_rows`, cut in India Standard Time: made ahead of need, dropped when their day expires."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from psycopg2 import errors, sql
from psycopg2.extensions import connection

from dhan_pipeline.sessions import DAY_NS, HOUR_NS, IST, day_start_ns, hour_start_ns

#: First numbers of the advisory locks of the store. The second says what is locked.
PARTITIONS_LOCK, HOUR_LOCK, WRITER_LOCK, REDRIVE_COUNT_LOCK = 0x6468_0001, 0x6468_0002, 0x6468_0003, 0x6468_0005

_NAME_FORMAT = "ticks_%Y%m%d_%H"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(at_ns: int) -> datetime:
    """The instant as PostgreSQL keeps it: cut to the microsecond. Nanoseconds since the Unix epoch, UTC."""
    return _EPOCH + timedelta(microseconds=at_ns // 1000)


def partition_name(at_ns: int) -> str:
    """Name of the partition that holds the instant (nanoseconds, UTC): `ticks_20261120_09` from 09:00 IST."""
    return instant(hour_start_ns(at_ns)).astimezone(IST).strftime(_NAME_FORMAT)


def partition_starts(conn: connection) -> list[int]:
    """Starts of the hours that have a partition (nanoseconds, UTC), in order. Leaves the transaction open."""
    return sorted(_start_ns(name) for name in _existing(conn))


def ensure_partitions(conn: connection, from_ns: int, to_ns: int) -> list[str]:
    """Make what is missing of the partitions that hold [from_ns, to_ns), and commit. Returns the names made.

    Neither readers nor writers wait for it. Any number of processes may call it at once.
    """
    wanted = {partition_name(start): start for start in range(hour_start_ns(from_ns), to_ns, HOUR_NS)}
    with conn, conn.cursor() as cursor:
        if wanted.keys() <= _existing(conn):
            return []
        cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (PARTITIONS_LOCK,))
        missing = sorted(wanted.keys() - _existing(conn))
        for name in missing:
            # Attaching a table takes a weaker lock than CREATE TABLE … PARTITION OF, which would stop all queries.
            table = sql.Identifier(name)
            cursor.execute(sql.SQL("CREATE TABLE {} (LIKE tick_rows INCLUDING DEFAULTS)").format(table))
            cursor.execute(
                sql.SQL("ALTER TABLE tick_rows ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                    table,
                    sql.Literal(instant(wanted[name]).isoformat()),
                    sql.Literal(instant(wanted[name] + HOUR_NS).isoformat()),
                )
            )
    return missing


@dataclass(frozen=True, slots=True)
class Expired:
    """What became of the days that expired."""

    dropped: list[str]
    """Names of the partitions dropped."""
    kept: list[date]
    """Days that may not be dropped yet."""
    held_up: list[date] = field(default_factory=list)
    """Days that could not be dropped now, because somebody has ticks in use."""


def has_expired(at_ns: int, keep_days: int, now_ns: int) -> bool:
    """Whether the IST day of an instant (nanoseconds, UTC, like the other) ended `keep_days` ago, or earlier."""
    return day_start_ns(at_ns) + (1 + keep_days) * DAY_NS <= now_ns


def drop_expired(
    conn: connection, keep_days: int, now_ns: int, may_drop: Callable[[date], bool] = lambda _: True
) -> Expired:
    """Drop the partitions of IST days that ended more than `keep_days` before `now_ns`, and commit day by day.

    `may_drop` is asked about each such day, in the transaction that drops it; nobody writes to the day meanwhile.
    Dropping waits for every query on `ticks`, and holds up those that come after. So it gives up after a second: what
    is left goes with the next call.
    """
    with conn:
        names = sorted(_existing(conn))
    expired: dict[date, list[str]] = {}
    for name in names:
        if has_expired(_start_ns(name), keep_days, now_ns):
            expired.setdefault(datetime.strptime(name, _NAME_FORMAT).date(), []).append(name)
    found = Expired([], [])
    for day, partitions in expired.items():
        try:
            with conn, conn.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
                for name in partitions:
                    cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (HOUR_LOCK, _start_ns(name) // HOUR_NS))
                if not may_drop(day):
                    found.kept.append(day)
                    continue
                for name in partitions:
                    cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
        except errors.LockNotAvailable:
            found.held_up.extend(later for later in expired if later >= day)
            break
        found.dropped.extend(partitions)
    return found


def _start_ns(name: str) -> int:
    start = datetime.strptime(name, _NAME_FORMAT).replace(tzinfo=IST)
    return int(start.timestamp()) * 1_000_000_000


def _existing(conn: connection) -> set[str]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
            "WHERE inhparent = 'tick_rows'::regclass AND relname LIKE 'ticks\\_%'"
        )
        return {name for (name,) in cursor.fetchall()}
