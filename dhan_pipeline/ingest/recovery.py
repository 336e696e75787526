"""What the broker's REST API can still tell after a gap: quotes at once, and bars of the minutes that it swallowed.

Nothing of it goes into `ticks`: rows stay a pure function of the journal. The bars stand in for ours in `candles_1m`,
where they are marked, and the quotes are kept in `gap_quotes`.
"""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from psycopg2.extensions import connection

from dhan_pipeline.candles import LATE_S
from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.errors import CredentialsError, NoDataPlanError, RestError
from dhan_pipeline.feeds.histories import make_history
from dhan_pipeline.feeds.history import SETTLED_AFTER_S, History
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.ingest.broker_bars import NOT_ASKED, Fetch, Tell, fetch_bars
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.quality.gaps import session_seconds
from dhan_pipeline.sessions import DAY_NS, HOUR_NS, day_start_ns, hour_key, hour_start_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.broker_candles import fetched
from dhan_pipeline.store.candles import rebuild_candles
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.gap_recoveries import (
    EndedGap,
    ended_gaps,
    gap_instruments,
    minutes_of,
    note_bars,
    note_quotes,
    write_gap_quotes,
)

#: A quote that is taken later than this after a gap says nothing about the gap, in seconds.
QUOTES_WITHIN_S = 3600

_SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Recovered:
    """What a recovery came to."""

    quotes: int = 0
    """Quotes that were fetched."""
    gaps: int = 0
    """Gaps whose bars are complete now."""
    waiting: int = 0
    """Gaps whose last minute is not old enough for its bar."""
    instruments: int = 0
    """Instruments of those gaps, one counted for each gap."""
    bars: int = 0
    """Bars that the broker has of the gaps' minutes."""
    failed: int = 0
    """Instruments whose bars could not be had."""
    hours: list[str] = field(default_factory=list)
    """Hours whose candles were rebuilt, as partition keys."""
    problems: list[str] = field(default_factory=list)
    """What did not work, a sentence each."""
    unfinished: str = ""
    """Why something that is due could not be had now, a sentence."""

    def in_words(self) -> str:
        """All of it but what did not work, for a person."""
        words = f"{self.gaps:,} {'gap was' if self.gaps == 1 else 'gaps were'} recovered"
        if self.gaps:
            words += f": {self.bars:,} bars of {self.instruments:,} instruments, {self.failed:,} of which failed"
            words += f"; candles were rebuilt of {', '.join(self.hours) or 'no hour'}"
        if self.quotes:
            words += f"; {self.quotes:,} quotes were taken"
        if self.waiting:
            words += f"; {self.waiting:,} too fresh for bars: ask again in some minutes"
        return f"{words}."


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to do for gaps, by their start."""

    quotes: list[EndedGap]
    bars: list[EndedGap]
    waiting: list[EndedGap]
    """Those whose bars are due later."""

    def of(self, source: Source) -> "Due":
        """What there is to ask one of the brokers for."""
        return Due(*([gap for gap in gaps if gap.source == source] for gaps in (self.quotes, self.bars, self.waiting)))


def due(settings: Settings, conn: connection, clock: Clock, again: bool = False) -> Due:
    """What is to be fetched now, of the sources' gaps in session of at least `settings.gap_s_warn` seconds.

    Those that ended while ticks are kept (`settings.retention_days`); with `again`, bars of those of which some failed,
    too. Asks the database once. Leaves the transaction open.
    """
    now_ns = clock.now_ns()
    found = Due([], [], [])
    for gap in ended_gaps(conn, now_ns - settings.retention_days * DAY_NS, settings.gap_s_warn, again):
        if gap.source not in settings.sources:
            continue
        segments = [ExchangeSegment(number) for number in gap.segments] or list(ExchangeSegment)
        seconds = session_seconds(gap.started_ns, gap.ended_ns, segments, settings.sessions == "always")
        if seconds < settings.gap_s_warn:
            continue
        if not gap.has_quotes and now_ns < gap.ended_ns + QUOTES_WITHIN_S * _SECOND_NS:
            found.quotes.append(gap)
        if not gap.has_bars or gap.failed:
            settled = now_ns >= _settled_ns(gap)
            (found.bars if settled else found.waiting).append(gap)
    return found


def recover_gaps(
    settings: Settings,
    database_url: str,
    clock: Clock,
    tell: Tell,
    *,
    again: bool = False,
    policy: RestPolicy | None = None,
) -> Recovered:
    """Fetch what is due after gaps, and rebuild the candles of the hours that are over. Progress goes to `tell`.

    All quotes come first, then the bars of one gap after the other, its liveliest instruments first. An interrupted
    recovery goes on where it was; so does one in which the broker fell silent, which ends it. Of several sources each
    is asked for its own gaps, whatever becomes of the others'. `again`: also those that failed. `policy` is for tests.
    Raises CredentialsError and NoDataPlanError where no source that has gaps can be asked.
    """
    recovered = Recovered()
    fetches: list[tuple[EndedGap, Fetch]] = []
    refused: list[CredentialsError | NoDataPlanError] = []
    with closing(connect(database_url)) as conn:
        work = due(settings, conn, clock, again)
        conn.commit()
        recovered.waiting = len(work.waiting)
        concerned = [source for source in settings.sources if work.of(source).quotes or work.of(source).bars]
        for source in concerned:
            try:
                of_source = settings.of(source), conn, clock, tell, work.of(source), recovered, policy
                fetches += asyncio.run(_fetch(*of_source))
            except (CredentialsError, NoDataPlanError) as error:
                refused.append(error)
        if refused and len(refused) == len(concerned):
            raise refused[0]
        for hour in _hours(settings, [gap for gap, _ in fetches], clock):
            try:
                rebuild_candles(conn, hour, clock.now_ns())
                recovered.hours.append(hour)
            except PipelineError as error:
                recovered.problems.append(str(error))
        # Only now are they done: whoever is interrupted before does the rest again.
        for gap, fetch in fetches:
            recovered.bars += note_bars(conn, gap, clock.now(), fetch.wanted, fetch.failures, _detail(fetch))
            recovered.gaps += 1
            recovered.instruments += fetch.wanted
            recovered.failed += fetch.failures
    for refusal in refused:
        _add(recovered, str(refusal))
    return recovered


async def _fetch(
    settings: Settings,
    conn: connection,
    clock: Clock,
    tell: Tell,
    work: Due,
    recovered: Recovered,
    policy: RestPolicy | None,
) -> list[tuple[EndedGap, Fetch]]:
    """The gaps whose bars were fetched. Why others were not is added to `recovered.unfinished`."""
    fetches: list[tuple[EndedGap, Fetch]] = []
    async with make_history(settings, clock, policy) as history:
        for gap in work.quotes:
            try:
                recovered.quotes += await _fetch_quotes(history, conn, clock, gap)
            except NoDataPlanError:
                raise
            except RestError as error:
                _add(recovered, str(error))
                break
        for gap in work.bars:
            tokens = gap_instruments(conn, gap)
            had = fetched(conn, *minutes_of(gap), _settled_ns(gap))
            conn.commit()
            fetch = await fetch_bars(history, conn, clock, tokens, *_span(gap, work.bars), had, tell)
            # What the broker refuses, it would refuse again: that must not hold up the gaps after it.
            if fetch.failed[NOT_ASKED] or (fetch.unanswered and not fetch.done and not fetch.before):
                had_now = f"{fetch.done + fetch.before or 'none'} could be had: {fetch.last_error}"
                _add(recovered, f"Of {fetch.wanted:,} instruments of a gap {had_now}")
                break
            fetches.append((gap, fetch))
    return fetches


async def _fetch_quotes(history: History, conn: connection, clock: Clock, gap: EndedGap) -> int:
    tokens = gap_instruments(conn, gap)
    conn.commit()
    count = 0
    for first in range(0, len(tokens), history.max_quotes):
        quotes = await history.quotes(tokens[first : first + history.max_quotes])
        write_gap_quotes(conn, gap, quotes, clock.now())
        count += len(quotes)
    note_quotes(conn, gap, clock.now())
    return count


def _add(recovered: Recovered, unfinished: str) -> None:
    recovered.unfinished = f"{recovered.unfinished} {unfinished}".strip()


def _span(gap: EndedGap, gaps: Sequence[EndedGap]) -> tuple[int, int]:
    """From the first minute of the gaps of its day to the end of the last: a request for all takes no longer than one.

    So what loses its connection again and again is asked for once. In ns since the Unix epoch, UTC.
    """
    of_day = [minutes_of(each) for each in gaps if day_start_ns(each.started_ns) == day_start_ns(gap.started_ns)]
    return min(start_ns for start_ns, _ in of_day), max(end_ns for _, end_ns in of_day)


def _detail(fetch: Fetch) -> str:
    return "; ".join(f"{kind}: {count}" for kind, count in fetch.failed.most_common())


def _settled_ns(gap: EndedGap) -> int:
    """When the broker has the bar of its last minute (ns since the Unix epoch, UTC)."""
    return minutes_of(gap)[1] + SETTLED_AFTER_S * _SECOND_NS


def _hours(settings: Settings, gaps: Sequence[EndedGap], clock: Clock) -> list[str]:
    """Keys of the hours that gaps touch in session, and whose candles can be made; the others are made in time."""
    found = set()
    for gap in gaps:
        start_ns, end_ns = minutes_of(gap)
        segments = [ExchangeSegment(number) for number in gap.segments] or list(ExchangeSegment)
        for hour_ns in range(hour_start_ns(start_ns), end_ns, HOUR_NS):
            from_ns, to_ns = max(hour_ns, start_ns), min(hour_ns + HOUR_NS, end_ns)
            in_session = session_seconds(from_ns, to_ns, segments, settings.sessions == "always")
            if in_session and hour_ns + HOUR_NS + LATE_S * _SECOND_NS <= clock.now_ns():
                found.add(hour_key(hour_ns))
    return sorted(found)
