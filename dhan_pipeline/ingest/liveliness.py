"""What the stored packets say about the feed: who fell silent, which clock it keeps, what the market does.

The writer shows it each block once it is stored. Nothing here changes data.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.market import Market
from dhan_pipeline.instruments import ExchangeSegment, InstrumentIndex, exchange_segments, segment_of, segments_of
from dhan_pipeline.quality.silence import SilenceWatch
from dhan_pipeline.quality.trade_clock import TradeClock, Verdict
from dhan_pipeline.sessions import IST, day_start_ns, in_closing_auction, packets_due_throughout, sessions
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.ticks import StoredBlocks
from dhan_pipeline.ticks import NULL_INT, Mode

#: How often (ns, of the packets' own times) silence is looked for.
CHECK_NS = 1_000_000_000

#: What it looks at of a tick.
_SEEN = ("instrument_token", "time", "last_trade_time", "last_price", "day_close")

#: The number of an instrument's part is made of its connection and its segment. No broker allows so many connections.
_PARTS = 16 << 8

#: Rows that wait for it at most. Looking at each block as it comes took 1.5 % of a core at 100 blocks a second.
_WAITING_ROWS = 1 << 14


class Listener(Protocol):
    """Hears of instruments: one of its own, or all of a segment on a connection. Times are ns since the epoch, UTC."""

    def silent(self, instruments: tuple[int, ...], connection: int, since_ns: int) -> None:
        """They were lively, and sent nothing after `since_ns`."""

    def heard(self, instruments: tuple[int, ...], at_ns: int) -> None:
        """One of them sent a packet again at `at_ns`; 0: their silence is no longer watched."""


class Liveliness:
    """Watches over the instruments of one capture. For the writer's thread; `trade_clock` may be read by others."""

    def __init__(
        self, settings: Settings, connections: Mapping[int, int], listener: Listener | None, speed: float = 1.0
    ) -> None:
        """`connections`: the connection of each subscribed instrument token. `speed`: that of the clock of the feed."""
        self._always = settings.sessions == "always"
        self._offset_s = settings.trade_time_offset_s
        self._connections = connections
        self._changing = Lock()
        self._changed: tuple[Mapping[int, int], set[int]] | None = None
        self._listener = listener
        self._check_ns = 0
        self._waiting: list[tuple[Mode, list[NDArray[Any]]]] = []
        """Of each batch: its mode, and the columns of `_SEEN`. Times are us."""
        self._waiting_rows = 0
        self._silent: dict[tuple[int, ...], int] = {}
        """Whom the listener knows to be silent, and their connection."""
        self._silent_parts: dict[int, tuple[int, ...]] = {}
        """Who is in them."""
        self.trade_clock: Verdict = None
        """Whether trade times are what they should be; None: too few packets to say."""
        self.traded_though_closed: frozenset[ExchangeSegment] = frozenset()
        """Segments that have traded today, although the calendar has no session of theirs today."""
        self.market = Market(speed)
        self._instruments = InstrumentIndex([])
        self._futures: NDArray[np.int64] = np.zeros(0, np.int64)
        self._begin()

    def change(self, connections: Mapping[int, int], anew: Collection[int]) -> None:
        """These are subscribed from now on, each on its connection; of those `anew` nothing is known.

        For another thread.
        """
        with self._changing:
            before = set() if self._changed is None else self._changed[1]
            self._changed = connections, before.union(anew)

    def know(self, instruments: InstrumentIndex, futures: NDArray[np.int64] | None = None) -> None:
        """Watch these instruments; begin anew if they are others than before. `futures`: tokens of those that are."""
        self._catch_up()
        if not np.array_equal(instruments.tokens, self._instruments.tokens):
            for connection in set(self._silent.values()):
                self._forget(connection)
            self._instruments = instruments
            if futures is not None:
                self._futures = futures
            self._begin()
        elif futures is not None:
            self._futures = futures
            self._assign()

    def _begin(self) -> None:
        self._assign()
        self._silence = SilenceWatch(self._connection_of)
        # All of a segment may well be half of a connection: that is no reason to excuse it.
        self._parts = SilenceWatch(self._part_connection, common=1.0)
        self._clock = TradeClock(self._offset_s)

    def _assign(self) -> None:
        tokens = self._instruments.tokens
        self._connection_of = np.full(len(tokens), -1, np.int16)
        at = self._instruments.lookup(np.fromiter(self._connections, np.int64, len(self._connections)))
        numbers = np.fromiter(self._connections.values(), np.int16, len(self._connections))
        self._connection_of[at[at >= 0]] = numbers[at >= 0]
        subscribed = np.flatnonzero(self._connection_of >= 0)
        self._segments = exchange_segments(tokens[subscribed])
        # A connection's instruments of one segment are watched together, as if they were one.
        self._part_of = np.full(len(tokens), _PARTS)  # those not subscribed
        self._part_of[subscribed] = self._connection_of[subscribed].astype(np.int64) << 8 | segments_of(
            tokens[subscribed]
        )
        self._part_connection = np.full(_PARTS + 1, -1, np.int16)
        parts = np.unique(self._part_of[subscribed])
        self._part_connection[parts] = parts >> 8
        self.market.know(self._instruments, self._connection_of >= 0, self._futures)

    def _take_over(self) -> None:
        """Take over the change of what is subscribed, if there is one."""
        with self._changing:
            changed, self._changed = self._changed, None
        if changed is None:
            return
        self._catch_up()
        self._connections, anew = changed
        tokens, before = self._instruments.tokens, self._connection_of
        self._assign()
        begin_anew = (self._connection_of != before) | np.isin(tokens, np.fromiter(anew, np.int64, len(anew)))
        self._silence.change(self._connection_of, begin_anew)
        parts_anew = np.ones(len(self._part_connection), np.bool_)
        parts_anew[self._part_of[~begin_anew]] = False
        gone = set(tokens[begin_anew].tolist())
        for part, instruments in list(self._silent_parts.items()):
            if instruments != self._of_part(part):
                parts_anew[part] = True
                del self._silent_parts[part]
                self._tell_heard(instruments, 0)
        self._parts.change(self._part_connection, parts_anew)
        for instruments in [instruments for instruments in self._silent if len(instruments) == 1]:
            if instruments[0] in gone:
                self._tell_heard(instruments, 0)

    def see(self, blocks: StoredBlocks) -> None:
        """Take account of stored blocks. What is noted in them is taken for what came first."""
        self._take_over()
        for _, note in blocks.notes:
            if isinstance(note, Gap) and note.cause is not Cause.SILENT:
                # A connection that was away says nothing about its instruments.
                self._catch_up()
                self._forget(note.connection)
        for batch in blocks.enriched.ticks:
            columns = batch.columns
            self._waiting.append((batch.mode, [columns[name] for name in _SEEN]))
        self._waiting_rows += int(blocks.enriched.rows.sum())
        last_ns = blocks.stretch.last_received_ns
        check = last_ns >= self._check_ns
        if check or self._waiting_rows > _WAITING_ROWS:
            self._catch_up()
        if check:
            self._check_ns = last_ns + CHECK_NS
            self._check(last_ns)
            self.market.look(last_ns)

    def _catch_up(self) -> None:
        """Take account of what waits: packets of an instrument count as one interval with several at its end."""
        if not self._waiting:
            return
        modes, columns = zip(*self._waiting, strict=True)
        self._waiting, self._waiting_rows = [], 0
        seen = [np.concatenate(values) for values in zip(*columns, strict=True)]
        if len(set(modes)) > 1:
            order = seen[1].argsort(kind="stable")
            seen = [values[order] for values in seen]
        token, received_us, traded_us, price, close = seen
        received_ns = received_us * 1000
        index = self._instruments.lookup(token)
        self._silence.update(index, received_ns)
        self._parts.update(self._part_of[index], received_ns)
        if not self._always:
            self._see_trades(token, traded_us, int(received_ns[-1]))
        self._clock.update(np.where(traded_us == NULL_INT, 0, traded_us // 1_000_000), received_ns)
        self.market.update(index, received_us, price, close)

    def _see_trades(self, token: NDArray[np.int64], traded_us: NDArray[np.int64], now_ns: int) -> None:
        """Notice that the calendar is wrong. Who subscribes on a holiday gets packets, but their trades are older."""
        day = datetime.fromtimestamp(now_ns // 1_000_000_000, IST).date()
        closed = {segment for segment in self._segments if not sessions(segment, day)}
        traded: set[int] = set()
        if closed:
            today = traded_us >= day_start_ns(now_ns) // 1000
            traded = set(np.unique(segments_of(token[today])).tolist())
        self.traded_though_closed = frozenset(
            segment for segment in closed if segment in traded or segment in self.traded_though_closed
        )

    def _check(self, now_ns: int) -> None:
        self.trade_clock = self._clock.verdict()
        if self._listener is None:
            return
        silent, back = self._parts.check(now_ns)
        for part, _, first_ns in back:
            if instruments := self._silent_parts.pop(part, None):
                self._tell_heard(instruments, first_ns)
        for part, last_ns in silent:
            instruments = self._of_part(part)
            if self._tell_silent(instruments, int(self._part_connection[part]), last_ns, now_ns):
                self._silent_parts[part] = instruments
        silent, back = self._silence.check(now_ns)
        for at, _, first_ns in back:
            self._tell_heard((int(self._instruments.tokens[at]),), first_ns)
        for at, last_ns in silent:
            if self._part_of[at] not in self._silent_parts:
                self._tell_silent((int(self._instruments.tokens[at]),), int(self._connection_of[at]), last_ns, now_ns)

    def _of_part(self, part: int) -> tuple[int, ...]:
        return tuple(self._instruments.tokens[self._part_of == part].tolist())

    def _tell_silent(self, instruments: tuple[int, ...], connection: int, last_ns: int, now_ns: int) -> bool:
        """Whether they are silent indeed: packets were due from them all the time."""
        segment = segment_of(instruments[0])
        # In the closing auction nobody can tell: some stocks of the segment no longer trade continuously then.
        if not self._always and (
            in_closing_auction(now_ns, segment) or not packets_due_throughout(last_ns, now_ns, (segment,))
        ):
            return False
        self._silent[instruments] = connection
        assert self._listener is not None
        self._listener.silent(instruments, connection, last_ns)
        return True

    def _tell_heard(self, instruments: tuple[int, ...], at_ns: int) -> None:
        if self._silent.pop(instruments, None) is not None:
            assert self._listener is not None
            self._listener.heard(instruments, at_ns)

    def _forget(self, connection: int) -> None:
        """Begin anew with a connection."""
        for instruments in [instruments for instruments, of in self._silent.items() if of == connection]:
            self._tell_heard(instruments, 0)
        for part in [part for part in self._silent_parts if part >> 8 == connection]:
            del self._silent_parts[part]
        self._silence.reset(connection)
        self._parts.reset(connection)
