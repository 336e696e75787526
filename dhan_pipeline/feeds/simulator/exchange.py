"""What both simulated brokers have in common: a server of WebSockets whose packets go out many at once.

Packets bypass `websockets`' own sending, which costs more than making them: whole frames go to the transport, many at
once. Its pings, pongs and closing handshake remain; they write whole frames too, so that both can be mixed. While a
frame trickles, they wait for its end.
"""

import asyncio
import logging
import random
import socket
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.http11 import Request, Response
from websockets.protocol import State

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.http_server import HttpServer
from dhan_pipeline.feeds.simulator.misbehaviour import (
    HUGE_HEADER,
    SentLog,
    Switches,
    is_continuation,
    split_frames,
    stack,
)
from dhan_pipeline.sources import Source

#: The feed pings this often, and drops a connection that has not answered for this long.
PING_INTERVAL_S = 10.0
PONG_TIMEOUT_S = 40.0

#: Sizes and pauses of bytes that trickle.
_TRICKLE_BYTES = 8192
_TRICKLE_S = 0.002

#: How long what a client is to see before a reset has to arrive: a reset drops what is still unread.
_ARRIVAL_S = 0.05

#: How much of a message that announces 100 MB is sent.
_HUGE_BYTES = 4 << 20

#: Unsent bytes above which a connection is given no further packets until it has read some.
HIGH_WATER_BYTES = 4 << 20

#: Under which heartbeats are counted in `sent`, and whatever has no kind.
HEARTBEAT = 0

#: `websockets` logs every connection at INFO and, at DEBUG, the request with the token in it.
_websocket_log = logging.getLogger("dhan_pipeline.feeds.simulator.websockets")
_websocket_log.setLevel(logging.WARNING)


class Websocket(ServerConnection):
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
        websocket: Websocket,
        client_id: str,
        instruments: int,
        faults: Switches,
        randomness: random.Random,
        log: SentLog | None,
    ) -> None:
        self.client_id = client_id
        self.log = log
        """What was given to the socket, if that is recorded."""
        self.sent: Counter[int] = Counter()
        """Packets handed to the socket, by kind."""
        self.skipped = 0
        """Packets that were not sent because the client reads too slowly."""
        self.vanished = False
        """Whether `vanish` was called."""
        self.modes: NDArray[np.uint8] = np.zeros(instruments, np.uint8)
        """What it is subscribed to, by index: 1 ticker, 2 quote, 4 full, or a sum of them."""
        self._websocket = websocket
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

    def send_frames(self, frames: bytes, packets: Mapping[Any, int]) -> None:
        """Messages of the caller's making, so many packets of each kind, now."""
        if not self.is_open or self._faults.stalled:
            return
        for code, count in packets.items():
            self._count(code, count)
        if self._faults.stacked or self._faults.reordered:
            frames = self._mixed(list(split_frames(frames)))
        self._transmit(frames)

    def send_message(self, frame: bytes, code: int) -> None:
        """A message of the caller's making, counted under `code`, now."""
        self._write(code, frame, 1)

    async def send_half(self, frame: bytes) -> None:
        """The first half of a message, which ends with a reset of the connection."""
        if self.is_open:
            self._end(whole=True)
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

    def reset(self) -> None:
        """Drop the connection without a word: the client sees a TCP reset."""
        transport = self._websocket.transport
        if not transport.is_closing():
            self._end()
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def _mixed(self, frames: list[bytes]) -> bytes:
        """The messages of a burst as the faults want them."""
        if self._faults.reordered:
            self._random.shuffle(frames)
        if self._faults.stacked:
            frames = stack(frames, self._random)
        return b"".join(frames)

    def _write(self, code: int, frames: bytes, packets: int) -> None:
        if not self.is_open or self._faults.stalled:
            return
        self._count(code, packets)
        if self._gathered is not None:
            self._gathered.extend(split_frames(frames))
        else:
            self._transmit(frames)

    def _count(self, code: int, packets: int) -> None:
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


C = TypeVar("C", bound=Connection)


class Exchange(ABC, Generic[C]):
    """A broker's live feed and a few pages of its REST API, on this machine. An async context manager.

    It knows everything of sockets and of what goes wrong with them, and nothing of a protocol.
    """

    source: ClassVar[Source]
    kinds: ClassVar[Mapping[int, str]]
    """Names of what is counted in `sent`."""
    garbage: ClassVar[Mapping[str, Callable[[], bytes]]]
    """Messages that no feed should send, by name: each makes the frames of one."""

    def __init__(
        self,
        rest: HttpServer,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        ping_interval: float | None = PING_INTERVAL_S,
        pong_timeout: float = PONG_TIMEOUT_S,
        record: bool = False,
    ) -> None:
        """Nothing listens yet.

        A port of 0 takes a free one. With `record`, `logs` keeps what each socket was given. `seed` is that of the
        faults.
        """
        self.connections: list[C] = []
        """Those that are open, oldest first."""
        self.faults = Switches()
        """What goes wrong for as long as it is switched on."""
        self.first_handshake = asyncio.Event()
        """Set once a client has asked for the feed."""
        self.first_connection = asyncio.Event()
        """Set once one has got it."""
        self.logs: list[SentLog] = []
        """What was given to each socket that there has been, in order of connecting, if that is recorded."""
        self._record = record
        self._random = random.Random(seed)
        self._host = host
        self._port = port
        self._ping_interval = ping_interval
        self._pong_timeout = pong_timeout
        self._rest = rest
        self._clock = clock or Clock()
        self._sent_before: Counter[int] = Counter()
        self._skipped_before = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: Server | None = None
        self._closing = asyncio.Event()

    @abstractmethod
    def _work(self) -> Iterable[Awaitable[None]]:
        """What goes on as long as it listens: packets are sent to the connections."""

    @abstractmethod
    def _refusal(self, query: dict[str, list[str]]) -> tuple[HTTPStatus, str] | None:
        """With what a handshake that has these parameters is refused, if it is."""

    @abstractmethod
    def _connect(self, websocket: Websocket, query: dict[str, list[str]], log: SentLog | None) -> C:
        """The connection of a client whose handshake had these parameters."""

    @abstractmethod
    async def _serve(self, connection: C, websocket: ServerConnection) -> None:
        """Do what the client asks for, until one of both ends it."""

    @abstractmethod
    def _torn_message(self) -> bytes:
        """The frame of a message, half of which is sent."""

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
        return _url("http", self._rest.host, self._rest.port)

    @property
    def sent(self) -> Counter[int]:
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
            create_connection=Websocket,
            logger=_websocket_log,
        )
        try:
            await self._rest.start()
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
        await self._rest.aclose()

    @abstractmethod
    def flush(self) -> None:
        """Send now what is ready to be sent later."""

    def send_garbage(self, kind: str, count: int = 1) -> None:
        """Messages of a kind of `garbage` to every client; counted as heartbeats."""
        for connection in self.connections:
            for _ in range(count):
                connection.send_message(self.garbage[kind](), HEARTBEAT)

    async def send_half(self) -> None:
        """Half a message to every client, and then a reset."""
        frame = self._torn_message()
        await asyncio.gather(*(connection.send_half(frame) for connection in list(self.connections)))

    def reset(self) -> None:
        """Reset every client's TCP connection."""
        for connection in self.connections:
            connection.reset()

    async def _judge_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        refusal = self._refusal(parse_qs(urlsplit(request.path).query))
        if refusal is None:
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
        return None if refusal is None else connection.respond(*refusal)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, websocket: ServerConnection) -> None:
        """One connection, from the end of its handshake to its close."""
        assert isinstance(websocket, Websocket)
        assert websocket.request is not None
        query = parse_qs(urlsplit(websocket.request.path).query)
        log = SentLog(len(self.logs)) if self._record else None
        if log is not None:
            self.logs.append(log)
        connection = self._connect(websocket, query, log)
        self.connections.append(connection)
        if self.faults.deaf:
            connection.listen(False)
        self.first_connection.set()
        try:
            await self._serve(connection, websocket)
        finally:
            self._forget(connection)

    def _forget(self, connection: C) -> None:
        self.connections.remove(connection)
        self._sent_before += connection.sent
        self._skipped_before += connection.skipped
        self._subscriptions_changed()


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
