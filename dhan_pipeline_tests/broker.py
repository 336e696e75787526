"""The broker's REST face over a market that is driven by hand, and the rows of the instruments in it."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path

import numpy as np
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

DAY = date(2026, 11, 20)
RELIANCE = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
TCS = generate_instrument_token(ExchangeSegment.NSE_EQ, 11536)
FUTURE = generate_instrument_token(ExchangeSegment.NSE_FNO, 49081)
NIFTY = generate_instrument_token(ExchangeSegment.IDX_I, 13)
TOKENS = [RELIANCE, TCS, FUTURE, NIFTY]

#: No waiting.
AT_ONCE = RestPolicy(data_interval_s=0.0, quote_interval_s=0.0, tries=2, busy_tries=2, first_pause_s=0.001)


def at(clock_time: str, day: date = DAY) -> datetime:
    """A time of the day, IST: `09:15` or `09:15:30`."""
    return datetime.fromisoformat(f"{day}T{clock_time}").replace(tzinfo=IST)


def ns(clock_time: str, day: date = DAY) -> int:
    """The same in nanoseconds since the Unix epoch, UTC."""
    return int(at(clock_time, day).timestamp()) * 1_000_000_000


def trade(market: Market, clock: SetClock, times: Sequence[str], events: int = 8) -> Iterator[tuple[int, list[bytes]]]:
    """So many events at each time: (ns, a message of one full packet for each)."""
    for clock_time in times:
        clock.at = at(clock_time)
        messages: list[bytes] = []
        for index, _ in market.step(events):
            messages += [packet.tobytes() for packet in market.packets(ResponseCode.FULL, index)]
        yield clock.now_ns(), messages


def snapshot(market: Market) -> list[bytes]:
    """A message of one full packet of each instrument, as a subscription brings it."""
    return [packet.tobytes() for packet in market.packets(ResponseCode.FULL, np.arange(len(market)))]


def insert_instruments(conn: connection, tokens: Sequence[int] = TOKENS) -> None:
    """Rows of `instruments` for them: an index, equities, index futures."""
    kinds = {ExchangeSegment.IDX_I: "INDEX", ExchangeSegment.NSE_EQ: "EQUITY", ExchangeSegment.NSE_FNO: "FUTIDX"}
    with conn, conn.cursor() as cursor:
        for token in tokens:
            segment, security_id = split_instrument_token(token)
            cursor.execute(
                "INSERT INTO instruments (instrument_token, source, security_id, exchange, exchange_segment, "
                "trading_symbol, instrument_type, tick_size) VALUES (%s, 'dhan', %s, 'NSE', %s, %s, %s, 0.05)",
                (token, security_id, segment.name, f"S{security_id}", kinds[segment]),
            )


@contextmanager
def serving(
    settings: Settings, clock: Clock, market: Market | None, tmp_path: Path
) -> Iterator[tuple[RestServer, Settings]]:
    """A server on a loop of its own, and the settings with which it is asked; its limits are off."""
    token_file = tmp_path / "token.json"
    save_token(token_file, make_token(CLIENT_ID, expires_in=1e6, clock=clock), CLIENT_ID)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    rest = RestServer(clock, requests_a_second=10_000, quotes_a_second=10_000)
    rest.market = market
    try:
        asyncio.run_coroutine_threadsafe(rest.start(), loop).result(10)
        yield (
            rest,
            settings.model_copy(
                update={"dhan_api_url": f"http://127.0.0.1:{rest.port}", "dhan_token_file": token_file}
            ),
        )
        asyncio.run_coroutine_threadsafe(rest.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
