"""A server that speaks Kite's live feed, over a synthetic market.

What the documentation says, and what was observed where it is silent: credentials in the URL, judged at the handshake;
JSON requests with numbers for instruments, unknown ones ignored; several packets a binary message; the first packet of
an instrument upon subscribing, in quote mode until another is asked for; a heartbeat of one byte where there is nothing
to say; an error in text, and no more, for instruments beyond the limit. More than three connections are let in, since
the broker does so.

One event is one packet here, whereas the real feed sends a state once or twice a second: a capture has more to do.
"""

import asyncio
import contextlib
import json
import random
import struct
import time
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.kite.wire import FULL, HEARTBEAT_SIZE, LAYOUTS, LENGTH_SIZE
from dhan_pipeline.feeds.simulator import kite_history
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.exchange import (
    HEARTBEAT,
    HIGH_WATER_BYTES,
    PING_INTERVAL_S,
    PONG_TIMEOUT_S,
    Connection,
    Exchange,
    Websocket,
)
from dhan_pipeline.feeds.simulator.kite_packets import KitePackets
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.misbehaviour import KITE_GARBAGE, WHOLE_TEXT, SentLog, Switches, frame_of
from dhan_pipeline.feeds.simulator.trading import Trading

#: Instruments of a connection: https://kite.trade/docs/connect/v3/websocket/
MAX_INSTRUMENTS = 3000

#: Packets of a message, at most, where nothing else is asked for.
PACKETS_A_MESSAGE = 500

#: Without data, a heartbeat comes this often.
HEARTBEAT_S = 1.0

#: Under which text is counted in `sent`; data goes by the size of a packet.
TEXT = -1

#: Names of what is counted in `sent`.
KINDS = {HEARTBEAT: "heartbeat", TEXT: "text"} | {size: layout.name for size, layout in LAYOUTS.items()}

#: Which packets a connection gets of an instrument, as bits of `Connection.modes`: it has one mode at a time.
MODE_BITS = {"ltp": 1, "quote": 2, "full": 4}


class CurrentRecords(Protocol):
    """What is known of each instrument now. Instruments go by their index."""

    def __len__(self) -> int:
        """How many there are places for."""

    def sized(self, mode: str, index: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
        """Where among the instruments those are whose packets have this size in this mode."""

    def records(self, size: int, index: NDArray[np.intp]) -> NDArray[Any]:
        """The current packets of these instruments, each with its length before it: of this size, all of them."""


@dataclass(slots=True)
class _Prepared:
    """Packets of one size, each with its length before it, that are to be sent when their events are due."""

    size: int
    records: bytes
    due: NDArray[np.intp]
    """The event that brings each packet, counted from the simulator's start."""
    sent: int = 0


class KiteConnection(Connection):
    """A connection that gets Kite's packets."""

    def __init__(
        self,
        websocket: Websocket,
        api_key: str,
        packets: CurrentRecords,
        packets_a_message: int,
        faults: Switches,
        randomness: random.Random,
        log: SentLog | None,
    ) -> None:
        super().__init__(websocket, api_key, len(packets), faults, randomness, log)
        self._packets = packets
        self._packets_a_message = packets_a_message
        self._prepared: list[_Prepared] = []
        self._spoke_at = time.monotonic()

    def send(self, mode: str, index: NDArray[np.intp]) -> None:
        """The current packets of these instruments, now."""
        self._send(
            [(size, self._packets.records(size, index[at]).tobytes()) for size, at in self._packets.sized(mode, index)]
        )

    def send_text(self, content: dict[str, Any]) -> None:
        """A message in JSON, now."""
        self._write(TEXT, frame_of(json.dumps(content).encode(), WHOLE_TEXT), 1)

    def send_heartbeat(self) -> None:
        """A heartbeat, unless there was something to say."""
        if time.monotonic() - self._spoke_at >= HEARTBEAT_S:
            self._spoke_at = time.monotonic()
            self._write(HEARTBEAT, frame_of(bytes(HEARTBEAT_SIZE)), 1)

    def prepare(self, index: NDArray[np.intp], oi_changed: NDArray[np.intp], event: int) -> None:
        """Encode what the connection is to get of these instruments, which the events from `event` on have moved.

        Kite has no packet for `oi_changed`.
        """
        modes = self.modes[index]
        for mode, bit in MODE_BITS.items():
            (chosen,) = np.nonzero(modes == bit)
            for size, at in self._packets.sized(mode, index[chosen]):
                moved = chosen[at]
                records = self._packets.records(size, index[moved])
                self._prepared.append(_Prepared(size, records.tobytes(), event + moved))

    def release(self, events: int) -> None:
        """Send what the events before `events` brought, unless the client has too much to read already."""
        due: list[tuple[int, bytes]] = []
        packets = 0
        for batch in self._prepared:
            length = LENGTH_SIZE + batch.size
            before, batch.sent = batch.sent, int(np.searchsorted(batch.due, events))
            if batch.sent > before:
                due.append((batch.size, batch.records[before * length : batch.sent * length]))
                packets += batch.sent - before
        self._prepared = [batch for batch in self._prepared if batch.due[-1] >= events]
        if self._websocket.transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            self.skipped += packets
            if self.log is not None:
                self.log.skipped_ns.extend([time.time_ns()] * packets)
        else:
            self._send(due)

    def _send(self, parts: Iterable[tuple[int, bytes]]) -> None:
        """Packets of several sizes, put together into messages."""
        if not self.is_open or self._faults.stalled:
            return
        frames: list[bytes] = []
        waiting: list[bytes] = []
        count = 0
        for size, records in parts:
            length = LENGTH_SIZE + size
            self._count(size, len(records) // length)
            start = 0
            while start < len(records):
                some = min((len(records) - start) // length, self._packets_a_message - count)
                waiting.append(records[start : start + some * length])
                start += some * length
                count += some
                if count == self._packets_a_message:
                    frames.append(_message(count, waiting))
                    waiting, count = [], 0
        if count:
            frames.append(_message(count, waiting))
        if frames:
            self._spoke_at = time.monotonic()
            self._transmit(self._mixed(frames))


def _message(count: int, records: Sequence[bytes]) -> bytes:
    return frame_of(struct.pack(">H", count) + b"".join(records))


class Options(TypedDict, total=False):
    """What every exchange takes; see `KiteExchange`."""

    host: str
    port: int
    rest_host: str | None
    rest_port: int
    dump_csv: Path | None
    packets_a_message: int
    ping_interval: float | None
    pong_timeout: float
    record: bool


class KiteExchange(Exchange[KiteConnection]):
    """Kite's live feed and a few pages of its REST API, on this machine. An async context manager.

    It knows everything of credentials, requests and limits, and nothing of where packets come from.
    """

    source = "kite"
    kinds: ClassVar = KINDS
    garbage = KITE_GARBAGE

    def __init__(
        self,
        current: CurrentRecords,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        rest_host: str | None = None,
        rest_port: int = 0,
        dump_csv: Path | None = None,
        packets_a_message: int = PACKETS_A_MESSAGE,
        ping_interval: float | None = PING_INTERVAL_S,
        pong_timeout: float = PONG_TIMEOUT_S,
        record: bool = False,
    ) -> None:
        """Nothing listens yet.

        A port of 0 takes a free one. `dump_csv` is the instruments dump that REST serves. A message has
        `packets_a_message` packets at most. With `record`, `logs` keeps what each socket was given. `seed` is that of
        the faults.
        """
        clock = clock or Clock()
        self.rest = KiteRest(clock, dump_csv, rest_host or host, rest_port)
        """Its REST face."""
        super().__init__(
            self.rest,
            seed=seed,
            clock=clock,
            host=host,
            port=port,
            ping_interval=ping_interval,
            pong_timeout=pong_timeout,
            record=record,
        )
        self._current = current
        self._packets_a_message = packets_a_message

    @abstractmethod
    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        """Index of those of the instruments that exist."""

    def send_text(self, content: dict[str, Any]) -> None:
        """A message in JSON to every client: an order's postback, an error, or a message of the broker's."""
        for connection in self.connections:
            connection.send_text(content)

    def _refusal(self, query: dict[str, list[str]]) -> tuple[HTTPStatus, str] | None:
        api_key, token = (query.get(name, [""])[0] for name in ("api_key", "access_token"))
        if self.rest.judge(api_key, token):
            return None
        return HTTPStatus.FORBIDDEN, "Incorrect `api_key` or `access_token`.\n"

    def _connect(self, websocket: Websocket, query: dict[str, list[str]], log: SentLog | None) -> KiteConnection:
        return KiteConnection(
            websocket,
            query["api_key"][0],
            self._current,
            self._packets_a_message,
            self.faults,
            self._random,
            log,
        )

    def _torn_message(self) -> bytes:
        return frame_of(struct.pack(">HH", 1, FULL) + bytes(FULL))

    async def _serve(self, connection: KiteConnection, websocket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in websocket:
                if isinstance(message, str) and not self._do(connection, message):
                    connection.send_text({"type": "error", "data": "Invalid message"})

    def _do(self, connection: KiteConnection, message: str) -> bool:
        """What the client asks for; False where that is nothing."""
        try:
            request = json.loads(message)
            action, value = request["a"], request["v"]
            mode, listed = ("quote", value) if action != "mode" else value
            index = self._known(listed)
            if action not in ("subscribe", "unsubscribe", "mode") or mode not in MODE_BITS:
                return False
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return False
        self.flush()  # the first packet is newer than what was prepared
        if action == "unsubscribe":
            connection.modes[index] = 0
        else:
            subscribed = connection.modes[index] > 0
            index = self._with_room(connection, index) if action == "subscribe" else index[subscribed]
            connection.modes[index] = MODE_BITS[mode]
            for _ in range(1 + self.faults.duplicate_snapshot):
                connection.send(mode, index)
        self._subscriptions_changed()
        return True

    def _with_room(self, connection: KiteConnection, index: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those that the connection has room for; it is told of the others."""
        new: NDArray[np.intp] = index[connection.modes[index] == 0]
        room = MAX_INSTRUMENTS - connection.subscribed
        if len(new) > room:
            connection.send_text({"type": "error", "data": f"Maximum of {MAX_INSTRUMENTS} instruments exceeded"})
            return new[: max(room, 0)]
        return new

    def _known(self, listed: Iterable[Any]) -> NDArray[np.intp]:
        """Those instruments that exist, each once. Raises ValueError and TypeError for what are no numbers."""
        return self._index_of([int(token) for token in dict.fromkeys(listed)])

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for connection in self.connections:
                connection.send_heartbeat()


class KiteSimulator(KiteExchange):
    """The exchange over a synthetic market.

    `rate` events a second (real seconds, whatever the clock's speed) happen over the instruments that anybody is
    subscribed to; each goes to all of those subscribers. It may be changed at any time.
    """

    def __init__(
        self,
        instruments: Sequence[int] | NDArray[np.int64] = (),
        *,
        rate: float = 2000.0,
        seed: int = 0,
        clock: Clock | None = None,
        trading: Trading | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Make the market of these tokens of Kite's, or show one that another exchange lets trade. Nothing listens yet.

        The options are those of `KiteExchange`.
        """
        clock = clock or Clock()
        self._leads = trading is None
        if trading is None:
            tokens = [dhan_token_of(token) for token in np.asarray(instruments, np.int64).tolist()]
            trading = Trading(Market(tokens, seed=seed, clock=clock), rate, clock)
        self.trading = trading
        self.market = trading.market
        self.packets = KitePackets(self.market, clock)
        super().__init__(self.packets, seed=seed, clock=clock, **options)
        self.trading.audiences.append(self.connections)
        self.rest.give = kite_history.answers(self.market, clock)

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.trading.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self.trading.rate = rate

    def flush(self) -> None:
        """Send now what the market is ahead by. With a rate of 0 before, clients then have its last state."""
        self.trading.flush()

    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        found = map(self.packets.index_of.get, tokens)
        return np.array([index for index in found if index is not None], np.intp)

    def _subscriptions_changed(self) -> None:
        self.trading.choose()

    def _work(self) -> Iterable[Awaitable[None]]:
        return (self.trading.run(), self._keep_alive()) if self._leads else (self._keep_alive(),)
