"""The exchange over a recording: what was received once is sent again, in order, as fast as wanted.

A client that subscribes gets what was recorded of its instruments from then on, in the mode that it asked for (see
`latest`), and before it the latest of what was recorded until then. What is about no instrument (heartbeat, market
status, text, what cannot be read) goes to everybody. Packets that ended a connection are left out. Each packet comes in
a message of its own, with the bytes that were recorded.

Nothing is skipped: while a client has too much to read, everybody waits, and what is late by then comes at once.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.decode import TEXT
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.simulator.dhan import MODE_BITS, DhanConnection, DhanExchange, Options
from dhan_pipeline.feeds.simulator.latest import SENT_MODES, Latest, framed
from dhan_pipeline.feeds.simulator.misbehaviour import WHOLE_TEXT, frame_of
from dhan_pipeline.feeds.simulator.player import SETTLED_S, Player
from dhan_pipeline.feeds.simulator.recording import ABOUT_INSTRUMENTS, Messages, Packets, packets_of
from dhan_pipeline.instruments import source_of, split_instrument_token, split_kite_token

log = logging.getLogger(__name__)

#: Packets that go to everybody and have a layout.
_FOR_ALL = (ResponseCode.HEARTBEAT, ResponseCode.MARKET_STATUS)


class DhanReplay(Player[DhanConnection, Packets], DhanExchange):
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
        self._play_from(map(packets_of, recording), speed, settled_s, now_s)
        self._shift_times = shift_times
        self._asked: NDArray[np.bool_] = np.zeros(len(self._latest), np.bool_)
        self._told = False
        self._index: NDArray[np.int32] = np.empty(0, np.int32)

    def flush(self) -> None:
        """Nothing is ready before it is due."""

    @property
    def asked(self) -> int:
        """Instruments that any client has asked for."""
        return int(np.count_nonzero(self._asked))

    @property
    def _asked_for(self) -> bool:
        return bool(self._asked.any())

    @property
    def missing(self) -> NDArray[np.int64]:
        """Tokens of those of them of which nothing has been recorded until now."""
        return self._latest.tokens[np.flatnonzero(self._asked & ~self._latest.recorded)]

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
        self._settle(bool(subscribed))

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

    def _enter_piece(self, piece: Packets) -> None:
        self._enter(piece.instruments)
        self._index = self._latest.lookup(piece.token)

    def _play_part(self, piece: Packets, at: int, until: int) -> int:
        self._send(_Burst(piece, self._index, at, until, self._shift(piece.received_ns[at:until])))
        return until

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
        return frame_of(message, WHOLE_TEXT) if self.code[place] == TEXT else frame_of(message)


_NOWHERE: NDArray[np.intp] = np.empty(0, np.intp)


def _grown(values: NDArray[Any], size: int) -> NDArray[Any]:
    """The array with zeros after it."""
    return np.concatenate((values, np.zeros(size - len(values), values.dtype)))


def in_words(tokens: NDArray[np.int64]) -> str:
    """Some of the instruments, for a person."""
    split = {"dhan": split_instrument_token, "kite": split_kite_token}
    shown = [split[source_of(token)](token) for token in tokens[:3].tolist()]
    names = [f"{segment.name} {number}" for segment, number in shown]
    return ", ".join(names) + (f" and {len(tokens) - 3:,} more" if len(tokens) > 3 else "")
