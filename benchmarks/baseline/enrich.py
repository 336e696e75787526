"""A parsed packet to an enriched tick, one at a time, with the instrument from a dictionary."""

from collections.abc import Mapping
from datetime import UTC, datetime

from benchmarks.baseline.models import DhanTick, EnrichedTick, InstrumentInfo
from dhan_pipeline.feeds.dhan.wire import NEVER_TRADED_S, ResponseCode
from dhan_pipeline.instruments import PRICE_DECIMALS, ExchangeSegment
from dhan_pipeline.sessions import IST_OFFSET_S

_MODES: dict[int, str] = {ResponseCode.TICKER: "ticker", ResponseCode.QUOTE: "quote", ResponseCode.FULL: "full"}
_DECIMALS: dict[int, int] = {int(segment): decimals for segment, decimals in PRICE_DECIMALS.items()}

#: Instruments by (exchange segment, security id).
Instruments = Mapping[tuple[int, int], InstrumentInfo]


class Enricher:
    """Enriches packets in the order of their arrival; remembers previous closes and open interest."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._previous_close: dict[int, float] = {}
        self._open_interest: dict[int, int] = {}
        self._ticks = 0

    def enrich(self, packet: DhanTick, received_ns: int) -> EnrichedTick | None:
        """The tick, None for packets that are none or whose instrument is unknown. `received_ns` is in Unix ns."""
        instrument = self._instruments.get((packet.exchange_segment, packet.security_id))
        if instrument is None:
            return None
        token, decimals = instrument.instrument_token, _DECIMALS[packet.exchange_segment]
        mode = _MODES.get(packet.response_code)
        if mode is None:
            if packet.prev_close:
                self._previous_close[token] = round(packet.prev_close, decimals)
            elif packet.oi is not None:
                self._open_interest[token] = packet.oi
            return None

        self._ticks += 1
        last = _price(packet.last_price, decimals)
        close = self._previous_close.get(token) or _price(packet.day_close, decimals)
        change = percent = spread = mid = imbalance = None
        if last is not None and close is not None:
            change = round(last - close, 4)
            percent = round(100 * (last - close) / close, 4)
        depth = packet.depth
        bids = asks = None
        if depth is not None:
            bids = [_price(level.bid_price, decimals) for level in depth]
            asks = [_price(level.ask_price, decimals) for level in depth]
            bid, ask = bids[0], asks[0]
            if bid is not None and ask is not None:
                spread = round(ask - bid, 4)
                mid = round((bid + ask) / 2, 5)
        buy, sell = packet.total_buy_quantity, packet.total_sell_quantity
        if buy is not None and sell is not None and buy + sell:
            imbalance = (buy - sell) / (buy + sell)
        traded = packet.last_trade_time or 0
        return EnrichedTick(
            tick_number=self._ticks,
            received_ns=received_ns,
            time=datetime.fromtimestamp(received_ns / 1e9, UTC),
            last_trade_time=datetime.fromtimestamp(traded - IST_OFFSET_S, UTC) if traded > NEVER_TRADED_S else None,
            instrument_token=token,
            trading_symbol=instrument.trading_symbol,
            exchange=instrument.exchange,
            instrument_type=instrument.instrument_type,
            mode=mode,
            tradable=packet.exchange_segment != ExchangeSegment.IDX_I,
            last_price=last,
            last_traded_quantity=packet.last_traded_quantity,
            average_traded_price=_price(packet.average_traded_price, 4),  # seldom a multiple of the tick
            volume_traded=packet.volume_traded,
            oi=self._open_interest.get(token) if mode == "quote" else packet.oi,
            oi_day_high=packet.oi_day_high,
            oi_day_low=packet.oi_day_low,
            day_open=_price(packet.day_open, decimals),
            day_high=_price(packet.day_high, decimals),
            day_low=_price(packet.day_low, decimals),
            day_close=close,
            change=change,
            change_percent=percent,
            total_buy_quantity=buy,
            total_sell_quantity=sell,
            bid_prices=bids,
            bid_quantities=[level.bid_quantity for level in depth] if depth is not None else None,
            bid_orders=[level.bid_orders for level in depth] if depth is not None else None,
            ask_prices=asks,
            ask_quantities=[level.ask_quantity for level in depth] if depth is not None else None,
            ask_orders=[level.ask_orders for level in depth] if depth is not None else None,
            bid_ask_spread=spread,
            mid_price=mid,
            order_imbalance=imbalance,
        )


def _price(wire: float | None, decimals: int) -> float | None:
    """A price with the decimals that the exchange meant; None for none."""
    return round(wire, decimals) or None if wire else None
