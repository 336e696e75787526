import numpy as np
import pytest

from dhan_pipeline.feeds.kite.wire import DEPTH_LEVEL, DIVISOR_TABLE, DIVISORS, LAYOUTS
from dhan_pipeline.feeds.layout import Layout
from dhan_pipeline.instruments import KiteSegment


@pytest.mark.parametrize(
    ("size", "name", "format_"),
    [
        (8, "ltp", ">Ii"),
        (28, "index quote", ">Iiiiiii"),
        (32, "index full", ">IiiiiiiI"),
        (44, "quote", ">IiIiIIIiiii"),
        (184, "full", ">IiIiIIIiiiiIIIII" + "IiHH" * 10),
    ],
)
def test_packets_have_the_documented_structs(size: int, name: str, format_: str) -> None:
    layout = LAYOUTS[size]
    assert (layout.name, layout.struct.format, layout.size) == (name, format_, size)


def test_the_kinds_are_those_that_are_documented() -> None:
    assert set(LAYOUTS) == {8, 28, 32, 44, 184}


@pytest.mark.parametrize("layout", [DEPTH_LEVEL, *LAYOUTS.values()])
def test_struct_and_dtype_of_a_layout_agree(layout: Layout) -> None:
    assert layout.dtype.itemsize == layout.struct.size
    raw = np.random.default_rng(7).integers(0, 256, layout.size, np.uint8).tobytes()
    (row,) = np.frombuffer(raw, layout.dtype)
    values = layout.struct.unpack(raw)
    assert tuple(row[field.name] for field in layout.fields) == values[: len(layout.fields)]
    if layout.level is not None:
        levels = [value for level in row["depth"] for value in level.tolist()]
        assert tuple(levels) == values[len(layout.fields) :]


@pytest.mark.parametrize(
    ("name", "quote", "full"),
    [
        ("instrument_token", 0, 0),
        ("last_price", 4, 4),
        ("last_traded_quantity", 8, 8),
        ("average_traded_price", 12, 12),
        ("volume_traded", 16, 16),
        ("total_buy_quantity", 20, 20),
        ("total_sell_quantity", 24, 24),
        ("day_open", 28, 28),
        ("day_high", 32, 32),
        ("day_low", 36, 36),
        ("day_close", 40, 40),
        ("last_trade_time", None, 44),
        ("oi", None, 48),
        ("oi_day_high", None, 52),
        ("oi_day_low", None, 56),
        ("exchange_timestamp", None, 60),
        ("depth", None, 64),
    ],
)
def test_fields_are_at_the_documented_offsets(name: str, quote: int | None, full: int) -> None:
    for size, offset in ((44, quote), (184, full)):
        fields = LAYOUTS[size].dtype.fields
        assert fields is not None
        assert (fields[name][1] if name in fields else None) == offset


def test_an_index_has_its_high_and_low_before_its_open() -> None:
    fields = LAYOUTS[32].dtype.fields
    assert fields is not None
    assert {name: offset for name, (_, offset, *_) in fields.items()} == {
        "instrument_token": 0,
        "last_price": 4,
        "day_high": 8,
        "day_low": 12,
        "day_open": 16,
        "day_close": 20,
        "change": 24,
        "exchange_timestamp": 28,
    }


def test_prices_of_currencies_and_of_commodities_at_nse_are_finer_than_paise() -> None:
    assert DIVISORS == {3: 10_000_000, 6: 10_000, 12: 10_000}
    assert DIVISOR_TABLE.shape == (256,)
    assert {segment: DIVISOR_TABLE[segment] for segment in KiteSegment} == {
        segment: DIVISORS.get(segment, 100) for segment in KiteSegment
    }
