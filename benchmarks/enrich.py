"""What enrichment alone costs, of packets that are decoded already; and what the look-up of instruments costs.

    python benchmarks/enrich.py [--json]

Two contenders get the same packets in turn, microseconds a packet:

- `replaced`: the design that we replace. From a parsed packet to an enriched Pydantic model, one at a time, with the
  instrument from a dictionary.
- `enrich`: ours, whole batches. It takes its columns from the packets' bytes as it needs them, which is counted here.
  Not counted are the five columns that follow from others: they are not stored, but computed by who reads.

First every value of every tick is compared, those five, too. Both round prices to the instrument's decimals, changes
and the spread to 4, the mid price to 5, so that these are equal. A percentage is rounded to 4 decimals from quotients
that differ in their last bit, and may differ by one in the last; an average price keeps 4 decimals in one and 2 in the
other where the wire has no more, and may differ by half a paisa. Any other difference is a failure (exit code 1). A
time never is.

Then instruments are looked up: our tables beside a dictionary of Pydantic models, their memory and look-ups a second.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.baseline.enrich import Enricher, Instruments
from benchmarks.baseline.models import DhanTick, EnrichedTick, InstrumentInfo
from benchmarks.baseline.parse import parse
from benchmarks.decode import (
    INSTRUMENTS,
    PACKETS,
    SEED,
    SIZES,
    Packet,
    Timer,
    make_batches,
    make_packet,
    make_packets,
    previous_closes,
)
from benchmarks.report import arguments, publish, take_turns, wrong
from dhan_pipeline.enrich import MarketState, derived, enrich
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import ExchangeSegment, InstrumentIndex, generate_instrument_token
from dhan_pipeline.ticks import COLUMNS, NULL_INT, Decoded, Enriched, Mode

KINDS = (*Mode, "mixed")

#: How far values may be apart, by column; 0 for the others.
TOLERANCES = {"change_percent": 1.001e-4, "average_traded_price": 0.00501}

#: Rows of the synthetic scrip master, 228 thousand of which are instruments that the feed carries.
MASTER_ROWS = 250_000
MASTER_DAY = date(2026, 11, 20)

#: Tokens looked up, all known, in batches as a busy block has them.
LOOKUPS = 1 << 16
LOOKUP_BATCH = 1024
UNKNOWN_TOKEN = generate_instrument_token(ExchangeSegment.NSE_EQ, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A batch as each of the two finds it."""

    decoded: Decoded
    received_ns: NDArray[np.int64]
    packets: list[DhanTick]


class Contenders:
    """Both ways to enrich, with the previous close of each instrument announced, as after a subscription."""

    def __init__(self) -> None:
        tokens = {number: generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in previous_closes()}
        assert len(tokens) == INSTRUMENTS
        self._index = InstrumentIndex(list(tokens.values()))
        self._state = MarketState(len(tokens))
        self._block_id = 0
        self._enricher = Enricher(
            {
                (int(ExchangeSegment.NSE_EQ), number): InstrumentInfo(
                    instrument_token=token,
                    security_id=str(number),
                    exchange_segment="NSE_EQ",
                    trading_symbol=f"S{number}",
                    exchange="NSE",
                    instrument_type="EQUITY",
                )
                for number, token in tokens.items()
            }
        )
        rng = np.random.default_rng(SEED)
        announced = [make_packet("previous close", *item, rng) for item in previous_closes().items()]
        for batch in parse_batches(announced, len(announced)):
            self.enrich_all(batch)
            self.enrich(batch)

    def enrich(self, batch: Parsed) -> Enriched:
        """Ours."""
        self._block_id += 1
        return enrich(
            batch.decoded,
            np.array([self._block_id]),
            np.array([0, len(batch.received_ns)]),
            batch.received_ns,
            self._index,
            self._state,
        )

    def enrich_all(self, batch: Parsed) -> list[EnrichedTick | None]:
        """The replaced design's; None for what is no tick."""
        one, received_ns = self._enricher.enrich, int(batch.received_ns[0])
        return [one(packet, received_ns) for packet in batch.packets]

    def measure_ours(self, batch: Parsed) -> int:
        """Returns the packets enriched."""
        return int(self.enrich(batch).packets.sum())

    def measure_replaced(self, batch: Parsed) -> int:
        """The same; gives up each tick at once."""
        one, received_ns = self._enricher.enrich, int(batch.received_ns[0])
        for packet in batch.packets:
            one(packet, received_ns)
        return len(batch.packets)


def parse_batches(packets: Sequence[Packet], size: int) -> list[Parsed]:
    """The packets in batches, decoded and parsed."""
    return [
        Parsed(decode(batch.payload, batch.offsets), batch.received_ns, list(map(parse, batch.messages)))
        for batch in make_batches(packets, size)
    ]


def check(contenders: Contenders, batches: Sequence[Parsed]) -> list[str]:
    """Where both differ, a sentence each."""
    problems = []
    for batch in batches:
        enriched = contenders.enrich(batch)
        theirs = [tick for tick in contenders.enrich_all(batch) if tick is not None]
        if enriched.rejected or enriched.rows != len(theirs):
            problems.append(f"{len(theirs)} ticks became {enriched.rows} rows, {len(enriched.rejected)} rejected")
            continue
        for ours in enriched.ticks:
            of_mode = [tick for tick in theirs if tick.mode == ours.mode]
            columns = {**ours.columns, **derived(ours.columns)}
            for column in COLUMNS:
                if column.name in ("tick_id", "mode"):
                    continue
                problem = _compare(column.name, of_mode, columns)
                if problem:
                    problems.append(f"{ours.mode}: {problem}")
    return problems


def _compare(name: str, theirs: Sequence[EnrichedTick], ours: Mapping[str, NDArray[Any]]) -> str | None:
    """What is different in a column."""
    found = [_numbers(getattr(tick, name)) for tick in theirs]
    expected = np.array(found, np.float64)
    column = ours.get(name)
    if column is None:
        actual = np.full(expected.shape, np.nan)
    else:
        actual = np.where(column == NULL_INT, np.nan, column.astype(np.float64))
    if expected.shape != actual.shape:
        return f"{name} is of shape {expected.shape} (replaced) and {actual.shape} (ours)"
    different = ~np.isclose(expected, actual, rtol=0, atol=TOLERANCES.get(name, 0), equal_nan=True)
    if not different.any():
        return None
    first = tuple(np.argwhere(different)[0])
    return f"{name} differs in {different.sum()} values, first {expected[first]} (replaced) and {actual[first]} (ours)"


def _numbers(value: Any) -> Any:
    """A model's value as numbers; times in microseconds."""
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if value is None:
        return np.nan
    return round(value.timestamp() * 1e6) if hasattr(value, "timestamp") else value


def measure_lookups() -> dict[str, Any]:
    """Memory and speed of our tables and of a dictionary of models, with all instruments of a scrip master."""
    with tempfile.TemporaryDirectory(prefix="dhan-pipeline-benchmark-") as folder:
        path = Path(folder) / "scrip_master.csv"
        write_synthetic_master(path, MASTER_ROWS, on=MASTER_DAY)
        rows = parse_dhan_csv(path).rows
    tokens = rows["instrument_token"].to_numpy(np.int64)
    index = InstrumentIndex(tokens)
    cache = make_cache(rows)

    sought = np.random.default_rng(SEED).choice(tokens, LOOKUPS)
    keys = [(token >> 32 & 0xF, token & 0xFFFFFFFF) for token in sought.tolist()]
    if not np.array_equal(tokens[index.lookup(sought)], sought):
        wrong("our tables find other instruments than those sought")
    if [cache[key].instrument_token for key in keys] != sought.tolist():
        wrong("the dictionary finds other instruments than those sought")
    if index.lookup(np.array([UNKNOWN_TOKEN])).tolist() != [-1]:
        wrong("our tables find an instrument that does not exist")

    starts = range(0, LOOKUPS, LOOKUP_BATCH)
    batches = [sought[start : start + LOOKUP_BATCH] for start in starts]
    key_batches = [keys[start : start + LOOKUP_BATCH] for start in starts]
    figures = take_turns(
        {
            "replaced_per_s": lambda: _per_second(lambda batch: [cache[key] for key in batch], key_batches),
            "lookup_per_s": lambda: _per_second(index.lookup, batches),
        }
    )
    return {
        "instruments": len(tokens),
        "replaced_mb": round(cache_nbytes(cache) / 1e6, 1),
        "lookup_mb": round(index.nbytes / 1e6, 2),
        **{name: asdict(figure) for name, figure in figures.items()},
    }


def make_cache(rows: pd.DataFrame) -> Instruments:
    """The replaced design's instruments: a model each, in a dictionary."""
    names = [name for name in InstrumentInfo.model_fields if name in rows]
    columns = [rows[name].astype(object).where(rows[name].notna(), None) for name in names]
    cache = {}
    for values in zip(*columns, strict=True):
        fields = dict(zip(names, values, strict=True))
        key = int(ExchangeSegment[fields["exchange_segment"]]), int(fields["security_id"])
        cache[key] = InstrumentInfo(**fields | {"security_id": str(fields["security_id"])})
    return cache


def cache_nbytes(cache: Instruments) -> int:
    """Memory of all its objects, in bytes."""
    size = sys.getsizeof
    return size(cache) + sum(
        size(key)
        + sum(map(size, (model, model.__dict__, model.model_fields_set)))
        + sum(size(value) for value in model.__dict__.values() if value is not None)
        for key, model in cache.items()
    )


def _per_second(look_up: Callable[[Any], object], batches: Sequence[Any]) -> float:
    started = time.perf_counter()
    for batch in batches:
        look_up(batch)
    return LOOKUPS / (time.perf_counter() - started)


def main() -> None:
    """Check, measure, publish."""
    as_json = arguments(__doc__).parse_args().json
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        packets = make_packets(kind)
        contenders = Contenders()
        for size, some in ((1, packets[:512]), (64, packets), (4096, packets)):
            if problems := check(contenders, parse_batches(some, size)):
                wrong(*(f"{kind}, batches of {size}: {problem}" for problem in problems))
        for size in SIZES:
            batches = parse_batches(packets, size)
            figures = take_turns(
                {
                    "replaced_us": Timer(contenders.measure_replaced, batches, size),
                    "enrich_us": Timer(contenders.measure_ours, batches, size),
                }
            )
            times = figures["replaced_us"].median / figures["enrich_us"].median
            rows.append({"kind": kind, "batch": size, **figures, "times_replaced": times})
    lookup = measure_lookups()
    ours, theirs = lookup["lookup_per_s"]["median"], lookup["replaced_per_s"]["median"]
    publish(
        "Enrichment of decoded packets, microseconds a packet",
        rows,
        as_json,
        note=f"All values of {PACKETS:,} packets of each kind agree.\n"
        f"Look-up of {lookup['instruments']:,} instruments: our tables take {lookup['lookup_mb']} MB and find "
        f"{ours / 1e6:.1f} million a second, {LOOKUP_BATCH} at a time; a dictionary of models takes "
        f"{lookup['replaced_mb']} MB and finds {theirs / 1e6:.1f} million.",
        checked=PACKETS * len(KINDS),
        lookup=lookup,
        pydantic=version("pydantic"),
    )


if __name__ == "__main__":
    main()
