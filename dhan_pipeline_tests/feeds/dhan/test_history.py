"""The client against the simulator's REST, which has the market's own bars."""

import asyncio
import json
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from websockets.asyncio.client import connect

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.history import DhanHistory
from dhan_pipeline.feeds.dhan.rest import LIMITS
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.errors import (
    AnswerError,
    BadRequestError,
    BusyError,
    CredentialsError,
    NoDataPlanError,
    RequestsUsedUpError,
    RestError,
    TokenRejectedError,
    UnavailableError,
)
from dhan_pipeline.feeds.history import BrokerBars
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.history import intraday
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer, error
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import NULL_INT
from dhan_pipeline_tests.feeds.simulator.trading import NOON, SetClock, Watcher

NIFTY = generate_instrument_token("IDX_I", 13)
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
FUTURE = generate_instrument_token("NSE_FNO", 68407)
KINDS = {NIFTY: "INDEX", RELIANCE: "EQUITY", FUTURE: "FUTIDX"}

NOON_NS = int(NOON.timestamp()) * 1_000_000_000
MINUTE_NS = 60 * 1_000_000_000
DAY_NS = 1440 * MINUTE_NS
HOUR = (NOON_NS, NOON_NS + 60 * MINUTE_NS)

INTRADAY, DAILY, ROLLING, QUOTE = (
    *("/v2/charts/intraday", "/v2/charts/historical"),
    *("/v2/charts/rollingoption", "/v2/marketfeed/quote"),
)

QUICK = {
    "data_interval_s": 0.0,
    "quote_interval_s": 0.0,
    "first_pause_s": 0.001,
    "longest_pause_s": 0.01,
    "busy_tries": 4,
}


class Broker:
    """A market that has traded for ten minutes from noon, and is `later` minutes further; its REST; a client of it."""

    def __init__(self, tmp_path: Path, tokens: list[int], minutes: int, later: int, policy: dict[str, Any]) -> None:
        self.clock = SetClock()
        self.market = Market(tokens, clock=self.clock)
        self.watcher = Watcher(self.market)
        for _ in range(minutes):
            self.watcher.trade(12 * len(tokens))
            self.clock.at += timedelta(minutes=1)
        self.clock.at += timedelta(minutes=later)
        self.rest = RestServer(self.clock)
        self.rest.market = self.market
        self.rest.requests_a_second = self.rest.quotes_a_second = 10_000
        self.token_file = tmp_path / "token.json"
        self.token = self.make_token()
        self.policy = RestPolicy(**(QUICK | policy))

    def make_token(self, **options: Any) -> str:
        """One that is in the token file from now on."""
        token = make_token(CLIENT_ID, clock=self.clock, **options)
        save_token(self.token_file, token, CLIENT_ID)
        return token

    def client(self, url: str | None = None) -> DhanHistory:
        facts: dict[str, Any] = {
            "dhan_token_file": self.token_file,
            "dhan_api_url": url or f"http://127.0.0.1:{self.rest.port}/",
        }
        return DhanHistory(Settings(_env_file=None, **facts), self.clock, self.policy)


@asynccontextmanager
async def broker(
    tmp_path: Path, tokens: list[int] | None = None, minutes: int = 10, later: int = 5, **policy: Any
) -> AsyncIterator[tuple[Broker, DhanHistory]]:
    it = Broker(tmp_path, tokens or list(KINDS), minutes, later, policy)
    await it.rest.start()
    try:
        async with it.client() as client:
            yield it, client
    finally:
        await it.rest.aclose()


def listed(bars: BrokerBars) -> list[tuple[Any, ...]]:
    prices = (np.float32(column) for column in (bars.open, bars.high, bars.low, bars.close))
    return list(
        zip(bars.time_s.tolist(), *(p.tolist() for p in prices), bars.volume.tolist(), bars.oi.tolist(), strict=True)
    )


def of(watcher: Watcher, token: int) -> list[tuple[Any, ...]]:
    return [
        (time_s, *(float(np.float32(p)) for p in (bar.open, bar.high, bar.low, bar.close)), bar.volume, bar.oi)
        for time_s, bar in watcher.bars[token].items()
    ]


async def test_the_bars_are_those_of_the_packets_of_every_instrument_and_minute(tmp_path: Path) -> None:
    tokens = [generate_instrument_token(segment, number) for segment in ExchangeSegment for number in range(1, 4)]
    async with broker(tmp_path, tokens) as (it, client):
        fetched = await asyncio.gather(*(client.minute_bars(token, "EQUITY", *HOUR) for token in tokens))
    assert sum(map(len, fetched)) > 8 * len(tokens)
    for token, bars in zip(tokens, fetched, strict=True):
        assert listed(bars) == of(it.watcher, token)


async def test_the_bars_are_those_that_a_subscriber_of_the_feed_makes(tmp_path: Path) -> None:
    clock = Clock(NOON_NS + 40 * 1_000_000_000, speed=300.0)
    end = NOON_NS + 5 * MINUTE_NS
    last_s = end // 1_000_000_000 + 240  # once that minute is seen, all before it are, and the client asks for them
    watcher = Watcher()
    token = make_token(CLIENT_ID, clock=clock)
    save_token(tmp_path / "token.json", token, CLIENT_ID)
    wanted = [
        {"ExchangeSegment": segment.name, "SecurityId": str(number)}
        for segment, number in map(split_instrument_token, KINDS)
    ]
    async with DhanSimulator([*KINDS], rate=300, clock=clock) as simulator:
        query = urlencode({"version": 2, "token": token, "clientId": CLIENT_ID, "authType": 2})
        async with connect(f"{simulator.feed_url}?{query}", compression=None, proxy=None, max_queue=None) as websocket:
            await websocket.send(json.dumps({"RequestCode": 21, "InstrumentCount": 3, "InstrumentList": wanted}))
            while max(watcher.bars[RELIANCE], default=0) < last_s:
                message = await websocket.recv()
                if message[0] == ResponseCode.FULL:
                    watcher.see(message)
        facts: dict[str, Any] = {"dhan_token_file": tmp_path / "token.json", "dhan_api_url": simulator.rest_url}
        async with DhanHistory(Settings(_env_file=None, **facts), clock, RestPolicy(**QUICK)) as client:
            for token, kind in KINDS.items():
                bars = await client.minute_bars(token, kind, NOON_NS, end)
                assert len(bars) > 0
                assert listed(bars) == [bar for bar in of(watcher, token) if bar[0] < end // 1_000_000_000]


async def test_an_index_has_bars_without_volume(tmp_path: Path) -> None:
    async with broker(tmp_path) as (_, client):
        bars = await client.minute_bars(NIFTY, "INDEX", *HOUR)
    assert len(bars) == 10
    assert not bars.volume.any()
    assert bars.time_s.dtype == bars.volume.dtype == bars.oi.dtype == np.int64
    assert bars.open.dtype == np.float64


async def test_the_range_includes_its_start_and_not_its_end(tmp_path: Path) -> None:
    async with broker(tmp_path) as (_, client):
        bars = await client.minute_bars(RELIANCE, "EQUITY", NOON_NS + 2 * MINUTE_NS, NOON_NS + 5 * MINUTE_NS)
        assert (bars.time_s - NOON_NS // 1_000_000_000).tolist() == [120, 180, 240]
        bars = await client.minute_bars(RELIANCE, "EQUITY", NOON_NS + 1, NOON_NS + 2 * MINUTE_NS + 1)
        assert (bars.time_s - NOON_NS // 1_000_000_000).tolist() == [60, 120]


async def test_minutes_that_have_just_passed_are_not_asked_for(tmp_path: Path) -> None:
    async with broker(tmp_path, later=0) as (it, client):
        it.rest.settle_s = 0.0
        bars = await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        assert (bars.time_s - NOON_NS // 1_000_000_000).tolist() == [60 * minute for minute in range(7)]
        recent = await client.minute_bars(RELIANCE, "EQUITY", NOON_NS + 7 * MINUTE_NS, NOON_NS + 99 * MINUTE_NS)
        assert len(recent) == 0
        assert it.rest.asked[INTRADAY] == 1


@pytest.mark.parametrize("border", [3, 3.5])
async def test_a_range_of_more_than_ninety_days_is_several_requests_and_no_bar_comes_twice(
    tmp_path: Path, border: float
) -> None:
    async with broker(tmp_path) as (it, client):
        start = NOON_NS + int(border * MINUTE_NS) - 178 * DAY_NS  # the second request ends in the middle of the bars
        bars = await client.minute_bars(RELIANCE, "EQUITY", start, HOUR[1])
        assert listed(bars) == of(it.watcher, RELIANCE)
        assert it.rest.asked[INTRADAY] == client.requests_today == 3


async def test_the_day_s_bar_begins_at_midnight_in_india(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        bars = await client.daily_bars(RELIANCE, "EQUITY", date(2026, 11, 18), date(2026, 11, 20))
        (day,) = it.market.day_bar(1)
        assert listed(bars) == [
            (
                int(NOON.replace(hour=0).timestamp()),
                *(np.float32(day[n]) for n in ("open", "high", "low", "close")),
                day["volume"],
                day["oi"],
            )
        ]
        assert len(await client.daily_bars(RELIANCE, "EQUITY", date(2026, 11, 18), date(2026, 11, 19))) == 0
        assert len(await client.daily_bars(RELIANCE, "EQUITY", date(2026, 11, 20), date(2026, 11, 19))) == 0
        assert it.rest.asked[DAILY] == 2


async def test_quotes_are_asked_for_a_thousand_at_a_time(tmp_path: Path) -> None:
    tokens = [generate_instrument_token("NSE_EQ", number) for number in range(1, 1201)] + [FUTURE]
    unknown = generate_instrument_token("BSE_EQ", 500325)
    async with broker(tmp_path, tokens, minutes=0) as (it, client):
        quotes = await client.quotes([*tokens, unknown, tokens[0]])
        assert it.rest.asked[QUOTE] == 2
    assert list(quotes) == tokens
    packets = it.market.packets(ResponseCode.FULL, np.arange(len(tokens)))
    untraded = 0
    for quote, packet in zip(quotes.values(), packets, strict=True):
        assert np.float32(quote.last_price) == packet["last_price"]
        assert np.float32(quote.previous_close) == packet["day_close"]
        assert (quote.volume, quote.oi) == (packet["volume_traded"], packet["oi"])
        if packet["last_trade_time"]:
            assert quote.last_trade_time_us == NOON_NS // 1000
            assert np.float32(quote.high) == packet["day_high"]
        else:
            untraded += 1
            assert quote.last_trade_time_us == NULL_INT
            assert np.isnan([quote.open, quote.high, quote.low]).all()
    assert untraded > 0


async def test_expired_options_come_thirty_days_at_a_time(tmp_path: Path) -> None:
    async with broker(tmp_path, minutes=0) as (it, client):
        index = (ExchangeSegment.NSE_FNO, 13, "OPTIDX")
        span = (date(2026, 10, 1), date(2026, 11, 19))
        calls = await client.rolling_option_bars(*index, "CALL", "ATM", "WEEK", 1, *span)
        assert it.rest.asked[ROLLING] == 2
        puts = await client.rolling_option_bars(*index, "PUT", "ATM-2", "MONTH", 1, *span)
        day = await client.rolling_option_bars(*index, "CALL", "ATM", "WEEK", 1, span[1], span[1])
        none = await client.rolling_option_bars(
            *index, "CALL", "ATM", "WEEK", 1, date(2026, 11, 21), date(2026, 11, 22)
        )
    assert (np.diff(calls.bars.time_s) > 0).all()
    days = {datetime.fromtimestamp(time_s, IST).date() for time_s in calls.bars.time_s.tolist()}
    assert (min(days), max(days)) == span
    assert (puts.strike == calls.strike - 100).all()
    assert (puts.spot == calls.spot).all()
    assert len(day) == 385
    assert (calls.bars.close[-385:] == day.bars.close).all()
    assert len(none) == len(none.strike) == 0


EMPTY = (HTTPStatus.OK, b"")
NO_DATA = (HTTPStatus.BAD_REQUEST, error("DH-907", "no data present"))
BUSY = (
    (HTTPStatus.TOO_MANY_REQUESTS, error("DH-904", "Too many requests")),
    (HTTPStatus.OK, {"data": {"805": "Too many requests"}, "status": "failed"}),
    (HTTPStatus.TOO_MANY_REQUESTS, b"<html>"),
)


@pytest.mark.parametrize(
    "faults",
    [[EMPTY] * 3, BUSY, [(HTTPStatus.BAD_GATEWAY, b"<html>")], [(HTTPStatus.OK, error("DH-908", "internal"))]],
    ids=["empty", "busy", "bad gateway", "internal error"],
)
async def test_what_passes_is_waited_for(tmp_path: Path, faults: list[Any]) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead.extend(faults)
        assert len(await client.minute_bars(RELIANCE, "EQUITY", *HOUR)) == 10
        assert it.rest.asked[INTRADAY] == len(faults) + 1


async def test_no_data_is_no_bars(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead.extend([NO_DATA] * 4)
        assert len(await client.minute_bars(RELIANCE, "EQUITY", *HOUR)) == 0
        assert len(await client.daily_bars(RELIANCE, "EQUITY", NOON.date(), NOON.date())) == 0
        assert await client.quotes([RELIANCE]) == {}
        options = (ExchangeSegment.NSE_FNO, 13, "OPTIDX", "CALL", "ATM", "WEEK", 1)
        assert len(await client.rolling_option_bars(*options, date(2026, 11, 2), date(2026, 11, 3))) == 0
        assert it.rest.asked.total() == 4


@pytest.mark.parametrize(
    ("status", "content", "kind", "code", "asked"),
    [
        (400, error("DH-905", "bad values"), BadRequestError, "DH-905", 1),
        (400, {"data": {"813": "Invalid SecurityId"}, "status": "failed"}, BadRequestError, "813", 1),
        (404, b"<html>", BadRequestError, "HTTP 404", 1),
        (400, error("DH-903", "account not enabled"), RestError, "DH-903", 1),
        (403, error("DH-902", "not subscribed"), NoDataPlanError, "DH-902", 1),
        (401, {"data": {"806": "not subscribed"}, "status": "failed"}, NoDataPlanError, "806", 1),
        (429, error("DH-904", "too many"), BusyError, "DH-904", 4),
        (500, error("DH-908", "internal"), UnavailableError, "DH-908", 4),
        (503, b"", UnavailableError, "HTTP 503", 4),
        (200, b" ", UnavailableError, "", 4),
    ],
)
async def test_what_does_not_pass_is_an_error_that_says_what(
    tmp_path: Path, status: int, content: Any, kind: type[RestError], code: str, asked: int
) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead.extend([(HTTPStatus(status), content)] * 20)
        with pytest.raises(
            RestError, match=r"^Dhan does not give the bars \(minutes\) of NSE_EQ 2885: .*\.$"
        ) as caught:
            await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert it.rest.asked[INTRADAY] == asked


GOOD = {
    "open": [1.0, 2.0],
    "high": [1.0, 2.0],
    "low": [1.0, 2.0],
    "close": [1, 2],
    "volume": [1, 2.0],
    "timestamp": [NOON_NS // 10**9, NOON_NS / 10**9 + 60],
    "open_interest": [0, None],
}


@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"open": [' + b"9" * 5000 + b"]}",
        b"\xff\xfe",
        {name: column for name, column in GOOD.items() if name != "volume"},
        GOOD | {"open": [1.0]},
        GOOD | {"open_interest": [1]},
        GOOD | {"close": [1.0, "2.0"]},
        GOOD | {"close": [1.0, None]},
        GOOD | {"close": [1.0, [2.0]]},
        GOOD | {"close": [[1.0], [2.0]]},
        GOOD | {"close": {"0": 1.0}},
        GOOD | {"close": 7},
        GOOD | {"close": [1.0, float("nan")]},
        GOOD | {"close": [1.0, float("inf")]},
        GOOD | {"close": [True, False]},
        GOOD | {"volume": [1, 2.5]},
        GOOD | {"volume": [1, -2]},
        GOOD | {"volume": [1, 10**30]},
        GOOD | {"timestamp": [NOON_NS // 10**6, NOON_NS // 10**6 + 60_000]},
        GOOD | {"timestamp": [0, 60]},
    ],
)
async def test_an_answer_of_another_shape_is_an_error_and_not_an_exception_of_a_parser(
    tmp_path: Path, content: Any
) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead.append((HTTPStatus.OK, content))
        with pytest.raises(AnswerError):
            await client.minute_bars(RELIANCE, "EQUITY", *HOUR)


async def test_numbers_may_come_in_any_order_and_open_interest_not_at_all(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        backwards = {name: column[::-1] for name, column in GOOD.items()}
        it.rest.instead.extend([(HTTPStatus.OK, backwards), (HTTPStatus.OK, GOOD | {"open_interest": []})])
        bars = await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        assert bars.close.tolist() == [1.0, 2.0]
        assert bars.oi.tolist() == [0, NULL_INT]
        assert (await client.minute_bars(RELIANCE, "EQUITY", *HOUR)).oi.tolist() == [NULL_INT] * 2


@pytest.mark.parametrize(
    "content",
    [
        {"status": "success"},
        {"data": [], "status": "success"},
        {"data": {"NSE_EQ": {"x": {}}}, "status": "success"},
        {"data": {"NSE_EQ": {"2885": {"last_price": "x"}}}, "status": "success"},
        {"data": {"NSE_EQ": {"2885": {"last_price": 1, "last_trade_time": "2026-11-20"}}}, "status": "success"},
        {"data": {"NSE_EQ": {"2885": {"last_price": 1, "volume": float("inf")}}}, "status": "success"},
        {"data": {"NYSE": {"2885": {"last_price": 1}}}, "status": "success"},
    ],
)
async def test_quotes_of_another_shape_are_an_error(tmp_path: Path, content: Any) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead.append((HTTPStatus.OK, content))
        with pytest.raises(AnswerError):
            await client.quotes([RELIANCE])


async def test_a_quote_may_lack_what_an_index_has_not(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead.append((HTTPStatus.OK, {"data": {"IDX_I": {"13": {"last_price": 25_000.5}}}}))
        (quote,) = (await client.quotes([NIFTY])).values()
    assert (quote.last_price, quote.volume, quote.last_trade_time_us) == (25_000.5, 0, NULL_INT)
    assert np.isnan(quote.previous_close)


class Watched(deque[Any]):
    """What the server gives instead of answers; `then` happens as it gives one."""

    def __init__(self, answers: list[Any], then: Callable[[], object]) -> None:
        super().__init__(answers)
        self._then = then

    def popleft(self) -> Any:
        self._then()
        return super().popleft()


@pytest.mark.parametrize("code", ["DH-901", "DH-906"])
async def test_a_token_that_is_refused_is_read_again(tmp_path: Path, code: str) -> None:
    async with broker(tmp_path) as (it, client):
        it.rest.instead = Watched([(HTTPStatus.UNAUTHORIZED, error(code, "Invalid Token"))], it.make_token)
        assert len(await client.minute_bars(RELIANCE, "EQUITY", *HOUR)) == 10


async def test_a_token_that_is_refused_for_good_is_one_sentence(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        it.make_token(expires_in=-1.0)
        with pytest.raises(TokenRejectedError) as caught:
            await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        assert it.rest.asked[INTRADAY] == 1  # there was no other to try
        assert str(caught.value) == (
            "Dhan does not accept the access token (DH-901 access token or client id invalid or expired), which comes"
            f" from the token file {it.token_file}: make a new one with `dhan-pipeline token generate --source dhan`."
        )
        with pytest.raises(TokenRejectedError, match="807"):
            await client.quotes([RELIANCE])
        it.rest.instead = Watched([(HTTPStatus.UNAUTHORIZED, error("DH-901", ""))] * 9, it.make_token)
        with pytest.raises(TokenRejectedError):
            await client.quotes([RELIANCE])
        assert it.rest.asked[QUOTE] == 3  # two tokens were tried


async def test_a_token_that_no_header_can_carry_is_a_sentence(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        for token in ("schlüssel", "two\nlines"):
            save_token(it.token_file, token, CLIENT_ID)
            with pytest.raises(CredentialsError, match="that no header can carry") as caught:
                await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
            assert token not in "".join(traceback.format_exception(caught.value))
        it.token_file.unlink()
        with pytest.raises(CredentialsError, match="There is no token file"):
            await client.quotes([RELIANCE])


async def test_no_error_and_no_log_line_has_the_token_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with broker(tmp_path, tries=2, busy_tries=2) as (it, client):
        talkative = error("DH-905", f"bad token {it.token}")
        faults = [(400, talkative), (401, talkative | {"errorCode": "DH-901"}), (500, it.token.encode()), (200, b"{")]
        said = ""
        for status, content in faults:
            it.rest.instead.extend([(HTTPStatus(status), content)] * 2)
            with pytest.raises(PipelineError) as caught:
                await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
            said += "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
            it.rest.instead.clear()
        async with it.client("http://127.0.0.1:1") as unreachable:
            with pytest.raises(UnavailableError, match="cannot be reached") as failed:
                await unreachable.minute_bars(RELIANCE, "EQUITY", *HOUR)
            said += "".join(traceback.format_exception(failed.value)) + repr(failed.value.__context__)
        assert it.token not in said + caplog.text


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    waiting = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await waiting.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with broker(tmp_path, timeout_s=0.05, tries=2) as (it, _), it.client(url) as client:
        with pytest.raises(UnavailableError, match="it does not answer"):
            await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
    waiting.set()
    server.close()
    await server.wait_closed()


async def test_a_client_that_meets_the_limit_gets_everything_in_the_end(tmp_path: Path) -> None:
    async with broker(tmp_path, first_pause_s=0.1, longest_pause_s=0.2, busy_tries=50) as (it, client):
        it.rest.requests_a_second, it.rest.quotes_a_second, it.rest.rate_window_s = 5, 1, 0.2
        bars = [client.minute_bars(token, kind, *HOUR) for token, kind in KINDS.items() for _ in range(4)]
        fetched, quotes = await asyncio.gather(
            asyncio.gather(*bars), asyncio.gather(*(client.quotes([token]) for token in KINDS))
        )
    assert [listed(bars) for bars in fetched] == [of(it.watcher, token) for token in KINDS for _ in range(4)]
    assert [list(found) for found in quotes] == [[token] for token in KINDS]


async def test_no_more_is_asked_in_a_day_than_dhan_takes(tmp_path: Path) -> None:
    async with broker(tmp_path, requests_a_day=3) as (it, client):
        for _ in range(3):
            await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        with pytest.raises(RequestsUsedUpError, match="3 requests for data were made today"):
            await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        assert it.rest.asked[INTRADAY] == client.requests_today == 3
        it.clock.at = NOON.replace(hour=0) + timedelta(days=1)
        assert len(await client.minute_bars(RELIANCE, "EQUITY", *HOUR)) == 10
        assert client.requests_today == 1


def test_the_default_pace_is_within_dhan_s_limits() -> None:
    policy = LIMITS
    assert 5 * policy.data_interval_s > 1
    assert policy.quote_interval_s > 1
    assert policy.requests_a_day == 100_000


async def test_a_bar_is_asked_for_no_earlier_than_it_is_given(tmp_path: Path) -> None:
    async with broker(tmp_path, later=0) as (it, client):
        bars = await client.minute_bars(RELIANCE, "EQUITY", *HOUR)
        request = {
            **{"securityId": "2885", "exchangeSegment": "NSE_EQ", "instrument": "EQUITY"},
            **{"fromDate": "2026-11-20", "toDate": "2026-11-20"},
        }
        given = intraday(it.market, request, it.clock.now_ns() / 1e9, it.rest.settle_s)
        assert set(bars.time_s.tolist()) < set(given["timestamp"])
