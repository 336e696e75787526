"""Comparing an hour of both brokers: their ticks read from the database, the comparison written into it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.instruments import source_of
from dhan_pipeline.quality.shadow import ShadowComparison, compare
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES
from dhan_pipeline.store.candles import ticks_booked
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.pairs import Pair, pair_instruments
from dhan_pipeline.store.shadow import COLUMNS, count_ticks, read_ticks, replace_shadow_comparisons
from dhan_pipeline.subscriptions import SubscriptionError, read_subscriptions

#: What is compared at once, which decides the memory: 1 MB a pair, 100 bytes a tick.
PAIRS_AT_ONCE, TICKS_AT_ONCE = 100, 2_000_000


class ShadowRefusedError(PipelineError):
    """The hour cannot be compared."""


def compare_hour(settings: Settings, database_url: str, hour: str, now_ns: int) -> ShadowComparison:
    """Compare both brokers' ticks of an hour and replace its rows of `shadow_comparisons`, in one transaction.

    `hour` is a partition key (IST), `now_ns` in ns since the Unix epoch, UTC. An instrument is compared if both have
    ticks of it; or one has, and both have subscribed to it by now. Raises ValueError for what is no hour,
    ShadowRefusedError where it is not over or its ticks have left the database, psycopg2.Error.
    """
    start_ns = parse_hour_key(hour)
    end_ns = start_ns + HOUR_NS
    if now_ns < end_ns:
        raise ShadowRefusedError(f"The hour {hour} is not over: it is compared afterwards.")
    with closing(connect(database_url)) as conn:
        counts = count_ticks(conn, start_ns, end_ns)
        if not counts and ticks_booked(conn, hour):
            raise ShadowRefusedError(
                f"The ticks of the hour {hour} are no longer in the database: materialise them first."
            )
        ticks = {source: sum(n for token, n in counts.items() if source_of(token) == source) for source in SOURCES}
        pairs, unpaired = [], []
        if all(ticks.values()):  # else a broker was not captured
            pairing = pair_instruments(conn, counts.keys() | _subscribed(settings), end_ns - 1)
            pairs = [pair for pair in pairing.pairs if pair.dhan_token in counts or pair.kite_token in counts]
            unpaired = [one for one in pairing.unpaired if one.instrument_token in counts]
        found = [
            compare(some, read_ticks(conn, _tokens(some), start_ns, end_ns), start_ns, settings)
            for some in _portions(pairs, counts)
        ]
        columns = {
            name: np.concatenate([part[name] for part, _ in found]) if found else np.empty(0, np.int64)
            for name in COLUMNS
        }
        conn.commit()
        replace_shadow_comparisons(conn, hour, columns)
    seconds, agreeing = sum((minutes for _, minutes in found), np.zeros((2, 60), np.int64))
    return ShadowComparison(
        hour=hour,
        pairs=pairs,
        columns=columns,
        by_minute=np.divide(agreeing, seconds, out=np.full(60, np.nan), where=seconds > 0),
        ticks=ticks,
        unpaired=unpaired,
    )


def _subscribed(settings: Settings) -> set[int]:
    """Instruments that are subscribed now, at either broker; as far as their lists are there."""
    tokens: set[int] = set()
    for source in SOURCES:
        try:
            tokens.update(s.instrument_token for s in read_subscriptions(settings.of(source).subscriptions_path))
        except SubscriptionError:
            continue
    return tokens


def _portions(pairs: Sequence[Pair], counts: Mapping[int, int]) -> Iterator[list[Pair]]:
    """The pairs in order, so many together that memory holds them."""
    portion: list[Pair] = []
    ticks = 0
    for pair in pairs:
        more = sum(counts.get(token, 0) for token in _tokens([pair]))
        if portion and (len(portion) == PAIRS_AT_ONCE or ticks + more > TICKS_AT_ONCE):
            yield portion
            portion, ticks = [], 0
        portion.append(pair)
        ticks += more
    if portion:
        yield portion


def _tokens(pairs: Sequence[Pair]) -> list[int]:
    return [token for pair in pairs for token in (pair.dhan_token, pair.kite_token)]
