"""The data API as the documentation words it, and as the broker's own client reads it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from dhanhq import DhanContext, dhanhq

from dhan_pipeline.feeds.simulator.history import BarEdit, choose_edits
from dhan_pipeline.feeds.simulator.http_server import MAX_REQUEST_BYTES
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer, error
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline_tests.feeds.simulator.trading import NOON, SetClock, Watcher

NIFTY = generate_instrument_token("IDX_I", 13)
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
FUTURE = generate_instrument_token("NSE_FNO", 68407)
TOKENS = [NIFTY, RELIANCE, FUTURE]

INTRADAY, DAILY, ROLLING, QUOTE = (
    *("/v2/charts/intraday", "/v2/charts/historical"),
    *("/v2/charts/rollingoption", "/v2/marketfeed/quote"),
)
MINUTES: dict[str, Any] = {
    "securityId": "2885",
    "exchangeSegment": "NSE_EQ",
    "instrument": "EQUITY",
    "interval": "1",
    "oi": True,
    "fromDate": "2026-11-20 09:15:00",
    "toDate": "2026-11-20 15:30:00",
}
DAYS = {**MINUTES, "fromDate": "2026-11-20", "toDate": "2026-11-21"}
OPTION: dict[str, Any] = {
    "exchangeSegment": "NSE_FNO",
    "interval": "1",
    "securityId": 13,
    "instrument": "OPTIDX",
    "expiryFlag": "MONTH",
    "expiryCode": 1,
    "strike": "ATM",
    "drvOptionType": "CALL",
    "requiredData": ["open", "high", "low", "close", "volume"],
    "fromDate": "2026-11-02",
    "toDate": "2026-11-14",
}


@asynccontextmanager
async def exchange(
    minutes: int = 12, *, fast: bool = True, token: str | None = None
) -> AsyncIterator[tuple[RestServer, Watcher, httpx.AsyncClient]]:
    """One that has traded for so many minutes from noon, and is two minutes further. `fast` lifts the rate limits."""
    clock = SetClock()
    market = Market(TOKENS, clock=clock)
    watcher = Watcher(market)
    for _ in range(minutes):
        watcher.trade(50)
        clock.at += timedelta(minutes=1)
    clock.at += timedelta(minutes=2)
    server = RestServer(clock)
    server.market = market
    if fast:
        server.requests_a_second = server.quotes_a_second = 10_000
    await server.start()
    headers = {"access-token": token or make_token(CLIENT_ID, clock=clock), "client-id": CLIENT_ID}
    try:
        url = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            yield server, watcher, client
    finally:
        await server.aclose()


@asynccontextmanager
async def official(server: RestServer, client: httpx.AsyncClient) -> AsyncIterator[Any]:
    """The broker's client, pointed at the server."""
    context = DhanContext(CLIENT_ID, client.headers["access-token"])
    context.get_dhan_http().base_url = f"http://127.0.0.1:{server.port}/v2"
    with context.get_dhan_http().session:
        yield dhanhq(context)


async def test_the_broker_s_own_client_gets_minute_bars() -> None:
    async with exchange() as (server, watcher, client), official(server, client) as dhan:
        for token, segment, security_id, kind in (
            (RELIANCE, "NSE_EQ", "2885", "EQUITY"),
            (NIFTY, "IDX_I", "13", "INDEX"),
            (FUTURE, "NSE_FNO", "68407", "FUTIDX"),
        ):
            day = "2026-11-20"
            answer = await asyncio.to_thread(dhan.intraday_minute_data, security_id, segment, kind, day, day, oi=True)
            assert answer["status"] == "success"
            bars = answer["data"]
            expected = watcher.bars[token]
            assert bars["timestamp"] == list(expected)
            assert bars["volume"] == [bar.volume for bar in expected.values()]
            assert bars["open_interest"] == [bar.oi for bar in expected.values()]
            for name in ("open", "high", "low", "close"):
                assert np.float32(bars[name]).tolist() == [np.float32(getattr(b, name)) for b in expected.values()]


async def test_the_broker_s_own_client_gets_the_day_s_bar() -> None:
    async with exchange() as (server, _, client), official(server, client) as dhan:
        answer = await asyncio.to_thread(
            dhan.historical_daily_data, "2885", "NSE_EQ", "EQUITY", "2026-11-01", "2026-11-21"
        )
        quotes = await asyncio.to_thread(dhan.quote_data, {"NSE_EQ": [2885]})
    assert answer["status"] == quotes["status"] == "success"
    quote = quotes["data"]["data"]["NSE_EQ"]["2885"]
    assert answer["data"]["timestamp"] == [NOON.replace(hour=0).timestamp()]
    assert answer["data"]["volume"] == [quote["volume"]]
    assert answer["data"]["close"] == [quote["last_price"]]
    assert answer["data"]["high"] == [quote["ohlc"]["high"]]


async def test_the_broker_s_own_client_gets_quotes() -> None:
    async with exchange() as (server, watcher, client), official(server, client) as dhan:
        answer = await asyncio.to_thread(dhan.quote_data, {"NSE_EQ": [2885, 7], "IDX_I": [13]})
    assert answer["data"]["status"] == "success"
    data = answer["data"]["data"]
    assert {segment: list(quotes) for segment, quotes in data.items()} == {"NSE_EQ": ["2885"], "IDX_I": ["13"]}
    quote = data["NSE_EQ"]["2885"]
    last = max(watcher.bars[RELIANCE])
    assert quote["last_price"] == watcher.bars[RELIANCE][last].close
    assert quote["last_trade_time"] == "20/11/2026 12:11:00"
    assert len(quote["depth"]["buy"]) == len(quote["depth"]["sell"]) == 5
    assert quote["depth"]["buy"][0]["price"] <= quote["last_price"] <= quote["depth"]["sell"][0]["price"]


async def test_the_broker_s_own_client_gets_expired_options() -> None:
    async with exchange(0) as (server, _, client), official(server, client) as dhan:
        wanted = OPTION["requiredData"]
        answer = await asyncio.to_thread(
            *(dhan.expired_options_data, 13, "NSE_FNO", "OPTIDX", "MONTH", 1, "ATM", "CALL", wanted),
            *("2026-11-02", "2026-11-14"),
        )
    data = answer["data"]["data"]
    assert data["pe"] is None
    assert list(data["ce"]) == [
        *("open", "high", "low", "close", "iv", "volume", "strike", "oi", "spot"),
        "timestamp",
    ]
    assert {
        name: len(column) for name, column in data["ce"].items() if name in (*wanted, "timestamp")
    } == dict.fromkeys((*wanted, "timestamp"), len(data["ce"]["open"]))
    assert data["ce"]["strike"] == []
    assert data["ce"]["timestamp"][0] == NOON.replace(day=2, hour=9, minute=15).timestamp()


async def test_a_minute_is_given_two_minutes_after_its_end() -> None:
    async with exchange(5) as (server, _, client):
        assert isinstance(server._clock, SetClock)
        server._clock.at -= timedelta(seconds=1)
        assert len((await client.post(INTRADAY, json=MINUTES)).json()["timestamp"]) == 4
        server._clock.at += timedelta(seconds=1)
        assert len((await client.post(INTRADAY, json=MINUTES)).json()["timestamp"]) == 5
        server.settle_s = 300
        assert len((await client.post(INTRADAY, json=MINUTES)).json()["timestamp"]) == 2


async def test_longer_bars_are_minutes_taken_together() -> None:
    async with exchange(12) as (_, watcher, client):
        bars = (await client.post(INTRADAY, json={**MINUTES, "interval": "5"})).json()
    minutes = list(watcher.bars[RELIANCE].values())
    groups = [minutes[:5], minutes[5:10], minutes[10:]]
    assert bars["timestamp"] == [NOON.timestamp() + 300 * number for number in range(3)]
    assert bars["open"] == [group[0].open for group in groups]
    assert bars["high"] == [max(bar.high for bar in group) for group in groups]
    assert bars["low"] == [min(bar.low for bar in group) for group in groups]
    assert bars["close"] == [group[-1].close for group in groups]
    assert bars["volume"] == [sum(bar.volume for bar in group) for group in groups]


@pytest.mark.parametrize(
    ("path", "request_", "code"),
    [
        (INTRADAY, MINUTES | {"fromDate": "2026-08-20 09:15:00"}, "DH-905"),
        (INTRADAY, MINUTES | {"toDate": "2026-11-20 09:14:59"}, "DH-905"),
        (INTRADAY, MINUTES | {"toDate": "20/11/2026"}, "DH-905"),
        (INTRADAY, MINUTES | {"interval": "2"}, "DH-905"),
        (INTRADAY, MINUTES | {"securityId": "2886"}, "DH-905"),
        (INTRADAY, MINUTES | {"securityId": None}, "DH-905"),
        (INTRADAY, MINUTES | {"exchangeSegment": "NSE"}, "DH-905"),
        (INTRADAY, MINUTES | {"instrument": "STOCK"}, "DH-905"),
        (INTRADAY, MINUTES | {"fromDate": "2026-11-19", "toDate": "2026-11-19"}, "DH-907"),
        (INTRADAY, [], "DH-905"),
        (DAILY, DAYS | {"toDate": "2026-11-20"}, "DH-905"),
        (DAILY, DAYS | {"expiryCode": 4}, "DH-905"),
        (DAILY, DAYS | {"fromDate": "2026-11-19", "toDate": "2026-11-20"}, "DH-907"),
        (ROLLING, OPTION | {"strike": "ATM+11"}, "DH-905"),
        (ROLLING, OPTION | {"strike": "ITM"}, "DH-905"),
        (ROLLING, OPTION | {"requiredData": ["theta"]}, "DH-905"),
        (ROLLING, OPTION | {"fromDate": "2026-10-01"}, "DH-905"),
        (ROLLING, OPTION | {"securityId": 14}, "DH-905"),
        (ROLLING, OPTION | {"fromDate": "2026-11-20", "toDate": "2026-11-30"}, "DH-907"),
    ],
)
async def test_a_request_for_what_there_is_not_is_refused(path: str, request_: Any, code: str) -> None:
    async with exchange() as (_, _, client):
        answer = await client.post(path, json=request_)
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == code


@pytest.mark.parametrize(
    ("request_", "code"),
    [({"NSE": [1]}, "814"), ({"NSE_EQ": 1}, "814"), ({"NSE_EQ": ["x"]}, "814"), ({"NSE_EQ": [*range(1001)]}, "804")],
)
async def test_the_page_of_quotes_words_refusals_in_its_own_way(request_: Any, code: str) -> None:
    async with exchange() as (_, _, client):
        answer = await client.post(QUOTE, json=request_)
    assert answer.status_code == 400
    assert answer.json()["status"] == "failed"
    assert list(answer.json()["data"]) == [code]


async def test_only_the_account_s_own_live_token_is_served() -> None:
    for token, code in (("x", "809"), (make_token(CLIENT_ID, expires_in=-1, clock=SetClock()), "807")):
        async with exchange(token=token) as (_, _, client):
            bars, quotes = await client.post(INTRADAY, json=MINUTES), await client.post(QUOTE, json={"NSE_EQ": [2885]})
        assert bars.status_code == quotes.status_code == 401
        assert bars.json()["errorCode"] == "DH-901"
        assert list(quotes.json()["data"]) == [code]


async def test_without_a_data_plan_there_are_neither_bars_nor_quotes() -> None:
    async with exchange() as (server, _, client):
        server.data_plan = "Deactive"
        assert (await client.post(INTRADAY, json=MINUTES)).json()["errorCode"] == "DH-902"
        assert list((await client.post(QUOTE, json={"NSE_EQ": [2885]})).json()["data"]) == ["806"]


async def test_five_requests_for_bars_and_one_for_quotes_are_served_in_a_second() -> None:
    async with exchange(fast=False) as (server, _, client):
        server.rate_window_s = 3600.0  # however long the requests take
        bars = [(await client.post(INTRADAY, json=MINUTES)).status_code for _ in range(6)]
        quotes = [await client.post(QUOTE, json={"NSE_EQ": [2885]}) for _ in range(2)]
    assert bars == [200] * 5 + [429]
    assert [answer.status_code for answer in quotes] == [200, 429]
    assert list(quotes[1].json()["data"]) == ["805"]


async def test_faults_are_served_instead_of_answers_one_each() -> None:
    async with exchange() as (server, _, client):
        server.instead.extend([(httpx.codes.OK, b""), (httpx.codes.BAD_GATEWAY, error("DH-909", "down"))])
        answers = [await client.post(INTRADAY, json=MINUTES) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 502, 200]
        assert answers[0].content == b""
        assert server.asked == {INTRADAY: 3}


async def test_bars_are_altered_as_told() -> None:
    async with exchange(5) as (server, _, client):
        before = (await client.post(INTRADAY, json=MINUTES)).json()
        first, second, third, *_ = before["timestamp"]
        server.history_edits = [
            *(BarEdit(RELIANCE, first, "high", 0.5), BarEdit(RELIANCE, second)),
            *(BarEdit(RELIANCE, third, "volume", -1), BarEdit(NIFTY, first)),
        ]
        after = (await client.post(INTRADAY, json=MINUTES)).json()
    assert after["timestamp"] == before["timestamp"][:1] + before["timestamp"][2:]
    assert after["high"] == [before["high"][0] + 0.5, *before["high"][2:]]
    assert after["volume"] == [before["volume"][0], before["volume"][2] - 1, *before["volume"][3:]]
    assert after["close"] == before["close"][:1] + before["close"][2:]


async def test_chosen_edits_are_of_bars_that_there_are_and_the_same_for_a_seed() -> None:
    async with exchange(5) as (server, watcher, _):
        assert server.market is not None
        edits = choose_edits(server.market, 7, seed=3)
        assert edits == choose_edits(server.market, 7, seed=3) != choose_edits(server.market, 7, seed=4)
        assert len({(edit.instrument_token, edit.time_s) for edit in edits}) == 7
        assert all(edit.time_s in watcher.bars[edit.instrument_token] for edit in edits)


@pytest.mark.parametrize("length", [str(MAX_REQUEST_BYTES + 1), "9" * 30, "-1", "x"])
async def test_a_request_that_is_too_long_is_not_read(length: str) -> None:
    async with exchange(0) as (server, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"POST {INTRADAY} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()
        await writer.wait_closed()
