"""What the stored packets say about the feed: which lively instruments fell silent, and which clock it keeps.

The writer shows it each block once it is stored. Nothing here changes data.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.instruments import InstrumentIndex, split_instrument_token
from dhan_pipeline.quality.gaps import session_seconds
from dhan_pipeline.quality.silence import SilenceWatch
from dhan_pipeline.quality.trade_clock import TradeClock, Verdict
from dhan_pipeline.sessions import in_closing_auction
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.ticks import StoredBlock
from dhan_pipeline.ticks import NULL_INT

#: How often (ns, of the packets' own times) silence is looked for.
CHECK_NS = 1_000_000_000


class Listener(Protocol):
    """Hears of instruments. Times are ns since the Unix epoch, UTC."""

    def silent(self, instrument: int, connection: int, since_ns: int) -> None:
        """A lively one sent nothing after `since_ns`."""

    def heard(self, instrument: int, at_ns: int) -> None:
        """A silent one sent a packet again at `at_ns`; 0: its silence is no longer watched."""


class Liveliness:
    """Watches over the instruments of one capture. For the writer's thread; `trade_clock` may be read by others."""

    def __init__(self, settings: Settings, connections: Mapping[int, int], listener: Listener | None) -> None:
        """`connections`: the connection of each subscribed instrument token."""
        self._always = settings.sessions == "always"
        self._offset_s = settings.dhan_trade_time_offset_s
        self._connections = connections
        self._listener = listener
        self._check_ns = 0
        self._silent: set[int] = set()
        self.trade_clock: Verdict = None
        """Whether trade times are what they should be; None: too few packets to say."""
        self.know(InstrumentIndex([]))

    def know(self, instruments: InstrumentIndex) -> None:
        """Begin anew with these instruments."""
        self._forget()
        self._instruments = instruments
        self._connection_of = np.full(len(instruments.tokens), -1, np.int16)
        tokens = np.fromiter(self._connections, np.int64, len(self._connections))
        at = instruments.lookup(tokens)
        numbers = np.fromiter(self._connections.values(), np.int16, len(self._connections))
        self._connection_of[at[at >= 0]] = numbers[at >= 0]
        self._silence = SilenceWatch(self._connection_of)
        self._clock = TradeClock(self._offset_s)

    def see(self, block: StoredBlock) -> None:
        """Take account of a stored block."""
        if any(isinstance(note, Gap) and note.cause is not Cause.SILENT for _, note in block.notes):
            # A connection that was away says nothing about its instruments.
            self._forget()
            self._silence.reset()
        for batch in block.enriched.ticks:
            columns = batch.columns
            received_us, traded_us = columns["time"], columns.get("last_trade_time")
            index = self._instruments.lookup(columns["instrument_token"])
            self._silence.update(index, received_us * 1000)
            if traded_us is not None:
                traded_s = np.where(traded_us == NULL_INT, 0, traded_us // 1_000_000)
                self._clock.update(traded_s, received_us * 1000)
        if block.last_received_ns >= self._check_ns:
            self._check_ns = block.last_received_ns + CHECK_NS
            self._check(block.last_received_ns)

    def _check(self, now_ns: int) -> None:
        self.trade_clock = self._clock.verdict()
        silent, back = self._silence.check(now_ns)
        if self._listener is None:
            return
        for at, _, first_ns in back:
            token = int(self._instruments.tokens[at])
            if token in self._silent:
                self._silent.discard(token)
                self._listener.heard(token, first_ns)
        for at, last_ns in silent:
            token = int(self._instruments.tokens[at])
            segment = split_instrument_token(token)[0]
            # One whose session ended is not silent, but closed. In the closing auction nobody can tell: some stocks
            # of the segment no longer trade continuously then.
            if not self._always and in_closing_auction(now_ns, segment):
                continue
            if session_seconds(last_ns, now_ns, (segment,), self._always) >= (now_ns - last_ns) / 1e9 - 1:
                self._silent.add(token)
                self._listener.silent(token, int(self._connection_of[at]), last_ns)

    def _forget(self) -> None:
        if self._listener is not None:
            for token in self._silent:
                self._listener.heard(token, 0)
        self._silent.clear()
