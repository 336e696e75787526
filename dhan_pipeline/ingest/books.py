"""What workers have stored of one capture, as the ledger says: for the capture, which only hands its blocks over.

A thread asks a few times a second. Parts of a lane come in order, so all blocks are stored up to the last one of the
lane that is furthest behind; only these are counted, each once.
"""

import threading
from collections.abc import Callable
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.logbook import Logbook
from dhan_pipeline.ingest.retrying import Database, Patience
from dhan_pipeline.ingest.writer import require_the_same_journal
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import leases, ledger
from dhan_pipeline.store.instruments import load_futures, load_tokens

#: What was stored since the last look counts as backlog.
_POLL_S = 0.25

#: Latencies are counted so many ledger rows at a time: each stands for all packets of its row, and after a night
#: without the database there may be millions.
_ROWS = 1000


class Books:
    """Follows the ledger. `run` is a thread's body."""

    def __init__(
        self,
        settings: Settings,
        database_url: str,
        backlog: Backlog,
        warn: Callable[[str], None],
        book: Logbook | None = None,
    ) -> None:
        """`backlog`: of the capture, which has put nothing yet. `warn` is called in the books' thread.

        What `book` is told is written into the database.
        """
        self.counts = Counts()
        self.workers: int | None = None
        """Workers that are alive; None while that is unknown."""
        self.whole: tuple[int, int] | None = None
        """The last block up to which all are stored, as far as is known, and when its last message was received (ns
        since the Unix epoch, UTC); None for none."""
        self.tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        """The instruments that the database knew at the start."""
        self.futures: NDArray[np.int64] = self.tokens
        """The futures that it knew then, or when it was asked last."""
        self._ask_futures = False
        self._settings = settings
        self._backlog = backlog
        self._last_durable = backlog.last_durable
        self._database = Database(settings, database_url)
        self._warn = warn
        self._found = threading.Event()
        self._stop = threading.Event()
        self.book = book or Logbook(settings)

    def begin(self, timeout_s: float) -> bool:
        """Wait until `whole` and `tokens` are known. False where they are not after so many seconds.

        In a journal that is empty they are not known before its first block.
        """
        return self._found.wait(timeout_s)

    def ask_futures(self) -> None:
        """Have `futures` read again: instruments were synced since."""
        self._ask_futures = True

    def stop(self) -> None:
        """End soon."""
        self._stop.set()

    def run(self) -> None:
        """Follow until stopped. Losing the database is retried for ever."""
        patience = Patience("What workers have stored is not known for now; trying again.", self._warn)
        while not self._stop.is_set():
            try:
                with closing(self._database.connect()) as conn:
                    self._follow(conn, patience)
            except Exception as error:
                self.workers = None
                self._stop.wait(patience.failed(error))

    def _follow(self, conn: connection, patience: Patience) -> None:
        capture = self._settings.capture_number
        while not self._stop.is_set():
            if self._found.is_set():
                found = ledger.stored_in_parts(conn, capture, self.whole[0] if self.whole else None)
                conn.commit()
                if found:
                    self._add(*found)
            else:
                self._begin(conn)
            if self._ask_futures:
                self._ask_futures = False
                self.futures = load_futures(conn, self._settings.source)
                conn.commit()
            self.workers = leases.workers(conn)
            self.book.write(conn)
            patience.succeeded()
            self._stop.wait(_POLL_S)
        self.book.write(conn)

    def _begin(self, conn: connection) -> None:
        capture = self._settings.capture_number
        last = self._backlog.last_durable if self._last_durable is None else self._last_durable
        if last is None:  # nothing tells yet whether the database was filled from this journal
            return
        whole = ledger.last_whole_block(conn, capture)
        require_the_same_journal(conn, capture, last, whole)
        self.whole = None if whole is None else (whole, ledger.last_received_ns(conn, whole))
        self.tokens = load_tokens(conn, self._settings.source)
        self.futures = load_futures(conn, self._settings.source)
        self.counts.hours |= frozenset(ledger.hours(conn))
        conn.commit()
        self._found.set()

    def _add(self, whole: int, found: ledger.StoredTotals) -> None:
        counts = self.counts
        counts.blocks += found.blocks
        counts.packets += found.packets
        counts.ticks += found.ticks
        counts.state += found.state
        counts.control += found.control
        counts.rejected += found.rejected
        latency_ms, packets = np.array(found.latencies).reshape(-1, 2).T
        for start in range(0, len(packets), _ROWS):
            rows = slice(start, start + _ROWS)
            counts.latency.add(latency_ms[rows].repeat(packets[rows].astype(np.int64)))
        counts.hours |= frozenset(found.hours)
        counts.committed_through_ns = found.received_through_ns
        self.whole = whole, found.received_through_ns
