"""Journal blocks of Kite's feed -> columns. Vectorised, zero-copy where the bytes allow it, and it never raises.

Messages whose packets are all of one length, as a lone one is, are expanded by arithmetic. In a message of several
kinds the lengths are read one after another, and nothing else is: the columns of a kind are made of all its packets at
once. Only messages that hold something unreadable are walked by the rules of `framing`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.kite.framing import readable, split
from dhan_pipeline.feeds.kite.wire import (
    COUNT_SIZE,
    DIVISOR_TABLE,
    FULL,
    INDEX_FULL,
    INDEX_QUOTE,
    LAYOUTS,
    LENGTH_SIZE,
    LTP,
    NEVER_TRADED_S,
    QUOTE,
)
from dhan_pipeline.ticks import DEPTH_LEVELS, NULL_INT, Decoded, Mode, RawTicks, Rejection, StateUpdates

Ints = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

#: Stand in for the size of what is no packet that can be read. Like the sizes of packets, they fit a byte.
HEARTBEAT, TEXT, REJECTED = 0, 1, 2

_CONTROL = {"heartbeat": HEARTBEAT, "text": TEXT}

#: The packets of each mode: of what is traded, and of an index.
_MODES = {Mode.TICKER: (LTP, LTP), Mode.QUOTE: (QUOTE, INDEX_QUOTE), Mode.FULL: (FULL, INDEX_FULL)}

_PRICES = ("last_price", "average_traded_price", "day_open", "day_high", "day_low", "day_close")
_QUANTITIES = ("last_traded_quantity", "volume_traded", "total_buy_quantity", "total_sell_quantity")
_OPEN_INTEREST = ("oi", "oi_day_high", "oi_day_low")

#: Columns of a mode, other than its depth: prices, and quantities.
_COLUMNS = {
    Mode.TICKER: (_PRICES[:1], ()),
    Mode.QUOTE: (_PRICES, _QUANTITIES),
    Mode.FULL: (_PRICES, _QUANTITIES + _OPEN_INTEREST),
}

#: Fields of an index's packet, by the name of what is traded: its trade time is when the exchange computed it.
_INDEX_PRICES = {name: name for name in ("instrument_token", *_PRICES) if name != "average_traded_price"}
_INDEX_FIELDS = {Mode.QUOTE: _INDEX_PRICES, Mode.FULL: _INDEX_PRICES | {"last_trade_time": "exchange_timestamp"}}

#: Fields of a level of depth other than its price, by the names of their columns: of the bids, and of the asks.
_DEPTH = {"quantity": ("bid_quantities", "ask_quantities"), "orders": ("bid_orders", "ask_orders")}

#: Whether a packet of a length, of 16 bits, can be read.
_KNOWN = np.zeros(1 << 16, np.bool_)
_KNOWN[list(LAYOUTS)] = True

_NO_INTS = np.empty(0, np.int64)
_NOTHING = StateUpdates(_NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS)


def decode(payload: bytes, offsets: Ints, text: NDArray[np.bool_] | None = None) -> Decoded:
    """Everything in the messages of blocks: `payload[offsets[i]:offsets[i + 1]]` is message i. Never raises.

    `text` marks messages that arrived as text; each counts as one control packet "text". Positions number all packets
    in arrival order, the rejected ones included, as `framing` finds them. Prices are float64, in rupees. What an index
    packet does not carry is NULL_INT, or 0 for prices and depth; its trade time is the exchange's time of it. Only
    packets of full mode have a trade time. There are no state updates: previous close is a field of quotes. The arrays
    may be read-only views of `payload`.
    """
    start, size, message, rejected = split_packets(payload, offsets, text)
    kinds = size.astype(np.uint8).tobytes()
    alike = kinds.count(kinds[:1]) == len(kinds)
    every = np.arange(len(size))
    ticks: list[RawTicks] = []
    for mode, (kind, index_kind) in _MODES.items():
        if kind not in kinds and index_kind not in kinds:
            continue
        position, starts, sizes, messages = every, start, size, message
        if not alike:
            position = ((size == kind) | (size == index_kind)).nonzero()[0]
            starts, sizes, messages = start[position], size[position], message[position]
        index = _NO_INTS
        if index_kind != kind and index_kind in kinds:
            index = (sizes == index_kind).nonzero()[0]
        rows = _rows(payload, starts, sizes, index, mode) if len(index) else _view(payload, starts, kind)
        tokens = rows["instrument_token"].astype(np.int64)
        columns = _columns(rows, tokens, index, mode)
        ticks.append(RawTicks(mode, position, messages, tokens, columns, starts, sizes))
    control = {name: (size == kind).nonzero()[0] for name, kind in _CONTROL.items() if kind in kinds}
    return Decoded(payload, message, ticks, _NOTHING, _NOTHING, control, rejected)


def split_packets(
    payload: bytes, offsets: Ints, text: NDArray[np.bool_] | None
) -> tuple[Ints, Ints, Ints, list[Rejection]]:
    """Start, size and message of every packet, in arrival order; and the rejected ones."""
    begin = offsets[:-1]
    octets = np.frombuffer(payload or b"\0", np.uint8)
    count, length = _numbers(octets, begin), _numbers(octets, begin + COUNT_SIZE)

    # Packets of one length, as the first one's and the size of the message suggest: true if all others agree.
    equal = (offsets[1:] - begin == COUNT_SIZE + count * (LENGTH_SIZE + length)) & _KNOWN.take(length)
    if text is not None:
        equal &= ~text
    if np.count_nonzero(equal & (count == 1)) == len(begin):
        return begin + (COUNT_SIZE + LENGTH_SIZE), length, np.arange(len(begin)), []
    count[~equal] = 0
    message, start, size = _side_by_side(begin, count, length.repeat(count))
    wrong = _numbers(octets, start - LENGTH_SIZE) != size
    if np.count_nonzero(wrong):
        count[message[wrong]] = 0
        message, start, size = _side_by_side(begin, count, length.repeat(count))
    left = (count == 0).nonzero()[0]
    if not len(left):
        return start, size, message, []

    # Several kinds side by side, and whatever cannot be read.
    lengths: list[int] = []
    walked: list[tuple[int, int, int]] = []
    reasons: list[tuple[int, int, str]] = []
    bounds = offsets.tolist()
    for index in left.tolist():
        begins, ends = bounds[index], bounds[index + 1]
        if text is not None and text[index]:
            walked.append((index, begins, TEXT))
        elif found := readable(payload, begins, ends):
            count[index] = len(found)
            lengths += found
        else:
            for at, bytes_, reason in split(payload, begins, ends):
                walked.append((index, at, bytes_ if reason is None else REJECTED))
                if reason is not None:
                    reasons.append((at, bytes_, reason))
    several = np.zeros_like(count)
    several[left] = count[left]
    parts = [
        (message, start, size),
        _side_by_side(begin, several, np.array(lengths, np.int64)),
        np.array(walked, np.int64).reshape(-1, 3).T,
    ]
    message, start, size = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = message.argsort(kind="stable")  # all packets of a message came one way, so this is arrival order
    message, start, size = message[order], start[order], size[order]
    rejected = [
        Rejection(position, int(message[position]), reason, payload[at : at + bytes_])
        for position, (at, bytes_, reason) in zip((size == REJECTED).nonzero()[0].tolist(), reasons, strict=True)
    ]
    return start, size, message, rejected


def _numbers(octets: NDArray[np.uint8], at: Ints) -> Ints:
    """The numbers of 16 bits at these places; any numbers where they would reach beyond the end."""
    return octets.take(at, mode="clip").astype(np.int64) << 8 | octets.take(at + 1, mode="clip")


def _side_by_side(begin: Ints, count: Ints, size: Ints) -> tuple[Ints, Ints, Ints]:
    """Message, start and size of packets by the size of each; message i begins at `begin[i]` and has `count[i]`."""
    message = np.arange(len(begin)).repeat(count)
    start = (size + LENGTH_SIZE).cumsum() - size  # if each message were nothing but packets, from 0 on
    first = count.cumsum() - count
    skipped = begin + (COUNT_SIZE + LENGTH_SIZE) - start.take(first, mode="clip") if len(start) else first
    return message, start + skipped.repeat(count), size


def _view(payload: bytes, start: Ints, kind: int) -> NDArray[np.void]:
    """The packets at `start`, all of one kind, as an array: the payload itself where they are evenly apart."""
    dtype = LAYOUTS[kind].dtype
    step = int(start[1] - start[0]) if len(start) > 1 else kind
    if np.count_nonzero(start[1:] - start[:-1] == step) == len(start) - 1:
        return np.ndarray(len(start), dtype, payload, int(start[0]), (step,))
    # Every place in the payload, seen as a packet that might begin there; indexing copies the chosen ones only.
    windows = np.ndarray((len(payload) - kind + 1,), f"V{kind}", payload, strides=(1,))
    return windows[start].view(dtype)


def _rows(payload: bytes, start: Ints, size: Ints, index: Ints, mode: Mode) -> NDArray[np.void]:
    """The packets of a mode, those of indices, which are at `index`, laid out as the others."""
    kind, index_kind = _MODES[mode]
    rows = np.zeros(len(start), LAYOUTS[kind].dtype)
    others = (size == kind).nonzero()[0]
    if len(others):
        rows.view(f"V{kind}")[others] = _view(payload, start[others], kind).view(f"V{kind}")
    packets = _view(payload, start[index], index_kind)
    for name, wire in _INDEX_FIELDS[mode].items():
        rows[name][index] = packets[wire]
    return rows


def _columns(rows: NDArray[np.void], tokens: Ints, index: Ints, mode: Mode) -> Columns:
    """The columns of the packets of a mode; those at `index` are of an index."""
    names, quantities = _COLUMNS[mode]
    bid, ask = len(names), len(names) + DEPTH_LEVELS
    prices = np.empty((ask + DEPTH_LEVELS if mode is Mode.FULL else bid, len(rows)))
    for at, name in enumerate(names):
        prices[at] = rows[name]
    if mode is Mode.FULL:
        depth = rows["depth"]
        prices[bid:] = depth["price"].T
    prices /= DIVISOR_TABLE.take(tokens & 0xFF)
    columns: Columns = dict(zip(names, prices, strict=False))
    for name in quantities:
        columns[name] = rows[name]
        if len(index):
            columns[name] = rows[name].astype(np.int64)
            columns[name][index] = NULL_INT
    if mode is not Mode.FULL:
        columns["last_trade_time"] = np.zeros(len(rows), np.int64)
        return columns
    time = rows["last_trade_time"].astype(np.int64)
    time[time <= NEVER_TRADED_S] = 0
    columns["last_trade_time"] = time
    columns["bid_prices"], columns["ask_prices"] = prices[bid:ask].T, prices[ask:].T
    for field, (of_bids, of_asks) in _DEPTH.items():
        values = depth[field]
        columns[of_bids], columns[of_asks] = values[:, :DEPTH_LEVELS], values[:, DEPTH_LEVELS:]
    return columns
