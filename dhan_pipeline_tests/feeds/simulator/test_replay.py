import asyncio
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest
from dhanhq import DhanContext, MarketFeed

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.exchange import HIGH_WATER_BYTES
from dhan_pipeline.feeds.simulator.recording import Messages
from dhan_pipeline.feeds.simulator.replay import DhanReplay, in_words
from dhan_pipeline.feeds.simulator.tokens import make_token
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
    packets,
    request,
    tokens,
)

SEGMENTS = {"IDX_I": 0, "NSE_EQ": 1, "NSE_FNO": 2}
SECOND_NS = 1_000_000_000
START_NS = 1_795_000_000 * SECOND_NS
UNSUBSCRIBE_TICKER = 16

HEARTBEAT = bytes.fromhex("00 0800 00 00000000")
STATUS = bytes.fromhex("07 0800 01 00000000")
DISCONNECT = bytes.fromhex("32 0a00 00 00000000 2503")


def header(code: int, size: int, instrument: tuple[str, str]) -> bytes:
    return struct.pack("<BHBI", code, size, SEGMENTS[instrument[0]], int(instrument[1]))


def ticker(instrument: tuple[str, str], price: float = 100.0, at: int = 1_795_019_800) -> bytes:
    return header(2, 16, instrument) + struct.pack("<fI", price, at)


def quote(instrument: tuple[str, str], price: float = 100.0) -> bytes:
    return header(4, 50, instrument) + struct.pack("<fHIfIII4f", price, 10, 1_795_019_800, 99.0, 1000, 7, 8, 1, 2, 3, 4)


def full(instrument: tuple[str, str], price: float = 100.0) -> bytes:
    return header(8, 162, instrument) + quote(instrument, price)[8:34] + bytes(12) + quote(instrument)[34:] + bytes(100)


def previous_close(instrument: tuple[str, str], price: float = 99.0) -> bytes:
    return header(6, 16, instrument) + struct.pack("<fI", price, 5)


def open_interest(instrument: tuple[str, str], oi: int = 1000) -> bytes:
    return header(5, 12, instrument) + struct.pack("<I", oi)


def recorded(*payloads: bytes | str, every_ns: int = SECOND_NS, first: int = 0) -> Messages:
    """Messages received one after another; a text is a text frame."""
    data = [payload.encode() if isinstance(payload, str) else payload for payload in payloads]
    size = np.array([len(payload) for payload in data])
    return Messages(
        received_ns=START_NS + (first + np.arange(len(data))) * every_ns,
        start=size.cumsum() - size,
        size=size,
        text=np.array([isinstance(payload, str) for payload in payloads]),
        payload=b"".join(data),
    )


def replay(*payloads: bytes | str, speed: float | None = None, **options: Any) -> DhanReplay:
    """An exchange over these messages, which begins when the test says so."""
    return DhanReplay(iter([recorded(*payloads)]), speed=speed, **{"settled_s": None, **options})


async def subscribed(exchange: DhanReplay, count: int) -> None:
    await until(lambda: sum(connection.subscribed for connection in exchange.connections) == count)


async def test_a_client_gets_what_was_recorded_of_its_instruments_in_order() -> None:
    instruments = (RELIANCE, FUTURE, NIFTY)
    sent = [full(instruments[number % 3], 100.0 + number) for number in range(30)]
    async with replay(*sent) as exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE, NIFTY])
        await subscribed(exchange, 2)
        exchange.begin()
        expected = [packet for number, packet in enumerate(sent) if number % 3 != 1]
        assert await packets(websocket, 20) == expected
        await exchange.ended.wait()
        assert exchange.failure is None
        assert (exchange.played, exchange.sent) == (30, {ResponseCode.FULL: 20})
        assert exchange.at_ns == START_NS + 29 * SECOND_NS


async def test_kinds_and_stacked_messages_keep_their_order() -> None:
    parts = [
        previous_close(RELIANCE),
        full(RELIANCE) + ticker(FUTURE) + open_interest(FUTURE, 7),
        ticker(FUTURE) * 2,
        HEARTBEAT + full(RELIANCE, 101.0),
        STATUS,
        open_interest(RELIANCE),
    ]
    async with replay(*parts) as exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE])
        await request(websocket, TICKER, [FUTURE])
        await subscribed(exchange, 2)
        exchange.begin()
        assert await packets(websocket, 10) == [
            previous_close(RELIANCE),
            full(RELIANCE),
            ticker(FUTURE),
            open_interest(FUTURE, 7),
            ticker(FUTURE),
            ticker(FUTURE),
            HEARTBEAT,
            full(RELIANCE, 101.0),
            STATUS,
            open_interest(RELIANCE),
        ]


async def test_each_connection_gets_its_own_instruments_in_its_own_mode() -> None:
    sent = [packet for number in range(10) for packet in (full(RELIANCE, number), full(FUTURE, number))]
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(replay(*sent))
        first, second, third = [await stack.enter_async_context(client(exchange)) for _ in range(3)]
        await request(first, FULL, [RELIANCE])
        await request(second, TICKER, [RELIANCE])
        await request(second, QUOTE, [FUTURE])
        await request(third, TICKER, [FUTURE])
        await request(third, QUOTE, [FUTURE])
        await subscribed(exchange, 4)
        exchange.begin()
        assert await packets(first, 10) == sent[::2]
        assert await packets(second, 20) == [
            packet for number in range(10) for packet in (ticker(RELIANCE, number), quote(FUTURE, number))
        ]
        assert await packets(third, 20) == [
            packet for number in range(10) for packet in (ticker(FUTURE, number), quote(FUTURE, number))
        ]


async def test_what_was_recorded_of_less_than_is_asked_for_goes_out_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with replay(quote(RELIANCE), ticker(FUTURE), quote(RELIANCE)) as exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE])
        await request(websocket, QUOTE, [FUTURE])
        await subscribed(exchange, 2)
        exchange.begin()
        assert await packets(websocket, 3) == [quote(RELIANCE), ticker(FUTURE), quote(RELIANCE)]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "Of some instruments that were asked for as full, the recording has quote packets"
    )


async def test_what_is_about_no_instrument_goes_to_everybody_and_no_connection_is_ended() -> None:
    unknown = bytes.fromhex("63 0c00 05 450b0000 01020304")
    grown = ticker(RELIANCE).replace(b"\x10", b"\x14", 1) + b"more"
    odd: list[bytes | str] = [HEARTBEAT, "a text", b"\x02\x10", unknown, b"", DISCONNECT, grown, STATUS]
    async with replay(*odd) as exchange, client(exchange) as stranger, client(exchange) as websocket:
        await request(websocket, TICKER, [RELIANCE])
        await subscribed(exchange, 1)
        exchange.begin()
        everybodys = [HEARTBEAT, "a text", b"\x02\x10", unknown, b"", STATUS]
        assert [await stranger.recv() for _ in range(6)] == everybodys
        assert [await websocket.recv() for _ in range(7)] == [*everybodys[:5], grown, STATUS]


async def test_a_late_client_begins_with_the_latest_of_what_was_recorded_before() -> None:
    before = [
        previous_close(FUTURE, 90.0),
        open_interest(FUTURE, 1),
        full(FUTURE, 100.0),
        open_interest(FUTURE, 2),
        full(FUTURE, 101.0),
        quote(RELIANCE, 5.0),
    ]
    async with replay(*before) as exchange, client(exchange) as websocket:
        exchange.begin()
        await exchange.ended.wait()
        await request(websocket, QUOTE, [FUTURE, NIFTY])
        assert await packets(websocket, 3) == [
            previous_close(FUTURE, 90.0),
            open_interest(FUTURE, 2),
            quote(FUTURE, 101.0),
        ]
        await request(websocket, TICKER, [FUTURE, RELIANCE])
        assert await packets(websocket, 3) == [
            previous_close(FUTURE, 90.0),
            ticker(FUTURE, 101.0),
            ticker(RELIANCE, 5.0),
        ]
        await request(websocket, FULL, [RELIANCE, FUTURE])
        assert await packets(websocket, 3) == [
            previous_close(FUTURE, 90.0),
            quote(RELIANCE, 5.0),
            full(FUTURE, 101.0),
        ]
        assert exchange.missing.tolist() == tokens(NIFTY)
        assert exchange.asked == 3


class Hand:
    """A clock that stands until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("speed", [1.0, 10.0])
async def test_packets_come_spaced_as_they_were_recorded_divided_by_the_speed(speed: float) -> None:
    sent = [ticker(RELIANCE, number) for number in range(10)]  # a second apart
    hand = Hand()
    async with replay(*sent, speed=speed, now_s=hand) as exchange, client(exchange) as websocket:
        await request(websocket, TICKER, [RELIANCE])
        await subscribed(exchange, 1)
        exchange.begin()
        assert await packets(websocket, 1) == sent[:1]
        hand.now_s += 2.5 / speed
        assert await packets(websocket, 2) == sent[1:3]
        assert exchange.played == 3
        hand.now_s += 5.0 / speed
        assert await packets(websocket, 5) == sent[3:8]
        assert exchange.played == 8
        hand.now_s += 2.0 / speed
        assert await packets(websocket, 2) == sent[8:]
        await exchange.ended.wait()


async def test_no_speed_is_too_high() -> None:
    async with replay(ticker(RELIANCE), speed=1e308) as exchange:
        exchange.begin()
        await exchange.ended.wait()
        assert exchange.failure is None


async def test_it_waits_until_clients_have_subscribed() -> None:
    sent = [ticker(instrument) for instrument in equities(300)] * 2
    async with replay(*sent, settled_s=0.3) as exchange, client(exchange) as websocket:
        await (await websocket.ping())
        assert not exchange.begun.is_set()
        for start in (1, 101, 201):
            await request(websocket, TICKER, equities(100, start))
        assert await packets(websocket, 600) == sent


async def test_a_client_that_leaves_before_the_beginning_does_not_begin_it() -> None:
    async with replay(ticker(RELIANCE), settled_s=0.05) as exchange:
        async with client(exchange) as websocket:
            await request(websocket, TICKER, [RELIANCE])
            await subscribed(exchange, 1)
            await request(websocket, UNSUBSCRIBE_TICKER, [RELIANCE])
            await subscribed(exchange, 0)
        await until(lambda: not exchange.connections)
        assert exchange._settling is None
        async with client(exchange) as websocket:
            await request(websocket, TICKER, [RELIANCE])
            assert await packets(websocket, 1) == [ticker(RELIANCE)]


def many(count: int, pulled: list[int]) -> Iterator[Messages]:
    """So many pieces of a recording of 1,000 full packets each, and which were taken."""
    for number in range(count):
        pulled.append(number)
        yield recorded(*[full(RELIANCE, number)] * 1000, first=1000 * number)


async def test_as_fast_as_a_client_reads_means_that_nothing_is_skipped_and_little_is_held() -> None:
    pulled: list[int] = []
    exchange = DhanReplay(many(200, pulled), speed=None, settled_s=None)
    async with exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE])
        await subscribed(exchange, 1)
        websocket.transport.pause_reading()
        exchange.begin()
        [connection] = exchange.connections
        await until(lambda: connection.unsent_bytes > HIGH_WATER_BYTES)
        assert len(pulled) < 150
        assert connection.unsent_bytes < 2 * HIGH_WATER_BYTES
        websocket.transport.resume_reading()
        received = await packets(websocket, 200_000)
        await exchange.ended.wait()
    assert Counter(received) == {full(RELIANCE, number): 1000 for number in range(200)}
    assert received == sorted(received, key=lambda packet: struct.unpack_from("<f", packet, 8))
    assert exchange.skipped == 0


async def test_no_more_than_a_piece_is_read_ahead() -> None:
    pulled: list[int] = []
    exchange = DhanReplay(many(10, pulled), speed=1.0, now_s=Hand(), settled_s=None)
    async with exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE])
        await subscribed(exchange, 1)
        exchange.begin()
        await packets(websocket, 1)
        await until(lambda: len(pulled) == 2)
        assert exchange.played == 1
    assert pulled == [0, 1]


async def test_as_fast_as_clients_read_it_waits_for_one_that_comes_again() -> None:
    pulled: list[int] = []
    exchange = DhanReplay(many(200, pulled), speed=None, settled_s=None)
    async with exchange:
        async with client(exchange) as websocket:
            await request(websocket, FULL, [RELIANCE])
            await subscribed(exchange, 1)
            exchange.begin()
            await packets(websocket, 1)
        await until(lambda: not exchange.connections)
        played = exchange.played
        assert played < 200_000
        async with client(exchange) as websocket:
            await request(websocket, FULL, [RELIANCE])
            await packets(websocket, 1 + 200_000 - played)  # the snapshot, and the rest
            await exchange.ended.wait()


async def test_trade_times_may_be_moved_to_now() -> None:
    now_s = 1_800_000_000
    # Traded 3 s before it was received; wire times are India's wall clock.
    traded = ticker(RELIANCE, 100.0, 1_795_000_000 - 3 + 19_800)
    never = ticker(FUTURE, 100.0, 0)
    exchange = replay(traded, never, full(RELIANCE), shift_times=True, clock=Clock(now_s * SECOND_NS, 1e-9))
    token = make_token(CLIENT, clock=Clock(now_s * SECOND_NS))
    async with exchange, client(exchange, token) as websocket:
        await request(websocket, TICKER, [RELIANCE, FUTURE])
        await subscribed(exchange, 2)
        exchange.begin()
        received = await packets(websocket, 3)
        times = [struct.unpack("<I", packet[12:])[0] for packet in received]
        assert times == [now_s - 3 + 19_800, 0, now_s - 2 + 19_800]
        await request(websocket, TICKER, [RELIANCE])
        [snapshot] = await packets(websocket, 1)
        assert snapshot == received[2]


async def test_more_instruments_than_there_was_room_for_are_taken_in() -> None:
    instruments = equities(2500)
    recording = [recorded(*map(ticker, instruments[:900])), recorded(*map(ticker, instruments[900:]), first=900)]
    exchange = DhanReplay(iter(recording), speed=None, settled_s=None)
    async with exchange, client(exchange) as websocket:
        await request(websocket, TICKER, instruments[::50])
        await subscribed(exchange, 50)
        exchange.begin()
        assert await packets(websocket, 50) == [ticker(instrument) for instrument in instruments[::50]]


async def test_faults_happen_to_a_recording_too() -> None:
    sent = [full(RELIANCE, number) for number in range(100)]
    async with replay(*sent) as exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE])
        await subscribed(exchange, 1)
        exchange.faults.stacked = True
        exchange.begin()
        await exchange.ended.wait()
        received = b""
        messages = 0
        while len(received) < 100 * 162:
            received += b"".join(await packets(websocket, 1))
            messages += 1
        assert received == b"".join(sent)
        assert messages < 100


async def test_a_recording_that_cannot_be_read_on_ends_with_its_reason() -> None:
    def broken() -> Iterator[Messages]:
        yield recorded(ticker(RELIANCE))
        raise OSError("the disk is gone")

    exchange = DhanReplay(broken(), speed=None, settled_s=None)
    async with exchange, client(exchange) as websocket:
        await request(websocket, TICKER, [RELIANCE])
        await subscribed(exchange, 1)
        exchange.begin()
        assert await packets(websocket, 1) == [ticker(RELIANCE)]
        await exchange.ended.wait()
        assert str(exchange.failure) == "the disk is gone"


async def test_closing_leaves_nothing_behind() -> None:
    exchange = DhanReplay(many(10, []), speed=1.0, settled_s=60.0)
    async with exchange, client(exchange) as websocket:
        await request(websocket, FULL, [RELIANCE])
        await subscribed(exchange, 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_instruments_are_named_for_a_person() -> None:
    assert in_words(np.array(tokens(RELIANCE, FUTURE))) == "NSE_EQ 2885, NSE_FNO 68407"
    assert in_words(np.array(tokens(*equities(1503)))) == "NSE_EQ 1, NSE_EQ 2, NSE_EQ 3 and 1,500 more"


def run_sdk(instruments: list[tuple[int, str, int]], count: int) -> list[dict[str, Any]]:
    """What the broker's own client makes of so many packets."""
    feed = MarketFeed(DhanContext(CLIENT, make_token(CLIENT)), instruments, "v2")
    try:
        feed.run_forever()  # connects and subscribes, despite its name
        received = [feed.get_data() for _ in range(count)]
        feed.close_connection()
        return received
    finally:
        feed.loop.close()


async def test_the_brokers_own_client_reads_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [packet for number in range(50) for packet in (full(RELIANCE, number), full(FUTURE, number))]
    instruments = [(MarketFeed.NSE, "2885", MarketFeed.Quote), (MarketFeed.IDX, "13", MarketFeed.Quote)]
    async with replay(previous_close(RELIANCE), *sent, settled_s=0.1) as exchange:
        monkeypatch.setattr(MarketFeed, "market_feed_wss", exchange.feed_url)
        first, *quotes = await asyncio.to_thread(run_sdk, instruments, 51)
        assert exchange.sent == {ResponseCode.PREVIOUS_CLOSE: 1, ResponseCode.QUOTE: 50}
    assert (first["type"], first["prev_close"]) == ("Previous Close", "99.00")
    assert {(tick["type"], tick["security_id"]) for tick in quotes} == {("Quote Data", 2885)}
    assert [tick["LTP"] for tick in quotes] == [f"{number:.2f}" for number in range(50)]
