"""THE tick schema: names, types, units, and the batches in which ticks travel. Everything reads them from here.

A *decoded* batch is what a feed makes of journal blocks; an *enriched* batch is what is stored. Both are columnar:
one NumPy array a column, one batch a mode (ticker, quote, full), because each mode carries its own set of columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: An absent integer or time. Absent floats are NaN. Both are stored as NULL.
NULL_INT = np.iinfo(np.int64).min

#: Levels of depth that a full packet carries.
DEPTH_LEVELS = 5

#: `tick_id = block_id << POSITION_BITS | position`: a tick's place in the journal.
POSITION_BITS = 16


class Mode(StrEnum):
    """What was subscribed for the instrument, and so which columns a tick can fill."""

    TICKER = "ticker"
    QUOTE = "quote"
    FULL = "full"


Kind = Literal["bool", "int4", "int8", "float8", "text", "timestamptz", "int4[]", "int8[]", "float8[]"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `ticks`: PostgreSQL type, unit, and meaning. `required` columns are never NULL."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    required: bool = False


COLUMNS: tuple[Column, ...] = (
    Column("tick_id", "int8", "", "place in the journal: capture, block, position of the packet", required=True),
    Column("time", "timestamptz", "", "when the packet was received", required=True),
    Column("last_trade_time", "timestamptz", "", "exchange's time of the last trade, 1 s resolution"),
    Column("instrument_token", "int8", "", "the instrument; see `instruments`", required=True),
    Column("last_price", "float8", "rupees", "last traded price"),
    Column("last_traded_quantity", "int8", "units", "size of the last trade (Dhan: 16 bits on the wire)"),
    Column("average_traded_price", "float8", "rupees", "volume-weighted average price of the day"),
    Column("volume_traded", "int8", "units", "cumulative volume of the day"),
    Column("oi", "int8", "units", "open interest"),
    Column("oi_day_high", "int8", "units", "highest open interest of the day"),
    Column("oi_day_low", "int8", "units", "lowest open interest of the day"),
    Column("day_open", "float8", "rupees", "first price of the day"),
    Column("day_high", "float8", "rupees", "highest price of the day"),
    Column("day_low", "float8", "rupees", "lowest price of the day"),
    Column("day_close", "float8", "rupees", "close of the previous day"),
    Column("change", "float8", "rupees", "last_price less the previous close"),
    Column("change_percent", "float8", "percent", "change in percent of the previous close"),
    Column("total_buy_quantity", "int8", "units", "all bids in the book"),
    Column("total_sell_quantity", "int8", "units", "all asks in the book"),
    Column("bid_prices", "float8[]", "rupees", "best five bids, best first"),
    Column("bid_quantities", "int8[]", "units", "quantity at each bid"),
    Column("bid_orders", "int4[]", "orders", "orders at each bid"),
    Column("ask_prices", "float8[]", "rupees", "best five asks, best first"),
    Column("ask_quantities", "int8[]", "units", "quantity at each ask"),
    Column("ask_orders", "int4[]", "orders", "orders at each ask"),
    Column("tradable", "bool", "", "false for an index", required=True),
    Column("mode", "text", "", "ticker, quote or full", required=True),
    Column("bid_ask_spread", "float8", "rupees", "best ask less best bid"),
    Column("mid_price", "float8", "rupees", "mean of best bid and best ask"),
    Column("order_imbalance", "float8", "ratio", "(buy - sell) / (buy + sell) of the total quantities, -1 to 1"),
)

_ARROW: dict[Kind, pa.DataType] = {
    "bool": pa.bool_(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float8": pa.float64(),
    "text": pa.string(),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "int4[]": pa.list_(pa.int32()),
    "int8[]": pa.list_(pa.int64()),
    "float8[]": pa.list_(pa.float64()),
}


def arrow_schema() -> pa.Schema:
    """The schema of stored ticks, with each column's unit and meaning as field metadata."""
    return pa.schema(
        pa.field(c.name, _ARROW[c.kind], nullable=not c.required, metadata={"unit": c.unit, "meaning": c.meaning})
        for c in COLUMNS
    )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A packet that could not become a tick, kept whole."""

    position: int
    """Place among the packets that were decoded together; once they are enriched, among those of its block."""
    message: int
    """Index of the message that carried it, among those that were decoded together."""
    reason: str
    payload: bytes
    block_id: int = -1
    """The block that it came in; -1 until it is enriched."""


# What follows is made for every block, and so not frozen: that takes 0.1 us a field, 5 % of decoding and enriching 256.


@dataclass(slots=True)
class RawTicks:
    """Decoded ticks of one mode, as the wire said: zero-copy views where possible, shape (n,) or (n, 5).

    Prices are float32 or float64, not yet rounded; 0 means none. `last_trade_time` is int64, UTC seconds, 0 for never.
    Names are those of `COLUMNS`; a column that the mode does not carry is absent.
    """

    mode: Mode
    position: NDArray[np.int64]
    """Place among the packets that were decoded together, ascending."""
    message: NDArray[np.int64]
    instrument_token: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    start: NDArray[np.int64]
    """Offset of each packet in the payload."""
    size: NDArray[np.int64]
    """Bytes of each packet."""

    def __len__(self) -> int:
        return len(self.position)


@dataclass(slots=True)
class StateUpdates:
    """Packets that say something about later ticks of their instrument: open interest, or previous close."""

    position: NDArray[np.int64]
    """Place among the packets that were decoded together, ascending."""
    message: NDArray[np.int64]
    instrument_token: NDArray[np.int64]
    value: NDArray[Any]
    start: NDArray[np.int64]
    """Offset of each packet in the payload."""
    size: NDArray[np.int64]
    """Bytes of each packet."""

    def __len__(self) -> int:
        return len(self.position)


@dataclass(slots=True)
class Decoded:
    """Everything a feed made of a block, or of several. `packets = ticks + state + control + rejected`, always."""

    payload: bytes
    message: NDArray[np.int64]
    """Index of the message that carried each packet, by the packet's position. It never steps back."""
    ticks: list[RawTicks]
    open_interest: StateUpdates
    previous_close: StateUpdates
    control_positions: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Of the packets that are neither data nor state, by name: heartbeat, market_status, disconnect, text."""
    rejected: list[Rejection] = field(default_factory=list)
    place: NDArray[np.int64] | None = None
    """Place of each packet in its block, where not all packets of the blocks are here; None: they are."""

    @property
    def packets(self) -> int:
        """Number of packets."""
        return len(self.message)

    @property
    def control(self) -> dict[str, int]:
        """How many packets are neither data nor state, by name."""
        return {name: len(positions) for name, positions in self.control_positions.items()}


@dataclass(slots=True)
class TickBatch:
    """Enriched ticks of one mode: a column of `COLUMNS` each, NULL_INT or NaN where absent.

    Times are int64 microseconds since the Unix epoch, UTC. Columns that are NULL in every row of the mode are absent,
    and so are those that follow from others (`enrich.DERIVED`). `tradable` is bool; `mode` is not in `columns`.
    Quantities may be views of the wire, unsigned, as narrow and in its byte order: widen them before subtracting.
    """

    mode: Mode
    columns: Mapping[str, NDArray[Any]]
    scale: NDArray[np.float64] | None = None
    """10 to the power of the decimals of each row's prices. A mode without depth may lack it."""

    def __len__(self) -> int:
        return len(self.columns["tick_id"])


@dataclass(slots=True)
class Enriched:
    """Blocks, ready to be stored: the rows of all, and the counts of each that the ledger keeps, shape (blocks,)."""

    ticks: list[TickBatch]
    """At most one batch a mode."""
    rejected: list[Rejection]
    """By block and position."""
    packets: NDArray[np.int64]
    rows: NDArray[np.int64]
    """Ticks that become rows."""
    state: NDArray[np.int64]
    control: NDArray[np.int64]
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Accepted packets of all blocks by kind: the modes of ticks, open_interest, previous_close, names of control."""
