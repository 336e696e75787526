"""Hourly partitions of `tick_rows`, cut in India Standard Time: made ahead of need, dropped when their day expires.

In a hypertable they are its chunks, and have the same names. A chunk that TimescaleDB made by itself, since rows came
for an hour that had none, is half an hour, and has a name of TimescaleDB's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from psycopg2 import errors, sql
from psycopg2.extensions import connection

from dhan_pipeline.sessions import DAY_NS, HOUR_NS, IST, day_bounds_ns, day_start_ns, hour_start_ns
from dhan_pipeline.store import timescale

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
    return sorted(_existing(conn))


def ensure_partitions(conn: connection, from_ns: int, to_ns: int) -> list[str]:
    """Make what is missing of the partitions that hold [from_ns, to_ns), and commit. Returns the names made.

    Neither readers nor writers wait for it. Any number of processes may call it at once. A hypertable under the Apache
    licence makes its chunks by itself when rows come: then none are made here.
    """
    wanted = range(hour_start_ns(from_ns), to_ns, HOUR_NS)
    with conn, conn.cursor() as cursor:
        if _existing(conn).keys() >= set(wanted):
            return []
        hypertable = timescale.is_hypertable(conn)
        if hypertable and timescale.licence(conn) == "apache":
            return []
        cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (PARTITIONS_LOCK,))
        if hypertable:  # whose rows may make a chunk meanwhile
            cursor.execute("LOCK TABLE ONLY tick_rows IN SHARE UPDATE EXCLUSIVE MODE")
        existing = _existing(conn)
        missing = [start_ns for start_ns in wanted if start_ns not in existing]
        for start_ns in missing:
            # Attaching a table takes a weaker lock than CREATE TABLE … PARTITION OF, which would stop all queries.
            table = sql.Identifier(partition_name(start_ns))
            cursor.execute(sql.SQL("CREATE TABLE {} (LIKE tick_rows INCLUDING DEFAULTS)").format(table))
            attach(conn, partition_name(start_ns), hypertable)
    return [partition_name(start_ns) for start_ns in missing]


def attach(conn: connection, name: str, hypertable: bool) -> None:
    """Make a table the partition that its name says, or the chunk. Leaves the transaction open."""
    start_ns = _start_ns(name)
    bounds = {"start": instant(start_ns).isoformat(), "end": instant(start_ns + HOUR_NS).isoformat()}
    with conn.cursor() as cursor:
        if hypertable:
            cursor.execute(timescale.ATTACH_CHUNK, {"table": name, **bounds})
        else:
            statement = "ALTER TABLE tick_rows ATTACH PARTITION {} FOR VALUES FROM (%(start)s) TO (%(end)s)"
            cursor.execute(sql.SQL(statement).format(sql.Identifier(name)), bounds)


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


def kept_since_ns(conn: connection, keep_days: int, now_ns: int) -> int:
    """From when on the table may have ticks (ns since the Unix epoch, UTC): days that are older were dropped."""
    return min([day_start_ns(now_ns) - keep_days * DAY_NS, *partition_starts(conn)[:1]])


def drop_expired(
    conn: connection, keep_days: int, now_ns: int, may_drop: Callable[[date], bool] = lambda _: True
) -> Expired:
    """Drop the partitions of IST days that ended more than `keep_days` before `now_ns`, and commit day by day.

    `may_drop` is asked about each such day, in the transaction that drops it; nobody writes to the day meanwhile.
    Dropping waits for every query on `ticks`, and holds up those that come after. So it gives up after a second: what
    is left goes with the next call.
    """
    with conn:
        existing = _existing(conn)
        hypertable = timescale.is_hypertable(conn)
    expired: dict[date, dict[int, list[str]]] = {}
    for start_ns, names in sorted(existing.items()):
        if has_expired(start_ns, keep_days, now_ns):
            expired.setdefault(instant(start_ns).astimezone(IST).date(), {})[start_ns] = names
    found = Expired([], [])
    for day, hours in expired.items():
        dropped = [name for names in hours.values() for name in names]
        try:
            with conn, conn.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
                for start_ns in hours:
                    cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (HOUR_LOCK, start_ns // HOUR_NS))
                if not may_drop(day):
                    found.kept.append(day)
                    continue
                if hypertable:
                    start, end = map(instant, day_bounds_ns(day))
                    cursor.execute(timescale.DROP_CHUNKS, {"start": start, "end": end})
                else:
                    for name in dropped:
                        cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
        except errors.LockNotAvailable:
            found.held_up.extend(later for later in expired if later >= day)
            break
        found.dropped.extend(dropped)
    return found


def _start_ns(name: str) -> int:
    start = datetime.strptime(name, _NAME_FORMAT).replace(tzinfo=IST)
    return int(start.timestamp()) * 1_000_000_000


def _existing(conn: connection) -> dict[int, list[str]]:
    """The partitions of each hour that has any, by its start (nanoseconds, UTC). Chunks may be several, in order."""
    found: dict[int, list[str]] = {}
    with conn.cursor() as cursor:
        if timescale.is_hypertable(conn):
            cursor.execute(timescale.CHUNKS)
            for name, start, _ in cursor.fetchall():
                found.setdefault(hour_start_ns(int(start.timestamp()) * 1_000_000_000), []).append(name)
        else:
            cursor.execute(
                "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
                "WHERE inhparent = 'tick_rows'::regclass AND relname LIKE 'ticks\\_%'"
            )
            for (name,) in cursor.fetchall():
                found[_start_ns(name)] = [name]
    return found
