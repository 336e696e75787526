"""THE table of Kite's wire format. Structs, NumPy dtypes and sizes are all derived from it.

Big endian, packed; a packet's length alone says what it is. https://kite.trade/docs/connect/v3/websocket/, and where
it is silent or disagrees with them, the broker's own clients. Prices are integers, in units of the segment's divisor.
"""

import numpy as np

from dhan_pipeline.feeds.layout import Field, Layout
from dhan_pipeline.instruments import KiteSegment
from dhan_pipeline.ticks import DEPTH_LEVELS

#: Sizes of the packets, which tell what they are.
LTP, INDEX_QUOTE, INDEX_FULL, QUOTE, FULL = 8, 28, 32, 44, 184

#: What begins a message: the number of its packets. Before each packet stands its length, in a number of the same size.
COUNT_SIZE = LENGTH_SIZE = 2

#: A message of this one byte keeps the connection alive.
HEARTBEAT_SIZE = 1


def _fields(spec: str) -> list[Field]:
    """`"name:format name:format"` as fields."""
    return [Field(*item.split(":")) for item in spec.split()]


_LTP = _fields("instrument_token:I last_price:i")
_QUOTE = _LTP + _fields(
    "last_traded_quantity:I average_traded_price:i volume_traded:I total_buy_quantity:I total_sell_quantity:I "
    "day_open:i day_high:i day_low:i day_close:i"
)
#: High and low come before the open here. `change` is signed, in the unit of prices.
_INDEX = _LTP + _fields("day_high:i day_low:i day_open:i day_close:i change:i")
_FULL = _QUOTE + _fields("last_trade_time:I oi:I oi_day_high:I oi_day_low:I exchange_timestamp:I")

#: One of the five bids, which come first, or of the five asks.
DEPTH_LEVEL = Layout("depth level", _fields("quantity:I price:i orders:H padding:H"), order=">")

#: Packets by size. Fields that become columns bear the names of `ticks.COLUMNS`.
LAYOUTS: dict[int, Layout] = {
    LTP: Layout("ltp", _LTP, order=">"),
    INDEX_QUOTE: Layout("index quote", _INDEX, order=">"),
    INDEX_FULL: Layout("index full", _INDEX + _fields("exchange_timestamp:I"), order=">"),
    QUOTE: Layout("quote", _QUOTE, order=">"),
    FULL: Layout("full", _FULL, levels=2 * DEPTH_LEVELS, level=DEPTH_LEVEL, order=">"),
}

#: Times up to this one (1980-01-01, where the exchanges begin to count) mean that there was none.
NEVER_TRADED_S = 315_532_800

#: What prices are divided by to be rupees, by segment; 100 where it is not here. The documentation says 10^7 for all
#: currencies, the broker's clients 10^4 for BSE's.
DIVISORS = {KiteSegment.CDS: 10_000_000, KiteSegment.BCD: 10_000, KiteSegment.NCO: 10_000}

#: The same by the last byte of a token, for arrays.
DIVISOR_TABLE = np.full(256, 100.0)
for _segment, _divisor in DIVISORS.items():
    DIVISOR_TABLE[_segment] = _divisor
