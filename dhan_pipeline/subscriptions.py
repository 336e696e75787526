"""Which instruments to capture: a person's rules (YAML), and the list of subscriptions that they come to (CSV).

Rules are resolved against the instruments of the day, so that "the nearest expiry" moves on by itself. The capture
reads only the resolved list.

    rules:
      - indices: [NIFTY, INDIA VIX]
      - symbols: [RELIANCE, TCS]       # or all; series: EQ
        segment: NSE_EQ
      - futures: [NIFTY, RELIANCE]     # of these underlyings, or all
        expiries: 2                    # the nearest two
      - options: [NIFTY]
        expiries: 1
        strikes: 40                    # those nearest to the middle of what is listed
        mode: full                     # ticker, quote or full
        limit: 50
      - list: watchlist.csv            # columns exchange_segment, security_id; or instrument_token

The first rule that selects an instrument decides its mode. The same rules serve every broker: names are the exchange's,
an index has that of its derivatives or its own, and what a list names by the exchange's number (Dhan's security id,
Kite's exchange token) is found by it. Only the numbers of indices are a broker's own.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

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
from dhan_pipeline.sources import Source
from dhan_pipeline.ticks import Mode

if TYPE_CHECKING:  # the capture reads the resolved list, and needs no pandas for it
    import pandas as pd

#: What a broker's connections hold: five of Dhan's, three of Kite's.
MAX_SUBSCRIPTIONS: dict[Source, int] = {"dhan": 25_000, "kite": 9_000}

Selector = Literal["indices", "symbols", "futures", "options", "list"]

#: What may stand beside each selector.
_OPTIONS: dict[Selector, tuple[str, ...]] = {
    "indices": ("mode", "limit"),
    "symbols": ("segment", "series", "mode", "limit"),
    "futures": ("segment", "expiries", "mode", "limit"),
    "options": ("segment", "expiries", "strikes", "mode", "limit"),
    "list": ("segment", "mode", "limit"),
}
_DEFAULT_SEGMENT = {
    "indices": ExchangeSegment.IDX_I,
    "symbols": ExchangeSegment.NSE_EQ,
    "futures": ExchangeSegment.NSE_FNO,
    "options": ExchangeSegment.NSE_FNO,
}

_FIELDS = ("instrument_token", "exchange_segment", "security_id", "mode", "symbol")


class SubscriptionError(PipelineError):
    """The rules, or the resolved list, cannot be used."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One instrument to capture."""

    instrument_token: int
    mode: Mode
    symbol: str

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
    limit: int | None = None

    def __str__(self) -> str:
        names = ", ".join(self.names[:3]) + (", …" if len(self.names) > 3 else "") if self.names else "all"
        return f"{self.selector}: {names}"


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


@dataclass(frozen=True, slots=True)
class Resolution:
    """What all rules came to."""

    subscriptions: list[Subscription]
    summary: list[RuleSummary]


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
        return Rule(
            line=node.start_mark.line + 1,
            selector=selector,
            names=names,
            mode=mode,
            segment=segment,
            series=self.text(values["series"]) if "series" in values else None,
            expiries=self._count(values.get("expiries")),
            strikes=self._count(values.get("strikes")),
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
            raise self.error(node, f"the list {path} cannot be read: {error}") from error
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


def resolve(rules: Sequence[Rule], instruments: "pd.DataFrame", on: date, source: Source) -> Resolution:
    """The subscriptions that rules come to on a day (IST), of one source.

    `instruments` are the active ones, as `store.instruments.read_instruments` gives them. Derivatives that expired
    before the day are not selected. A name without an instrument is reported, not an error. Raises SubscriptionError
    where nothing is selected, or more than the broker allows.
    """
    if instruments["exchange_segment"].isna().all():  # none, or those of the existing system, which has no segments
        raise SubscriptionError(
            f"There are no instruments of {source}; run: dhan-pipeline sync-instruments --download."
        )
    instruments = instruments[~(instruments["expiry"] < np.datetime64(on))]
    by_segment = dict(list(instruments.groupby("exchange_segment")))
    subscriptions: dict[int, Subscription] = {}
    summary = []
    for rule in rules:
        selected, missing = _select(rule, instruments, by_segment, source)
        selected = selected.head(rule.limit) if rule.limit else selected
        before = len(subscriptions)
        for token, symbol in zip(selected["instrument_token"].tolist(), selected["trading_symbol"], strict=True):
            subscriptions.setdefault(token, Subscription(token, rule.mode, symbol))
        summary.append(RuleSummary(rule.line, str(rule), len(selected), len(subscriptions) - before, missing))
    if not subscriptions:
        raise SubscriptionError(f"The rules select no instrument of {source} that is active.")
    if len(subscriptions) > MAX_SUBSCRIPTIONS[source]:
        largest = max(summary, key=lambda entry: entry.added)
        raise SubscriptionError(
            f"The rules select {len(subscriptions)} instruments where {MAX_SUBSCRIPTIONS[source]} can be subscribed;"
            f" the rule in line {largest.line} adds {largest.added}, give it a limit."
        )
    return Resolution(list(subscriptions.values()), summary)


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
    if rule.selector == "futures":
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
            writer.writerow((token, s.exchange_segment.name, security_id, s.mode.value, s.symbol))
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
                subscription = Subscription(int(row["instrument_token"]), Mode(row["mode"]), row["symbol"])
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
