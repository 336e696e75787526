"""Where one packet of the live feed ends and the next begins.

The documentation does not say whether a message can carry several packets, so it may. A packet's `message_length`
counts the whole packet, header included. How it is judged:

- what is left of the message is exactly a packet of its code: that is the packet, whatever the length says;
- the length reaches beyond the known size and fits the message: the packet grew, its known part is read;
- the length is below 8 or beyond the message: the known size counts, if it fits; else the packet is torn;
- the length is between 8 and the known size: not readable, skipped by its length;
- the code is unknown: skipped by its length if that is sane, else the rest of the message is dropped.

Whatever is skipped or dropped is reported with the reason. Every step consumes bytes, so any input ends.
"""

from collections.abc import Iterator

from dhan_pipeline.feeds.dhan.wire import HEADER, LAYOUTS, ResponseCode

#: A packet's place in its buffer: start, size, response code (-1 if there are too few bytes for a header), and why it
#: cannot be read (None if it can). A plain tuple, because making a named one doubles the cost of a step.
Packet = tuple[int, int, int, str | None]

#: Packets that are known and not read.
_REFUSED: dict[int, str] = {
    ResponseCode.INDEX: "index packet (code 1): its layout is not documented",
    ResponseCode.LEGACY_DEPTH: "depth packet (code 3) of version 1 of the feed",
}

#: Sizes of the packets that are read, in bytes by response code.
SIZES = {int(code): layout.size for code, layout in LAYOUTS.items() if code not in _REFUSED}


def split(payload: bytes, start: int = 0, end: int | None = None) -> Iterator[Packet]:
    """The packets of the message that is `payload[start:end]`, in order, without gap or overlap. Never raises."""
    stop = len(payload) if end is None else end
    unpack, header_size = HEADER.struct.unpack_from, HEADER.size
    while start < stop:
        left = stop - start
        if left < header_size:
            yield start, left, -1, f"{left} bytes, too few for a header"
            return
        code, length, _, _ = unpack(payload, start)
        known = SIZES.get(code)
        if length == known and length <= left:  # nearly always
            yield start, length, code, None
            start += length
            continue
        size, reason = _judge(code, length, known, left)
        yield start, size, code, reason
        start += size


def _judge(code: int, length: int, known: int | None, left: int) -> tuple[int, str | None]:
    """Size of a packet with `left` bytes to the end of its message, and why it cannot be read."""
    sane = HEADER.size <= length <= left
    if known is None:
        return length if sane else left, _REFUSED.get(code) or f"unknown code {code}"
    if left == known:
        return known, None
    if sane:
        shorter = f"{LAYOUTS[code].name} packet of {length} bytes, {known} needed" if length < known else None
        return length, shorter
    if left > known:
        return known, None
    return left, f"torn {LAYOUTS[code].name} packet: {left} of {known} bytes"
