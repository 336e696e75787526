"""Journal blocks of Kite's feed -> columns. It never raises.

A message holds packets of several kinds, whose lengths have to be read one after another; all else is vectorised.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.kite.framing import split
from dhan_pipeline.feeds.kite.wire import DIVISOR_TABLE, FULL, INDEX_FULL, INDEX_QUOTE, LAYOUTS, LTP, QUOTE
from dhan_pipeline.ticks import DEPTH_LEVELS, NULL_INT, Decoded, Mode, RawTicks, Rejection, StateUpdates

Ints = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

#: Stand in for the size of what is no packet.
HEARTBEAT, TEXT, REJECTED = 0, -1, -2

#: The packets of each mode: of what is traded, and of an index.
_MODES = {Mode.TICKER: (LTP,), Mode.QUOTE: (QUOTE, INDEX_QUOTE), Mode.FULL: (FULL, INDEX_FULL)}

_PRICES = ("last_price", "average_traded_price", "day_open", "day_high", "day_low", "day_close")
_QUANTITIES = ("last_traded_quantity", "volume_traded", "total_buy_quantity", "total_sell_quantity")
_OPEN_INTEREST = ("oi", "oi_day_high", "oi_day_low")

_NO_INTS = np.empty(0, np.int64)
_NOTHING = StateUpdates(_NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS)


def decode(payload: bytes, offsets: Ints, text: NDArray[np.bool_] | None = None) -> Decoded:
    """Everything in the messages of blocks: `payload[offsets[i]:offsets[i + 1]]` is message i. Never raises.

    `text` marks messages that arrived as text; each counts as one control packet "text". Positions number all packets
    in arrival order, the rejected ones included, as `framing` finds them. Prices are float64, in rupees. What an index
    packet does not carry is NULL_INT or NaN, and its depth is empty; its trade time is the exchange's time of it. Only
    packets of full mode have a trade time. There are no state updates: previous close is a field of quotes.
    """
    starts: list[int] = []
    sizes: list[int] = []
    messages: list[int] = []
    rejected: list[Rejection] = []
    bounds = offsets.tolist()
    texts = text.tolist() if text is not None and text.any() else None
    for message, begin in enumerate(bounds[:-1]):
        if texts is not None and texts[message]:
            starts.append(begin)
            sizes.append(TEXT)
            messages.append(message)
            continue
        for at, length, reason in split(payload, begin, bounds[message + 1]):
            if reason is not None:
                rejected.append(Rejection(len(starts), message, reason, payload[at : at + length]))
                length = REJECTED
            starts.append(at)
            sizes.append(length)
            messages.append(message)

    size, start = np.array(sizes, np.int64), np.array(starts, np.int64)
    message_of = np.array(messages, np.int64)
    found = set(sizes)
    ticks = [
        _ticks(payload, mode, start, size, message_of, kinds) for mode, kinds in _MODES.items() if found & set(kinds)
    ]
    control = {
        name: np.flatnonzero(size == kind) for name, kind in (("heartbeat", HEARTBEAT), ("text", TEXT)) if kind in found
    }
    return Decoded(payload, message_of, ticks, _NOTHING, _NOTHING, control, rejected)


def _ticks(payload: bytes, mode: Mode, start: Ints, size: Ints, message: Ints, kinds: tuple[int, ...]) -> RawTicks:
    """The ticks of a mode, in arrival order."""
    position = np.flatnonzero(np.isin(size, kinds))
    of_mode = size[position]
    parts: list[tuple[Ints, Ints, Columns]] = []
    for kind in kinds:
        at = np.flatnonzero(of_mode == kind)
        if len(at):
            rows = _rows(payload, start[position[at]], kind)
            parts.append((at, rows["instrument_token"].astype(np.int64), _columns(rows, kind)))
    tokens = _merged([(at, token) for at, token, _ in parts], len(position))
    columns = {name: _merged([(at, columns[name]) for at, _, columns in parts], len(position)) for name in parts[0][2]}
    return RawTicks(mode, position, message[position], tokens, columns, start[position], of_mode)


def _merged(parts: list[tuple[Ints, NDArray[Any]]], size: int) -> NDArray[Any]:
    """Values from their places."""
    if len(parts) == 1:
        return parts[0][1]
    merged = np.empty((size, *parts[0][1].shape[1:]), parts[0][1].dtype)
    for at, values in parts:
        merged[at] = values
    return merged


def _rows(payload: bytes, start: Ints, kind: int) -> NDArray[np.void]:
    """The packets at `start`, all of one kind, as a structured array."""
    # Every place in the payload, seen as a packet that might begin there; indexing copies the chosen ones only.
    windows = np.ndarray((len(payload) - kind + 1,), f"V{kind}", payload, strides=(1,))
    return windows[start].view(LAYOUTS[kind].dtype)


def _columns(rows: NDArray[np.void], kind: int) -> Columns:
    """The columns of packets of one kind: the same names and types for all kinds of a mode."""
    divisor = DIVISOR_TABLE.take(rows["instrument_token"] & 0xFF)
    fields = LAYOUTS[kind].dtype.names or ()
    absent = np.full(len(rows), NULL_INT)
    columns: Columns = {
        name: rows[name] / divisor if name in fields else np.zeros(len(rows))
        for name in (_PRICES if kind != LTP else _PRICES[:1])
    }
    traded_at = "last_trade_time" if kind == FULL else "exchange_timestamp"
    columns["last_trade_time"] = (
        rows[traded_at].astype(np.int64) if traded_at in fields else np.zeros(len(rows), np.int64)
    )
    if kind == LTP:
        return columns
    quantities = _QUANTITIES + (_OPEN_INTEREST if kind in (FULL, INDEX_FULL) else ())
    columns |= {name: rows[name].astype(np.int64) if name in fields else absent for name in quantities}
    if kind in (FULL, INDEX_FULL):
        columns |= _depth(rows, divisor)
    return columns


def _depth(rows: NDArray[np.void], divisor: NDArray[np.float64]) -> Columns:
    if "depth" not in (rows.dtype.names or ()):
        empty = np.zeros((len(rows), DEPTH_LEVELS))
        return {
            f"{side}_{name}": empty if name == "prices" else empty.astype(np.int64)
            for side in ("bid", "ask")
            for name in ("prices", "quantities", "orders")
        }
    columns: Columns = {}
    for side, levels in (("bid", slice(DEPTH_LEVELS)), ("ask", slice(DEPTH_LEVELS, None))):
        depth = rows["depth"][:, levels]
        columns[f"{side}_prices"] = depth["price"] / divisor[:, None]
        columns[f"{side}_quantities"] = depth["quantity"].astype(np.int64)
        columns[f"{side}_orders"] = depth["orders"].astype(np.int64)
    return columns
