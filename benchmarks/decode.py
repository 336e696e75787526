"""What decoding costs: full packets in blocks of several sizes, beside the broker's own Python client.

    python benchmarks/decode.py [--json]

Three contenders get the same packets in turn, five rounds each, so that a busy machine troubles all alike:

- `dhanhq`: `MarketFeed.process_data` of the broker's client, a packet at a time, since it knows no batches;
- `decode`: ours, with every column copied into an array of its own, so that no work is left undone;
- `decode + enrich`: ours as the capture runs it, up to the rows that are stored.

First every value that the client and we both have is compared, for every packet. A difference is a failure (exit code
1). A time never is.
"""

import argparse
import json
import os
import platform
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from dhanhq.marketfeed import MarketFeed
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dhan_pipeline.enrich import MarketState, enrich
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.instruments import ExchangeSegment, InstrumentIndex, generate_instrument_token
from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.ticks import Enriched

SIZES = (1, 16, 256, 1024, 4096)
ROUNDS = 5

#: Packets in all, of so many instruments. The same in every run.
PACKETS = 8192
INSTRUMENTS = 500
SEED = 0

#: Real time that one contender gets in one round, in seconds.
ROUND_S = 0.15

NOW_S = 1_795_147_200  # 2026-11-20 09:30 IST, or 04:00 UTC

#: Names of the same thing: the client's, ours.
NUMBERS = {
    "LTQ": "last_traded_quantity",
    "volume": "volume_traded",
    "OI": "oi",
    "oi_day_high": "oi_day_high",
    "oi_day_low": "oi_day_low",
    "total_sell_quantity": "total_sell_quantity",
    "total_buy_quantity": "total_buy_quantity",
}
PRICES = {"LTP": "last_price", "open": "day_open", "close": "day_close", "high": "day_high", "low": "day_low"}
DEPTH = {
    "bid_price": "bid_prices",
    "ask_price": "ask_prices",
    "bid_quantity": "bid_quantities",
    "ask_quantity": "ask_quantities",
    "bid_orders": "bid_orders",
    "ask_orders": "ask_orders",
}


@dataclass(frozen=True)
class Batch:
    """Messages of one packet each, as a journal block holds them."""

    messages: list[bytes]
    payload: bytes
    offsets: NDArray[np.int64]
    received_ns: NDArray[np.int64]


def make_packets() -> list[bytes]:
    """Full packets of NSE shares, packed here by hand so that no code under test makes its own input."""
    rng = np.random.default_rng(SEED)
    packets = []
    for _ in range(PACKETS):
        last = round(float(rng.uniform(50, 5000)), 1)
        day = [round(last * share, 1) for share in (0.99, 1.005, 1.02, 0.98)]  # open, previous close, high, low
        volume, sell, buy, oi = (int(number) for number in rng.integers(1, 2**31, 4))
        traded = NOW_S + IST_OFFSET_S - int(rng.integers(0, 60))
        body = struct.pack("<fHIfIIIIII", last, int(rng.integers(1, 2**16)), traded, last, volume, sell, buy, oi, oi, 1)
        levels = b"".join(
            struct.pack("<IIHHff", *rng.integers(1, 60_000, 4).tolist(), last - step / 10, last + step / 10)
            for step in range(1, 6)
        )
        head = struct.pack("<BHBI", 8, 162, ExchangeSegment.NSE_EQ, int(rng.integers(1, INSTRUMENTS + 1)))
        packets.append(head + body + struct.pack("<4f", *day) + levels)
    return packets


def make_batches(packets: Sequence[bytes], size: int) -> list[Batch]:
    """The packets in blocks of `size`."""
    batches = []
    for start in range(0, len(packets), size):
        messages = list(packets[start : start + size])
        offsets = np.cumsum([0, *map(len, messages)], dtype=np.int64)
        received_ns = np.full(len(messages), NOW_S * 1_000_000_000, np.int64)
        batches.append(Batch(messages, b"".join(messages), offsets, received_ns))
    return batches


class Contenders:
    """The three ways to read a batch."""

    def __init__(self) -> None:
        self._client = MarketFeed.__new__(MarketFeed)  # without an event loop and an account: only its decoder is used
        tokens = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, INSTRUMENTS + 1)]
        self._instruments = InstrumentIndex(tokens)
        self._state = MarketState(len(tokens))
        self._block_id = 0

    def client(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """The broker's client: a dictionary a packet, prices as text."""
        return map(self._client.process_data, batch.messages)

    def client_alone(self, batch: Batch) -> None:
        """The same, with each dictionary given up at once: keeping thousands would cost the client more."""
        deque(self.client(batch), maxlen=0)

    def decode(self, batch: Batch) -> list[dict[str, NDArray[Any]]]:
        """Ours: arrays of what is on the wire."""
        decoded = decode(batch.payload, batch.offsets)
        return [{name: column.copy() for name, column in ticks.columns.items()} for ticks in decoded.ticks]

    def enrich(self, batch: Batch) -> Enriched:
        """Ours: what is stored."""
        self._block_id += 1
        decoded = decode(batch.payload, batch.offsets)
        return enrich(decoded, self._block_id, batch.received_ns, self._instruments, self._state)


def check(contenders: Contenders, batches: Sequence[Batch]) -> list[str]:
    """Where the client and we differ, a sentence each."""
    problems = []
    for batch in batches:
        enriched = contenders.enrich(batch)
        if enriched.rows != len(batch.messages) or enriched.rejected:
            problems.append(f"{len(batch.messages)} packets became {enriched.rows} rows")
            continue
        theirs = list(contenders.client(batch))
        (ours,) = enriched.ticks
        (raw,) = contenders.decode(batch)
        for theirs_name, name in NUMBERS.items():
            _compare(name, [tick[theirs_name] for tick in theirs], ours.columns[name].tolist(), problems)
        for theirs_name, name in PRICES.items():
            for columns in (raw, ours.columns):
                _compare(name, [tick[theirs_name] for tick in theirs], _text(columns[name]), problems)
        for theirs_name, name in DEPTH.items():
            column = ours.columns[name]
            values = _text(column) if name.endswith("prices") else column.tolist()
            _compare(name, [[level[theirs_name] for level in tick["depth"]] for tick in theirs], values, problems)
        # The client shows the exchange's wall clock as if it were UTC.
        clock = [
            datetime.fromtimestamp(us / 1e6 + IST_OFFSET_S, UTC) for us in ours.columns["last_trade_time"].tolist()
        ]
        _compare("last_trade_time", [tick["LTT"] for tick in theirs], [f"{at:%H:%M:%S}" for at in clock], problems)
    return problems


def _text(prices: NDArray[Any]) -> list[Any]:
    """Prices as the client writes them."""
    texts: list[Any] = np.vectorize("{:.2f}".format)(prices).tolist()
    return texts


def _compare(name: str, theirs: list[Any], ours: list[Any], problems: list[str]) -> None:
    different = sum(a != b for a, b in zip(theirs, ours, strict=True))
    if different:
        at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        problems.append(f"{name} differs in {different} packets, first {theirs[at]} (dhanhq) and {ours[at]} (ours)")


def microseconds_a_packet(work: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
    """Time that the work takes, over as many batches as fit into a round."""
    packets = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < ROUND_S:
        for batch in batches[:64]:
            work(batch)
            packets += len(batch.messages)
    return 1e6 * elapsed / packets


def measure(contenders: Contenders, packets: Sequence[bytes]) -> list[dict[str, Any]]:
    """Microseconds a packet by batch size and contender: median, minimum and maximum of the rounds."""
    works = {"dhanhq": contenders.client_alone, "decode": contenders.decode, "decode + enrich": contenders.enrich}
    batches = {size: make_batches(packets, size) for size in SIZES}
    times: dict[tuple[int, str], list[float]] = {(size, name): [] for size in SIZES for name in works}
    for _ in range(ROUNDS):
        for size in SIZES:
            for name, work in works.items():
                times[size, name].append(microseconds_a_packet(work, batches[size]))
    return [
        {
            "batch": size,
            **{
                name: {"median": statistics.median(took), "min": min(took), "max": max(took)}
                for name in works
                if (took := times[size, name])
            },
        }
        for size in SIZES
    ]


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        cpu = ""
    return {
        "measured_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "dhanhq": version("dhanhq"),
    }


def show(results: list[dict[str, Any]], facts: dict[str, Any], checked: int) -> None:
    """A table on standard output."""
    table = Table(
        title=f"Full packets, microseconds a packet: median of {ROUNDS} (min-max)",
        caption=", ".join(f"{name} {value}" for name, value in facts.items() if name != "measured_at"),
    )
    table.add_column("batch", justify="right")
    for name in results[0]:
        if name != "batch":
            table.add_column(name, justify="right")
    table.add_column("packets/s", justify="right")
    table.add_column("times dhanhq", justify="right")
    for row in results:
        cells = [
            f"{_digits(took['median'])} ({_digits(took['min'])}-{_digits(took['max'])})"
            for name, took in row.items()
            if name != "batch"
        ]
        ours, theirs = row["decode + enrich"]["median"], row["dhanhq"]["median"]
        table.add_row(str(row["batch"]), *cells, f"{1e6 / ours:,.0f}", f"{theirs / ours:.1f}")
    Console(width=100).print(table)
    print(f"The last two columns are of decode + enrich. All values of {checked:,} packets agree with dhanhq's.")


def _digits(us: float) -> str:
    return f"{us:.0f}" if us >= 10 else f"{us:.2f}"


def main() -> int:
    """Check, measure, print. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure decoding beside the broker's own Python client.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    contenders = Contenders()
    packets = make_packets()
    problems = [problem for size in (1, 4096) for problem in check(contenders, make_batches(packets[:4096], size))]
    if problems:
        print("\n".join(["The results are wrong:", *problems[:10]]), file=sys.stderr)
        return 1
    results = measure(contenders, packets)
    facts = machine()
    if as_json:
        print(
            json.dumps(
                {"unit": "microseconds a packet", "rounds": ROUNDS, "checked": 4096, **facts, "results": results}
            )
        )
    else:
        show(results, facts, 4096)
    return 0


if __name__ == "__main__":
    sys.exit(main())
