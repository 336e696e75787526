"""One capture from start to stop: the threads, the connections, the status line a second."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import psycopg2

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.client import Feed
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.capture import Receiver
from dhan_pipeline.ingest.status import StatusReport
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import hour_key, in_session
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import ledger
from dhan_pipeline.store.engine import connect
from dhan_pipeline.subscriptions import read_subscriptions

log = logging.getLogger(__name__)

Emit = Callable[[dict[str, Any]], None]

#: How long a stopping capture waits for the database to take what is left. The journal keeps what it does not.
DRAIN_S = 10.0


#: A clock this far behind the journal would stamp everything with the same time until it has caught up.
_CLOCK_TOLERANCE_NS = 60_000_000_000


class ClockBehindError(PipelineError):
    """The machine's clock is behind the journal."""


class Ingest:
    """The parts of one capture, wired: connections -> receiver -> journal -> backlog -> writer."""

    def __init__(self, settings: Settings, database_url: str, emit: Emit, clock: Clock) -> None:
        """Take the capture's lock and recover its journal. Close with `close`.

        `emit` gets one dictionary an event, in the event loop's thread: started, status, hour_complete, warning,
        stopped. Raises LockHeldError where another process runs this capture, SubscriptionError where the resolved
        subscriptions are missing.
        """
        subscriptions = {
            subscription.instrument_token: subscription.mode
            for subscription in read_subscriptions(settings.subscriptions_path)
        }
        self._settings = settings
        self._database_url = database_url
        self._emit = emit
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._journal = JournalWriter(settings.journal_dir, settings.capture)
        if clock.now_ns() < self._journal.last_received_ns - _CLOCK_TOLERANCE_NS:
            self._journal.close()
            raise ClockBehindError(
                f"The clock says {clock.now():%Y-%m-%d %H:%M:%S} UTC, which is before the journal's last message;"
                " set the clock, or choose another data directory."
            )
        self._backlog = Backlog(settings.journal_dir, settings.capture, self._journal.last_block_id)
        self._receiver = Receiver(self._journal, clock, self._on_block)
        self._writer = Writer(settings, database_url, self._backlog, clock, self._warn)
        self._feed = Feed(
            settings, subscriptions, self._receiver.receive, self._warn, clock=clock, in_session=self._in_session
        )
        self._report = StatusReport(clock)
        self._messages = 0
        self._bytes = 0

    def close(self) -> None:
        """Release the capture's lock."""
        self._journal.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Capture until `stop` is set; then write what arrived and return.

        Raises what ends a capture for good: the feed's permanent errors, and OSError where the journal cannot be
        written.
        """
        threads = [
            threading.Thread(target=self._receiver.run, name="journal"),
            threading.Thread(target=self._writer.run, name="writer"),
        ]
        for thread in threads:
            thread.start()
        self._emit(
            {
                "event": "started",
                "capture": self._settings.capture,
                "source": self._settings.data_source,
                "pid": os.getpid(),
            }
        )
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in {
                "feed": self._feed.run(),
                "flush": self._flush(),
                "status": self._report_status(),
                "journal": asyncio.to_thread(threads[0].join),
                "stop": stop.wait(),
            }.items()
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._receiver.close()
            await asyncio.to_thread(threads[0].join)
            self._backlog.close()
            self._writer.stop()
            # The journal keeps what a database that is away does not take in this time.
            await asyncio.to_thread(threads[1].join, DRAIN_S)
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
        if self._receiver.failure:
            raise self._receiver.failure
        self._emit(self._status())
        self._emit({"event": "stopped", "reason": "asked to stop"})

    def _in_session(self) -> bool:
        return self._settings.sessions == "always" or in_session(self._clock.now_ns())

    def _on_block(self, block: Block) -> None:
        self._messages += block.messages
        self._bytes += len(block.payload)
        self._writer.idle.clear()
        self._backlog.put(block)

    def _warn(self, message: str) -> None:
        log.warning(message)
        self._loop.call_soon_threadsafe(self._emit, {"event": "warning", "message": message})

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(self._settings.flush_interval_ms / 1000)
            self._receiver.flush()

    def _status(self) -> dict[str, Any]:
        return self._report.line(
            self._writer,
            messages=self._messages,
            received_bytes=self._bytes,
            last_received_ns=self._receiver.last_received_ns,
            connections=(self._feed.connections_up, self._feed.connections),
        )

    async def _report_status(self) -> None:
        """A status line a second, also kept in the database; and each hour once it is over and committed."""
        announced: set[str] = set()
        while True:
            status = self._status()
            self._emit(status)
            with contextlib.suppress(psycopg2.Error):  # the writer reports that the database is away
                await asyncio.to_thread(self._store_status, status)
            for hour in sorted(self._complete_hours() - announced):
                self._emit({"event": "hour_complete", "hour": hour})
                announced.add(hour)
            await asyncio.sleep(1)

    def _store_status(self, status: dict[str, Any]) -> None:
        with contextlib.closing(connect(self._database_url)) as conn:
            ledger.write_status(conn, self._settings.capture, self._settings.data_source, status)

    def _complete_hours(self) -> set[str]:
        """Hours that are over and committed to the last block."""
        now_ns = self._clock.now_ns()
        if not self._writer.idle.is_set():
            return set()
        committed_ns = self._writer.counts.committed_through_ns
        all_committed = self._receiver.last_received_ns <= committed_ns
        horizon = hour_key(now_ns if all_committed else committed_ns)
        return {hour for hour in self._writer.counts.hours if hour < horizon}
