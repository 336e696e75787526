"""A whole trading day, from the wire to the archive: captured, rebuilt, made into candles, compared, archived.

    python benchmarks/day.py [--ticks 5000000] [--json]

The simulated exchange and the capture share this process, and a clock that runs faster than real time: what the capture
takes for the hours from 09:15 to 15:30 IST are a few minutes. Full packets of 500 instruments come through a websocket
into journal and database, as they do live; how fast that goes is `end_to_end`'s subject. Then:

- every hour is rebuilt, and has to be what was captured, by its digest;
- all rows are deleted, and every hour is rebuilt from the journal alone, and has to be that again;
- the hours are made into candles of a minute;
- the exchange's own bars are fetched over its REST API (without its limits of five requests a second), and compared:
  all have to agree, but where the capture began late;
- the day is archived, verified, and read with pandas, polars and DuckDB.

A difference is a failure (exit code 1). A time never is.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl

from benchmarks.report import arguments, publish, show, wrong
from benchmarks.running import Place, place, prepare
from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.ingest.broker_bars import fetch_day
from dhan_pipeline.ingest.rebuild import rebuild_hours
from dhan_pipeline.ingest.run import Ingest
from dhan_pipeline.quality.days import reconcile_day
from dhan_pipeline.sessions import HOUR_NS, hour_key, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.archive import archive_day
from dhan_pipeline.store.candles import rebuild_candles
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.subscriptions import read_subscriptions

DAY = date(2026, 11, 20)
FIRST, LAST = f"{DAY}T09:00", f"{DAY}T15:00"
OPEN_NS, CLOSE_NS = parse_hour_key(FIRST) + HOUR_NS // 4, parse_hour_key(LAST) + HOUR_NS // 2

INSTRUMENTS = 500

#: What is read of the archive.
COLUMNS = ["volume_traded", "last_price"]

#: Ticks a second, by the wall's clock.
RATE = 30_000.0

#: The broker gives no bar that is younger: the clock goes on for that long after the close.
AFTER_NS = 600 * 10**9


class _AfterMidnight(Clock):
    """The next day at one o'clock."""

    def now_ns(self) -> int:
        return parse_hour_key(FIRST) + 16 * HOUR_NS


async def capture(settings: Settings, url: str, ticks: int) -> tuple[int, int]:
    """Capture the day, then fetch the exchange's bars. Returns the packets received, and the bars."""
    clock = Clock(OPEN_NS, speed=(CLOSE_NS - OPEN_NS) / 1e9 * RATE / ticks)
    tokens = [subscription.instrument_token for subscription in read_subscriptions(settings.subscriptions_path)]
    status: dict[str, Any] = {}

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "status":
            status.update(event)

    async with DhanSimulator(tokens, rate=RATE, clock=clock) as exchange:
        live = settings.model_copy(update={"dhan_feed_url": exchange.feed_url})
        running = Ingest(live, url, hear, clock)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(-clock.elapsed_s(CLOSE_NS), stop.set)
        try:
            await running.run(stop)
        finally:
            running.close()
        await asyncio.sleep(-clock.elapsed_s(CLOSE_NS + AFTER_NS))
        exchange.rest.requests_a_second = 1_000_000
        settings = settings.model_copy(update={"dhan_api_url": exchange.rest_url})
        fetched = await asyncio.to_thread(
            fetch_day, settings, url, DAY, clock, lambda _: None, policy=RestPolicy(0.0, 0.0)
        )
    if fetched.failures:
        wrong(f"bars of {fetched.failures} instruments could not be fetched: {fetched.last_error}")
    return status["packets"], fetched.bars


def steps(where: Place, ticks: int) -> list[dict[str, Any]]:
    """A row for each step."""
    environment = prepare(where, "day", INSTRUMENTS)
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        data_source="dhan",
        data_dir=Path(environment["DATA_DIR"]),
        database_url=environment["DATABASE_URL"],
        dhan_token_file=Path(environment["DHAN_TOKEN_FILE"]),
        sessions="always",
    )
    url, clock = environment["DATABASE_URL"], _AfterMidnight()
    rows: list[dict[str, Any]] = []

    def tell(step: str, seconds: float, count: int, found: str) -> None:
        rows.append({"step": step, "seconds": seconds, "rows": count, "rows_per_s": count / seconds, "found": found})
        show(step, rows[-1:])

    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:  # the history API asks for the kind
        cursor.execute(
            "UPDATE instruments SET trading_symbol = 'S' || instrument_token,"
            " instrument_type = CASE WHEN instrument_token >> 32 & 15 = 1 THEN 'EQUITY' ELSE 'FUTSTK' END"
        )
    started = time.perf_counter()
    packets, bars = asyncio.run(capture(settings, url, ticks))
    with closing(connect(url)) as conn:
        hours = [hour_key(parse_hour_key(FIRST) + n * HOUR_NS) for n in range(7)]
        live = {hour: hour_digest(conn, hour) for hour in hours}
        stored = sum(digest.rows for digest in live.values())
        conn.commit()
        tell("captured through the wire", time.perf_counter() - started, stored, f"{packets:,} packets")

        for name, statement in (
            ("rebuilt, compared", "SELECT"),
            ("rebuilt from nothing", "TRUNCATE tick_rows, ingest_ledger, rejected_packets"),
        ):
            with conn, conn.cursor() as cursor:
                cursor.execute(statement)
            started = time.perf_counter()
            rebuilt = {hour.hour: (hour.rows, hour.digest) for hour in rebuild_hours(settings, url, FIRST, LAST, clock)}
            took = time.perf_counter() - started
            if rebuilt != {hour: (digest.rows, digest.digest) for hour, digest in live.items()}:
                wrong(f"{name}: other rows than were captured", f"captured {live}", f"rebuilt {rebuilt}")
            found = {hour: hour_digest(conn, hour) for hour in hours}
            conn.commit()
            if found != live:
                wrong(f"{name}: the table holds other rows than were captured")
            tell(name, took, stored, "all digests equal")

        started = time.perf_counter()
        candles = sum(rebuild_candles(conn, hour, clock.now_ns()).bars for hour in hours)
        tell("candles of a minute", time.perf_counter() - started, stored, f"{candles:,} bars")

        started = time.perf_counter()
        compared, _ = reconcile_day(settings, url, DAY)
        took = time.perf_counter() - started
        if compared.unexplained or not compared.bars:
            wrong(f"{compared.unexplained} of {compared.bars} bars differ from the exchange's: {compared.by_field()}")
        tell("compared with the broker's", took, compared.bars, f"{bars:,} fetched, {compared.explained} explained")

        started = time.perf_counter()
        archived = archive_day(conn, settings.data_dir, DAY, clock)
        tell(
            "archived and verified",
            time.perf_counter() - started,
            archived.rows,
            f"{archived.bytes / archived.rows:.0f} bytes a tick",
        )
    file = settings.data_dir / archived.file
    readers: dict[str, Callable[[Path], tuple[int, int, float]]] = {
        "read by DuckDB": _duckdb,
        "read by pandas": lambda path: _sums(pd.read_parquet(path, columns=COLUMNS)),
        "read by polars": lambda path: _sums(pl.read_parquet(path, columns=COLUMNS)),
    }
    for name, read in readers.items():
        started = time.perf_counter()
        count, volume, prices = read(file)
        tell(name, time.perf_counter() - started, count, f"volume {volume:,}, mean price {prices / count:.4f}")
    if len({row["found"] for row in rows[-3:]}) > 1 or rows[-1]["rows"] != stored:
        wrong("the archive reads differently")
    return rows


def _duckdb(path: Path) -> tuple[int, int, float]:
    found = duckdb.read_parquet(str(path)).aggregate(", ".join(["count(*)", *(f"sum({name})" for name in COLUMNS)]))
    count, volume, prices = found.fetchall()[0]
    return count, int(volume), prices


def _sums(frame: Any) -> tuple[int, int, float]:
    return len(frame), int(frame["volume_traded"].sum()), float(frame["last_price"].sum())


def main() -> None:
    """Go through the day and publish."""
    parser = arguments(__doc__)
    parser.add_argument("--ticks", type=int, default=5_000_000)
    chosen = parser.parse_args()
    with place() as where:
        rows = steps(where, chosen.ticks)
    publish("A day of full packets of 500 instruments", rows, chosen.json)


if __name__ == "__main__":
    main()
