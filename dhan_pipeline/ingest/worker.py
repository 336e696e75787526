"""A worker: takes parts of journal blocks from lanes of RabbitMQ, commits their rows, and acknowledges them then.

It keeps nothing. Lanes pass from worker to worker, and what a worker had taken when it ended goes to the next one in
order; the ledger tells what of it is stored already.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import psycopg2
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.enrich import UNKNOWN_INSTRUMENT
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.metrics import Metrics
from dhan_pipeline.ingest.parts import PartProcessor
from dhan_pipeline.ingest.retrying import Database, Patience
from dhan_pipeline.ingest.worker_status import WorkerReport
from dhan_pipeline.ingest.writer import LEARN_S, PARTITIONS_AHEAD_NS
from dhan_pipeline.journal.block import split_block_id
from dhan_pipeline.sessions import hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source, source_of_capture
from dhan_pipeline.store import leases
from dhan_pipeline.store.instruments import load_tokens
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.ticks import StoredBlocks, WrittenDirectlyError, write_blocks
from dhan_pipeline.threads import in_thread
from dhan_pipeline.transport.inlet import PREFETCH, Delivery, Inlet, inlet
from dhan_pipeline.transport.lanes import FIRST_LANE, LANES
from dhan_pipeline.transport.message import Part, decode, joined

log = logging.getLogger(__name__)

T = TypeVar("T")
Emit = Callable[[dict[str, Any]], None]

#: What one transaction stores, at most.
BATCH_MESSAGES = 64
BATCH_BYTES = 1_500_000

#: Seconds before the next try of a message that fails by itself, and the one after it: then it is buried. Bytes that
#: cannot be read are buried at once.
_TRY_AGAIN_S = (0.1, 0.5)

#: A message that was taken so often and never acknowledged may be what ends workers: nothing shares its transaction.
#: Once is no sign: who leaves a lane gives back what waited there.
_SUSPECT_TRIES = 2

#: How often workers look how many they are.
_BALANCE_S = 1.0

#: After so many seconds, what fails is not what failed before.
_STEADY_S = 5.0

_POLL_S = 0.25

#: While the database takes nothing for longer, the messages go back. RabbitMQ takes back by itself what is held for
#: half an hour, and each time counts as a delivery.
HOLD_S = 60.0

#: How long a worker that stops goes on with what it has taken.
DRAIN_S = 10.0

#: How long it waits for a database to hear that it leaves.
_CLOSE_S = 1.0


class Worker:
    """Stores what comes through its share of the lanes."""

    def __init__(self, settings: Settings, database_url: str, rabbitmq_url: str, emit: Emit, clock: Clock) -> None:
        """`emit` gets one dictionary an event, in the event loop's thread: started, status, warning, stopped."""
        self.counts = Counts()
        self.lanes: frozenset[int] = frozenset()
        """Whose messages it gets now."""
        self.buried = 0
        """Messages that it moved to the dead letters."""
        self.metrics = Metrics(settings, clock, "worker", self.counts)
        self._settings = settings
        self._database = Database(settings, database_url)
        self._rabbitmq_url = rabbitmq_url
        self._emit = emit
        self._clock = clock
        self._patience = Patience("Nothing can be stored for now, what comes waits; trying again.", self._warn)
        self._stop = asyncio.Event()
        self._processors = {
            source: PartProcessor(np.zeros(0, np.int64), decoder(settings.of(source))) for source in SOURCES
        }
        self._learn_at_s = 0.0
        self._reported = WorkerReport(clock)
        self._partitions_hour = ""
        self._refused: Sequence[Delivery] = ()
        """What the database has not taken. They went back; until it takes them, no more are taken from RabbitMQ."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Neither the loss of the database nor that of the broker ends it."""
        self._stop = stop
        self._emit({"event": "started", "pid": os.getpid()})
        work = asyncio.create_task(self._work(), name="work")
        others = [asyncio.create_task(self._report(), name="status"), asyncio.create_task(stop.wait(), name="stop")]
        try:
            await asyncio.wait([work, *others], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([work], timeout=DRAIN_S)
        finally:
            for task in (work, *others):
                task.cancel()
            results = await asyncio.gather(work, *others, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._emit(self.status())
        self._emit({"event": "stopped", "reason": "asked to stop"})

    async def _work(self) -> None:
        while not self._stop.is_set():
            try:
                await self._serve()
            # Whatever goes wrong here, RabbitMQ keeps what is not acknowledged.
            except Exception as error:
                if self._stop.is_set():
                    return
                await self._pause(self._patience.failed(error))

    async def _serve(self) -> None:
        """Store what comes until asked to stop. Raises when the database or the broker is lost.

        Then both are given up: who has lost the one has no use for the lanes, and others may have.
        """
        async with _session(self._database) as conn:
            await _in_database(self._begin, conn)
            async with inlet(self._rabbitmq_url, PREFETCH) as source:
                # Not before: who cannot work has no share of the lanes.
                await _in_database(leases.join, conn)
                steady_at_s = time.monotonic() + _STEADY_S
                look_at_s = 0.0
                try:
                    while not self._stop.is_set():
                        if time.monotonic() >= look_at_s:
                            await self._balance(conn, source)
                            look_at_s = time.monotonic() + _BALANCE_S
                        for batch in _batches(await source.take(BATCH_MESSAGES, _POLL_S)):
                            await self._store(conn, source, batch)
                        if time.monotonic() > steady_at_s:
                            self._patience.succeeded()
                finally:
                    self.lanes = frozenset()

    def _begin(self, conn: connection) -> None:
        for source, processor in self._processors.items():
            processor.learn(load_tokens(conn, source))
        self._partitions_hour = ""
        self._ensure_partitions(conn)
        self._store_refused(conn)

    def _store_refused(self, conn: connection) -> None:
        """Store what went back to RabbitMQ; it is skipped when it comes again. Raises while the database refuses it.

        So messages go back once, however long or often the database is away: no number of deliveries buries them.
        """
        try:
            self._write(conn, self._refused)
        except Exception as error:
            if not _is_of_the_messages(error):
                raise
        self._refused = ()

    def _ensure_partitions(self, conn: connection) -> None:
        now_ns = self._clock.now_ns()
        if (hour := hour_key(now_ns)) != self._partitions_hour:
            ensure_partitions(conn, now_ns, now_ns + PARTITIONS_AHEAD_NS)
            self._partitions_hour = hour

    async def _balance(self, conn: connection, source: Inlet) -> None:
        """Take free lanes up to this worker's share of them, and leave those beyond it.

        Whoever had a lane before may not have heard yet that it has lost it. RabbitMQ gives this worker nothing of it
        before it has back what the other one had taken.
        """
        await _in_database(self._ensure_partitions, conn)
        share = -(-LANES // await _in_database(leases.workers, conn))
        for lane in sorted(self.lanes)[share:]:
            await source.cancel(lane)
            self.lanes -= {lane}
            await _in_database(leases.leave_lane, conn, lane)
        for lane in range(FIRST_LANE, FIRST_LANE + LANES):
            wanted = lane not in self.lanes and len(self.lanes) < share
            if wanted and await _in_database(leases.take_lane, conn, lane):
                await source.consume(lane)
                self.lanes |= {lane}

    async def _store(self, conn: connection, source: Inlet, batch: Sequence[Delivery]) -> None:
        """Commit what the messages hold, and acknowledge them. What cannot be stored, ever, is buried.

        Raises when the database or the broker is lost, and when the database has refused them for `HOLD_S`.
        """
        give_up_at_s = time.monotonic() + HOLD_S
        failures = 0
        while True:
            try:
                await _in_database(self._write, conn, batch)
                break
            except Exception as error:
                refused = not _is_of_the_messages(error)
                if refused:
                    self._refused = batch
                if conn.closed or source.lost or self._stop.is_set() or (refused and time.monotonic() > give_up_at_s):
                    raise
                if refused:
                    pause_s = self._patience.failed(error)
                elif len(batch) > 1:
                    for delivery in batch:
                        await self._store(conn, source, [delivery])
                    return
                else:
                    if isinstance(error, PipelineError) or failures == len(_TRY_AGAIN_S):
                        await self._bury(source, batch[0], error)
                        return
                    pause_s = _TRY_AGAIN_S[failures]
                    failures += 1
            await self._pause(pause_s)
        self._refused = ()
        self._patience.succeeded()
        # The last one of a lane stands for all before it: they are stored, too, or buried.
        for delivery in {delivery.lane: delivery for delivery in batch}.values():
            await delivery.ack()

    async def _bury(self, source: Inlet, delivery: Delivery, error: Exception) -> None:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, PipelineError):
            log.error("a message cannot be stored", exc_info=error)
            reason = f"{type(error).__name__}: {reason}"
        await source.bury(delivery, reason)
        self.buried += 1
        self._warn(f"A message of lane {delivery.lane} went to the dead letters. {reason}")

    def _write(self, conn: connection, batch: Sequence[Delivery]) -> None:
        parts = self._process(batch)
        if self._learned(conn, parts):
            parts = self._process(batch)
        for _, of_lane in groupby(parts, _capture_and_lane):
            blocks = list(of_lane)
            self.counts.add(blocks, write_blocks(conn, blocks, self._clock), self._clock)

    def _process(self, batch: Sequence[Delivery]) -> list[StoredBlocks]:
        parts = [decode(delivery.body) for delivery in batch]
        parts.sort(key=lambda part: (split_block_id(int(part.block_ids[0]))[0], part.lane))  # stable: so order stays
        return [self._processors[_source(part)].process(part) for part in joined(parts)]

    def _learned(self, conn: connection, parts: Sequence[StoredBlocks]) -> bool:
        """Whether instruments were synced since, where packets are of unknown ones. `redrive` has the rest."""
        unknown = any(r.reason == UNKNOWN_INSTRUMENT for part in parts for r in part.enriched.rejected)
        if not unknown or time.monotonic() < self._learn_at_s:
            return False
        self._learn_at_s = time.monotonic() + LEARN_S
        learned = False
        for source, processor in self._processors.items():
            tokens = load_tokens(conn, source)
            if not np.array_equal(tokens, processor.instruments.tokens):
                processor.learn(tokens)
                learned = True
        conn.commit()
        return learned

    async def _pause(self, seconds: float) -> None:
        """Wait, unless asked to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _warn(self, message: str) -> None:
        log.warning(message)
        self._emit({"event": "warning", "message": message})

    async def _report(self) -> None:
        while True:
            self.metrics.status = self.status()
            self._emit(dict(self.metrics.status))
            await asyncio.sleep(1)

    def status(self) -> dict[str, Any]:
        """The status now, as the status line says it."""
        return self._reported.line(self.counts, self.lanes, self.buried)


@asynccontextmanager
async def _session(database: Database) -> AsyncIterator[connection]:
    conn = await _in_database(database.connect)
    try:
        yield conn
    finally:
        # One that no longer answers holds nothing up.
        await asyncio.wait([asyncio.wrap_future(in_thread(conn.close))], timeout=_CLOSE_S)


async def _in_database(call: Callable[..., T], *args: Any) -> T:
    """What a call returns that waits for the database, in a thread: the broker hears from this one meanwhile."""
    return await asyncio.wrap_future(in_thread(partial(call, *args)))


def _batches(deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """What is stored together, in order."""
    batch: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        alone = delivery.tries >= _SUSPECT_TRIES
        if batch and (alone or size + len(delivery.body) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(delivery)
        size += BATCH_BYTES if alone else len(delivery.body)
    if batch:
        yield batch


def _is_of_the_messages(error: Exception) -> bool:
    """Whether what is stored is to blame, and not the state that the database or the machine is in."""
    if isinstance(error, psycopg2.Error):
        return isinstance(error, psycopg2.DataError | psycopg2.IntegrityError)
    # Where there is no memory, or no thread to be had, the message can do nothing about it.
    return not isinstance(error, WrittenDirectlyError | MemoryError | OSError | RuntimeError)


def _source(part: Part) -> Source:
    return source_of_capture(split_block_id(int(part.block_ids[0]))[0])


def _capture_and_lane(part: StoredBlocks) -> tuple[int, int]:
    assert part.share is not None
    return part.capture, part.share.part
