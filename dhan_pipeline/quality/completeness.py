"""Whether something came of every instrument that was due in an hour.

Due is what was subscribed while its segment traded continuously. Some instruments do not trade for an hour or a day:
nothing is wrong where nothing comes of them. One is quiet if it was heard before, yet so seldom that its silence says
nothing: fewer than `LIVELY` ticks would have come in the time, going by those since the trading day before. Quiet ones
that sent nothing are left out, unless none of their segment sent anything. Who was never heard is not quiet: the broker
sends of each instrument at least what it has when it is subscribed.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.amounts import counted
from dhan_pipeline.instruments import segment_of
from dhan_pipeline.quality.due import Due, trading_minutes, trading_now
from dhan_pipeline.quality.outcome import CheckOutcome, below
from dhan_pipeline.quality.tables import table
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import heard, ledger
from dhan_pipeline.store.flow import WAITING_S
from dhan_pipeline.store.instruments import read_names
from dhan_pipeline.store.partitions import instant

#: Of an instrument that sends so many in a stretch on average, nothing comes once in 20,000 such stretches.
LIVELY = 10

#: Those that are listed.
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Missing:
    """An instrument of which something was due, and nothing came."""

    instrument_token: int
    trading_symbol: str
    ticks_before: int | None
    """Since the trading day before, counted as far as it matters; None where that was not asked."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """Of one IST hour."""

    subscribed: int = 0
    """Instruments that were, at some time of the hour; 0 also where that is not on record."""
    came: int = 0
    """Instruments in session of which ticks came."""
    quiet: int = 0
    """Those of which none came, as is their way."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Those of which some were due and none came, by segment."""
    examples: tuple[Missing, ...] = ()
    """The first of these."""


def measure_completeness(conn: connection, hour: str, due: Due, always: bool) -> Completeness:
    """Of the hour of a partition key. Commits. Raises ValueError, psycopg2.Error."""
    start_ns = parse_hour_key(hour)
    in_session = due.minutes.any(axis=1)
    minutes = dict(zip(due.tokens[in_session].tolist(), due.minutes[in_session].sum(axis=1).tolist(), strict=True))
    ticks = heard.count_ticks(conn, minutes, instant(start_ns), instant(start_ns + HOUR_NS), 1)
    none = [token for token in minutes if not ticks[token]]
    # Of a segment that sent nothing at all, nobody is excused.
    speaking = {segment_of(token) for token in minutes if ticks[token]}
    doubtful = {token: minutes[token] for token in none if segment_of(token) in speaking}
    quiet, before = _quiet(conn, hour, doubtful, always)
    missing = [token for token in none if token not in quiet]
    shown = missing[:_SHOWN]
    names = read_names(conn, shown)
    conn.commit()
    return Completeness(
        subscribed=len(due.tokens),
        came=len(minutes) - len(none),
        quiet=len(quiet),
        missing=dict(Counter(segment_of(token).name for token in missing)),
        examples=tuple(Missing(token, names.get(token, ("",))[0], before.get(token)) for token in shown),
    )


def _quiet(conn: connection, hour: str, minutes: Mapping[int, int], always: bool) -> tuple[set[int], dict[int, int]]:
    """Which of the instruments are quiet, of which something was due in so many minutes; and how many ticks came of
    each since the trading day before, counted as far as it matters."""
    earlier = [known for known in ledger.hours(conn) if known < hour]
    days = sorted({_day(known) for known in earlier} - {_day(hour)})
    span = [known for known in earlier if _day(known) >= (days[-1] if days else _day(hour))]
    if not span or not minutes:
        return set(), {}
    traded = {
        segment: sum(int(trading_minutes(segment, parse_hour_key(known), always).sum()) for known in span)
        for segment in {segment_of(token) for token in minutes}
    }
    # So many in the span make one lively: then `LIVELY` were due in the minutes of this hour.
    lively = {token: max(2, LIVELY * traded[segment_of(token)] // due) for token, due in minutes.items()}
    bounds = instant(parse_hour_key(span[0])), instant(parse_hour_key(hour))
    before = heard.count_ticks(conn, minutes, *bounds, max(lively.values()))
    return {token for token, ticks in before.items() if 0 < ticks < lively[token]}, before


def _day(hour: str) -> str:
    return hour.partition("T")[0]


def hour_completeness(hour: str, found: Completeness | None, settings: Settings) -> CheckOutcome:
    """The outcome of `completeness` for a sealed hour; None: its ticks have left the database."""
    if found is None:
        return _outcome(f"The ticks of {hour} have left the database: they are older than the retention.", settings)
    if not found.subscribed:
        return _outcome(f"What was subscribed in {hour} is not on record: nobody knows what is missing.", settings)
    due = found.came + sum(found.missing.values())
    if not due:
        return _outcome(f"Nothing that is subscribed traded continuously in {hour}, so nothing was due.", settings)
    sentence = f"{found.came:,} of the {counted(due, 'instrument')} that traded continuously in {hour} sent ticks."
    if found.missing:
        sentence += f" {_nothing_of(found.missing)}"
    if found.quiet:
        sentence += f" {found.quiet:,} more, which trade seldom, sent nothing as they mostly do: they are not counted."
    return _outcome(sentence, settings, found.came / due, _table(found))


def live_completeness(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    """The outcome of `completeness` for a capture's status line."""
    if status.get("ticks_per_minute") is None:
        return _outcome("The capture has not run for a minute yet.", settings)
    if (waiting_s := status["backlog_seconds"] or 0.0) > WAITING_S:
        return _outcome(f"Ticks have waited for {waiting_s:,.0f} s: of whom is seen once they are stored.", settings)
    trading = trading_now(status, settings)
    due, came = (sum(counts) for counts in zip(*trading.values(), strict=True)) if trading else (0, 0)
    if not due:
        return _outcome("Nothing that is subscribed trades continuously, so nothing is due.", settings)
    sentence = (
        f"{came:,} of the {counted(due, 'instrument')} that trade continuously now have sent ticks since the capture"
        " started."
    )
    missing = {name: subscribed - heard for name, (subscribed, heard) in trading.items() if subscribed > heard}
    if missing:
        sentence += f" {_nothing_of(missing)} `completeness` of `ticks` names them when the hour is over."
    return _outcome(sentence, settings, came / due)


def _nothing_of(missing: Mapping[str, int]) -> str:
    by_segment = ", ".join(f"{count:,} of {segment}" for segment, count in sorted(missing.items()))
    return (
        f"Nothing came of {by_segment}: a halt, an instrument that expired, a subscription that the broker does not"
        " honour, or a gap. Look at `gaps` and `rejected_packets`, then at your subscriptions."
    )


def _outcome(sentence: str, settings: Settings, share: float | None = None, table: str = "") -> CheckOutcome:
    warn, error = settings.completeness_warn, settings.completeness_error
    passed = share is None or share >= warn
    return CheckOutcome(
        "completeness",
        passed,
        "WARN" if share is None else below(share, error),
        None if share is None else round(100 * share, 3),
        "percent",
        f"warning below {100 * warn:g} %, critical below {100 * error:g} % of the instruments that were due",
        sentence,
        table,
    )


def _table(found: Completeness) -> str:
    if not found.examples:
        return ""
    before = "ticks since the trading day before, at least"
    rows = (
        (
            one.trading_symbol,
            segment_of(one.instrument_token).name,
            one.instrument_token,
            "" if one.ticks_before is None else f"{one.ticks_before:,}" if one.ticks_before else "never heard",
        )
        for one in found.examples
    )
    more = sum(found.missing.values()) - len(found.examples)
    numbers = ("instrument_token", before)
    return table(("missing", "segment", "instrument_token", before), rows, numbers) + (
        f"\n\n{more:,} more are missing." if more else ""
    )
