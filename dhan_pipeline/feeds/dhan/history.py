"""Dhan's own bars, and quotes of many instruments at once: what fills gaps and what ours are compared with.

https://dhanhq.co/docs/v2/historical-data/, https://dhanhq.co/docs/v2/expired-options-data/ and
https://dhanhq.co/docs/v2/market-quote/. Times of bars are true UTC, unlike those of the feed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.rest import DhanRest, RestPolicy
from dhan_pipeline.feeds.errors import AnswerError, NoDataError
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import NULL_INT

INTRADAY_PATH = "/v2/charts/intraday"
DAILY_PATH = "/v2/charts/historical"
ROLLING_OPTION_PATH = "/v2/charts/rollingoption"
QUOTE_PATH = "/v2/marketfeed/quote"

#: A minute is asked for when it has been over for so long: the API was seen to give none for the first two minutes.
SETTLED_AFTER_S = 180

#: Dhan takes 90 days in a request, and does not say whether the last day counts; of expired options, 30.
_LONGEST_S = 89 * 86_400
_LONGEST_ROLLING = timedelta(days=30)

#: Instruments in a request for quotes.
MAX_QUOTES = 1000

_DAY = timedelta(days=1)

#: 1980 and 2100. What lies outside is no time in seconds.
_EARLIEST_S, _LATEST_S = 315_532_800, 4_102_444_800

#: What quotes say of an instrument that was never traded, and none was traded before.
_NEVER = datetime(1980, 1, 2, tzinfo=IST)

_PRICES = ("open", "high", "low", "close")
_OPTION_COLUMNS = ("strike", "iv", "spot")

#: Arrays of one length by name, `time_s` among them.
_Columns = dict[str, NDArray[Any]]

OptionType = Literal["CALL", "PUT"]
ExpiryFlag = Literal["WEEK", "MONTH"]


@dataclass(frozen=True, slots=True)
class BrokerBars:
    """Bars of one instrument, in order of time, none twice."""

    time_s: NDArray[np.int64]
    """Start of each bar, seconds since the Unix epoch, UTC. That of a day is midnight in India."""
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.int64]
    """Traded in the bar, in units; 0 for an index."""
    oi: NDArray[np.int64]
    """Open interest at the bar's end, in units; NULL_INT where the API gives none."""

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass(frozen=True, slots=True)
class RollingOptionBars:
    """Bars of whichever option was so far from the money. NaN is what the API did not give."""

    bars: BrokerBars
    strike: NDArray[np.float64]
    """Strike of the option that the bar is of, in rupees."""
    iv: NDArray[np.float64]
    """Implied volatility, in percent."""
    spot: NDArray[np.float64]
    """Price of the underlying, in rupees."""

    def __len__(self) -> int:
        return len(self.bars)


@dataclass(frozen=True, slots=True)
class Quote:
    """An instrument as it stands now. Prices are in rupees, NaN where there is none; quantities in units."""

    last_price: float
    last_quantity: int
    average_price: float
    volume: int
    oi: int
    oi_day_high: int
    oi_day_low: int
    buy_quantity: int
    sell_quantity: int
    open: float
    high: float
    low: float
    previous_close: float
    """In session. What the API gives after the close is not documented."""
    last_trade_time_us: int
    """Microseconds since the Unix epoch, UTC; NULL_INT if it was never traded."""


class DhanHistory:
    """Dhan's data API. Any number of tasks may use one at a time: they share its pace. An async context manager.

    Every method raises RestError (`errors` has the tree) and CredentialsError, and returns what is empty where Dhan has
    no data. Requests of other programs with the same account are not known here, and count with Dhan.
    """

    def __init__(self, settings: Settings, clock: Clock, policy: RestPolicy | None = None) -> None:
        """Nothing is asked yet. `policy` is for tests; its default are Dhan's limits."""
        self._clock = clock
        self._rest = DhanRest(settings, clock, policy or RestPolicy())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._rest.__aexit__(kind, error, trace)

    @property
    def requests_today(self) -> int:
        """Requests for bars, repeated ones too, in the day (IST) of the last one."""
        return self._rest.data.today

    async def minute_bars(self, instrument_token: int, instrument_type: str, start_ns: int, end_ns: int) -> BrokerBars:
        """Bars of the minutes that begin in [start, end), in nanoseconds since the Unix epoch, UTC.

        Minutes that have been over for less than `SETTLED_AFTER_S` are left out: ask again for them. `instrument_type`
        is that of the scrip master, such as EQUITY or FUTIDX. Dhan has five years, of instruments that are active.
        Raises ValueError where the token is not one of Dhan's.
        """
        start_s = -(-start_ns // 1_000_000_000)
        settled_s = (self._clock.now_ns() // 1_000_000_000 - SETTLED_AFTER_S) // 60 * 60
        end_s = min(-(-end_ns // 1_000_000_000), settled_s)
        asked, what = _asked(instrument_token, instrument_type, "minutes")
        parts = []
        for since_s in range(start_s, end_s, _LONGEST_S):
            span = {
                "interval": "1",
                "fromDate": _ist_text(since_s),
                "toDate": _ist_text(min(since_s + _LONGEST_S, end_s)),
            }
            parts.append(await self._bars(INTRADAY_PATH, asked | span, what))
        return _broker_bars(_join(parts, start_s, end_s))

    async def daily_bars(self, instrument_token: int, instrument_type: str, first: date, last: date) -> BrokerBars:
        """Bars of the days from `first` to `last`, both included. That of today is what there is of it.

        Raises ValueError where the token is not one of Dhan's.
        """
        asked, what = _asked(instrument_token, instrument_type, "days")
        span = {"fromDate": first.isoformat(), "toDate": (last + _DAY).isoformat()}  # Dhan excludes the latter
        parts = [await self._bars(DAILY_PATH, asked | span, what)] if first <= last else []
        return _broker_bars(_join(parts, _midnight_s(first), _midnight_s(last + _DAY)))

    async def rolling_option_bars(
        self,
        exchange_segment: ExchangeSegment,
        underlying_id: int,
        instrument_type: str,
        option_type: OptionType,
        strike: str,
        expiry_flag: ExpiryFlag,
        expiry_code: int,
        first: date,
        last: date,
    ) -> RollingOptionBars:
        """Minute bars of expired options, from `first` to `last`, both included.

        `underlying_id` is the security id of the underlying in its own segment (13 for NIFTY), `exchange_segment` that
        of the options; `instrument_type` OPTIDX or OPTSTK; `strike` is ATM, ATM+1, ATM-1 and so on. `expiry_code`
        counts expiries from the nearest: 1 in Dhan's example; whether it is the first of them is not documented.
        """
        asked = {
            "securityId": underlying_id,
            "exchangeSegment": exchange_segment.name,
            "instrument": instrument_type,
            "interval": "1",
            "expiryFlag": expiry_flag,
            "expiryCode": expiry_code,
            "strike": strike,
            "drvOptionType": option_type,
            "requiredData": [*_PRICES, "iv", "volume", "strike", "oi", "spot"],
        }
        what = f"the expired options of {exchange_segment.name} {underlying_id}"
        parts = []
        since = first
        while since <= last:
            until = min(since + _LONGEST_ROLLING, last + _DAY)
            span = {"fromDate": since.isoformat(), "toDate": until.isoformat()}
            try:
                answer = await self._rest.post(ROLLING_OPTION_PATH, asked | span, what, self._rest.data)
            except NoDataError:
                answer = {"data": {}}
            data = answer.get("data")
            bars = data.get("ce" if option_type == "CALL" else "pe") if isinstance(data, dict) else ""
            parts.append(_columns({} if bars is None else bars, what, "oi", _OPTION_COLUMNS))
            since = until
        columns = _join(parts, _midnight_s(first), _midnight_s(last + _DAY), _OPTION_COLUMNS)
        return RollingOptionBars(_broker_bars(columns), *(columns[name] for name in _OPTION_COLUMNS))

    async def quotes(self, instrument_tokens: Sequence[int]) -> dict[int, Quote]:
        """Quotes by instrument token; what Dhan does not know is not in it. A request for each 1000, one a second.

        Raises ValueError where a token is not one of Dhan's.
        """
        quotes: dict[int, Quote] = {}
        wanted = list(dict.fromkeys(instrument_tokens))
        for start in range(0, len(wanted), MAX_QUOTES):
            asked: dict[str, list[int]] = {}
            for token in wanted[start : start + MAX_QUOTES]:
                segment, security_id = split_instrument_token(token)
                asked.setdefault(segment.name, []).append(security_id)
            try:
                answer = await self._rest.post(QUOTE_PATH, asked, "quotes", self._rest.quotes)
            except NoDataError:
                continue
            quotes |= _quotes(answer)
        return {token: quotes[token] for token in wanted if token in quotes}

    async def _bars(self, path: str, request: dict[str, Any], what: str) -> _Columns:
        try:
            answer = await self._rest.post(path, request, what, self._rest.data)
        except NoDataError:
            return _columns({}, what, "open_interest")
        return _columns(answer, what, "open_interest")


def _asked(instrument_token: int, instrument_type: str, kind: str) -> tuple[dict[str, Any], str]:
    """What both kinds of bars are asked for with, and how errors name them."""
    segment, security_id = split_instrument_token(instrument_token)
    asked = {
        "securityId": str(security_id),
        "exchangeSegment": segment.name,
        "instrument": instrument_type,
        "expiryCode": 0,  # documented as optional, but derivatives were refused without it
        "oi": True,
    }
    return asked, f"the bars ({kind}) of {segment.name} {security_id}"


def _columns(answer: Any, what: str, oi_name: str, optional: Sequence[str] = ()) -> _Columns:
    """Parallel arrays of an answer. Without any of them there are no bars. Raises AnswerError."""
    if not isinstance(answer, dict):
        raise AnswerError(f"The answer to a request for {what} has no bars where they should be.")
    if not answer:
        answer = {name: [] for name in (*_PRICES, "volume", "timestamp")}
    columns: _Columns = {
        "time_s": _whole_numbers(answer, "timestamp", what),
        **{name: _numbers(answer, name, what) for name in _PRICES},
        "volume": _whole_numbers(answer, "volume", what),
    }
    count = len(columns["time_s"])
    columns["oi"] = _whole_numbers(answer, oi_name, what) if answer.get(oi_name) else np.full(count, NULL_INT)
    for name in optional:
        columns[name] = _numbers(answer, name, what, or_nan=True) if answer.get(name) else np.full(count, np.nan)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise AnswerError(f"The answer to a request for {what} has arrays of different lengths: {_listed(lengths)}.")
    times = columns["time_s"]
    if count and (times.min() < _EARLIEST_S or times.max() >= _LATEST_S):
        raise AnswerError(f"The answer to a request for {what} has times that are not seconds.")
    return columns


def _numbers(answer: Mapping[str, Any], name: str, what: str, *, or_nan: bool = False) -> NDArray[np.float64]:
    """An array of an answer; with `or_nan`, nulls in it are NaN. Raises AnswerError."""
    values = answer.get(name)
    if or_nan and isinstance(values, list):
        values = [np.nan if value is None else value for value in values]
    try:
        numbers = np.array(values)
    except (ValueError, OverflowError):  # lists of different lengths in it
        numbers = np.array("")
    if isinstance(values, list) and numbers.ndim == 1 and numbers.dtype.kind in "iuf":
        numbers = numbers.astype(np.float64)
        if or_nan or np.isfinite(numbers).all():
            return numbers
    raise AnswerError(f"The answer to a request for {what} has no numbers as {name!r}.")


def _whole_numbers(answer: Mapping[str, Any], name: str, what: str) -> NDArray[np.int64]:
    """An array of an answer without negatives; a null is NULL_INT in open interest. Raises AnswerError."""
    nullable = name in ("open_interest", "oi")
    numbers = _numbers(answer, name, what, or_nan=nullable)
    absent = np.isnan(numbers)
    whole = np.where(absent, 0, numbers)
    if (whole != np.floor(whole)).any() or (whole < 0).any() or (whole >= 2.0**53).any():
        raise AnswerError(f"The answer to a request for {what} has no whole numbers as {name!r}.")
    return np.where(absent, NULL_INT, whole.astype(np.int64))


def _join(parts: Sequence[_Columns], start_s: int, end_s: int, optional: Sequence[str] = ()) -> _Columns:
    """What begins in [start, end) of several answers, in order of time, the first of what is there twice."""
    parts = [*parts, _columns({}, "nothing", "oi", optional)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    times, chosen = np.unique(joined["time_s"], return_index=True)
    chosen = chosen[(times >= start_s) & (times < end_s)]
    return {name: column[chosen] for name, column in joined.items()}


def _broker_bars(columns: _Columns) -> BrokerBars:
    return BrokerBars(**{name: columns[name] for name in ("time_s", *_PRICES, "volume", "oi")})


def _quotes(answer: Mapping[str, Any]) -> dict[int, Quote]:
    """Raises AnswerError."""
    try:
        return {
            generate_instrument_token(segment, security_id): _quote(fields)
            for segment, quotes in answer["data"].items()
            for security_id, fields in quotes.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise AnswerError("The answer to a request for quotes has not the fields that it should have.") from None


def _quote(fields: Mapping[str, Any]) -> Quote:
    def price(value: Any) -> float:
        return float(value or np.nan)

    def count(name: str) -> int:
        return int(fields.get(name) or 0)

    prices = fields.get("ohlc") or {}
    said = fields.get("last_trade_time")
    traded_at = datetime.strptime(said, "%d/%m/%Y %H:%M:%S").replace(tzinfo=IST) if said else _NEVER
    return Quote(
        last_price=price(fields["last_price"]),
        last_quantity=count("last_quantity"),
        average_price=price(fields.get("average_price")),
        volume=count("volume"),
        oi=count("oi"),
        oi_day_high=count("oi_day_high"),
        oi_day_low=count("oi_day_low"),
        buy_quantity=count("buy_quantity"),
        sell_quantity=count("sell_quantity"),
        open=price(prices.get("open")),
        high=price(prices.get("high")),
        low=price(prices.get("low")),
        previous_close=price(prices.get("close")),
        last_trade_time_us=int(traded_at.timestamp()) * 1_000_000 if traded_at > _NEVER else NULL_INT,
    )


def _ist_text(seconds: int) -> str:
    """An instant (seconds since the Unix epoch, UTC) as the API wants it."""
    return datetime.fromtimestamp(seconds, IST).strftime("%Y-%m-%d %H:%M:%S")


def _midnight_s(day: date) -> int:
    return int(datetime.combine(day, time(), IST).astimezone(UTC).timestamp())


def _listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())
