import struct

import numpy as np
import pytest

from dhan_pipeline.feeds.dhan.decode import decode as decode_dhan
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.kite.decode import decode as decode_kite
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.kite_packets import SIZES, KitePackets
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.instruments import ExchangeSegment, decimals_of, generate_instrument_token
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

TOKENS = [
    generate_instrument_token(segment, number)
    for segment in ExchangeSegment
    if segment is not ExchangeSegment.IDX_I
    for number in range(1, 61)
]
PRICES = ("last_price", "day_open", "day_high", "day_low", "day_close")
QUANTITIES = ("last_traded_quantity", "volume_traded", "total_buy_quantity", "total_sell_quantity")
OF_FULL = ("last_trade_time", "oi", "oi_day_high", "oi_day_low")


def test_a_message_is_made_of_these_bytes() -> None:
    clock = SetClock()
    reliance = generate_instrument_token("NSE_EQ", 2885)
    packets = KitePackets(Market([reliance, generate_instrument_token("IDX_I", 13)], clock=clock), clock)
    assert packets.tokens.tolist() == [738561, 256265]
    assert packets.records(8, np.array([0])).tobytes() == bytes.fromhex("0008 000b4501 00008660")  # 344.00
    assert packets.records(28, np.array([1])).tobytes() == bytes.fromhex(
        # 7418.90, high 7419.15, low 7332.55, open 7332.80, close 7292.85, and what it moved by
        "001c 0003e909 000b5202 000b521b 000b3047 000b3060 000b20c5 0000313d"
    )


@pytest.mark.parametrize("mode", ["quote", "full"])
def test_a_capture_makes_the_same_of_both_brokers_packets(mode: str) -> None:
    clock = SetClock()
    market = Market(TOKENS, clock=clock, seed=5)
    list(market.step(5 * len(TOKENS)))
    index = np.arange(len(TOKENS))
    size = SIZES[mode][0]
    records = KitePackets(market, clock).records(size, index).tobytes()
    kite = decode_kite(struct.pack(">H", len(TOKENS)) + records, np.array([0, 2 + len(records)]))
    code = ResponseCode.QUOTE if mode == "quote" else ResponseCode.FULL
    sent = market.packets(code, index)
    dhan = decode_dhan(sent.tobytes(), np.arange(len(TOKENS) + 1) * sent.itemsize)
    assert kite.rejected == dhan.rejected == []
    ((ours,), (theirs,)) = kite.ticks, dhan.ticks
    assert ours.mode == theirs.mode
    assert ours.instrument_token.tolist() == [kite_token_of(token) for token in TOKENS]
    decimals = decimals_of(market.tokens)
    for name in PRICES:
        rounded = [
            round(float(price), int(digits)) for price, digits in zip(theirs.columns[name], decimals, strict=True)
        ]
        assert ours.columns[name] == pytest.approx(rounded, rel=1e-12), name
    for name in (*QUANTITIES, *(OF_FULL if mode == "full" else ())):
        assert ours.columns[name].tolist() == theirs.columns[name].tolist(), name
