"""Catching up: the database was away for a minute at 10,000 ticks a second, and the ticks go on coming.

    python benchmarks/catch_up.py [--json]

The journal holds 60 s of full packets, one a message, in blocks of 200: what a capture writes in that time. Then the
database is there. From that moment the writer stores what waits, and another thread goes on appending 200 packets every
20 ms, each stamped when it is due. Caught up is the first moment at which the last 100 ms alone are not yet committed.
The speed is the time that the stored ticks span, by the time that it took: 1 would be a capture that never catches up.

Five rounds, each a capture of its own in the same database. Decoder, writer, journal and database share the machine,
as they do in a capture; receiving from a socket is left out.

Afterwards the ledger has to hold every message that was written, no more, and as many ticks, none twice. A difference
is a failure (exit code 1). A time never is.
"""

import time
from contextlib import closing
from threading import Event, Thread
from typing import Self

from psycopg2.extensions import connection

from benchmarks.material import (
    INSTRUMENTS,
    START_NS,
    Messages,
    Packets,
    RunningWriter,
    ServerCpu,
    database,
    instrument_tokens,
)
from benchmarks.report import ROUNDS, Spread, arguments, publish, take_turns, wrong
from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.journal.block import Block, first_block_id
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.ticks import POSITION_BITS

RATE = 10_000
OUTAGE_S = 60
FLUSH_S = 0.02
IN_BLOCK = round(RATE * FLUSH_S)

#: Ticks that wait for less than this are no backlog.
LAG_NS = 100_000_000

#: Ticks go on coming for so long. A writer that needs longer is measured until then.
LONGEST_S = 30


class Books:
    """What was written to a journal: what the database has to hold in the end."""

    def __init__(self) -> None:
        self.blocks = self.messages = self.tick_ids = 0

    def add(self, block: Block) -> None:
        """A block of full packets: each message is a tick."""
        self.blocks += 1
        self.messages += block.messages
        first = block.block_id << POSITION_BITS
        self.tick_ids += block.messages * first + block.messages * (block.messages - 1) // 2


class Live:
    """Goes on with the capture: appends blocks as they fall due, and shows them to the backlog. A context manager."""

    def __init__(
        self, messages: list[Messages], journal: JournalWriter, backlog: Backlog, clock: Clock, books: Books
    ) -> None:
        self._messages = messages
        self._journal, self._backlog, self._clock, self._books = journal, backlog, clock, books
        self._stop = Event()
        self._thread = Thread(target=self._run, name="journal", daemon=True)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Return when the last block is durable."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for messages in self._messages:
            wait_ns = messages.received_ns[-1] - self._clock.now_ns()
            if self._stop.wait(max(wait_ns, 0) / 1e9):
                return
            block = messages.append_to(self._journal)
            self._books.add(block)
            self._backlog.put(block)


class Outages:
    """One capture after another, each with an outage."""

    def __init__(self, settings: Settings, conn: connection) -> None:
        self._settings = settings
        self._conn = conn
        self._server = ServerCpu(conn)
        self._captures = 0
        self.seconds: list[float] = []
        """Until the writer had caught up."""
        self.rates: list[float] = []
        """Ticks a second until then."""
        self.python_us: list[float] = []
        """CPU of this process, us a tick: decoder, writer, journal."""
        self.server_us: list[float] = []
        """CPU of PostgreSQL, us a tick."""

    def catch_up(self) -> float:
        """How many times as fast as real time a writer caught up."""
        settings = self._settings.model_copy(update={"capture": self._captures})
        self._captures += 1
        tokens = instrument_tokens()
        packets = Packets(RATE, tokens=tokens)
        books = Books()
        with closing(JournalWriter(settings.journal_dir, settings.capture)) as journal:
            for _ in range(RATE * OUTAGE_S // IN_BLOCK):
                books.add(packets.take(IN_BLOCK).append_to(journal))
            resumed_ns = packets.next_ns
            # Made before, since it is the exchange that makes them.
            coming = [packets.take(IN_BLOCK) for _ in range(RATE * LONGEST_S // IN_BLOCK)]
            clock = Clock(resumed_ns)
            with RunningWriter(settings, journal, clock, tokens) as running:
                counts = running.writer.counts
                python, server = time.process_time(), self._server.seconds()
                started = time.perf_counter()
                with Live(coming, journal, running.backlog, clock, books) as live:
                    running.wait(lambda: counts.committed_through_ns >= clock.now_ns() - LAG_NS or live.is_over)
                    took = time.perf_counter() - started
                    ticks, through_ns = counts.ticks, counts.committed_through_ns
                    python, server = time.process_time() - python, self._server.seconds() - server
                running.wait_for(journal.last_received_ns)
        self._check(settings.capture, books)
        self.seconds.append(took)
        self.rates.append(ticks / took)
        self.python_us.append(1e6 * python / ticks)
        self.server_us.append(1e6 * server / ticks)
        return (through_ns - START_NS) / 1e9 / took

    def _check(self, capture: int, books: Books) -> None:
        """Nothing is missing, and nothing is there twice."""
        ids = [first_block_id(number, 0) << POSITION_BITS for number in (capture, capture + 1)]
        with self._conn, self._conn.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), sum(messages)::int, sum(packets)::int, sum(ticks)::int FROM ingest_ledger "
                "WHERE capture = %s",
                (capture,),
            )
            ledger = cursor.fetchall()[0]
            cursor.execute(
                "SELECT count(*), count(DISTINCT tick_id), sum(tick_id) FROM ticks "
                "WHERE tick_id >= %s AND tick_id < %s",
                ids,
            )
            stored = cursor.fetchall()[0]
        if ledger != (books.blocks, books.messages, books.messages, books.messages):
            wrong(
                f"capture {capture}: {books.blocks} blocks of {books.messages} messages were written, the ledger has"
                " {} blocks, {} messages, {} packets, {} ticks".format(*ledger)
            )
        if stored != (books.messages, books.messages, books.tick_ids):
            wrong(
                f"capture {capture}: {books.messages} messages were written, there are"
                " {} ticks, {} different ones".format(*stored)
            )


def main() -> None:
    """Measure, compare, report."""
    options = arguments(__doc__).parse_args()
    with database(instrument_tokens()) as settings, closing(connect(settings.database_url or "")) as conn:
        outages = Outages(settings, conn)
        speed = take_turns({"speed": outages.catch_up})["speed"]
    row = {
        "seconds away": OUTAGE_S,
        "ticks that waited": OUTAGE_S * RATE,
        "seconds to catch up": Spread.of(outages.seconds),
        "times real time": speed,
        "ticks/s": Spread.of(outages.rates),
        "Python, CPU us a tick": Spread.of(outages.python_us),
        "PostgreSQL, CPU us a tick": Spread.of(outages.server_us),
    }
    publish(
        f"Catching up while {RATE:,} ticks a second go on coming",
        [row],
        options.json,
        instruments=INSTRUMENTS,
        rounds=ROUNDS,
        ticks_a_block=IN_BLOCK,
    )


if __name__ == "__main__":
    main()
