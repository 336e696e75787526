"""`DhanWebSocketClient` against the simulated exchange: what each parameter and each way of calling does."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline.feeds.dhan import DhanTick, DhanWebSocketClient, FeedError, save_token
from dhan_pipeline.feeds.dhan import client as client_module
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.settings import Settings

CLIENT_ID = "1000000001"
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
NIFTY = generate_instrument_token("IDX_I", 13)
INSTRUMENTS = [("NSE_EQ", 2885), ("IDX_I", 13)]


@pytest.fixture
async def simulator() -> AsyncIterator[DhanSimulator]:
    async with DhanSimulator([RELIANCE, NIFTY], rate=500) as simulator:
        yield simulator


@pytest.fixture
def settings(simulator: DhanSimulator, tmp_path: Path) -> Settings:
    save_token(tmp_path / "token.json", make_token(CLIENT_ID), CLIENT_ID)
    return Settings(
        _env_file=None,  # type: ignore[call-arg]
        dhan_feed_url=simulator.feed_url,
        dhan_api_url=simulator.rest_url,
        dhan_token_file=tmp_path / "token.json",
        data_dir=tmp_path / "data",
    )


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    "instruments",
    [
        [("NSE_EQ", 2885), ("IDX_I", 13)],
        (("NSE_EQ", "2885"), ("IDX_I", "13")),
        [(1, "2885"), (0, "13")],
        [["NSE_EQ", 2885], ["IDX_I", 13]],
        [{"ExchangeSegment": "NSE_EQ", "SecurityId": "2885"}, {"ExchangeSegment": "IDX_I", "SecurityId": 13}],
        [{"ExchangeSegment": 1, "SecurityId": 2885}, {"ExchangeSegment": 0, "SecurityId": "13"}],
    ],
)
@pytest.mark.parametrize(("mode", "code"), [("ticker", 2), ("Quote", 4), ("FULL", 8)])
async def test_instruments_and_modes_may_be_written_in_several_ways(
    settings: Settings, simulator: DhanSimulator, instruments: Any, mode: str, code: int
) -> None:
    ticks: list[DhanTick] = []
    client = DhanWebSocketClient(ticks.append, settings=settings)
    await client.connect()
    await client.subscribe(instruments, mode)
    await until(lambda: {t.security_id for t in ticks if t.response_code == code} == {"2885", "13"})
    await client.unsubscribe(instruments)
    await until(lambda: simulator.connections[0].subscribed == 0)
    await client.close()
    assert {tick.response_code for tick in ticks} <= {code, 5, 6}


async def test_callbacks_may_be_coroutine_functions_and_are_awaited_in_order(
    settings: Settings, simulator: DhanSimulator
) -> None:
    plain: list[DhanTick] = []
    told: list[str] = []
    ticks: list[DhanTick] = []
    busy = 0

    async def on_tick(tick: DhanTick) -> None:
        nonlocal busy
        busy += 1
        assert busy == 1, "two at once"
        await asyncio.sleep(0)
        ticks.append(tick)
        busy -= 1

    async def on_connect() -> None:
        told.append("connect")

    async def on_error(error: Exception) -> None:
        told.append(type(error).__name__)

    async def on_close() -> None:
        await asyncio.sleep(0.01)
        told.append("close")

    both = DhanWebSocketClient(
        lambda tick: plain.append(tick) or on_tick(tick),  # type: ignore[func-returns-value]
        on_connect,
        on_error,
        on_close,
        reconnect_delay=0.001,
        settings=settings,
    )
    await both.connect()
    await both.subscribe(INSTRUMENTS, "full")
    await until(lambda: len(ticks) > 50)
    simulator.reset()
    await until(lambda: told == ["connect", "FeedError", "connect"])
    count = len(ticks)
    await until(lambda: len(ticks) > count + 50)
    await both.close()
    assert told == ["connect", "FeedError", "connect", "close"]
    assert ticks == plain
    assert both.get_stats()["waiting_callbacks"] == 0


async def test_a_mistake_in_a_coroutine_function_is_told_and_ends_nothing(settings: Settings) -> None:
    errors: list[Exception] = []

    async def on_tick(tick: DhanTick) -> None:
        raise ZeroDivisionError

    async def on_error(error: Exception) -> None:
        errors.append(error)
        raise ValueError("and again")

    client = DhanWebSocketClient(on_tick, on_error=on_error, settings=settings)
    await client.subscribe(INSTRUMENTS)
    await client.connect()
    await until(lambda: len(errors) > 10)
    assert client.get_stats()["connected"]
    await client.close()
    assert {type(error) for error in errors} == {ZeroDivisionError}


async def test_a_callback_may_close_the_client(settings: Settings) -> None:
    ticks: list[DhanTick] = []

    async def on_tick(tick: DhanTick) -> None:
        await client.close()
        ticks.append(tick)

    client = DhanWebSocketClient(on_tick, settings=settings)
    await client.subscribe(INSTRUMENTS)
    await client.start()
    assert ticks
    assert not client.get_stats()["connected"]


async def test_callbacks_that_take_too_long_at_the_end_are_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_LAST_CALLBACKS_S", 0.05)
    begun: list[DhanTick] = []

    async def on_tick(tick: DhanTick) -> None:
        begun.append(tick)
        await asyncio.Event().wait()

    client = DhanWebSocketClient(on_tick, settings=settings)
    await client.subscribe(INSTRUMENTS)
    await client.connect()
    await until(lambda: client.get_stats()["waiting_callbacks"] > 10)
    await client.close()
    assert len(begun) == 1
    assert client.get_stats()["waiting_callbacks"] == 0


@pytest.mark.parametrize("ping_interval", [None, 0.01])
async def test_a_keepalive_is_ours_only_where_it_is_asked_for(
    settings: Settings, simulator: DhanSimulator, ping_interval: float | None
) -> None:
    ticks: list[DhanTick] = []
    errors: list[Exception] = []
    client = DhanWebSocketClient(
        ticks.append,
        on_error=errors.append,
        ping_interval=ping_interval,
        ping_timeout=0.1,
        reconnect_delay=60,
        settings=settings,
    )
    await client.subscribe(INSTRUMENTS)
    await client.connect()
    await until(lambda: ticks)
    async with happening(simulator, parse_fault("slow-reader")):  # packets come, but nothing that is sent is taken
        if ping_interval:
            await until(lambda: errors)
            assert not client.get_stats()["connected"]
        else:
            await until(lambda: len(ticks) > 200)
            assert not errors
    await client.close()


@pytest.mark.parametrize("attempts", [0, 3])
async def test_so_many_attempts_in_a_row_may_fail(
    settings: Settings, simulator: DhanSimulator, caplog: pytest.LogCaptureFixture, attempts: int
) -> None:
    simulator.faults.refuse = HTTPStatus.SERVICE_UNAVAILABLE
    client = DhanWebSocketClient(
        lambda tick: None, max_reconnect_attempts=attempts, reconnect_delay=0.001, settings=settings
    )
    with pytest.raises(FeedError, match="503"):
        await client.start()
    assert caplog.text.count("Dhan's connection 0 is down") == attempts


async def test_the_first_wait_is_as_long_as_told(
    settings: Settings, simulator: DhanSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    simulator.faults.refuse = HTTPStatus.SERVICE_UNAVAILABLE
    client = DhanWebSocketClient(lambda tick: None, reconnect_delay=40, settings=settings)
    running = asyncio.create_task(client.start())
    await until(lambda: "Trying again" in caplog.text)
    await client.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    [wait] = re.findall(r"Trying again in ([0-9.]+) s", caplog.text)
    assert 20 <= float(wait) <= 40


async def test_without_a_limit_it_goes_on_until_the_exchange_is_back(
    settings: Settings, simulator: DhanSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    simulator.faults.refuse = HTTPStatus.SERVICE_UNAVAILABLE
    connected: list[bool] = []
    client = DhanWebSocketClient(
        lambda tick: None, lambda: connected.append(True), reconnect_delay=0.001, settings=settings
    )
    running = asyncio.create_task(client.start())
    await until(lambda: caplog.text.count("Trying again") > 5)
    assert not connected
    assert not running.done()
    simulator.faults.refuse = None
    await until(lambda: connected)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert not client.get_stats()["connected"]
