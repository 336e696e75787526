"""The rules of subscriptions, applied to the instruments that the database knows, around the prices that it has."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import DAY_NS, IST
from dhan_pipeline.sources import Source
from dhan_pipeline.store.instruments import read_instruments
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.recent import latest_ticks
from dhan_pipeline.subscriptions import LastPrices, Resolution, Rule, resolve

#: A price that is older says little. The capture moves on from it with the first tick.
PRICES_OF_DAYS = 10


def resolve_rules(conn: connection, rules: Sequence[Rule], source: Source, clock: Clock) -> Resolution:
    """What rules come to today. Raises SubscriptionError as `resolve` does. Leaves the transaction open."""
    today = clock.now().astimezone(IST).date()
    return resolve(rules, read_instruments(conn, source), today, source, prices_of(conn, clock))


def prices_of(conn: connection, clock: Clock) -> LastPrices:
    """The last prices that were captured of instruments."""

    def last_prices(instrument_tokens: Sequence[int]) -> Mapping[int, tuple[float, datetime]]:
        found = latest_ticks(conn, instrument_tokens, clock.now_ns() - PRICES_OF_DAYS * DAY_NS)
        return {
            token: (tick.last_price, instant(tick.received_ns))
            for token, tick in found.items()
            if tick.last_price is not None
        }

    return last_prices
