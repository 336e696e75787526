"""Kite's exchange over a recording: what was received once is sent again, in order, as fast as wanted.

A client that subscribes gets what was recorded of its instruments from then on, in the mode that it asked for, and
before it the latest of what was recorded until then. A packet of more than was asked for is cut down: each kind begins
with the fields of the lesser ones. One of less goes out as it was recorded, because nobody knows the rest. Packets stay
together in the messages in which they came. Text goes to everybody, and so does a message in which nothing can be read;
what cannot be read beside other packets is left out. Heartbeats are the exchange's own.

Nothing is skipped: while a client has too much to read, everybody waits, and what is late by then comes at once.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.kite.decode import split_packets
from dhan_pipeline.feeds.kite.wire import (
    COUNT_SIZE,
    FULL,
    HEARTBEAT_SIZE,
    INDEX_FULL,
    INDEX_QUOTE,
    LAYOUTS,
    LENGTH_SIZE,
    LTP,
    QUOTE,
)
from dhan_pipeline.feeds.simulator.kite import MODE_BITS, TEXT, KiteConnection, KiteExchange, Options
from dhan_pipeline.feeds.simulator.misbehaviour import WHOLE_TEXT, frame_of
from dhan_pipeline.feeds.simulator.player import SETTLED_S, Player
from dhan_pipeline.feeds.simulator.recording import Messages
from dhan_pipeline.instruments import NO_SEGMENT, InstrumentIndex, segments_of

#: Places for instruments at first; there are always twice as many as before when they do not suffice.
_PLACES = 1024

#: Size of a packet by the bits of a mode: of what is traded, and of an index.
_WANTED = np.zeros((2, 8), np.int64)
for _mode, _sizes in {"ltp": (LTP, LTP), "quote": (QUOTE, INDEX_QUOTE), "full": (FULL, INDEX_FULL)}.items():
    _WANTED[:, MODE_BITS[_mode]] = _sizes
_IS_INDEX = np.isin(np.arange(FULL + 1), [INDEX_QUOTE, INDEX_FULL]).astype(np.intp)

#: In place of a packet's size: a message that goes out as it is.
_WHOLE = -1

#: Where packets have times, by size: the last trade's and the exchange's.
_TIMES = {FULL: ("last_trade_time", "exchange_timestamp"), INDEX_FULL: ("exchange_timestamp",)}


@dataclass(frozen=True, slots=True)
class Packets:
    """Packets in order of receipt, those of a message one after another."""

    received_ns: NDArray[np.int64]
    message: NDArray[np.int64]
    """A number for each message, which grows."""
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    """Bytes of each packet; `_WHOLE` for a message that goes out as it is, in which case `start` is its number."""
    token: NDArray[np.int64]
    """The instrument that it is about, 0 where it is a whole message."""
    payload: bytes
    """With room for the longest packet after the last one."""
    messages: Messages

    def __len__(self) -> int:
        return len(self.start)


def packets_of(messages: Messages) -> Packets:
    """Every readable packet in the messages, and the messages without any that are no heartbeats. Never raises."""
    ends = messages.start + messages.size
    payload, offsets = messages.payload, np.append(messages.start, ends[-1:])
    if np.any(ends[:-1] != messages.start[1:]):
        each = zip(messages.start.tolist(), ends.tolist(), strict=True)
        payload = b"".join([messages.payload[start:end] for start, end in each])
        offsets = np.append(0, messages.size.cumsum())
    start, size, message, _ = split_packets(payload, offsets, messages.text)
    readable = np.isin(size, list(LAYOUTS))
    start, size, message = start[readable], size[readable], message[readable]
    whole = np.ones(len(messages), np.bool_)
    whole[message] = False
    whole &= messages.text | (messages.size > HEARTBEAT_SIZE)
    (others,) = np.nonzero(whole)
    order = np.argsort(np.concatenate((message, others)), kind="stable")
    start, size, message = (
        np.concatenate(columns)[order]
        for columns in ((start, others), (size, np.full(len(others), _WHOLE)), (message, others))
    )
    payload += bytes(FULL)
    token = np.ndarray((len(payload) - 3,), ">u4", payload, strides=(1,))[np.where(size == _WHOLE, 0, start)]
    token = np.where(size == _WHOLE, 0, token.astype(np.int64))
    return Packets(messages.received_ns[message], message, start, size, token, payload, messages)


class Latest:
    """The last packet of every instrument that was recorded until now, or asked for; each has an index, which stays."""

    def __init__(self) -> None:
        self.shift_s = 0
        """Seconds by which times move in what `records` gives."""
        self.size: NDArray[np.int64] = np.zeros(_PLACES, np.int64)
        """Bytes of each packet; 0 where nothing was recorded."""
        self._instruments = InstrumentIndex([])
        self._rows = np.zeros(_PLACES, f"V{FULL}")

    def __len__(self) -> int:
        return len(self.size)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Token of each instrument, by index."""
        return self._instruments.tokens

    def enter(self, tokens: NDArray[np.int64]) -> NDArray[np.intp]:
        """Index of each instrument; those that are not here get one."""
        index = self._instruments.lookup(tokens)
        new = np.unique(tokens[index < 0])
        if len(new):
            self._instruments = InstrumentIndex(np.concatenate((self.tokens, new)))
            while len(self.tokens) > len(self):
                self.size = _grown(self.size)
                self._rows = _grown(self._rows)
            index = self._instruments.lookup(tokens)
        return index.astype(np.intp)

    def keep(self, index: NDArray[np.intp], rows: NDArray[np.void], size: NDArray[np.int64]) -> None:
        """Packets in order of receipt, as opaque items."""
        self._rows[index] = rows
        self.size[index] = size

    def sized(self, mode: str, index: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
        """Where among the instruments those are whose packets have this size in this mode."""
        sizes = cut_to(self.size[index], np.full(len(index), MODE_BITS[mode]))
        return [(size, np.flatnonzero(sizes == size)) for size in np.unique(sizes[sizes > 0]).tolist()]

    def records(self, size: int, index: NDArray[np.intp]) -> NDArray[Any]:
        """The latest packets of these instruments, each with its length before it, cut down to this size."""
        records = np.empty(len(index), [("length", ">u2"), ("packet", f"V{size}")])
        records["length"] = size
        records["packet"] = cut_rows(self._rows[index], size, self.shift_s)
        return records


def cut_to(recorded: NDArray[np.int64], modes: NDArray[Any]) -> NDArray[np.int64]:
    """The size as which packets of a size are sent that are wanted in these modes, as bits; 0 where in none."""
    wanted: NDArray[np.int64] = _WANTED[_IS_INDEX[recorded], modes]
    return np.minimum(recorded, wanted)


def cut_rows(rows: NDArray[np.void], size: int, shift_s: NDArray[np.int64] | int = 0) -> NDArray[np.void]:
    """Packets cut down to a size, with times that are later by so many seconds."""
    octets = rows.view(np.uint8).reshape(len(rows), FULL)[:, :size]
    cut: NDArray[np.void] = np.ascontiguousarray(octets).view(f"V{size}").ravel()
    if size in _TIMES and np.any(shift_s):
        fields = cut.view(LAYOUTS[size].dtype)
        for name in _TIMES[size]:
            raw = fields[name].astype(np.int64)
            fields[name] = np.where(raw > 0, raw + shift_s, raw)
    return cut


class KiteReplay(Player[KiteConnection, Packets], KiteExchange):
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
        """As `DhanReplay`; the options are those of `KiteExchange`."""
        self._latest = Latest()
        super().__init__(self._latest, seed=seed, clock=clock, **options)
        self._play_from(map(packets_of, recording), speed, settled_s, now_s)
        self._shift_times = shift_times
        self._asked: NDArray[np.bool_] = np.zeros(len(self._latest), np.bool_)
        self._index: NDArray[np.intp] = np.empty(0, np.intp)

    def flush(self) -> None:
        """Nothing is ready before it is due."""

    @property
    def asked(self) -> int:
        """Instruments that any client has asked for."""
        return int(np.count_nonzero(self._asked))

    @property
    def missing(self) -> NDArray[np.int64]:
        """Tokens of those of them of which nothing has been recorded until now."""
        return self._latest.tokens[np.flatnonzero(self._asked & (self._latest.size == 0))]

    @property
    def _asked_for(self) -> bool:
        return bool(self._asked.any())

    def _work(self) -> Iterable[Awaitable[None]]:
        return (*super()._work(), self._keep_alive())

    def _index_of(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        if self.at_ns is not None:
            self._latest.shift_s = int(self._shift(self.at_ns))
        known = np.array([token for token in tokens if 0 <= token < 1 << 32], np.int64)
        return self._enter(known[segments_of(known) != NO_SEGMENT])

    def _subscriptions_changed(self) -> None:
        subscribed = [connection for connection in self.connections if connection.subscribed]
        for connection in subscribed:
            self._asked |= connection.modes > 0
        self._settle(bool(subscribed))

    def _enter(self, tokens: NDArray[np.int64]) -> NDArray[np.intp]:
        """Index of each instrument, with a place for it everywhere."""
        index = self._latest.enter(tokens)
        while len(self._asked) < len(self._latest):
            self._asked = _grown(self._asked)
            for connection in self.connections:
                connection.modes = _grown(connection.modes)
        return index

    def _shift(self, received_ns: Any) -> Any:
        """Seconds (int, or an array of them) by which the times of what was received then move."""
        return (self._clock.now_ns() - received_ns) // 1_000_000_000 if self._shift_times else 0

    def _enter_piece(self, piece: Packets) -> None:
        self._index = self._enter(piece.token)

    def _play_part(self, piece: Packets, at: int, until: int) -> int:
        whole = np.flatnonzero(piece.size[at:until] == _WHOLE)
        if len(whole) and not whole[0]:
            self._send_whole(piece.messages, int(piece.start[at]))
            until = at + 1
        else:
            until = at + int(whole[0]) if len(whole) else until
            self._send_packets(piece, slice(at, until))
        self.played += until - at
        return until

    def _send_whole(self, messages: Messages, number: int) -> None:
        start = int(messages.start[number])
        content = messages.payload[start : start + int(messages.size[number])]
        frame = frame_of(content, WHOLE_TEXT) if messages.text[number] else frame_of(content)
        for connection in self.connections:
            connection.send_message(frame, TEXT)

    def _send_packets(self, piece: Packets, part: slice) -> None:
        index, size, message = self._index[part], piece.size[part], piece.message[part]
        windows = np.ndarray((len(piece.payload) - FULL + 1,), f"V{FULL}", piece.payload, strides=(1,))
        rows = windows[piece.start[part]]
        shift_s = self._shift(piece.received_ns[part])
        self._latest.keep(index, rows, size)
        for connection in self.connections:
            sent_size = cut_to(size, connection.modes[index])
            (chosen,) = np.nonzero(sent_size)
            if len(chosen):
                shifts = shift_s if isinstance(shift_s, int) else shift_s[chosen]
                frames = framed(rows[chosen], sent_size[chosen], message[chosen], shifts)
                connection.send_frames(frames, Counter(sent_size[chosen].tolist()))


def framed(
    rows: NDArray[np.void], size: NDArray[np.int64], message: NDArray[np.int64], shift_s: NDArray[np.int64] | int = 0
) -> bytes:
    """Packets cut down to these sizes, those of a message together in a WebSocket frame, one after another."""
    (first,) = np.nonzero(np.diff(message, prepend=message[0] - 1))
    count = np.diff(first, append=len(message))
    body = COUNT_SIZE + np.add.reduceat(LENGTH_SIZE + size, first)
    head = np.select([body < 126, body < 1 << 16], [2, 4], 10)
    begin = (head + body).cumsum() - head - body
    before = (LENGTH_SIZE + size).cumsum() - LENGTH_SIZE - size
    at = (begin + head + COUNT_SIZE - before[first]).repeat(count) + before

    data = np.zeros(int(begin[-1] + head[-1] + body[-1]), np.uint8)
    data[begin] = 0x82
    data[begin + 1] = np.select([head == 2, head == 4], [body, 126], 127)
    for width, places in ((2, begin[head == 4] + 2), (8, begin[head == 10] + 2)):
        _put(data, places, body[head == width + 2], width)
    _put(data, begin + head, count, COUNT_SIZE)
    _put(data, at, size, LENGTH_SIZE)
    for kind in np.unique(size).tolist():
        chosen = size == kind
        windows = np.ndarray((len(data) - kind + 1,), f"V{kind}", data, strides=(1,))
        windows[at[chosen] + LENGTH_SIZE] = cut_rows(
            rows[chosen], kind, shift_s if isinstance(shift_s, int) else shift_s[chosen]
        )
    return data.tobytes()


def _put(data: NDArray[np.uint8], at: NDArray[np.int64], value: NDArray[np.int64], width: int) -> None:
    """Write big-endian numbers of so many bytes."""
    for place in range(width):
        data[at + place] = value >> 8 * (width - 1 - place) & 0xFF


def _grown(values: NDArray[Any]) -> NDArray[Any]:
    """Twice the array, with zeros after it."""
    return np.concatenate((values, np.zeros_like(values)))
