"""Packets and messages of Kite's feed, packed field by field, and strategies that make them."""

import struct

from hypothesis import strategies as st

from dhan_pipeline.feeds.kite.wire import DEPTH_LEVEL, LAYOUTS
from dhan_pipeline.instruments import KiteSegment, make_kite_token
from dhan_pipeline.ticks import DEPTH_LEVELS

NIFTY = 256265
RELIANCE = make_kite_token(KiteSegment.NSE, 2885)
USDINR = make_kite_token(KiteSegment.CDS, 77)

HEARTBEAT = b"\0"


def pack(size: int, token: int = RELIANCE, **fields: int) -> bytes:
    """A packet of the kind of this size, in units of the wire; what is not named is 0. Depth is 0."""
    layout = LAYOUTS[size]
    values = [({"instrument_token": token} | fields).get(field.name, 0) for field in layout.fields]
    return layout.struct.pack(*values, *[0] * (4 * layout.levels))


def message(*packets: bytes, count: int | None = None) -> bytes:
    """A message of packets, each with its length before it."""
    lengths = b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)
    return struct.pack(">H", len(packets) if count is None else count) + lengths


quantities = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
orders = st.integers(0, 2**16 - 1)
times = st.sampled_from([0, 315_532_800, 315_532_801, 1_625_461_887]) | st.integers(0, 2**31 - 1)
tokens = st.builds(make_kite_token, st.sampled_from(KiteSegment), st.integers(0, 2**24 - 1))


possible_prices = st.integers(0, 2**31 - 1)


@st.composite
def packets(draw: st.DrawFn, prices: st.SearchStrategy[int] = possible_prices) -> bytes:
    """A packet of any kind, whose prices can be prices."""
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    values = [draw(tokens)]
    for field in layout.fields[1:]:
        if field.name == "change":
            values.append(draw(st.integers(-(2**31), 2**31 - 1)))
        elif field.format == "i":
            values.append(draw(prices))
        else:
            values.append(draw(times if field.name in ("last_trade_time", "exchange_timestamp") else quantities))
    body = struct.pack(layout.order + "".join(field.format for field in layout.fields), *values)
    levels = 2 * DEPTH_LEVELS if layout.levels else 0
    return body + b"".join(
        DEPTH_LEVEL.struct.pack(draw(quantities), draw(prices), draw(orders), draw(orders)) for _ in range(levels)
    )
