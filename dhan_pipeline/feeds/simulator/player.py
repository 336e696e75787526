"""Plays a recording over an exchange: when what was received once is due again, and when it has to wait."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.simulator.exchange import HIGH_WATER_BYTES, Connection, Exchange
from dhan_pipeline.feeds.simulator.trading import SLICE_S

#: Packets that are sent at once, at most: other tasks wait for them.
_BURST = 2048

#: How long subscriptions must have rested before the recording begins: a client sends many, over several connections.
SETTLED_S = 1.0

#: How often a client that has too much to read is looked at.
_PATIENCE_S = 0.001

#: No recording is longer, and a time that is so much later is still a time: a speed may be any number.
_LONGEST_NS = 2.0**62


class Piece(Protocol):
    """A part of a recording: packets in order of receipt."""

    @property
    def received_ns(self) -> NDArray[np.int64]:
        """When each was received, ns since the Unix epoch, UTC."""

    def __len__(self) -> int:
        """How many there are."""


C = TypeVar("C", bound=Connection)
P = TypeVar("P", bound=Piece)


class Player(Exchange[C], Generic[C, P]):
    """An exchange that plays a recording. `begin` lets it begin; by itself it does so once clients have subscribed."""

    def _play_from(
        self, recording: Iterator[P], speed: float | None, settled_s: float | None, now_s: Callable[[], float]
    ) -> None:
        """Take the recording, which is read in a thread."""
        self.begun = asyncio.Event()
        """Set once the recording runs."""
        self.ended = asyncio.Event()
        """Set once all of it was sent and every client has taken it; also where it cannot be read on."""
        self.failure: Exception | None = None
        """Why it could not be read on."""
        self.at_ns: int | None = None
        """When the last packet that was sent had been received: ns since the Unix epoch, UTC. None before the first."""
        self.played = 0
        """Packets of the recording that were sent to whoever wanted them."""
        self._recording = recording
        self._speed = speed
        self._settled_s = settled_s
        self._now_s = now_s
        self._began_s = 0.0
        self._first_ns = 0
        self._settling: asyncio.TimerHandle | None = None

    @property
    @abstractmethod
    def _asked_for(self) -> bool:
        """Whether any client has ever asked for an instrument."""

    @abstractmethod
    def _enter_piece(self, piece: P) -> None:
        """Get ready for a piece of the recording."""

    @abstractmethod
    def _play_part(self, piece: P, at: int, until: int) -> int:
        """Send its packets from `at` on and before `until`, or the first of them; returns before which."""

    def begin(self) -> None:
        """Let the recording run from now on, whoever listens."""
        self.begun.set()

    async def aclose(self) -> None:
        """Close every connection (1001, going away) and stop listening."""
        if self._settling is not None:
            self._settling.cancel()
        await super().aclose()

    def _work(self) -> Iterable[Awaitable[None]]:
        return (self._run(),)

    def _settle(self, subscribed: bool) -> None:
        """Some subscription has changed; begin a while after the last one."""
        if self._settled_s is None or self.begun.is_set():
            return
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if subscribed:
            self._settling = asyncio.get_running_loop().call_later(self._settled_s, self.begin)

    async def _run(self) -> None:
        try:
            await self._play()
            while any(client.is_open and client.unsent_bytes for client in self.connections):  # noqa: ASYNC110
                await asyncio.sleep(_PATIENCE_S)
        except Exception as error:
            self.failure = error
        self.ended.set()

    async def _play(self) -> None:
        """Send the recording, a piece ahead of which is read in a thread."""
        ahead = self._read()
        try:
            await self.begun.wait()
            while (packets := await ahead) is not None:
                ahead = self._read()
                if len(packets):
                    await self._play_piece(packets)
        finally:
            ahead.cancel()

    def _read(self) -> "asyncio.Future[P | None]":
        return asyncio.ensure_future(asyncio.to_thread(next, self._recording, None))

    async def _play_piece(self, packets: P) -> None:
        self._enter_piece(packets)
        if self.at_ns is None:
            self._began_s = self._now_s()
            self._first_ns = int(packets.received_ns[0])
        at = 0
        while at < len(packets):
            while not self._may_send():  # noqa: ASYNC110
                await asyncio.sleep(_PATIENCE_S)
            until = min(self._due(packets.received_ns), at + _BURST)
            if until > at:
                until = self._play_part(packets, at, until)
                self.at_ns = int(packets.received_ns[until - 1])
                at = until
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(SLICE_S)

    def _may_send(self) -> bool:
        """Whether every client has read enough. Where their reading sets the pace, one has to be there."""
        listening = [connection for connection in self.connections if connection.is_open]
        if self._speed is None and not any(connection.subscribed for connection in listening):
            return not self._asked_for
        return all(connection.unsent_bytes <= HIGH_WATER_BYTES for connection in listening)

    def _due(self, received_ns: NDArray[np.int64]) -> int:
        """How many of these are due."""
        if self._speed is None:
            return len(received_ns)
        passed_ns = int(min((self._now_s() - self._began_s) * self._speed * 1e9, _LONGEST_NS))
        return int(received_ns.searchsorted(self._first_ns + passed_ns, "right"))
