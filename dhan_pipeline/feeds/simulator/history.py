"""The pages of Dhan's data API: bars of minutes and days, of expired options, and quotes, as the market knows them.

Each takes the JSON object of a request and gives that of the answer, or raises `RefusedError`. What the documentation
leaves open is made the least convenient way: a range of minutes includes both of its ends.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.market import BARS, Market
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import IST, IST_OFFSET_S, sessions

INTRADAY_PATH = "/v2/charts/intraday"
DAILY_PATH = "/v2/charts/historical"
ROLLING_OPTION_PATH = "/v2/charts/rollingoption"
QUOTE_PATH = "/v2/marketfeed/quote"

#: Limits of a request: https://dhanhq.co/docs/v2/historical-data/, …/expired-options-data/ and …/market-quote/
_LONGEST_INTRADAY = timedelta(days=90)
_LONGEST_ROLLING = timedelta(days=30)
MAX_QUOTES = 1000

_INTERVALS = {"1", "5", "15", "25", "60"}
#: Bars of several minutes are counted from the opening.
_OPENING_S = 9 * 3600 + 15 * 60
_DAY_S = 86_400

_INSTRUMENTS = {
    *("INDEX", "FUTIDX", "OPTIDX", "EQUITY", "FUTSTK"),
    *("OPTSTK", "FUTCOM", "OPTFUT", "FUTCUR", "OPTCUR"),
}
_PRICES = ("open", "high", "low", "close")
_ROLLING_DATA = (*_PRICES, "iv", "volume", "strike", "oi", "spot")
_STRIKE = re.compile(r"ATM(?:([+-])(\d{1,2}))?")
_STRIKE_STEP = 50

#: When what was never traded was, as the page has it.
_NEVER = datetime(1980, 1, 1)

Field = Literal["open", "high", "low", "close", "volume", "oi"]

#: What `choose_edits` changes.
_EDITED: tuple[Field | None, ...] = ("open", "high", "low", "close", "volume", None)


class RefusedError(Exception):
    """Why a request is not answered, with the codes of either kind of page."""

    def __init__(self, status: HTTPStatus, dh_code: str, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self._dh_code, self._code = dh_code, code

    def answer(self, path: str) -> dict[str, Any]:
        """As the page words it: https://dhanhq.co/docs/v2/annexure/"""
        if path == QUOTE_PATH:
            return {"data": {str(self._code): str(self)}, "status": "failed"}
        return {"errorType": "Invalid_Request", "errorCode": self._dh_code, "errorMessage": str(self)}


@dataclass(frozen=True, slots=True)
class BarEdit:
    """A minute bar that the API gives otherwise than it was traded."""

    instrument_token: int
    time_s: int
    """Start of the minute, seconds since the Unix epoch, UTC."""
    field: Field | None = None
    """What is changed; None: the bar is missing."""
    delta: float = 0.0
    """What is added to it, in rupees or units."""


def choose_edits(market: Market, count: int, seed: int = 0) -> list[BarEdit]:
    """Changes of `count` bars that were traded, each of another: a price, the volume, or the bar is missing."""
    bars = [
        (token, time_s)
        for index, token in enumerate(market.tokens.tolist())
        for time_s in market.minute_bars(index)["time_s"].tolist()
    ]
    chance = random.Random(seed)
    edits = []
    for token, time_s in chance.sample(bars, min(count, len(bars))):
        field = chance.choice(_EDITED)
        edits.append(BarEdit(token, time_s, field, 1000.0 if field == "volume" else chance.choice((1.0, -1.0))))
    return edits


def intraday(
    market: Market, request: Mapping[str, Any], now_s: float, settle_s: float, edits: Sequence[BarEdit] = ()
) -> dict[str, Any]:
    """Bars of 1, 5, 15, 25 or 60 minutes, of minutes that have been over for `settle_s`."""
    token, index = _instrument(market, request)
    interval = str(request.get("interval", "1"))
    if interval not in _INTERVALS:
        raise _bad("interval is none of 1, 5, 15, 25, 60")
    since, until = _time(request, "fromDate"), _time(request, "toDate", at_end_of_day=True)
    if until < since or until - since > _LONGEST_INTRADAY:
        raise _bad("toDate lies before fromDate, or more than 90 days after it")
    bars = market.minute_bars(index)
    bars = bars[bars["time_s"] + 60 <= now_s - settle_s]
    bars = edited(bars, [edit for edit in edits if edit.instrument_token == token])
    bars = bars[(bars["time_s"] >= since.timestamp()) & (bars["time_s"] <= until.timestamp())]
    return _chart(grouped(bars, int(interval)), request)


def daily(market: Market, request: Mapping[str, Any]) -> dict[str, Any]:
    """The bar of the market's day, if it is in the range, which excludes `toDate`."""
    _, index = _instrument(market, request)
    since, until = _day(request, "fromDate"), _day(request, "toDate")
    if until <= since or request.get("expiryCode", 0) not in (0, 1, 2, 3):
        raise _bad("toDate is not after fromDate, or expiryCode none of 0, 1, 2, 3")
    bars = market.day_bar(index)
    days = [datetime.fromtimestamp(time_s, IST).date() for time_s in bars["time_s"].tolist()]
    return _chart(bars[[since <= day < until for day in days]], request)


def rolling_option(market: Market, request: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """Minute bars of expired options. The market has none: they are made up, the same whenever they are asked for.

    The days are those before today on which derivatives trade; the underlying stays near its previous close.
    """
    kind, step = _rolling_kind(request)
    since, until = _day(request, "fromDate"), _day(request, "toDate")
    if until <= since or until - since > _LONGEST_ROLLING:
        raise _bad("toDate is not after fromDate, or more than 30 days after it")
    segment = ExchangeSegment.IDX_I if request["instrument"] == "OPTIDX" else ExchangeSegment.NSE_EQ
    index = market.index_of(_token(segment, request.get("securityId")))
    if index is None:
        raise _bad("securityId is no underlying")
    today = datetime.fromtimestamp(now_s, IST).date()
    until = min(until, today)
    days = [since + timedelta(days=day) for day in range((until - since).days)]
    opened = [
        int(session.open.timestamp()) + 60 * minute
        for day in days
        for session in sessions(ExchangeSegment.NSE_FNO, day)
        if session.kind == "continuous"
        for minute in range(int((session.close - session.open).total_seconds()) // 60)
    ]
    if not opened:
        raise _no_data()
    time_s = np.array(opened, np.int64)
    close = float(market.packets(ResponseCode.FULL, np.array([index]))["day_close"][0])
    wave = np.sin(time_s / 4321 + index)
    spot = np.round(close * (1 + 0.01 * wave), 2)
    strike = np.round(spot / _STRIKE_STEP) * _STRIKE_STEP + step * _STRIKE_STEP
    inner = np.maximum(spot - strike if kind == "CALL" else strike - spot, 0)
    price = np.round((inner + close * 0.005 * (1.5 + wave)) / 0.05) * 0.05
    columns = {
        "open": price.round(2),
        "high": (price + 0.5).round(2),
        "low": np.maximum(price - 0.5, 0.05).round(2),
        "close": (price + 0.05).round(2),
        "iv": (12 + 2 * wave).round(4),
        "volume": time_s // 60 % 97 * 75,
        "strike": strike,
        "oi": time_s // 3600 % 89 * 7500,
        "spot": spot,
    }
    wanted: Any = request.get("requiredData")
    chosen = {name: columns[name].tolist() if name in wanted else [] for name in _ROLLING_DATA}
    side = "ce" if kind == "CALL" else "pe"
    return {"data": {"ce": None, "pe": None, side: {**chosen, "timestamp": time_s.tolist()}}}


def quotes(market: Market, request: Mapping[str, Any]) -> dict[str, Any]:
    """The instruments as they stand. What is not in the market is not in the answer."""
    wanted: list[tuple[str, int, int]] = []
    for name, ids in request.items():
        if name == "dhanClientId":  # the broker's SDK adds it
            continue
        if name not in ExchangeSegment.__members__ or not isinstance(ids, list):
            raise _bad(f"{name} is no exchange segment with a list of security ids")
        indices = [(security_id, market.index_of(_token(ExchangeSegment[name], security_id))) for security_id in ids]
        wanted += [(name, security_id, index) for security_id, index in indices if index is not None]
        if sum(len(ids) for ids in request.values() if isinstance(ids, list)) > MAX_QUOTES:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "DH-905", 804, "more than 1000 instruments")
    packets = market.packets(ResponseCode.FULL, np.array([index for *_, index in wanted], np.intp))
    data: dict[str, dict[str, Any]] = {}
    for (name, security_id, _), packet in zip(wanted, packets, strict=True):
        data.setdefault(name, {})[str(security_id)] = quote(packet, market.trade_time_offset_s)
    return {"data": data, "status": "success"}


def traded_at(packet: Any, offset_s: int) -> datetime | None:
    """When an instrument was last traded, of its full packet, whose trade time is so far ahead of UTC."""
    seconds = int(packet["last_trade_time"])
    return datetime.fromtimestamp(seconds - offset_s, IST) if seconds else None


def quote(packet: Any, offset_s: int) -> dict[str, Any]:
    """An instrument as it stands, of its full packet."""

    def price(name: str, of: Any = packet) -> float:
        return round(float(of[name]), 4)

    depth = {
        side: [
            {
                "quantity": int(level[f"{wire}_quantity"]),
                "orders": int(level[f"{wire}_orders"]),
                "price": price(f"{wire}_price", level),
            }
            for level in packet["depth"]
        ]
        for side, wire in (("buy", "bid"), ("sell", "ask"))
    }
    close = price("day_close")
    return {
        "average_price": price("average_traded_price"),
        "buy_quantity": int(packet["total_buy_quantity"]),
        "depth": depth,
        "last_price": price("last_price"),
        "last_quantity": int(packet["last_traded_quantity"]),
        "last_trade_time": (traded_at(packet, offset_s) or _NEVER).strftime("%d/%m/%Y %H:%M:%S"),
        "lower_circuit_limit": round(close * 0.8, 2),
        "net_change": round(price("last_price") - close, 4),
        "ohlc": {name: price(f"day_{name}") for name in _PRICES},
        "oi": int(packet["oi"]),
        "oi_day_high": int(packet["oi_day_high"]),
        "oi_day_low": int(packet["oi_day_low"]),
        "sell_quantity": int(packet["total_sell_quantity"]),
        "upper_circuit_limit": round(close * 1.2, 2),
        "volume": int(packet["volume_traded"]),
    }


def edited(bars: NDArray[np.void], edits: Sequence[BarEdit]) -> NDArray[np.void]:
    """An instrument's minute bars with the changes of it. Changes the array."""
    kept = np.ones(len(bars), np.bool_)
    for edit in edits:
        there = bars["time_s"] == edit.time_s
        if edit.field is None:
            kept &= ~there
        else:
            bars[edit.field][there] += np.asarray(edit.delta).astype(bars[edit.field].dtype)
    return bars[kept]


def grouped(bars: NDArray[np.void], minutes: int) -> NDArray[np.void]:
    """Bars of so many minutes each, counted from the opening."""
    if minutes == 1 or not len(bars):
        return bars
    since_opening = (bars["time_s"] + IST_OFFSET_S - _OPENING_S) % _DAY_S
    start = bars["time_s"] - since_opening % (60 * minutes)
    (first,) = np.nonzero(np.diff(start, prepend=start[0] - 1))
    last = np.append(first[1:], len(bars)) - 1
    result = np.empty(len(first), BARS)
    result["time_s"] = start[first]
    result["open"] = bars["open"][first]
    result["high"] = np.maximum.reduceat(bars["high"], first)
    result["low"] = np.minimum.reduceat(bars["low"], first)
    result["volume"] = np.add.reduceat(bars["volume"], first)
    for name in ("close", "oi"):
        result[name] = bars[name][last]
    return result


def _chart(bars: NDArray[np.void], request: Mapping[str, Any]) -> dict[str, Any]:
    if not len(bars):
        raise _no_data()
    return {
        **{name: bars[name].tolist() for name in (*_PRICES, "volume")},
        "timestamp": bars["time_s"].tolist(),
        "open_interest": bars["oi"].tolist() if request.get("oi") else [],
    }


def _instrument(market: Market, request: Mapping[str, Any]) -> tuple[int, int]:
    """(token, index in the market)."""
    segment = request.get("exchangeSegment")
    if request.get("instrument") not in _INSTRUMENTS or segment not in ExchangeSegment.__members__:
        raise _bad("instrument or exchangeSegment is missing, or none that there is")
    token = _token(ExchangeSegment[str(segment)], request.get("securityId"))
    index = market.index_of(token)
    if index is None:
        raise _bad("securityId is missing, or none of this exchangeSegment")
    return token, index


def _token(segment: ExchangeSegment, security_id: Any) -> int:
    try:
        return generate_instrument_token(segment, int(str(security_id)))
    except ValueError:
        raise _bad("a securityId is missing, or not a number") from None


def _rolling_kind(request: Mapping[str, Any]) -> tuple[str, int]:
    """(CALL or PUT, strikes away from the money)."""
    strike = _STRIKE.fullmatch(str(request.get("strike")))
    wanted = request.get("requiredData")
    if (
        request.get("instrument") not in ("OPTIDX", "OPTSTK")
        or request.get("exchangeSegment") not in ("NSE_FNO", "BSE_FNO")
        or request.get("expiryFlag") not in ("WEEK", "MONTH")
        or request.get("expiryCode") not in (0, 1, 2, 3)
        or request.get("drvOptionType") not in ("CALL", "PUT")
        or str(request.get("interval")) != "1"
        or not isinstance(wanted, list)
        or not set(map(str, wanted)) <= set(_ROLLING_DATA)
        or strike is None
    ):
        raise _bad("a field is missing or has a value that there is not")
    away = int(f"{strike[1] or '+'}{strike[2] or 0}")
    if abs(away) > (10 if request["instrument"] == "OPTIDX" else 3):
        raise _bad("strike is too far from the money")
    return request["drvOptionType"], away


def _time(request: Mapping[str, Any], name: str, *, at_end_of_day: bool = False) -> datetime:
    text = str(request.get(name))
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=IST)
    except ValueError:
        day = datetime.combine(_day(request, name), datetime.min.time(), IST)
        return day + timedelta(days=1, seconds=-1) if at_end_of_day else day


def _day(request: Mapping[str, Any], name: str) -> date:
    try:
        return datetime.strptime(str(request.get(name)), "%Y-%m-%d").date()
    except ValueError:
        raise _bad(f"{name} is missing, or not a date") from None


def _bad(message: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, "DH-905", 814, message)


def _no_data() -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, "DH-907", 813, "no data present")
