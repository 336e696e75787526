"""The exchange over a recording: what was received once is sent again, in order, as fast as wanted.

A client that subscribes gets what was recorded of its instruments from then on, in the mode that it asked for (see
`latest`), and before it the latest of what was recorded until then. What is about no instrument (heartbeat, market
status, text, what cannot be read) goes to everybody. Packets that ended a connection are left out. Each packet comes in
a message of its own, with the bytes that were recorded.

Nothing is skipped: while a client has too much to read, everybody waits, and what is late by then comes at once.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.decode import TEXT
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.simulator.dhan import MODE_BITS, DhanConnection, DhanExchange, Options
from dhan_pipeline.feeds.simulator.exchange import HIGH_WATER_BYTES
from dhan_pipeline.feeds.simulator.latest import SENT_MODES, Latest, framed
from dhan_pipeline.feeds.simulator.misbehaviour import frame_of
from dhan_pipeline.feeds.simulator.recording import ABOUT_INSTRUMENTS, Messages, Packets, packets_of
from dhan_pipeline.feeds.simulator.trading import SLICE_S
from dhan_pipeline.instruments import split_instrument_token

log = logging.getLogger(__name__)

#: Packets that are sent at once, at most: other tasks wait for them.
_BURST = 2048

#: How long subscriptions must have rested before the recording begins: a client sends many, over several connections.
SETTLED_S = 1.0

#: How often a client that has too much to read is looked at.
_PATIENCE_S = 0.001

#: No recording is longer, and a time that is so much later is still a time: a speed may be any number.
_LONGEST_NS = 2.0**62

_TEXT_FRAME = 0x81

#: Packets that go to everybody and have a layout.
_FOR_ALL = (ResponseCode.HEARTBEAT, ResponseCode.MARKET_STATUS)


class DhanReplay(DhanExchange):
    """The exchange over a recording. `begin` lets it begin; by itself it does so once clients have subscribed."""

    def __init__(
        self,
        recording: Iterator[Messages],
        *,
        speed: float | None = 1.0,
        settled_s: float | None = SETTLED_S,
        shift_times: bool = False,
        now_s: Callable[[], float] = time.monotonic,
        seed: int = 0,
        clock: Clock | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Nothing listens yet. `recording` is read in a thread, a piece ahead of what is sent.

        Time runs `speed` times as fast as it did; None is as fast as the clients read. The recording begins once some
        client is subscribed and none has changed what it is subscribed to for `settled_s` seconds; None leaves that to
        `begin`. With `shift_times`, trades are as long ago as they were when they were recorded. `now_s` is the clock
        by which packets are due, in seconds since any instant. The options are those of `DhanExchange`.
        """
        self._latest = Latest()
        clock = clock or Clock()
        super().__init__(self._latest, seed=seed, clock=clock, **options)
        self.begun = asyncio.Event()
        """Set once the recording runs."""
        self.ended = asyncio.Event()
        """Set once all of it was sent and every client has taken it; also where it cannot be read on."""
        self.failure: Exception | None = None
        """Why it could not be read on."""
        self.at_ns: int | None = None
        """When the last packet that was sent had been received: ns since the Unix epoch, UTC. None before the first."""
        self.played = 0
        """Packets of the recording that were sent to whoever wanted them."""
        self._recording = map(packets_of, recording)
        self._speed = speed
        self._settled_s = settled_s
        self._shift_times = shift_times
        self._now_s = now_s
        self._began_s = 0.0
        self._first_ns = 0
        self._asked: NDArray[np.bool_] = np.zeros(len(self._latest), np.bool_)
        self._settling: asyncio.TimerHandle | None = None
        self._told = False

    def begin(self) -> None:
        """Let the recording run from now on, whoever listens."""
        self.begun.set()

    def flush(self) -> None:
        """Nothing is ready before it is due."""

    @property
    def asked(self) -> int:
        """Instruments that any client has asked for."""
        return int(np.count_nonzero(self._asked))

    @property
    def missing(self) -> NDArray[np.int64]:
        """Tokens of those of them of which nothing has been recorded until now."""
        return self._latest.tokens[np.flatnonzero(self._asked & ~self._latest.recorded)]

    async def aclose(self) -> None:
        """Close every connection (1001, going away) and stop listening."""
        if self._settling is not None:
            self._settling.cancel()
        await super().aclose()

    def _work(self) -> Iterable[Awaitable[None]]:
        return (self._run(),)

    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        return self._enter(np.array(tokens, np.int64)).astype(np.intp)

    def _send_snapshot(self, connection: DhanConnection, mode: ResponseCode, index: NDArray[np.intp]) -> None:
        latest = self._latest
        latest.shift_s = self._shift(self.at_ns) if self.at_ns is not None else 0
        connection.send(ResponseCode.PREVIOUS_CLOSE, latest.has(ResponseCode.PREVIOUS_CLOSE, index))
        if mode == ResponseCode.QUOTE:
            connection.send(ResponseCode.OPEN_INTEREST, latest.has(ResponseCode.OPEN_INTEREST, index))
        sent = latest.mode_of(mode, index)
        for code, bit in MODE_BITS.items():
            connection.send(code, index[sent == bit])

    def _subscriptions_changed(self) -> None:
        subscribed = [connection for connection in self.connections if connection.subscribed]
        for connection in subscribed:
            self._asked |= connection.modes > 0
        if self._settled_s is None or self.begun.is_set():
            return
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if subscribed:
            self._settling = asyncio.get_running_loop().call_later(self._settled_s, self.begin)

    def _enter(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """Index of each instrument, with a place for it everywhere."""
        index = self._latest.enter(tokens)
        if len(self._asked) < len(self._latest):
            self._asked = _grown(self._asked, len(self._latest))
            for connection in self.connections:
                connection.modes = _grown(connection.modes, len(self._latest))
        return index

    def _shift(self, received_ns: Any) -> Any:
        """Seconds (int, or an array of them) by which the trade times of what was received then move."""
        return (self._clock.now_ns() - received_ns) // 1_000_000_000 if self._shift_times else 0

    async def _run(self) -> None:
        try:
            await self._play()
            while any(client.is_open and client.unsent_bytes for client in self.connections):  # noqa: ASYNC110
                await asyncio.sleep(_PATIENCE_S)
        except Exception as error:
            self.failure = error
        self.ended.set()

    async def _play(self) -> None:
        """Send the recording, a piece ahead of which is read in a thread."""
        ahead = self._read()
        try:
            await self.begun.wait()
            while (packets := await ahead) is not None:
                ahead = self._read()
                if len(packets):
                    await self._play_piece(packets)
        finally:
            ahead.cancel()

    def _read(self) -> "asyncio.Future[Packets | None]":
        return asyncio.ensure_future(asyncio.to_thread(next, self._recording, None))

    async def _play_piece(self, packets: Packets) -> None:
        self._enter(packets.instruments)
        index = self._latest.lookup(packets.token)
        if self.at_ns is None:
            self._began_s = self._now_s()
            self._first_ns = int(packets.received_ns[0])
        at = 0
        while at < len(packets):
            while not self._may_send():  # noqa: ASYNC110
                await asyncio.sleep(_PATIENCE_S)
            until = min(self._due(packets.received_ns), at + _BURST)
            if until > at:
                self._send(_Burst(packets, index, at, until, self._shift(packets.received_ns[at:until])))
                self.at_ns = int(packets.received_ns[until - 1])
                at = until
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(SLICE_S)

    def _may_send(self) -> bool:
        """Whether every client has read enough. Where their reading sets the pace, one has to be there."""
        listening = [connection for connection in self.connections if connection.is_open]
        if self._speed is None and not any(connection.subscribed for connection in listening):
            return not self._asked.any()
        return all(connection.unsent_bytes <= HIGH_WATER_BYTES for connection in listening)

    def _due(self, received_ns: NDArray[np.int64]) -> int:
        """How many of these are due."""
        if self._speed is None:
            return len(received_ns)
        passed_ns = int(min((self._now_s() - self._began_s) * self._speed * 1e9, _LONGEST_NS))
        return int(received_ns.searchsorted(self._first_ns + passed_ns, "right"))

    def _send(self, burst: "_Burst") -> None:
        for code in ABOUT_INSTRUMENTS:
            at = burst.places(code)
            if len(at):
                self._latest.keep(code, burst.index[at], burst.packets(code), self.played + at)
        self.played += len(burst.code)
        for connection in self.connections:
            frames, sent = burst.frames_for(connection.modes, self._latest.seen)
            if frames:
                connection.send_frames(frames, sent)
        if burst.lesser is not None and not self._told:
            self._told = True
            asked, recorded = burst.lesser
            log.warning(
                "Of some instruments that were asked for as %s, the recording has %s packets: they go out as such.",
                asked,
                recorded,
            )


class _Burst:
    """Packets that go out together: `places` are counted from the first of them."""

    def __init__(
        self, packets: Packets, index: NDArray[np.int32], begin: int, end: int, shift_s: NDArray[np.int64] | int
    ) -> None:
        self.code = packets.code[begin:end]
        self.index = index[begin:end]
        """Index of each packet's instrument, -1 where it names none that is known."""
        self.lesser: tuple[str, str] | None = None
        """As what some packet was wanted that has less to say, and what it is; None where there is none."""
        self._payload = packets.payload
        self._start = packets.start[begin:end]
        self._size = packets.size[begin:end]
        self._shift_s = shift_s
        kinds = set(self.code.tobytes())
        self._places = {kind: np.flatnonzero(self.code == kind) for kind in sorted(kinds)}
        others = kinds.difference(ABOUT_INSTRUMENTS, _FOR_ALL)
        self._others = [place for kind in others for place in self._places[kind].tolist()]
        self._packets: dict[ResponseCode, NDArray[np.void]] = {}
        self._framed: dict[tuple[ResponseCode, ResponseCode], NDArray[np.void]] = {}

    def places(self, code: int) -> NDArray[np.intp]:
        """Where the packets of this kind are."""
        return self._places.get(code, _NOWHERE)

    def packets(self, code: ResponseCode) -> NDArray[np.void]:
        """The packets of this kind, as opaque items."""
        if code not in self._packets:
            size = LAYOUTS[code].size
            windows = np.ndarray((len(self._payload) - size + 1,), f"V{size}", self._payload, strides=(1,))
            self._packets[code] = windows[self._start[self.places(code)]]
        return self._packets[code]

    def frames_for(self, modes: NDArray[np.uint8], seen: NDArray[np.uint8]) -> tuple[bytes, Counter[ResponseCode]]:
        """What a connection gets that is subscribed so, in order, and how many packets of each kind that is."""
        sent: Counter[ResponseCode] = Counter()
        chosen: list[tuple[NDArray[np.intp], NDArray[np.void]]] = []

        def choose(code: ResponseCode, mode: ResponseCode, which: NDArray[np.bool_]) -> None:
            count = int(np.count_nonzero(which))
            if count:
                places, rows = self.places(code), self._frames(code, mode)
                chosen.append((places, rows) if count == len(which) else (places[which], rows[which]))
                sent[mode] += count

        for kind in self._places:
            if kind in MODE_BITS:
                code = ResponseCode(kind)
                index = self.index[self.places(code)]
                wanted = modes[index]
                sent_as = SENT_MODES[code][seen[index], wanted]
                for mode, bit in MODE_BITS.items():
                    choose(code, mode, sent_as & bit > 0)
                lesser = sent_as & ~wanted
                if lesser.any():
                    first = wanted[int(lesser.argmax())]
                    asked = next(name.name.lower() for name, bit in MODE_BITS.items() if first & bit)
                    self.lesser = asked, code.name.lower()
            elif kind in ABOUT_INSTRUMENTS:
                code = ResponseCode(kind)
                choose(code, code, modes[self.index[self.places(code)]] > 0)
            elif kind in _FOR_ALL:
                code = ResponseCode(kind)
                choose(code, code, np.ones(len(self.places(code)), np.bool_))
        others = [place for place in self._others if self._concerns(place, modes)]
        if others:
            sent[ResponseCode.HEARTBEAT] += len(others)  # as whatever has no kind
        return self._in_order(chosen, others), sent

    def _frames(self, code: ResponseCode, mode: ResponseCode) -> NDArray[np.void]:
        """The packets of one kind in frames, cut down to a mode: made once for all connections."""
        if (code, mode) not in self._framed:
            shift_s = self._shift_s if isinstance(self._shift_s, int) else self._shift_s[self.places(code)]
            self._framed[code, mode] = framed(self.packets(code), code, mode, shift_s)
        return self._framed[code, mode]

    def _concerns(self, place: int, modes: NDArray[np.uint8]) -> bool:
        """Whether a packet without a layout goes to a connection: it does unless it is about another instrument."""
        index = int(self.index[place])
        return index < 0 or bool(modes[index])

    def _in_order(self, chosen: list[tuple[NDArray[np.intp], NDArray[np.void]]], others: list[int]) -> bytes:
        """The frames of several kinds side by side, each at its place."""
        if not others and len(chosen) <= 1:
            return chosen[0][1].tobytes() if chosen else b""
        single = {place: self._frame_of(place) for place in others}
        size = np.zeros(len(self.code), np.int64)
        before = []  # of what is at the same place
        for places, rows in chosen:
            before.append(size[places])
            size[places] += rows.itemsize
        for place, frame in single.items():
            size[place] += len(frame)
        begin = size.cumsum() - size
        data = np.empty(int(size.sum()), np.uint8)
        for (places, rows), earlier in zip(chosen, before, strict=True):
            windows = np.ndarray((len(data) - rows.itemsize + 1,), rows.dtype, data, strides=(1,))
            windows[begin[places] + earlier] = rows
        for place, frame in single.items():
            data[begin[place] : begin[place] + len(frame)] = np.frombuffer(frame, np.uint8)
        return data.tobytes()

    def _frame_of(self, place: int) -> bytes:
        start = int(self._start[place])
        message = self._payload[start : start + int(self._size[place])]
        return frame_of(message, _TEXT_FRAME) if self.code[place] == TEXT else frame_of(message)


_NOWHERE: NDArray[np.intp] = np.empty(0, np.intp)


def _grown(values: NDArray[Any], size: int) -> NDArray[Any]:
    """The array with zeros after it."""
    return np.concatenate((values, np.zeros(size - len(values), values.dtype)))


def in_words(tokens: NDArray[np.int64]) -> str:
    """Some of the instruments, for a person."""
    shown = map(split_instrument_token, tokens[:3].tolist())
    names = [f"{segment.name} {security_id}" for segment, security_id in shown]
    return ", ".join(names) + (f" and {len(tokens) - 3:,} more" if len(tokens) > 3 else "")
