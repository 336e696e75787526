"""A synthetic market: seeded, repeatable, and cheap enough to share two cores with what it feeds.

The state of every instrument lives in NumPy arrays, and beside it the packets themselves, encoded and framed, as rows
of a structured array. An event moves a few fields of a row; sending is a gather of rows. NumPy copies a structured
row field by field, 30 times as slowly as an opaque one, hence the `V` views.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import DEPTH_LEVEL, HEADER, LAYOUTS, ResponseCode
from dhan_pipeline.feeds.simulator.bars import MinuteBars
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.ticks import DEPTH_LEVELS

#: The packets that the market makes.
_CODES = (
    ResponseCode.TICKER,
    ResponseCode.QUOTE,
    ResponseCode.FULL,
    ResponseCode.OPEN_INTEREST,
    ResponseCode.PREVIOUS_CLOSE,
)
_FULL = LAYOUTS[ResponseCode.FULL].dtype

#: Fields that other packets take from the full one.
_SHARED_FIELDS = {
    code: [field.name for field in LAYOUTS[code].fields[len(HEADER.fields) :]]
    for code in (ResponseCode.TICKER, ResponseCode.QUOTE, ResponseCode.OPEN_INTEREST)
}

#: Price step in rupees, and a typical price, by segment.
_TICK_SIZE_AND_PRICE = {
    ExchangeSegment.IDX_I: (0.05, 20_000.0),
    ExchangeSegment.NSE_EQ: (0.05, 500.0),
    ExchangeSegment.NSE_FNO: (0.05, 150.0),
    ExchangeSegment.NSE_CURRENCY: (0.0025, 85.0),
    ExchangeSegment.BSE_EQ: (0.05, 500.0),
    ExchangeSegment.MCX_COMM: (1.0, 7_000.0),
    ExchangeSegment.BSE_CURRENCY: (0.0025, 85.0),
    ExchangeSegment.BSE_FNO: (0.05, 150.0),
}
_CASH = (ExchangeSegment.IDX_I, ExchangeSegment.NSE_EQ, ExchangeSegment.BSE_EQ)

#: Share of packets that carry a trade. The rest move the book only: 55 % were seen on the real feed.
_TRADE_SHARE = 0.45
_OI_CHANGE_SHARE = 0.05
#: Share of tradable instruments that nobody has traded today when the market is made, with a book of three levels.
_ILLIQUID_SHARE = 0.01

#: Random draws made at a time, one a packet; and ready-made books, for each kind of book.
_DRAWS = 16_384
_BOOKS = 1024

_MAX_UINT32 = 2**32 - 1
_LOWEST_TICKS = 8  # five bids fit below it
_DAY_S = 86_400

#: Bars as `minute_bars` and `day_bar` give them: start (seconds since the Unix epoch, UTC), rupees, units.
BARS = np.dtype(
    [("time_s", np.int64)]
    + [(name, np.float64) for name in ("open", "high", "low", "close")]
    + [("volume", np.int64), ("oi", np.int64)]
)


def frame_header(size: int) -> bytes:
    """Header of an unmasked binary WebSocket frame, as a server sends it (RFC 6455 §5.2). `size` below 65,536."""
    return b"\x82" + (size.to_bytes(1, "big") if size < 126 else b"\x7e" + size.to_bytes(2, "big"))


class Market:
    """Instruments that trade, each a random walk on its tick size within 20 % of the previous close.

    The same tokens, seed, clock readings and selections give the same bytes, however the packets are sliced into
    steps. An instrument's opening state depends on its token and the seed only, not on its neighbours. Prices are in
    rupees; last trade times are IST wall-clock epochs, as on Dhan's wire. At IST midnight of the clock a new day
    begins: the last price becomes the previous close, and the day's numbers are zero until the first trade.

    It keeps the bars of what it trades: of today, and of the minutes that 64 MB have room for.
    """

    def __init__(self, tokens: Sequence[int] | NDArray[np.int64], *, seed: int = 0, clock: Clock | None = None) -> None:
        """Open the market for the instruments of these tokens. Raises ValueError where one is given twice."""
        self.tokens: NDArray[np.int64] = np.asarray(tokens, np.int64)
        self.trade_time_offset_s = IST_OFFSET_S
        """Seconds that trade times on the wire are ahead of UTC. The real feed's are India's wall clock."""
        self._clock = clock or Clock()
        self._index_of = {token: index for index, token in enumerate(self.tokens.tolist())}
        if len(self._index_of) != len(self.tokens):
            raise ValueError("an instrument is in the market twice")
        self._draw_generator, self._order_generator = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
        self._rows = {code: self._blank_rows(code) for code in _CODES}
        self._opaque = {code: rows.view(f"V{rows.itemsize}") for code, rows in self._rows.items()}
        self._fields: dict[str, NDArray[Any]] = {
            field.name: self._rows[ResponseCode.FULL]["packet"][field.name]
            for field in LAYOUTS[ResponseCode.FULL].fields
        }
        depth_size = _FULL["depth"].itemsize
        rows = self._rows[ResponseCode.FULL]
        self._depth = rows.view([("before", f"V{rows.itemsize - depth_size}"), ("depth", f"V{depth_size}")])["depth"]
        self._make_books(seed)
        self._make_instruments(seed)
        now = self._now_ist()
        self._day = now // _DAY_S
        self._begin_day()
        self._trade_until_now(seed, now)
        self._make_draws()
        self._selection: NDArray[np.intp] = np.arange(0)
        self.select(np.arange(len(self)))

    def __len__(self) -> int:
        return len(self.tokens)

    def index_of(self, token: int) -> int | None:
        """Index of an instrument, None where it is not in the market."""
        return self._index_of.get(token)

    def select(self, index: NDArray[np.intp]) -> None:
        """Let only these instruments trade from now on."""
        self._selection = index
        self._order = index[:0]
        self._next = 0

    def derivatives(self, index: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of `index` that have open interest."""
        return index.compress(self._oi_lot[index] > 0)

    def step(self, events: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Let `events` events happen, one an instrument in turn, in a new random order each time round.

        Yields (instruments that moved, those of them whose open interest changed) for each part in which no instrument
        occurs twice. Encode a part before asking for the next: the market has moved on by then.
        """
        if not len(self._selection):
            return
        now = self._now_ist()
        if _minute(now) != self._bars.minute:
            self._bars.end_minute(_minute(now), self._ticks, self._volume, self._oi)
        if now // _DAY_S != self._day:
            self._day = now // _DAY_S
            self._begin_day()
            self._bars.restart(self._volume)
        traded_at = now - IST_OFFSET_S + self.trade_time_offset_s
        while events:
            if self._next == len(self._order):
                self._order = self._order_generator.permutation(self._selection)
                self._next = 0
            if self._drawn == _DRAWS:
                self._make_draws()
            count = min(events, len(self._order) - self._next, _DRAWS - self._drawn)
            index = self._order[self._next : self._next + count]
            changed = self._move(index, slice(self._drawn, self._drawn + count), traded_at)
            self._next += count
            self._drawn += count
            events -= count
            yield index, changed

    def packets(self, code: ResponseCode, index: NDArray[np.intp]) -> NDArray[Any]:
        """The current packets of these instruments: a structured array of that layout."""
        packets: NDArray[Any] = self._framed(code, index)["packet"]
        return packets

    def frames(self, code: ResponseCode, index: NDArray[np.intp]) -> bytes:
        """The current packets of these instruments, each in a WebSocket frame of its own, one after another."""
        return self._framed(code, index).tobytes()

    def minute_bars(self, index: int) -> NDArray[np.void]:
        """`BARS` of the minutes in which the instrument traded, by its trade times; the last may be unfinished.

        They are what a client makes of every packet, the snapshot before the first trade included: the trades of the
        day before the market was made are one, of no volume.
        """
        minutes, found = self._bars.of(index, self._ticks, self._volume, self._oi)
        bars = np.empty(len(found), BARS)
        bars["time_s"] = minutes * 60
        for name in ("open", "high", "low", "close"):
            bars[name] = self._rupees(index, found[name])
        for name in ("volume", "oi"):
            bars[name] = found[name]
        return bars

    def day_bar(self, index: int) -> NDArray[np.void]:
        """`BARS` of the day that is: one, or none if the instrument was not traded yet. No other day is known."""
        bars = np.empty(int(self._opened[index] > 0), BARS)
        bars["time_s"] = self._day * _DAY_S - IST_OFFSET_S
        for name, ticks in (
            *(("open", self._opened), ("high", self._highest)),
            *(("low", self._lowest), ("close", self._ticks)),
        ):
            bars[name] = self._rupees(index, ticks[index])
        bars["volume"], bars["oi"] = self._volume[index], self._oi[index]
        return bars

    def _rupees(self, index: int, ticks: NDArray[Any]) -> NDArray[np.float64]:
        rupees: NDArray[np.float64] = np.round(ticks * self._tick_size[index], 4)
        return rupees

    def _framed(self, code: ResponseCode, index: NDArray[np.intp]) -> NDArray[Any]:
        rows = self._opaque[code].take(index).view(self._rows[code].dtype)
        if code in _SHARED_FIELDS:
            full = self._opaque[ResponseCode.FULL].take(index).view(self._rows[ResponseCode.FULL].dtype)["packet"]
            packets = rows["packet"]
            for name in _SHARED_FIELDS[code]:
                packets[name] = full[name]
        return rows

    def _now_ist(self) -> int:
        """The wall clock in India, in seconds, as if it were UTC: what the feed sends as a time."""
        return self._clock.now_ns() // 1_000_000_000 + IST_OFFSET_S

    def _blank_rows(self, code: ResponseCode) -> NDArray[Any]:
        """A framed packet an instrument, with nothing but its headers."""
        layout = LAYOUTS[code]
        frame = np.frombuffer(frame_header(layout.size), np.uint8)
        rows = np.zeros(len(self), [("frame", np.uint8, (len(frame),)), ("packet", layout.dtype)])
        rows["frame"] = frame
        packet = rows["packet"]
        packet["response_code"] = code
        packet["message_length"] = layout.size
        packet["exchange_segment"] = self.tokens >> 32 & 0xF
        packet["security_id"] = self.tokens & 0xFFFFFFFF
        return rows

    def _make_books(self, seed: int) -> None:
        """Quantities and orders of ready-made books: of five levels, of three, and empty ones for indices."""
        generator = np.random.default_rng((seed, 1))
        books = np.zeros((3, _BOOKS, DEPTH_LEVELS), DEPTH_LEVEL.dtype)
        for side in ("bid", "ask"):
            orders = generator.integers(1, 60, books.shape)
            books[f"{side}_orders"] = orders
            books[f"{side}_quantity"] = orders * generator.integers(1, 400, books.shape)
        books[1, :, 3:] = 0
        books[2] = 0
        self._book_totals = {
            side: books[f"{side}_quantity"].sum(axis=2, dtype=np.int64).ravel() for side in ("bid", "ask")
        }
        self._books = books.view(self._depth.dtype).ravel()

    def _make_instruments(self, seed: int) -> None:
        """What each instrument is: tick size, lot, liquidity; its previous close; and its price as the day opens."""
        segment = self.tokens >> 32 & 0xF
        uniform = self._uniform
        table = np.zeros((16, 3))
        for number, (tick_size, price) in _TICK_SIZE_AND_PRICE.items():
            table[number] = tick_size, price, number not in _CASH
        self._tick_size, price, derivative = table[segment].T.copy()
        tradable = segment != ExchangeSegment.IDX_I
        spread = np.where(np.isin(segment, (ExchangeSegment.NSE_CURRENCY, ExchangeSegment.BSE_CURRENCY)), 0.2, 3.0)
        price = price * np.exp(spread * (uniform(seed, 1) - 0.5))
        self._ticks = np.maximum(price / self._tick_size, 40).astype(np.int64)
        lot = 1 + derivative * (24 + 5 * np.floor(20 * uniform(seed, 2)))
        self._lot = (lot * tradable).astype(np.int64)
        self._oi_lot = (lot * derivative).astype(np.int64)
        self._reports_oi_range = segment == ExchangeSegment.NSE_FNO
        self._illiquid = tradable & (uniform(seed, 3) < _ILLIQUID_SHARE)
        book = np.where(tradable, np.where(self._illiquid, 1, 0), 2)
        self._first_book = book * _BOOKS
        self._opening_book = (_BOOKS * uniform(seed, 9)).astype(np.int64)
        shown = np.arange(DEPTH_LEVELS) < np.array([5, 3, 0])[book][:, None]
        self._level_tick_size = np.where(shown, self._tick_size[:, None], 0.0)
        self._deeper = (tradable * 100_000 * uniform(seed, 4)).astype(np.int64)
        self._oi = (self._oi_lot * (1000 + 50_000 * uniform(seed, 5))).astype(np.int64)
        self._opened, self._highest, self._lowest, self._volume = np.zeros((4, len(self)), np.int64)
        self._turnover = np.zeros(len(self))

    def _uniform(self, seed: int, salt: int) -> NDArray[np.float64]:
        """A number in [0, 1) an instrument, from its token: splitmix64."""
        bits = self.tokens.astype(np.uint64) + np.uint64((seed * 1_000_003 + salt) * 0x9E3779B97F4A7C15 % 2**64)
        bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return (bits >> np.uint64(11)) / 2.0**53

    def _begin_day(self) -> None:
        """Before the first trade: no open, high, low, volume; the last price is the previous close."""
        close = self._ticks
        self._floor = np.maximum(close * 4 // 5, _LOWEST_TICKS)
        self._ceiling = close * 6 // 5
        for column in (self._opened, self._highest, self._lowest, self._volume, self._turnover):
            column[:] = 0
        self._oi_high, self._oi_low = self._oi.copy(), self._oi.copy()
        previous = self._rows[ResponseCode.PREVIOUS_CLOSE]["packet"]
        previous["prev_close"] = close * self._tick_size
        previous["prev_oi"] = self._oi
        self._fields["day_close"][:] = previous["prev_close"]
        self._fields["last_traded_quantity"][:] = 0
        everything = np.arange(len(self))
        self._write(everything)
        self._write_book(everything, self._first_book + self._opening_book, 1, 1)

    def _trade_until_now(self, seed: int, now: int) -> None:
        """The day so far, made up at once: volume as if traded evenly since midnight, so that it grows on a restart."""
        index = np.flatnonzero(~self._illiquid)
        walks = [(0.04 * self._uniform(seed, salt)[index] - 0.02) * self._ticks[index] for salt in (6, 7)]
        self._opened[index] = self._ticks[index] + walks[0].astype(np.int64)
        self._ticks[index] = self._opened[index] + walks[1].astype(np.int64)
        self._highest[index] = np.maximum(self._opened, self._ticks)[index] + 5
        self._lowest[index] = np.minimum(self._opened, self._ticks)[index] - 5
        a_second = 10 ** (4.5 * self._uniform(seed, 8)[index])
        self._volume[index] = (self._lot[index] > 0) * a_second * (now % _DAY_S + 1)
        average = (self._highest + self._lowest)[index] / 2 * self._tick_size[index]
        self._turnover[index] = self._volume[index] * average
        self._fields["last_traded_quantity"][index] = self._lot[index]
        self._fields["last_trade_time"][index] = now
        self._write(index)
        self._write_book(index, self._first_book[index] + self._opening_book[index], 1, 1)
        self._bars = MinuteBars(_minute(now), self._volume)
        self._bars.note(index, self._ticks[index])

    def _make_draws(self) -> None:
        """The chance in the next packets, a number each."""
        generator = self._draw_generator
        self._traded = generator.random(_DRAWS) < _TRADE_SHARE
        self._walk = generator.integers(-2, 3, _DRAWS) * self._traded
        self._lots = np.minimum(generator.geometric(0.05, _DRAWS), 200)
        self._oi_lots = generator.integers(-9, 11, _DRAWS) * (
            self._traded & (generator.random(_DRAWS) < _OI_CHANGE_SHARE)
        )
        self._below = generator.integers(0, 3, _DRAWS)
        self._above = np.maximum(generator.integers(0, 3, _DRAWS), 1 - self._below)
        self._book = generator.integers(0, _BOOKS, _DRAWS)
        self._drawn = 0

    def _move(self, index: NDArray[np.intp], draws: slice, now: int) -> NDArray[np.intp]:
        """One event an instrument: a trade, or a change of the book alone. Returns whose open interest changed."""
        traded = self._traded[draws]
        i = index.compress(traded)
        ticks = np.clip(self._ticks[i] + self._walk[draws][traded], self._floor[i], self._ceiling[i])
        size = self._lots[draws][traded] * self._lot[i]
        self._ticks[i] = ticks
        self._bars.note(i, ticks)
        self._volume[i] = np.minimum(self._volume[i] + size, _MAX_UINT32)
        self._turnover[i] += size * ticks * self._tick_size[i]
        opened = self._opened[i]
        first = opened == 0
        self._opened[i] = np.where(first, ticks, opened)
        self._highest[i] = np.maximum(self._highest[i], ticks)
        self._lowest[i] = np.where(first, ticks, np.minimum(self._lowest[i], ticks))
        change = self._oi_lots[draws] * self._oi_lot[index]
        changed = index.compress(change != 0)
        if len(changed):
            oi = np.maximum(self._oi[changed] + change.compress(change != 0), 0)
            self._oi[changed] = oi
            self._oi_high[changed] = np.maximum(self._oi_high[changed], oi)
            self._oi_low[changed] = np.minimum(self._oi_low[changed], oi)
        self._fields["last_traded_quantity"][i] = size
        self._fields["last_trade_time"][i] = now
        self._write(i)
        self._write_book(index, self._first_book[index] + self._book[draws], self._below[draws], self._above[draws])
        return changed

    def _write(self, index: NDArray[np.intp]) -> None:
        """State into packets: prices, volume, open interest."""
        fields = self._fields
        tick_size = self._tick_size[index]
        volume = self._volume[index]
        fields["last_price"][index] = self._ticks[index] * tick_size
        fields["day_open"][index] = self._opened[index] * tick_size
        fields["day_high"][index] = self._highest[index] * tick_size
        fields["day_low"][index] = self._lowest[index] * tick_size
        fields["volume_traded"][index] = volume
        fields["average_traded_price"][index] = self._turnover[index] / np.maximum(volume, 1)
        fields["oi"][index] = self._oi[index]
        fields["oi_day_high"][index] = self._oi_high[index] * self._reports_oi_range[index]
        fields["oi_day_low"][index] = self._oi_low[index] * self._reports_oi_range[index]

    def _write_book(
        self,
        index: NDArray[np.intp],
        book: NDArray[np.int64],
        below: NDArray[np.int64] | int,
        above: NDArray[np.int64] | int,
    ) -> None:
        """Depth into packets: best bid and ask this many ticks below and above the last price, and levels beyond."""
        opaque = self._books.take(book)
        levels = opaque.view(DEPTH_LEVEL.dtype).reshape(-1, DEPTH_LEVELS)
        ticks = self._ticks[index]
        tick_size = self._level_tick_size[index]
        levels["bid_price"] = np.subtract.outer(ticks - below, _LEVELS) * tick_size
        levels["ask_price"] = np.add.outer(ticks + above, _LEVELS) * tick_size
        self._depth[index] = opaque
        deeper = self._deeper[index]
        self._fields["total_buy_quantity"][index] = self._book_totals["bid"].take(book) + deeper
        self._fields["total_sell_quantity"][index] = self._book_totals["ask"].take(book) + deeper


def _minute(ist: int) -> int:
    """Number of the minute since the Unix epoch, UTC, of a wall clock in India."""
    return (ist - IST_OFFSET_S) // 60


_LEVELS = np.arange(DEPTH_LEVELS)
