"""Reconciling an IST day: both sides read from the database, the differences written into it."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.quality.reconciliation import EXPLANATIONS, FIELDS, Bars, Reconciliation, reconcile
from dhan_pipeline.sessions import day_bounds_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.broker_candles import MINUTE, Contract, contracts, fetched, read_broker_candles
from dhan_pipeline.store.candle_differences import (
    broker_day_volumes,
    our_day_volumes,
    read_our_candles,
    replace_candle_differences,
)
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.gaps import read_gaps


def reconcile_day(settings: Settings, database_url: str, day: date) -> tuple[Reconciliation, dict[int, Contract]]:
    """Compare the candles of an IST day with the broker's and replace its rows of `candle_differences`.

    Returns what it came to, and what the instruments with differences were. Raises psycopg2.Error.
    """
    start_ns, end_ns = day_bounds_ns(day)
    with closing(connect(database_url)) as conn:
        had = fetched(conn, start_ns, end_ns)
        brokers = _of(read_broker_candles(conn, MINUTE, start_ns, end_ns), list(had))
        every = read_our_candles(conn, start_ns, end_ns)
        ours = _of(every, list(had))
        ours = _where_broker_has(ours, brokers, [token for token, partial in had.items() if partial])
        left_out = np.setdiff1d(every["instrument_token"], list(had))
        tokens = np.unique(np.concatenate([ours["instrument_token"], brokers["instrument_token"]])).tolist()
        known = contracts(conn, tokens, end_ns - 1)
        result = reconcile(
            day,
            ours,
            brokers,
            our_day_volumes(conn, start_ns, end_ns),
            {
                token: volume
                for token, volume in broker_day_volumes(conn, start_ns, end_ns).items()
                if not had.get(token, True)
            },
            read_gaps(conn, start_ns, end_ns),
            {token: contract.tick_size for token, contract in known.items() if contract.tick_size is not None},
            settings,
        )
        found = result.differences
        replace_candle_differences(
            conn,
            day,
            {
                "instrument_token": found.instrument_token,
                "time_s": found.time_s,
                "field": np.array(FIELDS)[found.field],
                "ours": found.ours,
                "brokers": found.brokers,
                "explained_by": np.array(EXPLANATIONS)[found.explained_by],
            },
        )
    return replace(result, left_out=len(left_out)), known


def _of(bars: Bars, tokens: Sequence[int]) -> Bars:
    return _some(bars, np.isin(bars["instrument_token"], np.array(tokens, np.int64)))


def _where_broker_has(ours: Bars, brokers: Bars, tokens: Sequence[int]) -> Bars:
    """Without those of our bars of `tokens` whose minutes are not among the broker's: it has not given all of it."""

    def keys(bars: Bars) -> NDArray[np.void]:
        pairs = np.empty(len(bars["time"]), [("token", np.int64), ("time", np.int64)])
        pairs["token"], pairs["time"] = bars["instrument_token"], bars["time"]
        return pairs

    partial = np.isin(ours["instrument_token"], np.array(tokens, np.int64))
    return _some(ours, ~partial | np.isin(keys(ours), keys(brokers)))


def _some(bars: Bars, kept: NDArray[np.bool_]) -> Bars:
    return {name: column[kept] for name, column in bars.items()}
