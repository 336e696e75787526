"""One tick at a time with all that the table has of it: the model of one packet in, the model of one row out.

For a person at a prompt and for small scripts. It is the batch path (`dhan_pipeline.enrich`) over a batch of one, so
both always agree; an `InstrumentsCache` remembers between packets what the batch path does.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dhan_pipeline.enrich import UNKNOWN_INSTRUMENT, MarketState, derived, enrich
from dhan_pipeline.feeds.dhan.packets import DhanTick, PacketError
from dhan_pipeline.feeds.dhan.wire import HEADER, LAYOUTS, ResponseCode
from dhan_pipeline.instruments import (
    ExchangeSegment,
    InstrumentIndex,
    generate_instrument_token,
    segment_of,
    source_of,
    split_instrument_token,
    split_kite_token,
    token_of,
)
from dhan_pipeline.sessions import IST
from dhan_pipeline.sources import Source
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, NULL_INT, Decoded, Mode, RawTicks, StateUpdates, TickBatch

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_MODES: dict[int, Mode] = {
    ResponseCode.TICKER: Mode.TICKER,
    ResponseCode.QUOTE: Mode.QUOTE,
    ResponseCode.FULL: Mode.FULL,
}

#: Columns of depth, and where a level has them.
_DEPTH = {
    "bid_prices": "bid_price",
    "bid_quantities": "bid_quantity",
    "bid_orders": "bid_orders",
    "ask_prices": "ask_price",
    "ask_quantities": "ask_quantity",
    "ask_orders": "ask_orders",
}

#: The last bytes of Kite's tokens that a segment and a number lead to. NCO and MCX-SX are no segments of Dhan's.
_KITE_BYTES = [token_of("kite", segment, 0) for segment in ExchangeSegment]


class UnknownInstrumentError(LookupError):
    """A tick of an instrument that the cache does not have: sync the instruments, and load them again."""


class InstrumentInfo(BaseModel):
    """An instrument as the `instruments` table describes it. What it does not have is None. Prices are in rupees."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    instrument_token: int
    """Ours for Dhan (`generate_instrument_token`), Kite's own for Kite."""
    security_id: int | None = None
    """Dhan's, unique only within the exchange segment."""
    exchange_token: int | None = None
    """The exchange's own number. Kite's only."""
    exchange_segment: str | None = None
    """`NSE_EQ`, `NSE_FNO`, …"""
    exchange: str | None = None
    """`NSE`, `BSE`, `MCX`."""
    trading_symbol: str | None = None
    name: str | None = None
    segment: str | None = None
    instrument_type: str | None = None
    series: str | None = None
    isin: str | None = None
    underlying_symbol: str | None = None
    expiry: date | None = None
    strike: float | None = None
    option_type: str | None = None
    """`CE` or `PE`."""
    tick_size: float | None = None
    lot_size: int | None = None


class EnrichedTick(BaseModel):
    """A row of `ticks` with its symbol, but for `tick_id`: one packet has no place in a journal.

    Prices are in rupees, rounded to the decimals of the segment; a price of zero is None. Quantities are in units, and
    zero is a value. Times are UTC. What the packet and the state do not say is None.
    """

    model_config = ConfigDict(frozen=True)

    time: datetime
    """When the packet was received."""
    last_trade_time: datetime | None = None
    """The exchange's time of the last trade, 1 s resolution."""
    instrument_token: int
    trading_symbol: str | None = None
    exchange: str | None = None
    instrument_type: str | None = None
    last_price: float | None = None
    last_traded_quantity: int | None = None
    average_traded_price: float | None = None
    volume_traded: int | None = None
    """Of the day so far."""
    oi: int | None = None
    oi_day_high: int | None = None
    oi_day_low: int | None = None
    day_open: float | None = None
    day_high: float | None = None
    day_low: float | None = None
    day_close: float | None = None
    """Close of the previous day."""
    change: float | None = None
    """Last price less the previous close."""
    change_percent: float | None = None
    total_buy_quantity: int | None = None
    total_sell_quantity: int | None = None
    bid_prices: tuple[float | None, ...] | None = None
    """Five levels, the best first, as in all columns of depth."""
    bid_quantities: tuple[int, ...] | None = None
    bid_orders: tuple[int, ...] | None = None
    ask_prices: tuple[float | None, ...] | None = None
    ask_quantities: tuple[int, ...] | None = None
    ask_orders: tuple[int, ...] | None = None
    tradable: bool
    """False for an index."""
    mode: Mode
    bid_ask_spread: float | None = None
    mid_price: float | None = None
    order_imbalance: float | None = None
    """(buy - sell) / (buy + sell) of the total quantities, -1 to 1."""


class InstrumentsCache(Mapping[tuple[str, int], InstrumentInfo]):
    """The instruments of a source by (exchange segment, security id), and what the day's packets said of each so far.

    An id may be written as text: `cache["NSE_EQ", "2885"]`. Of Kite's instruments it is the exchange's token. A look-up
    goes through a table that is addressed by the id, whatever the number of instruments; the model is made when it is
    first asked for, so that 228,000 instruments take some 40 MB rather than the 220 of as many models.
    """

    def __init__(self, instruments: pa.Table) -> None:
        """`instruments`: a row each, columns named as the fields of `InstrumentInfo`. Those of Kite's that no
        segment of Dhan's and number lead to (NCO, MCX-SX) are left out. Raises ValueError for a token that is there
        twice."""
        tokens = instruments["instrument_token"].to_numpy()
        self._source: Source = source_of(int(tokens[0])) if len(tokens) else "dhan"
        if self._source == "kite":
            found = np.isin(tokens & 0xFF, _KITE_BYTES)
            instruments, tokens = instruments.filter(pa.array(found)), tokens[found]
        self._table = instruments
        self._split = split_instrument_token if self._source == "dhan" else split_kite_token
        self._made: dict[int, InstrumentInfo] = {}
        self._day: date | None = None
        self.index = InstrumentIndex(tokens)
        self.state = MarketState(len(tokens))
        """What the packets of the day said; see `begin_day`."""

    @classmethod
    def of(cls, instruments: Iterable[InstrumentInfo]) -> "InstrumentsCache":
        """A cache of these."""
        rows = [instrument.model_dump() for instrument in instruments]
        return cls(pa.Table.from_pylist(rows) if rows else pa.table({"instrument_token": pa.array([], pa.int64())}))

    def __getitem__(self, key: tuple[str, int | str]) -> InstrumentInfo:
        try:
            segment, number = key
            at = self.place(token_of(self._source, ExchangeSegment[segment], int(number)))
        except (TypeError, ValueError):
            raise KeyError(key) from None
        if at < 0:
            raise KeyError(key)
        return self.at(at)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for token in self.index.tokens.tolist():
            yield segment_of(token).name, self._split(token)[1]

    def __len__(self) -> int:
        return len(self.index)

    def place(self, instrument_token: int) -> int:
        """The row of a token; -1 for one that is not here."""
        return int(self.index.lookup(np.array([instrument_token], np.int64))[0])

    def at(self, place: int) -> InstrumentInfo:
        """The instrument in a row."""
        info = self._made.get(place)
        if info is None:
            info = self._made[place] = InstrumentInfo(**self._table.slice(place, 1).to_pylist()[0])
        return info

    def begin_day(self, day: date) -> None:
        """Forget what packets said, unless it was said on this day (IST): a previous close is of one day only."""
        if day != self._day:
            if self._day is not None:
                self.state = MarketState(len(self.index))
            self._day = day


def dhan_tick_to_enriched(
    tick: DhanTick,
    instruments: Mapping[tuple[str, int], InstrumentInfo] | InstrumentInfo,
    received_at: datetime | None = None,
    previous_close: float | None = None,
) -> EnrichedTick | None:
    """The row that a tick of a `parse_…` function becomes: the very values that the table `ticks` gets.

    `instruments` is what `load_instruments_cache` returns. It remembers what packets of the day said: give it all of
    them in the order of their arrival, those of previous close and open interest too, and later ticks carry these. For
    such packets, and for a disconnect, None is returned: they are no row. Where it is another mapping by (exchange
    segment, security id), or the instrument itself, nothing is remembered.

    `received_at` is when the packet came, with a zone; without it, now. `previous_close` (rupees) counts where nothing
    else says it yet, and is a price above zero.

    Raises UnknownInstrumentError for an instrument that is not there, PacketError for a price that no exchange has or
    a trade more than two minutes after `received_at`, ValueError for a time without a zone.
    """
    received_at = datetime.now(UTC) if received_at is None else received_at
    if received_at.utcoffset() is None:
        raise ValueError("received_at has no time zone")
    if tick.response_code == ResponseCode.DISCONNECT:
        return None  # it is of the connection, and may name an instrument that there is not
    cache = instruments if isinstance(instruments, InstrumentsCache) else _cache_of_one(tick, instruments)
    token = generate_instrument_token(tick.exchange_segment, tick.security_id)
    at = cache.place(token)
    if at < 0:
        raise _unknown(tick)
    cache.begin_day(received_at.astimezone(IST).date())
    if previous_close is not None and np.isnan(cache.state.previous_close[at]):
        scale = cache.index.scale[at]
        rounded = np.rint(previous_close * scale) / scale
        if 0 < rounded < np.inf:
            cache.state.previous_close[at] = rounded
    received_ns = (received_at - _EPOCH) // _MICROSECOND * 1000
    enriched = enrich(
        _decoded(tick, token),
        np.zeros(1, np.int64),
        np.array([0, 1]),
        np.array([received_ns]),
        cache.index,
        cache.state,
    )
    for rejection in enriched.rejected:
        if rejection.reason == UNKNOWN_INSTRUMENT:
            raise _unknown(tick)
        raise PacketError(rejection.reason)
    return _model(enriched.ticks[0], cache.at(at)) if enriched.ticks else None


def _unknown(tick: DhanTick) -> UnknownInstrumentError:
    return UnknownInstrumentError(
        f"{tick.exchange_segment} {tick.security_id} is not among the instruments; sync them, and load them again."
    )


def _cache_of_one(
    tick: DhanTick, instruments: Mapping[tuple[str, int], InstrumentInfo] | InstrumentInfo
) -> InstrumentsCache:
    if isinstance(instruments, Mapping):
        found = instruments.get((tick.exchange_segment, int(tick.security_id)))
        if found is None:
            raise _unknown(tick)
        instruments = found
    return InstrumentsCache.of([instruments])


def _decoded(tick: DhanTick, token: int) -> Decoded:
    """What the decoder would have made of the packet."""
    none, one = np.empty(0, np.int64), np.zeros(1, np.int64)
    tokens = np.array([token])

    def update(code: ResponseCode, value: Any) -> StateUpdates:
        if tick.response_code == code:
            return StateUpdates(one, one, tokens, np.array([0 if value is None else value]), one, one)
        return StateUpdates(none, none, none, none, none, none)

    mode = _MODES.get(tick.response_code)
    ticks = [] if mode is None else [RawTicks(mode, one, one, tokens, _columns(tick), one, one)]
    return Decoded(
        payload=b"",
        message=one,
        ticks=ticks,
        open_interest=update(ResponseCode.OPEN_INTEREST, tick.oi),
        previous_close=update(ResponseCode.PREVIOUS_CLOSE, tick.prev_close),
    )


def _columns(tick: DhanTick) -> dict[str, NDArray[Any]]:
    """The columns of the tick's mode, as a decoder gives them: 0 for no price and no time."""
    layout = LAYOUTS[tick.response_code]
    columns: dict[str, NDArray[Any]] = {}
    for field in layout.fields[len(HEADER.fields) :]:
        value = getattr(tick, field.name)
        if field.name == "last_trade_time":
            value = 0 if value is None else (value - _EPOCH) // timedelta(seconds=1)
        elif value is None:
            value = 0.0 if field.format == "f" else NULL_INT
        columns[field.name] = np.array([value], np.float64 if field.format == "f" else np.int64)
    if layout.levels:
        levels = tick.depth or ()
        for name, attribute in _DEPTH.items():
            values = [getattr(level, attribute) or 0 for level in levels][:DEPTH_LEVELS]
            values += [0] * (DEPTH_LEVELS - len(values))
            columns[name] = np.array([values], np.float64 if name.endswith("prices") else np.int64)
    return columns


def _model(batch: TickBatch, instrument: InstrumentInfo) -> EnrichedTick:
    """The only row of the batch."""
    columns = {**batch.columns, **derived(batch.columns)}
    values: dict[str, Any] = {"mode": batch.mode}
    for column in COLUMNS:
        if column.name in columns:
            value = columns[column.name][0].tolist()
            if column.kind == "timestamptz":
                value = None if value == NULL_INT else _EPOCH + value * _MICROSECOND
            elif column.kind.endswith("[]"):
                value = tuple(None if item != item else item for item in value)
            elif value == NULL_INT or value != value:
                value = None
            values[column.name] = value
    for name in ("trading_symbol", "exchange", "instrument_type"):
        values[name] = getattr(instrument, name)
    return EnrichedTick(**values)
