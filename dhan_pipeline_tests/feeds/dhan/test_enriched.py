"""One tick at a time becomes the row that the batch path makes of it."""

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dhan_pipeline.enrich import MarketState, derived, enrich
from dhan_pipeline.feeds.dhan import (
    DhanTick,
    EnrichedTick,
    InstrumentInfo,
    InstrumentsCache,
    PacketError,
    UnknownInstrumentError,
    dhan_tick_to_enriched,
    parse_disconnect_packet,
    parse_full_packet,
    parse_oi_packet,
    parse_prev_close_packet,
    parse_quote_packet,
    parse_ticker_packet,
)
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.feeds.dhan.wire import LAYOUTS
from dhan_pipeline.instruments import KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.ticks import COLUMNS, NULL_INT

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)
TRADED = 1_795_147_190 + 19_800  # ten seconds before, on India's wall clock

PARSERS: dict[int, Callable[[bytes], DhanTick]] = {
    2: parse_ticker_packet,
    4: parse_quote_packet,
    5: parse_oi_packet,
    6: parse_prev_close_packet,
    8: parse_full_packet,
    50: parse_disconnect_packet,
}

KNOWN = [("IDX_I", 0, 13), ("NSE_EQ", 1, 1), ("NSE_FNO", 2, 13), ("NSE_CURRENCY", 3, 2**32 - 1)]


def info(segment: str, security_id: int, **more: Any) -> InstrumentInfo:
    return InstrumentInfo(
        instrument_token=generate_instrument_token(segment, security_id),
        security_id=security_id,
        exchange_segment=segment,
        exchange="NSE",
        trading_symbol=f"{segment} {security_id}",
        instrument_type="EQUITY",
        **more,
    )


@pytest.fixture
def cache() -> InstrumentsCache:
    return InstrumentsCache.of(info(segment, security_id) for segment, _, security_id in KNOWN)


def ticker(price: float, traded: int = TRADED, segment: int = 1, security_id: int = 1) -> DhanTick:
    return parse_ticker_packet(struct.pack("<BHBIfI", 2, 16, segment, security_id, price, traded))


def previous_close(price: float) -> DhanTick:
    return parse_prev_close_packet(struct.pack("<BHBIfI", 6, 16, 1, 1, price, 0))


def quote(close: float, buy: int = 0, sell: int = 0) -> DhanTick:
    trade = struct.pack("<fHIfIII", 105.0, 0, TRADED, 0.0, 0, sell, buy)
    return parse_quote_packet(struct.pack("<BHBI", 4, 50, 1, 1) + trade + struct.pack("<ffff", 0.0, close, 0.0, 0.0))


def made(tick: EnrichedTick | None) -> EnrichedTick:
    assert tick is not None
    return tick


def test_an_enriched_tick_has_the_columns_of_the_table_and_what_the_instrument_is() -> None:
    assert set(EnrichedTick.model_fields) == {column.name for column in COLUMNS} - {"tick_id"} | {
        "trading_symbol",
        "exchange",
        "instrument_type",
    }


wild = {
    "H": st.sampled_from([0, 1, 2**16 - 1]),
    "I": st.sampled_from([0, 1, 315_532_800, TRADED, TRADED + 140, 2**31, 2**32 - 1]),
    "f": st.sampled_from([0.0, 0.05, 0.125, 25974.9, 1e-45, 4.3e7, 3.4e38, -0.05, np.inf, np.nan])
    | st.floats(0, 4e5, width=32),
}


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """A whole packet of any kind that has a parser, of instruments that are mostly known."""
    code = draw(st.sampled_from(sorted(PARSERS)))
    layout = LAYOUTS[code]
    segment, number = draw(st.sampled_from([(1, 1), (1, 1), (3, 2**32 - 1), (0, 13), (1, 999), (200, 1)]))
    body = b"".join(
        struct.pack("<" + format_, draw(wild[format_]))
        for format_ in [*(field.format for field in layout.fields[4:]), *"IIHHff" * layout.levels]
    )
    return struct.pack("<BHBI", code, layout.size, segment, number) + body


def batch_rows(messages: list[bytes], cache: InstrumentsCache) -> dict[int, dict[str, Any]]:
    """What the batch path makes of each message that becomes a row, by its number."""
    offsets = np.cumsum([0, *map(len, messages)])
    at_ns = (AT - EPOCH) // timedelta(microseconds=1) * 1000
    received_ns = np.full(len(messages), at_ns)
    enriched = enrich(
        decode(b"".join(messages), offsets),
        np.zeros(1, np.int64),
        np.array([0, len(messages)]),
        received_ns,
        cache.index,
        MarketState(len(cache)),
    )
    rows = {}
    for batch in enriched.ticks:
        columns = {**batch.columns, **derived(batch.columns)}
        for at, tick_id in enumerate(columns["tick_id"].tolist()):
            rows[tick_id] = {"mode": batch.mode} | {name: values[at].tolist() for name, values in columns.items()}
    return rows


def plain(value: Any, kind: str) -> Any:
    if isinstance(value, list | tuple):
        return [plain(item, kind) for item in value]
    if value is None or value == NULL_INT or value != value:
        return None
    return EPOCH + timedelta(microseconds=value) if kind == "timestamptz" else value


@settings(max_examples=150)
@given(st.lists(packets(), max_size=8))
@example([struct.pack("<BHBIfI", 6, 16, 1, 1, 100.0, 0), struct.pack("<BHBIfI", 2, 16, 1, 1, 101.5, TRADED)])
@example([struct.pack("<BHBIH", 50, 10, 1, 999, 807)])
def test_one_tick_at_a_time_says_what_the_batch_says(messages: list[bytes]) -> None:
    cache = InstrumentsCache.of(info(segment, security_id) for segment, _, security_id in KNOWN)
    rows = batch_rows(messages, cache)
    for number, message in enumerate(messages):
        try:
            tick = dhan_tick_to_enriched(PARSERS[message[0]](message), cache, AT)
        except PacketError:
            tick = None
        except UnknownInstrumentError:
            assert message[0] != 50
            assert message[3:8] == struct.pack("<BI", 1, 999)
            tick = None
        assert (tick is not None) == (number in rows)
        if tick is not None:
            for column in COLUMNS[1:]:
                one = plain(getattr(tick, column.name), "")
                assert one == plain(rows[number].get(column.name), column.kind), column.name


def test_a_tick_has_the_symbol_the_true_time_and_the_change_from_the_close_that_came_before(
    cache: InstrumentsCache,
) -> None:
    assert dhan_tick_to_enriched(previous_close(100.0), cache, AT) is None
    tick = made(dhan_tick_to_enriched(ticker(101.5), cache, AT))
    assert (tick.trading_symbol, tick.exchange, tick.instrument_type) == ("NSE_EQ 1", "NSE", "EQUITY")
    assert tick.time == AT
    assert tick.last_trade_time == AT - timedelta(seconds=10)
    assert (tick.day_close, tick.change, tick.change_percent) == (100.0, 1.5, 1.5)


def test_what_was_said_yesterday_is_forgotten_at_midnight_in_india(cache: InstrumentsCache) -> None:
    dhan_tick_to_enriched(previous_close(100.0), cache, AT)
    late = datetime(2026, 11, 20, 18, 29, 59, tzinfo=UTC)
    assert made(dhan_tick_to_enriched(ticker(101.0), cache, late)).change == 1.0
    assert made(dhan_tick_to_enriched(ticker(101.0), cache, late + timedelta(seconds=1))).change is None


def test_a_previous_close_that_is_given_counts_until_a_packet_says_one(cache: InstrumentsCache) -> None:
    assert made(dhan_tick_to_enriched(ticker(101.0), cache, AT, 80.0)).day_close == 80.0
    assert made(dhan_tick_to_enriched(quote(close=90.0), cache, AT, 80.0)).day_close == 90.0
    assert made(dhan_tick_to_enriched(ticker(101.0), cache, AT, 80.0)).day_close == 90.0


@pytest.mark.parametrize("given", [0.0, -80.0, 0.001, np.inf, -np.inf, np.nan])
def test_a_previous_close_that_is_no_price_says_nothing(cache: InstrumentsCache, given: float) -> None:
    tick = made(dhan_tick_to_enriched(ticker(101.0), cache, AT, given))
    assert (tick.day_close, tick.change, tick.change_percent) == (None, None, None)
    assert made(dhan_tick_to_enriched(ticker(101.0), cache, AT, 80.0)).day_close == 80.0


def test_a_previous_close_that_is_given_has_the_decimals_of_the_segment(cache: InstrumentsCache) -> None:
    assert made(dhan_tick_to_enriched(ticker(101.0), cache, AT, 80.0499999)).day_close == 80.05
    pair = ticker(84.5, segment=3, security_id=2**32 - 1)
    assert made(dhan_tick_to_enriched(pair, cache, AT, 84.123456)).day_close == 84.1235


def test_a_disconnect_is_no_row_whoever_it_names() -> None:
    disconnect = parse_disconnect_packet(struct.pack("<BHBIH", 50, 10, 0, 0, 807))
    share = info("NSE_EQ", 1)
    for instruments in (InstrumentsCache.of([share]), {("NSE_EQ", 1): share}, share):
        assert dhan_tick_to_enriched(disconnect, instruments, AT) is None


def test_zero_quantities_stay_zero_and_zero_prices_are_none(cache: InstrumentsCache) -> None:
    tick = made(dhan_tick_to_enriched(quote(close=0.0), cache, AT))
    assert (tick.last_traded_quantity, tick.volume_traded, tick.total_buy_quantity) == (0, 0, 0)
    assert (tick.average_traded_price, tick.day_open, tick.day_close, tick.order_imbalance) == (None,) * 4
    assert made(dhan_tick_to_enriched(quote(0.0, buy=75, sell=25), cache, AT)).order_imbalance == 0.5


def test_a_mapping_or_the_instrument_itself_will_do_and_remembers_nothing() -> None:
    share = info("NSE_EQ", 1)
    for instruments in (share, {("NSE_EQ", 1): share}):
        assert dhan_tick_to_enriched(previous_close(100.0), instruments, AT) is None
        tick = made(dhan_tick_to_enriched(ticker(101.0), instruments, AT))
        assert (tick.trading_symbol, tick.change) == ("NSE_EQ 1", None)
        assert made(dhan_tick_to_enriched(ticker(101.0), instruments, AT, 100.0)).change == 1.0


def test_without_a_time_of_receipt_it_is_now(cache: InstrumentsCache) -> None:
    before = datetime.now(UTC)
    assert before <= made(dhan_tick_to_enriched(ticker(101.0, 0), cache)).time <= datetime.now(UTC)


def test_the_zone_of_the_time_of_receipt_makes_no_difference(cache: InstrumentsCache) -> None:
    india = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert dhan_tick_to_enriched(ticker(101.0), cache, india) == dhan_tick_to_enriched(ticker(101.0), cache, AT)
    with pytest.raises(ValueError, match="no time zone"):
        dhan_tick_to_enriched(ticker(101.0), cache, AT.replace(tzinfo=None))


def test_what_cannot_be_a_row_is_said(cache: InstrumentsCache) -> None:
    stranger = ticker(101.0, security_id=2)
    for instruments in (cache, info("NSE_EQ", 1), {("NSE_EQ", 1): info("NSE_EQ", 1)}):
        with pytest.raises(UnknownInstrumentError, match="NSE_EQ 2 is not among the instruments"):
            dhan_tick_to_enriched(stranger, instruments, AT)
    with pytest.raises(PacketError, match="trade time in the future"):
        dhan_tick_to_enriched(ticker(101.0, TRADED + 131), cache, AT)
    with pytest.raises(PacketError, match="impossible price"):
        dhan_tick_to_enriched(ticker(3e38), cache, AT)


def test_a_tick_that_a_script_makes_up_may_lack_what_it_likes(cache: InstrumentsCache) -> None:
    header: dict[str, Any] = {
        "message_length": 162,
        "exchange_segment": "NSE_EQ",
        "exchange_segment_code": 1,
        "security_id": "1",
    }
    tick = made(dhan_tick_to_enriched(DhanTick(response_code=8, last_price=101.0, **header), cache, AT))
    assert (tick.last_price, tick.oi, tick.volume_traded, tick.order_imbalance) == (101.0, None, None, None)
    assert tick.bid_prices == (None,) * 5


def test_instruments_are_found_by_segment_and_id_and_by_nothing_less(cache: InstrumentsCache) -> None:
    assert cache["NSE_FNO", 13] == cache["NSE_FNO", "13"] == info("NSE_FNO", 13)
    assert cache["IDX_I", 13].trading_symbol == "IDX_I 13"
    assert list(cache) == [(segment, security_id) for segment, _, security_id in KNOWN]
    assert [cache[key] for key in cache] == list(cache.values())
    wrong: list[Any] = [
        ("NSE_EQ", 13),
        ("NYSE", 13),
        ("NSE_EQ", "INFY"),
        ("NSE_EQ", -1),
        13,
        "NSE_EQ",
        ("NSE_EQ", None),
    ]
    for key in wrong:
        assert key not in cache
        with pytest.raises(KeyError):
            cache[key]


def test_a_cache_may_be_empty() -> None:
    empty = InstrumentsCache.of([])
    assert list(empty) == []
    with pytest.raises(UnknownInstrumentError):
        dhan_tick_to_enriched(ticker(101.0), empty, AT)


def test_kites_instruments_are_found_by_the_number_of_the_exchange() -> None:
    reliance = InstrumentInfo(instrument_token=make_kite_token(KiteSegment.NSE, 2885), exchange_segment="NSE_EQ")
    nifty = InstrumentInfo(instrument_token=make_kite_token(KiteSegment.INDICES, 1001), exchange_segment="IDX_I")
    cache = InstrumentsCache.of([reliance, nifty])
    assert cache["NSE_EQ", 2885] == reliance
    assert list(cache) == [("NSE_EQ", 2885), ("IDX_I", 1001)]


def test_what_no_segment_and_number_lead_to_is_not_in_a_cache() -> None:
    gold, nse_gold, mcx_sx, nobody = (
        InstrumentInfo(instrument_token=500 << 8 | segment)
        for segment in (KiteSegment.MCX, KiteSegment.NCO, KiteSegment.MCXSX, 10)
    )
    cache = InstrumentsCache.of([nse_gold, gold, mcx_sx, nobody])
    assert dict(cache) == {("MCX_COMM", 500): gold}
    assert dict(InstrumentsCache.of([nse_gold])) == {}
