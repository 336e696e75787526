import asyncio
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from dhanhq import DhanContext, MarketFeed
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator, choose_instruments, serve
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.instruments import ExchangeSegment, split_instrument_token
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.feeds.simulator.talking import (
    CLIENT,
    FULL,
    FUTURE,
    NIFTY,
    QUOTE,
    RELIANCE,
    TICKER,
    client,
    equities,
    last_words,
    packets,
    request,
    tokens,
)


async def test_a_full_subscription_begins_with_previous_close_and_a_full_packet() -> None:
    async with DhanSimulator(tokens(FUTURE), rate=0) as simulator, client(simulator) as websocket:
        await request(websocket, FULL, [FUTURE])
        previous, full = await packets(websocket, 2)
    assert previous[:8] == bytes.fromhex("06 1000 02 370b0100")
    assert len(previous) == 16
    assert full[:8] == bytes.fromhex("08 a200 02 370b0100")
    assert len(full) == 162
    assert previous[8:12] == full[50:54]


async def test_a_quote_subscription_of_a_derivative_begins_with_its_open_interest_too() -> None:
    async with DhanSimulator(tokens(FUTURE, RELIANCE), rate=0) as simulator, client(simulator) as websocket:
        await request(websocket, QUOTE, [FUTURE, RELIANCE])
        received = await packets(websocket, 5)
    assert [(packet[0], packet[3], len(packet)) for packet in received] == [
        (6, 2, 16),
        (6, 1, 16),
        (5, 2, 12),
        (4, 2, 50),
        (4, 1, 50),
    ]


async def test_a_ticker_subscription_begins_with_previous_close_and_a_ticker() -> None:
    async with DhanSimulator(tokens(NIFTY), rate=0) as simulator, client(simulator) as websocket:
        await request(websocket, TICKER, [NIFTY])
        received = await packets(websocket, 2)
    assert [(packet[0], packet[3], len(packet)) for packet in received] == [(6, 0, 16), (2, 0, 16)]


async def test_events_stream_at_the_rate_to_whoever_subscribed() -> None:
    async with DhanSimulator(tokens(*equities(50)), rate=5000) as simulator, client(simulator) as websocket:
        await request(websocket, FULL, equities(50))
        started = asyncio.get_running_loop().time()
        received = Counter(
            (packet[0], struct.unpack_from("<I", packet, 4)[0]) for packet in await packets(websocket, 5100)
        )
        took = asyncio.get_running_loop().time() - started
    events = [received[8, security_id] for security_id in range(1, 51)]
    assert 100 <= min(events) <= max(events) <= 102  # a snapshot, and 100 rounds
    assert took > 0.9  # no upper bound: the machine may be busy


async def test_the_rate_may_change_while_it_runs() -> None:
    async with DhanSimulator(tokens(RELIANCE), rate=0) as simulator, client(simulator) as websocket:
        await request(websocket, TICKER, [RELIANCE])
        await packets(websocket, 2)
        simulator.rate = 1000
        await packets(websocket, 20)


async def test_an_unsubscribed_mode_falls_silent_and_the_others_go_on() -> None:
    async with DhanSimulator(tokens(RELIANCE, NIFTY), rate=2000) as simulator, client(simulator) as websocket:
        await request(websocket, QUOTE, [RELIANCE])
        await request(websocket, TICKER, [RELIANCE, NIFTY])
        await packets(websocket, 100)
        await request(websocket, 18, [RELIANCE])
        (connection,) = simulator.connections
        await until(lambda: connection.modes.tolist() == [1, 1])
        before = simulator.sent.copy()
        await until(lambda: simulator.sent[ResponseCode.TICKER] > before[ResponseCode.TICKER] + 100)
        assert simulator.sent[ResponseCode.QUOTE] == before[ResponseCode.QUOTE]
        await request(websocket, 16, [RELIANCE, NIFTY])
        await until(lambda: connection.subscribed == 0)


async def test_open_interest_of_a_quote_subscription_is_sent_when_it_changes() -> None:
    async with DhanSimulator(tokens(FUTURE), rate=5000) as simulator, client(simulator) as websocket:
        await request(websocket, QUOTE, [FUTURE])
        await until(lambda: simulator.sent[ResponseCode.OPEN_INTEREST] > 5)
        assert simulator.sent[ResponseCode.QUOTE] > 10 * simulator.sent[ResponseCode.OPEN_INTEREST]


async def test_unknown_instruments_meet_silence() -> None:
    async with DhanSimulator(tokens(RELIANCE), rate=0) as simulator, client(simulator) as websocket:
        unknown = [("NSE_EQ", "1"), ("NSE_XX", "2885"), ("NSE_EQ", "RELIANCE"), ("NSE_EQ", "-1")]
        await request(websocket, TICKER, [*unknown, RELIANCE])
        assert [packet[0] for packet in await packets(websocket, 2)] == [6, 2]
        assert simulator.sent == {ResponseCode.PREVIOUS_CLOSE: 1, ResponseCode.TICKER: 1}


async def test_what_follows_a_snapshot_is_never_older_than_it() -> None:
    async with DhanSimulator(tokens(*equities(20)), rate=20_000) as simulator, client(simulator) as websocket:
        volume = Counter[int]()
        for _ in range(20):
            await request(websocket, FULL, equities(20))
            for packet in await packets(websocket, 500):
                if packet[0] == 8:
                    security_id, volume_traded = struct.unpack_from("<4xI14xI", packet)
                    assert volume_traded >= volume[security_id]
                    volume[security_id] = volume_traded
        assert len(volume) == 20


async def test_several_connections_get_the_same_events() -> None:
    simulator = DhanSimulator(tokens(*equities(20)), rate=2000)
    async with simulator, client(simulator) as first, client(simulator, client_id="2") as second:
        for websocket in (first, second):
            await request(websocket, TICKER, equities(20))
            await packets(websocket, 40)
        newest = (await packets(second, 20))[-1]
        async with asyncio.timeout(10):
            while await first.recv() != newest:
                pass


async def test_packets_sent_are_counted_for_each_connection_and_in_total() -> None:
    async with DhanSimulator(tokens(*equities(20)), rate=2000) as simulator, client(simulator) as first:
        await request(first, FULL, equities(20))
        async with client(simulator) as second:
            await request(second, QUOTE, equities(10))
            await packets(first, 100)
            await packets(second, 100)
            simulator.rate = 0
            sent = [connection.sent for connection in simulator.connections]
            for websocket, counts in zip((first, second), sent, strict=True):
                await packets(websocket, counts.total() - 100)
            assert [set(counts) for counts in sent] == [
                {ResponseCode.PREVIOUS_CLOSE, ResponseCode.FULL},
                {ResponseCode.PREVIOUS_CLOSE, ResponseCode.QUOTE},
            ]
            total = sent[0] + sent[1]
            assert simulator.sent == total
        await until(lambda: len(simulator.connections) == 1)
        assert simulator.sent == total


async def test_stacked_packets_are_an_option() -> None:
    simulator = DhanSimulator(tokens(*equities(10)), rate=0, packets_a_message=4)
    async with simulator, client(simulator) as websocket:
        await request(websocket, FULL, equities(10))
        messages = await packets(websocket, 6)
    assert [len(message) for message in messages] == [64, 64, 32, 648, 648, 324]
    ids = [struct.unpack_from("<I", message, at)[0] for message in messages[3:] for at in range(4, len(message), 162)]
    assert ids == list(range(1, 11))


async def test_heartbeat_and_market_status_come_now_and_then() -> None:
    simulator = DhanSimulator(tokens(RELIANCE), rate=0, status_interval=0.01)
    async with simulator, client(simulator) as websocket:
        assert await packets(websocket, 2) == [
            bytes.fromhex("00 0800 00 00000000"),
            bytes.fromhex("07 0800 01 00000000"),
        ]


@pytest.mark.parametrize("parameter", ["version", "token", "clientId", "authType"])
async def test_the_handshake_is_refused_where_a_parameter_is_missing(parameter: str) -> None:
    async with DhanSimulator(tokens(RELIANCE)) as simulator:
        with pytest.raises(InvalidStatus, match="400"):
            async with client(simulator, replace={parameter: None}):
                pass


@pytest.mark.parametrize("parameter", ["version", "authType"])
async def test_the_handshake_is_refused_where_a_constant_is_wrong(parameter: str) -> None:
    async with DhanSimulator(tokens(RELIANCE)) as simulator:
        with pytest.raises(InvalidStatus, match="400"):
            async with client(simulator, replace={parameter: "1"}):
                pass


@pytest.mark.parametrize(
    ("token", "reason"),
    [(make_token(CLIENT, expires_in=-1), 807), (make_token("42"), 808), ("nonsense", 809), ("a.bm8.c", 809)],
)
async def test_a_wrong_token_is_told_why_and_disconnected(token: str, reason: int) -> None:
    async with DhanSimulator(tokens(RELIANCE)) as simulator, client(simulator, token) as websocket:
        assert await last_words(websocket) == reason
        await until(lambda: not simulator.connections)
        assert simulator.sent == {ResponseCode.DISCONNECT: 1}


async def test_a_token_expires_by_the_clock_of_the_exchange() -> None:
    clock = Clock(start_ns=1_795_000_000_000_000_000)
    simulator = DhanSimulator(tokens(RELIANCE), clock=clock, rate=0)
    async with simulator:
        async with client(simulator, make_token(CLIENT, clock=clock)) as websocket:
            await request(websocket, TICKER, [RELIANCE])
            await packets(websocket, 2)
        async with client(simulator, make_token(CLIENT, expires_in=-5, clock=clock)) as websocket:
            assert await last_words(websocket) == 807


async def test_whom_to_accept_may_be_decided_otherwise() -> None:
    simulator = DhanSimulator(tokens(RELIANCE), accept=lambda client_id, token: None if token == "ok" else 806)
    async with simulator:
        async with client(simulator, "no") as websocket:
            assert await last_words(websocket) == 806
        async with client(simulator, "ok") as websocket:
            await request(websocket, TICKER, [RELIANCE])
            await packets(websocket, 2)


async def test_the_sixth_connection_of_a_client_costs_the_oldest() -> None:
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(DhanSimulator(tokens(RELIANCE), rate=0))
        stranger = await stack.enter_async_context(client(simulator, client_id="2"))
        first, second, *_ = [await stack.enter_async_context(client(simulator)) for _ in range(5)]
        await until(lambda: len(simulator.connections) == 6)
        async with client(simulator) as sixth:
            assert await last_words(first) == 805
            for websocket in (stranger, second, sixth):
                await request(websocket, TICKER, [RELIANCE])
                await packets(websocket, 2)
        await until(lambda: len(simulator.connections) == 5)
        async with client(simulator) as seventh:  # the sixth has gone: there is room again
            for websocket in (second, seventh):
                await request(websocket, TICKER, [RELIANCE])
                await packets(websocket, 2)


async def test_more_than_100_instruments_in_a_message_are_refused() -> None:
    async with DhanSimulator(tokens(*equities(101)), rate=0) as simulator, client(simulator) as websocket:
        await request(websocket, TICKER, equities(100))
        await packets(websocket, 200)
        await request(websocket, TICKER, equities(101))
        assert await last_words(websocket) == 804


async def test_5000_instruments_a_connection_are_accepted_and_one_more_is_not() -> None:
    async with DhanSimulator(tokens(*equities(5001)), rate=0) as simulator, client(simulator) as websocket:
        for start in range(1, 5001, 100):
            await request(websocket, TICKER, equities(100, start))
        await packets(websocket, 10_000)
        await request(websocket, QUOTE, equities(1))  # no further instrument
        await packets(websocket, 2)
        await request(websocket, TICKER, equities(1, 5001))
        assert await last_words(websocket) == 804


@pytest.mark.parametrize("text", ["", "[]", '{"RequestCode":15}', '{"RequestCode":19,"InstrumentList":[]}', '"x"'])
async def test_a_request_that_makes_no_sense_is_refused(text: str) -> None:
    async with DhanSimulator(tokens(RELIANCE), rate=0) as simulator, client(simulator) as websocket:
        await websocket.send(text)
        assert await last_words(websocket) == 814


async def test_a_client_may_ask_to_be_disconnected() -> None:
    async with DhanSimulator(tokens(RELIANCE), rate=0) as simulator, client(simulator) as websocket:
        await websocket.send('{"RequestCode":11}')
        await websocket.send(b"\x0b binary requests are of version 1")
        await websocket.send('{"RequestCode":12}')
        with pytest.raises(ConnectionClosedOK):
            await websocket.recv()
        assert simulator.sent.total() == 0


async def test_every_client_can_be_disconnected_with_a_reason_or_reset() -> None:
    async with DhanSimulator(tokens(RELIANCE), rate=0) as simulator:
        async with client(simulator) as websocket:
            await until(lambda: len(simulator.connections) == 1)
            await simulator.disconnect(800)
            assert await last_words(websocket) == 800
        async with client(simulator) as websocket:
            await until(lambda: len(simulator.connections) == 1)
            simulator.reset()
            with pytest.raises(ConnectionClosedError) as closed:
                await websocket.recv()
            assert isinstance(closed.value.__cause__, ConnectionResetError)
        await until(lambda: not simulator.connections)


async def test_clients_are_pinged_and_dropped_if_they_do_not_answer() -> None:
    simulator = DhanSimulator(tokens(RELIANCE), rate=0, ping_interval=0.02, pong_timeout=0.05)
    async with simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.feed_url.rpartition(":")[2]))
        parameters = urlencode({"version": 2, "token": make_token(CLIENT), "clientId": CLIENT, "authType": 2})
        writer.write(
            f"GET /?{parameters} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        ping = await reader.readexactly(6)
        assert ping[0] == 0x89
        assert b"keepalive" in await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await until(lambda: not simulator.connections)


async def test_a_reader_that_is_too_slow_misses_events_instead_of_filling_memory() -> None:
    simulator = DhanSimulator(tokens(*equities(100)), rate=100_000)
    async with simulator, client(simulator) as websocket:
        await request(websocket, FULL, equities(100))
        websocket.transport.pause_reading()
        await until(lambda: simulator.skipped > 1000)
        transport = simulator.connections[0]._websocket.transport
        assert transport.get_write_buffer_size() < 6 << 20
        simulator.rate = 0
        sent = simulator.sent.total()
        websocket.transport.resume_reading()
        received = await packets(websocket, sent)
        assert Counter(packet[0] for packet in received) == {6: 100, 8: sent - 100}


async def test_closing_ends_every_connection_and_frees_the_port() -> None:
    async with DhanSimulator(tokens(RELIANCE)) as simulator, client(simulator) as websocket:
        port = int(simulator.feed_url.rpartition(":")[2])
        await simulator.aclose()
        with pytest.raises(ConnectionClosedOK, match="1001"):
            await websocket.recv()
    async with DhanSimulator(tokens(RELIANCE), port=port):
        pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_behind() -> None:
    async with DhanSimulator(tokens(RELIANCE)) as simulator:
        taken = int(simulator.rest_url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            await DhanSimulator(tokens(RELIANCE), rest_port=taken).__aenter__()


def test_instruments_are_chosen_from_every_segment_of_a_master(tmp_path: Path) -> None:
    master = tmp_path / "master.csv"
    write_synthetic_master(master, 3000, on=date(2026, 11, 20))
    chosen = choose_instruments(master, 400)
    segments = Counter(split_instrument_token(token)[0] for token in chosen)
    assert len(set(chosen)) == 400
    assert set(segments) == set(ExchangeSegment)
    assert max(segments.values()) <= 2 * min(segments.values())
    assert len(choose_instruments(master, 25_000)) < 3000


async def test_serving_goes_on_until_cancelled() -> None:
    ready: asyncio.Future[DhanSimulator] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(DhanSimulator(tokens(RELIANCE), rate=0), ready.set_result))
    simulator = await ready
    async with client(simulator) as websocket:
        await request(websocket, TICKER, [RELIANCE])
        await packets(websocket, 2)
        task.cancel()
        with pytest.raises(ConnectionClosedOK):
            await websocket.recv()
    with pytest.raises(asyncio.CancelledError):
        await task


def run_sdk(
    simulator: DhanSimulator, instruments: list[tuple[int, str, int]], stop_streaming: Callable[[], None]
) -> list[dict[str, Any]]:
    """What the broker's own client makes of 2000 packets and all that is sent until the stream stops."""
    feed = MarketFeed(DhanContext(CLIENT, make_token(CLIENT)), instruments, "v2")
    try:
        feed.run_forever()  # connects and subscribes, despite its name
        received = [feed.get_data() for _ in range(2000)]
        stop_streaming()
        while len(received) < simulator.sent.total():
            received.append(feed.get_data())
        feed.close_connection()
        return received
    finally:
        feed.loop.close()


@pytest.mark.parametrize("mode", [MarketFeed.Ticker, MarketFeed.Quote, MarketFeed.Full])
async def test_the_brokers_own_client_reads_the_right_ticks(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    instruments = [(MarketFeed.IDX, "13"), (MarketFeed.NSE, "2885"), (MarketFeed.NSE_FNO, "68407")]
    loop = asyncio.get_running_loop()

    async def stop() -> None:
        simulator.rate = 0
        simulator.flush()

    async with DhanSimulator(tokens(NIFTY, RELIANCE, FUTURE), rate=3000) as simulator:
        monkeypatch.setattr(MarketFeed, "market_feed_wss", simulator.feed_url)
        received = await asyncio.to_thread(
            run_sdk,
            simulator,
            [(*instrument, mode) for instrument in instruments],
            lambda: asyncio.run_coroutine_threadsafe(stop(), loop).result(10),
        )
        market = simulator.market
    kind, layout = {
        MarketFeed.Ticker: ("Ticker Data", ResponseCode.TICKER),
        MarketFeed.Quote: ("Quote Data", ResponseCode.QUOTE),
        MarketFeed.Full: ("Full Data", ResponseCode.FULL),
    }[mode]
    kinds = Counter(tick["type"] for tick in received)
    assert kinds["Previous Close"] == 3
    assert (kinds["OI Data"] > 0) == (mode == MarketFeed.Quote)
    assert kinds[kind] == len(received) - kinds["Previous Close"] - kinds["OI Data"]
    for index, (segment, security_id) in enumerate(instruments):
        packet = market.packets(layout, np.array([index]))[0]
        last = [t for t in received if t["type"] == kind and t["security_id"] == int(security_id)][-1]
        assert last["exchange_segment"] == segment
        assert last["LTP"] == f"{packet['last_price']:.2f}"
        if mode != MarketFeed.Ticker:
            assert last["LTQ"] == packet["last_traded_quantity"]
            assert last["volume"] == packet["volume_traded"]
            assert last["avg_price"] == f"{packet['average_traded_price']:.2f}"
            assert last["total_buy_quantity"] == packet["total_buy_quantity"]
            assert last["total_sell_quantity"] == packet["total_sell_quantity"]
            for name in ("open", "high", "low", "close"):
                assert last[name] == f"{packet['day_' + name]:.2f}"
        if mode == MarketFeed.Full:
            assert last["OI"] == packet["oi"]
            for level, wire_level in zip(last["depth"], packet["depth"], strict=True):
                assert level["bid_quantity"] == wire_level["bid_quantity"]
                assert level["ask_orders"] == wire_level["ask_orders"]
                assert level["bid_price"] == f"{wire_level['bid_price']:.2f}"
                assert level["ask_price"] == f"{wire_level['ask_price']:.2f}"
