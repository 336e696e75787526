"""Dhan's own bars, and quotes of many instruments at once: what fills gaps and what ours are compared with.

https://dhanhq.co/docs/v2/historical-data/, https://dhanhq.co/docs/v2/expired-options-data/ and
https://dhanhq.co/docs/v2/market-quote/. Times of bars are true UTC, unlike those of the feed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.rest import DhanRest, RestPolicy
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings

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

_MINUTE_S = 60
_EARLIEST_S, _LATEST_S = 315_532_800, 4_102_444_800  # 1980 and 2100: what lies outside is no time in seconds
_NEVER = datetime(1980, 1, 1, tzinfo=IST)

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
        """
        raise NotImplementedError

    async def daily_bars(self, instrument_token: int, instrument_type: str, first: date, last: date) -> BrokerBars:
        """Bars of the days from `first` to `last`, both included. That of today is what there is of it."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def quotes(self, instrument_tokens: Sequence[int]) -> dict[int, Quote]:
        """Quotes by instrument token; what Dhan does not know is not in it."""
        raise NotImplementedError
