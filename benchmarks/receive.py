"""What receiving costs: our client beside plain `websockets` and picows, each stamping and keeping every message.

    python benchmarks/receive.py [--json] [--rates 10000 200000]

All run on uvloop in this process, in turn, on one connection; the generator is a process of its own and is not counted.
Every contender has to come up with the number and the sizes of the messages that were sent, else the benchmark fails.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import picows
import uvloop
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.generator import instrument_tokens
from benchmarks.report import ROUNDS, Spread, arguments, publish, wrong
from benchmarks.running import CLIENT_ID, Peer, peer
from dhan_pipeline.feeds.connection import FeedConnection
from dhan_pipeline.feeds.dhan.auth import Credentials, get_websocket_url
from dhan_pipeline.feeds.dhan.client import WIRE
from dhan_pipeline.feeds.dhan.requests import subscribe_messages
from dhan_pipeline.ticks import Mode

RATES = (10_000, 200_000)
SECONDS = 1.0
INSTRUMENTS = 100
MESSAGE_BYTES = 162

#: How long the last messages may take to arrive.
PATIENCE_S = 20.0

SUBSCRIPTIONS = dict.fromkeys(instrument_tokens(INSTRUMENTS).tolist(), Mode.FULL)
CREDENTIALS = Credentials(CLIENT_ID, SecretStr("token"), None, "here")


class Kept:
    """Messages with their receive times, as a capture keeps them until its next block."""

    def __init__(self) -> None:
        self.messages = self.bytes = 0
        self._block: list[tuple[int, bytes]] = []

    def take(self, payload: bytes | str, connection: int = 0, count: int = 1) -> None:
        """Stamp and keep."""
        assert isinstance(payload, bytes)
        self._block.append((time.time_ns(), payload))
        self.messages += count
        self.bytes += len(payload)
        if len(self._block) == 1000:
            self._block.clear()


Receive = Callable[[str, Kept], Coroutine[Any, Any, None]]


async def ours(url: str, kept: Kept) -> None:
    """The client of the capture."""
    connection = FeedConnection(WIRE, 0, SUBSCRIPTIONS, kept.take)
    await connection.open(CREDENTIALS, url)
    await connection.receive()


async def plain_websockets(url: str, kept: Kept) -> None:
    """`websockets` as its documentation shows it."""
    async with connect(get_websocket_url(CREDENTIALS, url), compression=None) as socket:
        for message in subscribe_messages(SUBSCRIPTIONS):
            await socket.send(message)
        try:
            async for payload in socket:
                kept.take(payload)
        except ConnectionClosed:
            return


class _Listener(picows.WSListener):
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        for message in subscribe_messages(SUBSCRIPTIONS):
            transport.send(picows.WSMsgType.TEXT, message.encode())

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.BINARY:
            self._kept.take(frame.get_payload_as_bytes())


async def with_picows(url: str, kept: Kept) -> None:
    """picows, whose parser is compiled."""
    transport, _ = await picows.ws_connect(lambda: _Listener(kept), get_websocket_url(CREDENTIALS, url))
    try:
        await transport.wait_disconnected()
    finally:
        transport.disconnect()


CONTENDERS: dict[str, Receive] = {"websockets": plain_websockets, "picows": with_picows, "ours": ours}


async def core_pct(receive: Receive, generator: Peer, url: str, rate: float) -> float:
    """CPU of this process while it receives at that rate, in percent of a core."""
    kept = Kept()
    receiving = asyncio.create_task(receive(url, kept))
    expected = (await generator.ask(f"send {rate} 0.2"))["sent"]
    before, started = time.process_time(), time.perf_counter()
    expected += (await generator.ask(f"send {rate} {SECONDS}"))["sent"]
    while kept.messages < expected and time.perf_counter() < started + PATIENCE_S:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    pct = 100 * (time.process_time() - before) / (time.perf_counter() - started)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    if (kept.messages, kept.bytes) != (expected, expected * MESSAGE_BYTES):
        wrong(f"{expected} messages were sent, {kept.messages} with {kept.bytes} bytes came")
    return pct


async def main() -> None:
    """Measure all and publish."""
    parser = arguments(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="messages a second")
    chosen = parser.parse_args()
    rows = []
    async with peer("-m", "benchmarks.generator", str(INSTRUMENTS), "1") as generator:
        url = f"ws://127.0.0.1:{(await generator.hear())['port']}"
        for rate in chosen.rates:
            figures: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for _ in range(ROUNDS):
                for name, receive in CONTENDERS.items():
                    figures[name].append(await core_pct(receive, generator, url, rate))
            rows.append(
                {"messages/s": int(rate)}
                | {f"{name}, % of a core": Spread.of(taken) for name, taken in figures.items()}
            )
    publish("Receiving 162-byte messages on one connection", rows, chosen.json)


if __name__ == "__main__":
    uvloop.run(main())
