"""Ticks -> bars of one minute, an hour at a time.

What a bar is:

- The minute of a packet is that of its trade, by the exchange's time: `last_trade_time`, but no more than `LATE_S`
  before or after its receipt. A packet without a trade time or a price is no trade.
- Kite's packets have a trade time in full mode only. In the others the time of receipt stands in for it, from 09:00 IST
  on; such a packet belongs to a bar if it traded something, or carries no volume.
- What was traded comes from `volume_traded`, the cumulative volume of a *trade day*: the IST date of `last_trade_time`,
  since a snapshot after subscribing carries that of the day before. A packet traded what it adds to the highest volume
  of its trade day so far, in order of receipt. So a step back counts nothing, be it a correction or another capture
  that lags, and nor does a packet of a trade day that is over. Packets of several captures may be mixed.
- The first packet of a trade day traded its whole volume, if that day is the day of receipt and the instrument was
  heard of earlier on it. If it was not, the capture began late: what was traded before is unknown, and the volume is
  only what later ones are compared with. Unless the last trade is all of the volume: then it is the day's first.
- Every IST day of receipt begins anew.
- A packet belongs to the bar of its minute if it traded something, or its trade was within `LATE_S` of its receipt. One
  that only says something of the order book repeats price and time of the last trade, which changes no bar.
- Volume and turnover are NULL where no packet of the bar carries a volume. An index says 0 for ever, and is not traded:
  give its volume as NULL, since 0 would say that nobody traded.

No bar is made for a minute without a trade.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.ticks import NULL_INT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: A trade is believed to be this far from its packet's receipt, either way. Packets came 198 s late when the broker's
#: servers were busy. After five minutes a trade is history: a snapshot, or the order book of what hardly trades.
LATE_S = 300
LATE_US = LATE_S * 1_000_000

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
_DAY_US = 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class Earlier:
    """What packets before the hour's said, of the IST day of receipt in which they begin; shape (instruments,)."""

    instrument_token: Ints
    """Ascending."""
    trade_day: Ints
    """The latest trade day that a volume was of: IST days since 1970-01-01; 0 for none."""
    volume: Ints
    """The highest volume of that trade day; 0 for none."""
    received_us: Ints
    """Receipt of the last packet: Unix microseconds, UTC."""
    seen: Bools
    """Whether a packet carried a volume."""
    printed: Bools
    """Whether a packet belonged to a bar."""


@dataclass(frozen=True, slots=True)
class GapTimes:
    """Times in which packets may have been missed, in Unix microseconds, UTC; shape (gaps and instruments,)."""

    instrument_token: Ints
    start_us: Ints
    end_us: Ints


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one minute, by instrument and time; shape (bars,). Prices are in rupees, quantities in units."""

    instrument_token: Ints
    time: Ints
    """Start of the minute: Unix microseconds, UTC."""
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Ints
    """NULL_INT where no packet carries one."""
    turnover: Floats
    """What each packet traded, times its price. NaN where no packet carries a volume."""
    oi: Ints
    """The last one; NULL_INT where no packet carries one."""
    ticks: Ints
    """Packets of the bar."""
    touches_gap: Bools
    """A gap overlaps the minute; or the volume that a packet adds was traded across one."""
    starts_late: Bools
    """It has the instrument's first packet of the day that belongs to a bar, and volume was there before."""

    def __len__(self) -> int:
        return len(self.time)


def minute_bars(ticks: Mapping[str, NDArray[Any]], earlier: Earlier, gaps: GapTimes, hour_us: int) -> Bars:
    """The bars of the hour that begins at `hour_us` (Unix microseconds, UTC). See above for what a bar is.

    `ticks` are those received from `LATE_S` before the hour to `LATE_S` after it, in any order: `tick_id`, `time`,
    `instrument_token`, `last_trade_time`, `last_price`, `last_traded_quantity`, `volume_traded`, `oi` as in `ticks`,
    int64 and float64, times in Unix microseconds, UTC, NULL_INT or NaN for NULL; and `trade_time_is_receipt`, where the
    one stands in for the other; shape (ticks,). Receipt is ordered by time, then `tick_id`. `earlier` is of those
    before.
    """
    order = np.lexsort((ticks["tick_id"], ticks["time"], ticks["instrument_token"]))
    if not len(order):
        return _no_bars()
    token, received, trade_time, price, volume = (
        ticks[name][order] for name in ("instrument_token", "time", "last_trade_time", "last_price", "volume_traded")
    )
    trades = (trade_time != NULL_INT) & ~np.isnan(price)
    lag = np.where(trades, received - trade_time, 0)
    minute = (received - lag.clip(-LATE_US, LATE_US)) // MINUTE_US * MINUTE_US

    # A group is an instrument's packets of a day of receipt.
    receipt_day = _day(received)
    groups = np.flatnonzero(_changes(token) | _changes(receipt_day))
    before = _before(earlier, token[groups], receipt_day[groups] == _day(hour_us - LATE_US))
    traded, known = _traded(
        volume,
        ticks["last_traded_quantity"][order],
        np.where(trades & (volume != NULL_INT), _day(trade_time), 0),
        receipt_day,
        groups,
        before,
    )
    repeats = ticks["trade_time_is_receipt"][order] & (volume != NULL_INT)
    prints = trades & ((traded > 0) | ((abs(lag) <= LATE_US) & ~repeats))
    printed = _count_before(prints, groups) + _spread(before.printed, groups, len(token)) > 0
    late = prints & ~printed & (known > 0)

    rows = np.flatnonzero(prints & (minute >= hour_us) & (minute < hour_us + HOUR_US))
    if not len(rows):
        return _no_bars()
    number = np.cumsum(_changes(token)) - 1
    slot = number * 60 + (minute - hour_us) // MINUTE_US
    rows = rows[slot[rows].argsort(kind="stable")]
    starts = np.flatnonzero(_changes(slot[rows]))
    ends = np.append(starts[1:], len(rows)) - 1

    price, traded, carries, oi = price[rows], traded[rows], volume[rows] != NULL_INT, ticks["oi"][order[rows]]
    has_volume = np.logical_or.reduceat(carries, starts)
    latest_oi = np.maximum.reduceat(np.where(oi != NULL_INT, np.arange(len(rows)), -1), starts)
    first = rows[starts]
    instruments = token[np.flatnonzero(_changes(token))]
    pairs = _pairs(gaps, instruments)
    last = _before(earlier, instruments, np.ones(len(instruments), np.bool_)).received_us
    across = _across(pairs, number, received, last, hour_us)[rows] & (traded > 0)
    return Bars(
        instrument_token=token[first],
        time=minute[first],
        open=price[starts],
        high=np.maximum.reduceat(price, starts),
        low=np.minimum.reduceat(price, starts),
        close=price[ends],
        volume=np.where(has_volume, np.add.reduceat(traded, starts), NULL_INT),
        turnover=np.where(has_volume, np.add.reduceat(traded * price, starts), np.nan),
        oi=np.where(latest_oi >= 0, oi[latest_oi], NULL_INT),
        ticks=ends + 1 - starts,
        touches_gap=np.logical_or.reduceat(across, starts) | _overlap(pairs, number[first], minute[first], hour_us),
        starts_late=np.logical_or.reduceat(late[rows], starts),
    )


@dataclass(frozen=True, slots=True)
class _Before:
    """`Earlier` by group; all zero where nothing was heard."""

    trade_day: Ints
    volume: Ints
    received_us: Ints
    seen: Bools
    printed: Bools


def _before(earlier: Earlier, token: Ints, of_day: Bools) -> _Before:
    place = earlier.instrument_token.searchsorted(token)
    found = of_day & (place < len(earlier.instrument_token))
    found[found] = earlier.instrument_token[place[found]] == token[found]

    def of(values: NDArray[Any]) -> NDArray[Any]:
        filled = np.zeros(len(token), values.dtype)
        filled[found] = values[place[found]]
        return filled

    return _Before(
        of(earlier.trade_day), of(earlier.volume), of(earlier.received_us), of(earlier.seen), of(earlier.printed)
    )


def _traded(
    volume: Ints, quantity: Ints, trade_day: Ints, receipt_day: Ints, groups: Ints, before: _Before
) -> tuple[Ints, Ints]:
    """What each packet traded, and the volume of the day of receipt that was known before it.

    `trade_day` is 0 where no volume counts.
    """
    seen = _count_before(volume != NULL_INT, groups) + _spread(before.seen, groups, len(volume)) > 0
    day = trade_day.copy()
    day[groups] = np.maximum(day[groups], before.trade_day)
    day = _running_max(day, groups)
    # A run is a group's packets from the first of a trade day to the first of a later one.
    first = _changes(day)
    first[groups] = True
    runs = np.flatnonzero(first)
    highest = np.where((trade_day == day) & (trade_day > 0), volume, 0)
    begins_at_zero = (day[runs] == receipt_day[runs]) & (seen[runs] | (quantity[runs] == highest[runs]))
    base = np.where(begins_at_zero, 0, highest[runs])
    goes_on = day[groups] == before.trade_day
    base[runs.searchsorted(groups[goes_on])] = before.volume[goes_on]
    highest[runs] = np.maximum(highest[runs], base)
    highest = _running_max(highest, runs)
    known = np.append(0, highest[:-1])
    known[runs] = base
    return highest - known, np.where(day == receipt_day, known, 0)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A gap and an instrument each, by the instrument's number."""

    number: Ints
    start_us: Ints
    end_us: Ints


def _pairs(gaps: GapTimes, instruments: Ints) -> _Pairs:
    number = instruments.searchsorted(gaps.instrument_token).clip(max=len(instruments) - 1)
    known = instruments[number] == gaps.instrument_token
    return _Pairs(number[known], gaps.start_us[known], gaps.end_us[known])


def _across(pairs: _Pairs, number: Ints, received: Ints, last: Ints, hour_us: int) -> Bools:
    """The packets between whose receipt, and that of the instrument's packet before, some of a gap lies.

    `last` is when each instrument's last packet before all of these was received: it may have been after the gap.
    """
    keys = _key(number, received, hour_us)
    matters = pairs.end_us > last[pairs.number]
    of, start, end = pairs.number[matters], pairs.start_us[matters], pairs.end_us[matters]
    firsts = keys.searchsorted(_key(of, start, hour_us), "right")
    ends = np.minimum(keys.searchsorted(_key(of, end, hour_us)) + 1, number.searchsorted(of, "right"))
    return _covered(firsts, ends, len(number))


def _overlap(pairs: _Pairs, number: Ints, minute: Ints, hour_us: int) -> Bools:
    """The bars whose minute a gap overlaps."""
    keys = _key(number, minute, hour_us)
    firsts = keys.searchsorted(_key(pairs.number, pairs.start_us - MINUTE_US, hour_us), "right")
    ends = keys.searchsorted(_key(pairs.number, pairs.end_us, hour_us))
    return _covered(firsts, ends, len(number))


def _key(number: Ints, at_us: Ints, hour_us: int) -> Ints:
    """Orders by instrument, then by time. Times before all of the packets, and after, are as good as these ends."""
    begins = hour_us - LATE_US - 1
    span = HOUR_US + 2 * LATE_US + 2
    since: Ints = at_us.clip(begins, begins + span - 1) - begins
    return number * span + since


def _covered(firsts: Ints, ends: Ints, size: int) -> Bools:
    """Whether each place is in any of the stretches [first, end)."""
    some = firsts < ends
    change = np.bincount(firsts[some], minlength=size + 1) - np.bincount(ends[some], minlength=size + 1)
    return np.cumsum(change[:size]) > 0


def _day(at_us: Any) -> Any:
    """IST days since 1970-01-01."""
    return (at_us + IST_OFFSET_S * 1_000_000) // _DAY_US


def _changes(values: Ints) -> Bools:
    """Where a value differs from the one before, the first included."""
    return np.append(True, values[1:] != values[:-1])


def _spread(values: NDArray[Any], starts: Ints, size: int) -> NDArray[Any]:
    """One value a stretch -> one a place."""
    return values.repeat(np.diff(starts, append=size))


def _count_before(flags: Bools, starts: Ints) -> Ints:
    """How many places of the stretch before each are flagged."""
    counts: Ints = np.cumsum(flags) - flags
    before: Ints = counts - _spread(counts[starts], starts, len(flags))
    return before


def _running_max(values: Ints, starts: Ints) -> Ints:
    """The highest value of the stretch so far. Values are not negative."""
    # Each stretch is lifted above all before it.
    height = np.maximum.reduceat(values, starts) + 1
    lift = _spread(np.cumsum(height) - height, starts, len(values))
    highest: Ints = np.maximum.accumulate(values + lift) - lift
    return highest


def _no_bars() -> Bars:
    ints, floats, bools = np.empty(0, np.int64), np.empty(0), np.empty(0, np.bool_)
    return Bars(ints, ints, floats, floats, floats, floats, ints, floats, ints, ints, bools, bools)
