"""Hours and trading sessions of the Indian exchanges, in India Standard Time.

What is regular stands here, with the date from which it holds; `special_days.py` reads the days that differ. MCX closes
agricultural commodities earlier than the rest, at 17:00 or 21:00: of a segment, the last close counts. Sources:
circulars of NSE, BSE and MCX; SEBI's of 2026-01-16 on the closing auction.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.special_days import Market, problems, special_days

IST = ZoneInfo("Asia/Kolkata")

#: India Standard Time is UTC+05:30, without daylight saving.
IST_OFFSET_S = 19_800

MINUTE_NS = 60_000_000_000
HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS

#: Format of an hour's partition key, which is the IST wall clock at its start: `2026-11-20T09:00`.
HOUR_KEY_FORMAT = "%Y-%m-%dT%H:%M"

_NEW_YORK = ZoneInfo("America/New_York")


def hour_start_ns(at_ns: int) -> int:
    """Start of the IST hour that holds the instant, both in nanoseconds since the Unix epoch, UTC."""
    offset = IST_OFFSET_S * 1_000_000_000
    return (at_ns + offset) // HOUR_NS * HOUR_NS - offset


def day_start_ns(at_ns: int) -> int:
    """Midnight, IST, of the day that holds the instant, both in nanoseconds since the Unix epoch, UTC."""
    offset = IST_OFFSET_S * 1_000_000_000
    return (at_ns + offset) // DAY_NS * DAY_NS - offset


def day_bounds_ns(day: date) -> tuple[int, int]:
    """Start (inclusive) and end (exclusive) of an IST day, in nanoseconds since the Unix epoch, UTC."""
    start_ns = int(datetime.combine(day, time(), IST).timestamp()) * 1_000_000_000
    return start_ns, start_ns + DAY_NS


def hour_key(at_ns: int) -> str:
    """Partition key of the IST hour that holds the instant (nanoseconds since the Unix epoch, UTC)."""
    return _hour_key(hour_start_ns(at_ns))


@lru_cache(maxsize=64)  # asked for with every block
def _hour_key(start_ns: int) -> str:
    return datetime.fromtimestamp(start_ns / 1e9, IST).strftime(HOUR_KEY_FORMAT)


def parse_hour_key(key: str) -> int:
    """Start of the hour of a partition key, in nanoseconds since the Unix epoch, UTC. Raises ValueError."""
    start = datetime.strptime(key, HOUR_KEY_FORMAT).replace(tzinfo=IST)
    if start.minute or start.strftime(HOUR_KEY_FORMAT) != key:
        raise ValueError(f"{key} is not the start of an hour")
    return int(start.astimezone(UTC).timestamp()) * 1_000_000_000


Kind = Literal[
    "pre_open",  # order entry, then matching
    "continuous",
    "closing_auction",  # stocks with derivatives only; the others trade on
    "post_close",  # at the closing price
    "cross_currency",  # pairs without the rupee only
    "morning",  # commodities
    "evening",  # commodities
    "special",  # Muhurat, or a Saturday on which the exchanges try their second site
]


@dataclass(frozen=True, slots=True)
class Session:
    """A stretch in which a segment trades: aware times in IST, the close excluded."""

    kind: Kind
    open: datetime
    close: datetime


_Times = tuple[Kind, time, time]
_Rules = tuple[tuple[date, tuple[_Times, ...]], ...]  # each with the day from which it holds

_PRE_OPEN: _Times = ("pre_open", time(9, 0), time(9, 15))

_CASH: _Rules = (
    (date.min, (_PRE_OPEN, ("continuous", time(9, 15), time(15, 30)), ("post_close", time(15, 40), time(16, 0)))),
    (
        date(2026, 8, 3),
        (
            _PRE_OPEN,
            ("continuous", time(9, 15), time(15, 30)),
            ("closing_auction", time(15, 15), time(15, 35)),
            ("post_close", time(15, 50), time(16, 0)),
        ),
    ),
)
_DERIVATIVES: _Rules = (
    (date.min, (("continuous", time(9, 15), time(15, 30)),)),
    (date(2025, 12, 8), (_PRE_OPEN, ("continuous", time(9, 15), time(15, 30)))),
    (date(2026, 8, 3), (_PRE_OPEN, ("continuous", time(9, 15), time(15, 40)))),
)
_CURRENCY: _Rules = (
    (date.min, (("continuous", time(9, 0), time(17, 0)), ("cross_currency", time(17, 0), time(19, 30)))),
)
_COMMODITY_HALVES = time(17, 0)

_SEGMENTS: dict[ExchangeSegment, tuple[Market, _Rules]] = {
    ExchangeSegment.IDX_I: ("equity", _CASH),
    ExchangeSegment.NSE_EQ: ("equity", _CASH),
    ExchangeSegment.NSE_FNO: ("equity", _DERIVATIVES),
    ExchangeSegment.NSE_CURRENCY: ("currency", _CURRENCY),
    ExchangeSegment.BSE_EQ: ("equity", _CASH),
    ExchangeSegment.MCX_COMM: ("commodity", ()),
    ExchangeSegment.BSE_CURRENCY: ("currency", _CURRENCY),
    ExchangeSegment.BSE_FNO: ("equity", _DERIVATIVES),
}

#: Exchanges close on 13 to 16 weekdays of a year. With fewer than so many known, its calendar is not.
HOLIDAYS_OF_A_YEAR = 10

#: How long before a year without a calendar begins that is said: from 1 December on.
WARN_AHEAD = timedelta(days=31)

_REMEDY = (
    "Upgrade dhan-pipeline or pandas-market-calendars and sync the instruments, or write its holidays into the file of"
    " SESSIONS_FILE."
)

_PRE_OPEN_OF_SPECIAL = timedelta(minutes=15)


def sessions(segment: ExchangeSegment, day: date) -> list[Session]:
    """The segment's sessions of an IST day, by opening time; empty on a day without trading. They may overlap."""
    market, rules = _SEGMENTS[segment]
    special = special_days().get(day, {}).get(market, "")
    if special == "closed" or (not special and day.weekday() >= 5):
        return []
    if "-" in special:
        return _special(day, special, pre_open=market == "equity")
    if market == "commodity":
        halves: list[_Times] = [
            ("morning", time(9, 0), _COMMODITY_HALVES),
            ("evening", _COMMODITY_HALVES, _commodity_close(day)),
        ]
        return [_session(day, *t) for t in halves if special in ("", "open", t[0])]
    in_force = [times for since, times in rules if since <= day][-1]
    return [_session(day, *t) for t in in_force]


def in_session(at_ns: int, segments: Collection[ExchangeSegment] = tuple(ExchangeSegment)) -> bool:
    """Whether a session of any of the segments is on (nanoseconds since the Unix epoch, UTC).

    Between two sessions of a segment it is not; to decide whether to capture, use `session_bounds`.
    """
    at = datetime.fromtimestamp(at_ns // 1_000_000_000, IST)
    return any(s.open <= at < s.close for segment in segments for s in sessions(segment, at.date()))


#: Sessions in which a segment may say nothing for minutes: orders are collected, or few instruments trade.
QUIET_KINDS: frozenset[Kind] = frozenset({"pre_open", "closing_auction", "post_close", "cross_currency"})


def packets_due(at_ns: int, segments: Collection[ExchangeSegment] = tuple(ExchangeSegment)) -> bool:
    """Whether any of the segments trades continuously, so that a feed that says nothing is broken (ns, UTC)."""
    return packets_due_throughout(at_ns, at_ns, segments)


def packets_due_throughout(
    start_ns: int, end_ns: int, segments: Collection[ExchangeSegment] = tuple(ExchangeSegment)
) -> bool:
    """Whether that held from the one instant to the other (ns, UTC): any of the segments traded without a break."""
    start, end = (datetime.fromtimestamp(at_ns // 1_000_000_000, IST) for at_ns in (start_ns, end_ns))
    due = sorted(
        (s.open, s.close) for segment in segments for s in sessions(segment, start.date()) if s.kind not in QUIET_KINDS
    )
    for opens, closes in due:
        if opens <= start < closes:
            if end < closes:
                return True
            start = closes
    return False


def in_closing_auction(at_ns: int, segment: ExchangeSegment) -> bool:
    """Whether some instruments of the segment are in their closing auction (ns since the Unix epoch, UTC)."""
    at = datetime.fromtimestamp(at_ns // 1_000_000_000, IST)
    return any(s.kind == "closing_auction" and s.open <= at < s.close for s in sessions(segment, at.date()))


def session_bounds(
    day: date, segments: Collection[ExchangeSegment] = tuple(ExchangeSegment)
) -> tuple[datetime, datetime] | None:
    """From the first opening to the last close of the segments' sessions on an IST day; None without any."""
    of_day = [session for segment in segments for session in sessions(segment, day)]
    if not of_day:
        return None
    return min(session.open for session in of_day), max(session.close for session in of_day)


def calendar_known(day: date) -> bool:
    """Whether the holidays of the day's year are known. If not, every weekday counts as a trading day."""
    closed = (
        known for known, cells in special_days().items() if known.year == day.year and cells.get("equity") == "closed"
    )
    return sum(known.weekday() < 5 for known in closed) >= HOLIDAYS_OF_A_YEAR


def calendar_problem(day: date) -> str | None:
    """What a person should mend in the calendar, in a sentence or two, as of an IST day; None where it is well.

    The holidays of the day's year are not known, or those of the next one a month before it begins; or the site's own
    file of special days cannot be used.
    """
    found = list(problems())
    ahead = day + WARN_AHEAD
    if not calendar_known(day):
        found.append(f"The calendar knows no holidays of {day.year}: every weekday counts as a trading day. {_REMEDY}")
    elif not calendar_known(ahead):
        found.append(f"The calendar ends on {day.year}-12-31, and knows no holidays of {ahead.year}. {_REMEDY}")
    return " ".join(found) or None


def _session(day: date, kind: Kind, opens: time, closes: time) -> Session:
    return Session(kind, datetime.combine(day, opens, IST), datetime.combine(day, closes, IST))


def _special(day: date, times: str, pre_open: bool) -> list[Session]:
    found = []
    for stretch in times.split():
        opens, closes = map(time.fromisoformat, stretch.split("-"))
        found.append(_session(day, "special", opens, closes))
    first = found[0].open
    before = [Session("pre_open", first - _PRE_OPEN_OF_SPECIAL, first)] if pre_open else []
    return [*before, *found]


def _commodity_close(day: date) -> time:
    """Commodities follow the American markets: they close at 23:30 while New York has daylight saving time."""
    noon = datetime.combine(day, time(12, 0), _NEW_YORK)
    return time(23, 30) if noon.dst() else time(23, 55)
