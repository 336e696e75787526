"""Reconciling an IST day: both sides read from the database, the differences written into it."""

from contextlib import closing
from datetime import date, datetime, time, timedelta

import numpy as np

from dhan_pipeline.quality.reconciliation import EXPLANATIONS, FIELDS, Reconciliation, reconcile
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.broker_candles import MINUTE, Contract, contracts, read_broker_candles
from dhan_pipeline.store.candle_differences import (
    broker_day_volumes,
    our_day_volumes,
    read_our_candles,
    replace_candle_differences,
)
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.gaps import read_gaps


def day_bounds(day: date) -> tuple[int, int]:
    """Start and end of an IST day, in nanoseconds since the Unix epoch, UTC."""
    midnight = datetime.combine(day, time(), IST)
    start, end = (int(at.timestamp()) * 1_000_000_000 for at in (midnight, midnight + timedelta(days=1)))
    return start, end


def reconcile_day(settings: Settings, database_url: str, day: date) -> tuple[Reconciliation, dict[int, Contract]]:
    """Compare the candles of an IST day with the broker's and replace its rows of `candle_differences`.

    Returns what it came to, and what the instruments with differences were. Raises psycopg2.Error.
    """
    start_ns, end_ns = day_bounds(day)
    with closing(connect(database_url)) as conn:
        ours = read_our_candles(conn, start_ns, end_ns)
        brokers = read_broker_candles(conn, MINUTE, start_ns, end_ns)
        tokens = np.unique(np.concatenate([ours["instrument_token"], brokers["instrument_token"]])).tolist()
        known = contracts(conn, tokens, start_ns)
        result = reconcile(
            day,
            ours,
            brokers,
            our_day_volumes(conn, start_ns, end_ns),
            broker_day_volumes(conn, start_ns, end_ns),
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
    return result, known
