import numpy as np
import pytest

from dhan_pipeline.feeds.dhan.wire import (
    DEPTH_HEADER,
    DEPTH_LEVEL,
    DEPTH_ROW,
    HEADER,
    LAYOUTS,
    Layout,
    ResponseCode,
    disconnect_reason,
)


@pytest.mark.parametrize(
    ("code", "format_", "size"),
    [
        (ResponseCode.TICKER, "<BHBIfI", 16),
        (ResponseCode.LEGACY_DEPTH, "<BHBIf" + "IIHHff" * 5, 112),
        (ResponseCode.QUOTE, "<BHBIfHIfIIIffff", 50),
        (ResponseCode.OPEN_INTEREST, "<BHBII", 12),
        (ResponseCode.PREVIOUS_CLOSE, "<BHBIfI", 16),
        (ResponseCode.MARKET_STATUS, "<BHBI", 8),
        (ResponseCode.FULL, "<BHBIfHIfIIIIIIffff" + "IIHHff" * 5, 162),
        (ResponseCode.DISCONNECT, "<BHBIH", 10),
    ],
)
def test_packets_have_the_documented_structs(code: ResponseCode, format_: str, size: int) -> None:
    assert LAYOUTS[code].struct.format == format_
    assert LAYOUTS[code].size == size


@pytest.mark.parametrize("layout", [HEADER, DEPTH_LEVEL, DEPTH_HEADER, DEPTH_ROW, *LAYOUTS.values()])
def test_struct_and_dtype_of_a_layout_agree(layout: Layout) -> None:
    assert layout.dtype.itemsize == layout.struct.size
    raw = np.random.default_rng(7).integers(1, 60, layout.size, np.uint8).tobytes()
    (row,) = np.frombuffer(raw, layout.dtype)
    values = layout.struct.unpack(raw)
    assert tuple(row[field.name] for field in layout.fields) == values[: len(layout.fields)]
    if layout.level is not None:
        levels = [value for level in row["depth"] for value in level.tolist()]
        assert tuple(levels) == values[len(layout.fields) :]


@pytest.mark.parametrize(
    ("name", "quote", "full"),
    [
        ("last_price", 8, 8),
        ("last_traded_quantity", 12, 12),
        ("last_trade_time", 14, 14),
        ("average_traded_price", 18, 18),
        ("volume_traded", 22, 22),
        ("total_sell_quantity", 26, 26),
        ("total_buy_quantity", 30, 30),
        ("day_open", 34, 46),
        ("day_close", 38, 50),
        ("day_high", 42, 54),
        ("day_low", 46, 58),
        ("oi", None, 34),
        ("oi_day_high", None, 38),
        ("oi_day_low", None, 42),
        ("depth", None, 62),
    ],
)
def test_fields_are_at_the_documented_offsets(name: str, quote: int | None, full: int) -> None:
    for code, offset in ((ResponseCode.QUOTE, quote), (ResponseCode.FULL, full)):
        fields = LAYOUTS[code].dtype.fields
        assert fields is not None
        assert (fields[name][1] if name in fields else None) == offset


def test_headers_of_the_depth_feeds_have_their_length_first() -> None:
    assert DEPTH_HEADER.struct.format == "<HBBII"
    assert DEPTH_ROW.struct.format == "<dII"


def test_disconnect_reasons_are_in_words() -> None:
    assert disconnect_reason(805) == "too many requests or connections"
    assert disconnect_reason(801) == "undocumented reason"
