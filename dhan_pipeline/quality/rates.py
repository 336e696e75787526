"""How many ticks come and are stored: of an hour and now, against floors that scale with what trades.

A floor holds for `rate_instruments` instruments in continuous trading. Before the open, in auctions and after the close
nothing is due, so nothing is judged; nor is it known to be due where nobody wrote down what was subscribed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dhan_pipeline.amounts import counted, duration
from dhan_pipeline.quality.due import trading_now
from dhan_pipeline.quality.held_up import held_up
from dhan_pipeline.quality.outcome import CheckOutcome, below
from dhan_pipeline.quality.pictures import Picture
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.flow import MINUTES, WAITING_S, HourFlow

#: For less than this, a database that stands still is a matter of latency.
_STALL_S = 60.0

_TICKS_A_MINUTE, _TICKS_A_SECOND = "ticks a minute", "ticks a second"


def hour_tick_rate(
    hour: str, flow: HourFlow, trading: Sequence[int] | None, settings: Settings, picture: Picture | None = None
) -> CheckOutcome:
    """The outcome of `tick_rate` for a sealed hour. `trading`: instruments by minute, None where that is not known."""
    if trading is None:
        found = f"What was subscribed in {hour} is not on record, so nobody knows how many ticks were due."
        return _tick_rate(sum(flow.ticks_by_minute) / MINUTES, None, settings, found, picture)
    minutes = [(ticks, count) for ticks, count in zip(flow.ticks_by_minute, trading, strict=True) if count]
    if not minutes:
        return _tick_rate(None, None, settings, f"Nothing that is subscribed traded continuously in {hour}.", picture)
    rate, instruments = (sum(numbers) / len(minutes) for numbers in zip(*minutes, strict=True))
    found = (
        f"{rate:,.0f} ticks a minute came of {counted(round(instruments), 'instrument')} in the"
        f" {counted(len(minutes), 'minute')} of continuous trading in {hour}."
    )
    return _tick_rate(rate, instruments, settings, found, picture)


def live_tick_rate(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    """The outcome of `tick_rate` for a capture's status line."""
    rate, instruments = status.get("ticks_per_minute"), _trading_now(status, settings)
    if rate is None:
        return _tick_rate(None, None, settings, "The capture has not run for a minute yet.")
    if (waiting_s := status["backlog_seconds"] or 0.0) > WAITING_S:
        found = (
            f"Ticks have waited to be stored for {waiting_s:,.0f} s: how many come is seen once they are."
            f" {status.get('messages_per_second', 0):,.0f} messages a second arrive in the journal."
        )
        return _tick_rate(rate, None, settings, found)
    if not instruments:
        return _tick_rate(rate, None, settings, "Nothing that is subscribed trades continuously: no tick is due.")
    found = f"{rate:,.0f} ticks came in the last minute, of {counted(instruments, 'instrument')} in continuous trading."
    return _tick_rate(rate, instruments, settings, found)


def _tick_rate(
    rate: float | None, instruments: float | None, settings: Settings, found: str, picture: Picture | None = None
) -> CheckOutcome:
    """Judged where it is known how many instruments trade."""
    warn, error = settings.tick_rate_warn, settings.tick_rate_error
    scale = _scale(instruments, settings)
    passed = rate is None or instruments is None or rate >= warn * scale
    if not passed:
        found += (
            f" At least {_number(warn * scale)} a minute are due of so many: look at `gaps` and `silent_instruments`"
            " first. If nothing is missing, the market is quiet or the list is: options far from the money need a lower"
            " TICK_RATE_WARN."
        )
    return CheckOutcome(
        "tick_rate",
        passed,
        "WARN" if passed else below(rate or 0.0, error * scale),
        rate,
        _TICKS_A_MINUTE,
        _limits((15_000, 25_000), warn, error, _TICKS_A_MINUTE, instruments, settings),
        found,
        picture=picture,
    )


def hour_insert_rate(
    hour: str, flow: HourFlow, trading: Sequence[int] | None, settings: Settings, why: str
) -> CheckOutcome:
    """The outcome of `insert_rate` for a sealed hour; `trading` as above. `why` ticks waited, and what to do."""
    if flow.waited_s >= _STALL_S:
        rate = flow.waited_ticks / flow.waited_s
        found = (
            f"For {duration(flow.waited_s)} of {hour} ticks waited more than {WAITING_S:g} s to be stored, and"
            f" were, at {_number(rate)} a second."
        )
        in_session = [count for count in trading or () if count]
        return _insert_rate(rate, sum(in_session) / len(in_session) if in_session else None, settings, found, why)
    rate = sum(flow.ticks_by_minute) / MINUTES / 60
    waited = f"some waited, for {flow.waited_s:,.0f} s in all" if flow.waited_s else f"none waited {WAITING_S:g} s"
    found = f"The database took the ticks of {hour} as they came, {rate:,.0f} a second: {waited}."
    return _insert_rate(rate, None, settings, found)


def live_insert_rate(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    """The outcome of `insert_rate` for a capture's status line."""
    a_minute, waiting_s = status.get("ticks_per_minute"), status["backlog_seconds"] or 0.0
    if a_minute is None:
        return _insert_rate(None, None, settings, "The capture has not run for a minute yet.")
    rate = a_minute / 60
    if waiting_s <= WAITING_S:
        found = f"The database takes all ticks as they come, {rate:,.0f} a second in the last minute."
        return _insert_rate(rate, None, settings, found)
    found = f"Ticks have waited for {waiting_s:,.0f} s, and {rate:,.0f} a second were stored in the last minute."
    return _insert_rate(rate, _trading_now(status, settings) or None, settings, found, held_up(status))


def _insert_rate(
    rate: float | None,
    waiting_of: float | None,
    settings: Settings,
    found: str,
    why: str = "",
) -> CheckOutcome:
    """Judged where ticks waited: of so many instruments that trade. `why` they did, and what to do."""
    warn, error = settings.insert_rate_warn, settings.insert_rate_error
    scale = _scale(waiting_of, settings)
    passed = rate is None or waiting_of is None or rate >= warn * scale
    if not passed:
        found += f" {why[0].upper()}{why[1:]}. Nothing is lost, the journal holds what waits."
    return CheckOutcome(
        "insert_rate",
        passed,
        "WARN" if passed else below(rate or 0.0, error * scale),
        rate,
        _TICKS_A_SECOND,
        f"while ticks wait, {_limits((1000, 2000), warn, error, _TICKS_A_SECOND, waiting_of, settings)}",
        found,
    )


def _trading_now(status: Mapping[str, Any], settings: Settings) -> int:
    return sum(subscribed for subscribed, _ in trading_now(status, settings).values())


def _scale(instruments: float | None, settings: Settings) -> float:
    return (instruments or 0.0) / settings.rate_instruments


def _limits(
    target: tuple[float, float], warn: float, error: float, unit: str, instruments: float | None, settings: Settings
) -> str:
    """The limits of so many instruments that trade; where that is not known, those of `rate_instruments`."""
    of = float(settings.rate_instruments) if instruments is None else instruments
    low, high, warns, fails = (_number(limit * _scale(of, settings)) for limit in (*target, warn, error))
    which = f"every {of:,.0f} instruments" if instruments is None else counted(round(of), "instrument")
    return (
        f"of {which} in continuous trading: target {low} to {high} {unit}, warning below {warns},"
        f" critical below {fails}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
