"""Fetch the broker's own bars into `broker_candles`, an instrument at a time, at the pace that the broker allows.

What was fetched is noted beside its bars, in one transaction, so that an interrupted fetch goes on where it was.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.amounts import duration
from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.history import DhanHistory
from dhan_pipeline.feeds.errors import (
    BadRequestError,
    BusyError,
    NoDataPlanError,
    RequestsUsedUpError,
    RestError,
    UnavailableError,
)
from dhan_pipeline.feeds.histories import make_history
from dhan_pipeline.feeds.history import BrokerBars, History
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.ingest.expired_options import expired_bars, is_expired_option
from dhan_pipeline.sessions import IST, day_bounds_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.broker_candles import (
    DAY,
    MINUTE,
    Contract,
    contracts,
    fetched,
    instruments_with_ticks,
    note_fetch,
    write_broker_candles,
)
from dhan_pipeline.store.engine import connect
from dhan_pipeline.subscriptions import SubscriptionError, read_subscriptions

#: Instruments that are asked for at once. Five requests a second go out at most, and an answer takes well under one.
CONCURRENT = 6

#: After so many instruments in a row without an answer the rest is left for another time.
PATIENCE = 10

#: How often progress is told, in instruments.
TELL_EVERY = 100

NOT_ASKED = "not asked for"
EXPIRED = "expired, not available"
UNKNOWN = "no instrument of that token"

Tell = Callable[[str], object]


class BrokerBarsError(PipelineError):
    """No bars at all could be had."""


@dataclass(slots=True)
class Fetch:
    """What became of a fetch."""

    wanted: int = 0
    """Instruments."""
    before: int = 0
    """Of them, those that an earlier fetch had."""
    done: int = 0
    """Of them, those that this one got, also where there was no bar."""
    bars: int = 0
    """Bars of a minute that came."""
    rows: int = 0
    """Rows that were written, bars of the day included."""
    requests: int = 0
    seconds: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    """How many instruments failed, by reason."""
    unanswered: int = 0
    """Of them, those of which no answer came, or that were not asked for: another time may do."""
    last_error: str = ""
    """One of the errors, as a sentence."""

    @property
    def failures(self) -> int:
        """Instruments whose bars could not be had."""
        return self.failed.total()


def fetch_day(
    settings: Settings,
    database_url: str,
    day: date,
    clock: Clock,
    tell: Tell,
    *,
    again: bool = False,
    policy: RestPolicy | None = None,
) -> Fetch:
    """Fetch the minute bars and the day's bar of an IST day: of what had ticks, and of what is subscribed.

    `settings` are those of one source, whose instruments these are. Of a day before yesterday only what had ticks,
    where any had: it is not known what was subscribed then. What was fetched after the day's end is not fetched again,
    but with `again`. `policy` is for tests. Raises CredentialsError and NoDataPlanError; and BrokerBarsError where not
    a single instrument could be had.
    """
    start_ns, end_ns = day_bounds_ns(day)
    with closing(connect(database_url)) as conn:
        with_ticks = instruments_with_ticks(conn, settings.source, start_ns, end_ns)
        yesterday = clock.now().astimezone(IST).date() - timedelta(days=1)
        tokens = with_ticks if with_ticks and day < yesterday else [*with_ticks, *_subscribed(settings)]
        had: Collection[int] = () if again else fetched(conn, start_ns, end_ns, end_ns)
        fetch = asyncio.run(
            _fetch(settings, conn, clock, list(dict.fromkeys(tokens)), start_ns, end_ns, had, tell, day, policy)
        )
    if fetch.failures and not fetch.done and not fetch.before:
        reasons = fetch.last_error or f"{'; '.join(fetch.failed)}."
        raise BrokerBarsError(f"Of {fetch.wanted:,} instruments, none could be had: {reasons}")
    return fetch


def _subscribed(settings: Settings) -> list[int]:
    try:
        return [subscription.instrument_token for subscription in read_subscriptions(settings.subscriptions_path)]
    except SubscriptionError:
        return []


async def _fetch(
    settings: Settings,
    conn: connection,
    clock: Clock,
    tokens: Sequence[int],
    start_ns: int,
    end_ns: int,
    had: Collection[int],
    tell: Tell,
    day: date | None,
    policy: RestPolicy | None,
) -> Fetch:
    async with make_history(settings, clock, policy) as history:
        return await fetch_bars(history, conn, clock, tokens, start_ns, end_ns, had, tell, day)


async def fetch_bars(
    history: History,
    conn: connection,
    clock: Clock,
    tokens: Sequence[int],
    start_ns: int,
    end_ns: int,
    had: Collection[int],
    tell: Tell,
    day: date | None = None,
) -> Fetch:
    """Fetch the bars of the minutes in [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC), in the order of `tokens`.

    Those in `had` are skipped. With `day` the day's bar comes, too. Each instrument is committed by itself; those that
    fail are counted. Raises CredentialsError, NoDataPlanError, and psycopg2.Error.
    """
    loop = asyncio.get_running_loop()
    began, requests = loop.time(), history.requests_today
    known = contracts(conn, tokens, end_ns - 1)  # an id that was given to another contract that day means that one
    conn.commit()
    fetch = Fetch(wanted=len(tokens), before=sum(token in had for token in tokens))
    today = clock.now().astimezone(IST).date()
    active: list[Contract] = []
    expired: list[Contract] = []
    for token in tokens:
        contract = known.get(token)
        if token in had:
            continue
        if contract is None:
            fetch.failed[UNKNOWN] += 1
        elif _is_over(contract, today) and not contract.active:  # the broker may know it until the next master
            expired.append(contract)
        else:
            active.append(contract)
    if len(active) > TELL_EVERY:
        tell(f"Bars of {len(active):,} instruments are to be fetched; {fetch.before:,} were before.")
    asked = unanswered = 0
    todo = iter(active)

    async def work() -> None:
        nonlocal asked, unanswered
        for contract in todo:
            if unanswered >= PATIENCE:
                fetch.failed[NOT_ASKED] += 1
                fetch.unanswered += 1
                continue
            try:
                bars = await history.minute_bars(contract.instrument_token, contract.instrument_type, start_ns, end_ns)
                unanswered = 0
                if not len(bars) and _is_over(contract, today):
                    expired.append(contract)
                    continue
                of_day = None
                if day is not None:
                    of_day = await history.daily_bars(contract.instrument_token, contract.instrument_type, day, day)
                _write(conn, clock, contract.instrument_token, start_ns, end_ns, bars, of_day, fetch)
            except NoDataPlanError:
                raise
            except RestError as error:
                if isinstance(error, BadRequestError) and _is_over(contract, today):
                    expired.append(contract)
                    continue
                passes = _note_failure(fetch, error)
                unanswered = unanswered + 1 if passes else 0
                if isinstance(error, RequestsUsedUpError):
                    unanswered = PATIENCE
            asked += 1
            if asked % TELL_EVERY == 0:
                left_s = (loop.time() - began) / asked * (len(active) - asked)
                tell(f"{asked:,} of {len(active):,} instruments, {fetch.failures:,} failed; {duration(left_s)} left.")

    await _all(work() for _ in range(CONCURRENT))
    if unanswered < PATIENCE:
        await _fetch_expired(history, conn, clock, expired, start_ns, end_ns, day, fetch)
    elif expired:
        fetch.failed[NOT_ASKED] += len(expired)
        fetch.unanswered += len(expired)
    fetch.requests = max(0, history.requests_today - requests)  # it begins anew at midnight
    fetch.seconds = round(loop.time() - began, 3)
    return fetch


def _write(
    conn: connection,
    clock: Clock,
    instrument_token: int,
    start_ns: int,
    end_ns: int,
    bars: BrokerBars,
    of_day: BrokerBars | None,
    fetch: Fetch,
    partial: bool = False,
) -> None:
    """Keep an instrument's bars, note that they were fetched, and commit. Nobody else comes in between: no await."""
    now = clock.now()
    with conn:
        write_broker_candles(conn, instrument_token, MINUTE, bars, now)
        if of_day is not None:
            write_broker_candles(conn, instrument_token, DAY, of_day, now)
        note_fetch(conn, instrument_token, start_ns, end_ns, len(bars), now, partial)
    fetch.done += 1
    fetch.bars += len(bars)
    fetch.rows += len(bars) + (0 if of_day is None else len(of_day))


def _is_over(contract: Contract, today: date) -> bool:
    return contract.expiry is not None and contract.expiry < today


async def _fetch_expired(
    history: History,
    conn: connection,
    clock: Clock,
    expired: Sequence[Contract],
    start_ns: int,
    end_ns: int,
    day: date | None,
    fetch: Fetch,
) -> None:
    """What can be had of a day of contracts that have expired: of Dhan's, options that were near the money."""
    found: dict[int, BrokerBars] = {}
    failed: dict[int, RestError] = {}
    if day is not None and isinstance(history, DhanHistory):
        options = [contract for contract in expired if is_expired_option(contract)]
        found, failed = await expired_bars(history, conn, options, day)
    for contract in expired:
        token = contract.instrument_token
        if token in found:
            _write(conn, clock, token, start_ns, end_ns, found[token], None, fetch, partial=True)
        elif token in failed:
            _note_failure(fetch, failed[token])
        else:
            fetch.failed[EXPIRED] += 1


async def _all(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them at once. The first error ends all, and is raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


#: Errors that pass, and what an instrument that has one is counted as.
_PASSING: dict[type[RestError], str] = {
    BusyError: "too many requests",
    UnavailableError: "no answer",
    RequestsUsedUpError: NOT_ASKED,
}


def _note_failure(fetch: Fetch, error: RestError) -> bool:
    """Count an instrument whose bars could not be had. Returns whether another time may do."""
    passes = type(error) in _PASSING
    words = _PASSING.get(type(error), "refused")
    fetch.failed[f"{words} ({error.code})" if error.code else words] += 1
    fetch.unanswered += passes
    fetch.last_error = str(error)
    return passes
