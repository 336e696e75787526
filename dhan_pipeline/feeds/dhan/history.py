"""Dhan's own bars, and quotes of many instruments at once: what fills gaps and what ours are compared with.

https://dhanhq.co/docs/v2/historical-data/, https://dhanhq.co/docs/v2/expired-options-data/ and
https://dhanhq.co/docs/v2/market-quote/. Times of bars are true UTC, unlike those of the feed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.rest import LIMITS, DhanRest
from dhan_pipeline.feeds.errors import AnswerError, NoDataError
from dhan_pipeline.feeds.history import (
    PRICES,
    BrokerBars,
    Columns,
    History,
    Quote,
    bars_of,
    ist_text,
    join,
    midnight_s,
    read_columns,
    read_quote,
)
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.settings import Settings

INTRADAY_PATH = "/v2/charts/intraday"
DAILY_PATH = "/v2/charts/historical"
ROLLING_OPTION_PATH = "/v2/charts/rollingoption"
QUOTE_PATH = "/v2/marketfeed/quote"

#: Days of expired options that a request spans at most.
_LONGEST_ROLLING = timedelta(days=30)

_DAY = timedelta(days=1)

_OPTION_COLUMNS = ("strike", "iv", "spot")

OptionType = Literal["CALL", "PUT"]
ExpiryFlag = Literal["WEEK", "MONTH"]


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


class DhanHistory(History):
    """Dhan's data API. It has five years, of instruments that are active, and of options that have expired."""

    max_quotes = 1000
    longest_s = 89 * 86_400  # 90 days; whether the last one counts is not documented

    def __init__(self, settings: Settings, clock: Clock, policy: RestPolicy | None = None) -> None:
        """Nothing is asked yet. `policy` is for tests; its default are Dhan's limits."""
        super().__init__(DhanRest(settings, clock, policy or LIMITS), clock)

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
            "requiredData": [*PRICES, "iv", "volume", "strike", "oi", "spot"],
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
            parts.append(read_columns({} if bars is None else bars, what, "oi", _OPTION_COLUMNS))
            since = until
        columns = join(parts, midnight_s(first), midnight_s(last + _DAY), _OPTION_COLUMNS)
        return RollingOptionBars(bars_of(columns), *(columns[name] for name in _OPTION_COLUMNS))

    async def _minutes(self, instrument_token: int, instrument_type: str, since_s: int, until_s: int) -> Columns:
        asked, what = _asked(instrument_token, instrument_type, "minutes")
        span = {"interval": "1", "fromDate": ist_text(since_s), "toDate": ist_text(until_s)}
        return await self._bars(INTRADAY_PATH, asked | span, what)

    async def _days(self, instrument_token: int, instrument_type: str, first: date, last: date) -> Columns:
        asked, what = _asked(instrument_token, instrument_type, "days")
        span = {"fromDate": first.isoformat(), "toDate": (last + _DAY).isoformat()}  # Dhan excludes the latter
        return await self._bars(DAILY_PATH, asked | span, what)

    async def _some_quotes(self, instrument_tokens: Sequence[int]) -> dict[int, Quote]:
        asked: dict[str, list[int]] = {}
        for token in instrument_tokens:
            segment, security_id = split_instrument_token(token)
            asked.setdefault(segment.name, []).append(security_id)
        try:
            answer = await self._rest.post(QUOTE_PATH, asked, "quotes", self._rest.quotes)
        except NoDataError:
            return {}
        try:
            return {
                generate_instrument_token(segment, security_id): read_quote(fields, "%d/%m/%Y %H:%M:%S")
                for segment, quotes in answer["data"].items()
                for security_id, fields in quotes.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise AnswerError("The answer to a request for quotes has not the fields that it should have.") from None

    async def _bars(self, path: str, request: dict[str, Any], what: str) -> Columns:
        try:
            answer = await self._rest.post(path, request, what, self._rest.data)
        except NoDataError:
            return read_columns({}, what, "open_interest")
        return read_columns(answer, what, "open_interest")


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
