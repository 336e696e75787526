"""Gaps as a person asks about them: the part that lies in an hour, and how much of that was in session."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache

from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import ExchangeSegment, exchange_segments
from dhan_pipeline.sessions import IST, sessions
from dhan_pipeline.store.gaps import StoredGap


@dataclass(frozen=True, slots=True)
class GapPart:
    """The part of a gap that lies in an interval. Times are ns since the Unix epoch, UTC."""

    capture: int
    connection: int
    started_ns: int
    ended_ns: int
    lasts: bool
    """Whether the gap has not ended yet."""
    gap_started_ns: int
    """When the whole gap began."""
    gap_ended_ns: int | None
    """When the whole gap ended; None while it lasts."""
    seconds: float
    """How much of the part was in session of its instruments."""
    cause: Cause
    detail: str
    recovery: str
    instruments: int
    """How many instruments it concerns."""

    @property
    def of_one(self) -> bool:
        """Whether one lively instrument fell silent, as a halt makes it; else a connection or a segment did."""
        return self.cause is Cause.SILENT and self.instruments == 1


def session_seconds(started_ns: int, ended_ns: int, segments: Collection[ExchangeSegment], always: bool) -> float:
    """How many seconds of an interval (ns since the Unix epoch, UTC) lie in sessions of any of the segments.

    With `always`, every second counts.
    """
    if ended_ns <= started_ns:
        return 0.0
    if always:
        return (ended_ns - started_ns) / 1e9
    total = 0
    day = datetime.fromtimestamp(started_ns / 1e9, IST).date()
    last = datetime.fromtimestamp(ended_ns / 1e9, IST).date()
    while day <= last:
        for open_ns, close_ns in _open_times(day, frozenset(segments)):
            total += max(0, min(close_ns, ended_ns) - max(open_ns, started_ns))
        day += timedelta(days=1)
    return total / 1e9


def parts(gaps: Iterable[StoredGap], start_ns: int, end_ns: int, always: bool) -> list[GapPart]:
    """The parts of gaps in [`start_ns`, `end_ns`) of which some was in session, in the order given.

    A gap that lasts is taken to last until `end_ns`.
    """
    found = []
    for gap in gaps:
        started_ns = max(gap.started_ns, start_ns)
        ended_ns = min(end_ns if gap.ended_ns is None else gap.ended_ns, end_ns)
        seconds = session_seconds(started_ns, ended_ns, _segments(gap), always)
        if seconds > 0:
            found.append(
                GapPart(
                    capture=gap.capture,
                    connection=gap.connection,
                    started_ns=started_ns,
                    ended_ns=ended_ns,
                    lasts=gap.ended_ns is None,
                    gap_started_ns=gap.started_ns,
                    gap_ended_ns=gap.ended_ns,
                    seconds=seconds,
                    cause=gap.cause,
                    detail=gap.detail,
                    recovery=gap.recovery,
                    instruments=len(gap.instruments),
                )
            )
    return found


def _segments(gap: StoredGap) -> Collection[ExchangeSegment]:
    """The segments of a gap's instruments; all of them where it names none."""
    if not len(gap.instruments):
        return tuple(ExchangeSegment)
    return exchange_segments(gap.instruments)


@lru_cache(maxsize=1024)  # a capture that was away for a year asks for every day of it, each second
def _open_times(day: date, segments: frozenset[ExchangeSegment]) -> tuple[tuple[int, int], ...]:
    """The day's sessions of any of the segments as intervals that do not overlap, in ns since the Unix epoch, UTC."""
    of_day = sorted((s.open, s.close) for segment in segments for s in sessions(segment, day))
    merged: list[tuple[int, int]] = []
    for opens, closes in of_day:
        open_ns, close_ns = int(opens.timestamp()) * 1_000_000_000, int(closes.timestamp()) * 1_000_000_000
        if merged and open_ns <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], close_ns))
        else:
            merged.append((open_ns, close_ns))
    return tuple(merged)
