import json
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.kite.wire import FULL, INDEX_FULL, INDEX_QUOTE, LTP, QUOTE
from dhan_pipeline.feeds.simulator.kite import TEXT
from dhan_pipeline.feeds.simulator.kite_packets import KitePackets
from dhan_pipeline.feeds.simulator.kite_replay import KiteReplay
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.recording import Messages
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.feeds.simulator.talking import kite_client, kite_packets, split_message
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

CLOCK = SetClock()
SHARES = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, 601)]
MARKET = KitePackets(Market([*SHARES, generate_instrument_token("IDX_I", 13)], clock=CLOCK), CLOCK)
TOKENS = MARKET.tokens.tolist()
NIFTY = TOKENS[-1]


def message(*sizes_and_indices: tuple[int, Sequence[int]]) -> bytes:
    """Packets of so many bytes of these instruments, by index."""
    records = b"".join(MARKET.records(size, np.array(index)).tobytes() for size, index in sizes_and_indices)
    return struct.pack(">H", sum(len(index) for _, index in sizes_and_indices)) + records


def recording(*contents: bytes | str) -> Iterator[Messages]:
    payloads = [content if isinstance(content, bytes) else content.encode() for content in contents]
    size = np.array([*map(len, payloads)])
    received_ns = CLOCK.now_ns() + np.arange(len(payloads)) * 1_000_000
    text = np.array([isinstance(content, str) for content in contents])
    yield Messages(received_ns, size.cumsum() - size, size, text, b"".join(payloads))


async def subscribe(websocket: ClientConnection, mode: str, tokens: Sequence[int]) -> None:
    await websocket.send(json.dumps({"a": "subscribe", "v": tokens}))
    await websocket.send(json.dumps({"a": "mode", "v": [mode, tokens]}))


async def replayed(mode: str, tokens: Sequence[int], *contents: bytes | str, **options: object) -> list[bytes | str]:
    """What a client gets that asks for these instruments in a mode, heartbeats left out."""
    replay = KiteReplay(recording(*contents), speed=None, settled_s=None, **options)  # type: ignore[arg-type]
    async with replay, kite_client(replay) as websocket:
        await subscribe(websocket, mode, tokens)
        await until(lambda: replay.connections and replay.connections[0].subscribed == len(tokens))
        await until(lambda: replay.connections[0].modes.max() == {"ltp": 1, "quote": 2, "full": 4}[mode])
        replay.begin()
        await replay.ended.wait()
        assert replay.failure is None
        await replay.connections[0].close(1000)
        return [received async for received in websocket if len(received) > 1]


async def test_what_was_recorded_comes_again_byte_for_byte() -> None:
    contents = [message((FULL, [0, 1]), (INDEX_FULL, [600])), message((FULL, range(500))), message((FULL, [3])), "{}"]
    assert await replayed("full", TOKENS, *contents) == contents


async def test_each_client_gets_of_a_message_what_it_asked_for() -> None:
    contents = [message((FULL, [0, 1, 2]), (INDEX_FULL, [600])), message((FULL, [1])), message((LTP, [2, 0]))]
    assert await replayed("full", [TOKENS[2], NIFTY], *contents) == [
        message((FULL, [2]), (INDEX_FULL, [600])),
        message((LTP, [2])),
    ]


@pytest.mark.parametrize(("mode", "size", "of_index"), [("quote", QUOTE, INDEX_QUOTE), ("ltp", LTP, LTP)])
async def test_what_is_more_than_was_asked_for_is_cut_down(mode: str, size: int, of_index: int) -> None:
    whole = message((FULL, [0]), (INDEX_FULL, [600]), (LTP, [1]), (QUOTE, [2]))
    assert await replayed(mode, TOKENS, whole) == [message((size, [0]), (of_index, [600]), (LTP, [1]), (size, [2]))]


async def test_text_and_what_cannot_be_read_go_to_everybody_and_heartbeats_to_nobody() -> None:
    torn = message((FULL, [0]))[:100]
    contents = ["news", torn, b"\0", message((LTP, [5])), b"", message((LTP, [0])) + b"rest"]
    received = await replayed("full", [TOKENS[0]], *contents)
    assert received == ["news", torn, message((LTP, [0]))]


async def test_who_subscribes_later_gets_the_latest_first() -> None:
    replay = KiteReplay(recording(message((FULL, [0, 1])), message((LTP, [1]))), speed=None, settled_s=None)
    async with replay, kite_client(replay) as websocket:
        replay.begin()
        await replay.ended.wait()
        await subscribe(websocket, "full", TOKENS[:3])
        received = await kite_packets(websocket, 4)
        assert received == [
            *split_message(message((LTP, [1]), (QUOTE, [0]))),
            *split_message(message((LTP, [1]), (FULL, [0]))),
        ]
        assert replay.sent == {LTP: 2, QUOTE: 1, FULL: 1}
        assert (replay.asked, replay.missing.tolist()) == (3, [TOKENS[2]])
        assert replay.played == 3


async def test_times_move_with_the_recording_if_that_is_asked_for() -> None:
    (received,) = await replayed("full", TOKENS, message((FULL, [0]), (INDEX_FULL, [600])), shift_times=True)
    assert isinstance(received, bytes)
    full, index = split_message(received)
    now_s = Clock().now_ns() // 1_000_000_000
    for at in (
        struct.unpack_from(">I", full, 44),
        struct.unpack_from(">I", full, 60),
        struct.unpack_from(">I", index, 28),
    ):
        assert now_s - 60 < at[0] <= now_s


async def test_the_recording_begins_when_clients_have_subscribed() -> None:
    replay = KiteReplay(recording(message((LTP, [0])), "news"), speed=1.0, settled_s=0.01)
    async with replay, kite_client(replay) as websocket:
        assert not replay.begun.is_set()
        await subscribe(websocket, "ltp", TOKENS[:1])
        await replay.ended.wait()
        assert await websocket.recv() == message((LTP, [0]))
        assert await websocket.recv() == "news"
        assert replay.sent == {LTP: 1, TEXT: 1}
