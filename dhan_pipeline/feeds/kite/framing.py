"""Where one packet of a message ends and the next begins.

A message begins with the number of its packets, and each packet with its length; both are read unsigned. How it is
judged:

- a length of a known packet that fits the message: that is the packet;
- another length of 8 or more that fits: not readable, skipped by its length;
- a length below 8, or one that reaches beyond the message: the framing is lost, and with it the rest of the message;
- fewer packets than announced, or bytes after the last one: reported with the reason, too.

A message of one byte is a heartbeat, and so is one of no packets. Every step consumes bytes, so any input ends; and no
message has more packets than one for 8 of its bytes, and one more.
"""

from collections.abc import Iterator

from dhan_pipeline.feeds.kite.wire import COUNT_SIZE, HEARTBEAT_SIZE, LAYOUTS, LENGTH_SIZE, LTP

#: A packet's place in its buffer: start and size without the length before it, and why it cannot be read (None if it
#: can). The size of a heartbeat is 0, and of nothing else that can be read. What cannot begins with its length.
Packet = tuple[int, int, str | None]


def split(payload: bytes, start: int = 0, end: int | None = None) -> Iterator[Packet]:
    """The packets of the message that is `payload[start:end]`, in order. Never raises."""
    stop = len(payload) if end is None else end
    if stop - start == HEARTBEAT_SIZE:
        yield start, 0, None
        return
    if stop - start < COUNT_SIZE:
        yield start, stop - start, "empty message"
        return
    count = payload[start] << 8 | payload[start + 1]
    at = start + COUNT_SIZE
    if not count and at == stop:
        yield start, 0, None
        return
    for number in range(count):
        if stop - at < LENGTH_SIZE:
            yield at, stop - at, f"{count} packets announced, {number} came"
            return
        length = payload[at] << 8 | payload[at + 1]
        body = at + LENGTH_SIZE
        if length > stop - body:
            yield at, stop - at, f"torn packet: {stop - body} of {length} bytes"
            return
        if length in LAYOUTS:
            yield body, length, None
        elif length < LTP:
            yield at, stop - at, f"packet of {length} bytes"
            return
        else:
            yield at, LENGTH_SIZE + length, f"packet of {length} bytes"
        at = body + length
    if at < stop:
        yield at, stop - at, f"{stop - at} bytes after the last of {count} packets"


def readable(payload: bytes, start: int, end: int) -> list[int] | None:
    """Lengths of the packets of the message that is `payload[start:end]`, if all can be read; None if it has others.

    Says the same as `split`, in a third of the time: reading lengths is all that cannot be done for many at once.
    """
    if end - start < COUNT_SIZE:
        return None
    lengths: list[int] = []
    at = start + COUNT_SIZE
    while at < end - 1:
        length = payload[at] << 8 | payload[at + 1]
        if length not in LAYOUTS:
            return None
        lengths.append(length)
        at += LENGTH_SIZE + length
    return lengths if at == end and len(lengths) == payload[start] << 8 | payload[start + 1] else None
