"""Bars and quotes as Kite's own client gets them, and what the pages refuse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from kiteconnect import KiteConnect
from kiteconnect.exceptions import InputException, NetworkException

from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.history import BarEdit
from dhan_pipeline.feeds.simulator.kite_history import answers
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.tokens import API_KEY, make_kite_access_token
from dhan_pipeline.instruments import KiteSegment, make_kite_token
from dhan_pipeline.sessions import IST
from dhan_pipeline_tests.feeds.simulator.trading import NOON, SetClock, Watcher

NIFTY = 256265
RELIANCE = make_kite_token(KiteSegment.NSE, 2885)
FUTURE = make_kite_token(KiteSegment.NFO, 68407)
TOKENS = [NIFTY, RELIANCE, FUTURE]

DAY = {"from": "2026-11-20 09:15:00", "to": "2026-11-20 15:30:00"}


@asynccontextmanager
async def exchange(
    minutes: int = 12, *, fast: bool = True, edits: list[BarEdit] | None = None
) -> AsyncIterator[tuple[KiteRest, Watcher, Market]]:
    """One that has traded for so many minutes from noon. `fast` lifts the rate limits."""
    clock = SetClock()
    market = Market([dhan_token_of(token) for token in TOKENS], clock=clock)
    watcher = Watcher(market)
    for minute in range(minutes):
        clock.at = NOON + timedelta(minutes=minute)
        watcher.trade(50)
    server = KiteRest(clock)
    server.give = answers(market, clock, edits or ())
    if fast:
        server.requests_a_second = server.quotes_a_second = 10_000
    await server.start()
    try:
        yield server, watcher, market
    finally:
        await server.aclose()


@asynccontextmanager
async def official(server: KiteRest) -> AsyncIterator[Any]:
    """The broker's client, pointed at the server."""
    client = KiteConnect(
        API_KEY, access_token=make_kite_access_token(clock=SetClock()), root=f"http://127.0.0.1:{server.port}"
    )
    with client.reqsession:
        yield client


@asynccontextmanager
async def plain(server: KiteRest) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"token {API_KEY}:{make_kite_access_token(clock=SetClock())}", "X-Kite-Version": "3"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}", headers=headers, trust_env=False
    ) as client:
        yield client


async def test_the_broker_s_own_client_gets_bars_that_of_the_present_minute_too() -> None:
    async with exchange() as (server, watcher, market), official(server) as kite:
        for index, token in enumerate(TOKENS):
            bars = await asyncio.to_thread(kite.historical_data, token, *DAY.values(), "minute", oi=True)
            traded = watcher.bars[dhan_token_of(token)]
            assert [int(bar["date"].timestamp()) for bar in bars] == list(traded)
            assert bars[-1]["date"] == NOON + timedelta(minutes=11)
            for bar, (time_s, seen) in zip(bars, traded.items(), strict=True):
                assert bar["date"] == datetime.fromtimestamp(time_s, IST)
                assert np.float32(bar["high"]) == np.float32(seen.high)
                assert (bar["volume"], bar["oi"]) == (seen.volume, seen.oi)
            (day,) = await asyncio.to_thread(kite.historical_data, token, "2026-11-20", "2026-11-20", "day")
            assert day["date"] == NOON.replace(hour=0)
            assert day["close"] == market.day_bar(index)["close"][0]
            assert "oi" not in day


async def test_the_broker_s_own_client_gets_quotes() -> None:
    async with exchange() as (server, _, market), official(server) as kite:
        quotes = await asyncio.to_thread(kite.quote, [*TOKENS, make_kite_token(KiteSegment.BSE, 1)])
    assert list(quotes) == [str(token) for token in TOKENS]
    packets = market.packets(ResponseCode.FULL, np.arange(3))
    for token, packet in zip(TOKENS, packets, strict=True):
        quote = quotes[str(token)]
        assert quote["instrument_token"] == token
        assert np.float32(quote["last_price"]) == packet["last_price"]
        assert np.float32(quote["ohlc"]["close"]) == packet["day_close"]
        assert quote["last_trade_time"].replace(tzinfo=IST) == NOON + timedelta(minutes=11)
        if token == NIFTY:
            assert "volume" not in quote
        else:
            assert quote["volume"] == packet["volume_traded"]


async def test_bars_of_several_minutes_are_put_together_and_changed_ones_given_so() -> None:
    wrong = BarEdit(dhan_token_of(RELIANCE), int(NOON.timestamp()) + 60, "high", 1.0)
    async with exchange(edits=[wrong]) as (server, watcher, _), official(server) as kite:
        bars = await asyncio.to_thread(kite.historical_data, RELIANCE, *DAY.values(), "5minute")
        assert [bar["date"].minute for bar in bars] == [0, 5, 10]
        seen = list(watcher.bars[dhan_token_of(RELIANCE)].values())
        assert bars[0]["volume"] == sum(bar.volume for bar in seen[:5])
        minutes = await asyncio.to_thread(kite.historical_data, RELIANCE, *DAY.values(), "minute")
        assert np.float32(minutes[1]["high"]) == np.float32(seen[1].high + 1.0)


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        (f"{make_kite_token(KiteSegment.NSE, 1)}/minute", DAY, "invalid token"),
        ("x/minute", DAY, "invalid token"),
        (f"{RELIANCE}/2minute", DAY, "invalid interval"),
        (f"{RELIANCE}/minute", {"to": DAY["to"]}, "invalid from date"),
        (f"{RELIANCE}/minute", DAY | {"to": "20-11-2026"}, "invalid to date"),
        (f"{RELIANCE}/minute", {"from": DAY["to"], "to": DAY["from"]}, "from date cannot be after to date"),
        (f"{RELIANCE}/minute", DAY | {"from": "2026-09-20"}, "interval exceeds max limit: 60 days"),
        (f"{RELIANCE}/day", DAY | {"from": "2021-05-20"}, "interval exceeds max limit: 2000 days"),
        (f"{RELIANCE}/day", DAY | {"continuous": "1"}, "invalid continuous"),
    ],
)
async def test_a_request_that_is_none_is_refused_as_kite_does(path: str, query: dict[str, str], message: str) -> None:
    async with exchange(0) as (server, _, _), plain(server) as client:
        answer = await client.get(f"/instruments/historical/{path}", params=query)
    assert answer.status_code == 400
    assert answer.json() == {"status": "error", "error_type": "InputException", "message": message, "data": None}


async def test_an_instrument_that_was_not_traded_then_has_no_candles() -> None:
    async with exchange(0) as (server, _, _), plain(server) as client:
        query = {"from": "2026-11-19", "to": "2026-11-19 15:30:00"}
        answer = await client.get(f"/instruments/historical/{RELIANCE}/minute", params=query)
    assert answer.json() == {"status": "success", "data": {"candles": []}}


async def test_too_many_quotes_and_requests_are_refused() -> None:
    async with exchange(0, fast=False) as (server, _, _), official(server) as kite:
        with pytest.raises(InputException):
            await asyncio.to_thread(kite.quote, list(range(501)))
        with pytest.raises(NetworkException, match="Too many requests"):
            await asyncio.to_thread(kite.quote, [RELIANCE])
        for _ in range(3):
            await asyncio.to_thread(kite.historical_data, RELIANCE, *DAY.values(), "minute")
        with pytest.raises(NetworkException, match="Too many requests"):
            await asyncio.to_thread(kite.historical_data, RELIANCE, *DAY.values(), "minute")
