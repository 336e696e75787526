"""Lets a synthetic market trade, for all exchanges that show it: the same events go out over every wire."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.market import Market

#: Time between two bursts of packets.
SLICE_S = 0.010
#: The market moves this far ahead of what is sent, up to so many events: making few packets costs as much as many.
_AHEAD_S = 0.05
_MAX_AHEAD_EVENTS = 2000
#: What is late by more than this is never sent; and a burst takes no longer to make.
_CATCH_UP_S = 0.25


class Client(Protocol):
    """Somebody who sees the market."""

    modes: NDArray[np.uint8]
    """What of each instrument, by its index in the market; 0 for nothing."""

    def prepare(self, index: NDArray[np.intp], oi_changed: NDArray[np.intp], event: int) -> None:
        """Encode what the client is to get of these instruments, which the events from `event` on have moved.

        `oi_changed` are those of them whose open interest did.
        """

    def release(self, events: int) -> None:
        """Send what the events before `events` brought."""


class Trading:
    """Events at `rate` a second, in small bursts. What is late is caught up with, up to a bound."""

    def __init__(self, market: Market, rate: float, clock: Clock) -> None:
        self.market = market
        self.rate = rate
        """Events a second (real seconds, whatever the clock's speed); it may be changed at any time."""
        self.audiences: list[Sequence[Client]] = []
        """Who is connected to each exchange that shows the market."""
        self._clock = clock
        self._owed = 0.0
        self._prepared = self._released = 0  # events since the start
        self.choose()

    def choose(self) -> None:
        """Only what somebody is subscribed to trades."""
        wanted = np.zeros(len(self.market), np.bool_)
        for client in self._clients():
            wanted |= client.modes > 0
        self.market.select(np.flatnonzero(wanted))

    def flush(self) -> None:
        """Send now what the market is ahead by. With a rate of 0 before, clients then have its last state."""
        self._release(self._prepared)

    async def run(self) -> None:
        """Let it trade until cancelled."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(SLICE_S)
            now = loop.time()
            self._owed += self.rate * min(now - last, _CATCH_UP_S)
            last = now
            while self._owed >= 1 and loop.time() - now < _CATCH_UP_S:
                if self._released == self._prepared and not self._prepare():
                    break
                self._release(min(self._prepared, self._released + int(self._owed)))
            self._owed = min(self._owed, 1.0)

    def _prepare(self) -> bool:
        """Let the market move: as far as is due, or a little ahead, which an accelerated clock would notice.

        False where nobody is subscribed to anything.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        ahead = self.rate * _AHEAD_S / max(1.0, self._clock.speed)
        for index, oi_changed in self.market.step(min(int(max(self._owed, ahead)), _MAX_AHEAD_EVENTS)):
            for client in self._clients():
                client.prepare(index, oi_changed, self._prepared)
            self._prepared += len(index)
            if loop.time() - started > _AHEAD_S:  # few instruments at a high rate: as fast as it can, and no faster
                break
        return self._prepared > self._released

    def _release(self, events: int) -> None:
        for client in self._clients():
            client.release(events)
        self._owed -= events - self._released
        self._released = events

    def _clients(self) -> Iterator[Client]:
        return chain.from_iterable(self.audiences)
