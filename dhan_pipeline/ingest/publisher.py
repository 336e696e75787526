"""The publisher: takes durable blocks from the backlog and hands them to the workers, through RabbitMQ.

It stands where the `writer` stands that stores blocks itself. A run of blocks is handed over once RabbitMQ has
confirmed all of its parts; until then it is published again. What is published twice is stored once, so when in doubt
it is.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest.backlog import BATCH_BLOCKS, Backlog
from dhan_pipeline.ingest.books import Books
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.liveliness import Listener, Liveliness
from dhan_pipeline.ingest.logbook import Logbook
from dhan_pipeline.ingest.parts import split
from dhan_pipeline.ingest.process import BlockProcessor, resume
from dhan_pipeline.ingest.retrying import Patience
from dhan_pipeline.journal.stretch import Stretch, joined
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.ticks import StoredBlocks
from dhan_pipeline.transport.broker import BrokerError, QueueFullError, broker_url
from dhan_pipeline.transport.message import encode
from dhan_pipeline.transport.outlet import Depths, Outlet, outlet

_POLL_S = 0.5

#: Blocks are gathered for so long. A message costs the broker, a worker and the database the same whatever it holds.
_GATHER_S = 0.03

#: How often RabbitMQ is asked what waits in it.
_DEPTHS_S = 2.0


@dataclass(slots=True)
class _Run:
    """Consecutive blocks, ready to be handed over."""

    bodies: list[bytes | None]
    """A lane each; None once RabbitMQ has it."""
    blocks: StoredBlocks


class Publisher:
    """Hands over the blocks of one capture in order. `run` is a thread's body."""

    def __init__(
        self,
        settings: Settings,
        database_url: str,
        backlog: Backlog,
        clock: Clock,
        warn: Callable[[str], None],
        connections: Mapping[int, int],
        listener: Listener | None = None,
        book: Logbook | None = None,
    ) -> None:
        """`connections`: the connection of each subscribed instrument token. `listener` hears of those that go silent.
        What `book` is told is written into the database.

        `warn` and the listener are called in the publisher's threads. Raises BrokerError.
        """
        self._url = broker_url(settings)
        self._settings = settings
        self._backlog = backlog
        self._clock = clock
        self._warn = warn
        self._tokens = np.fromiter(connections, np.int64, len(connections))
        self._subscribed = False
        """Whether others are subscribed than before."""
        self._books = Books(settings, database_url, backlog, warn, book)
        self._stop = threading.Event()
        self._stop_at_s = 0.0
        self._handed_over: tuple[int, int] | None = None
        """The last block that RabbitMQ has, with all before it, and when its last message was received (ns since the
        Unix epoch, UTC); None while that is unknown."""
        self._runs: deque[_Run] = deque()
        self._last_block = 0
        """That runs were made of, which the next ones follow; 0 for none."""
        self._gathered_s = 0.0
        """When the last of them were made."""
        self._depths: Depths | None = None
        self.liveliness = Liveliness(settings, connections, listener, clock.speed)

    @property
    def counts(self) -> Counts:
        """What the workers have committed since the start."""
        return self._books.counts

    def subscribe(self, connections: Mapping[int, int], anew: Collection[int]) -> None:
        """These are subscribed from now on, each on its connection; `anew` those that were not, or in another mode.

        To be called before packets of new ones can come.
        """
        self.liveliness.change(connections, anew)
        self._tokens = np.union1d(self._tokens, np.fromiter(connections, np.int64, len(connections)))
        self._subscribed = True

    def facts(self) -> dict[str, Any]:
        """What the status line says besides; None for what is not known now."""
        depths = self._depths
        return {
            "queue_depth": None if depths is None else sum(depths.ready),
            "dead_letters": None if depths is None else depths.dead_letters,
            "workers": self._books.workers,
        }

    def stop(self, within_s: float) -> None:
        """End once all is handed over and stored, or after so many seconds; at once while RabbitMQ takes nothing.

        Nobody waits for workers where there are none.
        """
        self._stop_at_s = time.monotonic() + within_s
        self._stop.set()

    def run(self) -> None:
        """Hand over until stopped. Losing RabbitMQ or the database is retried for ever; it never ends the capture."""
        books = threading.Thread(target=self._books.run, name="books", daemon=True)
        books.start()
        patience = Patience("Nothing can be handed over for now, the journal keeps all; trying again.", self._warn)
        try:
            while not self._is_over():
                try:
                    if self._resume() and asyncio.run(self._hand_over(patience)):
                        self._wait_for_workers()
                    return
                # Whatever goes wrong here, the capture must go on: the journal keeps what cannot be handed over yet.
                except Exception as error:
                    if self._stop.is_set():
                        return
                    self._stop.wait(patience.failed(error))
        finally:
            self._books.stop()
            books.join(_POLL_S)

    def _is_over(self) -> bool:
        return self._stop.is_set() and time.monotonic() >= self._stop_at_s

    def _resume(self) -> bool:
        """Go on after the last block that was handed over. False where the time to stop came before that is known.

        Who stops waits for a database that answers, as long as there is something to hand over.
        """
        while not self._books.begin(_POLL_S):
            to_come = self._books.workers is not None and self._backlog.last_durable is not None
            if self._is_over() or (self._stop.is_set() and not to_come):
                return False
        after, received_ns = self._handed_over or self._books.whole or (None, 0)
        self._runs.clear()
        self._last_block = after or 0
        # What is left to hand over may be of instruments that are subscribed no more.
        tokens = np.union1d(self._tokens, self._books.tokens)
        self._processor = BlockProcessor(tokens, decoder(self._settings))
        self._futures = self._books.futures
        self.liveliness.know(self._processor.instruments, self._futures)
        if after is not None and not resume(
            self._processor, self._settings.journal_dir, self._settings.capture_number, after, self._is_over
        ):
            return False
        self._backlog.start_after(after, received_ns)
        return True

    async def _hand_over(self, patience: Patience) -> bool:
        """Hand over until stopped. False where RabbitMQ took nothing then."""
        while True:
            try:
                async with outlet(self._url) as out:
                    await self._publish(out, patience)
                return True
            except BrokerError as error:
                self._depths = None
                if self._stop.is_set() or await self._pause(patience.failed(error)):
                    return False

    async def _publish(self, out: Outlet, patience: Patience) -> None:
        """Publish run after run; while one is on its way, the next is made."""
        depths_at_s = 0.0
        while not self._is_over():
            if time.monotonic() >= depths_at_s:
                self._depths = await out.depths()
                depths_at_s = time.monotonic() + _DEPTHS_S
            if not self._runs:
                await self._gather(_POLL_S)
                if not self._runs:
                    if self._stop.is_set() and not self._backlog.waiting:
                        return
                    continue
            sending = asyncio.create_task(self._send(out))
            try:
                if len(self._runs) == 1 and self._backlog.waiting:
                    await self._gather(0)
            finally:
                await asyncio.wait([sending])
            try:
                sending.result()
                patience.succeeded()
            except QueueFullError as full:
                if self._stop.is_set() or await self._pause(patience.failed(full)):
                    raise

    async def _send(self, out: Outlet) -> None:
        """Hand over the first run. What RabbitMQ has of it is not published again where lanes refuse the rest."""
        run = self._runs[0]
        try:
            await out.publish(run.bodies)
        except QueueFullError as full:
            run.bodies = [body if lane in full.lanes else None for lane, body in enumerate(run.bodies, 1)]
            raise
        self._runs.popleft()
        self._handed_over = run.blocks.stretch.last_block_id, run.blocks.last_received_ns
        self.liveliness.see(run.blocks)

    async def _pause(self, seconds: float) -> bool:
        """Wait; at once whether it was asked to stop, where it was."""
        return await asyncio.to_thread(self._stop.wait, seconds)

    async def _gather(self, timeout_s: float) -> None:
        """Make the next runs, of what has come since the last ones, or comes within the time."""
        pause_s = self._gathered_s + _GATHER_S - time.monotonic()
        if pause_s > 0 and self._backlog.blocks < BATCH_BLOCKS:
            await asyncio.sleep(pause_s)
        known = self._processor.instruments
        await asyncio.to_thread(self._prepare, timeout_s)
        learned, futures = self._processor.instruments is not known, self._books.futures
        if learned:
            self._books.ask_futures()
        if learned or futures is not self._futures:  # here, not in that thread: `see` is called here meanwhile
            self._futures = futures
            self.liveliness.know(self._processor.instruments, futures)
        self._gathered_s = time.monotonic()

    def _prepare(self, timeout_s: float) -> None:
        blocks = self._backlog.take(timeout_s)
        if self._subscribed:
            self._subscribed = False
            known = self._processor.instruments
            if (known.lookup(self._tokens) < 0).any():
                self._processor.learn(np.union1d(self._tokens, known.tokens))
        self._runs.extend(self._run(stretch) for stretch in joined(blocks))

    def _run(self, stretch: Stretch) -> _Run:
        decoded = self._processor.decode(stretch)
        before = self._processor.remembered(stretch, decoded)
        bodies = [encode(replace(part, follows=self._last_block)) for part in split(stretch, decoded, before)]
        run = _Run([*bodies], self._processor.process(stretch, decoded))
        self._last_block = stretch.last_block_id
        return run

    def _wait_for_workers(self) -> None:
        while not self._is_over() and self._books.workers and not self._is_stored():
            time.sleep(0.05)

    def _is_stored(self) -> bool:
        """Whether workers have stored all that was handed over."""
        handed_over, whole = self._handed_over, self._books.whole
        return handed_over is None or (whole is not None and whole[0] >= handed_over[0])
