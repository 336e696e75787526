"""The brokers' own bars, and quotes of many instruments at once: what fills gaps and what ours are compared with.

What the brokers' histories share: what they give, and how an answer becomes it. Times are true UTC.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.errors import AnswerError
from dhan_pipeline.feeds.rest import Rest
from dhan_pipeline.sessions import IST
from dhan_pipeline.ticks import NULL_INT

#: A minute is asked for when it has been over for so long: Dhan was seen to give none for the first two minutes.
SETTLED_AFTER_S = 180

PRICES = ("open", "high", "low", "close")

#: 1980 and 2100. What lies outside is no time in seconds.
_EARLIEST_S, _LATEST_S = 315_532_800, 4_102_444_800

#: What quotes say of an instrument that was never traded, and none was traded before.
_NEVER = datetime(1980, 1, 2, tzinfo=IST)

#: Arrays of one length by name, `time_s` among them.
Columns = dict[str, NDArray[Any]]


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


class History(ABC):
    """A broker's data API. Any number of tasks may use one at a time: they share its pace. An async context manager.

    Every method raises RestError (`errors` has the tree) and CredentialsError, and ValueError where a token is another
    broker's; and returns what is empty where the broker has no data. Requests of other programs with the same account
    are not known here, and count with the broker.
    """

    max_quotes: ClassVar[int]
    """Instruments in a request for quotes."""
    longest_s: ClassVar[int]
    """Seconds that a request for minutes spans at most."""
    longest_days: ClassVar[int | None] = None
    """Days that one for days does; None: any number."""

    def __init__(self, rest: Rest, clock: Clock) -> None:
        self._rest = rest
        self._clock = clock

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
        is that of the broker's master, such as EQUITY or FUTIDX of Dhan's, EQ or FUT of Kite's.
        """
        start_s = -(-start_ns // 1_000_000_000)
        settled_s = (self._clock.now_ns() // 1_000_000_000 - SETTLED_AFTER_S) // 60 * 60
        end_s = min(-(-end_ns // 1_000_000_000), settled_s)
        parts = [
            await self._minutes(instrument_token, instrument_type, since_s, min(since_s + self.longest_s, end_s))
            for since_s in range(start_s, end_s, self.longest_s)
        ]
        return bars_of(join(parts, start_s, end_s))

    async def daily_bars(self, instrument_token: int, instrument_type: str, first: date, last: date) -> BrokerBars:
        """Bars of the days from `first` to `last`, both included. That of today is what there is of it."""
        days = max((last - first).days + 1, 0)
        longest = self.longest_days or max(days, 1)
        parts = [
            await self._days(instrument_token, instrument_type, since, min(since + timedelta(longest - 1), last))
            for since in (first + timedelta(day) for day in range(0, days, longest))
        ]
        return bars_of(join(parts, midnight_s(first), midnight_s(last + timedelta(1))))

    async def quotes(self, instrument_tokens: Sequence[int]) -> dict[int, Quote]:
        """Quotes by instrument token; what the broker does not know is not in it. A request for each `max_quotes`."""
        quotes: dict[int, Quote] = {}
        wanted = list(dict.fromkeys(instrument_tokens))
        for start in range(0, len(wanted), self.max_quotes):
            quotes |= await self._some_quotes(wanted[start : start + self.max_quotes])
        return {token: quotes[token] for token in wanted if token in quotes}

    @abstractmethod
    async def _minutes(self, instrument_token: int, instrument_type: str, since_s: int, until_s: int) -> Columns:
        """Bars from `since_s` to `until_s`, seconds since the Unix epoch, UTC; more do no harm."""

    @abstractmethod
    async def _days(self, instrument_token: int, instrument_type: str, first: date, last: date) -> Columns:
        """Bars of the days from `first` to `last`, both included; more do no harm."""

    @abstractmethod
    async def _some_quotes(self, instrument_tokens: Sequence[int]) -> dict[int, Quote]:
        """Of `max_quotes` instruments at most; of others, too, does no harm."""


def read_columns(answer: Any, what: str, oi_name: str, optional: Sequence[str] = ()) -> Columns:
    """Parallel arrays of an answer. Without any of them there are no bars. Raises AnswerError."""
    if not isinstance(answer, dict):
        raise AnswerError(f"The answer to a request for {what} has no bars where they should be.")
    if not answer:
        answer = {name: [] for name in (*PRICES, "volume", "timestamp")}
    columns: Columns = {
        "time_s": _whole_numbers(answer, "timestamp", what),
        **{name: _numbers(answer, name, what) for name in PRICES},
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


def join(parts: Sequence[Columns], start_s: int, end_s: int, optional: Sequence[str] = ()) -> Columns:
    """What begins in [start, end) of several answers, in order of time, the first of what is there twice."""
    parts = [*parts, read_columns({}, "nothing", "oi", optional)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    times, chosen = np.unique(joined["time_s"], return_index=True)
    chosen = chosen[(times >= start_s) & (times < end_s)]
    return {name: column[chosen] for name, column in joined.items()}


def bars_of(columns: Columns) -> BrokerBars:
    """The bars among the columns."""
    return BrokerBars(**{name: columns[name] for name in ("time_s", *PRICES, "volume", "oi")})


def read_quote(fields: Mapping[str, Any], time_format: str) -> Quote:
    """A quote, as both brokers name its fields. What an index has not may be missing.

    Raises KeyError, TypeError, ValueError, AttributeError or OverflowError for what is none.
    """

    def price(value: Any) -> float:
        return float(value or np.nan)

    def count(name: str) -> int:
        return int(fields.get(name) or 0)

    prices = fields.get("ohlc") or {}
    said = fields.get("last_trade_time")
    traded_at = datetime.strptime(said, time_format).replace(tzinfo=IST) if said else _NEVER
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


def ist_text(seconds: int) -> str:
    """An instant (seconds since the Unix epoch, UTC) as both APIs want it."""
    return datetime.fromtimestamp(seconds, IST).strftime("%Y-%m-%d %H:%M:%S")


def midnight_s(day: date) -> int:
    """The start of an IST day, in seconds since the Unix epoch, UTC."""
    return int(datetime.combine(day, time(), IST).astimezone(UTC).timestamp())


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


def _listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())
