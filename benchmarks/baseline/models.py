"""What travels: a packet as a model, the enriched tick that is published, and what is known of an instrument.

Prices are in rupees, quantities in units. What a packet does not carry is None.
"""

from datetime import date, datetime

from pydantic import BaseModel


class DepthLevel(BaseModel):
    """One level of the book, as the wire says."""

    bid_quantity: int
    ask_quantity: int
    bid_orders: int
    ask_orders: int
    bid_price: float
    ask_price: float


class DhanTick(BaseModel):
    """One packet, as the wire says: prices not yet rounded, 0 for none; the trade time in seconds of India's clock."""

    response_code: int
    exchange_segment: int
    security_id: int
    last_price: float | None = None
    last_traded_quantity: int | None = None
    last_trade_time: int | None = None
    average_traded_price: float | None = None
    volume_traded: int | None = None
    total_sell_quantity: int | None = None
    total_buy_quantity: int | None = None
    oi: int | None = None
    oi_day_high: int | None = None
    oi_day_low: int | None = None
    day_open: float | None = None
    day_close: float | None = None
    day_high: float | None = None
    day_low: float | None = None
    prev_close: float | None = None
    prev_oi: int | None = None
    reason_code: int | None = None
    depth: list[DepthLevel] | None = None


class EnrichedTick(BaseModel):
    """What is published and stored, in the names, units and meanings of `dhan_pipeline.ticks.COLUMNS`."""

    tick_number: int
    """Counted by the client from 1: two ticks of an instrument may arrive in one microsecond."""
    received_ns: int
    """When the message arrived: Unix nanoseconds, UTC."""
    time: datetime
    last_trade_time: datetime | None
    instrument_token: int
    trading_symbol: str
    exchange: str
    instrument_type: str
    mode: str
    tradable: bool
    last_price: float | None
    last_traded_quantity: int | None
    average_traded_price: float | None
    volume_traded: int | None
    oi: int | None
    oi_day_high: int | None
    oi_day_low: int | None
    day_open: float | None
    day_high: float | None
    day_low: float | None
    day_close: float | None
    change: float | None
    change_percent: float | None
    total_buy_quantity: int | None
    total_sell_quantity: int | None
    bid_prices: list[float | None] | None
    bid_quantities: list[int] | None
    bid_orders: list[int] | None
    ask_prices: list[float | None] | None
    ask_quantities: list[int] | None
    ask_orders: list[int] | None
    bid_ask_spread: float | None
    mid_price: float | None
    order_imbalance: float | None


class InstrumentInfo(BaseModel):
    """An instrument, as the cache in the client's memory holds it."""

    instrument_token: int
    security_id: str
    exchange_segment: str
    trading_symbol: str
    name: str | None = None
    exchange: str
    instrument_type: str
    expiry: date | None = None
    strike: float | None = None
    tick_size: float | None = None
    lot_size: int | None = None
