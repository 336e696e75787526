"""Bars of one minute from an hour of ticks: NumPy against one SQL statement.

    python benchmarks/candles.py [--ticks N] [--instruments N] [--json]

Two hours of full ticks are stored, the one before the hour, which says where the day's volume stands, and the hour; N
in each, of all instruments in turn at random. Half of them trade. Then, in turn, three rounds:

- `rebuild_candles`, as the asset `candles_1m` has it: read, compute, write. Its parts are measured one by one, too;
- one statement with window functions that makes the same open, high, low, close, volume, turnover, open interest and
  count, for ticks as clean as these: it knows no gaps, no late start, no trade day and no step back.

Either replaces the bars that are there. Before each, VACUUM removes what the last one deleted, as the server does by
itself in time. Both have to make the same bars; a difference is a failure (exit code 1). A time never is.
"""

import time
from contextlib import closing
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from benchmarks.material import HOUR, START_NS, database, instrument_tokens
from benchmarks.report import Spread, arguments, publish, take_turns, wrong
from dhan_pipeline.candles import minute_bars
from dhan_pipeline.sessions import HOUR_NS, hour_key
from dhan_pipeline.store.candles import read_hour, rebuild_candles, replace_bars
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ledger import hour_bounds
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.ticks import COLUMNS, Mode, TickBatch

TICKS, INSTRUMENTS = 1_500_000, 5_000

ROUNDS = 3

_AT_ONCE = 100_000

#: The hour whose bars are made, and the one before.
OF_BARS, BEFORE = hour_key(START_NS + HOUR_NS), HOUR

_TABLE = "CREATE TABLE IF NOT EXISTS candles_by_sql (LIKE candles_1m INCLUDING ALL)"

_BY_SQL = """
WITH packets AS (
    SELECT instrument_token, time, tick_id, last_price, oi, volume_traded,
        date_trunc('minute', greatest(least(last_trade_time, time + interval '300 s'), time - interval '300 s'))
            AS minute,
        lag(volume_traded) OVER (PARTITION BY instrument_token ORDER BY time, tick_id) AS before
    FROM tick_rows WHERE time >= %(before)s AND time < %(end)s + interval '300 s'
)
INSERT INTO candles_by_sql
SELECT instrument_token, minute,
    (array_agg(last_price ORDER BY time, tick_id))[1], max(last_price), min(last_price),
    (array_agg(last_price ORDER BY time, tick_id))[count(*)],
    sum(volume_traded - before), sum((volume_traded - before) * last_price),
    (array_agg(oi ORDER BY time, tick_id))[count(*)], count(*), false, false, 'ticks'
FROM packets WHERE minute >= %(start)s AND minute < %(end)s
GROUP BY instrument_token, minute
"""

_DIFFERENT = """
SELECT count(*) FROM candles_1m AS a FULL JOIN candles_by_sql AS b USING (instrument_token, time)
WHERE (a.open, a.high, a.low, a.close, a.volume, a.oi, a.ticks) IS DISTINCT FROM
    (b.open, b.high, b.low, b.close, b.volume, b.oi, b.ticks) OR abs(a.turnover / nullif(b.turnover, 0) - 1) > 1e-9
"""


def fill(conn: connection, tokens: NDArray[np.int64], count: int) -> None:
    """Store so many ticks in each of two hours."""
    rng = np.random.default_rng(20)
    volume = np.full(len(tokens), 1000)
    price = rng.integers(10_000, 200_000, len(tokens))
    ensure_partitions(conn, START_NS, START_NS + 2 * HOUR_NS)
    start_us, total = START_NS // 1000, 2 * count
    for first in range(0, total, _AT_ONCE):
        place = np.arange(first, min(first + _AT_ONCE, total))
        received = start_us + place * (2 * HOUR_NS // 1000) // total
        index = rng.integers(0, len(tokens), len(place))
        added = rng.integers(0, 50, len(place)) * rng.integers(0, 2, len(place))
        # What each instrument's packets before in these added, too.
        order = index.argsort(kind="stable")
        sums = np.cumsum(added[order])
        starts = np.flatnonzero(np.append(True, np.diff(index[order])))
        sums -= (sums[starts] - added[order][starts]).repeat(np.diff(starts, append=len(order)))
        total_volume = np.empty_like(sums)
        total_volume[order] = sums + volume[index[order]]
        np.maximum.at(volume, index, total_volume)
        prices = (price[index] + rng.integers(-50, 50, len(place))) / 100
        columns = {
            "tick_id": place,
            "time": received,
            "last_trade_time": (received - 200_000) // 1_000_000 * 1_000_000,
            "instrument_token": tokens[index],
            "last_price": prices,
            "volume_traded": total_volume,
            "tradable": np.ones(len(place), np.bool_),
        }
        for column in COLUMNS:
            if column.kind.endswith("[]"):
                columns[column.name] = np.full((len(place), 5), 7.0 if column.kind == "float8[]" else 7)
            elif column.name not in columns and column.kind in ("int8", "float8"):
                columns[column.name] = place % 1000 if column.kind == "int8" else prices
        batch = TickBatch(Mode.FULL, columns, np.full(len(place), 100.0))
        with conn, conn.cursor() as cursor:
            cursor.copy_expert(
                f"COPY tick_rows ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(tick_copy([batch]))
            )


class Made:
    """Makes the bars in both ways, and keeps what each part of ours took."""

    def __init__(self, conn: connection, ticks: int) -> None:
        self._conn = conn
        self._ticks = ticks
        self.seconds: dict[str, list[float]] = {}

    def by_numpy(self) -> float:
        """Ticks a second."""
        self._clean_up()
        started = time.perf_counter()
        rebuild_candles(self._conn, OF_BARS, START_NS + 10 * HOUR_NS)
        return self._took("rebuild_candles", started)

    def in_parts(self) -> float:
        """The same, a part at a time; ticks a second."""
        self._clean_up()
        started = begun = time.perf_counter()
        with self._conn, self._conn.cursor() as cursor:
            ticks, earlier, gaps = read_hour(self._conn, OF_BARS)
            self._took("reading", started)
            started = time.perf_counter()
            bars = minute_bars(ticks, earlier, gaps, (START_NS + HOUR_NS) // 1000)
            self._took("computing", started)
            started = time.perf_counter()
            replace_bars(cursor, OF_BARS, [bars])
        self._took("writing", started)
        return self._ticks / (time.perf_counter() - begun)

    def by_sql(self) -> float:
        """Ticks a second."""
        self._clean_up()
        started = time.perf_counter()
        start, end = hour_bounds(OF_BARS)
        with self._conn, self._conn.cursor() as cursor:
            cursor.execute("DELETE FROM candles_by_sql")
            cursor.execute(_BY_SQL, {"before": hour_bounds(BEFORE)[0], "start": start, "end": end})
        return self._took("one SQL statement", started)

    def _took(self, name: str, started: float) -> float:
        took = time.perf_counter() - started
        self.seconds.setdefault(name, []).append(took)
        return self._ticks / took

    def _clean_up(self) -> None:
        self._conn.autocommit = True
        with self._conn.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE candles_1m, candles_by_sql")
        self._conn.autocommit = False


def main() -> None:
    """Measure, compare, report."""
    parser = arguments(__doc__)
    parser.add_argument("--ticks", type=int, default=TICKS, metavar="N", help=f"ticks of an hour ({TICKS:,})")
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS, metavar="N", help=f"{INSTRUMENTS:,}")
    options = parser.parse_args()
    tokens = instrument_tokens(options.instruments)
    with database() as settings, closing(connect(settings.database_url or "")) as conn:
        fill(conn, tokens, options.ticks)
        with conn, conn.cursor() as cursor:
            cursor.execute(_TABLE)
            cursor.execute("ANALYZE tick_rows")
        made = Made(conn, options.ticks)
        spreads = take_turns(
            {"rebuild_candles": made.by_numpy, "in parts": made.in_parts, "one SQL statement": made.by_sql}, ROUNDS
        )
        with conn, conn.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM candles_1m")
            bars = cursor.fetchall()[0][0]
            cursor.execute(_DIFFERENT)
            different = cursor.fetchall()[0][0]
    if different or not bars:
        wrong(f"{different} of {bars} bars differ")
    rows = [
        {
            "bars of an hour": name,
            "seconds": Spread.of(seconds),
            "ticks/s": spreads[name] if name in spreads else Spread.of([options.ticks / took for took in seconds]),
        }
        for name, seconds in made.seconds.items()
    ]
    publish(
        "Candles of an hour",
        rows,
        options.json,
        ticks=options.ticks,
        instruments=options.instruments,
        bars=bars,
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
