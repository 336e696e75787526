"""Journal blocks of the live feed -> columns. Vectorised, zero-copy where the bytes allow it, and it never raises.

Blocks may come one by one, or many consecutive ones as if they were one: what costs is not the bytes, but the calls.
Nearly every block holds one packet a message, often all of one kind: then the block itself is the array. Messages of
several equal packets are expanded by arithmetic. Only what remains (mixed, grown, torn or unknown) is walked packet by
packet, by the rules of `framing`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.dhan.framing import SIZES, Packet, split
from dhan_pipeline.feeds.dhan.wire import HEADER, LAYOUTS, NEVER_TRADED_S, ResponseCode
from dhan_pipeline.instruments import dhan_tokens
from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.ticks import Decoded, Mode, RawTicks, Rejection, StateUpdates

Ints = NDArray[np.int64]
Codes = NDArray[np.uint8]

#: Stand in for the response code of what is not a readable packet; no readable packet has them.
REJECTED = 255
TEXT = 254

_MODES: dict[int, Mode] = {
    ResponseCode.TICKER: Mode.TICKER,
    ResponseCode.QUOTE: Mode.QUOTE,
    ResponseCode.FULL: Mode.FULL,
}

#: Packets that are neither data nor state, by the name they are counted under.
_CONTROL: dict[int, str] = {
    ResponseCode.HEARTBEAT: "heartbeat",
    ResponseCode.MARKET_STATUS: "market_status",
    ResponseCode.DISCONNECT: "disconnect",
    TEXT: "text",
}

#: Size of a readable packet by its first byte, -1 where there is none.
_SIZES = np.full(256, -1, np.int64)
_SIZES[list(SIZES)] = list(SIZES.values())

#: Token of each segment's security id 0; adding a security id makes its token.
_SEGMENT_TOKENS = dhan_tokens(np.arange(256), np.zeros(256))

#: Columns of each kind of packet outside of its depth, all but its trade time.
_COLUMNS = {
    code: [field.name for field in LAYOUTS[code].fields[len(HEADER.fields) :] if field.name != "last_trade_time"]
    for code in _MODES
}

#: Columns of depth, each with its field of a level.
_DEPTH_COLUMNS = {
    "bid_prices": "bid_price",
    "bid_quantities": "bid_quantity",
    "bid_orders": "bid_orders",
    "ask_prices": "ask_price",
    "ask_quantities": "ask_quantity",
    "ask_orders": "ask_orders",
}

_NO_INTS = np.empty(0, np.int64)
_NO_OPEN_INTEREST = StateUpdates(_NO_INTS, _NO_INTS, _NO_INTS, np.empty(0, np.uint32), _NO_INTS, _NO_INTS)
_NO_PREVIOUS_CLOSE = StateUpdates(_NO_INTS, _NO_INTS, _NO_INTS, np.empty(0, np.float32), _NO_INTS, _NO_INTS)


def decode(
    payload: bytes, offsets: Ints, text: NDArray[np.bool_] | None = None, trade_time_offset_s: int = IST_OFFSET_S
) -> Decoded:
    """Everything in the messages of blocks: `payload[offsets[i]:offsets[i + 1]]` is message i. Never raises.

    Trade times on the wire are ahead of UTC by `trade_time_offset_s`: they are India's wall clock.
    `text` marks messages that arrived as text; each counts as one control packet "text". An empty binary message counts
    as one rejected packet, so that every message leaves a mark. Positions number all packets in arrival order, the
    rejected ones included. Heartbeat, market status and disconnect packets are control; index packets
    (code 1, layout undocumented), depth packets of version 1 (code 3) and unknown codes are rejected with their bytes.
    The arrays may be read-only views of `payload`, and share memory with each other.
    """
    start = offsets[:-1]
    size = offsets[1:] - start
    position = message = np.arange(len(start))
    rejected: list[Rejection] = []
    if text is not None and not np.count_nonzero(text):
        text = None
    # One code that all packets have, or the code of each.
    codes = b"" if text is not None else _code_of_all(payload, start, size)
    if not codes:
        code = _first_bytes(payload, start)
        if text is not None or np.count_nonzero(_SIZES.take(code) == size) < len(size):
            start, size, code, message, rejected = _split(payload, start, size, code, text)
            position = np.arange(len(start))
        codes = code.tobytes()
    alike = codes.count(codes[:1]) == len(codes)

    ticks: list[RawTicks] = []
    control: dict[str, Ints] = {}
    open_interest, previous_close = _NO_OPEN_INTEREST, _NO_PREVIOUS_CLOSE
    for kind in codes[:1] if alike else sorted(set(codes)):
        if kind in _CONTROL:
            control[_CONTROL[kind]] = position if alike else (code == kind).nonzero()[0]
            continue
        if kind == REJECTED:
            continue
        if alike:
            positions, messages, starts, sizes = position, message, start, size
        else:
            positions = (code == kind).nonzero()[0]
            messages, starts, sizes = message[positions], start[positions], size[positions]
        rows = _rows(payload, starts, kind)
        tokens = _SEGMENT_TOKENS.take(rows["exchange_segment"]) + rows["security_id"]
        if kind in _MODES:
            columns = _columns(rows, kind, trade_time_offset_s)
            ticks.append(RawTicks(_MODES[kind], positions, messages, tokens, columns, starts, sizes))
        elif kind == ResponseCode.OPEN_INTEREST:
            open_interest = StateUpdates(positions, messages, tokens, rows["oi"], starts, sizes)
        else:
            previous_close = StateUpdates(positions, messages, tokens, rows["prev_close"], starts, sizes)
    return Decoded(payload, message, ticks, open_interest, previous_close, control, rejected)


def split_packets(payload: bytes, start: Ints, size: Ints, text: NDArray[np.bool_]) -> tuple[Ints, Ints, Codes, Ints]:
    """Start, size, response code and message of every packet of the messages at `start`, in arrival order.

    What `decode` would reject has the code `REJECTED`, a text message `TEXT`. Never raises.
    """
    code = _first_bytes(payload, start)
    if np.array_equal(_SIZES.take(code), size) and not text.any():
        return start, size, code, np.arange(len(start))
    return _split(payload, start, size, code, text)[:4]


def _code_of_all(payload: bytes, start: Ints, size: Ints) -> bytes:
    """The first byte of every message, if all are one packet of the same kind; else nothing."""
    first = start.item(0) if len(start) else len(payload)
    known = SIZES.get(payload[first], 0) if first < len(payload) else 0
    if not known or np.count_nonzero(size == known) < len(size):
        return b""
    codes = payload[first : first + known * len(size) : known]
    return codes[:1] if codes.count(codes[:1]) == len(size) else b""


def _first_bytes(payload: bytes, start: Ints) -> Codes:
    """The byte at each start; any byte for an empty message, whose size then fits no packet."""
    if not payload:
        return np.zeros(len(start), np.uint8)
    return np.frombuffer(payload, np.uint8).take(start, mode="clip")


def _rows(payload: bytes, start: Ints, kind: int) -> NDArray[np.void]:
    """The packets at `start`, all of one kind, as a structured array: the payload itself where they are adjacent."""
    dtype = LAYOUTS[kind].dtype
    size = dtype.itemsize
    first = int(start[0])
    if int(start[-1]) - first == (len(start) - 1) * size:
        return np.frombuffer(payload, dtype, len(start), first)
    # Every place in the payload, seen as a packet that might begin there; indexing copies the chosen ones only.
    windows = np.ndarray((len(payload) - size + 1,), f"V{size}", payload, strides=(1,))
    return windows[start].view(dtype)


def _columns(rows: NDArray[np.void], kind: int, trade_time_offset_s: int) -> dict[str, NDArray[Any]]:
    """The columns of ticks of one kind."""
    columns: dict[str, NDArray[Any]] = {name: rows[name] for name in _COLUMNS[kind]}
    if LAYOUTS[kind].levels:
        depth = rows["depth"]
        columns |= {name: depth[field] for name, field in _DEPTH_COLUMNS.items()}
    time = rows["last_trade_time"].astype(np.int64)
    time[time <= NEVER_TRADED_S] = trade_time_offset_s
    columns["last_trade_time"] = time - trade_time_offset_s
    return columns


def _split(
    payload: bytes, start: Ints, size: Ints, code: Codes, text: NDArray[np.bool_] | None
) -> tuple[Ints, Ints, Codes, Ints, list[Rejection]]:
    """Start, size, code and message of every packet, where not every message is one known packet; and the rejected."""
    known = _SIZES[code]
    count = np.where((known > 0) & (size % known == 0), size // known, 0)
    if text is not None:
        count[text] = 0

    # Equal packets side by side, as the first byte and the size of the message suggest: true if every header agrees.
    message = np.repeat(np.arange(len(start)), count)
    nth = np.arange(len(message)) - np.repeat(np.cumsum(count) - count, count)
    packet_size, packet_code = known[message], code[message]
    packet_start = start[message] + nth * packet_size
    octets = np.frombuffer(payload or b"\0", np.uint8)
    length = octets[packet_start + 1] | octets[packet_start + 2].astype(np.int64) << 8
    wrong = ((octets[packet_start] != packet_code) | (length != packet_size)) & (count[message] > 1)
    if wrong.any():
        count[message[wrong]] = 0
        right = count[message] > 0
        message, packet_start = message[right], packet_start[right]
        packet_size, packet_code = packet_size[right], packet_code[right]

    starts: list[int] = []
    sizes: list[int] = []
    codes: list[int] = []
    messages: list[int] = []
    reasons: list[str] = []
    for index in np.flatnonzero(count == 0).tolist():
        begin, end = int(start[index]), int(start[index] + size[index])
        if text is not None and text[index]:
            packets: Iterable[Packet] = [(begin, end - begin, TEXT, None)]
        elif begin == end:
            packets = [(begin, 0, REJECTED, "empty message")]
        else:
            packets = split(payload, begin, end)
        for at, bytes_, kind, reason in packets:
            starts.append(at)
            sizes.append(bytes_)
            messages.append(index)
            if reason is None:
                codes.append(kind)
            else:
                codes.append(REJECTED)
                reasons.append(reason)

    message = np.concatenate((message, np.array(messages, np.int64)))
    order = np.argsort(message, kind="stable")  # all packets of a message came one way, so this is arrival order
    message = message[order]
    packet_start = np.concatenate((packet_start, np.array(starts, np.int64)))[order]
    packet_size = np.concatenate((packet_size, np.array(sizes, np.int64)))[order]
    packet_code = np.concatenate((packet_code, np.array(codes, np.uint8)))[order]
    rejected = []
    for position, reason in zip(np.flatnonzero(packet_code == REJECTED).tolist(), reasons, strict=True):
        begin = int(packet_start[position])
        rest = payload[begin : begin + int(packet_size[position])]
        rejected.append(Rejection(position, int(message[position]), reason, rest))
    return packet_start, packet_size, packet_code, message, rejected
