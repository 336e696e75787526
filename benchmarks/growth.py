"""Whether a tick costs more with more instruments, or with more days already stored.

    python benchmarks/growth.py [--json]

A capture of 50,000 full packets a second, as in `end_to_end`, over 100, 5,000 and 25,000 instruments; and over 5,000
with 1, 5 and 20 trading days of 10 million rows in the database. Those days are there by size: seven hourly partitions
a day, whose files are as long as they would be, with nothing in them; and in the ledger is a row for each block. So
what is shown is what their number and size cost, in plans, locks and searches.
"""

import asyncio
from contextlib import closing
from pathlib import Path

from benchmarks.report import arguments, publish, show
from benchmarks.running import INSTRUMENTS, Place, measure, place, prepare
from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import HOUR_NS, day_start_ns
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import ensure_partitions

RATE = 50_000
SECONDS = 15.0
INSTRUMENT_COUNTS = (100, 5_000, 25_000)
DAYS = (1, 5, 20)
HOURS_A_DAY = 7
ROWS_A_DAY = 10_000_000

#: What a stored row takes without its indexes.
HEAP_BYTES = 283

#: Journal blocks of a day, of fifty rows each.
BLOCKS_A_DAY = 200_000


def add_days(where: Place, database_url: str, days: int) -> None:
    """So many days before today: partitions of their size, and their ledger rows."""
    with closing(connect(database_url)) as conn:
        today_ns = day_start_ns(Clock().now_ns())
        for day in range(1, days + 1):
            first_ns = today_ns - day * 24 * HOUR_NS + 9 * HOUR_NS
            ensure_partitions(conn, first_ns, first_ns + HOURS_A_DAY * HOUR_NS)
            with conn, conn.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO ingest_ledger (block_id, capture, hour, messages, packets, ticks, state, control, "
                    "rejected, payload_bytes, first_received, last_received, stored_at, latency_ms) "
                    # No ticks, which `running` counts; it is their number that matters.
                    "SELECT %(ms)s + n * 100, 0, date_trunc('hour', at - interval '30 min') + interval '30 min', "
                    "50, 50, 0, 50, 0, 0, 8100, at, at, at, 10 FROM (SELECT n, "
                    "to_timestamp(%(ms)s / 1000.0 + n / 10.0) AS at FROM generate_series(1, %(n)s) n) AS blocks",
                    {"ms": first_ns // 1_000_000, "n": BLOCKS_A_DAY},
                )
        with conn, conn.cursor() as cursor:
            cursor.execute(
                "SELECT pg_relation_filepath(relid), relkind = 'r' FROM pg_partition_tree('tick_rows') "
                "JOIN pg_class ON oid = relid WHERE isleaf AND relname < 'ticks_' || to_char(now(), 'YYYYMMDD')"
            )
            paths = [path for path, _ in cursor.fetchall()]
    embedded.stop(where.folder)
    (data,) = where.folder.glob("postgresql-*/data")
    for path in paths:
        extend(data / path, ROWS_A_DAY // HOURS_A_DAY * HEAP_BYTES)
    embedded.start(where.folder)


def extend(path: Path, size: int) -> None:
    """Make the file that long; the new bytes are empty pages, and take no room on the disk."""
    with path.open("r+b") as file:
        file.truncate(size // 8192 * 8192)


async def main() -> None:
    """Measure all and publish."""
    chosen = arguments(__doc__).parse_args()
    rows = []
    with place() as where:
        for instruments in INSTRUMENT_COUNTS:
            row = await measure(where, RATE, SECONDS, instruments)
            rows.append({"instruments": instruments, "days stored": 0} | row)
            show(f"{instruments:,} instruments", rows[-1:])
        for days in DAYS:
            name = f"days_{days}"
            environment = prepare(where, name, INSTRUMENTS)
            await asyncio.to_thread(add_days, where, environment["DATABASE_URL"], days)
            row = await measure(where, RATE, SECONDS, INSTRUMENTS, prepared=(name, environment))
            rows.append({"instruments": INSTRUMENTS, "days stored": days} | row)
            show(f"{days} days", rows[-1:])
    publish(f"Growth at {RATE:,} ticks/s", rows, chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
