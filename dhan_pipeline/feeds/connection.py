"""One connection to the live feed: handshake, subscriptions, the receive path. Reconnecting is `client`'s matter.

Receiving is where a capture spends its time, so whole binary frames, which is all that a feed sends at a rate, are cut
out of the stream here; every other byte (handshake, ping, pong, close, text, fragments) goes to `websockets` untouched.
Frames of equal size side by side, which a busy feed sends, are cut with one copy. With 200,000 messages a second of 162
bytes that takes 3 % of a core, against 14 % with picows and 89 % for `async for message in connection`; with 10,000 it
takes 2, 2 and 6 % (benchmarks/receive.py).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from dhan_pipeline.feeds.auth import Credentials
from dhan_pipeline.feeds.errors import FeedError, FeedRefusedError, HandshakeError, ServerClosedError, SilentFeedError
from dhan_pipeline.instruments import ExchangeSegment, exchange_segments
from dhan_pipeline.ticks import Mode

#: Gets messages as they arrived: payload, number of the connection, how many. Several are binary messages of equal size
#: that came at once, one after another in the payload. Called in the event loop, so it has to be cheap.
OnMessages = Callable[[bytes | str, int, int], None]

#: Whether packets of any of these segments are due now.
PacketsDue = Callable[[Collection[ExchangeSegment]], bool]

_HEAD_END = b"\r\n\r\n"
_DATA_OPCODES = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_WHOLE_BINARY_FRAME = 0x82
#: Frames of equal size in a row from which on it pays to look for more of them.
_FEWEST_ALIKE = 8

#: How often a connection asks whether a session has begun, and how long it lets what waits in the socket be read before
#: it calls it silent: after a sleep of the process, timers come before bytes.
_WATCH_S = 5.0
_GRACE_S = 0.1

#: `websockets` logs the request, whose URL contains the token. This logger has no parent and lets nothing through.
_silent_log = logging.Logger("websockets", level=logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class FeedPolicy:
    """Every duration and limit of the client. Tests shrink them."""

    first_delay_s: float = 1.0
    """Longest wait before the first attempt to reconnect; doubled with each failure. Half of a wait is random."""
    longest_delay_s: float = 60.0
    stable_s: float = 10.0
    """A connection that received messages for this long ends a series of failures."""
    rest_s: float = 60.0
    """Shortest time without a new connection after disconnect code 805 or HTTP 429; doubled with each repetition."""
    longest_rest_s: float = 300.0
    token_poll_s: float = 5.0
    """How often the credentials are read while waiting for better ones."""
    refused_token_rest_s: float = 300.0
    """A token that was refused is tried again after this time, if there is no other: servers err, too."""
    mint_interval_s: float = 130.0
    """How long after a token was asked for another may be, if the first request failed."""
    silence_s: float = 90.0
    """A connection through which nothing came for this long is replaced. Dhan's server pings every 10 s."""
    heartbeat_silence_s: float = 10.0
    """The same where the server sends a heartbeat every few seconds, as Kite's does, and it did not."""
    open_timeout_s: float = 10.0
    close_timeout_s: float = 1.0
    ping_interval_s: float | None = None
    """Our own keepalive. Off: the server pings, and `silence_s` notices when it does not."""
    ping_timeout_s: float | None = None
    max_reconnects: int | None = None
    """How many attempts in a row may fail before a connection is given up. None: any number."""

    def delay_s(self, failures: int) -> float:
        """How long to wait after so many consecutive failures."""
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1)

    def rest(self, times: int, at_least_s: float = 0.0) -> float:
        """How long to rest when told to for the so-manieth time in a row, in seconds."""
        rest_s = max(self.rest_s * 2.0 ** min(times - 1, 30), at_least_s)
        return min(self.longest_rest_s, rest_s) * random.uniform(1, 1.25)


DEFAULT_POLICY = FeedPolicy()


@dataclass(frozen=True, slots=True)
class Wire:
    """How a broker is spoken to: all that a connection has to know of its protocol."""

    url: Callable[[str, Any], str]
    """The URL for a base URL and credentials, which contains the token. Raises SourceError for an unusable base."""
    subscribe: Callable[[Mapping[int, Mode]], list[str]]
    unsubscribe: Callable[[Mapping[int, Mode]], list[str]]
    """The messages that begin and end these subscriptions."""
    refused: Callable[[int, float], FeedError]
    """The error for the HTTP status of a refused handshake, and for how long the server asked to be left alone."""
    ending: Callable[[bytes], FeedError | None]
    """Why the server ends the connection, if the binary message says so."""
    begins: Callable[[bytes | str], bool]
    """Whether a message says that data comes."""
    max_message_bytes: int
    """The longest message that is accepted."""
    ending_size: int = 0
    """Bytes of a message that is nothing but an ending; 0 for none."""
    heartbeat_size: int = 0
    """Messages of so many bytes, or less, say that the connection stands, and nothing else."""
    farewell: str | None = None
    """What is said before leaving."""
    headers: Mapping[str, str] = field(default_factory=dict)


class FeedConnection:
    """One connection and its subscriptions, which outlive the sockets that carry them."""

    def __init__(
        self,
        wire: Wire,
        number: int,
        subscriptions: Mapping[int, Mode],
        on_messages: OnMessages,
        policy: FeedPolicy = DEFAULT_POLICY,
        packets_due: PacketsDue = lambda segments: False,
        on_first_message: Callable[[int], None] = lambda connection: None,
    ) -> None:
        """`packets_due` says whether messages are due; if so, the server's pings do not count as a sign of life.

        `on_first_message(number)` is called before the first message of each socket is handed over.
        """
        self._wire = wire
        self.number = number
        self.subscriptions = dict(subscriptions)
        """The mode of each instrument token that is wanted. Once it is changed, `tell` the server."""
        self._told: dict[int, Mode] = {}
        self._telling = asyncio.Lock()
        self._on_messages = on_messages
        self._policy = policy
        self._packets_due = packets_due
        self._on_first_message = on_first_message
        self._socket: _Socket | None = None
        self._dropped: FeedError | None = None
        self.useful_s = 0.0
        """For how long messages came through the last socket, in seconds."""
        self.message_at = self.heard_at = 0.0
        """When a message, and anything at all, last came through the last socket, in the event loop's time."""

    @property
    def up(self) -> bool:
        """Whether messages can arrive."""
        return self._socket is not None and self._socket.state is State.OPEN

    async def open(self, credentials: Credentials, base_url: str) -> None:
        """Connect. Raises FeedError saying why not, SourceError for an unusable `base_url`; neither holds the URL."""
        self._dropped = None
        outcome = await self._connect(credentials, base_url)
        # Raised here, not where it was caught: the frames and exceptions of the library know the URL.
        if isinstance(outcome, FeedError):
            raise outcome
        self._socket = outcome
        self._told = {}
        if self._dropped is not None:
            outcome.drop(self._dropped)

    async def receive(self) -> float:
        """Subscribe all, then receive until the connection ends. Closes it when cancelled, within `close_timeout_s`.

        Raises FeedError saying why it ended, or what `on_messages` raised.
        """
        socket = self._socket
        assert socket is not None, "the connection is not open"
        try:
            await self.tell()
            await self._wait_until_lost(socket)
        finally:
            self._socket = None
            self.useful_s = socket.message_at - socket.opened_at
            self.message_at, self.heard_at = socket.message_at, socket.heard_at
            await socket.leave()
        if socket.failure is not None:
            raise socket.failure
        raise socket.end()

    def drop(self, reason: FeedError) -> None:
        """End the socket for this reason; where one is being opened, once it is open."""
        self._dropped = reason
        if self._socket is not None:
            self._socket.drop(reason)

    async def tell(self) -> None:
        """Have the server know `subscriptions`, if it is there: end what is not wanted any more, begin what is new.

        Without the first the server goes on sending, and counting them.
        """
        # One after the other: what is ended was begun before. And what is changed meanwhile is told then.
        async with self._telling:
            if (socket := self._socket) is None:  # what it does not know is said once it is there
                return
            before, self._told = self._told, dict(self.subscriptions)
            ended = {token: mode for token, mode in before.items() if self._told.get(token) != mode}
            begun = {token: mode for token, mode in self._told.items() if before.get(token) != mode}
            if not ended and not begun:
                return
            # In a thread: 5,000 instruments in another mode take 30 ms to write down, and the sockets would wait.
            messages = await asyncio.to_thread(lambda: [*self._wire.unsubscribe(ended), *self._wire.subscribe(begun)])
            # A connection that is lost meanwhile is found to be so elsewhere.
            with contextlib.suppress(ConnectionClosed):
                for message in messages:
                    await socket.send(message)

    async def _connect(self, credentials: Credentials, base_url: str) -> "_Socket | FeedError":
        def create(*args: Any, **kwargs: Any) -> _Socket:
            return _Socket(
                *args,
                wire=self._wire,
                on_messages=self._on_messages,
                on_first_message=self._on_first_message,
                number=self.number,
                **kwargs,
            )

        try:
            connection = await connect(
                self._wire.url(base_url, credentials),
                create_connection=cast(type[ClientConnection], create),
                compression=None,
                additional_headers=self._wire.headers,
                max_size=self._wire.max_message_bytes,
                open_timeout=self._policy.open_timeout_s,
                close_timeout=self._policy.close_timeout_s,
                ping_interval=self._policy.ping_interval_s,
                ping_timeout=self._policy.ping_timeout_s,
                logger=_silent_log,
            )
        except InvalidStatus as error:
            retry_after_s = _retry_after_s(error.response.headers.get("Retry-After"))
            return self._wire.refused(error.response.status_code, retry_after_s)
        except TimeoutError:
            return FeedError("the server did not answer the handshake in time")
        except OSError as error:
            return FeedError(f"the server cannot be reached: {error.strerror or error}")
        except WebSocketException as error:
            # Only its name: some of these quote the URL.
            return HandshakeError(f"the handshake failed ({type(error).__name__}); the token may be invalid")
        assert isinstance(connection, _Socket)
        return connection

    async def _wait_until_lost(self, socket: "_Socket") -> None:
        """Return when the connection is closed. Raises SilentFeedError when nothing came through it for too long."""
        loop = asyncio.get_running_loop()
        policy = self._policy
        unheard_s = policy.heartbeat_silence_s if self._wire.heartbeat_size else policy.silence_s
        due_since: float | None = None
        suspected = False
        while True:
            if self._packets_due(self._segments()):
                # What was silent before the session was not silent in it.
                due_since = loop.time() if due_since is None else due_since
                heard_at = max(socket.message_at, due_since)
            else:
                due_since = None
                heard_at = socket.heard_at
            ends_at = heard_at + (policy.silence_s if due_since is not None else unheard_s)
            of_data = not self._wire.heartbeat_size or ends_at < socket.heard_at + unheard_s
            if not of_data:
                heard_at, ends_at = socket.heard_at, socket.heard_at + unheard_s
            left_s = ends_at - loop.time()
            if left_s <= 0 and suspected:
                raise SilentFeedError(f"nothing came for {loop.time() - heard_at:.0f} s", of_data=of_data)
            suspected = left_s <= 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S if suspected else min(left_s, _WATCH_S)):
                    await socket.wait_closed()
                    return

    def _segments(self) -> frozenset[ExchangeSegment]:
        return exchange_segments(list(self.subscriptions))


def _retry_after_s(header: str | None) -> float:
    """What the header Retry-After asks for, in seconds: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if header is None:
        return 0.0
    try:
        if header.strip().isdecimal():
            return float(header)
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _alike(data: bytes, start: int, body: int, end: int) -> tuple[bytes, int]:
    """The payloads of the frame at `start` and of those that follow it with the same header, and how many there are."""
    size, head = end - start, body - start
    heads = np.ndarray((len(data) - start) // size, f"V{head}", data, start, size)
    same = heads == heads[0]
    count = len(same) if np.count_nonzero(same) == len(same) else int(same.argmin())
    return np.ndarray((count, size - head), np.uint8, data, body, (size, 1)).tobytes(), count


class _Socket(ClientConnection):
    """A `websockets` connection that hands over messages from within `data_received`, without queue or task switch."""

    def __init__(
        self,
        *args: Any,
        wire: Wire,
        on_messages: OnMessages,
        on_first_message: Callable[[int], None],
        number: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.opened_at = self.heard_at = self.message_at = self.loop.time()
        """When it was made, when anything last came, and when a message last came, in the event loop's time."""
        self.failure: Exception | None = None
        """What `on_messages` raised."""
        self._wire = wire
        self._on_messages = on_messages
        self._deliver: OnMessages = self._deliver_first
        self._on_first_message: Callable[[int], None] | None = on_first_message
        self._number = number
        self._receive: Callable[[bytes], None] = self._receive_head
        self._rest: list[bytes] = []  # of what came: the beginning of a frame, of which there are bytes missing
        self._missing = 0
        self._last_message = b""
        self._fragments: list[bytes | bytearray | memoryview] = []
        self._is_text = False
        self._reason: FeedError | None = None
        self._lost: Exception | None = None
        self._hang_up: asyncio.TimerHandle | None = None

    def drop(self, reason: FeedError) -> None:
        """End the connection at once, for this reason."""
        self._reason = reason
        self.transport.abort()

    def _deliver_first(self, payload: bytes | str, connection: int, count: int) -> None:
        # All messages of the bytes that brought the first one come here. That the server ends it is no beginning.
        if self._wire.begins(payload[: len(payload) // count]):
            self._deliver = self._on_messages
            if self._on_first_message is not None:
                self._on_first_message(connection)
                self._on_first_message = None
        self._on_messages(payload, connection, count)

    def end(self) -> FeedError:
        """Why the connection ended."""
        if self._reason is not None:
            return self._reason
        # An ending among other packets, or one that grew: nothing but the last message has to be read for it.
        if (error := self._wire.ending(self._last_message)) is not None:
            return error
        closed = self.protocol.close_rcvd
        if closed is not None:
            return ServerClosedError(f"the server closed the connection ({closed.code:d})")
        if self._lost is not None:
            return FeedError(f"the connection was lost: {self._lost}")
        return FeedError("the connection was lost without a word from the server")

    async def leave(self) -> None:
        """Take leave of the server, as far as that is possible in a short time, and end the connection."""
        try:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(self.close_timeout):
                    if self._wire.farewell is not None:
                        await self.send(self._wire.farewell)
                    await self.close()
        finally:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the transport."""
        self.heard_at = self.loop.time()
        if self._rest:
            self._rest.append(data)
            self._missing -= len(data)
            if self._missing > 0:  # a long message comes in many pieces, which are joined once
                return
            data = b"".join(self._rest)
            self._rest.clear()
        try:
            self._receive(data)
        except Exception as error:  # on_messages's; nothing may be received that was not taken
            self.failure = error
            self.transport.abort()
        if self._hang_up is None and self.state is State.CLOSING:
            # Hanging up after the closing handshake is the server's part, and some never do.
            self._hang_up = self.loop.call_later(self.close_timeout or 0, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember why."""
        self._lost = exc
        if self._hang_up is not None:
            self._hang_up.cancel()
        super().connection_lost(exc)

    def process_event(self, event: Event) -> None:
        """Put together messages that did not come as one binary frame."""
        if not isinstance(event, Frame) or event.opcode not in _DATA_OPCODES:
            super().process_event(event)
            return
        if event.opcode is not Opcode.CONT:
            self._is_text = event.opcode is Opcode.TEXT
        self._fragments.append(event.data)
        if event.fin:
            message = b"".join(self._fragments)
            self._fragments.clear()
            if not self._is_text:
                self._last_message = message
            payload = message.decode(errors="surrogateescape") if self._is_text else message
            if self._wire.begins(payload):
                self.message_at = self.heard_at
            self._deliver(payload, self._number, 1)

    def _receive_head(self, data: bytes) -> None:
        """The answer to the handshake belongs to `websockets`; frames may follow it in the same bytes."""
        end = data.find(_HEAD_END)
        if end < 0:
            self._rest.append(data)
            self._missing = 0
            return
        end += len(_HEAD_END)
        self._receive = super().data_received
        self._receive(data[:end])
        if self.state is State.OPEN:
            self._receive = self._receive_frames
        self._receive(data[end:])

    def _receive_frames(self, data: bytes) -> None:
        """Frames: https://datatracker.ietf.org/doc/html/rfc6455#section-5.2"""
        on_messages, number, longest = self._deliver, self._number, self._wire.max_message_bytes
        ending_size, heartbeat_size = self._wire.ending_size, self._wire.heartbeat_size or -1
        start = end = 0
        stop = len(data)
        message: bytes | None = None
        far = _FEWEST_ALIKE - 1
        while stop - start >= 2:
            length = data[start + 1]
            body = start + 2
            if length == 126:
                end = body = start + 4
                if body > stop:
                    break
                length = data[start + 2] << 8 | data[start + 3]
            elif length == 127:
                end = body = start + 10
                if body > stop:
                    break
                length = int.from_bytes(data[start + 2 : body], "big")
            elif length > 127:  # masked, which a server's frames must not be
                length = longest + 1
            if length > longest:
                # `websockets` knows how to refuse it, and nothing after it can be read.
                self._receive = super().data_received
                self._receive(data[start:])
                return
            end = body + length
            if end > stop:
                break
            if data[start] == _WHOLE_BINARY_FRAME:
                ahead = start + far * (end - start)
                if length == ending_size:
                    self._hear_of_ending(data[body:end])
                elif data[ahead : ahead + body - start] == data[start:body]:
                    payload, count = _alike(data, start, body, end)
                    if length > heartbeat_size:
                        message = payload[-length:] if length else b""
                    on_messages(payload, number, count)
                    start += count * (end - start)
                    continue
                if length <= heartbeat_size:
                    on_messages(data[body:end], number, 1)
                else:
                    message = data[body:end]
                    on_messages(message, number, 1)
            else:
                super().data_received(data[start:end])
            start = end
        if message is not None:
            self.message_at = self.heard_at
            self._last_message = message
        if start < stop:
            self._rest.append(data[start:])
            self._missing = end - stop

    def _hear_of_ending(self, message: bytes) -> None:
        error = self._wire.ending(message)
        if error is None:
            return
        if type(error) is FeedRefusedError:
            self._reason = error  # whether the connection is over is the server's to say
        else:
            self.drop(error)
