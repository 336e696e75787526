"""One capture from start to stop: the threads, the connections, the status line a second."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.by_source import decoder, feed_of
from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.errors import SourceError, SubscriptionLimitError
from dhan_pipeline.gaps import Cause
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.capture import Receiver
from dhan_pipeline.ingest.gaps import SHORTEST_PAUSE_S, GapKeeper
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.ingest.listed import SubscriptionList
from dhan_pipeline.ingest.logbook import Logbook
from dhan_pipeline.ingest.metrics import Metrics
from dhan_pipeline.ingest.spots import Spots
from dhan_pipeline.ingest.status import StatusReport
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import ExchangeSegment, exchange_segments
from dhan_pipeline.journal.block import Block, split_block_id
from dhan_pipeline.journal.notes import NOTE_CONNECTION, Started
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.quality.gaps import session_seconds
from dhan_pipeline.quality.held_up import Waits
from dhan_pipeline.quality.measures import DISK_WARN_GB
from dhan_pipeline.quality.pauses import PauseWatch
from dhan_pipeline.quality.trade_clock import moved_in_words
from dhan_pipeline.sessions import IST, calendar_problem, hour_key, packets_due, packets_due_throughout
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.subscriptions import SubscriptionError
from dhan_pipeline.ticks import Mode

if TYPE_CHECKING:
    from dhan_pipeline.ingest.publisher import Publisher

log = logging.getLogger(__name__)

Emit = Callable[[dict[str, Any]], None]

#: How long a stopping capture waits for the database to take what is left. The journal keeps what it does not.
DRAIN_S = 10.0

#: A clock behind the journal stamps everything with the journal's last time until it has caught up. Behind by more than
#: this it cannot be meant: no packet has a usable time then.
_CLOCK_TOLERANCE_NS = 3_600_000_000_000

#: The event loop looks at the clocks every second. When it comes that late, the process did not run.
_SUSPENDED_S = 5.0

#: The machine's clock may be slewed; by this much within a second it was set.
_CLOCK_STEP_S = 2.0

#: How soon a thread gets the interpreter from another that computes. With Python's 5 ms, each answer of the database
#: may wait for that long: the p99 of 20,000 ticks/s fell from 47 to 32 ms on a busy machine.
_SWITCH_INTERVAL_S = 0.0005

#: How often the resolved list is looked at: so late is a change of it noticed.
_LIST_POLL_S = 1.0

#: How often option chains are looked at whose underlying's price may have moved on.
_CHAINS_POLL_S = 5.0

#: Prices of stored packets that are older than this say where windows were, not where they should be.
_STALE_S = 10.0

#: A connection that loses more than this share of its instruments has another rhythm than before.
_OTHER_RHYTHM = 0.1

#: Of glibc's malloc.h.
_M_ARENA_MAX = -8

#: While the writer is behind, packets are gathered into a journal block for up to so many flush intervals.
_LONGEST_FLUSHES = 5
_FLUSH_POLL_S = 0.002

# Goes on while the machine sleeps, where the system has such a clock.
_elapsed_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _elapsed_s() -> float:
    """A clock that nobody sets."""
    return time.clock_gettime(_elapsed_clock)


def _last_gap_id(journal: JournalWriter) -> int:
    """No gap that the journal knows has an id above this.

    Ids are receive times, or count on from here where the clock is behind the journal. Receive times stand still then;
    but the number of the last block, a time in ms, is a higher one after each process.
    """
    if journal.last_block_id is None:
        return 0
    return max(journal.last_received_ns, (split_block_id(journal.last_block_id)[1] + 2) * 1_000_000)


def _share_memory() -> None:
    """Let all threads allocate from one place: what one has freed, the next may have.

    They hand arrays of megabytes to one another, block by block. Catching up at 100,000 ticks/s took 220 MB without.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(AttributeError):  # an allocator that is not glibc's
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


class ClockBehindError(PipelineError):
    """The machine's clock is behind the journal."""


def _sink(settings: Settings) -> "type[Writer | Publisher]":
    """What takes blocks from the backlog: it stores them, or hands them over to workers."""
    if settings.transport == "direct":
        return Writer
    from dhan_pipeline.ingest.publisher import Publisher  # a client of RabbitMQ, which others do without

    return Publisher


class Ingest:
    """The parts of one capture, wired: connections -> receiver -> journal -> backlog -> writer, or publisher."""

    def __init__(
        self, settings: Settings, database_url: str, emit: Emit, clock: Clock, policy: FeedPolicy | None = None
    ) -> None:
        """Take the capture's lock and recover its journal. Close with `close`.

        `emit` gets one dictionary an event, in the event loop's thread: started, status, hour_complete, gap,
        subscriptions, warning, stopped. `policy` is that of the settings if none is given.

        Raises LockHeldError where another process runs this capture, SubscriptionError where the resolved subscriptions
        are missing, SubscriptionLimitError where they are too many, ClockBehindError.
        """
        self._list = SubscriptionList(settings)
        self._wanted = self._list.read()
        self._settings = settings
        self._database_url = database_url
        self._emit = emit
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._journal = JournalWriter(settings.journal_dir, settings.capture_number)
        with contextlib.ExitStack() as undo:
            undo.callback(self._journal.close)
            if clock.now_ns() < self._journal.last_received_ns - _CLOCK_TOLERANCE_NS:
                raise ClockBehindError(
                    f"The clock says {clock.now():%Y-%m-%d %H:%M:%S} UTC, which is before the journal's last message;"
                    " set the clock, or choose another data directory."
                )
            feed = feed_of(settings)
            heartbeat_size = feed.wire.heartbeat_size
            self._receiver = Receiver(self._journal, clock, self._on_block, self._flush_later, heartbeat_size)
            self._connects: Counter[int] = Counter()
            self._feed = feed(
                settings,
                self._wanted,
                self._receiver.receive,
                self._warn,
                clock=clock,
                policy=policy,
                packets_due=self._packets_due,
                on_connect=lambda connection: self._connects.update((connection,)),
                on_first_message=lambda connection: self._gaps.message(connection),
                on_down=self._on_down,
                on_shed=self._on_shed,
                on_moved=self._on_moved,
            )
            self._held = self._feed_holds()
            """The instruments of each connection, as all but the feed know them."""
            last_gap_id = _last_gap_id(self._journal)
            self._gaps = GapKeeper(
                self._receiver.note,
                emit,
                self._feed.instruments,
                partial(session_seconds, always=settings.sessions == "always"),
                clock,
                last_gap_id,
            )
            self._started = Started(
                os.getpid(),
                self._journal.last_received_ns or None,
                self._journal.previous or Cause.RESTART,
                last_gap_id,
            )
            self._spots = Spots(decoder(settings))
            self._pauses = PauseWatch(SHORTEST_PAUSE_S, clock.speed, heartbeat_size)
            self._end: Cause | None = None
            self._flush_timer: asyncio.TimerHandle | None = None
            self._backlog = Backlog(
                settings.journal_dir,
                settings.capture_number,
                self._journal.last_block_id,
                self._journal.last_received_ns,
                self._on_damage,
            )
            self._book = Logbook(settings)
            self._writer = _sink(settings)(
                settings, database_url, self._backlog, clock, self._warn, self._connections(), self, self._book
            )
            self.metrics = Metrics(settings, clock, "capture", self._writer.counts, self._wanted)
            self._report = StatusReport(clock)
            self._waits = Waits()
            self._messages = 0
            self._bytes = 0
            self._announced: set[str] = set()
            self._disk_is_low = False
            self._trade_clock: str | None = None
            self._traded_though_closed: frozenset[ExchangeSegment] = frozenset()
            undo.pop_all()

    def close(self) -> None:
        """Release the capture's lock, and leave a word on how it ended."""
        self._journal.close(self._end)

    async def run(self, stop: asyncio.Event) -> None:
        """Capture until `stop` is set; then write what arrived and return.

        Raises what ends a capture for good: the feed's permanent errors, and OSError where the journal cannot be
        written.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        _share_memory()
        # What is there now stays: a full collection, which looked at all modules, held up everything for 30 ms.
        gc.collect()
        gc.freeze()
        journal = threading.Thread(target=self._receiver.run, name="journal")
        # A database that no longer answers must not keep the process from ending.
        writer = threading.Thread(target=self._writer.run, name="writer", daemon=True)
        self._gaps.begin(self._feed.connections, self._started)
        ended_ns = self._started.since_ns
        self._book.begin(self._feed.subscriptions, self._clock.now(), None if ended_ns is None else instant(ended_ns))
        journal.start()
        writer.start()
        self._emit(
            {
                "event": "started",
                "capture": self._settings.capture_number,
                "source": self._settings.source,
                "pid": os.getpid(),
            }
        )
        if self._settings.sessions == "exchange" and (
            problem := calendar_problem(self._clock.now().astimezone(IST).date())
        ):
            self._warn(problem)
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in {
                "feed": self._feed.run(),
                "status": self._report_status(),
                "subscriptions": self._follow_list(),
                "journal": asyncio.to_thread(journal.join),
                "stop": stop.wait(),
            }.items()
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The feed ends first: what still comes while it takes leave is captured, too.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._receiver.close()
            await asyncio.to_thread(journal.join)
            self._backlog.close()
            if stop.is_set():
                self._book.say(self.status() | {"stopped": True})
            self._writer.stop(DRAIN_S)
            await asyncio.to_thread(writer.join, DRAIN_S + 1)
            gc.unfreeze()
        if not self._receiver.failure:
            for task in done:
                task.result()
        if self._receiver.failure:
            if isinstance(self._receiver.failure, OSError):
                self._end = Cause.DISK
            raise self._receiver.failure
        self._end = Cause.STOP
        self._emit(self.status())
        self._announce_hours()
        self._emit({"event": "stopped", "reason": "asked to stop"})

    def silent(self, instruments: tuple[int, ...], connection: int, since_ns: int) -> None:
        """Lively instruments went silent. For the writer's thread."""
        self._in_loop(self._gaps.silent, instruments, connection, since_ns)

    def heard(self, instruments: tuple[int, ...], at_ns: int) -> None:
        """They were heard again. For the writer's thread."""
        self._in_loop(self._gaps.heard, instruments, at_ns)

    def _on_damage(self, since_ns: int, until_ns: int, where: str) -> None:
        self._warn(f"Part of the journal cannot be read: {where}.")
        self._in_loop(self._gaps.damaged, self._feed.connections, since_ns, until_ns, where)

    def _on_down(self, connection: int, error: SourceError, since_ns: int | None) -> None:
        self._gaps.down(connection, error, error.cause, since_ns)

    def _on_shed(self, instruments: tuple[int, ...]) -> None:
        self._gaps.shed(instruments)
        self._book.change(dict.fromkeys(instruments), self._clock.now())

    def _on_moved(self) -> None:
        """The server wanted fewer on a connection: from here on others bring what it brought."""
        self._tell_placed(())

    async def _follow_list(self) -> None:
        """Take over the resolved list whenever somebody has written it. One that cannot be used changes nothing.

        Where the price has moved on that options in it follow, it is written here.
        """
        chains_at = 0.0
        while True:
            await asyncio.sleep(_LIST_POLL_S)
            try:
                if self._loop.time() >= chains_at:
                    chains_at = self._loop.time() + _CHAINS_POLL_S
                    underlyings = await asyncio.to_thread(self._list.underlyings)
                    await asyncio.to_thread(self._list.follow, self._prices(underlyings))
                if self._list.changed():
                    self._subscribe(await asyncio.to_thread(self._list.read))
                    await self._feed.tell()
            except (SubscriptionError, SubscriptionLimitError, OSError) as error:
                self._warn(f"The subscriptions stay as they were. {error}")

    def _prices(self, underlyings: set[int]) -> dict[int, float]:
        """The last prices of these, as far as they are known now."""
        self._spots.watch(underlyings)
        if self._is_stale():
            return self._spots.prices
        self._spots.forget()
        return self._writer.liveliness.market.prices(underlyings)

    def _is_stale(self) -> bool:
        """Whether what is stored is of some time ago."""
        return self._clock.elapsed_s(self._writer.liveliness.market.looked_ns) > _STALE_S

    def _subscribe(self, wanted: dict[int, Mode]) -> None:
        """Change what is subscribed to this. Raises SubscriptionLimitError; then nothing changed."""
        before, at = self._wanted, self._clock.now()
        changes: dict[int, Mode | None] = {token: None for token in before if token not in wanted}
        removed = len(changes)
        changes |= {token: mode for token, mode in wanted.items() if before.get(token) != mode}
        if not changes:
            return
        self._feed.change(changes)
        self._wanted = wanted
        self._gaps.wanted(wanted)
        modes = self._feed.subscriptions
        self._book.change({token: modes.get(token) for token in changes}, at)
        self._tell_placed(changes)
        added = len(wanted) - len(before) + removed
        others = len(changes) - added - removed
        self._emit(
            {
                "event": "subscriptions",
                "added": added,
                "removed": removed,
                "changed": others,
                "subscribed": self._feed.subscribed,
                "message": f"The subscriptions have changed: +{added:,} -{removed:,} instruments"
                f"{f', {others:,} in another mode' if others else ''}; {self._feed.subscribed:,} in all.",
            }
        )

    def _tell_placed(self, changed: Collection[int]) -> None:
        """Have all know which connection each instrument is on now; `changed` are subscribed anew, or no more."""
        before, self._held = self._held, self._feed_holds()
        for number, has in enumerate(self._held):
            had = before[number] if number < len(before) else frozenset()
            if has - had:
                self._gaps.joined(number)
            if len(had - has) > _OTHER_RHYTHM * len(had):
                self._pauses.forget(number)
        connections = self._connections()
        self._writer.subscribe(connections, changed)
        self.metrics.subscribe(connections)

    def _feed_holds(self) -> list[frozenset[int]]:
        """The instrument tokens of each connection."""
        return [frozenset(self._feed.instruments(number)) for number in range(self._feed.connections)]

    def _connections(self) -> dict[int, int]:
        """The connection of each instrument token, as was told last."""
        return {token: number for number, tokens in enumerate(self._held) for token in tokens}

    def _packets_due(self, segments: Collection[ExchangeSegment]) -> bool:
        if self._settings.sessions == "always":
            return bool(segments)  # of a connection that has lost all of its instruments nothing is due
        return packets_due(self._clock.now_ns(), segments)

    def _on_block(self, block: Block) -> None:
        self._messages += int(np.count_nonzero(block.connection != NOTE_CONNECTION))
        self._bytes += len(block.payload)
        self._backlog.put(block)
        if self._is_stale():
            self._spots.see(block)
        for connection, since_ns, until_ns in self._pauses.see(block):
            if connection != NOTE_CONNECTION:
                self._in_loop(self._on_pause, connection, since_ns, until_ns)

    def _on_pause(self, connection: int, since_ns: int, until_ns: int) -> None:
        segments = exchange_segments(self._feed.instruments(connection))
        if self._settings.sessions == "always" or packets_due_throughout(since_ns, until_ns, segments):
            self._gaps.paused(connection, since_ns, until_ns)

    def _warn(self, message: str) -> None:
        log.warning(message)
        self._in_loop(self._emit, {"event": "warning", "message": message})

    def _in_loop(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # a writer that did not end in time outlives the loop
            self._loop.call_soon_threadsafe(call, *args)

    def _flush_later(self) -> None:
        """A message begins a block: it is written after the flush interval, or a few where the writer is behind."""
        interval_s = self._settings.flush_interval_ms / 1000
        latest = self._loop.time() + _LONGEST_FLUSHES * interval_s
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._flush_timer = self._loop.call_later(interval_s, self._flush, latest)

    def _flush(self, latest: float) -> None:
        # Fewer, larger blocks are cheaper to store: under load they grow to what arrives during a transaction.
        if (self._backlog.awaited or self._loop.time() >= latest) and self._receiver.flush():
            return
        self._flush_timer = self._loop.call_later(_FLUSH_POLL_S, self._flush, latest)

    @property
    def latency(self) -> LatencyHistogram:
        """Receive-to-commit latency of every message that was committed since the start."""
        return self._writer.counts.latency

    def status(self) -> dict[str, Any]:
        """The status now, as the status line says it."""
        return self._report.line(
            self._writer.counts,
            messages=self._messages,
            received_bytes=self._bytes,
            last_received_ns=self._receiver.last_received_ns,
            last_message_ns=self._receiver.last_message_ns,
            connections=(self._feed.connections_up, self._feed.connections),
        ) | {
            **self._gaps.status(),
            **self._writer.facts(),
            "waits": {hour: dict(seconds) for hour, seconds in self._waits.by_hour.items()},
            **self._writer.liveliness.market.facts(self._clock.now_ns()),
            "backlog_blocks": self._backlog.blocks,
            "subscribed": self._feed.subscribed,
            "reconnects": self._connects.total() - len(self._connects),
            "sessions": self._settings.sessions,
            "trade_clock": self._writer.liveliness.trade_clock,
            "traded_though_closed": sorted(segment.name for segment in self._writer.liveliness.traded_though_closed),
            "token_expires_at": expires_at.isoformat() if (expires_at := self._feed.token_expires_at) else None,
            "token_problem": self._feed.token_problem,
            "disk_free_gb": round(shutil.disk_usage(self._settings.journal_dir).free / 1e9, 1),
        }

    async def _report_status(self) -> None:
        """A status line a second, also kept in the database; and each hour once it is over and committed."""
        while True:
            pulse_s, pulse_ns = _elapsed_s(), self._clock.now_ns()
            status = self.metrics.status = self.status()
            self._waits.see(status)
            self._emit(status)
            self._book.say(status)
            self._announce_hours()
            self._watch_disk()
            self._watch_trade_clock()
            self._watch_calendar()
            await asyncio.sleep(1)
            self._watch_clocks(pulse_s, pulse_ns)

    def _announce_hours(self) -> None:
        for hour in sorted(self._complete_hours() - self._announced):
            self._emit({"event": "hour_complete", "hour": hour})
            self._announced.add(hour)

    def _complete_hours(self) -> set[str]:
        """Hours that are over and committed to the last block."""
        now_ns = self._clock.now_ns()
        committed_ns = self._writer.counts.committed_through_ns
        # Blocks are committed in order. Where none waits, only what is received from now on is to come.
        horizon = hour_key(now_ns if self._receiver.last_received_ns <= committed_ns else committed_ns)
        return {hour for hour in self._writer.counts.hours if hour < horizon}

    def _watch_clocks(self, pulse_s: float, pulse_ns: int) -> None:
        """Notice that the process stood still since the pulse, or that somebody set the machine's clock."""
        passed_s = _elapsed_s() - pulse_s
        step_s = self._clock.elapsed_s(pulse_ns) - passed_s
        if passed_s > _SUSPENDED_S:
            self._warn(f"The process stood still for {passed_s:.0f} s.")
            self._gaps.suspended(range(self._feed.connections), pulse_ns)
        if abs(step_s) > _CLOCK_STEP_S:
            way = "forward" if step_s > 0 else "back; receive times stand still until it has caught up"
            self._warn(f"The machine's clock was set by {abs(step_s):.0f} s {way}.")

    def _watch_trade_clock(self) -> None:
        verdict = self._writer.liveliness.trade_clock
        if verdict == "moved" and self._trade_clock != "moved":
            self._warn(moved_in_words(self._settings.source, self._settings.trade_time_offset_s))
        self._trade_clock = verdict

    def _watch_calendar(self) -> None:
        traded = self._writer.liveliness.traded_though_closed
        if traded - self._traded_though_closed:
            names = ", ".join(sorted(segment.name for segment in traded))
            self._warn(
                f"The calendar is wrong: it has no session today of {names}, which trade."
                " Write the day into the file of SESSIONS_FILE; it counts at once."
            )
        self._traded_though_closed = traded

    def _watch_disk(self) -> None:
        free_gb = shutil.disk_usage(self._settings.journal_dir).free / 1e9
        if free_gb < DISK_WARN_GB and not self._disk_is_low:
            self._warn(f"The journal's disk has {free_gb:.1f} GB left; the capture ends when it is full.")
        self._disk_is_low = free_gb < DISK_WARN_GB
