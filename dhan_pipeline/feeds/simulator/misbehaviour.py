"""What a misbehaving exchange sends: frames cut and stacked, messages that no feed should send, and a log of all.

Frames are those of a server: https://datatracker.ietf.org/doc/html/rfc6455#section-5.2
"""

import random
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from zlib import crc32

from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.kite.wire import LTP
from dhan_pipeline.instruments import ExchangeSegment

#: Most packets that are stacked in a message, while they are.
HIGHEST_STACK = 20

#: First byte of a frame that is a whole text message.
WHOLE_TEXT = 0x81

_WHOLE_BINARY, _FIRST_PART, _LAST_PART = 0x82, 0x02, 0x80
_WHOLE, _OPCODE = 0x80, 0x0F


@dataclass(slots=True)
class Switches:
    """Faults that last, all off."""

    stalled: bool = False
    """Connections stand and are pinged, but no packet is sent, nor made up for."""
    slow: bool = False
    """Bytes trickle, in pieces that end anywhere."""
    stacked: bool = False
    """Several packets come in a message, of several kinds."""
    reordered: bool = False
    """The messages of a burst come in any order."""
    duplicate_snapshot: bool = False
    """What is sent upon subscribing is sent twice."""
    refuse: HTTPStatus | None = None
    """Handshakes are refused with this status."""
    retry_after_s: int | None = None
    """What a refusal asks the client to wait."""
    unreachable: bool = False
    """New connections are dropped before their handshake is answered."""
    mute: bool = False
    """Handshakes are never answered."""
    vanished: bool = False
    """The exchange is gone: handshakes are not answered either."""
    deaf: bool = False
    """Nothing is taken that clients send after their handshake."""
    held: dict[str, list[Any]] = field(default_factory=dict)
    """What lasts, by its attribute: the value it has without, then one for each fault that goes on."""

    def hold(self, thing: object, name: str, value: object) -> Callable[[], None]:
        """Set an attribute until the returned function is called; of several values, the last that goes on counts."""
        values = self.held.setdefault(name, [getattr(thing, name)])
        values.append(value)
        setattr(thing, name, value)

        def release() -> None:
            values.remove(value)
            setattr(thing, name, values[-1])
            if len(values) == 1:
                del self.held[name]

        return release


class SentLog:
    """What one socket was given: when, and the CRC-32 of each message, in order."""

    def __init__(self, number: int) -> None:
        self.number = number
        """Place among all sockets, in order of connecting."""
        self.sent_ns = array("q")
        """Wall-clock time, ns since the Unix epoch, UTC."""
        self.crc = array("L")
        self.skipped_ns = array("q")
        """When packets were not sent because the client reads too slowly, one entry a packet."""
        self._parts = 0

    def add(self, frame: bytes) -> None:
        """A frame was given to the socket; a message is whole with its last one."""
        self._parts = crc32(payload_of(frame), self._parts)
        if frame[0] & _WHOLE:
            self.sent_ns.append(time.time_ns())
            self.crc.append(self._parts)
            self._parts = 0


def split_frames(frames: bytes) -> Iterator[bytes]:
    """The frames in bytes that hold whole ones, as a server sends them."""
    start = 0
    while start < len(frames):
        body, size = _extent(frames, start)
        yield frames[start : body + size]
        start = body + size


def payload_of(frame: bytes) -> bytes:
    """What a whole frame carries."""
    return frame[_extent(frame, 0)[0] :]


def frame_of(payload: bytes, first_byte: int = _WHOLE_BINARY) -> bytes:
    """A frame, as a server sends it: https://datatracker.ietf.org/doc/html/rfc6455#section-5.2"""
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 1 << 16:
        return struct.pack(">BBH", first_byte, 126, size) + payload
    return struct.pack(">BBQ", first_byte, 127, size) + payload


def is_continuation(frame: bytes) -> bool:
    """Whether the frame goes on with a message that an earlier one began."""
    return not frame[0] & _OPCODE


def _extent(frames: bytes, start: int) -> tuple[int, int]:
    """Where the payload of the frame at `start` begins, and its size."""
    size = frames[start + 1]
    if size == 126:
        return start + 4, int.from_bytes(frames[start + 2 : start + 4], "big")
    if size == 127:
        return start + 10, int.from_bytes(frames[start + 2 : start + 10], "big")
    return start + 2, size


def stack(frames: Sequence[bytes], randomness: random.Random) -> list[bytes]:
    """The same packets, several in a message."""
    stacked = []
    at = 0
    while at < len(frames):
        height = randomness.randint(1, HIGHEST_STACK)
        stacked.append(frame_of(b"".join(map(payload_of, frames[at : at + height]))))
        at += height
    return stacked


def _ticker(price: float = 100.0, code: int = ResponseCode.TICKER, length: int = 16, segment: int = 1) -> bytes:
    return struct.pack("<BHBIfI", code, length, segment, 2885, price, 0)


def _ltp(price: int = 100, count: int = 1, token: int = 738561) -> bytes:
    return struct.pack(">HHIi", count, LTP, token, price)


#: Messages that Dhan's feed should not send, by name: each makes the frames of one. The instrument that one might be
#: about need not exist.
GARBAGE: dict[str, Callable[[], bytes]] = {
    "unknown code": lambda: frame_of(_ticker(code=99)),
    "zero length": lambda: frame_of(struct.pack("<BHBI", 99, 0, 1, 2885)),
    "short length": lambda: frame_of(_ticker(length=3)),
    "long length": lambda: frame_of(_ticker(length=60_000)),
    "empty": lambda: frame_of(b""),
    "half a packet": lambda: frame_of(_ticker()[:9]),
    "not a number": lambda: frame_of(_ticker(float("nan"))),
    "infinite": lambda: frame_of(_ticker(float("inf"))),
    "negative": lambda: frame_of(_ticker(-100.0)),
    "unknown instrument": lambda: frame_of(_ticker(segment=ExchangeSegment.MCX_COMM)),
    "unknown segment": lambda: frame_of(_ticker(segment=200)),
    "text": lambda: frame_of("\N{BLACK CHESS KNIGHT} { not json".encode(), WHOLE_TEXT),
    "broken text": lambda: frame_of(b"\xff\xfe no UTF-8 \x80", WHOLE_TEXT),
    "oversized": lambda: frame_of(bytes(400_000)),
    "fragmented": lambda: frame_of(_ticker()[:5], _FIRST_PART) + frame_of(_ticker()[5:], _LAST_PART),
}

#: The same of Kite's feed.
KITE_GARBAGE: dict[str, Callable[[], bytes]] = {
    "unknown length": lambda: frame_of(struct.pack(">HH10x", 1, 10)),
    "short length": lambda: frame_of(struct.pack(">HH3x", 1, 3)),
    "zero length": lambda: frame_of(struct.pack(">HH", 1, 0)),
    "long length": lambda: frame_of(struct.pack(">HH8x", 1, 60_000)),
    "fewer packets": lambda: frame_of(_ltp(count=5)),
    "more bytes": lambda: frame_of(_ltp() + b"rest"),
    "empty": lambda: frame_of(b""),
    "half a packet": lambda: frame_of(_ltp()[:8]),
    "negative": lambda: frame_of(_ltp(-100)),
    "unknown instrument": lambda: frame_of(_ltp(token=7)),
    "unknown segment": lambda: frame_of(_ltp(token=(2885 << 8) + 200)),
    "text": lambda: frame_of("\N{BLACK CHESS KNIGHT} { not json".encode(), WHOLE_TEXT),
    "broken text": lambda: frame_of(b"\xff\xfe no UTF-8 \x80", WHOLE_TEXT),
    "oversized": lambda: frame_of(bytes(400_000)),
    "fragmented": lambda: frame_of(_ltp()[:5], _FIRST_PART) + frame_of(_ltp()[5:], _LAST_PART),
}

#: What a client must not take: it announces 100 MB.
HUGE_HEADER = struct.pack(">BBQ", _WHOLE_BINARY, 127, 100 << 20)


def torn_packet() -> bytes:
    """Half of a full packet, for which the connection's end leaves no time."""
    layout = LAYOUTS[ResponseCode.FULL]
    return layout.struct.pack(
        ResponseCode.FULL, layout.size, 1, 2885, *[0] * (len(layout.struct.unpack(bytes(layout.size))) - 4)
    )[: layout.size // 2]
