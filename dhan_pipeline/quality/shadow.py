"""Both brokers' ticks of an hour, instrument by instrument: do they say the same, and which is later?

Pure functions over columns. Each broker sends snapshots of the same market, at moments of its own. So one shows a price
that the other has left already, or never shows: that is delivery, not disagreement. What is measured allows for it:

- **Price and volume** are compared second by second, by all that a broker showed in the second and in the one before
  (what it showed last counts on). They agree where these ranges meet, so that a difference has to last for two seconds
  to be one. Prices may be half a tick size apart (`candle_price_ticks`), volumes by a share (`candle_volume_share`).
- **A second is missing** at a broker if the other's price or volume moved in it, and the broker was silent from two
  seconds before to two seconds after. Then every such second of that silence is missing, its edges too.
- **Lag** is measured on states that both showed: a cumulative volume, or the price of an index, which has none. It is
  the difference of the first times of receipt.

What a day's first packet says of the volume of a day before counts as 0: nothing was traded yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.instruments import ExchangeSegment, decimals_of, segments_of
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.sessions import IST, QUIET_KINDS, day_start_ns, sessions
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.pairs import Pair, Unpaired
from dhan_pipeline.ticks import NULL_INT

_SECONDS, _MINUTES = 3600, 60

#: Seconds before and after within which a broker's packet answers the other's.
GRACE_S = 2

#: A pair and a state of it in one number: bits of the state, which is a volume, or a price in 1/10,000 rupees.
_STATE_BITS = 44

#: Columns of ticks: those of `store.shadow.read_ticks`.
Ticks = Mapping[str, NDArray[Any]]

#: Columns of pairs: those of `shadow_comparisons` but for the hour, NaN or NULL_INT where absent.
Columns = dict[str, NDArray[Any]]

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """What the comparison of an hour came to."""

    hour: str
    """Partition key (IST)."""
    pairs: Sequence[Pair]
    columns: Columns
    """Of `pairs`, of shape (pairs,); empty without any."""
    by_minute: _Floats
    """Share of the seconds that agree, in each minute of the hour; NaN where none was compared."""
    ticks: dict[Source, int]
    """Ticks of all instruments, by source."""
    unpaired: Sequence[Unpaired] = field(default_factory=list)
    """Instruments with ticks of one broker, for which the other has no partner among what it was asked for."""

    @property
    def seconds(self) -> int:
        """Seconds that were compared, of all pairs."""
        return self.total("seconds")

    @property
    def agreement(self) -> float | None:
        """Share of them that agree; None without any."""
        return self.total("agreeing_seconds") / self.seconds if self.seconds else None

    @property
    def lag_ms(self) -> float | None:
        """How much later Dhan is than Kite, of the median instrument; None where no lag was measured."""
        lags = self.columns["lag_median_ms"][np.isfinite(self.columns["lag_median_ms"])] if self.pairs else np.empty(0)
        return float(np.median(lags)) if len(lags) else None

    def total(self, column: str) -> int:
        """Sum of a column over all pairs."""
        return int(self.columns[column].sum()) if self.pairs else 0

    def worst(self, number: int = 15) -> list[int]:
        """Places of the pairs with the most seconds that disagree, those first."""
        if not self.pairs:
            return []
        bad = self.columns["seconds"] - self.columns["agreeing_seconds"]
        order = np.lexsort((self.columns["dhan_token"], -bad))[:number]
        return [int(at) for at in order if bad[at]]

    def below(self, share: float) -> list[int]:
        """Places of the pairs of which a smaller share of the seconds agrees, the worst first.

        One that moved while a broker sent nothing in the whole hour is among them, however seldom it moved.
        """
        if not self.pairs:
            return []
        agreement = self.columns["agreeing_seconds"] / np.maximum(self.columns["seconds"], 1)
        for source in SOURCES:
            agreement[(self.columns[f"{source}_ticks"] == 0) & (self.columns[f"{source}_missing_seconds"] > 0)] = 0
        order = agreement.argsort(kind="stable")
        return [int(at) for at in order if self.columns["seconds"][at] and agreement[at] < share]


@dataclass(frozen=True, slots=True)
class _Side:
    """One broker's ticks, by pair and time. Arrays of shape (ticks,)."""

    pair: _Ints
    second: _Ints
    time_us: _Ints
    price: _Floats
    volume: _Floats
    trade_time_us: _Ints


def compare(pairs: Sequence[Pair], ticks: Ticks, start_ns: int, settings: Settings) -> tuple[Columns, _Ints]:
    """Compare both brokers' ticks of an hour that begins at `start_ns` (ns since the Unix epoch, UTC).

    `ticks` are those of the pairs received in the hour, in any order. Returns the columns of the pairs; and the
    seconds compared and those of them that agree, of all pairs by minute, of shape (2, 60). Seconds outside continuous
    trading are not compared, unless `settings.sessions` is `always`.

    Takes over 1 MB a pair for a moment: hand over a hundred or so at a time.
    """
    dhan_tokens = np.array([pair.dhan_token for pair in pairs], np.int64)
    kite_tokens = np.array([pair.kite_token for pair in pairs], np.int64)
    segment = segments_of(dhan_tokens)
    tick_size = np.array([pair.tick_size or 0.0 for pair in pairs], np.float64)
    tick_size = np.where(tick_size > 0, tick_size, 10.0 ** -decimals_of(dhan_tokens).astype(np.float64))
    dhan, kite = (_side(ticks, tokens, start_ns) for tokens in (dhan_tokens, kite_tokens))

    size = len(pairs)
    by_volume = (segment != ExchangeSegment.IDX_I) & ~_lacks_volume(dhan, size) & ~_lacks_volume(kite, size)
    shown_dhan, shown_kite = (
        (_ranges(side, side.price, size), _ranges(side, _where(by_volume, side), size)) for side in (dhan, kite)
    )
    price_gap = _gap(shown_dhan[0], shown_kite[0])
    price_differs = np.abs(price_gap) > settings.candle_price_ticks * tick_size[:, None]
    largest = np.fmax(*(np.abs(high) for _, (_, high) in (shown_dhan, shown_kite)))
    volume_gap = _gap(shown_dhan[1], shown_kite[1])
    volume_gap = np.divide(volume_gap, largest, out=volume_gap, where=largest > 0)
    volume_differs = np.abs(volume_gap) > settings.candle_volume_share

    sent_dhan, sent_kite = (_grid(side, np.ones(len(side.pair), np.bool_), size) for side in (dhan, kite))
    moved_dhan, moved_kite = (_grid(side, _moved(side, by_volume), size) for side in (dhan, kite))
    begun = np.maximum.accumulate(sent_dhan | sent_kite, axis=1)
    compared = begun & _in_session(segment, start_ns, settings)
    price_differs &= compared
    volume_differs &= compared
    dhan_missing = _missing(sent_dhan, moved_kite) & compared
    kite_missing = _missing(sent_kite, moved_dhan) & compared
    agrees = compared & ~(price_differs | volume_differs | dhan_missing | kite_missing)

    at = np.where(price_differs, np.abs(price_gap), -1.0).argmax(axis=1)
    rows = np.arange(size)
    ever_differs = price_differs[rows, at]
    judged_volume = np.where(compared, volume_gap, np.nan)
    volume_at = np.nan_to_num(np.abs(judged_volume), nan=-1.0).argmax(axis=1)
    shared, lag, lag_p99 = _lags(dhan, kite, by_volume, compared & ~volume_differs)
    columns = {
        "dhan_token": dhan_tokens,
        "kite_token": kite_tokens,
        "dhan_ticks": np.bincount(dhan.pair, minlength=size),
        "kite_ticks": np.bincount(kite.pair, minlength=size),
        "dhan_seconds": sent_dhan.sum(axis=1),
        "kite_seconds": sent_kite.sum(axis=1),
        "seconds": compared.sum(axis=1),
        "agreeing_seconds": agrees.sum(axis=1),
        "price_differs_seconds": price_differs.sum(axis=1),
        "price_difference": np.where(ever_differs, price_gap[rows, at].round(4), np.nan),
        "price_differs_most_at": np.where(ever_differs, start_ns // 1000 + at * 1_000_000, NULL_INT),
        "volume_differs_seconds": volume_differs.sum(axis=1),
        "volume_difference": judged_volume[rows, volume_at] + 0.0,  # no -0
        "dhan_volume": _last_volume(dhan, size),
        "kite_volume": _last_volume(kite, size),
        "dhan_missing_seconds": dhan_missing.sum(axis=1),
        "kite_missing_seconds": kite_missing.sum(axis=1),
        "shared_states": shared,
        "lag_median_ms": lag,
        "lag_p99_ms": lag_p99,
        "dhan_trade_delay_ms": _trade_delay(dhan, size),
        "kite_trade_delay_ms": _trade_delay(kite, size),
    }
    return columns, np.stack([_of_minutes(compared), _of_minutes(agrees)])


def sources_agree(result: ShadowComparison, settings: Settings) -> CheckOutcome:
    """The hour's agreement, judged: over all instruments, and of each by itself."""
    name, unit = "sources_agree", "%"
    warn, error = settings.shadow_agree_warn, settings.shadow_agree_error
    limits = f"warning below {warn:.1%}, or where an instrument is below {error:.1%}; critical below {error:.1%}"
    if result.agreement is None:
        sentence, passed = why_nothing_is_compared(result)
        return CheckOutcome(name, passed, "WARN", None, unit, limits, sentence)
    found = (
        f"Both brokers agree in {result.agreement:.2%} of {result.seconds:,} seconds of {len(result.pairs):,}"
        f" instruments of {result.hour}."
    )
    below = result.below(error)
    if below:
        names = ", ".join(result.pairs[at].symbol for at in below[:5]) + (", …" if len(below) > 5 else "")
        found += (
            f" {len(below):,} of the instruments agree in less than {error:.0%} of theirs, or one broker sent"
            f" nothing of them: {names}."
        )
    passed = result.agreement >= warn and not below
    if not passed:
        found += " " + _advice(result)
    if result.lag_ms is not None:
        later, earlier = ("Dhan", "Kite") if result.lag_ms >= 0 else ("Kite", "Dhan")
        found += f" {later} shows a trade {abs(result.lag_ms):,.0f} ms later than {earlier}."
    if result.unpaired:
        found += f" {len(result.unpaired):,} instruments were captured of one broker only, and not compared."
    return CheckOutcome(
        name,
        passed,
        "ERROR" if result.agreement < error else "WARN",
        round(100 * result.agreement, 3),
        unit,
        limits,
        found,
    )


def why_nothing_is_compared(result: ShadowComparison) -> tuple[str, bool]:
    """A sentence that says it, and whether that is in order."""
    present = [source.capitalize() for source, ticks in result.ticks.items() if ticks]
    if len(present) < 2:
        whose = f"only {present[0]}'s" if present else "no"
        return f"There are {whose} ticks of the hour {result.hour}: there is nothing to compare.", True
    if not result.pairs:
        return (
            f"Both brokers have ticks of the hour {result.hour}, and none of the instruments is the same: compare the"
            " two lists of subscriptions, and materialise `instruments` of both brokers.",
            False,
        )
    return f"No instrument that both brokers have was in session in the hour {result.hour}.", True


def _advice(result: ShadowComparison) -> str:
    kinds = {
        "price_differs_seconds": "prices differ: if they do in whole instruments, one of the brokers is stuck or wrong"
        " about them; compare `price_difference` with the price",
        "volume_differs_seconds": "volumes differ: one of the brokers counts otherwise, or its day began otherwise",
        "dhan_missing_seconds": "Dhan sent nothing while Kite's price or volume moved: look at Dhan's gaps",
        "kite_missing_seconds": "Kite sent nothing while Dhan's price or volume moved: look at Kite's gaps",
    }
    most = max(kinds, key=result.total)
    return f"Mostly, in {result.total(most):,} seconds, {kinds[most]}. `shadow_comparisons` has each instrument."


def _side(ticks: Ticks, tokens: _Ints, start_ns: int) -> _Side:
    by_token = tokens.argsort()
    ours = np.flatnonzero(np.isin(ticks["instrument_token"], tokens))
    pair = by_token[tokens[by_token].searchsorted(ticks["instrument_token"][ours])]
    order = np.lexsort((ticks["tick_id"][ours], ticks["time"][ours], pair))
    ours, pair = ours[order], pair[order]
    time_us, trade_time_us = ticks["time"][ours], ticks["last_trade_time"][ours]
    volume = ticks["volume_traded"][ours]
    of_before = (trade_time_us != NULL_INT) & (trade_time_us < day_start_ns(start_ns) // 1000)
    return _Side(
        pair=pair,
        second=((time_us - start_ns // 1000) // 1_000_000).clip(0, _SECONDS - 1),
        time_us=time_us,
        price=ticks["last_price"][ours],
        volume=np.where(volume == NULL_INT, np.nan, np.where(of_before, 0, volume)),
        trade_time_us=trade_time_us,
    )


def _lacks_volume(side: _Side, size: int) -> _Bools:
    """Whether a pair has ticks and none of them carries a volume."""
    with_volume = np.bincount(side.pair[~np.isnan(side.volume)], minlength=size)
    lacks: _Bools = (np.bincount(side.pair, minlength=size) > 0) & (with_volume == 0)
    return lacks


def _where(by_volume: _Bools, side: _Side) -> _Floats:
    return np.where(by_volume[side.pair], side.volume, np.nan)


def _last_volume(side: _Side, size: int) -> _Ints:
    last = np.full(size, NULL_INT)
    some = ~np.isnan(side.volume)
    last[side.pair[some]] = side.volume[some].astype(np.int64)  # of several, the last one stays
    return last


def _grid(side: _Side, marked: _Bools, size: int) -> _Bools:
    """Whether any of the marked ticks is in a second, of shape (pairs, seconds)."""
    grid = np.zeros((size, _SECONDS), np.bool_)
    grid[side.pair[marked], side.second[marked]] = True
    return grid


def _moved(side: _Side, by_volume: _Bools) -> _Bools:
    """Whether a tick's price, or volume where it counts, is another than its pair's tick before had."""
    moved = np.zeros(len(side.pair), np.bool_)
    same = side.pair[1:] == side.pair[:-1]
    for values in (side.price, _where(by_volume, side)):
        known = ~np.isnan(values)
        moved[1:] |= same & known[1:] & known[:-1] & (values[1:] != values[:-1])
    return moved


def _ranges(side: _Side, values: _Floats, size: int) -> tuple[_Floats, _Floats]:
    """Lowest and highest of what a broker showed in each second and the one before, of shape (pairs, seconds).

    NaN from the hour's beginning until it has shown something for a whole second.
    """
    known = ~np.isnan(values)
    cell, values = side.pair[known] * _SECONDS + side.second[known], values[known]
    low, high, last = (np.full((size, _SECONDS), np.nan) for _ in range(3))
    if len(cell):
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        low.ravel()[cell[starts]] = np.minimum.reduceat(values, starts)
        high.ravel()[cell[starts]] = np.maximum.reduceat(values, starts)
        last.ravel()[cell[starts]] = values[np.append(starts[1:], len(cell)) - 1]
    shown = np.where(np.isnan(last), 0, np.arange(_SECONDS))
    carried = np.take_along_axis(last, np.maximum.accumulate(shown, axis=1), axis=1)
    low[:, 1:] = np.fmin(low[:, 1:], carried[:, :-1])
    high[:, 1:] = np.fmax(high[:, 1:], carried[:, :-1])
    # NaN where the second before is not known.
    low[:, 1:] = np.minimum(low[:, 1:], low[:, :-1])
    high[:, 1:] = np.maximum(high[:, 1:], high[:, :-1])
    low[:, 0] = high[:, 0] = np.nan
    return low, high


def _gap(dhan: tuple[_Floats, _Floats], kite: tuple[_Floats, _Floats]) -> _Floats:
    """How far apart two ranges are, positive where Dhan's is above; 0 where they meet, NaN where one is not known."""
    above, below = dhan[0] - kite[1], dhan[1] - kite[0]
    return np.where(above > 0, above, np.where(below < 0, below, above * 0))


def _missing(sent: _Bools, moved_elsewhere: _Bools) -> _Bools:
    """Seconds that a broker missed. What came just before or after the hour is not known: it gets the doubt."""
    near = sent.copy()
    near[:, :GRACE_S] = near[:, -GRACE_S:] = True
    for seconds in range(1, GRACE_S + 1):
        near[:, seconds:] |= sent[:, :-seconds]
        near[:, :-seconds] |= sent[:, seconds:]
    begins = sent.copy()
    begins[:, 0] = True
    silence = np.cumsum(begins.ravel()) - 1
    is_gap = np.bincount(silence, (moved_elsewhere & ~near).ravel()) > 0
    missing: _Bools = moved_elsewhere & ~sent & is_gap[silence].reshape(sent.shape)
    return missing


def _in_session(segment: NDArray[np.uint8], start_ns: int, settings: Settings) -> _Bools:
    """Whether an instrument trades continuously in a second, of shape (pairs, seconds)."""
    if settings.sessions == "always":
        return np.ones((len(segment), _SECONDS), np.bool_)
    start = datetime.fromtimestamp(start_ns // 1_000_000_000, IST)
    of_segment = np.zeros((256, _SECONDS), np.bool_)
    for known in ExchangeSegment:
        for session in sessions(known, start.date()):
            if session.kind not in QUIET_KINDS:
                opens, closes = (max(0, int((at - start).total_seconds())) for at in (session.open, session.close))
                of_segment[known, opens:closes] = True
    return of_segment[segment]


def _lags(dhan: _Side, kite: _Side, by_volume: _Bools, sound: _Bools) -> tuple[_Ints, _Floats, _Floats]:
    """Of each pair: states that both showed, and by how many ms Dhan was later, the median, and 99 % of it either way.

    `sound` says in which seconds they count, of shape (pairs, seconds).
    """
    dhan_states, dhan_at = _first_shown(dhan, by_volume, sound)
    kite_states, kite_at = _first_shown(kite, by_volume, sound)
    states, i, j = np.intersect1d(dhan_states, kite_states, assume_unique=True, return_indices=True)
    pair, size = states >> _STATE_BITS, len(by_volume)
    lag_ms = (dhan.time_us[dhan_at[i]] - kite.time_us[kite_at[j]]) / 1000
    return (
        np.bincount(pair, minlength=size),
        _quantile(pair, lag_ms, size, 0.5),
        _quantile(pair, np.abs(lag_ms), size, 0.99),
    )


def _first_shown(side: _Side, by_volume: _Bools, sound: _Bools) -> tuple[_Ints, _Ints]:
    """States, a number each, and the tick that showed them first; without those that were there before the hour."""
    value = np.where(by_volume[side.pair], side.volume, (side.price * 10_000).round())
    known = np.flatnonzero(~np.isnan(value))
    state = side.pair[known] << _STATE_BITS | value[known].astype(np.int64) & (1 << _STATE_BITS) - 1
    states, first = np.unique(state, return_index=True)
    first_of_pair = np.diff(side.pair[known], prepend=-1) != 0
    kept = ~first_of_pair[first] & sound[side.pair[known[first]], side.second[known[first]]]
    return states[kept], known[first[kept]]


def _trade_delay(side: _Side, size: int) -> _Floats:
    """From the exchange's time of a trade to the tick that first tells of it, ms, the median of each pair."""
    new = np.zeros(len(side.pair), np.bool_)
    later = side.trade_time_us[1:] > side.trade_time_us[:-1]
    new[1:] = (side.pair[1:] == side.pair[:-1]) & later & (side.trade_time_us[:-1] != NULL_INT)
    return _quantile(side.pair[new], (side.time_us[new] - side.trade_time_us[new]) / 1000, size, 0.5)


def _quantile(pair: _Ints, values: _Floats, size: int, share: float) -> _Floats:
    """The quantile of each pair's values; NaN where it has none."""
    values = values[np.lexsort((values, pair))]
    count = np.bincount(pair, minlength=size)
    some = count > 0
    place = (np.cumsum(count) - count)[some] + share * (count[some] - 1)
    lower = np.floor(place).astype(np.int64)
    upper = np.ceil(place).astype(np.int64)
    found = np.full(size, np.nan)
    found[some] = values[lower] + (values[upper] - values[lower]) * (place - lower)
    return found


def _of_minutes(marked: _Bools) -> _Ints:
    counts: _Ints = marked.reshape(-1, _MINUTES, _SECONDS // _MINUTES).sum(axis=(0, 2), dtype=np.int64)
    return counts
