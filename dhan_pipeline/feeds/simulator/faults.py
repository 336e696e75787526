"""What can go wrong at the exchange: switches that last, blows that pass, and a timetable of both for a command line.

A fault is written `NAME[=VALUE][@AT][+FOR][/EVERY]`: seconds after the first client connected, for how many seconds
(those that last), and repeated that often. `stall@60+20`, `reset/45`, `disconnect=805@30`.
"""

import asyncio
import random
import re
import struct
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from zlib import crc32

from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.instruments import ExchangeSegment

if TYPE_CHECKING:
    from dhan_pipeline.feeds.simulator.dhan import DhanSimulator

#: Most packets that are stacked in a message, while they are.
HIGHEST_STACK = 20

_WHOLE_BINARY, _WHOLE_TEXT, _FIRST_PART, _LAST_PART = 0x82, 0x81, 0x02, 0x80
_WHOLE = 0x80


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


#: Messages that no feed should send, by name: each makes the frames of one, without the instrument it might be about.
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
    "text": lambda: frame_of("\N{BLACK CHESS KNIGHT} { not json".encode(), _WHOLE_TEXT),
    "oversized": lambda: frame_of(bytes(400_000)),
    "fragmented": lambda: frame_of(_ticker()[:5], _FIRST_PART) + frame_of(_ticker()[5:], _LAST_PART),
}

#: What a client must not take: it announces 100 MB.
HUGE_HEADER = struct.pack(">BBQ", _WHOLE_BINARY, 127, 100 << 20)


def torn_packet() -> bytes:
    """Half of a full packet, for which the connection's end leaves no time."""
    layout = LAYOUTS[ResponseCode.FULL]
    return layout.struct.pack(
        ResponseCode.FULL, layout.size, 1, 2885, *[0] * (len(layout.struct.unpack(bytes(layout.size))) - 4)
    )[: layout.size // 2]


#: Faults by the names that a command line knows, with what they do. Those with `+` last.
FAULTS: dict[str, str] = {
    "stall": "+ connections stand and are pinged, but no packet comes",
    "slow": "+ bytes trickle, in pieces that end anywhere",
    "stacked": "+ several packets of several kinds come in a message",
    "reordered": "+ the messages of a burst come in any order",
    "duplicate-snapshot": "+ what is sent upon subscribing is sent twice",
    "wrong-epoch": "+ trade times are true UTC instead of India's wall clock",
    "refuse": "+ handshakes are refused with an HTTP status: refuse=429",
    "unreachable": "+ new connections are dropped before the handshake is answered",
    "mute": "+ handshakes are never answered",
    "reset": "TCP reset of every connection",
    "drop": "every connection is closed without a word",
    "close": "every connection is closed with a WebSocket code: close=1011",
    "disconnect": "every client is disconnected with one of Dhan's codes: disconnect=805",
    "half": "half a message, and then a reset",
    "huge": "a message that announces 100 MB",
    "garbage": "one message of each kind that no feed should send",
}

_VALUES = {"refuse": HTTPStatus.TOO_MANY_REQUESTS, "close": 1011, "disconnect": 805}
_GRAMMAR = re.compile(
    r"(?P<name>[a-z-]+)(=(?P<value>\d+))?(@(?P<at>\d+(\.\d+)?))?(\+(?P<lasts>\d+(\.\d+)?))?(/(?P<every>\d+(\.\d+)?))?"
)

#: How long what lasts goes on where nothing is said, in seconds.
DEFAULT_FOR_S = 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and when it happens, in seconds after the first client connected."""

    name: str
    value: int | None = None
    at_s: float = 0.0
    for_s: float = 0.0
    """How long it goes on; 0 for one that passes at once."""
    every_s: float | None = None


def parse_fault(text: str) -> Fault:
    """The fault that a text says. Raises ValueError with a sentence for a person."""
    found = _GRAMMAR.fullmatch(text)
    if found is None or found["name"] not in FAULTS:
        raise ValueError(
            f"{text} is not a fault: it is NAME[=VALUE][@AT][+FOR][/EVERY], and the names are {', '.join(FAULTS)}"
        )
    name = found["name"]
    if found["value"] is not None and name not in _VALUES:
        raise ValueError(f"{text}: {name} takes no value")
    lasts = FAULTS[name].startswith("+")
    if found["lasts"] is not None and not lasts:
        raise ValueError(f"{text}: {name} passes at once, so it cannot go on for {found['lasts']} s")
    value = int(found["value"]) if found["value"] else _VALUES.get(name)
    if name == "refuse":
        try:
            HTTPStatus(value or 0)
        except ValueError:
            raise ValueError(f"{text}: {value} is not an HTTP status") from None
    for_s = float(found["lasts"] or DEFAULT_FOR_S) if lasts else 0.0
    every_s = float(found["every"]) if found["every"] else None
    if every_s is not None and every_s <= for_s:
        raise ValueError(f"{text}: it is to be repeated before it ends")
    return Fault(name, value, float(found["at"] or 0), for_s, every_s)


async def run(simulator: "DhanSimulator", faults: Sequence[Fault]) -> None:
    """Have each fault happen at its time, until cancelled; those that last are then undone."""
    await simulator.first_connection.wait()
    async with asyncio.TaskGroup() as group:
        for fault in faults:
            group.create_task(_repeat(simulator, fault), name=f"fault {fault.name}")


async def _repeat(simulator: "DhanSimulator", fault: Fault) -> None:
    await asyncio.sleep(fault.at_s)
    while True:
        async with happening(simulator, fault):
            await asyncio.sleep(fault.for_s)
        if fault.every_s is None:
            return
        await asyncio.sleep(fault.every_s - fault.for_s)


@asynccontextmanager
async def happening(simulator: "DhanSimulator", fault: Fault) -> AsyncIterator[None]:
    """The fault, for as long as the context lasts; one that passes at once has passed when it begins."""
    async with AsyncExitStack() as undo:
        if fault.name in _BLOWS:
            await _BLOWS[fault.name](simulator, fault.value or 0)
        else:
            undo.callback(_SWITCHES[fault.name](simulator, fault.value or 0))
        yield


def _switch(name: str) -> "Callable[[DhanSimulator, int], Callable[[], None]]":
    def on(simulator: "DhanSimulator", value: int) -> Callable[[], None]:
        setattr(simulator.faults, name, True)
        return lambda: setattr(simulator.faults, name, False)

    return on


def _refuse(simulator: "DhanSimulator", status: int) -> Callable[[], None]:
    simulator.faults.refuse = HTTPStatus(status)

    def undo() -> None:
        simulator.faults.refuse = None

    return undo


def _wrong_epoch(simulator: "DhanSimulator", _: int) -> Callable[[], None]:
    market = simulator.market
    right = market.trade_time_offset_s
    market.trade_time_offset_s = 0

    def undo() -> None:
        market.trade_time_offset_s = right

    return undo


_SWITCHES: "dict[str, Callable[[DhanSimulator, int], Callable[[], None]]]" = {
    "stall": _switch("stalled"),
    "slow": _switch("slow"),
    "stacked": _switch("stacked"),
    "reordered": _switch("reordered"),
    "duplicate-snapshot": _switch("duplicate_snapshot"),
    "unreachable": _switch("unreachable"),
    "mute": _switch("mute"),
    "refuse": _refuse,
    "wrong-epoch": _wrong_epoch,
}


async def _reset(simulator: "DhanSimulator", _: int) -> None:
    simulator.reset()


async def _drop(simulator: "DhanSimulator", _: int) -> None:
    for connection in list(simulator.connections):
        connection.drop()


async def _close(simulator: "DhanSimulator", code: int) -> None:
    await asyncio.gather(*(connection.close(code) for connection in list(simulator.connections)))


async def _half(simulator: "DhanSimulator", _: int) -> None:
    await asyncio.gather(*(connection.send_half() for connection in list(simulator.connections)))


async def _huge(simulator: "DhanSimulator", _: int) -> None:
    for connection in list(simulator.connections):
        connection.send_huge()


async def _garbage(simulator: "DhanSimulator", _: int) -> None:
    for kind in GARBAGE:
        simulator.send_garbage(kind)


_BLOWS: "dict[str, Callable[[DhanSimulator, int], Awaitable[None]]]" = {
    "reset": _reset,
    "drop": _drop,
    "close": _close,
    "disconnect": lambda simulator, code: simulator.disconnect(code),
    "half": _half,
    "huge": _huge,
    "garbage": _garbage,
}
