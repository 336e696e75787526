"""Raw ticks -> enriched ticks, blocks at a time: identity, clean prices, times, and what each row owes to state.

Rows are a pure function of the blocks of an IST day so far and of the instrument table, however many blocks are
enriched at once. Whatever a row takes from another packet of its instrument comes from packets *before* it, by their
place in the journal, and never from one after it, be it in the same block.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.ticks import (
    DEPTH_LEVELS,
    NULL_INT,
    POSITION_BITS,
    Decoded,
    Enriched,
    Mode,
    RawTicks,
    Rejection,
    StateUpdates,
    TickBatch,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNKNOWN_INSTRUMENT = "unknown instrument"
IMPOSSIBLE_PRICE = "impossible price"
FUTURE_TRADE_TIME = "trade time in the future"

#: What a price may be in units of its last decimal, as depth holds it: 43 million rupees, 429 thousand of a currency.
_PRICE_LIMIT = 2.0**32
_SAFE_PRICE = _PRICE_LIMIT / 1e4

_NO_POSITIONS = np.empty(0, np.int64)

#: A trade later than its packet's arrival by more than this is not believed.
FUTURE_TOLERANCE_US = 120_000_000


class MarketState:
    """What earlier packets of the IST day said about each instrument, by its index in the `InstrumentIndex`."""

    def __init__(self, size: int) -> None:
        self.previous_close: Floats = np.full(size, np.nan)
        """From a previous-close packet, else the latest close field of a quote or full packet. NaN: unknown."""
        self.announced: NDArray[np.bool_] = np.zeros(size, np.bool_)
        """Whether `previous_close` comes from a previous-close packet, which no close field overrides."""
        self.open_interest: Ints = np.full(size, NULL_INT)
        """From an open-interest packet. NULL_INT: unknown."""


class _Layout:
    """How a batch of one mode keeps its prices: as the rows of one matrix, so that one call cleans all of them."""

    def __init__(self, *, session: bool, depth: bool) -> None:
        self.session = session
        names = ("day_close", "last_price", "day_open", "day_high", "day_low", "average_traded_price")
        self.names = names if session else names[:2]
        self.close, self.average = 0, 5

        self.depth = depth
        self.bid = len(self.names)
        self.ask = self.bid + DEPTH_LEVELS
        self.height = self.ask + DEPTH_LEVELS if depth else self.bid
        # What comes from the wire; a ticker packet has no close field.
        self.wire = slice(0 if session else 1, self.height)
        self.wire_names = self.names[self.wire]


_LAYOUTS: dict[Mode, _Layout] = {
    Mode.TICKER: _Layout(session=False, depth=False),
    Mode.QUOTE: _Layout(session=True, depth=False),
    Mode.FULL: _Layout(session=True, depth=True),
}


@dataclass(slots=True)
class _Rows:
    """Acceptable ticks of one mode, with clean prices."""

    raw: RawTicks
    layout: _Layout
    index: Ints
    scale: Floats
    prices: Floats
    """A row a column, as `layout` says; `day_close` is still the packet's close field."""


@dataclass(frozen=True, slots=True)
class _Events:
    """What packets say about instruments, by instrument and then by position."""

    index: Ints
    key: Ints
    value: NDArray[Any]


class _Places:
    """Where the packets that were decoded together lie in the journal."""

    def __init__(self, decoded: Decoded, block_ids: Ints, first_messages: Ints) -> None:
        self._block_ids = block_ids
        self._place = decoded.place
        self._starts = decoded.message.searchsorted(first_messages)  # of each block's first packet, and the end
        self.packets: Ints = self._starts[1:] - self._starts[:-1]
        # Of a block, the tick id at place 0; or where places go on from block to block, at position 0.
        first_ids: Ints = block_ids << POSITION_BITS
        self._first_ids = first_ids - self._starts[:-1] if self._place is None else first_ids

    def count(self, position: Ints) -> Ints:
        """How many of the positions, which ascend, are in each block."""
        ends = position.searchsorted(self._starts)
        counts: Ints = ends[1:] - ends[:-1]
        return counts

    def count_all(self, positions: Iterable[Ints]) -> Ints:
        """The sum of their counts."""
        counts = np.zeros(len(self._block_ids), np.int64)
        for each in positions:
            if len(each):
                counts = counts + self.count(each)
        return counts

    def tick_ids(self, position: Ints, counts: Ints) -> Ints:
        """The tick id at each position. `counts`: how many of them are in each block."""
        place = position if self._place is None else self._place.take(position)
        return self._first_ids.repeat(counts) + place

    def of(self, rejection: Rejection) -> Rejection:
        """The same with its block, and its position among the packets of that block."""
        position = rejection.position
        at = int(self._starts.searchsorted(position, side="right")) - 1
        place = position - self._starts[at] if self._place is None else self._place[position]
        return replace(rejection, position=int(place), block_id=int(self._block_ids[at]))


def enrich(
    decoded: Decoded,
    block_ids: Ints,
    first_messages: Ints,
    received_ns: Ints,
    instruments: InstrumentIndex,
    state: MarketState,
) -> Enriched:
    """The rows of blocks, and `state` moved past them. Those of a day come in order, to a state that began empty.

    Block `i` has the messages from `first_messages[i]` on and before `first_messages[i + 1]`. `received_ns` is when
    each message arrived: Unix nanoseconds, UTC. Previous close is what a previous-close packet said, else the row's own
    close field, else the latest close field seen; open interest of a quote row is what an open-interest packet said.
    Packets with an unknown instrument, an impossible price or a trade time in the future join the rejected, with their
    bytes; of these only the last kind has a close field that counts. Never raises for what a packet holds.
    """
    places = _Places(decoded, block_ids, first_messages)
    rejected = list(decoded.rejected)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        accepted = _accept(decoded, instruments, rejected)
        previous_close, open_interest, updates = _read_state(decoded, instruments, rejected)
        _set_previous_close(accepted, previous_close, state)
        received_us = received_ns // 1000
        ticks, counts = [], np.zeros(len(block_ids), np.int64)
        for rows in accepted:
            rows, columns = _timed(rows, received_us, decoded.payload, rejected)
            if len(rows.index):
                of_mode = places.count(rows.raw.position)
                counts = counts + of_mode
                columns["tick_id"] = places.tick_ids(rows.raw.position, of_mode)
                ticks.append(_batch(rows, columns, instruments, state, open_interest))
    _set_open_interest(open_interest, state)
    if rejected:
        rejected.sort(key=lambda rejection: rejection.position)
    kinds = {str(batch.mode): len(batch) for batch in ticks} | decoded.control
    kinds["previous_close"], kinds["open_interest"] = map(len, updates)
    return Enriched(
        ticks=ticks,
        rejected=[places.of(rejection) for rejection in rejected],
        packets=places.packets,
        rows=counts,
        state=places.count_all(updates),
        control=places.count_all(decoded.control_positions.values()),
        kinds=kinds,
    )


def fold(decoded: Decoded, instruments: InstrumentIndex, state: MarketState) -> None:
    """Move `state` past blocks exactly as `enrich` does, without making their rows."""
    with np.errstate(invalid="ignore", over="ignore"):
        previous_close, open_interest, _ = _read_state(decoded, instruments, [])
        _set_previous_close(_accept(decoded, instruments, []), previous_close, state)
    _set_open_interest(open_interest, state)


def _reject(
    packets: RawTicks | StateUpdates, bad: NDArray[np.bool_], reason: str, payload: bytes, rejected: list[Rejection]
) -> None:
    """Keep the bytes of the bad ones."""
    for at in bad.nonzero()[0].tolist():
        start = int(packets.start[at])
        bytes_ = payload[start : start + int(packets.size[at])]
        rejected.append(Rejection(int(packets.position[at]), int(packets.message[at]), reason, bytes_))


def _accept(decoded: Decoded, instruments: InstrumentIndex, rejected: list[Rejection]) -> list[_Rows]:
    """Ticks of known instruments with possible prices, mode by mode."""
    accepted = [_clean(raw, instruments, decoded.payload, rejected) for raw in decoded.ticks if len(raw)]
    return [rows for rows in accepted if len(rows.index)]


def _clean(raw: RawTicks, instruments: InstrumentIndex, payload: bytes, rejected: list[Rejection]) -> _Rows:
    """The acceptable ones, with the decimals that the exchange meant, and NaN for no price."""
    layout = _LAYOUTS[raw.mode]
    index = instruments.lookup(raw.instrument_token).astype(np.int64)
    # Here and below: `argmin` takes 0.3 us where `min` takes 1.1, which is 5 % of all for a small block.
    if index.item(index.argmin()) < 0:
        unknown = index < 0
        _reject(raw, unknown, UNKNOWN_INSTRUMENT, payload, rejected)
        raw, index = _select(raw, ~unknown), index[~unknown]
    scale = instruments.scale.take(index)
    prices = np.empty((layout.height, len(index)))
    if not len(index):
        return _Rows(raw, layout, index, scale, prices)

    if not layout.session:
        prices[layout.close] = np.nan
    for at, name in enumerate(layout.wire_names, layout.wire.start):
        prices[at] = raw.columns[name]
    if layout.depth:
        prices[layout.bid : layout.ask] = raw.columns["bid_prices"].T
        prices[layout.ask :] = raw.columns["ask_prices"].T
    wire = prices[layout.wire]
    lowest, highest = wire.item(wire.argmin()), wire.item(wire.argmax())  # each is NaN if one is
    if not (lowest >= 0 and highest < _SAFE_PRICE):
        impossible: NDArray[np.bool_] = np.logical_or.reduce(~(wire >= 0) | ~(np.rint(wire * scale) < _PRICE_LIMIT))
        _reject(raw, impossible, IMPOSSIBLE_PRICE, payload, rejected)
        keep = ~impossible
        raw, index, scale, prices, lowest = _select(raw, keep), index[keep], scale[keep], prices[:, keep], 0.0
        wire = prices[layout.wire]

    wire *= scale
    np.rint(wire, out=wire)
    wire /= scale
    if layout.session:
        # The average of a day is seldom a multiple of the tick: it keeps four decimals where the wire has them.
        rounded, average = prices[layout.average], raw.columns["average_traded_price"]
        finer = rounded.astype(average.dtype) != average
        if np.count_nonzero(finer):
            np.copyto(rounded, np.rint(average.astype(np.float64) * 1e4) / 1e4, where=finer)
    if lowest < 1:  # else none is zero, not even after rounding
        np.copyto(wire, np.nan, where=wire == 0)
    return _Rows(raw, layout, index, scale, prices)


def _select(raw: RawTicks, keep: NDArray[np.bool_]) -> RawTicks:
    return replace(
        raw,
        position=raw.position[keep],
        message=raw.message[keep],
        instrument_token=raw.instrument_token[keep],
        columns={name: values[keep] for name, values in raw.columns.items()},
        start=raw.start[keep],
        size=raw.size[keep],
    )


def _events(index: Ints, position: Ints, value: NDArray[Any]) -> _Events:
    key = index << 32 | position
    order = key.argsort()
    return _Events(index[order], key[order], value[order])


def _as_of(events: _Events, index: Ints, position: Ints, before: NDArray[Any]) -> NDArray[Any]:
    """Value of the instrument's latest event up to each position; `before` where there is none by then."""
    at = events.key.searchsorted(index << 32 | position, side="right") - 1
    found = (at >= 0) & (events.index[at] == index)
    return np.where(found, events.value[at], before)


def _read_state(
    decoded: Decoded, instruments: InstrumentIndex, rejected: list[Rejection]
) -> tuple[_Events | None, _Events | None, list[Ints]]:
    """(previous closes, open interest, positions of the accepted packets of both); None for none."""
    announcements = open_interest = None
    accepted = [_NO_POSITIONS, _NO_POSITIONS]
    if len(updates := decoded.previous_close):
        index = instruments.lookup(updates.instrument_token).astype(np.int64)
        value = updates.value.astype(np.float64)
        unknown = index < 0
        impossible = ~(np.isfinite(value) & (value >= 0)) & ~unknown
        _reject(updates, unknown, UNKNOWN_INSTRUMENT, decoded.payload, rejected)
        _reject(updates, impossible, IMPOSSIBLE_PRICE, decoded.payload, rejected)
        keep = ~(unknown | impossible)
        accepted[0] = updates.position[keep]
        scale = instruments.scale.take(index[keep])
        value[keep] = np.rint(value[keep] * scale) / scale
        keep &= value > 0  # no price: says nothing
        if np.count_nonzero(keep):
            announcements = _events(index[keep], updates.position[keep], value[keep])
    if len(updates := decoded.open_interest):
        index = instruments.lookup(updates.instrument_token).astype(np.int64)
        unknown = index < 0
        _reject(updates, unknown, UNKNOWN_INSTRUMENT, decoded.payload, rejected)
        keep = ~unknown
        accepted[1] = updates.position[keep]
        if np.count_nonzero(keep):
            open_interest = _events(index[keep], updates.position[keep], updates.value[keep].astype(np.int64))
    return announcements, open_interest, accepted


def _set_previous_close(accepted: list[_Rows], announcements: _Events | None, state: MarketState) -> None:
    """Replace the close field of all rows by their previous close, and move the state past them."""
    news = False
    known = []
    for rows in accepted:
        close = state.previous_close.take(rows.index)
        known.append(close)
        # In a session, a close field says other than the state once an instrument: when it is first seen.
        stated = rows.prices[rows.layout.close]
        other = stated != close
        if np.count_nonzero(other):
            news = news or bool(np.count_nonzero(other & (stated > 0) & ~state.announced.take(rows.index)))
    closes = None
    if news:
        index = np.concatenate([rows.index for rows in accepted])
        position = np.concatenate([rows.raw.position for rows in accepted])
        value = np.concatenate([rows.prices[rows.layout.close] for rows in accepted])
        keep = (value > 0) & ~state.announced.take(index)
        closes = _events(index[keep], position[keep], value[keep])

    for rows, close in zip(accepted, known, strict=True):
        for events in (closes, announcements):
            if events is not None:
                close = _as_of(events, rows.index, rows.raw.position, close)
        rows.prices[rows.layout.close] = close

    # Of several events of one instrument the last is the one that stays.
    if closes is not None:
        state.previous_close[closes.index] = closes.value
    if announcements is not None:
        state.previous_close[announcements.index] = announcements.value
        state.announced[announcements.index] = True


def _set_open_interest(events: _Events | None, state: MarketState) -> None:
    if events is not None:
        state.open_interest[events.index] = events.value


def _timed(
    rows: _Rows, received_us: Ints, payload: bytes, rejected: list[Rejection]
) -> tuple[_Rows, dict[str, NDArray[Any]]]:
    """The rows whose trade time is not in the future, and both of their times; the others are rejected."""
    time = received_us.take(rows.raw.message)
    trade_time = rows.raw.columns["last_trade_time"] * 1_000_000
    ahead = trade_time - time
    if ahead.item(ahead.argmax()) > FUTURE_TOLERANCE_US:
        future = ahead > FUTURE_TOLERANCE_US
        _reject(rows.raw, future, FUTURE_TRADE_TIME, payload, rejected)
        keep = ~future
        time, trade_time = time[keep], trade_time[keep]
        rows = _Rows(_select(rows.raw, keep), rows.layout, rows.index[keep], rows.scale[keep], rows.prices[:, keep])
    trade_time[trade_time <= 0] = NULL_INT
    return rows, {"time": time, "last_trade_time": trade_time}


def _batch(
    rows: _Rows,
    columns: dict[str, NDArray[Any]],
    instruments: InstrumentIndex,
    state: MarketState,
    open_interest: _Events | None,
) -> TickBatch:
    """The rows with all columns that are stored, beside those that are there."""
    raw, layout, index, prices = rows.raw, rows.layout, rows.index, rows.prices
    columns = {**raw.columns, **columns}
    columns.update(zip(layout.names, prices, strict=False))
    columns["instrument_token"] = raw.instrument_token
    columns["tradable"] = instruments.tradable.take(index)
    if layout.depth:
        columns["bid_prices"] = prices[layout.bid : layout.ask].T
        columns["ask_prices"] = prices[layout.ask :].T
    elif layout.session:
        oi = state.open_interest.take(index)
        columns["oi"] = oi if open_interest is None else _as_of(open_interest, index, raw.position, oi)
    return TickBatch(raw.mode, columns, rows.scale)


#: The columns of `ticks` that follow from others of the same row. They are not stored: who reads rows computes them.
DERIVED = ("change", "change_percent", "bid_ask_spread", "mid_price", "order_imbalance")


def derived(columns: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """The columns of `DERIVED`, of those of a `TickBatch`: shape (rows,), NaN where absent; none that nothing leads to.

    Rounded to 4 decimals, the mid price to 5 (half of a currency's tick), the order imbalance not at all. The view
    `ticks` (sql/0006_tick_rows.sql) says the same in SQL, to the last bit.
    """
    found: dict[str, Floats] = {}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if "day_close" in columns and "last_price" in columns:
            change = columns["last_price"] - columns["day_close"]
            found["change"] = np.rint(change * 1e4) / 1e4
            found["change_percent"] = np.rint(change / columns["day_close"] * 1e6) / 1e4
        if "bid_prices" in columns and "ask_prices" in columns:
            bid, ask = columns["bid_prices"][:, 0], columns["ask_prices"][:, 0]
            found["bid_ask_spread"] = np.rint((ask - bid) * 1e4) / 1e4
            found["mid_price"] = np.rint((ask + bid) * 5e4) / 1e5
        for values in found.values():
            values += 0.0  # turns -0.0 into 0.0
        if "total_buy_quantity" in columns and "total_sell_quantity" in columns:
            buy, sell = columns["total_buy_quantity"], columns["total_sell_quantity"]
            surplus, total = np.subtract(buy, sell, dtype=np.int64), np.add(buy, sell, dtype=np.int64)
            absent = (total == 0) | (buy == NULL_INT) | (sell == NULL_INT)
            found["order_imbalance"] = np.where(absent, np.nan, surplus / total)
    return found
