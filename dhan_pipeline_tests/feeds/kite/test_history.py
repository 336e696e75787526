"""The client against the simulator's pages, which have the market's own bars; and against what goes wrong."""

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.errors import (
    AnswerError,
    BadRequestError,
    BusyError,
    CredentialsError,
    NoDataPlanError,
    RestError,
    TokenRejectedError,
    UnavailableError,
)
from dhan_pipeline.feeds.history import BrokerBars
from dhan_pipeline.feeds.kite.auth import save_kite_token
from dhan_pipeline.feeds.kite.history import KiteHistory
from dhan_pipeline.feeds.kite.rest import LIMITS
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of, kite_token_of
from dhan_pipeline.feeds.simulator.kite_history import answers
from dhan_pipeline.feeds.simulator.kite_rest import HISTORICAL_PATH, QUOTE_PATH, KiteRest, error
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.tokens import API_KEY, make_kite_access_token
from dhan_pipeline.instruments import ExchangeSegment, KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import NULL_INT
from dhan_pipeline_tests.feeds.simulator.trading import NOON, SetClock, Watcher

NIFTY = 256265
RELIANCE = make_kite_token(KiteSegment.NSE, 2885)
FUTURE = make_kite_token(KiteSegment.NFO, 68407)
KINDS = {NIFTY: "EQ", RELIANCE: "EQ", FUTURE: "FUT"}

NOON_NS = int(NOON.timestamp()) * 1_000_000_000
MINUTE_NS = 60 * 1_000_000_000
DAY_NS = 1440 * MINUTE_NS
HOUR = (NOON_NS, NOON_NS + 60 * MINUTE_NS)

QUICK: dict[str, Any] = {
    "data_interval_s": 0.0,
    "quote_interval_s": 0.0,
    "first_pause_s": 0.001,
    "longest_pause_s": 0.01,
    "busy_tries": 4,
}


class Broker:
    """A market that has traded for some minutes from noon, and is `later` minutes further; its REST; its token."""

    def __init__(self, tmp_path: Path, tokens: list[int], minutes: int, later: int, policy: dict[str, Any]) -> None:
        self.clock = SetClock()
        self.market = Market([dhan_token_of(token) for token in tokens], clock=self.clock)
        self.watcher = Watcher(self.market)
        for _ in range(minutes):
            self.watcher.trade(12 * len(tokens))
            self.clock.at += timedelta(minutes=1)
        self.clock.at += timedelta(minutes=later)
        self.rest = KiteRest(self.clock, requests_a_second=10_000, quotes_a_second=10_000)
        self.rest.give = answers(self.market, self.clock)
        self.token_file = tmp_path / "kite_token.json"
        self.token = self.make_token()
        self.policy = RestPolicy(**(QUICK | policy))

    def make_token(self, **options: Any) -> str:
        """One that is in the token file from now on."""
        token = make_kite_access_token(clock=self.clock, **options)
        save_kite_token(self.token_file, token, API_KEY)
        return token

    def client(self, url: str | None = None) -> KiteHistory:
        facts: dict[str, Any] = {
            "data_source": "kite",
            "kite_token_file": self.token_file,
            "kite_api_url": url or f"http://127.0.0.1:{self.rest.port}/",
        }
        return KiteHistory(Settings(_env_file=None, **facts), self.clock, self.policy)

    def refuse(self, *answers: Any) -> None:
        self.rest.instead.extend(answers)


@asynccontextmanager
async def broker(
    tmp_path: Path, tokens: list[int] | None = None, minutes: int = 10, later: int = 5, **policy: Any
) -> AsyncIterator[tuple[Broker, KiteHistory]]:
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
        for time_s, bar in watcher.bars[dhan_token_of(token)].items()
    ]


async def test_the_bars_are_those_of_the_packets_of_every_instrument_and_minute(tmp_path: Path) -> None:
    tokens = [
        kite_token_of(generate_instrument_token(segment, number))
        for segment in ExchangeSegment
        for number in range(1, 4)
    ]
    async with broker(tmp_path, tokens) as (it, client):
        fetched = await asyncio.gather(*(client.minute_bars(token, "EQ", *HOUR) for token in tokens))
    assert sum(map(len, fetched)) > 8 * len(tokens)
    for token, bars in zip(tokens, fetched, strict=True):
        assert listed(bars) == of(it.watcher, token)


async def test_the_range_includes_its_start_and_not_its_end(tmp_path: Path) -> None:
    async with broker(tmp_path) as (_, client):
        bars = await client.minute_bars(RELIANCE, "EQ", NOON_NS + 2 * MINUTE_NS, NOON_NS + 5 * MINUTE_NS)
        assert (bars.time_s - NOON_NS // 1_000_000_000).tolist() == [120, 180, 240]
        bars = await client.minute_bars(RELIANCE, "EQ", NOON_NS + 1, NOON_NS + 2 * MINUTE_NS + 1)
        assert (bars.time_s - NOON_NS // 1_000_000_000).tolist() == [60, 120]


async def test_minutes_that_have_just_passed_are_not_asked_for(tmp_path: Path) -> None:
    async with broker(tmp_path, later=0) as (it, client):
        bars = await client.minute_bars(RELIANCE, "EQ", *HOUR)
        assert (bars.time_s - NOON_NS // 1_000_000_000).tolist() == [60 * minute for minute in range(7)]
        recent = await client.minute_bars(RELIANCE, "EQ", NOON_NS + 7 * MINUTE_NS, NOON_NS + 99 * MINUTE_NS)
        assert len(recent) == 0
        assert it.rest.asked[HISTORICAL_PATH] == 1


async def test_a_range_of_more_than_sixty_days_is_several_requests_and_no_bar_comes_twice(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        start = NOON_NS + 3 * MINUTE_NS - 118 * DAY_NS  # the second request ends in the middle of the bars
        bars = await client.minute_bars(RELIANCE, "EQ", start, HOUR[1])
        assert listed(bars) == of(it.watcher, RELIANCE)
        assert it.rest.asked[HISTORICAL_PATH] == client.requests_today == 3


async def test_the_day_s_bar_begins_at_midnight_in_india(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        bars = await client.daily_bars(RELIANCE, "EQ", date(2026, 11, 18), date(2026, 11, 20))
        (day,) = it.market.day_bar(1)
        assert bars.time_s.tolist() == [int(NOON.replace(hour=0).timestamp())]
        assert [bars.open[0], bars.high[0], bars.low[0], bars.close[0]] == [
            day[name] for name in ("open", "high", "low", "close")
        ]
        assert (bars.volume[0], bars.oi[0]) == (day["volume"], day["oi"])
        assert len(await client.daily_bars(RELIANCE, "EQ", date(2026, 11, 18), date(2026, 11, 19))) == 0
        assert len(await client.daily_bars(RELIANCE, "EQ", date(2026, 11, 20), date(2026, 11, 19))) == 0
        assert it.rest.asked[HISTORICAL_PATH] == 2
        assert len(await client.daily_bars(RELIANCE, "EQ", date(2018, 1, 1), date(2026, 11, 20))) == 1
        assert it.rest.asked[HISTORICAL_PATH] == 4


async def test_prices_have_the_decimals_of_the_segment(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        for token, price in ((RELIANCE, 1234.57), (make_kite_token(KiteSegment.CDS, 5), 84.5675)):
            candle = ["2026-11-20T12:00:00+0530", *[price + 1e-7] * 4, 7, 0]
            it.refuse((HTTPStatus.OK, {"status": "success", "data": {"candles": [candle]}}))
            assert (await client.minute_bars(token, "EQ", *HOUR)).close.tolist() == [price]


async def test_quotes_are_asked_for_five_hundred_at_a_time(tmp_path: Path) -> None:
    tokens = [make_kite_token(KiteSegment.NSE, number) for number in range(1, 700)] + [NIFTY]
    unknown = make_kite_token(KiteSegment.BSE, 500325)
    async with broker(tmp_path, tokens, minutes=0) as (it, client):
        quotes = await client.quotes([*tokens, unknown, tokens[0]])
        assert it.rest.asked[QUOTE_PATH] == 2
    assert list(quotes) == tokens
    traded = [quote.last_trade_time_us for quote in quotes.values() if quote.last_trade_time_us != NULL_INT]
    assert 0 < len(traded) < len(tokens)
    assert set(traded) == {NOON_NS // 1000}
    assert all(quote.last_price > 0 and quote.previous_close > 0 for quote in quotes.values())
    assert quotes[NIFTY].volume == 0


async def test_what_is_another_broker_s_is_not_asked_for(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        theirs = generate_instrument_token("NSE_EQ", 2885)
        with pytest.raises(ValueError, match="not a Kite instrument token"):
            await client.minute_bars(theirs, "EQ", *HOUR)
        with pytest.raises(ValueError, match="not a Kite instrument token"):
            await client.quotes([theirs])
        assert it.rest.asked.total() == 0


BUSY = error("NetworkException", "Too many requests", HTTPStatus.TOO_MANY_REQUESTS)


@pytest.mark.parametrize(
    "faults",
    [
        [BUSY, (HTTPStatus.TOO_MANY_REQUESTS, b"<html>")],
        [error("GeneralException", "Something went wrong", HTTPStatus.INTERNAL_SERVER_ERROR)],
        [error("DataException", "Unknown content-type", HTTPStatus.BAD_GATEWAY)],
        [(HTTPStatus.SERVICE_UNAVAILABLE, b""), (HTTPStatus.GATEWAY_TIMEOUT, b"<html>"), (HTTPStatus.OK, b"")],
    ],
    ids=["busy", "general", "data", "away"],
)
async def test_what_passes_is_waited_for(tmp_path: Path, faults: list[Any]) -> None:
    async with broker(tmp_path) as (it, client):
        it.refuse(*faults)
        assert len(await client.minute_bars(RELIANCE, "EQ", *HOUR)) == 10
        assert it.rest.asked[HISTORICAL_PATH] == len(faults) + 1


@pytest.mark.parametrize(
    ("answer", "kind", "code", "asked"),
    [
        (error("InputException", "invalid token"), BadRequestError, "InputException", 1),
        ((HTTPStatus.NOT_FOUND, b"<html>"), BadRequestError, "HTTP 404", 1),
        (error("UserException", "The account is blocked."), RestError, "UserException", 1),
        (error("PermissionException", "No.", HTTPStatus.FORBIDDEN), NoDataPlanError, "PermissionException", 1),
        (BUSY, BusyError, "NetworkException", 4),
        (error("NetworkException", "No.", HTTPStatus.SERVICE_UNAVAILABLE), UnavailableError, "NetworkException", 4),
        ((HTTPStatus.SERVICE_UNAVAILABLE, b""), UnavailableError, "HTTP 503", 4),
    ],
)
async def test_what_does_not_pass_is_an_error_that_says_what(
    tmp_path: Path, answer: Any, kind: type[RestError], code: str, asked: int
) -> None:
    async with broker(tmp_path) as (it, client):
        it.refuse(*[answer] * 20)
        with pytest.raises(RestError, match=r"^Kite does not give the bars \(minutes\) of NSE 2885: .*\.$") as caught:
            await client.minute_bars(RELIANCE, "EQ", *HOUR)
        assert (type(caught.value), caught.value.code) == (kind, code)
        assert it.rest.asked[HISTORICAL_PATH] == asked


CANDLE = ["2026-11-20T12:00:00+0530", 1.0, 2.0, 0.5, 1, 7, 3]


def candles(*rows: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"candles": [*rows]}}


@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        b"[]",
        {"status": "success"},
        {"status": "success", "data": None},
        {"status": "success", "data": {"candles": None}},
        {"status": "success", "data": {"candles": {}}},
        {"status": "success", "data": {"candles": "none"}},
        candles(CANDLE[:5]),
        candles(CANDLE, CANDLE[:6]),
        candles([]),
        candles(7),
        candles(["2026-11-20 noon", *CANDLE[1:]]),
        candles(["2026-11-20T12:00:00", *CANDLE[1:]]),
        candles([1795156200, *CANDLE[1:]]),
        candles(["1970-01-01T05:30:00+0530", *CANDLE[1:]]),
        candles([CANDLE[0], "1.0", *CANDLE[2:]]),
        candles([CANDLE[0], None, *CANDLE[2:]]),
        candles([*CANDLE[:5], 7.5, 3]),
        candles([*CANDLE[:5], -7, 3]),
    ],
)
async def test_an_answer_of_another_shape_is_an_error_and_not_an_exception_of_a_parser(
    tmp_path: Path, content: Any
) -> None:
    async with broker(tmp_path) as (it, client):
        it.refuse((HTTPStatus.OK, content))
        with pytest.raises(AnswerError):
            await client.minute_bars(RELIANCE, "EQ", *HOUR)


async def test_candles_may_come_in_any_order_in_any_time_zone_without_open_interest(tmp_path: Path) -> None:
    async with broker(tmp_path) as (it, client):
        later = ["2026-11-20T06:31:00+00:00", 2.0, 2.0, 2.0, 2.0, 7, None]
        it.refuse((HTTPStatus.OK, candles(later, CANDLE)), (HTTPStatus.OK, candles(CANDLE[:6])))
        bars = await client.minute_bars(RELIANCE, "EQ", *HOUR)
        assert (bars.close.tolist(), bars.oi.tolist()) == ([1.0, 2.0], [3, NULL_INT])
        assert (await client.minute_bars(RELIANCE, "EQ", *HOUR)).oi.tolist() == [NULL_INT]


@pytest.mark.parametrize(
    "content",
    [
        {"status": "success"},
        {"status": "success", "data": []},
        {"status": "success", "data": {"NSE:RELIANCE": {"last_price": 1}}},
        {"status": "success", "data": {"738561": {"instrument_token": 738561}}},
        {"status": "success", "data": {"738561": {"instrument_token": 738561, "last_price": "x"}}},
    ],
)
async def test_quotes_of_another_shape_are_an_error(tmp_path: Path, content: Any) -> None:
    async with broker(tmp_path) as (it, client):
        it.refuse((HTTPStatus.OK, content))
        with pytest.raises(AnswerError):
            await client.quotes([RELIANCE])


async def test_a_token_that_is_refused_is_read_again_and_one_for_good_is_one_sentence(tmp_path: Path) -> None:
    class Renewing(deque[Any]):
        def popleft(self) -> Any:
            it.make_token()
            return super().popleft()

    async with broker(tmp_path) as (it, client):
        it.rest.instead = Renewing([error("TokenException", "Token is invalid.", HTTPStatus.FORBIDDEN)])
        assert len(await client.minute_bars(RELIANCE, "EQ", *HOUR)) == 10
        it.make_token(expires_in=-1.0)
        it.rest.asked.clear()
        with pytest.raises(TokenRejectedError) as caught:
            await client.minute_bars(RELIANCE, "EQ", *HOUR)
        assert it.rest.asked[HISTORICAL_PATH] == 1  # there was no other to try
        assert str(caught.value) == (
            "Kite does not accept the access token (TokenException Incorrect `api_key` or `access_token`), which comes"
            f" from the token file {it.token_file}: make a new one with `dhan-pipeline token generate --source kite`."
        )
        it.token_file.unlink()
        with pytest.raises(CredentialsError, match="There is no token file"):
            await client.quotes([RELIANCE])


async def test_no_error_and_no_log_line_has_the_token_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with broker(tmp_path, tries=2, busy_tries=2) as (it, client):
        said = ""
        for answer in (
            error("InputException", f"bad token {it.token}"),
            error("TokenException", f"bad token {it.token}", HTTPStatus.FORBIDDEN),
            (HTTPStatus.INTERNAL_SERVER_ERROR, it.token.encode()),
        ):
            it.refuse(*[answer] * 2)
            with pytest.raises(PipelineError) as caught:
                await client.minute_bars(RELIANCE, "EQ", *HOUR)
            said += "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
            it.rest.instead.clear()
        for address in ("http://127.0.0.1:1", "http://127.0.0.1:1/\ud800"):
            async with it.client(address) as unreachable:
                with pytest.raises(UnavailableError, match="cannot be reached; is KITE_API_URL right") as failed:
                    await unreachable.minute_bars(RELIANCE, "EQ", *HOUR)
                said += "".join(traceback.format_exception(failed.value)) + repr(failed.value.__context__)
        assert it.token not in said + caplog.text


async def test_a_client_that_meets_the_limit_gets_everything_in_the_end(tmp_path: Path) -> None:
    async with broker(tmp_path, first_pause_s=0.1, longest_pause_s=0.2, busy_tries=50) as (it, client):
        it.rest.requests_a_second, it.rest.quotes_a_second, it.rest.rate_window_s = 3, 1, 0.2
        bars = [client.minute_bars(token, kind, *HOUR) for token, kind in KINDS.items() for _ in range(2)]
        fetched, quotes = await asyncio.gather(
            asyncio.gather(*bars), asyncio.gather(*(client.quotes([token]) for token in KINDS))
        )
    assert [listed(bars) for bars in fetched] == [of(it.watcher, token) for token in KINDS for _ in range(2)]
    assert [list(found) for found in quotes] == [[token] for token in KINDS]


def test_the_default_pace_is_within_kite_s_limits() -> None:
    assert 3 * LIMITS.data_interval_s > 1
    assert LIMITS.quote_interval_s > 1
    assert LIMITS.requests_a_day is None
