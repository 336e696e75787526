"""The writer: takes durable blocks from the backlog and commits their rows, whatever happens to the database."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from contextlib import closing
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.enrich import UNKNOWN_INSTRUMENT
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.liveliness import Listener, Liveliness
from dhan_pipeline.ingest.logbook import Logbook
from dhan_pipeline.ingest.process import BlockProcessor, resume
from dhan_pipeline.ingest.retrying import Database, Patience
from dhan_pipeline.journal.block import Block, split_block_id
from dhan_pipeline.journal.stretch import joined
from dhan_pipeline.sessions import HOUR_NS, hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import ledger, ticks
from dhan_pipeline.store.instruments import load_futures, load_tokens
from dhan_pipeline.store.partitions import ensure_partitions, instant
from dhan_pipeline.threads import in_thread
from dhan_pipeline.times import to_second

#: Partitions of `ticks` exist this far ahead.
PARTITIONS_AHEAD_NS = 3 * HOUR_NS

#: How often the instruments are read again while packets come of some that are not known.
LEARN_S = 30.0

_POLL_S = 0.5

#: Transactions of so many messages are stored side by side. That halves the p50 at 200,000 ticks/s, to 26 ms; a smaller
#: one is over before the next is there, and a thread for it costs a fifth of what it takes here.
_LARGE_MESSAGES = 1500

#: Longest wait of a transaction for the one before it. A server that lets the second go first, and waits for it, gets
#: both anew.
_TURN_S = 60.0


class WriterHeldError(PipelineError):
    """Another process writes the blocks of this capture."""


class OtherJournalError(PipelineError):
    """The database was filled from another journal than this one, and its blocks reach beyond this one's."""


class Writer:
    """Commits the blocks of one capture in order. `run` is a thread's body."""

    def __init__(
        self,
        settings: Settings,
        database_url: str,
        backlog: Backlog,
        clock: Clock,
        warn: Callable[[str], None],
        connections: Mapping[int, int] | None = None,
        listener: Listener | None = None,
        book: Logbook | None = None,
    ) -> None:
        """`connections`: the connection of each subscribed instrument token. `listener` hears of those that go silent.
        What `book` is told is written into the database.

        `warn` and the listener are called in the writer's thread.
        """
        self.counts = Counts()
        self._settings = settings
        self._database = Database(settings, database_url)
        self._backlog = backlog
        self._clock = clock
        self._warn = warn
        self._stop = threading.Event()
        self._stop_at_s = 0.0
        self.book = book or Logbook(settings)
        self._subscribed: Mapping[int, int] | None = None
        """Connections by token, where they have changed."""
        self._taken: list[Block] = []
        """From the backlog, and not processed yet."""
        self._learn_at_s = 0.0
        self._emptiness_told = False
        self._processor: BlockProcessor | None = None
        """Its state is that after the last block that was processed; None where it is not known to be."""
        self._pending: list[ticks.StoredBlocks] = []
        """Processed, but not known to be committed."""
        self._committed: int | None = None
        """The last block that is."""
        self._redrives = 0
        self._refused: str | None = None
        """Why the database takes nothing for now."""
        self.liveliness = Liveliness(settings, connections or {}, listener, clock.speed)

    def stop(self, within_s: float) -> None:
        """End once the backlog is empty, or after so many seconds; at once while the database is away.

        The journal keeps what is not stored.
        """
        self._stop_at_s = time.monotonic() + within_s
        self._stop.set()

    def subscribe(self, connections: Mapping[int, int], anew: Collection[int]) -> None:
        """These are subscribed from now on, each on its connection; `anew` those that were not, or in another mode.

        To be called before packets of new ones can come.
        """
        self.liveliness.change(connections, anew)
        self._subscribed = connections

    def facts(self) -> dict[str, Any]:
        """What the status line says besides."""
        return {"store_problem": self._refused}

    def run(self) -> None:
        """Write until stopped. Losing the database is retried for ever; it never ends the capture."""
        patience = Patience("Nothing can be stored for now, the journal keeps all; trying again.", self._warn)
        blocks_before = 0
        while True:
            try:
                with closing(self._database.connect()) as conn, closing(self._database.connect()) as other:
                    self._write(conn, other)
                return
            # Whatever goes wrong here, the capture must go on: the journal keeps what cannot be stored yet.
            except Exception as error:
                if self._stop.is_set():
                    return
                if self.counts.blocks != blocks_before:
                    blocks_before = self.counts.blocks
                    patience.succeeded()
                pause_s = patience.failed(error)
                self._refused = patience.reason
                self._stop.wait(pause_s)

    def _write(self, conn: connection, other: connection) -> None:
        if not ledger.lock_writer(conn, self._settings.capture_number):
            raise WriterHeldError(f"Another process writes capture {self._settings.capture_number} into this database.")
        ticks.withdraw_parts(conn, self._settings.capture_number)
        self.counts.hours |= frozenset(ledger.hours(conn))
        while self._resume(conn):
            try:
                self._store(conn, other)
                self.book.write(conn)
                return
            except ticks.RedrivenError:
                self._processor = None

    def _resume(self, conn: connection) -> bool:
        """Go on after the last committed block. False where the time to stop came before."""
        self._taken = []
        capture = self._settings.capture_number
        committed = ledger.last_block(conn, capture)
        received_ns = 0 if committed is None else ledger.last_received_ns(conn, committed)
        redrives = ledger.redrives(conn, capture)
        tokens = load_tokens(conn, self._settings.source)  # no fewer than the redrives knew
        conn.commit()
        # Whether the pending blocks were committed or not, the state is that after them, and no block is stored twice.
        ours = {self._committed, *(part.stretch.last_block_id for part in self._pending)}
        if (
            self._processor is None
            or committed not in ours
            or redrives != self._redrives
            or not np.array_equal(tokens, self._processor.instruments.tokens)
        ):
            self._processor, self._pending, self._committed = None, [], committed
            processor = BlockProcessor(tokens, decoder(self._settings))
            if committed is not None and not resume(
                processor, self._settings.journal_dir, capture, committed, partial(self._interrupted, conn)
            ):
                return False
            self._processor, self._redrives = processor, redrives
            self.liveliness.know(processor.instruments, load_futures(conn, self._settings.source))
            conn.commit()
        if self._pending:
            last = self._pending[-1].stretch
            self._backlog.start_after(last.last_block_id, last.last_received_ns)
        else:
            self._backlog.start_after(committed, received_ns)
        return True

    def _interrupted(self, conn: connection) -> bool:
        """Asked while the day so far is read again, which may take a while: the status goes on meanwhile."""
        self.book.write(conn)
        return self._is_over()

    def _is_over(self) -> bool:
        return self._stop.is_set() and time.monotonic() >= self._stop_at_s

    def _store(self, conn: connection, other: connection) -> None:
        capture = self._settings.capture_number
        partitions_hour = ""
        # A server whose disk is full still takes this, and it says why no tick is stored.
        self.book.write(conn)
        if self._pending:  # from a connection that was lost: nothing more is taken before that is stored
            self._commit(conn)
        self._refused = None
        while not self._is_over():
            if (hour := hour_key(self._clock.now_ns())) != partitions_hour:
                now_ns = self._clock.now_ns()
                ensure_partitions(conn, now_ns, now_ns + PARTITIONS_AHEAD_NS)
                partitions_hour = hour
            self.book.write(conn)
            self._taken = self._taken or self._backlog.take(_POLL_S)
            self._know_subscribed(conn)
            self._process()
            if sum(len(part.stretch.received_ns) for part in self._pending) >= _LARGE_MESSAGES:
                self._commit_in_turns(conn, other)
            elif self._pending:
                self._commit(conn)
            elif (through_ns := self._backlog.taken_through_ns()) is not None:
                require_the_same_journal(conn, capture, self._backlog.last_durable, self._committed)
                self.counts.committed_through_ns = through_ns
                if self._stop.is_set():
                    return

    def _process(self) -> list[ticks.StoredBlocks]:
        """What the blocks taken become, which is pending from now on."""
        processor, self._processor = self._processor, None  # a mistake leaves a state that is none
        assert processor is not None
        processed = [processor.process(stretch) for stretch in joined(self._taken)]
        self._taken = []
        self._pending = [*self._pending, *processed]
        self._processor = processor
        return processed

    def _commit(self, conn: connection) -> None:
        """Commit what is pending."""
        stored = self._pending
        self._committed_now(conn, stored, ticks.write_blocks(conn, stored, self._clock, self._redrives))

    def _commit_in_turns(self, conn: connection, other: connection) -> None:
        """Commit what is pending and, for a while, what comes meanwhile: the next is processed, and its rows go in on
        the other connection, before the first is committed. Commits keep the order of the blocks.
        """
        until_s = time.monotonic() + _POLL_S
        turns = cycle((conn, other))
        under_way: deque[tuple[connection, list[ticks.StoredBlocks], Future[list[int]]]] = deque()

        def begin(stored: list[ticks.StoredBlocks]) -> None:
            turn = partial(under_way[-1][2].result, _TURN_S) if under_way else None
            own = next(turns)
            writing = in_thread(partial(ticks.write_blocks, own, stored, self._clock, self._redrives, turn=turn))
            writing.add_done_callback(lambda _: self._backlog.wake())
            under_way.append((own, stored, writing))

        begin(self._pending)
        try:
            while under_way:
                free, stored, first = under_way[0]
                if len(under_way) == 1 and time.monotonic() < until_s:
                    self._taken = self._backlog.take(_POLL_S, unless=first.done)
                    if self._taken and self._subscribed is None:  # else instruments in them may be unknown
                        processed = self._process()
                        for part in processed:
                            _ = part.rows
                        begin(processed)
                        continue
                self._committed_now(free, stored, first.result())
                under_way.popleft()
        finally:
            wait([writing for _, _, writing in under_way])

    def _committed_now(self, conn: connection, stored: list[ticks.StoredBlocks], written: list[int]) -> None:
        """Take account of what was just committed. `conn` is free."""
        self._pending, self._committed = self._pending[len(stored) :], stored[-1].stretch.last_block_id
        self.counts.add(stored, written, self._clock)
        for part in stored:
            self.liveliness.see(part)
        self._learn(conn, stored)

    def _know_subscribed(self, conn: connection) -> None:
        """Where others are subscribed than before, know those that were synced since the start before they come."""
        connections, self._subscribed = self._subscribed, None
        if connections is None:
            return
        processor = self._processor
        assert processor is not None
        if (processor.instruments.lookup(np.fromiter(connections, np.int64, len(connections))) < 0).any():
            self._load(conn, processor)

    def _load(self, conn: connection, processor: BlockProcessor) -> bool:
        """Whether the database knows other instruments now; the processor then does, too."""
        tokens = load_tokens(conn, self._settings.source)
        conn.commit()
        if np.array_equal(tokens, processor.instruments.tokens):
            return False
        processor.learn(tokens)
        self.liveliness.know(processor.instruments, load_futures(conn, self._settings.source))
        conn.commit()
        return True

    def _learn(self, conn: connection, stored: list[ticks.StoredBlocks]) -> None:
        """Where packets came of unknown instruments, see whether they were synced since. `redrive` has the rest."""
        processor = self._processor
        assert processor is not None
        unknown = any(r.reason == UNKNOWN_INSTRUMENT for part in stored for r in part.enriched.rejected)
        if not unknown or time.monotonic() < self._learn_at_s:
            return
        self._learn_at_s = time.monotonic() + LEARN_S
        if not self._load(conn, processor) and not len(processor.instruments) and not self._emptiness_told:
            self._emptiness_told = True
            source = self._settings.source
            self._warn(
                f"The database has no instruments of {source}, so all packets are rejected. They are kept; run:"
                f" dhan-pipeline sync-instruments --download --source {source}, then: dhan-pipeline redrive."
            )


def require_the_same_journal(conn: connection, capture: int, last: int | None, committed: int | None) -> None:
    """Raise OtherJournalError where the journal's last block is one before those committed, and is not stored.

    Block ids only grow in a journal, so a writer that begins after the last committed block would miss this one.
    """
    if last is None or committed is None or last >= committed:
        return
    stored = ledger.last_ledger_block(conn, last, last + 1) is not None
    conn.rollback()
    if not stored:
        until = instant(split_block_id(committed)[1] * 1_000_000)
        raise OtherJournalError(
            f"This database has blocks of capture {capture} up to {to_second(until)} that are later than all"
            " of this journal: they come from another journal, or from a clock that was ahead. Give this one a number"
            " of its own (CAPTURE), or the database of its own."
        )
