"""A broker's REST face over a market that is driven by hand, and the rows of the instruments in it."""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.kite.auth import save_kite_token
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.history import BarEdit
from dhan_pipeline.feeds.simulator.http_server import HttpServer
from dhan_pipeline.feeds.simulator.kite_history import answers
from dhan_pipeline.feeds.simulator.kite_packets import SIZES, KitePackets
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.kite_rest import error as kite_error
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer, error
from dhan_pipeline.feeds.simulator.tokens import API_KEY, CLIENT_ID, make_kite_access_token, make_token
from dhan_pipeline.instruments import (
    ExchangeSegment,
    generate_instrument_token,
    segment_of,
    source_of,
    split_instrument_token,
    split_kite_token,
)
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

DAY = date(2026, 11, 20)
RELIANCE = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
TCS = generate_instrument_token(ExchangeSegment.NSE_EQ, 11536)
FUTURE = generate_instrument_token(ExchangeSegment.NSE_FNO, 49081)
NIFTY = generate_instrument_token(ExchangeSegment.IDX_I, 13)
TOKENS = [RELIANCE, TCS, FUTURE, NIFTY]

#: Settings with which nobody is asked, whatever a daemon starts at its hour or after a gap.
NO_BROKER = dict.fromkeys(("dhan_api_url", "dhan_auth_url", "dhan_scrip_master_url"), "http://127.0.0.1:1")

#: No waiting.
AT_ONCE = RestPolicy(data_interval_s=0.0, quote_interval_s=0.0, tries=2, busy_tries=2, first_pause_s=0.001)


def at(clock_time: str, day: date = DAY) -> datetime:
    """A time of the day, IST: `09:15` or `09:15:30`."""
    return datetime.fromisoformat(f"{day}T{clock_time}").replace(tzinfo=IST)


def ns(clock_time: str, day: date = DAY) -> int:
    """The same in nanoseconds since the Unix epoch, UTC."""
    return int(at(clock_time, day).timestamp()) * 1_000_000_000


def trade(
    market: Market, clock: SetClock, times: Sequence[str], events: int = 8, source: Source = "dhan"
) -> Iterator[tuple[int, list[bytes]]]:
    """So many events at each time: (ns, a message of one full packet for each)."""
    for clock_time in times:
        clock.at = at(clock_time)
        messages: list[bytes] = []
        for index, _ in market.step(events):
            messages += _messages(market, clock, index, source)
        yield clock.now_ns(), messages


def snapshot(market: Market, clock: Clock, source: Source = "dhan") -> list[bytes]:
    """A message of one full packet of each instrument, as a subscription brings it."""
    return _messages(market, clock, np.arange(len(market)), source)


def _messages(market: Market, clock: Clock, index: NDArray[np.intp], source: Source) -> list[bytes]:
    if source == "dhan":
        return [packet.tobytes() for packet in market.packets(ResponseCode.FULL, index)]
    kite = KitePackets(market, clock)
    one = (1).to_bytes(2, "big")
    return [
        one + kite.records(SIZES["full"][int(kite.is_index[each])], index[place : place + 1]).tobytes()
        for place, each in enumerate(index.tolist())
    ]


def of(source: Source, *tokens: int) -> list[int]:
    """A source's tokens of the market's instruments, which the market knows by Dhan's."""
    return [*tokens] if source == "dhan" else [kite_token_of(token) for token in tokens]


def insert_instruments(conn: connection, tokens: Sequence[int] = TOKENS) -> None:
    """Rows of `instruments` for tokens of either source: an index, equities, index futures."""
    kinds = {
        ExchangeSegment.IDX_I: ("INDEX", "EQ"),
        ExchangeSegment.NSE_EQ: ("EQUITY", "EQ"),
        ExchangeSegment.NSE_FNO: ("FUTIDX", "FUT"),
    }
    with conn, conn.cursor() as cursor:
        for token in tokens:
            source, segment = source_of(token), segment_of(token)
            number = (split_instrument_token if source == "dhan" else split_kite_token)(token)[1]
            ids = (number, None) if source == "dhan" else (None, number)
            cursor.execute(
                "INSERT INTO instruments (instrument_token, source, security_id, exchange_token, exchange, "
                "exchange_segment, trading_symbol, instrument_type, tick_size) "
                "VALUES (%s, %s, %s, %s, 'NSE', %s, %s, %s, 0.05)",
                (token, source, *ids, segment.name, f"S{number}", kinds[segment][SOURCES.index(source)]),
            )


class Server(Protocol):
    """What both simulated brokers let a test do."""

    instead: deque[tuple[HTTPStatus, dict[str, Any] | bytes]]
    asked: Counter[str]
    active_token: str | None


def refusal(source: Source, message: str) -> tuple[HTTPStatus, dict[str, Any]]:
    """What a broker answers to a request for an instrument that it does not know, for `Server.instead`."""
    if source == "dhan":
        return HTTPStatus.BAD_REQUEST, error("DH-905", message)
    return kite_error("InputException", message)


def no_data_plan(source: Source) -> tuple[HTTPStatus, dict[str, Any]]:
    """What one answers whose account has no plan with market data."""
    if source == "dhan":
        return HTTPStatus.FORBIDDEN, error("DH-902", "not subscribed to Data APIs")
    return kite_error("PermissionException", "Insufficient permission for that call.", HTTPStatus.FORBIDDEN)


@contextmanager
def running(server: HttpServer) -> Iterator[str]:
    """A server on a loop of its own; its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            asyncio.run_coroutine_threadsafe(server.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def serving(
    settings: Settings, clock: Clock, market: Market | None, tmp_path: Path, edits: Sequence[BarEdit] = ()
) -> Iterator[tuple[RestServer, Settings]]:
    """Dhan's server, and the settings with which it is asked; its limits are off.

    `edits` say which bars it gives otherwise than they were traded; they are looked at at each request.
    """
    token_file = tmp_path / "token.json"
    save_token(token_file, make_token(CLIENT_ID, expires_in=1e6, clock=clock), CLIENT_ID)
    rest = RestServer(clock, requests_a_second=10_000, quotes_a_second=10_000)
    rest.market, rest.history_edits = market, edits
    with running(rest) as url:
        yield rest, settings.model_copy(update={"dhan_api_url": url, "dhan_token_file": token_file})


@contextmanager
def serving_kite(
    settings: Settings, clock: Clock, market: Market, tmp_path: Path, edits: Sequence[BarEdit] = ()
) -> Iterator[tuple[KiteRest, Settings]]:
    """Kite's, likewise."""
    token_file = tmp_path / "kite_token.json"
    save_kite_token(token_file, make_kite_access_token(expires_in=1e6, clock=clock), API_KEY, clock.now())
    rest = KiteRest(clock, requests_a_second=10_000, quotes_a_second=10_000)
    rest.give = answers(market, clock, edits)
    with running(rest) as url:
        yield rest, settings.model_copy(update={"kite_api_url": url, "kite_token_file": token_file})


@contextmanager
def serving_source(
    settings: Settings, clock: Clock, market: Market, tmp_path: Path, edits: Sequence[BarEdit] = ()
) -> Iterator[tuple[Server, Settings]]:
    """That of the settings' source."""
    with (serving if settings.source == "dhan" else serving_kite)(settings, clock, market, tmp_path, edits) as both:
        yield both
