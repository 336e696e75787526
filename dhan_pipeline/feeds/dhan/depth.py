"""The 20- and 200-level depth feeds (NSE_EQ and NSE_FNO): messages in, sides of the book out. No socket.

They are feeds of their own, with a header of their own: length first, then the code. Bid and ask come as separate
packets, several in one message. Page: https://dhanhq.co/docs/v2/full-market-depth/
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.dhan.framing import Packet
from dhan_pipeline.feeds.dhan.wire import DEPTH_HEADER, DEPTH_ROW, DISCONNECT_REASONS, DepthCode

Levels = Literal[20, 200]

_SIDES: dict[int, Literal["bid", "ask"]] = {DepthCode.BID: "bid", DepthCode.ASK: "ask"}

#: Where the disconnect reason (u16) may be: the documentation says 12, the broker's own client reads 8.
_REASON_OFFSETS = (12, 8)


@dataclass(frozen=True, slots=True)
class DepthSide:
    """One side of an instrument's book, best level first. Price 0 means an empty level."""

    side: Literal["bid", "ask"]
    exchange_segment: int
    security_id: int
    prices: NDArray[np.float64]
    """Rupees."""
    quantities: NDArray[np.uint32]
    orders: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class DepthMessage:
    """What one message held. `packets = sides + disconnects + rejected`."""

    sides: list[DepthSide] = field(default_factory=list)
    disconnects: list[int] = field(default_factory=list)
    """Reason codes, 0 where none was found; `wire.disconnect_reason` has the words."""
    rejected: list[tuple[str, bytes]] = field(default_factory=list)
    """(reason, bytes) of packets that could not be read."""


def split_depth(message: bytes, levels: Levels) -> Iterator[Packet]:
    """The packets of a message of the feed with that many levels: the same tuples, by the same rules, as
    `framing.split` makes of the live feed. Never raises."""
    start = 0
    while start < len(message):
        left = len(message) - start
        if left < DEPTH_HEADER.size:
            yield start, left, -1, f"{left} bytes, too few for a header"
            return
        length, code, _, _, rows = DEPTH_HEADER.struct.unpack_from(message, start)
        size = length if DEPTH_HEADER.size <= length <= left else left
        reason = None
        if code in _SIDES:
            rows = _rows(rows, levels)
            known = DEPTH_HEADER.size + rows * DEPTH_ROW.size
            if rows > levels:
                reason = f"{_SIDES[code]} packet of {rows} rows, more than {levels}"
            elif left == known or (size != length and left > known):
                size = known
            elif size < known:
                reason = f"torn {_SIDES[code]} packet: {size} of {known} bytes"
        elif code != DepthCode.DISCONNECT:
            reason = f"unknown code {code}"
        yield start, size, code, reason
        start += size


def parse_depth_message(message: bytes, levels: Levels) -> DepthMessage:
    """Every packet of a message of the feed with that many levels. Never raises.

    The arrays are read-only views of `message`.
    """
    result = DepthMessage()
    for start, size, code, reason in split_depth(message, levels):
        if reason is not None:
            result.rejected.append((reason, message[start : start + size]))
        elif code == DepthCode.DISCONNECT:
            result.disconnects.append(depth_disconnect_reason(message[start : start + size]))
        else:
            _, _, segment, security_id, rows = DEPTH_HEADER.struct.unpack_from(message, start)
            table: NDArray[Any] = np.frombuffer(
                message, DEPTH_ROW.dtype, _rows(rows, levels), start + DEPTH_HEADER.size
            )
            side = DepthSide(_SIDES[code], segment, security_id, table["price"], table["quantity"], table["orders"])
            result.sides.append(side)
    return result


def _rows(field: int, levels: Levels) -> int:
    """Rows of a packet whose header says `field`, which on the 20-level feed is a sequence number."""
    return 20 if levels == 20 else field


def depth_disconnect_reason(packet: bytes) -> int:
    """Reason code of a disconnect packet of the depth feeds; 0 if none is found at either place it may be."""
    found = [int.from_bytes(packet[at : at + 2], "little") for at in _REASON_OFFSETS]
    return next((reason for reason in found if reason in DISCONNECT_REASONS), 0)
