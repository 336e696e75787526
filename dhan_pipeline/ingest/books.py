"""What workers have stored of one capture, as the ledger says: for the capture, which only hands its blocks over.

A thread asks a few times a second. Parts of a lane come in order, so all blocks are stored up to the last one of the
lane that is furthest behind; only these are counted, each once.
"""

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from psycopg2.extensions import connection

from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.retrying import Database, Patience
from dhan_pipeline.ingest.writer import require_the_same_journal
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import leases, ledger

#: What was stored since the last look counts as backlog.
_POLL_S = 0.25


class Books:
    """Follows the ledger. `run` is a thread's body."""

    def __init__(
        self, settings: Settings, database_url: str, last_durable: int | None, warn: Callable[[str], None]
    ) -> None:
        """`last_durable`: the journal's last block, None while it is empty. `warn` is called in the books' thread."""
        self.counts = Counts()
        self.workers = 0
        """Workers that are alive."""
        self.whole: int | None = None
        """The last block up to which all are stored, as far as is known; None for none."""
        self.whole_received_ns = 0
        """When the last message of the first of these was received; 0 for none."""
        self._settings = settings
        self._last_durable = last_durable
        self._database = Database(settings, database_url)
        self._warn = warn
        self._found = threading.Event()
        self._stop = threading.Event()
        self._status: dict[str, Any] | None = None

    def begin(self, timeout_s: float) -> bool:
        """Wait until `whole` is known for the first time. False where it is not after so many seconds."""
        return self._found.wait(timeout_s)

    def publish(self, status: dict[str, Any]) -> None:
        """Have the capture's status in the database replaced."""
        self._status = status

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
                self._stop.wait(patience.failed(error))

    def _follow(self, conn: connection, patience: Patience) -> None:
        capture = self._settings.capture
        if not self._found.is_set():
            whole = ledger.last_whole_block(conn, capture)
            require_the_same_journal(conn, capture, self._last_durable, whole)
            self.whole = whole
            if self.whole is not None:
                self.whole_received_ns = ledger.last_received_ns(conn, self.whole)
            self.counts.hours |= frozenset(ledger.hours(conn))
            conn.commit()
            self._found.set()
        while not self._stop.is_set():
            found = ledger.stored_in_parts(conn, capture, self.whole)
            conn.commit()
            if found:
                self._add(*found)
            self.workers = leases.workers(conn)
            if self._status is not None:
                status, self._status = self._status, None
                ledger.write_status(conn, capture, self._settings.data_source, status)
            patience.succeeded()
            self._stop.wait(_POLL_S)

    def _add(self, whole: int, found: ledger.StoredTotals) -> None:
        counts = self.counts
        counts.blocks += found.blocks
        counts.packets += found.packets
        counts.ticks += found.ticks
        counts.state += found.state
        counts.control += found.control
        counts.rejected += found.rejected
        latency_ms, packets = np.array(found.latencies).reshape(-1, 2).T
        counts.latency.add(latency_ms.repeat(packets.astype(np.int64)))
        counts.hours |= frozenset(found.hours)
        counts.committed_through_ns = found.received_through_ns
        self.whole = whole
