"""Rebuilding from the journal: an hour of `ticks`, and a day of hours in turn.

    python benchmarks/rebuild.py [--day] [--json]

The journal is filled with full packets, one a message. A writer stores it first, as the capture would. Then
`rebuild_hour` makes the rows again:

- an hour in blocks of 200 (a feed of 10,000 ticks a second, whose blocks are closed every 20 ms), an hour in blocks of
  8 (25,000 ticks a minute), and the first of them where all rows differ: five rounds each, in turn;
- a day: six hours of 150,000 ticks in blocks of 200, one after another, once. With `--day` 9.4 million ticks in six
  hours, which takes five to ten minutes with everything around it. `--in-block` changes the size of its blocks.

Every figure is of rows that are there already and are compared; reading what the day said before the hour is part of
it. Where all rows differ, each was changed before: it is told by column, deleted and written. Before each, VACUUM
removes what the last one deleted, as the server does by itself in time. CPU seconds are
those of this process, which decodes and builds the rows, and of PostgreSQL, all its processes together. Both work at
the same time: with two cores to themselves, the slower of them sets the pace.

Row counts and fingerprints of every hour have to be the same before and after. A difference is a failure (exit code 1).
A time never is.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from psycopg2.extensions import connection

from benchmarks.material import (
    INSTRUMENTS,
    START_NS,
    HandClock,
    Packets,
    RunningWriter,
    ServerCpu,
    database,
    fill_hour,
    instrument_tokens,
)
from benchmarks.report import ROUNDS, Spread, arguments, publish, take_turns, wrong
from dhan_pipeline.ingest.rebuild import rebuild_hour
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ledger import hour_bounds, hour_totals

#: Ticks of the single hours, by the ticks of a block.
HOUR_TICKS = {200: 200_000, 8: 50_000}

#: Ticks of a day, and of the whole day that 25,000 a minute make; and the hours that they are in.
SHORT_DAY, WHOLE_DAY = 900_000, 9_400_000
HOURS = 6

#: What makes a row differ, in SQL.
CHANGE = "day_high = coalesce(day_high, 0) + 1, depth = NULL"

DAY_NS = 24 * HOUR_NS


class Rebuilds:
    """Rebuilds hours, and keeps what each took."""

    def __init__(self, settings: Settings, conn: connection, clock: HandClock) -> None:
        self._settings = settings
        self._clock = clock
        self._server = ServerCpu(conn)
        self.seconds: dict[str, list[float]] = {}
        """By the name of what was rebuilt."""
        self.python_us: dict[str, list[float]] = {}
        """CPU of this process, us a tick."""
        self.server_us: dict[str, list[float]] = {}
        """CPU of PostgreSQL, us a tick."""

    def rebuild(self, name: str, hours: Sequence[str], ticks: int, change: str = "") -> float:
        """Ticks a second of hours of so many ticks, one after another. `change` is SQL that their rows go through."""
        self._prepare(hours, change)
        python, server = time.process_time(), self._server.seconds()
        started = time.perf_counter()
        url = self._settings.database_url or ""
        rebuilt = [rebuild_hour(self._settings, url, hour, self._clock) for hour in hours]
        took = time.perf_counter() - started
        python, server = time.process_time() - python, self._server.seconds() - server
        rows, changed = sum(hour.rows for hour in rebuilt), sum(hour.differences.changed for hour in rebuilt)
        if rows != ticks or changed != (ticks if change else 0):
            wrong(f"{name}: {rows} rows were made of {ticks} ticks, and {changed} were changed")
        self.seconds.setdefault(name, []).append(took)
        self.python_us.setdefault(name, []).append(1e6 * python / ticks)
        self.server_us.setdefault(name, []).append(1e6 * server / ticks)
        return ticks / took

    def _prepare(self, hours: Sequence[str], change: str) -> None:
        with closing(connect(self._settings.database_url or "")) as conn, conn.cursor() as cursor:
            conn.autocommit = True
            for hour in hours if change else ():
                cursor.execute(f"UPDATE tick_rows SET {change} WHERE time >= %s AND time < %s", hour_bounds(hour))
            cursor.execute("VACUUM")


def state(conn: connection, hours: Sequence[str]) -> dict[str, tuple[str, int, int, int]]:
    """Of each hour: fingerprint, rows, and what its ledger says of ticks and of messages."""
    found = {}
    with conn:
        for hour in hours:
            totals = hour_totals(conn, hour)
            found[hour] = totals.digest, totals.rows, totals.ticks, totals.messages
    return found


def never_rebuilt(conn: connection, hours: Sequence[str]) -> int:
    """Blocks of the hours that no rebuild has stored."""
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT hour, rebuilt_at IS NULL FROM ingest_ledger")
        return sum(never for hour, never in cursor.fetchall() if hour_key(int(hour.timestamp()) * 10**9) in hours)


def main() -> None:
    """Measure, compare, report."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--day", action="store_true", help="a day of 9.4 million ticks: five to ten minutes, 15 GB of disk"
    )
    parser.add_argument("--in-block", type=int, default=200, metavar="N", help="ticks of a block of the day (200)")
    options = parser.parse_args()
    tokens = instrument_tokens()
    clock = HandClock(START_NS + 10 * DAY_NS)
    day_ticks = WHOLE_DAY if options.day else SHORT_DAY
    # A day each, so that no hour has to read another's beginning.
    single = {in_block: hour_key(START_NS + at * DAY_NS) for at, in_block in enumerate(HOUR_TICKS)}
    day = [hour_key(START_NS + len(single) * DAY_NS + n * HOUR_NS) for n in range(HOURS)]
    shares = [day_ticks * (n + 1) // HOURS - day_ticks * n // HOURS for n in range(HOURS)]
    ticks = {single[in_block]: count for in_block, count in HOUR_TICKS.items()} | dict(zip(day, shares, strict=True))
    in_blocks = {hour: in_block for in_block, hour in single.items()} | dict.fromkeys(day, options.in_block)
    with (
        database(tokens) as settings,
        closing(connect(settings.database_url or "")) as conn,
        closing(JournalWriter(settings.journal_dir, settings.capture)) as journal,
    ):
        packets = Packets(1.0, tokens=tokens)
        for hour, count in ticks.items():
            fill_hour(journal, packets, hour, count, in_blocks[hour])
        with RunningWriter(settings, journal, clock) as live:
            live.wait_for(journal.last_received_ns)
        before = state(conn, list(ticks))
        rebuilds = Rebuilds(settings, conn, clock)
        names = {in_block: f"an hour, {in_block} ticks a block" for in_block in single}
        differs = f"{names[200]}, all rows differ"
        spreads = take_turns(
            {
                name: partial(rebuilds.rebuild, name, [single[in_block]], HOUR_TICKS[in_block])
                for in_block, name in names.items()
            }
            | {differs: partial(rebuilds.rebuild, differs, [single[200]], HOUR_TICKS[200], CHANGE)}
        )
        of_day = f"a day of {HOURS} hours, {options.in_block} ticks a block"
        spreads |= take_turns({of_day: partial(rebuilds.rebuild, of_day, day, day_ticks)}, rounds=1)
        after = state(conn, list(ticks))
        missed = never_rebuilt(conn, list(ticks))
    problems = [f"{hour} was {before[hour]} and is {after[hour]}" for hour in ticks if before[hour] != after[hour]]
    problems += [
        f"{hour} has {found} for {ticks[hour]} ticks"
        for hour, found in after.items()
        if set(found[1:]) != {ticks[hour]}
    ]
    if missed:
        problems.append(f"{missed} blocks were not rebuilt")
    if problems:
        wrong(*problems)
    counts = {name: HOUR_TICKS[in_block] for in_block, name in names.items()}
    counts |= {differs: HOUR_TICKS[200], of_day: day_ticks}
    rows = [
        {
            "rebuilt": name,
            "ticks": counts[name],
            "ticks/s": spread,
            "seconds": Spread.of(rebuilds.seconds[name]),
            "Python, CPU us a tick": Spread.of(rebuilds.python_us[name]),
            "PostgreSQL, CPU us a tick": Spread.of(rebuilds.server_us[name]),
        }
        for name, spread in spreads.items()
    ]
    publish("Rebuilt from the journal", rows, options.json, instruments=INSTRUMENTS, rounds=ROUNDS)


if __name__ == "__main__":
    main()
