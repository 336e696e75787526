"""Kite's own bars, and quotes of many instruments at once: what fills gaps and what ours are compared with.

https://kite.trade/docs/connect/v3/historical/ and https://kite.trade/docs/connect/v3/market-quotes/. Of contracts that
have expired Kite gives no bars.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import numpy as np

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.errors import AnswerError
from dhan_pipeline.feeds.history import PRICES, Columns, History, Quote, ist_text, midnight_s, read_columns, read_quote
from dhan_pipeline.feeds.kite.rest import LIMITS, KiteRest
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.instruments import decimals_of, split_kite_token
from dhan_pipeline.settings import Settings

QUOTE_PATH = "/quote"

#: Of a candle. The last is there if it was asked for.
_FIELDS = ("timestamp", *PRICES, "volume", "oi")


def historical_path(instrument_token: int, interval: str) -> str:
    """The page with an instrument's bars; `interval` is minute or day."""
    return f"/instruments/historical/{instrument_token}/{interval}"


class KiteHistory(History):
    """Kite's data API, and its limits: https://kite.trade/docs/connect/v3/exceptions/#api-rate-limit"""

    max_quotes = 500
    longest_s = 59 * 86_400  # 60 days; whether the last one counts is not documented
    longest_days = 1999

    def __init__(self, settings: Settings, clock: Clock, policy: RestPolicy | None = None) -> None:
        """Nothing is asked yet. `policy` is for tests; its default are Kite's limits."""
        super().__init__(KiteRest(settings, clock, policy or LIMITS), clock)

    async def _minutes(self, instrument_token: int, instrument_type: str, since_s: int, until_s: int) -> Columns:
        return await self._bars(instrument_token, "minute", "minutes", since_s, until_s)

    async def _days(self, instrument_token: int, instrument_type: str, first: date, last: date) -> Columns:
        return await self._bars(instrument_token, "day", "days", midnight_s(first), midnight_s(last))

    async def _bars(self, instrument_token: int, interval: str, kind: str, since_s: int, until_s: int) -> Columns:
        """Kite includes a bar that begins at `until_s`."""
        segment, exchange_token = split_kite_token(instrument_token)
        what = f"the bars ({kind}) of {segment.name} {exchange_token}"
        span = {"from": ist_text(since_s), "to": ist_text(until_s), "continuous": 0, "oi": 1}
        answer = await self._rest.get(historical_path(instrument_token, interval), span, what, self._rest.data)
        columns = read_columns(_transposed(answer, what), what, "oi")
        decimals = int(decimals_of(np.array([instrument_token]))[0])
        return columns | {name: columns[name].round(decimals) for name in PRICES}

    async def _some_quotes(self, instrument_tokens: Sequence[int]) -> dict[int, Quote]:
        """By token: documented are symbols only, but tokens are taken, and are what everybody asks with."""
        for token in instrument_tokens:
            split_kite_token(token)
        answer = await self._rest.get(QUOTE_PATH, {"i": list(instrument_tokens)}, "quotes", self._rest.quotes)
        try:
            return {
                int(fields["instrument_token"]): read_quote(fields, "%Y-%m-%d %H:%M:%S")
                for fields in answer["data"].values()
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise AnswerError("The answer to a request for quotes has not the fields that it should have.") from None


def _transposed(answer: dict[str, Any], what: str) -> dict[str, list[Any]]:
    """The candles of an answer as lists by field. Raises AnswerError."""
    try:
        candles = answer["data"]["candles"]
        columns = {name: list(values) for name, values in zip(_FIELDS, zip(*candles, strict=True), strict=False)}
        if columns:
            columns["timestamp"] = [_seconds(at) for at in columns["timestamp"]]
            return columns
        if candles == []:
            return {}
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise AnswerError(f"The answer to a request for {what} has no candles where they should be.")


def _seconds(at: str) -> int:
    """`2026-11-20T09:15:00+0530` in seconds since the Unix epoch, UTC. Raises ValueError and TypeError."""
    time = datetime.fromisoformat(at)
    if time.tzinfo is None:
        raise ValueError("a time of no time zone")
    return int(time.timestamp())
