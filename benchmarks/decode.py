"""What decoding costs, of either feed: packets of each kind, and all of them mixed, in batches of several sizes.

    python benchmarks/decode.py [--json]

Both feeds carry the same ticks. Kite has no packets for open interest, previous close and status, so that its mixed
stream is ticks only, and a batch is one message of its, as it sends them. The contenders take turns, microseconds a
packet:

- `client`: the broker's own. `MarketFeed.process_data` of `dhanhq`, a packet at a time, since it knows no batches;
  `KiteTicker._parse_binary` of `kiteconnect`, a message at a time;
- `replaced`: the design that we replace, `struct` and a Pydantic model, up to the parsed packet; of Dhan's only;
- `decode`: ours, with every column copied into an array of its own, so that no work is left undone;
- `decode_enrich`: ours as the capture runs it, up to the rows that are stored.

First every value that a client and we both have is compared, for every packet. A difference is a failure (exit code 1).
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
from dhan_pipeline.feeds.kite.decode import decode as decode_kite
from dhan_pipeline.feeds.kite.wire import COUNT_SIZE
from dhan_pipeline.instruments import (
    ExchangeSegment,
    InstrumentIndex,
    KiteSegment,
    generate_instrument_token,
    make_kite_token,
)
from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.ticks import POSITION_BITS, Decoded, Enriched, Mode, RawTicks, TickBatch

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

#: The same of Kite's client, which has the names of our columns but for these.
_KITE_QUOTE = (
    *("last_price", "average_traded_price", "last_traded_quantity", "volume_traded"),
    *("total_buy_quantity", "total_sell_quantity"),
)
KITE_SAME = {
    Mode.TICKER: ("last_price",),
    Mode.QUOTE: _KITE_QUOTE,
    Mode.FULL: (*_KITE_QUOTE, "oi", "oi_day_high", "oi_day_low"),
}
KITE_DAY = ("open", "high", "low", "close")
KITE_DEPTH = {"price": "prices", "quantity": "quantities", "orders": "orders"}


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

    token = make_kite_token(KiteSegment.NSE, security_id)
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
        numbers = range(1, INSTRUMENTS + 1)
        self._instruments = InstrumentIndex(
            [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in numbers]
            + [make_kite_token(KiteSegment.NSE, number) for number in numbers]
        )
        self._state = MarketState(2 * INSTRUMENTS)
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
        return _read_all(decode(batch.payload, batch.offsets))

    def decode_kite(self, batch: Batch) -> int:
        """Ours, of Kite's message."""
        return _read_all(decode_kite(batch.kite, _one_message(batch)))

    def decode_enrich(self, batch: Batch) -> int:
        """Ours: what is stored."""
        return int(self.enrich(batch).packets.sum())

    def decode_enrich_kite(self, batch: Batch) -> int:
        """Ours, of Kite's message."""
        return int(self.enrich_kite(batch).packets.sum())

    def enrich(self, batch: Batch) -> Enriched:
        """The rows."""
        return self._enrich(decode(batch.payload, batch.offsets), batch.received_ns)

    def enrich_kite(self, batch: Batch) -> Enriched:
        """Those of Kite's message."""
        return self._enrich(decode_kite(batch.kite, _one_message(batch)), batch.received_ns[:1])

    def _enrich(self, decoded: Decoded, received_ns: NDArray[np.int64]) -> Enriched:
        self._block_id += 1
        messages = np.array([0, len(received_ns)])
        return enrich(decoded, np.array([self._block_id]), messages, received_ns, self._instruments, self._state)

    @property
    def dhan(self) -> dict[str, Callable[[Batch], int]]:
        """Those of Dhan's feed, by the name of their column."""
        return {
            "client_us": self.dhanhq,
            "replaced_us": self.replaced,
            "decode_us": self.decode,
            "decode_enrich_us": self.decode_enrich,
        }

    @property
    def kite(self) -> dict[str, Callable[[Batch], int]]:
        """Those of Kite's."""
        return {
            "client_us": self.kiteconnect,
            "decode_us": self.decode_kite,
            "decode_enrich_us": self.decode_enrich_kite,
        }


def _one_message(batch: Batch) -> NDArray[np.int64]:
    """The bounds of Kite's message of a batch."""
    return np.array([0, len(batch.kite)])


def _read_all(decoded: Decoded) -> int:
    for ticks in decoded.ticks:
        for column in ticks.columns.values():
            column.copy()
    return decoded.packets


def check(contenders: Contenders, batches: Sequence[Batch]) -> list[str]:
    """Where a client and we differ, or the two clients read other ticks; a sentence each."""
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
        kite_ticks = contenders.read_kite(batch)
        _check_same_ticks(ticks, kite_ticks, problems)
        _check_kite(kite_ticks, contenders.enrich_kite(batch), problems)
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


def _check_same_ticks(dhanhq: list[dict[str, Any]], kite: list[dict[str, Any]], problems: list[str]) -> None:
    """Both clients were given the same ticks."""

    def value(tick: dict[str, Any]) -> list[Any]:
        depth = [level["price"] for level in tick["depth"]["buy"]] if "depth" in tick else []
        return [f"{tick['last_price']:.2f}", tick.get("volume_traded"), *(f"{price:.2f}" for price in depth)]

    theirs = [
        [tick["LTP"], tick.get("volume"), *(level["bid_price"] for level in tick.get("depth", ()))] for tick in dhanhq
    ]
    _compare("kiteconnect's tick", theirs, [value(tick) for tick in kite], problems)


def _check_kite(theirs: list[dict[str, Any]], ours: Enriched, problems: list[str]) -> None:
    """All values of Kite's ticks."""
    if ours.rejected or sum(map(len, ours.ticks)) != len(theirs):
        problems.append(f"of {len(theirs)} ticks of Kite's {sum(map(len, ours.ticks))} were found")
        return
    for rows in ours.ticks:
        columns, mode = rows.columns, rows.mode
        ticks = [theirs[at] for at in (columns["tick_id"] & (1 << POSITION_BITS) - 1).tolist()]
        _compare(
            "Kite's token", [tick["instrument_token"] for tick in ticks], columns["instrument_token"].tolist(), problems
        )
        pairs = {name: [tick[name] for tick in ticks] for name in KITE_SAME[mode]}
        if mode != Mode.TICKER:
            pairs |= {f"day_{name}": [tick["ohlc"][name] for tick in ticks] for name in KITE_DAY}
        if mode == Mode.FULL:
            # The client shows local time.
            pairs["last_trade_time"] = [int(tick["last_trade_time"].timestamp()) * 1_000_000 for tick in ticks]
            for side, of in (("buy", "bid"), ("sell", "ask")):
                for field, name in KITE_DEPTH.items():
                    pairs[f"{of}_{name}"] = [[level[field] for level in tick["depth"][side]] for tick in ticks]
        for name, values in pairs.items():
            _compare(f"Kite's {name}", values, columns[name].tolist(), problems)


def _text(prices: NDArray[Any]) -> list[Any]:
    """Prices as the client writes them."""
    texts: list[Any] = np.vectorize("{:.2f}".format)(prices).tolist()
    return texts


def _compare(name: str, theirs: Sequence[Any], ours: Sequence[Any], problems: list[str]) -> None:
    if len(theirs) != len(ours):
        problems.append(f"{name}: {len(theirs)} (theirs) and {len(ours)} (ours)")
        return
    different = [at for at, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    if different:
        first = f"{theirs[different[0]]} (theirs) and {ours[different[0]]} (ours)"
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
        for size, part in ((1, packets[:512]), (64, packets), (4096, packets)):
            if problems := check(contenders, make_batches(part, size)):
                wrong(*(f"{kind}, batches of {size}: {problem}" for problem in problems))
        for size in SIZES:
            batches = make_batches(packets, size)
            some = [batch for batch in batches if len(batch.kite) > COUNT_SIZE]
            for feed, work, given in (("dhan", contenders.dhan, batches), ("kite", contenders.kite, some)):
                figures = take_turns({name: Timer(read, given, size) for name, read in work.items()})
                times = figures["client_us"].median / figures["decode_enrich_us"].median
                row = {"feed": feed, "kind": kind, "batch": size} | dict.fromkeys(contenders.dhan, "") | figures
                rows.append(row | {"times_client": times})
    rows.sort(key=lambda row: str(row["feed"]))
    publish(
        "Decoding, microseconds a packet",
        rows,
        as_json,
        note=f"times_client is of decode_enrich. All values of {PACKETS:,} packets a kind agree with the clients'.",
        checked=PACKETS * (len(TYPES) + 1),
        **{name: version(name) for name in ("dhanhq", "kiteconnect", "pydantic")},
    )


if __name__ == "__main__":
    main()
