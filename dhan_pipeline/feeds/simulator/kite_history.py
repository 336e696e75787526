"""The pages of Kite's data API: bars of minutes and days, and quotes, as the market knows them.

https://kite.trade/docs/connect/v3/historical/ and https://kite.trade/docs/connect/v3/market-quotes/. What the
documentation leaves open is made the least convenient way: a range includes both of its ends, and the bar of the minute
that is comes too.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

import numpy as np

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.history import BarEdit, edited, grouped, quote, traded_at
from dhan_pipeline.feeds.simulator.http_server import Request
from dhan_pipeline.feeds.simulator.kite_rest import HISTORICAL_PATH, Answer, error
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.instruments import ExchangeSegment, segment_of
from dhan_pipeline.sessions import IST

#: Minutes of a bar, and days of a request at most, by interval.
_INTERVALS = {
    "minute": (1, 60),
    "3minute": (3, 100),
    "5minute": (5, 100),
    "10minute": (10, 100),
    "15minute": (15, 200),
    "30minute": (30, 200),
    "60minute": (60, 400),
    "day": (0, 2000),
}
MAX_QUOTES = 500

_TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d")
_BAR = ("open", "high", "low", "close", "volume")

#: What a quote of an index lacks.
_TRADED_ONLY = (
    *("average_price", "buy_quantity", "last_quantity", "sell_quantity", "volume"),
    *("lower_circuit_limit", "upper_circuit_limit"),
)


def answers(market: Market, clock: Clock, edits: Sequence[BarEdit] = ()) -> Callable[[Request], Answer]:
    """What answers the requests for bars and quotes of the market, for `KiteRest.give`.

    The market has Dhan's tokens, and so have the `edits`, which are asked for at each request.
    """

    def answer(request: Request) -> Answer:
        if request.path.startswith(HISTORICAL_PATH + "/"):
            return historical(market, request, clock.now_ns() / 1e9, edits)
        return quotes(market, request)

    return answer


def historical(market: Market, request: Request, now_s: float, edits: Sequence[BarEdit] = ()) -> Answer:
    """Bars of an instrument."""
    token, _, interval = request.path.removeprefix(HISTORICAL_PATH + "/").partition("/")
    index = _index(market, token)
    if index is None:
        return error("InputException", "invalid token")
    if interval not in _INTERVALS:
        return error("InputException", "invalid interval")
    minutes, longest_days = _INTERVALS[interval]
    span = [_time(request.query.get(name, "")) for name in ("from", "to")]
    for name, at in zip(("from", "to"), span, strict=True):
        if at is None:
            return error("InputException", f"invalid {name} date")
    since, until = (at.timestamp() for at in span if at is not None)
    if until < since:
        return error("InputException", "from date cannot be after to date")
    if until - since > longest_days * 86_400:
        return error("InputException", f"interval exceeds max limit: {longest_days} days")
    if request.query.get("continuous", "0") != "0":
        return error("InputException", "invalid continuous")
    if minutes:
        bars = market.minute_bars(index)
        bars = bars[bars["time_s"] <= now_s]
        of_it = [edit for edit in edits if edit.instrument_token == int(market.tokens[index])]
        bars = grouped(edited(bars, of_it), minutes)
    else:
        bars = market.day_bar(index)
    bars = bars[(bars["time_s"] >= since) & (bars["time_s"] <= until)]
    fields = (*_BAR, "oi") if request.query.get("oi") == "1" else _BAR
    columns = [[_at(time_s) for time_s in bars["time_s"].tolist()], *(bars[name].tolist() for name in fields)]
    candles = [list(candle) for candle in zip(*columns, strict=True)]
    return HTTPStatus.OK, {"status": "success", "data": {"candles": candles}}


def quotes(market: Market, request: Request) -> Answer:
    """The instruments as they stand, by what was asked for: tokens, since the market knows no symbols.

    What is not in the market is not in the answer.
    """
    wanted = request.queries.get("i", [])
    if not wanted or len(wanted) > MAX_QUOTES:
        return error("InputException", f"1 to {MAX_QUOTES} instruments are to be given as `i`")
    known = {token: index for token in wanted if (index := _index(market, token)) is not None}
    packets = market.packets(ResponseCode.FULL, np.array([*known.values()], np.intp))
    offset_s = market.trade_time_offset_s
    data = {}
    for token, packet in zip(known, packets, strict=True):
        fields: dict[str, Any] = {"instrument_token": int(token), **quote(packet, offset_s)}
        last_traded = traded_at(packet, offset_s)
        fields["last_trade_time"] = None if last_traded is None else f"{last_traded:%Y-%m-%d %H:%M:%S}"
        if segment_of(int(token)) is ExchangeSegment.IDX_I:
            fields = {name: value for name, value in fields.items() if name not in _TRADED_ONLY}
        data[token] = fields
    return HTTPStatus.OK, {"status": "success", "data": data}


def _index(market: Market, token: str) -> int | None:
    """Its index in the market; None for what is not in it, or no token."""
    try:
        return market.index_of(dhan_token_of(int(token)))
    except ValueError:
        return None


def _time(text: str) -> datetime | None:
    for time_format in _TIME_FORMATS:
        try:
            return datetime.strptime(text, time_format).replace(tzinfo=IST)
        except ValueError:
            pass
    return None


def _at(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, IST).strftime("%Y-%m-%dT%H:%M:%S%z")
