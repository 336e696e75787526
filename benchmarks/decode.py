"""What decoding costs: packets of each kind, and all of them mixed, in batches of several sizes.

    python benchmarks/decode.py [--json]

Five contenders get the same packets in turn, microseconds a packet:

- `dhanhq`: `MarketFeed.process_data` of the broker's client, a packet at a time, since it knows no batches;
- `kiteconnect`: `KiteTicker._parse_binary` of the other broker's client, on that broker's packets of the same ticks, a
  batch a message, as it sends them; it has no packets for open interest, previous close and status, so that its mixed
  stream is ticks only;
- `replaced`: the design that we replace, `struct` and a Pydantic model, up to the parsed packet;
- `decode`: ours, with every column copied into an array of its own, so that no work is left undone;
- `decode_enrich`: ours as the capture runs it, up to the rows that are stored.

First every value that dhanhq and we both have is compared, for every packet. A difference is a failure (exit code 1).
A time never is.
"""

import itertools
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import numpy as np
from dhanhq.marketfeed import MarketFeed
from kiteconnect import KiteTicker
from numpy.typing import NDArray

from benchmarks.baseline.parse import parse
from benchmarks.report import arguments, publish, take_turns, wrong
from dhan_pipeline.enrich import MarketState, enrich
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.instruments import ExchangeSegment, InstrumentIndex, generate_instrument_token
from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.ticks import POSITION_BITS, Enriched, Mode, RawTicks, TickBatch

SIZES = (1, 4, 16, 64, 256, 1024, 4096)

#: Packets of a kind, of so many instruments. The same in every run.
PACKETS = 8192
INSTRUMENTS = 500
SEED = 0

#: Shares of the mixed stream in percent. Instruments in full mode send one kind of packet; those in quote mode send
#: their open interest beside; previous closes and the market's status come now and then.
MIXED = {"full": 60, "quote": 20, "ticker": 10, "open interest": 8, "previous close": 1, "status": 1}

#: Real time that one contender gets in one round, in seconds; and the packets between two looks at the clock.
ROUND_S = 0.04
STRETCH = 256

NOW_S = 1_795_147_200  # 2026-11-20 09:30 IST, or 04:00 UTC

#: Names of the same thing by kind of packet: the client's, ours.
_QUOTE_NUMBERS = {
    "LTQ": "last_traded_quantity",
    "volume": "volume_traded",
    "total_sell_quantity": "total_sell_quantity",
    "total_buy_quantity": "total_buy_quantity",
}
_QUOTE_PRICES = {"LTP": "last_price", "open": "day_open", "close": "day_close", "high": "day_high", "low": "day_low"}
NUMBERS: dict[Mode, dict[str, str]] = {
    Mode.TICKER: {},
    Mode.QUOTE: _QUOTE_NUMBERS,
    Mode.FULL: _QUOTE_NUMBERS | {"OI": "oi", "oi_day_high": "oi_day_high", "oi_day_low": "oi_day_low"},
}
PRICES = {Mode.TICKER: {"LTP": "last_price"}, Mode.QUOTE: _QUOTE_PRICES, Mode.FULL: _QUOTE_PRICES}
DEPTH = {
    "bid_price": "bid_prices",
    "ask_price": "ask_prices",
    "bid_quantity": "bid_quantities",
    "ask_quantity": "ask_quantities",
    "bid_orders": "bid_orders",
    "ask_orders": "ask_orders",
}
TYPES = {Mode.TICKER: "Ticker Data", Mode.QUOTE: "Quote Data", Mode.FULL: "Full Data"}


@dataclass(frozen=True, slots=True)
class Packet:
    """One tick on both brokers' wires."""

    dhan: bytes
    kite: bytes
    """Empty where Kite has nothing of the kind."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one packet each, as a journal block holds them; and the same as a message of Kite's."""

    messages: list[bytes]
    payload: bytes
    offsets: NDArray[np.int64]
    received_ns: NDArray[np.int64]
    kite: bytes


def make_packets(kind: str, count: int = PACKETS) -> list[Packet]:
    """Packets of NSE shares of a kind or `mixed`, packed by hand so that no code under test makes its own input."""
    rng = np.random.default_rng(SEED)
    closes = previous_closes()
    kinds = [kind] * count
    if kind == "mixed":
        kinds = rng.choice(list(MIXED), count, p=[share / 100 for share in MIXED.values()]).tolist()
    packets = []
    for each in kinds:
        security_id = int(rng.integers(1, INSTRUMENTS + 1))
        packets.append(make_packet(each, security_id, closes[security_id], rng))
    return packets


def previous_closes() -> dict[int, float]:
    """Previous close in rupees by security id: the same in all packets, as on a real day."""
    closes = np.random.default_rng(SEED).uniform(50, 5000, INSTRUMENTS)
    return dict(enumerate(np.round(closes, 1).tolist(), 1))


def make_packet(kind: str, security_id: int, close: float, rng: np.random.Generator) -> Packet:
    """One packet of a kind in `MIXED`."""

    def header(code: int, size: int) -> bytes:
        return struct.pack("<BHBI", code, size, ExchangeSegment.NSE_EQ, security_id)

    token = security_id << 8 | 1  # of NSE's shares at Kite
    last = round(close * float(rng.uniform(0.95, 1.05)), 1)
    traded = NOW_S - int(rng.integers(0, 60))
    volume, sell, buy, oi = (int(number) for number in rng.integers(1, 2**31, 4))
    if kind == "status":
        return Packet(header(7, 8), b"")
    if kind == "open interest":
        return Packet(header(5, 12) + struct.pack("<I", oi), b"")
    if kind == "previous close":
        return Packet(header(6, 16) + struct.pack("<fI", close, oi), b"")
    if kind == "ticker":
        tick = struct.pack("<fI", last, traded + IST_OFFSET_S)
        return Packet(header(2, 16) + tick, struct.pack(">Ii", token, _paise(last)))

    quantity = int(rng.integers(1, 2**16))
    average = last * float(rng.uniform(0.99, 1.01))
    opened, high, low = (round(last * share, 1) for share in (0.99, 1.02, 0.98))
    trade = struct.pack("<fHIfIII", last, quantity, traded + IST_OFFSET_S, average, volume, sell, buy)
    day = struct.pack("<4f", opened, close, high, low)
    kite_prices = map(_paise, (opened, high, low, close))
    kite_quote = struct.pack(">11I", token, _paise(last), quantity, _paise(average), volume, buy, sell, *kite_prices)
    if kind == "quote":
        return Packet(header(4, 50) + trade + day, kite_quote)

    # Quantities of bid and ask, orders of bid and ask, prices of bid and ask.
    levels = [(*rng.integers(1, 60_000, 4).tolist(), last - step / 10, last + step / 10) for step in range(1, 6)]
    depth = b"".join(struct.pack("<IIHHff", *level) for level in levels)
    bids = [struct.pack(">IIHxx", level[0], _paise(level[4]), level[2]) for level in levels]
    asks = [struct.pack(">IIHxx", level[1], _paise(level[5]), level[3]) for level in levels]
    return Packet(
        header(8, 162) + trade + struct.pack("<III", oi, oi, 1) + day + depth,
        b"".join([kite_quote, struct.pack(">5I", traded, oi, oi, 1, traded), *bids, *asks]),
    )


def _paise(rupees: float) -> int:
    return round(100 * rupees)


def make_batches(packets: Sequence[Packet], size: int) -> list[Batch]:
    """The packets in batches of `size`."""
    batches = []
    for start in range(0, len(packets), size):
        part = packets[start : start + size]
        messages = [packet.dhan for packet in part]
        offsets = np.cumsum([0, *map(len, messages)], dtype=np.int64)
        received_ns = np.full(len(messages), NOW_S * 1_000_000_000, np.int64)
        kite = [struct.pack(">H", len(packet.kite)) + packet.kite for packet in part if packet.kite]
        kite_message = struct.pack(">H", len(kite)) + b"".join(kite)
        batches.append(Batch(messages, b"".join(messages), offsets, received_ns, kite_message))
    return batches


class Contenders:
    """The ways to read a batch. Each gives up at once what it made: to keep thousands of dictionaries costs more."""

    def __init__(self) -> None:
        # Without an event loop, an account and a connection: only their decoders are used.
        self._dhanhq = MarketFeed.__new__(MarketFeed)
        self._kite = KiteTicker.__new__(KiteTicker)
        tokens = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, INSTRUMENTS + 1)]
        self._instruments = InstrumentIndex(tokens)
        self._state = MarketState(len(tokens))
        self._block_id = 0

    def read_dhanhq(self, batch: Batch) -> Iterator[Any]:
        """The broker's client: a dictionary a packet, prices as text."""
        return map(self._dhanhq.process_data, batch.messages)

    def dhanhq(self, batch: Batch) -> int:
        """The same, to be measured. Returns the packets read, as all of these do."""
        deque(self.read_dhanhq(batch), maxlen=0)
        return len(batch.messages)

    def kiteconnect(self, batch: Batch) -> int:
        """The other broker's client: a list of dictionaries."""
        return len(self.read_kite(batch))

    def read_kite(self, batch: Batch) -> list[dict[str, Any]]:
        """What it makes of the batch."""
        ticks: list[dict[str, Any]] = self._kite._parse_binary(batch.kite)
        return ticks

    def replaced(self, batch: Batch) -> int:
        """The replaced design: a model a packet."""
        deque(map(parse, batch.messages), maxlen=0)
        return len(batch.messages)

    def decode(self, batch: Batch) -> int:
        """Ours: arrays of what is on the wire."""
        decoded = decode(batch.payload, batch.offsets)
        for ticks in decoded.ticks:
            for column in ticks.columns.values():
                column.copy()
        return decoded.packets

    def decode_enrich(self, batch: Batch) -> int:
        """Ours: what is stored."""
        return int(self.enrich(batch).packets.sum())

    def enrich(self, batch: Batch) -> Enriched:
        """The rows."""
        self._block_id += 1
        decoded = decode(batch.payload, batch.offsets)
        return enrich(
            decoded,
            np.array([self._block_id]),
            np.array([0, len(batch.received_ns)]),
            batch.received_ns,
            self._instruments,
            self._state,
        )

    @property
    def all(self) -> dict[str, Callable[[Batch], int]]:
        """By the name of their column."""
        return {
            "dhanhq_us": self.dhanhq,
            "kiteconnect_us": self.kiteconnect,
            "replaced_us": self.replaced,
            "decode_us": self.decode,
            "decode_enrich_us": self.decode_enrich,
        }


def check(contenders: Contenders, batches: Sequence[Batch]) -> list[str]:
    """Where dhanhq and we differ, or the other client read other ticks; a sentence each."""
    problems: list[str] = []
    for batch in batches:
        theirs = list(contenders.read_dhanhq(batch))
        types = [packet["type"] if isinstance(packet, dict) else packet for packet in theirs]
        decoded = decode(batch.payload, batch.offsets)
        enriched = contenders.enrich(batch)
        if enriched.rejected or decoded.packets != len(theirs):
            problems.append(f"of {len(theirs)} packets {decoded.packets} were found, {len(enriched.rejected)} rejected")
            continue
        for raw in decoded.ticks:
            (ours,) = (ticks for ticks in enriched.ticks if ticks.mode == raw.mode)
            _check_ticks([theirs[at] for at in raw.position], raw, ours, problems)
        places = {raw.mode: raw.position.tolist() for raw in decoded.ticks}
        places_stored = {t.mode: (t.columns["tick_id"] & (1 << POSITION_BITS) - 1).tolist() for t in enriched.ticks}
        for mode, type_ in TYPES.items():
            where = [at for at, each in enumerate(types) if each == type_]
            _compare(f"place of {mode} packets", where, places.get(mode, []), problems)
            _compare(f"place of {mode} rows", where, places_stored.get(mode, []), problems)
        closes = [packet["prev_close"] for packet, each in zip(theirs, types, strict=True) if each == "Previous Close"]
        _compare("previous close", closes, _text(decoded.previous_close.value) if closes else [], problems)
        interest = [packet["OI"] for packet, each in zip(theirs, types, strict=True) if each == "OI Data"]
        _compare("open interest", interest, decoded.open_interest.value.tolist(), problems)
        status = decoded.control.get("market_status", 0)
        _compare("market status", [types.count("Markets Open")], [status], problems)
        ticks = [packet for packet, each in zip(theirs, types, strict=True) if each in TYPES.values()]
        _check_kite(ticks, contenders.read_kite(batch), problems)
    return problems


def _check_ticks(theirs: list[dict[str, Any]], raw: RawTicks, ours: TickBatch, problems: list[str]) -> None:
    """All values of ticks of one mode."""
    mode, session = raw.mode, raw.mode != Mode.TICKER
    ids = (raw.instrument_token & 0xFFFFFFFF).tolist()
    _compare("security id", [tick["security_id"] for tick in theirs], ids, problems)
    for theirs_name, name in NUMBERS[mode].items():
        _compare(name, [tick[theirs_name] for tick in theirs], ours.columns[name].tolist(), problems)
    for theirs_name, name in PRICES[mode].items():
        for columns in (raw.columns, ours.columns):
            _compare(name, [tick[theirs_name] for tick in theirs], _text(columns[name]), problems)
    if session:  # stored with more decimals than the client shows
        average = _text(raw.columns["average_traded_price"])
        _compare("average_traded_price", [tick["avg_price"] for tick in theirs], average, problems)
    for theirs_name, name in DEPTH.items() if mode == Mode.FULL else ():
        column = ours.columns[name]
        values = _text(column) if name.endswith("prices") else column.tolist()
        _compare(name, [[level[theirs_name] for level in tick["depth"]] for tick in theirs], values, problems)
    # The client shows the exchange's wall clock as if it were UTC.
    clock = [datetime.fromtimestamp(us / 1e6 + IST_OFFSET_S, UTC) for us in ours.columns["last_trade_time"].tolist()]
    _compare("last_trade_time", [tick["LTT"] for tick in theirs], [f"{at:%H:%M:%S}" for at in clock], problems)


def _check_kite(dhanhq: list[dict[str, Any]], kite: list[dict[str, Any]], problems: list[str]) -> None:
    """Both clients were given the same ticks."""

    def value(tick: dict[str, Any]) -> list[Any]:
        depth = [level["price"] for level in tick["depth"]["buy"]] if "depth" in tick else []
        return [f"{tick['last_price']:.2f}", tick.get("volume_traded"), *(f"{price:.2f}" for price in depth)]

    theirs = [
        [tick["LTP"], tick.get("volume"), *(level["bid_price"] for level in tick.get("depth", ()))] for tick in dhanhq
    ]
    _compare("kiteconnect's tick", theirs, [value(tick) for tick in kite], problems)


def _text(prices: NDArray[Any]) -> list[Any]:
    """Prices as the client writes them."""
    texts: list[Any] = np.vectorize("{:.2f}".format)(prices).tolist()
    return texts


def _compare(name: str, theirs: Sequence[Any], ours: Sequence[Any], problems: list[str]) -> None:
    if len(theirs) != len(ours):
        problems.append(f"{name}: {len(theirs)} (dhanhq) and {len(ours)} (ours)")
        return
    different = [at for at, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    if different:
        first = f"{theirs[different[0]]} (dhanhq) and {ours[different[0]]} (ours)"
        problems.append(f"{name} differs in {len(different)} packets, first {first}")


T = TypeVar("T")


class Timer(Generic[T]):
    """Times work on batches of a size, one after the other, for as long as a round lasts."""

    def __init__(self, work: Callable[[T], int], batches: Sequence[T], size: int) -> None:
        """`work` returns the packets that it has read."""
        self._work = work
        together = max(1, STRETCH // size)
        stretches = [batches[start : start + together] for start in range(0, len(batches), together)]
        self._stretches = itertools.cycle(stretches)

    def __call__(self) -> float:
        """Microseconds a packet."""
        packets = 0
        started = time.perf_counter()
        while True:
            for batch in next(self._stretches):
                packets += self._work(batch)
            elapsed = time.perf_counter() - started
            if elapsed >= ROUND_S:
                return 1e6 * elapsed / packets


def main() -> None:
    """Check, measure, publish."""
    as_json = arguments(__doc__).parse_args().json
    contenders = Contenders()
    rows: list[dict[str, Any]] = []
    for kind in (*TYPES, "mixed"):
        packets = make_packets(kind)
        for size, some in ((1, packets[:512]), (64, packets), (4096, packets)):
            if problems := check(contenders, make_batches(some, size)):
                wrong(*(f"{kind}, batches of {size}: {problem}" for problem in problems))
        for size in SIZES:
            batches = make_batches(packets, size)
            figures = take_turns({name: Timer(work, batches, size) for name, work in contenders.all.items()})
            times = figures["dhanhq_us"].median / figures["decode_enrich_us"].median
            rows.append({"kind": kind, "batch": size, **figures, "times_dhanhq": times})
    publish(
        "Decoding, microseconds a packet",
        rows,
        as_json,
        note=f"times_dhanhq is of decode_enrich. All values of {PACKETS:,} packets of each kind agree with dhanhq's.",
        checked=PACKETS * (len(TYPES) + 1),
        **{name: version(name) for name in ("dhanhq", "kiteconnect", "pydantic")},
    )


if __name__ == "__main__":
    main()
