"""When a capture should run, and when its feed should speak.

Belongs here: the sessions of what is subscribed, and the margins around them. Does not: the exchanges' calendar itself
(`sessions.py`), nor what follows from it (`orchestration/`, `diagnosis/`).
"""

from collections.abc import Collection
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path

from dhan_pipeline.clock import Clock
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.quality.gaps import session_seconds
from dhan_pipeline.sessions import HOUR_NS, IST, hour_key, hour_start_ns, packets_due, session_bounds
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import SubscriptionError, read_subscriptions

#: When the day's instruments are synced, IST. The broker renews its list overnight; half an hour before the first
#: session (commodities, 09:00) is left.
SYNC_AT = time(8, 30)

#: A capture is up and subscribed when the first session opens.
LEAD = timedelta(minutes=5)

#: From the start of what starts it, or from when it is due, to a capture's first word. One whose run is on its way may
#: take longer: its programs load for ten seconds of one processor, and what the day has brought so far is read again.
CAPTURE_START_S = 90.0

#: Where sessions never end, a token that is good for this long is good enough: there is time to act.
TOKEN_AHEAD = timedelta(hours=2)

#: After the last close a capture stays until the hour is over, and this much longer to have it materialised.
SEAL = timedelta(minutes=2)


def session_name(settings: Settings, clock: Clock) -> str:
    """The session of now: its day in IST. What is sealed after midnight is of the day before.

    No session crosses midnight in India; one that never closes begins anew.
    """
    now = clock.now().astimezone(IST)
    return str((None if settings.sessions == "always" else _day_held(settings, now)) or now.date())


def capture_expected(settings: Settings, clock: Clock) -> bool:
    """Whether a capture should run now, given the segments that are subscribed."""
    return settings.sessions == "always" or _day_held(settings, clock.now().astimezone(IST)) is not None


def feed_expected(settings: Settings, clock: Clock) -> bool:
    """Whether a subscribed segment trades continuously, so that a silent feed means that something is wrong."""
    return settings.sessions == "always" or packets_due(clock.now_ns(), subscribed_segments(settings))


def hours_in_session(settings: Settings, start_ns: int, end_ns: int) -> set[str]:
    """Keys of the whole IST hours between two instants (ns, UTC) in which a session of what is subscribed is on."""
    segments = subscribed_segments(settings)
    first = hour_start_ns(start_ns + HOUR_NS - 1)
    return {
        hour_key(at_ns)
        for at_ns in range(first, end_ns - HOUR_NS + 1, HOUR_NS)
        if session_seconds(at_ns, at_ns + HOUR_NS, segments, settings.sessions == "always")
    }


def token_needed_until(settings: Settings, clock: Clock) -> datetime | None:
    """The last close of what is subscribed today (IST); None where no session of today is left."""
    now = clock.now().astimezone(IST)
    if settings.sessions == "always":
        return now + TOKEN_AHEAD
    bounds = session_bounds(now.date(), subscribed_segments(settings))
    return bounds[1] if bounds is not None and now < bounds[1] else None


def first_opening(settings: Settings, clock: Clock) -> datetime | None:
    """The first opening of what is subscribed today (IST); None without sessions, or where they never end."""
    if settings.sessions == "always":
        return None
    bounds = session_bounds(clock.now().astimezone(IST).date(), subscribed_segments(settings))
    return bounds[0] if bounds is not None else None


def next_session(settings: Settings, clock: Clock) -> tuple[datetime, datetime] | None:
    """First opening and last close (IST) of what is subscribed, of the first day on which one is still to come.

    None where they never end, or where none comes within two weeks.
    """
    if settings.sessions == "always":
        return None
    now, segments = clock.now().astimezone(IST), subscribed_segments(settings)
    for days in range(14):
        bounds = session_bounds((now + timedelta(days=days)).date(), segments)
        if bounds is not None and now < bounds[0]:
            return bounds
    return None


def _day_held(settings: Settings, now: datetime) -> date | None:
    """The day for whose sessions a capture should run at a time (IST)."""
    segments = subscribed_segments(settings)
    # The hour of a close before midnight ends on the next day.
    days = (now.date(), now.date() - timedelta(days=1))
    return next((day for day in days if _holds(now, day, segments)), None)


def _holds(now: datetime, day: date, segments: Collection[ExchangeSegment]) -> bool:
    bounds = session_bounds(day, segments)
    if bounds is None:
        return False
    opens, closes = bounds
    last_hour_ends = (closes + timedelta(minutes=59, seconds=59)).replace(minute=0, second=0)
    return opens - LEAD <= now < last_hour_ends + SEAL


def subscribed_segments(settings: Settings) -> Collection[ExchangeSegment]:
    """The segments of the resolved subscriptions; all of them while there are none."""
    path = settings.subscriptions_path
    try:
        return _segments(path, path.stat().st_mtime_ns)
    except (OSError, SubscriptionError):
        return tuple(ExchangeSegment)


@lru_cache(maxsize=2)
def _segments(path: Path, _modified_ns: int) -> frozenset[ExchangeSegment]:
    return frozenset(subscription.exchange_segment for subscription in read_subscriptions(path))
