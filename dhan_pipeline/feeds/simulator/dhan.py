"""A server that speaks Dhan's live feed: of any packets, and over a synthetic market.

What the documentation says, and what was observed where it is silent: parameters in the URL, JSON requests without
acknowledgement, one packet a WebSocket message, a snapshot upon subscribing, the limits with their disconnect codes.
Silence about instruments that do not exist is part of it.

Packets bypass `websockets`' own sending, which costs more than making them: whole frames go to the transport, many at
once. Its pings, pongs and closing handshake remain; they write whole frames too, so that both can be mixed. While a
frame trickles, they wait for its end.
"""

import asyncio
import contextlib
import json
import logging
import random
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict, Unpack
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, RequestCode, ResponseCode
from dhan_pipeline.feeds.simulator.market import Market, frame_header
from dhan_pipeline.feeds.simulator.misbehaviour import (
    GARBAGE,
    HUGE_HEADER,
    SentLog,
    Switches,
    frame_of,
    is_continuation,
    split_frames,
    stack,
    torn_packet,
)
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token

#: Limits of the live feed: https://dhanhq.co/docs/v2/live-market-feed/
MAX_CONNECTIONS = 5
MAX_INSTRUMENTS = 5000
MAX_INSTRUMENTS_A_MESSAGE = 100

#: The feed pings this often, and drops a connection that has not answered for this long.
PING_INTERVAL_S = 10.0
PONG_TIMEOUT_S = 40.0

#: A heartbeat and a market status go to every connection this often.
STATUS_INTERVAL_S = 30.0

#: Time between two bursts of packets.
SLICE_S = 0.010
#: The market moves this far ahead of what is sent, up to so many events: making few packets costs as much as many.
_AHEAD_S = 0.05
_MAX_AHEAD_EVENTS = 2000
#: What is late by more than this is never sent; and a burst takes no longer to make.
_CATCH_UP_S = 0.25

#: Sizes and pauses of bytes that trickle.
_TRICKLE_BYTES = 8192
_TRICKLE_S = 0.002

#: How long what a client is to see before a reset has to arrive: a reset drops what is still unread.
_ARRIVAL_S = 0.05

#: How much of a message that announces 100 MB is sent.
_HUGE_BYTES = 4 << 20

#: Unsent bytes above which a connection is given no further packets until it has read some.
HIGH_WATER_BYTES = 4 << 20

#: Which packets a connection gets of an instrument, as bits: it may have asked for several.
MODE_BITS = {ResponseCode.TICKER: 1, ResponseCode.QUOTE: 2, ResponseCode.FULL: 4}

_SUBSCRIBE = {
    RequestCode.SUBSCRIBE_TICKER: ResponseCode.TICKER,
    RequestCode.SUBSCRIBE_QUOTE: ResponseCode.QUOTE,
    RequestCode.SUBSCRIBE_FULL: ResponseCode.FULL,
}
_UNSUBSCRIBE = {
    RequestCode.UNSUBSCRIBE_TICKER: ResponseCode.TICKER,
    RequestCode.UNSUBSCRIBE_QUOTE: ResponseCode.QUOTE,
    RequestCode.UNSUBSCRIBE_FULL: ResponseCode.FULL,
}

#: `websockets` logs every connection at INFO and, at DEBUG, the request with the token in it.
_websocket_log = logging.getLogger("dhan_pipeline.feeds.simulator.websockets")
_websocket_log.setLevel(logging.WARNING)

#: Judges (client id, token): None to let in, else the disconnect code.
Accept = Callable[[str, str], int | None]


class CurrentPackets(Protocol):
    """What is known of each instrument now, as packets. Instruments go by their index."""

    def __len__(self) -> int:
        """How many there are places for."""

    def packets(self, code: ResponseCode, index: NDArray[np.intp]) -> NDArray[Any]:
        """The current packets of these instruments: a structured array of that layout."""

    def frames(self, code: ResponseCode, index: NDArray[np.intp]) -> bytes:
        """The same, each in a WebSocket frame of its own, one after another."""


@dataclass(slots=True)
class _Prepared:
    """Packets of one kind that are to be sent when their events are due."""

    code: ResponseCode
    frames: bytes
    due: NDArray[np.intp]
    """The event that brings each packet, counted from the simulator's start."""
    messages_sent: int = 0


class _Websocket(ServerConnection):
    """The library's connection, which says nothing of its own in the middle of a message."""

    mid_message = False

    def send_data(self) -> None:
        """Write pings, pongs and closing frames, now or with the first call after the message."""
        if not self.mid_message:
            super().send_data()


class Connection:
    """One client's connection, and what it asked for."""

    def __init__(
        self,
        websocket: _Websocket,
        client_id: str,
        current: CurrentPackets,
        packets_a_message: int,
        faults: Switches,
        randomness: random.Random,
        log: SentLog | None,
    ) -> None:
        self.client_id = client_id
        self.log = log
        """What was given to the socket, if that is recorded."""
        self.sent: Counter[ResponseCode] = Counter()
        """Packets handed to the socket, by kind."""
        self.skipped = 0
        """Packets that were not sent because the client reads too slowly."""
        self.vanished = False
        """Whether `vanish` was called."""
        self.modes: NDArray[np.uint8] = np.zeros(len(current), np.uint8)
        """What it is subscribed to, by index: 1 ticker, 2 quote, 4 full, or a sum of them."""
        self._current = current
        self._packets_a_message = packets_a_message
        self._websocket = websocket
        self._prepared: list[_Prepared] = []
        self._faults = faults
        self._random = randomness
        self._gathered: list[bytes] | None = None
        self._waiting: list[bytes] = []
        self._written = 0
        """Bytes of the first of the waiting frames that the socket has already."""
        self._trickle: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def is_open(self) -> bool:
        """Whether packets can still be sent."""
        return not self._ended and self._websocket.state is State.OPEN and not self._websocket.transport.is_closing()

    @property
    def subscribed(self) -> int:
        """Instruments that the connection gets packets of."""
        return int(np.count_nonzero(self.modes))

    @property
    def unsent_bytes(self) -> int:
        """What it was given and the operating system has not taken."""
        return self._websocket.transport.get_write_buffer_size() + sum(map(len, self._waiting))

    def send(self, code: ResponseCode, index: NDArray[np.intp]) -> None:
        """The current packets of these instruments, now."""
        if len(index):
            self._write(code, self._encode(code, index), len(index))

    def send_control(self, code: ResponseCode, *values: int, segment: int = 0) -> None:
        """A packet that is about no instrument, now."""
        layout = LAYOUTS[code]
        packet = layout.struct.pack(code, layout.size, segment, 0, *values)
        self._write(code, frame_header(len(packet)) + packet, 1)

    def prepare(self, index: NDArray[np.intp], oi_changed: NDArray[np.intp], event: int) -> None:
        """Encode what the connection is to get of these instruments, which the events from `event` on have moved."""
        modes = self.modes[index]
        for code, bit in MODE_BITS.items():
            (chosen,) = np.nonzero(modes & bit)
            self._prepare(code, index[chosen], event + chosen)
        quoted = oi_changed[self.modes[oi_changed] & MODE_BITS[ResponseCode.QUOTE] != 0]
        self._prepare(ResponseCode.OPEN_INTEREST, quoted, np.full(len(quoted), event + len(index) - 1))

    def release(self, events: int) -> None:
        """Send what the events before `events` brought, unless the client has too much to read already."""
        too_slow = self._websocket.transport.get_write_buffer_size() > HIGH_WATER_BYTES
        height = self._packets_a_message
        if self._faults.stacked or self._faults.reordered:
            self._gathered = []
        for batch in self._prepared:
            size = LAYOUTS[batch.code].size * height
            size += len(frame_header(size))
            before = batch.messages_sent
            messages = -(-int(np.searchsorted(batch.due, events)) // height)
            if messages == before:
                continue
            batch.messages_sent = messages
            packets = min(messages * height, len(batch.due)) - before * height
            if too_slow:
                self.skipped += packets
                if self.log is not None:
                    self.log.skipped_ns.extend([time.time_ns()] * packets)
            else:
                self._write(batch.code, batch.frames[before * size : messages * size], packets)
        self._prepared = [batch for batch in self._prepared if batch.due[-1] >= events]
        if self._gathered is not None:
            frames, self._gathered = self._gathered, None
            self._transmit(self._mixed(frames))

    def send_frames(self, frames: bytes, packets: Mapping[ResponseCode, int]) -> None:
        """Messages of the caller's making, so many packets of each kind, now."""
        if not self.is_open or self._faults.stalled:
            return
        for code, count in packets.items():
            self._count(code, count)
        if self._faults.stacked or self._faults.reordered:
            frames = self._mixed(list(split_frames(frames)))
        self._transmit(frames)

    def send_message(self, frame: bytes, code: ResponseCode) -> None:
        """A message of the caller's making, counted under `code`, now."""
        self._write(code, frame, 1)

    async def send_half(self) -> None:
        """The first half of a message, which ends with a reset of the connection."""
        if self.is_open:
            self._end(whole=True)
            frame = frame_of(torn_packet())
            self._websocket.transport.write(frame[: len(frame) // 2])
            await asyncio.sleep(_ARRIVAL_S)
            self.reset()

    def send_huge(self) -> None:
        """A message that announces 100 MB, and the first of them."""
        if self.is_open:
            self._end(whole=True)
            self._websocket.transport.write(HUGE_HEADER + bytes(_HUGE_BYTES))

    def drop(self) -> None:
        """Close the connection without a word."""
        if self.is_open:
            self._end()
            self._websocket.transport.close()

    def vanish(self) -> None:
        """Leave the connection standing and never say anything again, nor hear: no ping and no answer to one."""
        self._end()
        self.vanished = True
        self._websocket.transport.pause_reading()
        if self._websocket.keepalive_task is not None:
            self._websocket.keepalive_task.cancel()

    def listen(self, on: bool) -> None:
        """Take what the client sends, or leave it with the operating system until then."""
        if self.is_open:
            transport = self._websocket.transport
            (transport.resume_reading if on else transport.pause_reading)()

    async def close(self, code: int) -> None:
        """Close the connection with a WebSocket code."""
        self._end(whole=True)
        await self._websocket.close(code)

    async def disconnect(self, reason_code: int) -> None:
        """Say why (code 50), then close. Nothing is sent after."""
        was_open = self.is_open
        self._end(whole=True)
        if was_open:
            packet = LAYOUTS[ResponseCode.DISCONNECT]
            self._count(ResponseCode.DISCONNECT, 1)
            self._hand_over(frame_of(packet.struct.pack(ResponseCode.DISCONNECT, packet.size, 0, 0, reason_code)))
        await self._websocket.close()

    def reset(self) -> None:
        """Drop the connection without a word: the client sees a TCP reset."""
        transport = self._websocket.transport
        if not transport.is_closing():
            self._end()
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def _prepare(self, code: ResponseCode, index: NDArray[np.intp], due: NDArray[np.intp]) -> None:
        if len(index):
            self._prepared.append(_Prepared(code, self._encode(code, index), due))

    def _encode(self, code: ResponseCode, index: NDArray[np.intp]) -> bytes:
        stack = self._packets_a_message
        if stack == 1:
            return self._current.frames(code, index)
        packets = self._current.packets(code, index)
        messages = (packets[start : start + stack].tobytes() for start in range(0, len(packets), stack))
        return b"".join(frame_header(len(message)) + message for message in messages)

    def _mixed(self, frames: list[bytes]) -> bytes:
        """The messages of a burst as the faults want them."""
        if self._faults.reordered:
            self._random.shuffle(frames)
        if self._faults.stacked:
            frames = stack(frames, self._random)
        return b"".join(frames)

    def _write(self, code: ResponseCode, frames: bytes, packets: int) -> None:
        if not self.is_open or self._faults.stalled:
            return
        self._count(code, packets)
        if self._gathered is not None:
            self._gathered.extend(split_frames(frames))
        else:
            self._transmit(frames)

    def _count(self, code: ResponseCode, packets: int) -> None:
        self.sent[code] += packets

    def _transmit(self, frames: bytes) -> None:
        if self._faults.slow or self._waiting:
            self._waiting.extend(split_frames(frames))
            if self._trickle is None or self._trickle.done():
                self._trickle = asyncio.ensure_future(self._let_trickle())
        else:
            self._hand_over(frames)

    def _hand_over(self, frames: bytes) -> None:
        self._websocket.transport.write(frames)
        if self.log is not None:
            for frame in split_frames(frames):
                self.log.add(frame)

    async def _let_trickle(self) -> None:
        """Whole messages in order, in pieces that end anywhere. What is not slow any more goes at once."""
        transport = self._websocket.transport
        while self._waiting and self.is_open:
            frame = self._waiting[0]
            while self._faults.slow and (left := len(frame) - 1 - self._written):
                piece = self._random.randint(1, min(left, max(len(frame) // 2, 1)))
                self._websocket.mid_message = True
                transport.write(frame[self._written : self._written + piece])
                self._written += piece
                if self._random.random() < len(frame) / _TRICKLE_BYTES:
                    await asyncio.sleep(_TRICKLE_S)
                    if transport.is_closing():
                        return
            self._finish_frame()

    def _finish_frame(self) -> None:
        """Write the rest of the first waiting frame, and what was held back until then."""
        frame = self._waiting.pop(0)
        rest, self._written = frame[self._written :], 0
        if not self._websocket.transport.is_closing():
            self._websocket.transport.write(rest)
            if self.log is not None:
                self.log.add(frame)
            self._websocket.mid_message = False
            self._websocket.send_data()

    def _end(self, whole: bool = False) -> None:
        """Send nothing new, and nothing more of what trickles; with `whole`, it breaks off at a message's end."""
        while whole and self._waiting and (self._written or is_continuation(self._waiting[0])):
            self._finish_frame()
        self._ended = True
        self._waiting.clear()
        if self._trickle is not None:
            self._trickle.cancel()


class Options(TypedDict, total=False):
    """What every exchange takes; see `DhanExchange`."""

    host: str
    port: int
    rest_host: str | None
    rest_port: int
    master_csv: Path | None
    accept: Accept | None
    packets_a_message: int
    ping_interval: float | None
    pong_timeout: float
    record: bool


class DhanExchange(ABC):
    """Dhan's live feed and a few pages of its REST API, on this machine. An async context manager.

    It knows everything of connections, credentials, requests and limits, and nothing of where packets come from.
    """

    def __init__(
        self,
        current: CurrentPackets,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        rest_host: str | None = None,
        rest_port: int = 0,
        master_csv: Path | None = None,
        accept: Accept | None = None,
        packets_a_message: int = 1,
        ping_interval: float | None = PING_INTERVAL_S,
        pong_timeout: float = PONG_TIMEOUT_S,
        record: bool = False,
    ) -> None:
        """Nothing listens yet.

        A port of 0 takes a free one. `master_csv` is the scrip master that REST serves, compact or detailed. `accept`
        replaces `RestServer.judge`. With `packets_a_message` above 1, packets come stacked, which the real feed was
        never seen to do. With `record`, `logs` keeps what each socket was given. `seed` is that of the faults.
        """
        clock = clock or Clock()
        self.connections: list[Connection] = []
        """Those that are open, oldest first."""
        self.faults = Switches()
        """What goes wrong for as long as it is switched on."""
        self.first_handshake = asyncio.Event()
        """Set once a client has asked for the feed."""
        self.first_connection = asyncio.Event()
        """Set once one has got it."""
        self.logs: list[SentLog] = []
        """What was given to each socket that there has been, in order of connecting, if that is recorded."""
        self._current = current
        self._record = record
        self._random = random.Random(seed)
        self._packets_a_message = packets_a_message
        self._host = host
        self._port = port
        self._ping_interval = ping_interval
        self._pong_timeout = pong_timeout
        self.rest = RestServer(clock, master_csv, rest_host or host, rest_port)
        """Its REST face."""
        self._accept = accept or self.rest.judge
        self._clock = clock
        self._sent_before: Counter[ResponseCode] = Counter()
        self._skipped_before = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: Server | None = None
        self._closing = asyncio.Event()

    @abstractmethod
    def _work(self) -> Iterable[Awaitable[None]]:
        """What goes on as long as it listens: packets are sent to the connections."""

    @abstractmethod
    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        """Index of those of the instruments that exist."""

    @abstractmethod
    def _send_snapshot(self, connection: Connection, mode: ResponseCode, index: NDArray[np.intp]) -> None:
        """What a connection gets upon subscribing."""

    @abstractmethod
    def _subscriptions_changed(self) -> None:
        """Some connection is subscribed to other instruments than before, or is gone."""

    @property
    def feed_url(self) -> str:
        """Where the feed is, without the parameters."""
        assert self._server is not None, "the simulator is not running"
        return _url("ws", self._host, self._server.sockets[0].getsockname()[1])

    @property
    def rest_url(self) -> str:
        """Where REST is; what follows is the real path, such as `/api-data/api-scrip-master.csv`."""
        return _url("http", self.rest.host, self.rest.port)

    @property
    def sent(self) -> Counter[ResponseCode]:
        """Packets handed to sockets, by kind, over all connections that there have been."""
        return sum((connection.sent for connection in self.connections), self._sent_before.copy())

    @property
    def skipped(self) -> int:
        """Packets that slow readers did not get, over all connections that there have been."""
        return self._skipped_before + sum(connection.skipped for connection in self.connections)

    async def __aenter__(self) -> Self:
        """Listen. Raises OSError where a port is taken."""
        self._server = await serve_websocket(
            self._handle,
            self._host,
            self._port,
            process_request=self._judge_handshake,
            compression=None,
            ping_interval=self._ping_interval,
            ping_timeout=self._pong_timeout,
            close_timeout=2,
            # `HIGH_WATER_BYTES` is our own limit; with this one, closing would wait for a client that never reads.
            write_limit=1 << 30,
            max_queue=None,  # reading is paused by faults alone
            create_connection=_Websocket,
            logger=_websocket_log,
        )
        try:
            await self.rest.start()
        except OSError:
            await self.aclose()
            raise
        for work in self._work():
            self._start(work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection (1001, going away) and stop listening."""
        self._closing.set()  # of the handshakes that nobody answers
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await self.rest.aclose()

    async def disconnect(self, reason_code: int) -> None:
        """Disconnect every client for this reason."""
        await asyncio.gather(*(connection.disconnect(reason_code) for connection in self.connections))

    @abstractmethod
    def flush(self) -> None:
        """Send now what is ready to be sent later."""

    def reset(self) -> None:
        """Reset every client's TCP connection."""
        for connection in self.connections:
            connection.reset()

    def send_garbage(self, kind: str, count: int = 1) -> None:
        """Messages of a `kind` of `misbehaviour.GARBAGE` to every client; counted as heartbeats."""
        for connection in self.connections:
            for _ in range(count):
                connection.send_message(GARBAGE[kind](), ResponseCode.HEARTBEAT)

    async def _judge_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        malformed = _refuse_malformed(connection, request)
        if malformed is None:
            self.first_handshake.set()
        if self.faults.mute or self.faults.vanished:
            await self._closing.wait()
        if self.faults.unreachable or self._closing.is_set():
            connection.transport.abort()
        if (status := self.faults.refuse) is not None:
            response = connection.respond(status, f"{status.phrase}\n")
            if self.faults.retry_after_s is not None:
                response.headers["Retry-After"] = str(self.faults.retry_after_s)
            return response
        return malformed

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, websocket: ServerConnection) -> None:
        """One connection, from the end of its handshake to its close."""
        assert isinstance(websocket, _Websocket)
        assert websocket.request is not None
        query = parse_qs(urlsplit(websocket.request.path).query)
        client_id = query["clientId"][0]
        log = SentLog(len(self.logs)) if self._record else None
        if log is not None:
            self.logs.append(log)
        connection = Connection(
            websocket, client_id, self._current, self._packets_a_message, self.faults, self._random, log
        )
        self.connections.append(connection)
        if self.faults.deaf:
            connection.listen(False)
        self.first_connection.set()
        try:
            refusal = self._accept(client_id, query["token"][0])
            if refusal is None:
                same_client = [other for other in self.connections if other.client_id == client_id and other.is_open]
                for oldest in same_client[:-MAX_CONNECTIONS]:
                    self._start(oldest.disconnect(805))
                with contextlib.suppress(ConnectionClosed):
                    refusal = await self._serve_requests(connection, websocket)
            if refusal is not None:
                await connection.disconnect(refusal)
        finally:
            self._forget(connection)

    async def _serve_requests(self, connection: Connection, websocket: ServerConnection) -> int | None:
        """Do what the client asks, until it asks to be disconnected (None) or for too much (the disconnect code)."""
        async for message in websocket:
            if isinstance(message, bytes):  # the broker's SDK sends one as it leaves; the feed ignores them
                continue
            try:
                request = json.loads(message)
                code = int(request["RequestCode"])
                if code == RequestCode.DISCONNECT:
                    return None
                if code == RequestCode.CONNECT:
                    continue
                listed = [(item["ExchangeSegment"], item["SecurityId"]) for item in request["InstrumentList"]]
            except (ValueError, KeyError, TypeError):
                return 814
            if len(listed) > MAX_INSTRUMENTS_A_MESSAGE:
                return 804
            self.flush()  # the snapshot is newer than what was prepared
            index = self._known(listed)
            if code in _SUBSCRIBE:
                mode = _SUBSCRIBE[RequestCode(code)]
                connection.modes[index] |= MODE_BITS[mode]
                if connection.subscribed > MAX_INSTRUMENTS:
                    return 804
                for _ in range(1 + self.faults.duplicate_snapshot):
                    self._send_snapshot(connection, mode, index)
            elif code in _UNSUBSCRIBE:
                connection.modes[index] &= ~np.uint8(MODE_BITS[_UNSUBSCRIBE[RequestCode(code)]])
            else:
                return 814
            self._subscriptions_changed()
        return None

    def _known(self, listed: Iterable[tuple[Any, Any]]) -> NDArray[np.intp]:
        """Those instruments that exist, each once."""
        tokens: dict[int, None] = {}  # keeps the order
        for segment, security_id in listed:
            with contextlib.suppress(KeyError, ValueError, TypeError):
                tokens[generate_instrument_token(ExchangeSegment[segment], security_id)] = None
        return self._index_of([*tokens])

    def _forget(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self._sent_before += connection.sent
        self._skipped_before += connection.skipped
        self._subscriptions_changed()


class DhanSimulator(DhanExchange):
    """The exchange over a synthetic market.

    `rate` events a second (real seconds, whatever the clock's speed) happen over the instruments that anybody is
    subscribed to; each goes to all of those subscribers. It may be changed at any time.
    """

    def __init__(
        self,
        instruments: Sequence[int] | NDArray[np.int64],
        *,
        rate: float = 2000.0,
        seed: int = 0,
        clock: Clock | None = None,
        status_interval: float = STATUS_INTERVAL_S,
        **options: Unpack[Options],
    ) -> None:
        """Make the market of these instrument tokens; nothing listens yet. The options are those of `DhanExchange`."""
        clock = clock or Clock()
        self.rate = rate
        self.market = Market(instruments, seed=seed, clock=clock)
        super().__init__(self.market, seed=seed, clock=clock, **options)
        self.rest.market = self.market
        self._status_interval = status_interval
        self._owed = 0.0
        self._prepared = self._released = 0  # events since the start

    def flush(self) -> None:
        """Send now what the market is ahead by. With a rate of 0 before, clients then have its last state."""
        self._release(self._prepared)

    def _work(self) -> Iterable[Awaitable[None]]:
        return self._stream(), self._send_status()

    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        found = map(self.market.index_of, tokens)
        return np.array([index for index in found if index is not None], np.intp)

    def _send_snapshot(self, connection: Connection, mode: ResponseCode, index: NDArray[np.intp]) -> None:
        connection.send(ResponseCode.PREVIOUS_CLOSE, index)
        if mode == ResponseCode.QUOTE:
            connection.send(ResponseCode.OPEN_INTEREST, self.market.derivatives(index))
        connection.send(mode, index)

    def _subscriptions_changed(self) -> None:
        """Only what somebody is subscribed to trades."""
        wanted = np.zeros(len(self.market), np.uint8)
        for connection in self.connections:
            wanted |= connection.modes
        self.market.select(np.flatnonzero(wanted))

    async def _stream(self) -> None:
        """Events at `rate`, in small bursts. What is late is caught up with, up to a bound."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(SLICE_S)
            now = loop.time()
            self._owed += self.rate * min(now - last, _CATCH_UP_S)
            last = now
            while self._owed >= 1 and loop.time() - now < _CATCH_UP_S:
                if self._released == self._prepared and not self._prepare():
                    break
                self._release(min(self._prepared, self._released + int(self._owed)))
            self._owed = min(self._owed, 1.0)

    def _prepare(self) -> bool:
        """Let the market move: as far as is due, or a little ahead, which an accelerated clock would notice.

        False where nobody is subscribed to anything.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        ahead = self.rate * _AHEAD_S / max(1.0, self._clock.speed)
        for index, oi_changed in self.market.step(min(int(max(self._owed, ahead)), _MAX_AHEAD_EVENTS)):
            for connection in self.connections:
                connection.prepare(index, oi_changed, self._prepared)
            self._prepared += len(index)
            if loop.time() - started > _AHEAD_S:  # few instruments at a high rate: as fast as it can, and no faster
                break
        return self._prepared > self._released

    def _release(self, events: int) -> None:
        for connection in self.connections:
            connection.release(events)
        self._owed -= events - self._released
        self._released = events

    async def _send_status(self) -> None:
        while True:
            await asyncio.sleep(self._status_interval)
            for connection in self.connections:
                connection.send_control(ResponseCode.HEARTBEAT)
                connection.send_control(ResponseCode.MARKET_STATUS, segment=ExchangeSegment.NSE_EQ)


async def serve(simulator: DhanSimulator, on_ready: Callable[[DhanSimulator], None]) -> None:
    """Run the exchange until cancelled. `on_ready` is called once it listens and its URLs are known."""
    async with simulator:
        on_ready(simulator)
        await asyncio.get_running_loop().create_future()


def choose_instruments(master_csv: Path, count: int) -> list[int]:
    """Tokens of `count` instruments of a scrip master: evenly over its segments if it can be, nearest expiries first.

    Raises ScripMasterError where the file is none.
    """
    from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv  # and with it pandas, which a server needs not

    rows = parse_dhan_csv(master_csv).rows.sort_values("expiry", kind="stable", na_position="first")
    rank = rows.groupby("exchange_segment").cumcount().to_numpy()
    tokens: list[int] = rows["instrument_token"].to_numpy()[np.argsort(rank, kind="stable")[:count]].tolist()
    return tokens


def _refuse_malformed(connection: ServerConnection, request: Request) -> Response | None:
    """All four parameters are required; their values are judged after the handshake, with a disconnect code."""
    query = parse_qs(urlsplit(request.path).query)
    if query.get("version") == ["2"] and query.get("authType") == ["2"] and "token" in query and "clientId" in query:
        return None
    return connection.respond(HTTPStatus.BAD_REQUEST, "version=2, token, clientId and authType=2 are required\n")


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
