"""A trading day that was captured, as the examples in the documents know it: journal, ticks, candles, archive."""

import asyncio
from contextlib import closing
from datetime import date
from pathlib import Path

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan import save_token
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.ingest.run import Ingest
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.archive import archive_day
from dhan_pipeline.store.candles import rebuild_candles
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.store.symbols import resolve_symbols
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode

DAY = date(2026, 11, 20)
FIRST, LAST = f"{DAY}T09:00", f"{DAY}T10:00"
BEGIN_NS = parse_hour_key(FIRST) + HOUR_NS // 4

#: What is captured: an index, shares on both exchanges, a future.
SYMBOLS = ("NIFTY", "RELIANCE", "BSE:RELIANCE", "INFY", "HDFCBANK", "SBIN", "NIFTY FUT")


def capture_day(data_dir: Path, database_url: str, *, seconds: float = 5.0, rate: float = 4_000.0) -> None:
    """Make the day in a data directory and in an empty, migrated database.

    `seconds` of real time are 09:15 to 10:45 in India; `rate` in ticks a real second.
    """
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        data_source="dhan",
        data_dir=data_dir,
        database_url=database_url,
        dhan_token_file=data_dir / "dhan_token.json",
        sessions="always",
    )
    save_token(data_dir / "dhan_token.json", make_token(CLIENT_ID), CLIENT_ID)
    master = data_dir / "scrip_master.csv"
    write_synthetic_master(master, 2_000, on=DAY)
    sync_to_database(database_url, parse_dhan_csv(master))
    with closing(connect(database_url)) as conn:
        tokens = resolve_symbols(conn, SYMBOLS, on=DAY, source="dhan")
    write_subscriptions(
        settings.subscriptions_path,
        [Subscription(token, Mode.FULL if n else Mode.QUOTE, SYMBOLS[n]) for n, token in enumerate(tokens)],
    )
    asyncio.run(_capture(settings, database_url, tokens, seconds, rate))
    late = Clock(parse_hour_key(LAST) + 16 * HOUR_NS)
    with closing(connect(database_url)) as conn:
        for hour in (FIRST, LAST):
            rebuild_candles(conn, hour, late.now_ns())
        archive_day(conn, settings.data_dir, DAY, late)


async def _capture(settings: Settings, database_url: str, tokens: list[int], seconds: float, rate: float) -> None:
    clock = Clock(BEGIN_NS, speed=1.5 * HOUR_NS / 1e9 / seconds)
    async with DhanSimulator(tokens, rate=rate, clock=clock) as exchange:
        past = settings.model_copy(update={"dhan_feed_url": exchange.feed_url})
        capture = Ingest(past, database_url, lambda _: None, clock)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        try:
            await capture.run(stop)
        finally:
            capture.close()
