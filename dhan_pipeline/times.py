"""Times as people here read them: in IST, and saying so."""

from datetime import datetime

from dhan_pipeline.sessions import IST


def ist(at_ns: int) -> datetime:
    """A time in IST, from ns since the Unix epoch, UTC."""
    return datetime.fromtimestamp(at_ns / 1e9, IST)


def to_minute(at: datetime) -> str:
    """`2026-11-20 09:15 IST`."""
    return f"{at.astimezone(IST):%Y-%m-%d %H:%M} IST"


def to_minute_of_day(at: datetime) -> str:
    """`Fri 2026-11-20 09:15 IST`, for what a person plans with."""
    return f"{at.astimezone(IST):%a %Y-%m-%d %H:%M} IST"


def to_second(at: datetime) -> str:
    """`2026-11-20 09:15:02 IST`."""
    return f"{at.astimezone(IST):%Y-%m-%d %H:%M:%S} IST"


def beside(at: datetime, now: datetime) -> str:
    """`09:15:02 IST`, with its day where that is not the day of `now`."""
    at, now = at.astimezone(IST), now.astimezone(IST)
    return f"{at:%H:%M:%S} IST" if at.date() == now.date() else to_second(at)
