import asyncio
import json
import struct
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedOK, InvalidStatus

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.kite.wire import FULL, INDEX_FULL, INDEX_QUOTE, LTP, QUOTE
from dhan_pipeline.feeds.simulator import kite
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.exchange import HEARTBEAT
from dhan_pipeline.feeds.simulator.kite import KINDS, TEXT, KiteSimulator
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.tokens import API_KEY, make_kite_access_token
from dhan_pipeline.instruments import KiteSegment, make_kite_token
from dhan_pipeline.sessions import IST
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.feeds.simulator import kite_ticker, talking
from dhan_pipeline_tests.feeds.simulator.talking import kite_client, kite_packets, split_message
from dhan_pipeline_tests.feeds.simulator.trading import NOON, SetClock

RELIANCE, NIFTY, BANKNIFTY = 738561, 256265, 260105
FUTURE = make_kite_token(KiteSegment.NFO, 68407)
RUPEE, RUPEE_BSE = make_kite_token(KiteSegment.CDS, 1234), make_kite_token(KiteSegment.BCD, 1234)
SENSEX, GOLD = 265, make_kite_token(KiteSegment.MCX, 400_000)
EVERYTHING = [RELIANCE, NIFTY, BANKNIFTY, FUTURE, RUPEE, RUPEE_BSE, SENSEX, GOLD]


async def ask(websocket: ClientConnection, action: str, value: object) -> None:
    await websocket.send(json.dumps({"a": action, "v": value}))


def equities(count: int) -> list[int]:
    return [make_kite_token(KiteSegment.NSE, number) for number in range(1, count + 1)]


def state(market: Market, token: int) -> Any:
    """The market's instrument as Dhan's full packet has it."""
    index = market.index_of(dhan_token_of(token))
    assert index is not None
    return market.packets(ResponseCode.FULL, np.array([index]))[0]


def paise(price: float, divisor: int = 100) -> int:
    """A price in units of the divisor, exactly."""
    return round(round(float(price), 4) * divisor)


async def test_a_subscription_alone_begins_with_a_quote_packet() -> None:
    async with KiteSimulator([RELIANCE], rate=0) as simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", [RELIANCE])
        message = await websocket.recv()
    assert isinstance(message, bytes)
    assert message[:8] == bytes.fromhex("0001 002c 000b4501")
    assert len(message) == 2 + 2 + QUOTE


async def test_a_mode_begins_with_a_packet_of_it() -> None:
    async with KiteSimulator([RELIANCE, NIFTY], rate=0) as simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", [RELIANCE, NIFTY])
        assert sorted(map(len, await kite_packets(websocket, 2))) == [INDEX_QUOTE, QUOTE]
        await ask(websocket, "mode", ["full", [RELIANCE, NIFTY]])
        assert sorted(map(len, await kite_packets(websocket, 2))) == [INDEX_FULL, FULL]
        await ask(websocket, "mode", ["ltp", [NIFTY, RELIANCE]])
        message = await websocket.recv()
    assert isinstance(message, bytes)
    assert message[:8] == bytes.fromhex("0002 0008 0003e909")
    assert message[12:18] == bytes.fromhex("0008 000b4501")
    assert len(message) == 22


@pytest.mark.parametrize(
    ("token", "divisor"), [(RELIANCE, 100), (FUTURE, 100), (GOLD, 100), (RUPEE, 10_000_000), (RUPEE_BSE, 10_000)]
)
async def test_a_full_packet_says_what_the_market_is_at(token: int, divisor: int) -> None:
    simulator = KiteSimulator([token], rate=0, clock=SetClock(), seed=3)
    list(simulator.market.step(20))
    async with simulator, kite_client(simulator, make_kite_access_token(clock=SetClock())) as websocket:
        await ask(websocket, "subscribe", [token])
        (quote,) = await kite_packets(websocket, 1)
        await ask(websocket, "mode", ["full", [token]])
        (full,) = await kite_packets(websocket, 1)
    now = state(simulator.market, token)
    assert full[:QUOTE] == quote
    assert struct.unpack(">11I", quote) == (
        token,
        paise(now["last_price"], divisor),
        now["last_traded_quantity"],
        round(float(now["average_traded_price"]) * divisor),
        now["volume_traded"],
        now["total_buy_quantity"],
        now["total_sell_quantity"],
        *(paise(now[f"day_{name}"], divisor) for name in ("open", "high", "low", "close")),
    )
    noon_s = int(NOON.timestamp())
    assert struct.unpack_from(">5I", full, 44) == (noon_s, now["oi"], now["oi_day_high"], now["oi_day_low"], noon_s)
    assert [struct.unpack_from(">IIH2x", full, 64 + 12 * level) for level in range(10)] == [
        (level[f"{side}_quantity"], paise(level[f"{side}_price"], divisor), level[f"{side}_orders"])
        for side in ("bid", "ask")
        for level in now["depth"]
    ]


async def test_an_index_packet_says_what_the_index_is_at_and_by_how_much_it_moved() -> None:
    simulator = KiteSimulator([NIFTY, BANKNIFTY, SENSEX], rate=0, clock=SetClock())
    changes = []
    async with simulator, kite_client(simulator, make_kite_access_token(clock=SetClock())) as websocket:
        await ask(websocket, "subscribe", [NIFTY, BANKNIFTY, SENSEX])
        quotes = await kite_packets(websocket, 3)
        await ask(websocket, "mode", ["full", [NIFTY, BANKNIFTY, SENSEX]])
        for quote, full in zip(quotes, await kite_packets(websocket, 3), strict=True):
            assert full == quote + struct.pack(">I", int(NOON.timestamp()))
            token, *prices, change = struct.unpack(">6Ii", quote)
            now = state(simulator.market, token)
            names = ("last_price", "day_high", "day_low", "day_open", "day_close")
            assert prices == [paise(now[name]) for name in names]
            assert change == prices[0] - prices[4]
            changes.append(change)
    assert min(changes) < 0 < max(changes)


async def test_what_was_never_traded_has_no_trade_time() -> None:
    simulator = KiteSimulator(equities(500), rate=0, packets_a_message=100)
    async with simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", equities(500))
        await kite_packets(websocket, 500)
        await ask(websocket, "mode", ["full", equities(500)])
        received = await kite_packets(websocket, 500)
    never = [
        packet for packet in received if state(simulator.market, *struct.unpack(">I", packet[:4]))["day_open"] == 0
    ]
    assert never
    assert {packet[44:48] for packet in never} == {bytes(4)}


async def test_packets_come_several_in_a_message_and_no_more_than_are_allowed() -> None:
    simulator = KiteSimulator(equities(10), rate=0, packets_a_message=4)
    async with simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", equities(10))
        messages = [await websocket.recv(decode=False) for _ in range(3)]
    assert [len(split_message(message)) for message in messages] == [4, 4, 2]
    tokens = [struct.unpack(">I", packet[:4])[0] for message in messages for packet in split_message(message)]
    assert tokens == equities(10)


async def test_every_event_is_a_packet_for_whoever_subscribed() -> None:
    async with KiteSimulator(EVERYTHING, rate=3000) as simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", EVERYTHING)
        await ask(websocket, "mode", ["full", [RELIANCE, NIFTY]])
        await until(lambda: simulator.sent.total() > 1000)
        simulator.rate = 0
        simulator.flush()
        await kite_packets(websocket, simulator.sent.total())
        assert set(simulator.sent) == {QUOTE, FULL, INDEX_QUOTE, INDEX_FULL}
        assert [KINDS[size] for size in sorted(simulator.sent)] == ["index quote", "index full", "quote", "full"]


async def test_what_follows_a_first_packet_is_never_older_than_it() -> None:
    async with KiteSimulator(equities(20), rate=20_000) as simulator, kite_client(simulator) as websocket:
        volume: dict[int, int] = {}
        await ask(websocket, "subscribe", equities(20))
        for _ in range(20):
            await ask(websocket, "mode", ["quote", equities(20)])
            for _ in range(5):
                message = await websocket.recv()
                assert isinstance(message, bytes)
                for packet in split_message(message):
                    token, traded = struct.unpack_from(">I12xI", packet)
                    assert traded >= volume.get(token, 0)
                    volume[token] = traded
    assert len(volume) == 20


async def test_what_is_unsubscribed_falls_silent_and_the_rest_goes_on() -> None:
    async with KiteSimulator([RELIANCE, NIFTY], rate=2000) as simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", [RELIANCE, NIFTY])
        await until(lambda: simulator.sent[QUOTE] > 20)
        await ask(websocket, "unsubscribe", [RELIANCE])
        (connection,) = simulator.connections
        await until(lambda: connection.subscribed == 1)
        before = simulator.sent.copy()
        await until(lambda: simulator.sent[INDEX_QUOTE] > before[INDEX_QUOTE] + 20)
        assert simulator.sent[QUOTE] == before[QUOTE]


async def test_what_does_not_exist_meets_silence_and_what_is_not_subscribed_gets_no_mode() -> None:
    async with KiteSimulator([RELIANCE, NIFTY], rate=0) as simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", [5, RELIANCE, 1 << 40, -1, RELIANCE])
        await ask(websocket, "mode", ["ltp", [RELIANCE, NIFTY]])
        assert [len(packet) for packet in await kite_packets(websocket, 2)] == [QUOTE, LTP]
        assert simulator.sent == {QUOTE: 1, LTP: 1}


@pytest.mark.parametrize(
    "message",
    [
        "no JSON",
        "[]",
        "{}",
        '{"a":"subscribe"}',
        '{"a":"subscribe","v":null}',
        '{"a":"subscribe","v":["RELIANCE"]}',
        '{"a":"dance","v":[738561]}',
        '{"a":"mode","v":["more",[738561]]}',
        '{"a":"mode","v":[738561]}',
        '{"a":"subscribe","v":[[738561]]}',
        '{"a":"mode","v":[["full"],[738561]]}',
        '{"a":["mode"],"v":[738561]}',
        '{"a":"subscribe","v":[1e999]}',
        10_000 * "[",
    ],
    ids=lambda message: message[:40],
)
async def test_what_cannot_be_understood_is_answered_in_text_and_the_connection_stays(message: str) -> None:
    async with KiteSimulator([RELIANCE], rate=0) as simulator, kite_client(simulator) as websocket:
        await websocket.send(message)
        assert await websocket.recv() == '{"type": "error", "data": "Invalid message"}'
        await ask(websocket, "subscribe", [RELIANCE])
        await kite_packets(websocket, 1)


async def test_3000_instruments_a_connection_are_accepted_and_others_are_told_so_in_text() -> None:
    async with KiteSimulator(equities(3002), rate=0) as simulator, kite_client(simulator) as websocket:
        await ask(websocket, "subscribe", equities(2999))
        await kite_packets(websocket, 2999)
        await ask(websocket, "subscribe", [*equities(10), *equities(3002)[-3:]])
        error = await websocket.recv()
        assert isinstance(error, str)
        assert json.loads(error)["type"] == "error"
        assert "3000" in json.loads(error)["data"]
        await kite_packets(websocket, 1)
        assert simulator.connections[0].subscribed == 3000


async def test_more_than_three_connections_are_let_in() -> None:
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(KiteSimulator([RELIANCE], rate=0))
        for _ in range(4):
            websocket = await stack.enter_async_context(kite_client(simulator))
            await ask(websocket, "subscribe", [RELIANCE])
            await kite_packets(websocket, 1)
        assert len(simulator.connections) == 4


async def test_a_heartbeat_of_one_byte_comes_where_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kite, "HEARTBEAT_S", 0.01)
    async with KiteSimulator([RELIANCE], rate=0) as simulator, kite_client(simulator) as websocket:
        heartbeats = [await websocket.recv() for _ in range(2)]
        assert heartbeats == [b"\0", b"\0"]
        assert simulator.sent.keys() == {HEARTBEAT}


@pytest.mark.parametrize(
    ("api_key", "token"),
    [(API_KEY, "nonsense"), ("another", None), (API_KEY, make_kite_access_token(expires_in=-1))],
    ids=["no token", "another app", "expired"],
)
async def test_wrong_credentials_are_refused_at_the_handshake(api_key: str, token: str | None) -> None:
    async with KiteSimulator([RELIANCE]) as simulator:
        with pytest.raises(InvalidStatus) as refused:
            async with kite_client(simulator, token, api_key):
                pass
        assert refused.value.response.status_code == HTTPStatus.FORBIDDEN


async def test_a_handshake_without_credentials_is_refused() -> None:
    async with KiteSimulator([RELIANCE]) as simulator:
        with pytest.raises(InvalidStatus, match="403"):
            async with talking.connect(simulator.feed_url, proxy=None):
                pass


async def test_a_token_of_the_evening_is_dead_after_six_in_the_morning_by_the_clock_of_the_exchange() -> None:
    clock = SetClock(datetime(2026, 11, 20, 21, 0, tzinfo=IST))
    token = make_kite_access_token(expires_in=9 * 3600, clock=clock)
    async with KiteSimulator([RELIANCE], rate=0, clock=clock) as simulator:
        clock.at += timedelta(hours=9, seconds=-1)
        async with kite_client(simulator, token) as websocket:
            clock.at += timedelta(seconds=2)
            await ask(websocket, "subscribe", [RELIANCE])  # who is in stays in
            await kite_packets(websocket, 1)
        with pytest.raises(InvalidStatus, match="403"):
            async with kite_client(simulator, token):
                pass


async def test_the_same_trades_go_out_over_the_wires_of_both_brokers() -> None:
    clock = Clock()
    dhan = DhanSimulator([dhan_token_of(token) for token in EVERYTHING], rate=2000, clock=clock)
    both = KiteSimulator(trading=dhan.trading, clock=clock)
    seen: dict[str, list[tuple[int, int, int, int]]] = {"dhan": [], "kite": []}
    future = ("NSE_FNO", "68407")
    async with dhan, both, talking.client(dhan) as dhans, kite_client(both) as kites:
        dhan.rate = 0
        await talking.request(dhans, talking.FULL, [future])
        await ask(kites, "subscribe", [FUTURE])
        await until(lambda: dhan.connections[0].subscribed and both.connections[0].subscribed)
        await ask(kites, "mode", ["full", [FUTURE]])
        await until(lambda: both.sent[FULL] == 1)
        dhan.rate = 2000
        await until(lambda: both.sent[FULL] > 200)
        dhan.rate = 0
        dhan.flush()
        for packet in (await talking.packets(dhans, dhan.sent.total()))[2:]:
            _, price, traded_s, volume, oi = struct.unpack_from("<8sf2xI4xI8xI", packet)
            seen["dhan"].append((paise(price), traded_s - 19_800, volume, oi))
        for packet in (await kite_packets(kites, both.sent.total()))[2:]:
            price, volume, traded_s, oi = struct.unpack_from(">4xi8xI24xII", packet)
            seen["kite"].append((price, traded_s, volume, oi))
    assert seen["kite"] == seen["dhan"]
    assert len(seen["kite"]) >= 200  # all full packets but the first, which told of the subscription


async def test_text_reaches_every_client_and_is_counted() -> None:
    async with KiteSimulator([RELIANCE], rate=0) as simulator, kite_client(simulator) as websocket:
        await until(lambda: simulator.connections)
        simulator.send_text({"type": "message", "data": "The market closes early."})
        assert await websocket.recv() == '{"type": "message", "data": "The market closes early."}'
        assert simulator.sent == {TEXT: 1}


async def test_closing_ends_every_connection_and_frees_the_port() -> None:
    async with KiteSimulator([RELIANCE]) as simulator, kite_client(simulator) as websocket:
        port = int(simulator.feed_url.rpartition(":")[2])
        await simulator.aclose()
        with pytest.raises(ConnectionClosedOK, match="1001"):
            await websocket.recv()
    async with KiteSimulator([RELIANCE], port=port):
        pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Ticker:
    """The broker's own client, in a process of its own, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ticks: list[dict[str, Any]] = []
        self.others: list[tuple[str, Any]] = []
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            ((kind, content),) = json.loads(line).items()
            if kind == "ticks":
                self.ticks += content
            else:
                self.others.append((kind, content))


async def test_the_brokers_own_client_reads_the_right_ticks_in_every_mode() -> None:
    modes = {"full": [RELIANCE, FUTURE, RUPEE, RUPEE_BSE, NIFTY], "quote": [GOLD, BANKNIFTY], "ltp": [SENSEX]}
    arguments = {"api_key": API_KEY, "access_token": make_kite_access_token(), "modes": modes}
    async with KiteSimulator(EVERYTHING, rate=500) as simulator:
        command = (sys.executable, "-m", kite_ticker.__name__, simulator.feed_url, json.dumps(arguments))
        ticker = Ticker(await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=DEVNULL, limit=1 << 20))
        try:
            await until(lambda: len(ticker.ticks) > 500)
            simulator.rate = 0
            simulator.flush()
            simulator.send_text({"type": "order", "data": {"order_id": "151220000000000"}})
            await until(lambda: ticker.others)
            ticks = [*ticker.ticks]
        finally:
            ticker.process.terminate()
            await ticker.process.wait()
            await ticker.reading
        sent = simulator.sent.total() - simulator.sent[HEARTBEAT] - simulator.sent[TEXT]
        market = simulator.market
    assert ticker.others[0] == ("order", {"order_id": "151220000000000"})
    assert len(ticks) == sent
    for mode, tokens in modes.items():
        for token in tokens:
            last = [tick for tick in ticks if tick["instrument_token"] == token][-1]
            assert last == expected(market, token, mode, last)


def expected(market: Market, token: int, mode: str, last: dict[str, Any]) -> dict[str, Any]:
    """The tick that the client makes of an instrument as it is. When it was sent is taken as it came."""
    now = state(market, token)
    is_index = token & 0xFF == KiteSegment.INDICES

    def price(name: str, of: Any = now) -> float:
        return round(float(of[name]), 4 if token in (RUPEE, RUPEE_BSE) else 2)

    tick: dict[str, Any] = {
        "tradable": not is_index,
        "mode": mode,
        "instrument_token": token,
        "last_price": price("last_price"),
    }
    if mode == "ltp":
        return tick
    tick["ohlc"] = {name: price(f"day_{name}") for name in ("open", "high", "low", "close")}
    tick["change"] = (tick["last_price"] - tick["ohlc"]["close"]) * 100 / tick["ohlc"]["close"]
    if not is_index:
        names = ("last_traded_quantity", "volume_traded", "total_buy_quantity", "total_sell_quantity")
        tick |= {name: int(now[name]) for name in names}
        tick["average_traded_price"] = last["average_traded_price"]
        assert last["average_traded_price"] == pytest.approx(float(now["average_traded_price"]), abs=0.00501)
    if mode == "full":
        tick["exchange_timestamp"] = last["exchange_timestamp"]
        assert 0 <= time.time() - last["exchange_timestamp"] < 100
    if mode == "full" and not is_index:
        tick["last_trade_time"] = now["last_trade_time"] - 19_800
        tick |= {name: int(now[name]) for name in ("oi", "oi_day_high", "oi_day_low")}
        tick["depth"] = {
            side: [
                {
                    "quantity": level[f"{of}_quantity"],
                    "price": price(f"{of}_price", level),
                    "orders": level[f"{of}_orders"],
                }
                for level in now["depth"]
            ]
            for side, of in (("buy", "bid"), ("sell", "ask"))
        }
    return tick
