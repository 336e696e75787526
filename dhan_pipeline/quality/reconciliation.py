"""Our bars of a minute against the broker's: which differ, what explains it, and what that says about the day.

Pure functions over columns. The broker's feed is conflated: its socket leaves out prints that its own chart shows, so
on the real feed some highs, lows and minute volumes differ without anybody being at fault. The thresholds are settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.instruments import ExchangeSegment, decimals_of, segments_of, source_of
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.quality.pictures import BAD, GOOD
from dhan_pipeline.sessions import IST, MINUTE_NS, QUIET_KINDS, sessions
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, source_of_capture
from dhan_pipeline.store.gaps import StoredGap
from dhan_pipeline.ticks import NULL_INT

Field = Literal["missing", "extra", "open", "high", "low", "close", "volume", "day_volume"]

#: What may differ, as `candle_differences.field` has it.
FIELDS: tuple[Field, ...] = ("missing", "extra", "open", "high", "low", "close", "volume", "day_volume")
_PRICES: tuple[Field, ...] = ("open", "high", "low", "close")

#: What may explain it, as `candle_differences.explained_by` has it.
EXPLANATIONS = ("", "gap", "late start")
_UNEXPLAINED, _GAP, _LATE_START = range(3)

_MINUTES = 1440
_MINUTE_S = 60

#: Minutes that a bar of the picture stands for.
PICTURE_MINUTES = 15
_PICTURE_BARS = 48

#: Share of the instruments asked for below which a day of the broker's bars is of little use.
_FETCHED_ERROR = 0.95

#: Columns of bars.
Bars = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Differences:
    """Rows of `candle_differences`, by instrument and time. Arrays of shape (differences,)."""

    instrument_token: NDArray[np.int64]
    time_s: NDArray[np.int64]
    """Start of the minute, or of the IST day, in seconds since the Unix epoch, UTC."""
    field: NDArray[np.int8]
    """Place in FIELDS."""
    ours: NDArray[np.float64]
    """NaN in a missing bar. Rupees or units."""
    brokers: NDArray[np.float64]
    """NaN in an extra bar."""
    explained_by: NDArray[np.int8]
    """Place in EXPLANATIONS."""

    def __len__(self) -> int:
        return len(self.field)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a day's comparison came to."""

    day: date
    instruments: int
    """Of which there are bars to compare."""
    bars: int
    """Minutes that were compared: those in which either has a bar."""
    explained: int
    """Of them, those that differ, and a gap or a late start explains why."""
    unexplained: int
    """Of them, those that differ without an explanation."""
    stand_ins: int
    """Minutes left out, because the broker's bar stands in for ours."""
    differences: Differences
    by_minute: NDArray[np.float64]
    """Share of the bars that agree, in each PICTURE_MINUTES of the day (IST); NaN where there was none to compare."""
    left_out: int = 0
    """Instruments with candles, of which the broker's bars were not had."""

    @property
    def agreement(self) -> float | None:
        """Share of the bars that agree, of those whose difference nothing explains; None without any."""
        judged = self.bars - self.explained
        return 1 - self.unexplained / judged if judged else None

    def by_field(self) -> dict[Field, tuple[int, int]]:
        """Of each field that differs somewhere, the differences without and with an explanation."""
        explained = self.differences.explained_by != _UNEXPLAINED
        counts = {
            name: (int(np.sum(of_field & ~explained)), int(np.sum(of_field & explained)))
            for place, name in enumerate(FIELDS)
            for of_field in [self.differences.field == place]
        }
        return {name: both for name, both in counts.items() if any(both)}

    def worst(self, number: int = 10) -> list[tuple[int, int, int]]:
        """Instruments with the most differences: token, those without an explanation, all."""
        tokens, place = np.unique(self.differences.instrument_token, return_inverse=True)
        every = np.bincount(place, minlength=len(tokens))
        bare = np.bincount(place, self.differences.explained_by == _UNEXPLAINED, len(tokens)).astype(np.int64)
        order = np.lexsort((tokens, -every, -bare))[:number]
        return [(int(tokens[i]), int(bare[i]), int(every[i])) for i in order]


def reconcile(
    day: date,
    ours: Bars,
    brokers: Bars,
    our_volumes: Mapping[int, int],
    broker_volumes: Mapping[int, int],
    gaps: Sequence[StoredGap],
    tick_sizes: Mapping[int, float],
    settings: Settings,
) -> Reconciliation:
    """Compare the bars of an IST day.

    `ours` and `brokers` have columns of shape (bars,), no instrument's minute twice: instrument_token, time
    (microseconds since the Unix epoch, UTC), open, high, low, close (rupees), volume (units; ours may be NULL_INT:
    unknown, and is not compared); `ours` also rest, touches_gap, starts_late (bool). `our_volumes` and
    `broker_volumes` are the day's, by instrument; `tick_sizes` are in rupees, and an instrument without one gets the
    last decimal of its segment's prices. `gaps` are those that overlap the day.

    Minutes outside continuous trading are left out unless `settings.sessions` is `always`: the broker's history has
    bars of the pre-opening. So are minutes in which the broker's bar stands in for ours, and bars of the broker's in
    which nothing tradable was traded.
    """
    midnight = int(datetime.combine(day, time(), IST).timestamp())
    tokens = np.unique(np.concatenate([ours["instrument_token"], brokers["instrument_token"]]).astype(np.int64))
    in_session = _in_session(tokens, day, settings)

    def keys(bars: Bars) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the bars in session, in order: instrument and minute in one number, and the place in the columns."""
        minute = (bars["time"] // 1_000_000 - midnight) // _MINUTE_S
        within = np.flatnonzero((minute >= 0) & (minute < _MINUTES))
        key = tokens.searchsorted(bars["instrument_token"][within]) * _MINUTES + minute[within]
        within, key = within[in_session.ravel()[key]], key[in_session.ravel()[key]]
        order = key.argsort()
        return key[order], within[order]

    our_key, our_place = keys(ours)
    their_key, their_place = keys(brokers)
    stand_in = our_key[ours["rest"][our_place]]
    kept = ~np.isin(our_key, stand_in)
    our_key, our_place = our_key[kept], our_place[kept]
    # A minute in which nothing was traded is no bar; an index is not traded at all.
    index = segments_of(tokens)[their_key // _MINUTES] == ExchangeSegment.IDX_I
    traded = (brokers["volume"][their_place] > 0) | index | np.isin(their_key, our_key)
    kept = traded & ~np.isin(their_key, stand_in)
    their_key, their_place = their_key[kept], their_place[kept]

    explained = _explanations(tokens, midnight, gaps, ours, our_key, our_place)
    found: list[tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []

    def note(field: Field, key: NDArray[np.int64], our: NDArray[Any], their: NDArray[Any]) -> None:
        found.append((FIELDS.index(field), key, our.astype(np.float64), their.astype(np.float64)))

    missing, extra = ~np.isin(their_key, our_key), ~np.isin(our_key, their_key)
    nothing = np.full(max(len(missing), len(extra)), np.nan)
    note("missing", their_key[missing], nothing[: missing.sum()], brokers["close"][their_place[missing]])
    note("extra", our_key[extra], ours["close"][our_place[extra]], nothing[: extra.sum()])
    both, i, j = np.intersect1d(our_key, their_key, assume_unique=True, return_indices=True)
    step = _tick_sizes(tokens, tick_sizes)[both // _MINUTES]
    for name in _PRICES:
        our, their = ours[name][our_place[i]], brokers[name][their_place[j]]
        # Prices are multiples of the step: what floating point adds to half of it does not matter.
        differs = np.abs(our - their) > settings.candle_price_ticks * step
        note(name, both[differs], our[differs], their[differs])
    our, their = ours["volume"][our_place[i]], brokers["volume"][their_place[j]]
    differs = (our != NULL_INT) & (np.abs(our - their) > settings.candle_volume_share * their)
    note("volume", both[differs], our[differs], their[differs])

    bars = np.union1d(our_key, their_key)
    differing = np.unique(np.concatenate([key for _, key, _, _ in found]))
    unexplained = differing[explained[differing] == _UNEXPLAINED]
    judged = bars[~np.isin(bars, differing[explained[differing] != _UNEXPLAINED])]
    differences = _joined(found, tokens, midnight, explained)
    of_days = _day_volumes(
        midnight, our_volumes, broker_volumes, explained.reshape(len(tokens), _MINUTES), tokens, settings
    )
    return Reconciliation(
        day=day,
        instruments=len(np.unique(bars // _MINUTES)),
        bars=len(bars),
        explained=len(differing) - len(unexplained),
        unexplained=len(unexplained),
        stand_ins=len(stand_in),
        differences=_sorted(differences, of_days),
        by_minute=_by_minute(judged, unexplained),
    )


def candles_agree(result: Reconciliation, settings: Settings) -> CheckOutcome:
    """The day's agreement, judged."""
    name, unit = "candles_agree", "%"
    limits = f"warning below {settings.candles_agree_warn:.1%}, critical below {settings.candles_agree_error:.1%}"
    if result.agreement is None:
        return CheckOutcome(name, False, "WARN", None, unit, limits, _why_nothing_is_judged(result))
    found = (
        f"{result.agreement:.2%} of {result.bars - result.explained:,} bars of {result.day} agree with the broker's."
        f" {result.explained:,} more differ where a noted gap or a late start explains it."
    )
    if result.left_out:
        found += f" {result.left_out:,} instruments were not compared, because the broker's bars of them are missing."
    passed = result.agreement >= settings.candles_agree_warn
    if not passed:
        missing, extra = (result.by_field().get(name, (0, 0))[0] for name in ("missing", "extra"))
        if missing > result.unexplained / 2:
            found += (
                f" {missing:,} minutes that the broker has are missing without a noted gap: look for rejected packets,"
                " and materialise `ticks` and `candles_1m` of their hours again."
            )
        elif extra > result.unexplained / 2:
            found += (
                f" The broker's history lacks {extra:,} minutes that we have: it is late at times. Materialise"
                " `broker_candles` of the day with `again`, then this."
            )
        else:
            found += (
                " The feed leaves out some prints that the broker's chart has, so single highs, lows and volumes"
                " differ; if whole instruments do, look at their rows of `candle_differences`."
            )
    return CheckOutcome(
        name,
        passed,
        "ERROR" if result.agreement < settings.candles_agree_error else "WARN",
        round(100 * result.agreement, 3),
        unit,
        limits,
        found,
    )


def _why_nothing_is_judged(result: Reconciliation) -> str:
    if result.bars:
        return (
            f"Each of the {result.bars:,} bars of {result.day} that could be compared differs, and a noted gap or a"
            " late start explains it: there is nothing to judge."
        )
    if result.stand_ins:
        return (
            f"All {result.stand_ins:,} bars of {result.day} that could be compared are the broker's own, which stand in"
            " for ours: there is nothing to judge."
        )
    return f"There was no bar of {result.day} to compare: materialise `candles_1m` and `broker_candles` of the day."


def bars_fetched(
    wanted: int, expired: int, failed: Mapping[str, int], last_error: str, refusals: Sequence[str] = ()
) -> CheckOutcome:
    """Whether the brokers' bars came for all instruments that were asked for.

    Nobody is to blame for those that `expired`. `failed` are other instruments whose bars did not come, by reason;
    `refusals` say why a broker could not be asked at all.
    """
    available, failures = wanted - expired, sum(failed.values())
    share = 1 - failures / available if available else 1.0
    found = f"Bars of {available - failures:,} of {available:,} instruments were had."
    if failures:
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in failed.items())
        found += f" Not of the others: {reasons}. Materialise the day again to ask for those that may still come."
        found += f" One of the answers: {last_error}" * bool(last_error)
    if expired:
        found += (
            f" {expired:,} more have expired, and are not available: of those Dhan gives options that were near the"
            " money, and Kite nothing."
        )
    found = " ".join((found, *refusals))
    return CheckOutcome(
        "bars_fetched",
        not failures and not refusals,
        "ERROR" if share < _FETCHED_ERROR or refusals else "WARN",
        round(100 * share, 3),
        "%",
        f"warning below 100 %, critical below {_FETCHED_ERROR:.0%}",
        found,
    )


def agreement_picture(by_minute: NDArray[np.float64]) -> str:
    """The agreement over the day as an SVG of under 670 bytes, as the UI shows in place: a bar each PICTURE_MINUTES.

    Bars reach from 90 % at the foot to 100 %; one that stays below 99 % is red. Only the hours that have bars are
    drawn. Of a day that is longer than exchanges are open, a bar is the worst of a few.
    """
    some = np.flatnonzero(~np.isnan(by_minute))
    first, last = (int(some[0]), int(some[-1])) if len(some) else (0, 0)
    each = -(-(last + 1 - first) // _PICTURE_BARS)
    shares = np.fmin.reduceat(by_minute[first : last + 1], range(0, last + 1 - first, each))
    paths: dict[str, list[str]] = {GOOD: [], BAD: []}
    for x, share in enumerate(shares):
        if not np.isnan(share):
            height = round(1 + 39 * max(0.0, (share - 0.9) / 0.1))
            paths[GOOD if share >= 0.99 else BAD].append(f"M{5 * x} 40v-{height}")
    strokes = "".join(f'<path stroke="{colour}" d="{"".join(d)}"/>' for colour, d in paths.items() if d)
    width = 5 * len(shares)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width}" viewBox="-3 0 {width} 40"'
        f' stroke-width="4">{strokes}</svg>'
    )


def _in_session(tokens: NDArray[np.int64], day: date, settings: Settings) -> NDArray[np.bool_]:
    """Whether an instrument trades continuously in a minute, of shape (tokens, minutes of the day)."""
    if settings.sessions == "always":
        return np.ones((len(tokens), _MINUTES), np.bool_)
    of_segment = np.zeros((256, _MINUTES), np.bool_)
    for segment in ExchangeSegment:
        for session in sessions(segment, day):
            if session.kind not in QUIET_KINDS:
                opens, closes = (at.hour * 60 + at.minute for at in (session.open, session.close))
                of_segment[segment, opens:closes] = True
    return of_segment[segments_of(tokens)]


def _tick_sizes(tokens: NDArray[np.int64], known: Mapping[int, float]) -> NDArray[np.float64]:
    sizes = np.array([known.get(token) or 0.0 for token in tokens.tolist()], np.float64)
    return np.where(sizes > 0, sizes, np.power(10.0, -decimals_of(tokens).astype(np.float64)))


def _explanations(
    tokens: NDArray[np.int64],
    midnight: int,
    gaps: Sequence[StoredGap],
    ours: Bars,
    our_key: NDArray[np.int64],
    our_place: NDArray[np.int64],
) -> NDArray[np.int8]:
    """What would explain a difference, by key: place in EXPLANATIONS."""
    grid = np.zeros((len(tokens), _MINUTES), np.int8)
    late = our_key[ours["starts_late"][our_place]]
    for key in late.tolist():  # one an instrument at most
        row, minute = divmod(key, _MINUTES)
        grid[row, : minute + 1] = _LATE_START
    midnight_ns = midnight * 1_000_000_000
    whose = {
        source: np.array([source_of(token) == source for token in tokens.tolist()], np.bool_) for source in SOURCES
    }
    for gap in gaps:
        first = max(0, (gap.started_ns - midnight_ns) // MINUTE_NS)
        last = _MINUTES - 1 if gap.ended_ns is None else min(_MINUTES - 1, (gap.ended_ns - midnight_ns) // MINUTE_NS)
        every = whose[source_of_capture(gap.capture)]
        concerned = np.isin(tokens, gap.instruments) if len(gap.instruments) else every
        grid[concerned, first : last + 1] = _GAP
    flat = grid.ravel()
    flat[our_key[ours["touches_gap"][our_place]]] = _GAP
    return flat


def _joined(
    found: Sequence[tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]],
    tokens: NDArray[np.int64],
    midnight: int,
    explained: NDArray[np.int8],
) -> Differences:
    key = np.concatenate([key for _, key, _, _ in found])
    return Differences(
        instrument_token=tokens[key // _MINUTES],
        time_s=midnight + key % _MINUTES * _MINUTE_S,
        field=np.concatenate([np.full(len(key), place, np.int8) for place, key, _, _ in found]),
        ours=np.concatenate([our for _, _, our, _ in found]),
        brokers=np.concatenate([their for _, _, _, their in found]),
        explained_by=explained[key],
    )


def _day_volumes(
    midnight: int,
    ours: Mapping[int, int],
    brokers: Mapping[int, int],
    explained: NDArray[np.int8],
    tokens: NDArray[np.int64],
    settings: Settings,
) -> Differences:
    """The day's volumes that differ. A gap at any time explains it, else a late start."""
    known = sorted(ours.keys() & brokers.keys())
    token = np.array(known, np.int64)
    our = np.array([ours[key] for key in known], np.float64)
    their = np.array([brokers[key] for key in known], np.float64)
    differs = (np.abs(our - their) > settings.candle_volume_share * their) & (
        segments_of(token) != ExchangeSegment.IDX_I
    )
    token, our, their = token[differs], our[differs], their[differs]
    by = np.zeros(len(token), np.int8)
    if len(token) and len(tokens):
        row = tokens.searchsorted(token).clip(0, len(tokens) - 1)
        there = tokens[row] == token
        for explanation in (_LATE_START, _GAP):
            by[there & (explained[row] == explanation).any(axis=1)] = explanation
    return Differences(
        token,
        np.full(len(token), midnight, np.int64),
        np.full(len(token), FIELDS.index("day_volume"), np.int8),
        our,
        their,
        by,
    )


def _sorted(*parts: Differences) -> Differences:
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in Differences.__dataclass_fields__
    }
    order = np.lexsort((columns["field"], columns["time_s"], columns["instrument_token"]))
    return Differences(**{name: column[order] for name, column in columns.items()})


def _by_minute(judged: NDArray[np.int64], unexplained: NDArray[np.int64]) -> NDArray[np.float64]:
    bins = _MINUTES // PICTURE_MINUTES
    every, bad = (
        np.bincount(key % _MINUTES // PICTURE_MINUTES, minlength=bins).astype(np.float64)
        for key in (judged, unexplained)
    )
    share: NDArray[np.float64] = np.divide(every - bad, every, out=np.full(bins, np.nan), where=every > 0)
    return share
