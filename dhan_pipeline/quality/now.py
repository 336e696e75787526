"""What is happening now, for who looks at it: `watch` and the live page only render this.

All of it is in the database: what captures say of themselves each second, and the gaps of today. No tick is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from psycopg2.extensions import connection

from dhan_pipeline.amounts import counted
from dhan_pipeline.clock import Clock
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.quality.calendar import capture_expected, feed_expected, token_needed_until
from dhan_pipeline.quality.gaps import GapPart, parts
from dhan_pipeline.quality.measures import DISK_ERROR_GB, SILENCE_ERROR_S, disk_outcome, live_outcomes
from dhan_pipeline.sessions import IST, QUIET_KINDS, Kind, day_start_ns, sessions
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source, source_of_capture
from dhan_pipeline.store.gaps import read_gaps
from dhan_pipeline.store.instruments import read_names
from dhan_pipeline.store.ledger import CaptureStatus, statuses
from dhan_pipeline.times import beside, ist

#: A capture says every second that it is there.
SILENT_S = 10.0

#: The latest gaps that are told one by one.
GAPS = 20

#: A feed of at least so many ticks a minute that brings nothing for `SILENT_S` stands still.
_LIVELY_PER_MINUTE = 600

#: No holidays last so long.
_LONGEST_PAUSE_DAYS = 15

_KINDS: dict[Kind, str] = {
    "pre_open": "pre-open",
    "closing_auction": "closing auction",
    "post_close": "post-close",
    "cross_currency": "cross-currency",
}

State = Literal["live", "silent", "stopped"]


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture by its last word. Numbers that it does not know are None; all are those of that word."""

    source: str
    capture: int
    state: State
    """`silent`: it has said nothing for `SILENT_S`, and had not been asked to stop."""
    said_at: datetime
    connections_up: int
    connections: int
    messages_per_second: float
    ticks_per_second: float
    ticks: int
    """Since it started; so are the rejected packets."""
    rejected: int
    backlog_s: float
    latency_p50_ms: float | None
    """From receipt to commit, of the last 10 s."""
    latency_p99_ms: float | None
    last_packet_at: datetime | None
    reconnects: int
    queue_depth: int | None
    """Messages that wait in RabbitMQ; None without it. So are the workers."""
    workers: int | None
    memory_mb: float
    processor_percent: float
    disk_free_gb: float


@dataclass(frozen=True, slots=True)
class Segment:
    """An exchange segment of a source, as its captures that are alive see it."""

    source: str
    segment: str
    trading: bool
    """Whether it trades continuously, so that packets are due."""
    session: str
    """In words: `open until 15:30`, `opens Mon 09:00`."""
    ticks_per_second: float
    last_at: datetime | None
    """When its last tick was received."""
    late: bool
    """Whether it trades, and has brought nothing for `measures.SILENCE_ERROR_S`."""
    instruments: int
    """That are subscribed."""
    heard: int
    """Of how many there was a tick since the capture started."""


@dataclass(frozen=True, slots=True)
class Mover:
    """An instrument that moved since the previous close. Its token is text: JavaScript's numbers end at 2^53."""

    instrument_token: str
    symbol: str
    segment: str
    last_price: float
    change_percent: float


@dataclass(frozen=True, slots=True)
class GapToday:
    """A gap of today that was in session."""

    source: str
    connection: int
    instruments: int
    started_at: datetime
    ended_at: datetime | None
    """None while it lasts."""
    seconds: float
    """In session."""
    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class Now:
    """What is happening now. Times are IST."""

    at: datetime
    good: bool
    """Whether there is no problem."""
    headline: str
    """The same in a few words, with what the market does."""
    problems: tuple[str, ...]
    """What is wrong, a sentence each, the worst first."""
    captures: tuple[Capture, ...]
    segments: tuple[Segment, ...]
    movers: Mapping[str, Mapping[str, Sequence[Mover]]]
    """`up` and `down` of indices, shares and futures: of the first source that has them."""
    gaps: int
    """Of today, in session, of connections and segments."""
    gap_s: float
    """Seconds of them in all."""
    silences: int
    """How often a single lively instrument fell silent."""
    latest_gaps: tuple[GapToday, ...]
    """The latest first."""


def read_now(conn: connection, settings: Settings, clock: Clock, sources: Sequence[Source] = SOURCES) -> Now:
    """What is happening now, of some sources. Raises psycopg2.Error."""
    now = clock.now().astimezone(IST)
    found = _present([status for status in statuses(conn) if status.source in sources], now)
    captures = [_capture(status) for status in found]
    # Who looks at a demo's database may know nothing of its sessions.
    always = any(status.status.get("sessions", settings.sessions) == "always" for status in found)
    settings = settings.model_copy(
        update={
            "sessions": "always" if always else settings.sessions,
            "data_source": ",".join(dict.fromkeys(status.source for status in found)) or settings.data_source,
        }
    )
    now_ns = clock.now_ns()
    start_ns = day_start_ns(now_ns)
    gaps = [
        gap
        for gap in parts(read_gaps(conn, start_ns, now_ns), start_ns, now_ns, always)
        if source_of_capture(gap.capture) in sources
    ]
    of_connections = [gap for gap in gaps if not gap.of_one]
    segments = _segments(found, now, always)
    problems = tuple(_problems(settings, clock, found, captures, segments))
    return Now(
        at=now,
        good=not problems,
        headline=_headline(segments, problems),
        problems=problems,
        captures=tuple(captures),
        segments=segments,
        movers=_movers(conn, found),
        gaps=len(of_connections),
        gap_s=round(sum(gap.seconds for gap in of_connections), 1),
        silences=len(gaps) - len(of_connections),
        latest_gaps=tuple(_gap(gap) for gap in of_connections[: -GAPS - 1 : -1]),
    )


def _present(found: Sequence[CaptureStatus], now: datetime) -> list[CaptureStatus]:
    """Those that matter now: what runs, and what ended today without having been asked to; else a source's last one."""
    present: list[CaptureStatus] = []
    for source in SOURCES:
        of_source = [status for status in found if status.source == source]
        kept = [
            status
            for status in of_source
            if _state(status) == "live"
            or (_state(status) == "silent" and status.updated_at.astimezone(IST).date() == now.date())
        ]
        present += kept or sorted(of_source, key=lambda status: status.updated_at)[-1:]
    return present


def _state(status: CaptureStatus) -> State:
    if status.status.get("stopped"):
        return "stopped"
    return "live" if status.age_s <= SILENT_S else "silent"


def _capture(found: CaptureStatus) -> Capture:
    said, state = found.status, _state(found)
    live = state == "live"
    rates = [facts["ticks_per_second"] for facts in said.get("segments", {}).values()] if live else []
    return Capture(
        source=found.source,
        capture=found.capture,
        state=state,
        said_at=found.updated_at.astimezone(IST),
        connections_up=said.get("connections_up", 0) if live else 0,
        connections=said.get("connections", 0),
        messages_per_second=said.get("messages_per_second", 0.0) if live else 0.0,
        ticks_per_second=round(sum(rates), 1),
        ticks=said.get("ticks", 0),
        rejected=said.get("rejected", 0),
        backlog_s=said.get("backlog_seconds", 0.0),
        latency_p50_ms=said.get("latency_p50_ms"),
        latency_p99_ms=said.get("latency_p99_ms"),
        last_packet_at=_time(said.get("last_packet_at")),
        reconnects=said.get("reconnects", 0),
        queue_depth=said.get("queue_depth"),
        workers=said.get("workers"),
        memory_mb=said.get("rss_mb", 0.0),
        processor_percent=said.get("cpu_percent", 0.0),
        disk_free_gb=said.get("disk_free_gb", 0.0),
    )


def _segments(found: Sequence[CaptureStatus], now: datetime, always: bool) -> tuple[Segment, ...]:
    """Each segment of each source, what its captures say of it added up."""
    told = [
        (status.source, name, facts if _state(status) == "live" else facts | {"ticks_per_second": 0.0})
        for status in found
        for name, facts in status.status.get("segments", {}).items()
    ]
    segments = []
    for source in SOURCES:
        for segment in ExchangeSegment:
            of_it = [facts for its_source, name, facts in told if (its_source, name) == (source, segment.name)]
            if of_it:
                last_at = max(filter(None, (_time(facts["last_at"]) for facts in of_it)), default=None)
                trading, session = session_in_words(segment, now.replace(second=0, microsecond=0), always)
                segments.append(
                    Segment(
                        source=source,
                        segment=segment.name,
                        trading=trading,
                        session=session,
                        ticks_per_second=round(sum(facts["ticks_per_second"] for facts in of_it), 1),
                        last_at=last_at,
                        late=trading and (last_at is None or (now - last_at).total_seconds() > SILENCE_ERROR_S),
                        instruments=sum(facts["instruments"] for facts in of_it),
                        heard=sum(facts["heard"] for facts in of_it),
                    )
                )
    return tuple(segments)


@lru_cache(maxsize=64)  # asked for each second, of each minute
def session_in_words(segment: ExchangeSegment, minute: datetime, always: bool = False) -> tuple[bool, str]:
    """Whether the segment trades continuously at a minute (IST), and what session it has, or has next."""
    if always:
        return True, "always open"
    on = [session for session in sessions(segment, minute.date()) if session.open <= minute < session.close]
    for session in on:
        if session.kind not in QUIET_KINDS:
            return True, f"open until {session.close:%H:%M}"
    if on:
        return False, f"{_KINDS[on[0].kind]} until {on[0].close:%H:%M}"
    for days in range(_LONGEST_PAUSE_DAYS):
        for session in sessions(segment, minute.date() + timedelta(days)):
            if minute < session.open:
                return False, f"opens {session.open:%H:%M}" if not days else f"opens {session.open:%a %d %b %H:%M}"
    return False, "closed"


def _movers(conn: connection, found: Sequence[CaptureStatus]) -> dict[str, dict[str, list[Mover]]]:
    by_source = {status.source: status.status["movers"] for status in reversed(found) if status.status.get("movers")}
    movers: dict[str, dict[str, list[dict[str, Any]]]] = next((by_source[s] for s in SOURCES if s in by_source), {})
    tokens = [mover["instrument_token"] for ways in movers.values() for some in ways.values() for mover in some]
    names = read_names(conn, tokens)
    return {
        group: {
            way: [
                Mover(
                    str(mover["instrument_token"]),
                    *names.get(mover["instrument_token"], (str(mover["instrument_token"]), ""))[:2],
                    mover["last_price"],
                    mover["change_percent"],
                )
                for mover in some
            ]
            for way, some in ways.items()
        }
        for group, ways in movers.items()
    }


def _gap(gap: GapPart) -> GapToday:
    return GapToday(
        source=source_of_capture(gap.capture),
        connection=gap.connection,
        instruments=gap.instruments,
        started_at=ist(gap.started_ns),
        ended_at=None if gap.lasts else ist(gap.ended_ns),
        seconds=round(gap.seconds, 1),
        cause=gap.cause.value,
        detail="; ".join(filter(None, (gap.detail, gap.recovery))),
    )


def _problems(
    settings: Settings,
    clock: Clock,
    found: Sequence[CaptureStatus],
    captures: Sequence[Capture],
    segments: Sequence[Segment],
) -> Iterator[str]:
    """What is wrong, a sentence or a few each: captures that are not there, then checks by their severity."""
    if not found:
        yield "No capture has ever reported to this database: start one, and see that it has the same DATABASE_URL."
    warnings = []
    for source in SOURCES:
        expected = source in settings.sources and capture_expected(settings.of(source), clock)
        runs = any(capture.source == source and capture.state == "live" for capture in captures)
        for status, capture in zip(found, captures, strict=True):
            if capture.source == source and capture.state != "live" and expected:
                since = beside(capture.said_at, clock.now())
                if capture.state == "silent":
                    words = f"Capture {capture.capture} ({source}) has said nothing since {since}: it is dead or hangs,"
                    words += " or the database takes nothing."
                    if status.status.get("disk_free_gb", DISK_ERROR_GB) < DISK_ERROR_GB:
                        words += f" {disk_outcome(status.status).description}"
                    yield words
                elif not runs:
                    yield f"The capture of {source} was stopped at {since}, and its session is on."
        own = settings.of(source)
        for status, capture in zip(found, captures, strict=True):
            if capture.source != source or capture.state != "live":
                continue
            try:
                outcomes = live_outcomes(
                    status.status, own, feed_expected(own, clock), token_until=token_needed_until(own, clock)
                )
            except KeyError:  # what a later version says
                yield f"Capture {capture.capture} ({source}) is of an earlier version of dhan-pipeline: start it again."
                continue
            if all(segment.trading for segment in segments if segment.source == source):
                yield from _standstill(status.status, capture)
            for outcome in sorted(outcomes, key=lambda outcome: outcome.name != "connected"):  # explains the others
                if not outcome.passed and outcome.severity == "ERROR":
                    yield outcome.description
                elif not outcome.passed:
                    warnings.append(outcome.description)
    yield from warnings


def _standstill(said: Mapping[str, Any], capture: Capture) -> Iterator[str]:
    """Whether a lively feed has stopped: who looks sees it before the check `connected` may judge a quiet one."""
    at, last_at, rate = _time(said["at"]), capture.last_packet_at, said.get("ticks_per_minute") or 0.0
    if at is not None and last_at is not None and rate >= _LIVELY_PER_MINUTE:
        quiet_s = (at - last_at).total_seconds()
        if SILENT_S < quiet_s < SILENCE_ERROR_S:
            yield f"Nothing has come of {capture.source} for {quiet_s:.0f} s, after {rate:,.0f} ticks in a minute."


def _headline(segments: Sequence[Segment], problems: Sequence[str]) -> str:
    if problems:
        return counted(len(problems), "problem")
    if any(segment.trading for segment in segments):
        return "All is well"
    return "No session is on"


def _time(iso: str | None) -> datetime | None:
    return datetime.fromisoformat(iso).astimezone(IST) if iso else None
