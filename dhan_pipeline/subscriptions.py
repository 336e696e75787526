"""Which instruments to capture: a person's rules (YAML), and the list of subscriptions that they come to (CSV).

Rules are resolved against the instruments of the day, so that "the nearest expiry" moves on by itself. The capture
reads only the resolved list.

    rules:
      - indices: [NIFTY, INDIA VIX]
      - symbols: [RELIANCE, TCS]       # or all; series: EQ
        segment: NSE_EQ
      - symbols: F&O                   # the shares of which NSE has futures and options
      - futures: [NIFTY, RELIANCE]     # of these underlyings, or all, or F&O
        expiries: 2                    # the nearest two
      - options: [NIFTY]
        expiries: 2
        around_spot: 20                # strikes on each side of the price, which they follow through the day
      - options: [BANKNIFTY]
        expiries: 1
        strikes: 40                    # those nearest to the middle of what is listed, where they stay
        mode: full                     # ticker, quote or full
        limit: 50
      - list: watchlist.csv            # columns exchange_segment, security_id; or instrument_token

The first rule that selects an instrument decides its mode. The same rules serve every broker: names are the exchange's,
an index has that of its derivatives or its own, and what a list names by the exchange's number (Dhan's security id,
Kite's exchange token) is found by it. Only the numbers of indices are a broker's own.
"""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from dhan_pipeline.chains import Chain
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.instruments import (
    ExchangeSegment,
    generate_instrument_token,
    segment_of,
    source_of,
    split_instrument_token,
    split_kite_token,
    token_of,
)
from dhan_pipeline.sessions import IST
from dhan_pipeline.sources import Source
from dhan_pipeline.ticks import Mode

if TYPE_CHECKING:  # the capture reads the resolved list, and needs no pandas for it
    import pandas as pd

#: What a broker's connections hold: five of Dhan's, three of Kite's.
MAX_SUBSCRIPTIONS: dict[Source, int] = {"dhan": 25_000, "kite": 9_000}

Selector = Literal["indices", "symbols", "futures", "options", "list"]

#: Stands for the shares of which NSE has derivatives, in place of a symbol or an underlying.
F_AND_O = "F&O"

#: What may stand beside each selector.
_OPTIONS: dict[Selector, tuple[str, ...]] = {
    "indices": ("mode", "limit"),
    "symbols": ("segment", "series", "mode", "limit"),
    "futures": ("segment", "expiries", "mode", "limit"),
    "options": ("segment", "expiries", "strikes", "around_spot", "mode", "limit"),
    "list": ("segment", "mode", "limit"),
}
#: Where the shares are traded that a segment has derivatives of.
_SHARES_OF = {ExchangeSegment.NSE_FNO: ExchangeSegment.NSE_EQ, ExchangeSegment.BSE_FNO: ExchangeSegment.BSE_EQ}
_DEFAULT_SEGMENT = {
    "indices": ExchangeSegment.IDX_I,
    "symbols": ExchangeSegment.NSE_EQ,
    "futures": ExchangeSegment.NSE_FNO,
    "options": ExchangeSegment.NSE_FNO,
}

_FIELDS = ("instrument_token", "exchange_segment", "security_id", "mode", "symbol", "follows")


class SubscriptionError(PipelineError):
    """The rules, or the resolved list, cannot be used."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One instrument to capture."""

    instrument_token: int
    mode: Mode
    symbol: str
    follows: int | None = None
    """The instrument token of the underlying near whose price it is; an underlying that is followed has its own."""

    @property
    def moves(self) -> bool:
        """Whether it is there only while it is near a price."""
        return self.follows is not None and self.follows != self.instrument_token

    @property
    def exchange_segment(self) -> ExchangeSegment:
        """The segment in which it is traded."""
        return segment_of(self.instrument_token)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as a person wrote it."""

    line: int
    """Where it begins in its file, from 1."""
    selector: Selector
    names: tuple[str, ...]
    """Symbols, underlyings or, of a `list`, tokens and numbers with their segments; empty for all."""
    mode: Mode
    segment: ExchangeSegment | None
    series: str | None = None
    expiries: int | None = None
    """The nearest so many; None is all."""
    strikes: int | None = None
    """So many of each expiry, nearest to the middle; None is all."""
    around_spot: int | None = None
    """So many on each side of the one at the money."""
    limit: int | None = None

    def __str__(self) -> str:
        names = ", ".join(self.names[:3]) + (", …" if len(self.names) > 3 else "") if self.names else "all"
        return f"{self.selector}: {names}"


@dataclass(frozen=True, slots=True)
class Spot:
    """The price around which a chain's strikes were chosen."""

    underlying: str
    instrument_token: int | None
    """Whose price it is: the index's, the share's, or the nearest future's. None where there is none of them."""
    price: float | None = None
    """Rupees. None where it is not known: the middle of the listed strikes stands in."""
    at: datetime | None = None


def spot_in_words(spot: Spot) -> str:
    """The price, and when it was, for a person."""
    if spot.price is not None and spot.at is not None:
        return f"{spot.underlying} at {spot.price:,.2f}, its price of {spot.at.astimezone(IST):%d %b, %H:%M}"
    if spot.instrument_token is None:
        return f"the middle of {spot.underlying}'s strikes, where they stay: there is no index, share or future of it"
    return f"the middle of {spot.underlying}'s strikes, until the first price comes"


#: The last price of each of these instrument tokens, and when that was, as far as it is known.
LastPrices = Callable[[Sequence[int]], Mapping[int, tuple[float, datetime]]]


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """What one rule came to."""

    line: int
    rule: str
    selected: int
    added: int
    """Of the selected, those that no earlier rule had."""
    missing: tuple[str, ...]
    """Names for which the rule found no active instrument."""
    spots: tuple[Spot, ...] = ()
    """Around which its options were chosen."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What all rules came to."""

    subscriptions: list[Subscription]
    summary: list[RuleSummary]
    chains: list[Chain]
    """Those that follow a price."""


def load_rules(path: Path) -> list[Rule]:
    """Read a file of rules. Raises SubscriptionError that says which line is wrong."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            # Every scalar stays a string: YAML would read the symbols ON and NO as booleans.
            root = yaml.compose(file, yaml.BaseLoader)
    except FileNotFoundError:
        raise SubscriptionError(
            f"There is no file of rules {path}; subscriptions.example.yaml is one to start from."
        ) from None
    except OSError as error:
        raise SubscriptionError(f"The rules {path} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SubscriptionError(f"{path}, line {line}: not valid YAML, {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SubscriptionError(f"{path} is not a text file.") from error
    except RecursionError:
        raise SubscriptionError(f"{path} is nested too deep.") from None
    reader = _RuleReader(path)
    top = reader.mapping(root) if root else {}
    if set(top) != {"rules"}:
        raise reader.error(root, "a file of rules holds the one key `rules`")
    rules = [reader.rule(node) for node in reader.sequence(top["rules"])]
    if not rules:
        raise reader.error(top["rules"], "there is no rule")
    return rules


class _RuleReader:
    """Reads YAML nodes, which know their lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def error(self, node: yaml.Node | None, problem: str) -> SubscriptionError:
        line = node.start_mark.line + 1 if node else 1
        return SubscriptionError(f"{self._path}, line {line}: {problem}.")

    def mapping(self, node: yaml.Node) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "`key: value` lines are expected here")
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key)
            if name in values:
                raise self.error(key, f"{name} is given twice")
            values[name] = value
        return values

    def sequence(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "a list is expected here")
        return list(node.value)

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self.error(node, "a word is expected here")
        return str(node.value).strip()

    def rule(self, node: yaml.Node) -> Rule:
        values = self.mapping(node)
        selectors = [name for name in get_args(Selector) if name in values]
        if len(selectors) != 1:
            raise self.error(node, f"a rule has one of {', '.join(get_args(Selector))}")
        selector: Selector = selectors[0]
        for name in values:
            if name != selector and name not in _OPTIONS[selector]:
                raise self.error(values[name], f"{name} does not apply to {selector}")
        segment = _DEFAULT_SEGMENT.get(selector)
        if "segment" in values:
            segment = self._member(values["segment"], ExchangeSegment.__members__)
        mode = Mode.QUOTE if selector == "indices" else Mode.FULL
        if "mode" in values:
            mode = self._member(values["mode"], {mode.value: mode for mode in Mode})
        names = self._list(values["list"], segment) if selector == "list" else self._names(values[selector])
        if selector == "indices" and F_AND_O in names:
            raise self.error(values[selector], f"{F_AND_O} stands for shares, not for indices")
        for name in ("strikes", "limit"):
            if name in values and "around_spot" in values:
                raise self.error(values[name], f"{name} and around_spot do not go together")
        return Rule(
            line=node.start_mark.line + 1,
            selector=selector,
            names=names,
            mode=mode,
            segment=segment,
            series=self.text(values["series"]) if "series" in values else None,
            expiries=self._count(values.get("expiries")),
            strikes=self._count(values.get("strikes")),
            around_spot=self._count(values.get("around_spot")),
            limit=self._count(values.get("limit")),
        )

    def _member(self, node: yaml.Node, members: Any) -> Any:
        name = self.text(node)
        if name not in members:
            raise self.error(node, f"{name} is none of {', '.join(members)}")
        return members[name]

    def _count(self, node: yaml.Node | None) -> int | None:
        if node is None:
            return None
        text = self.text(node)
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
            raise self.error(node, f"{text} is not a number from 1")
        return int(text)

    def _names(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.ScalarNode):
            name = self.text(node)
            return () if name == "all" else (name,)
        names = tuple(dict.fromkeys(self.text(item) for item in self.sequence(node)))
        if not names:
            raise self.error(node, "the list is empty; write all for all")
        return names

    def _list(self, node: yaml.Node, segment: ExchangeSegment | None) -> tuple[str, ...]:
        """`SEGMENT:number`, or the token where that is all there is, of each row of a CSV file beside the rules."""
        path = self._path.parent / self.text(node)
        names = []
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                if not {"security_id", "instrument_token"} & set(rows.fieldnames or ()):
                    raise self.error(node, f"{path} has no column security_id or instrument_token")
                for row in rows:
                    place = row.get("exchange_segment") or (segment.name if segment is not None else "")
                    number, token = row.get("security_id") or "", row.get("instrument_token") or ""
                    try:
                        names.append(_name(place, number, token))
                    except (KeyError, ValueError):
                        named = f"{place or 'no segment'} {number}" if number else token
                        raise SubscriptionError(
                            f"{path}, line {rows.line_num}: {named} is not an instrument."
                        ) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise self.error(node, f"the list {path} cannot be read: {why}") from error
        if not names:
            raise self.error(node, f"{path} lists no instrument")
        return tuple(dict.fromkeys(names))


def _name(segment: str, number: str, token: str) -> str:
    """What a row of a list names. Raises KeyError or ValueError where that can be no instrument."""
    if token and not (segment and number):
        segment_of(int(token))
        return str(int(token))
    generate_instrument_token(segment, number)
    return f"{segment}:{int(number)}"


def resolve(
    rules: Sequence[Rule],
    instruments: "pd.DataFrame",
    on: date,
    source: Source,
    last_prices: LastPrices = lambda instrument_tokens: {},
) -> Resolution:
    """The subscriptions that rules come to on a day (IST), of one source.

    `instruments` are the active ones, as `store.instruments.read_instruments` gives them. Derivatives that expired
    before the day are not selected. A name without an instrument is reported, not an error. What a chain follows is
    subscribed with it. Raises SubscriptionError where nothing is selected, or more than the broker allows.
    """
    if instruments["exchange_segment"].isna().all():  # none, or those of the existing system, which has no segments
        raise SubscriptionError(
            f"There are no instruments of {source}; run: dhan-pipeline sync-instruments --download."
        )
    instruments = instruments[~(instruments["expiry"] < np.datetime64(on))]
    by_segment = dict(list(instruments.groupby("exchange_segment")))
    subscriptions: dict[int, Subscription] = {}
    summary: list[RuleSummary] = []
    chains: list[Chain] = []
    for rule in rules:
        written = str(rule)
        rule = replace(rule, names=_expanded(rule.names, by_segment)) if F_AND_O in rule.names else rule
        selected, missing = _select(rule, instruments, by_segment, source)
        before = len(subscriptions)
        if rule.around_spot is None:
            selected = selected.head(rule.limit) if rule.limit else selected
            for token, symbol in _named(selected):
                known = subscriptions.get(token, Subscription(token, rule.mode, symbol))
                # Whatever the price does, a rule without it wants it.
                subscriptions[token] = replace(known, follows=None)
            summary.append(RuleSummary(rule.line, written, len(selected), len(subscriptions) - before, missing))
            continue
        spots, windows = _around_spot(rule, selected, by_segment, last_prices)
        for chain, window in windows:
            follows = chain.underlying_token or None
            for token, symbol in window:
                subscriptions.setdefault(token, Subscription(token, rule.mode, symbol, follows))
        chains += [chain for chain, _ in windows if chain.underlying_token]
        count = len({token for _, window in windows for token, _ in window})
        summary.append(RuleSummary(rule.line, written, count, len(subscriptions) - before, missing, spots))
    _follow_underlyings(subscriptions, summary, instruments)
    if not subscriptions:
        raise SubscriptionError(f"The rules select no instrument of {source} that is active.")
    if len(subscriptions) > MAX_SUBSCRIPTIONS[source]:
        largest = max(summary, key=lambda entry: entry.added)
        raise SubscriptionError(
            f"The rules select {len(subscriptions)} instruments where {MAX_SUBSCRIPTIONS[source]} can be subscribed;"
            f" the rule in line {largest.line} adds {largest.added}, give it a limit."
        )
    return Resolution(list(subscriptions.values()), summary, chains)


def _named(instruments: "pd.DataFrame") -> list[tuple[int, str]]:
    """Token and symbol of each."""
    return list(zip(instruments["instrument_token"].tolist(), instruments["trading_symbol"].tolist(), strict=True))


def _expanded(names: tuple[str, ...], by_segment: "dict[Any, pd.DataFrame]") -> tuple[str, ...]:
    """The names, with those of the shares that NSE has derivatives of in the place of the word for them."""
    if not {"NSE_EQ", "NSE_FNO"} <= by_segment.keys():
        return tuple(name for name in names if name != F_AND_O)
    shares = by_segment["NSE_EQ"]
    symbols = set(shares.loc[shares["series"].isna() | (shares["series"] == "EQ"), "trading_symbol"])
    universe = sorted(symbols.intersection(by_segment["NSE_FNO"]["underlying_symbol"].dropna()))
    return tuple(dict.fromkeys(each for name in names for each in (universe if name == F_AND_O else [name])))


def _around_spot(
    rule: Rule, options: "pd.DataFrame", by_segment: "dict[Any, pd.DataFrame]", last_prices: LastPrices
) -> tuple[tuple[Spot, ...], list[tuple[Chain, list[tuple[int, str]]]]]:
    """The price of each underlying of a rule's options, and each chain with its window around that: nearest first.

    The underlying token of a chain is 0 where there is nothing to follow.
    """
    assert rule.segment is not None
    assert rule.around_spot is not None
    underlyings = list(dict.fromkeys(options["underlying_symbol"]))
    token_of_underlying = _underlying_tokens(underlyings, rule.segment, by_segment)
    known = last_prices(list(token_of_underlying.values())) if token_of_underlying else {}
    spots = {}
    for underlying in underlyings:
        token = token_of_underlying.get(underlying)
        price, at = known.get(token, (None, None)) if token is not None else (None, None)
        spots[underlying] = Spot(underlying, token, price, at)
    windows = []
    for _, rows in options.groupby(["expiry", "underlying_symbol"], sort=False):
        by_strike: dict[float, list[tuple[int, str]]] = {}
        for strike, option in sorted(zip(rows["strike"].tolist(), _named(rows), strict=True)):
            by_strike.setdefault(strike, []).append(option)
        spot = spots[rows["underlying_symbol"].iloc[0]]
        chain = Chain(
            spot.instrument_token or 0,
            rule.around_spot,
            rule.mode,
            rows["expiry"].iloc[0].date(),
            tuple(by_strike),
            tuple(map(tuple, by_strike.values())),
        )
        windows.append((chain, chain.window(chain.at_the_money(spot.price))))
    return tuple(spots.values()), windows


def _underlying_tokens(
    underlyings: Sequence[str], segment: ExchangeSegment, by_segment: "dict[Any, pd.DataFrame]"
) -> dict[str, int]:
    """What shows the price of each underlying: the index or the share of its name, else its nearest future."""
    found: dict[str, int] = {}
    places: list[tuple[pd.DataFrame, tuple[str, ...]]] = []
    if segment in _SHARES_OF:
        shares = by_segment.get(_SHARES_OF[segment].name)
        if "IDX_I" in by_segment:
            places.append((by_segment["IDX_I"], ("trading_symbol", "underlying_symbol", "name")))
        if shares is not None:  # a share before its warrant
            is_other = shares["series"].fillna("EQ") != "EQ"
            places.append((shares.iloc[np.argsort(is_other, kind="stable")], ("trading_symbol",)))
    if segment.name in by_segment:
        derivatives = by_segment[segment.name]
        futures = derivatives[derivatives["option_type"].isna() & derivatives["instrument_type"].str.startswith("FUT")]
        places.append((futures.sort_values("expiry"), ("underlying_symbol",)))
    for frame, keys in places:
        for key in keys:
            tokens: dict[str, int] = {}
            for name, token in zip(frame[key].str.casefold(), frame["instrument_token"].tolist(), strict=True):
                tokens.setdefault(name, token)
            for underlying in underlyings:
                if underlying not in found and underlying.casefold() in tokens:
                    found[underlying] = tokens[underlying.casefold()]
    return found


def _follow_underlyings(
    subscriptions: dict[int, Subscription], summary: list[RuleSummary], instruments: "pd.DataFrame"
) -> None:
    """Subscribe what chains follow: without its price they would stay where they are. It is marked as followed."""
    for rule in [rule for rule in summary if rule.spots]:
        new = {spot.instrument_token: spot.underlying for spot in rule.spots if spot.instrument_token is not None}
        new = {token: underlying for token, underlying in new.items() if token not in subscriptions}
        rows = instruments[instruments["instrument_token"].isin(list(new))]
        for token, symbol in _named(rows):
            subscriptions[token] = Subscription(token, Mode.QUOTE, symbol)
        if new:
            names = ", ".join([*new.values()][:3]) + (", …" if len(new) > 3 else "")
            summary.append(RuleSummary(rule.line, f"followed: {names}", len(new), len(new), ()))
        for token in subscriptions.keys() & {spot.instrument_token for spot in rule.spots}:
            subscriptions[token] = replace(subscriptions[token], follows=token)


def _select(
    rule: Rule, instruments: "pd.DataFrame", by_segment: "dict[Any, pd.DataFrame]", source: Source
) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """The instruments of a rule, the nearest first, and the names that have none."""
    if rule.selector == "list":
        tokens = {str(_own_token(name, source) or name): name for name in rule.names}
        frame, missing = _in_order_of_names(instruments, [instruments["instrument_token"].astype("str")], tuple(tokens))
        return frame, tuple(tokens[token] for token in missing)
    assert rule.segment is not None
    frame = by_segment.get(rule.segment.name, instruments.iloc[:0])
    symbol = frame["trading_symbol"]
    if rule.selector == "indices":
        return _in_order_of_names(frame, [symbol, frame["underlying_symbol"], frame["name"]], rule.names)
    if rule.selector == "symbols":
        if rule.series:
            frame = frame[frame["series"] == rule.series]
        elif rule.names:
            # A share and its warrant have the same symbol: the share is meant.
            share = frame["series"] == "EQ"
            frame = frame[share | ~symbol.isin(symbol[share])]
        # Kite writes the series behind the symbol, but for shares.
        bare = frame["trading_symbol"].str.replace(r"-[A-Z][A-Z0-9]$", "", regex=True)
        return _in_order_of_names(frame, [frame["trading_symbol"], bare], rule.names)
    return _derivatives(rule, frame)


def _own_token(name: str, source: Source) -> int | None:
    """The source's token of what a list names; None where only the other broker has it."""
    segment, _, number = name.rpartition(":")
    token = generate_instrument_token(segment, number) if segment else int(number)
    if source_of(token) == source:
        return token
    number_of = split_instrument_token if source_of(token) == "dhan" else split_kite_token
    exchange_segment, own_number = segment_of(token), number_of(token)[1]
    # Each broker numbers indices as it likes; and of Kite's segments, NCO and MCX-SX are none of Dhan's.
    if exchange_segment == ExchangeSegment.IDX_I or token != token_of(source_of(token), exchange_segment, own_number):
        return None
    try:
        return token_of(source, exchange_segment, own_number)
    except ValueError:
        return None


def _in_order_of_names(
    frame: "pd.DataFrame", keys: "Sequence[pd.Series[str]]", names: tuple[str, ...]
) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """The rows that have one of the names as a key, and the names without; a later key is for what is not found yet."""
    if not names:
        return frame.sort_values("instrument_token"), ()
    left = {name.casefold(): position for position, name in enumerate(names)}
    positions = np.full(len(frame), np.nan)
    for key in keys:
        found = key.str.casefold().map(left).to_numpy(np.float64, na_value=np.nan)
        positions = np.where(np.isnan(positions), found, positions)
        seen = set(positions[~np.isnan(positions)].tolist())
        left = {name: position for name, position in left.items() if position not in seen}
    missing = tuple(names[position] for position in left.values())
    chosen = np.flatnonzero(~np.isnan(positions))
    return frame.iloc[chosen[np.argsort(positions[chosen], kind="stable")]], missing


def _derivatives(rule: Rule, frame: "pd.DataFrame") -> "tuple[pd.DataFrame, tuple[str, ...]]":
    option = frame["option_type"].notna()
    kind = option if rule.selector == "options" else ~option & frame["instrument_type"].str.startswith("FUT")
    frame = frame[kind]
    frame, missing = _in_order_of_names(frame, [frame["underlying_symbol"]], rule.names)
    chains = frame.groupby("underlying_symbol", sort=False)
    nearness = chains["expiry"].rank(method="dense").to_numpy()
    keep = nearness <= (rule.expiries or np.inf)
    frame, nearness = frame[keep], nearness[keep]
    if rule.selector == "futures" or rule.around_spot is not None:
        return frame.iloc[np.argsort(nearness, kind="stable")], missing
    distance = _distance_from_middle(frame)
    keep = distance < (rule.strikes or np.inf)
    frame, nearness, distance = frame[keep], nearness[keep], distance[keep]
    return frame.iloc[np.lexsort((distance, nearness))], missing


def _distance_from_middle(options: "pd.DataFrame") -> NDArray[np.int64]:
    """Of each option, how many strikes of its chain are nearer to the middle of what is listed."""
    chain = options.groupby(["underlying_symbol", "expiry"])["strike"]
    # Exchanges list strikes evenly around the price, so their middle is near it.
    rank = chain.rank(method="dense").to_numpy()
    count = chain.transform("nunique").to_numpy()
    offset = rank - (count + 1) // 2
    distance: NDArray[np.int64] = np.where(offset > 0, 2 * offset - 1, -2 * offset).astype(np.int64)
    return distance


def write_subscriptions(path: Path, subscriptions: Sequence[Subscription]) -> None:
    """Replace the resolved list at once, so that a capture that starts reads the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_FIELDS)
        for s in subscriptions:
            token = s.instrument_token
            security_id = split_instrument_token(token)[1] if source_of(token) == "dhan" else ""
            writer.writerow((token, s.exchange_segment.name, security_id, s.mode.value, s.symbol, s.follows or ""))
    part.replace(path)


def read_subscriptions(path: Path, source: Source | None = None) -> list[Subscription]:
    """Read a resolved list. Raises SubscriptionError where there is none, it cannot be read, or is not the source's."""
    subscriptions = []
    line = 1
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            for row in rows:
                line = rows.line_num
                follows = int(row["follows"]) if row.get("follows") else None
                subscription = Subscription(int(row["instrument_token"]), Mode(row["mode"]), row["symbol"], follows)
                if subscription.exchange_segment.name != row["exchange_segment"]:
                    raise ValueError
                if source is not None and source_of(subscription.instrument_token) != source:
                    raise SubscriptionError(f"{path}, line {line}: {subscription.symbol} is no instrument of {source}.")
                subscriptions.append(subscription)
    except FileNotFoundError:
        raise SubscriptionError(
            f"There are no resolved subscriptions at {path}; run: dhan-pipeline subscriptions,"
            " or materialise the asset `subscriptions`."
        ) from None
    except OSError as error:
        raise SubscriptionError(f"The subscriptions {path} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise SubscriptionError(f"{path}, line {line}: not a resolved subscription.") from error
    if not subscriptions:
        raise SubscriptionError(f"The list of subscriptions {path} is empty.")
    return subscriptions
