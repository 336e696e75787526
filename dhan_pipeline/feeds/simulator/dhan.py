"""A server that speaks Dhan's live feed: of any packets, and over a synthetic market.

What the documentation says, and what was observed where it is silent: parameters in the URL, JSON requests without
acknowledgement, one packet a WebSocket message, a snapshot upon subscribing, the limits with their disconnect codes.
Silence about instruments that do not exist is part of it.
"""

import asyncio
import contextlib
import json
import random
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, RequestCode, ResponseCode
from dhan_pipeline.feeds.simulator.exchange import (
    HIGH_WATER_BYTES,
    PING_INTERVAL_S,
    PONG_TIMEOUT_S,
    Connection,
    Exchange,
    Websocket,
)
from dhan_pipeline.feeds.simulator.market import Market, frame_header
from dhan_pipeline.feeds.simulator.misbehaviour import GARBAGE, SentLog, Switches, frame_of, torn_packet
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.feeds.simulator.trading import Trading
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token

if TYPE_CHECKING:
    import pandas as pd

#: Limits of the live feed: https://dhanhq.co/docs/v2/live-market-feed/
MAX_CONNECTIONS = 5
MAX_INSTRUMENTS = 5000
MAX_INSTRUMENTS_A_MESSAGE = 100

#: A heartbeat and a market status go to every connection this often.
STATUS_INTERVAL_S = 30.0

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


class DhanConnection(Connection):
    """A connection that gets Dhan's packets."""

    def __init__(
        self,
        websocket: Websocket,
        client_id: str,
        current: CurrentPackets,
        packets_a_message: int,
        faults: Switches,
        randomness: random.Random,
        log: SentLog | None,
    ) -> None:
        super().__init__(websocket, client_id, len(current), faults, randomness, log)
        self._current = current
        self._packets_a_message = packets_a_message
        self._prepared: list[_Prepared] = []
        self.token = ""
        """What the client's handshake had."""

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

    async def disconnect(self, reason_code: int) -> None:
        """Say why (code 50), then close. Nothing is sent after."""
        was_open = self.is_open
        self._end(whole=True)
        if was_open:
            packet = LAYOUTS[ResponseCode.DISCONNECT]
            self._count(ResponseCode.DISCONNECT, 1)
            self._hand_over(frame_of(packet.struct.pack(ResponseCode.DISCONNECT, packet.size, 0, 0, reason_code)))
        await self._websocket.close()

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


class DhanExchange(Exchange[DhanConnection]):
    """Dhan's live feed and a few pages of its REST API, on this machine. An async context manager.

    It knows everything of credentials, requests and limits, and nothing of where packets come from.
    """

    source = "dhan"
    kinds: ClassVar = {code: code.name.lower() for code in ResponseCode}
    garbage = GARBAGE

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
        self.rest = RestServer(clock, master_csv, rest_host or host, rest_port)
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
        self._accept = accept or self.rest.judge

    @abstractmethod
    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        """Index of those of the instruments that exist."""

    async def disconnect(self, reason_code: int) -> None:
        """Disconnect every client for this reason."""
        await asyncio.gather(*(connection.disconnect(reason_code) for connection in self.connections))

    async def _serve_requests(self, connection: DhanConnection, websocket: ServerConnection) -> int | None:
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

    @abstractmethod
    def _send_snapshot(self, connection: DhanConnection, mode: ResponseCode, index: NDArray[np.intp]) -> None:
        """What a connection gets upon subscribing."""

    def _torn_message(self) -> bytes:
        return frame_of(torn_packet())

    def _refusal(self, query: dict[str, list[str]]) -> tuple[HTTPStatus, str] | None:
        """All four parameters are required; their values are judged after the handshake, with a disconnect code."""
        named = query.get("version") == ["2"] and query.get("authType") == ["2"]
        if named and "token" in query and "clientId" in query:
            return None
        return HTTPStatus.BAD_REQUEST, "version=2, token, clientId and authType=2 are required\n"

    def _connect(self, websocket: Websocket, query: dict[str, list[str]], log: SentLog | None) -> DhanConnection:
        connection = DhanConnection(
            websocket, query["clientId"][0], self._current, self._packets_a_message, self.faults, self._random, log
        )
        connection.token = query["token"][0]
        return connection

    async def _serve(self, connection: DhanConnection, websocket: ServerConnection) -> None:
        refusal = self._accept(connection.client_id, connection.token)
        if refusal is None:
            same_client = [
                other for other in self.connections if other.client_id == connection.client_id and other.is_open
            ]
            for oldest in same_client[:-MAX_CONNECTIONS]:
                self._start(oldest.disconnect(805))
            with contextlib.suppress(ConnectionClosed):
                refusal = await self._serve_requests(connection, websocket)
        if refusal is not None:
            await connection.disconnect(refusal)


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
        self.market = Market(instruments, seed=seed, clock=clock)
        self.trading = Trading(self.market, rate, clock)
        super().__init__(self.market, seed=seed, clock=clock, **options)
        self.trading.audiences.append(self.connections)
        self.rest.market = self.market
        self._status_interval = status_interval

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

    def _work(self) -> Iterable[Awaitable[None]]:
        return self.trading.run(), self._send_status()

    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        found = map(self.market.index_of, tokens)
        return np.array([index for index in found if index is not None], np.intp)

    def _send_snapshot(self, connection: DhanConnection, mode: ResponseCode, index: NDArray[np.intp]) -> None:
        connection.send(ResponseCode.PREVIOUS_CLOSE, index)
        if mode == ResponseCode.QUOTE:
            connection.send(ResponseCode.OPEN_INTEREST, self.market.derivatives(index))
        connection.send(mode, index)

    def _subscriptions_changed(self) -> None:
        self.trading.choose()

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
    tokens: list[int] = choose_rows(master_csv, count)["instrument_token"].tolist()
    return tokens


def choose_rows(master_csv: Path, count: int) -> "pd.DataFrame":
    """The rows of the same instruments, as `parse_dhan_csv` gives them. No index has a name that another has, too."""
    from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv  # and with it pandas, which a server needs not

    rows = parse_dhan_csv(master_csv).rows
    is_index = rows["exchange_segment"] == ExchangeSegment.IDX_I.name
    rows = rows[~is_index | ~rows["trading_symbol"].where(is_index).duplicated(keep=False)]
    rows = rows.sort_values("expiry", kind="stable", na_position="first")
    rank = rows.groupby("exchange_segment").cumcount().to_numpy()
    return rows.iloc[np.argsort(rank, kind="stable")[:count]]
