"""Bars of options that have expired: Dhan knows them no longer by id, but by how far from the money they were.

Dhan's page for expired options names none: it gives the bars of whichever option of the nearest expiry was at the
money, one strike above it, and so on, minute by minute, with the strike of each. From these the bars of one strike are
put together. It does not say the expiry, nor is it documented how expiries are counted. So bars are believed only where
they are near our own candles of the contract; and nothing is known of minutes in which a strike was out of reach.

Of Kite's there is nothing to put together: it gives no bars of what has expired.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.history import DhanHistory, ExpiryFlag, RollingOptionBars
from dhan_pipeline.feeds.errors import BadRequestError, NoDataPlanError, RestError
from dhan_pipeline.feeds.history import BrokerBars
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.store.broker_candles import Contract, closes_of, expiries_from, underlying_id

#: Strikes on either side of the money: https://dhanhq.co/docs/v2/expired-options-data/ Indices go further near expiry.
_REACH = {"OPTIDX": 10, "OPTSTK": 3}
_ALWAYS = 3

#: In Dhan's example. Taken for the nearest expiry.
_NEAREST = 1

#: Bars are another contract's when half of their closes are further from ours than this share.
_NEAR = 0.05

_Chain = tuple[str, str, str, date, str]


def is_expired_option(contract: Contract) -> bool:
    """Whether the page for expired options may have it, once it has expired."""
    return contract.instrument_type in _REACH and None not in (
        contract.underlying,
        contract.expiry,
        contract.strike,
        contract.option_type,
    )


async def expired_bars(
    history: DhanHistory, conn: connection, contracts: Iterable[Contract], day: date
) -> tuple[dict[int, BrokerBars], dict[int, RestError]]:
    """The minute bars of an IST day of those contracts that can be had; and what went wrong with others, by token.

    What is in neither is not available. `contracts` are expired options. Raises CredentialsError and NoDataPlanError.
    """
    chains: defaultdict[_Chain, list[Contract]] = defaultdict(list)
    for c in contracts:
        assert c.underlying
        assert c.expiry
        assert c.option_type
        chains[c.exchange_segment, c.instrument_type, c.underlying, c.expiry, c.option_type].append(c)
    found: dict[int, BrokerBars] = {}
    failed: dict[int, RestError] = {}
    for chain, members in chains.items():
        try:
            rolling = await _rolling(history, conn, chain, day)
        except NoDataPlanError:
            raise
        except RestError as error:
            failed |= dict.fromkeys((contract.instrument_token for contract in members), error)
            continue
        for contract in members:
            bars = _of_strike(rolling, contract.strike or 0.0)
            if len(bars) and _is_near(conn, contract.instrument_token, bars):
                found[contract.instrument_token] = bars
    return found, failed


async def _rolling(history: DhanHistory, conn: connection, chain: _Chain, day: date) -> list[RollingOptionBars]:
    """All that was within reach of the money, of the chain's underlying and its nearest expiry."""
    segment, kind, underlying, expiry, option_type = chain
    security_id = underlying_id(conn, underlying, kind)
    flag = _flag(expiries_from(conn, underlying, kind, day), expiry)
    conn.commit()
    if security_id is None or flag is None:
        return []
    rolling = []
    for distance in sorted(range(-_REACH[kind], _REACH[kind] + 1), key=abs):
        try:
            rolling.append(
                await history.rolling_option_bars(
                    ExchangeSegment[segment],
                    security_id,
                    kind,
                    "CALL" if option_type == "CE" else "PUT",
                    f"ATM{distance:+d}" if distance else "ATM",
                    flag,
                    _NEAREST,
                    day,
                    day,
                )
            )
        except BadRequestError:
            if abs(distance) <= _ALWAYS:
                raise
            break
    return rolling


def _flag(expiries: list[date], expiry: date) -> ExpiryFlag | None:
    """Whether it is the nearest monthly expiry or the nearest weekly one; None for one further away."""
    months = {(each.year, each.month): each for each in expiries}  # the last of each month
    monthly = sorted(months.values())
    weekly = [each for each in expiries if each not in monthly]
    if monthly[:1] == [expiry]:
        return "MONTH"
    return "WEEK" if weekly[:1] == [expiry] else None


def _of_strike(rolling: list[RollingOptionBars], strike: float) -> BrokerBars:
    """The bars of one strike, by time."""
    parts = [(each.bars, np.abs(each.strike - strike) < 0.005) for each in rolling]
    columns: dict[str, NDArray[np.generic]] = {}
    for name in BrokerBars.__dataclass_fields__:
        kind = np.float64 if name in ("open", "high", "low", "close") else np.int64
        columns[name] = np.concatenate([np.empty(0, kind), *(getattr(bars, name)[of] for bars, of in parts)])
    _, first = np.unique(columns["time_s"], return_index=True)
    return BrokerBars(**{name: column[first] for name, column in columns.items()})  # type: ignore[arg-type]


def _is_near(conn: connection, instrument_token: int, bars: BrokerBars) -> bool:
    ours = closes_of(conn, instrument_token, int(bars.time_s[0]), int(bars.time_s[-1]))
    conn.commit()
    common = [
        (ours[at], close) for at, close in zip(bars.time_s.tolist(), bars.close.tolist(), strict=True) if at in ours
    ]
    if not common:
        return False
    our, their = np.array(common).T
    return bool(np.median(np.abs(our - their) / their) <= _NEAR)
