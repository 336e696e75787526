"""A load generator that speaks Dhan's live feed and costs little: packets are made before, and sent as they lie.

The exchange of `feeds/simulator` makes a market as it goes, which costs more than receiving it. Here a ring of full
packets of that same market is made once, framed, a ring for each connection; what is sent is a slice of it, with the
trade times of the present second. Started by `end_to_end`, as a process of its own:

    python -m benchmarks.generator INSTRUMENTS CONNECTIONS

It prints its port. Each line on standard input is a command: `send RATE SECONDS` sends, and when done prints one JSON
object: what was sent, how long that took, and sums that the stored rows have to show again.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import uvloop
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from dhan_pipeline.feeds.dhan.wire import LAYOUTS, RequestCode, ResponseCode
from dhan_pipeline.feeds.simulator.market import Market, frame_header
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import IST_OFFSET_S

#: Packets of a connection's ring, at most and where it has fewer instruments; 10 MB.
RING = 1 << 16

#: A burst this often. What the feed sends comes in bursts, too; each costs a receiver some 30 us.
SLICE_S = 0.005

#: Unsent bytes of a connection above which it is behind, and waits.
HIGH_WATER_BYTES = 1 << 20

FIRST_SECURITY_ID = 40_000


def instrument_tokens(count: int) -> NDArray[np.int64]:
    """Tokens of so many derivatives of NSE."""
    first = generate_instrument_token(ExchangeSegment.NSE_FNO, FIRST_SECURITY_ID)
    return np.arange(first, first + count)


class Ring:
    """Framed full packets of one connection's instruments, sent over and over, and how far it was sent."""

    def __init__(self, tokens: NDArray[np.int64], seed: int) -> None:
        market = Market(tokens, seed=seed)
        # Whole rounds over the instruments, so that the end of the ring goes on with its beginning.
        packets = max(RING // len(tokens), 2) * len(tokens)
        frames = b"".join(market.frames(ResponseCode.FULL, index) for index, _ in market.step(packets))
        layout = LAYOUTS[ResponseCode.FULL]
        header = ("header", np.uint8, len(frame_header(layout.size)))
        self._rows = np.frombuffer(bytearray(frames), [header, ("packet", layout.dtype)])
        self._bytes = self._rows.view(np.uint8)
        self._volume = np.concatenate(([0], self._rows["packet"]["volume_traded"].astype(np.int64).cumsum()))
        self._traded_at = 0
        self._owed = 0.0
        self.sent = 0
        """Packets since the beginning."""

    @property
    def volume_sent(self) -> int:
        """Sum of the field volume over all packets sent."""
        rounds, rest = divmod(self.sent, len(self._rows))
        return rounds * int(self._volume[-1]) + int(self._volume[rest])

    def take(self, packets: float) -> list[memoryview]:
        """The next packets' frames; a fraction of a packet is kept for the next time."""
        now = int(time.time()) + IST_OFFSET_S
        if now != self._traded_at:
            self._traded_at = now
            self._rows["packet"]["last_trade_time"] = now
        self._owed += packets
        count, size = int(self._owed), self._rows.itemsize
        self._owed -= count
        pieces = []
        while count:
            first = self.sent % len(self._rows)
            some = min(count, len(self._rows) - first)
            pieces.append(self._bytes[first * size : (first + some) * size].data)
            self.sent += some
            count -= some
        return pieces


class Generator:
    """The server: takes subscriptions, and sends when told to."""

    def __init__(self, instruments: int, connections: int) -> None:
        tokens = instrument_tokens(instruments)
        self._rings = [Ring(part, seed) for seed, part in enumerate(np.array_split(tokens, connections))]
        self._sockets: list[ServerConnection] = []

    async def handle(self, socket: ServerConnection) -> None:
        """One connection. It gets its packets once it has subscribed."""
        assert socket.request is not None
        assert "token" in parse_qs(urlsplit(socket.request.path).query)
        try:
            async for message in socket:
                if not isinstance(message, str) or json.loads(message)["RequestCode"] != RequestCode.SUBSCRIBE_FULL:
                    break
                if socket not in self._sockets:
                    self._sockets.append(socket)
        except ConnectionClosed:
            pass
        finally:
            if socket in self._sockets:
                self._sockets.remove(socket)

    async def send(self, rate: float, seconds: float) -> dict[str, Any]:
        """Packets at `rate` a second over all connections, evenly. What a slow client holds up comes later."""
        while len(self._sockets) < len(self._rings):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before = sum(ring.sent for ring in self._rings), sum(ring.volume_sent for ring in self._rings)
        cpu_s = time.process_time()
        started = last = time.perf_counter()
        end = started + seconds
        while last < end:
            await asyncio.sleep(SLICE_S)
            now = min(time.perf_counter(), end)
            if any(socket.transport.get_write_buffer_size() > HIGH_WATER_BYTES for socket in self._sockets):
                continue
            for ring, socket in zip(self._rings, self._sockets, strict=True):
                for piece in ring.take(rate * (now - last) / len(self._rings)):
                    # Copied: the ring changes each second, and the transport may keep what it is given.
                    socket.transport.write(bytes(piece))
            last = now
        took_s = time.perf_counter() - started
        return {
            "sent": sum(ring.sent for ring in self._rings) - before[0],
            "volume": sum(ring.volume_sent for ring in self._rings) - before[1],
            "seconds": took_s,
            "cpu_s": time.process_time() - cpu_s,
        }


async def main(instruments: int, connections: int) -> None:
    """Serve until standard input closes."""
    generator = Generator(instruments, connections)
    async with serve(generator.handle, "127.0.0.1", 0, compression=None, write_limit=1 << 30) as server:
        print(json.dumps({"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            _, rate, seconds = line.split()
            print(json.dumps(await generator.send(float(rate), float(seconds))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
