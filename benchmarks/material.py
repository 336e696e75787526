"""What the benchmarks of journal and database work on: a market's packets, a journal of them, a server, a writer."""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from os import sysconf
from pathlib import Path
from threading import Thread
from typing import Self

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from benchmarks.report import wrong
from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.ticks import Mode

#: A trading day, and the first hour of it that has ticks.
HOUR = "2026-11-20T09:00"
START_NS = parse_hour_key(HOUR)

INSTRUMENTS = 500
_FIRST_SECURITY_ID = 40_000

_CODES = {Mode.TICKER: ResponseCode.TICKER, Mode.QUOTE: ResponseCode.QUOTE, Mode.FULL: ResponseCode.FULL}

#: The market moves by so many events at once, and its clock with it.
_EVENTS = 1000


class HandClock(Clock):
    """Shows what it is set to: ns since the Unix epoch, UTC."""

    def __init__(self, at_ns: int) -> None:
        super().__init__()
        self.at_ns = at_ns

    def now_ns(self) -> int:
        """What it was last set to."""
        return self.at_ns


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages of one packet each, as parallel sequences; `received_ns` in ns since the Unix epoch, UTC."""

    received_ns: Sequence[int]
    payloads: Sequence[bytes]

    def append_to(self, journal: JournalWriter) -> Block:
        """Write them as one block. They must be of one hour."""
        nothing = bytes(len(self.payloads))
        return journal.append(self.received_ns, nothing, [False] * len(nothing), self.payloads)


def instrument_tokens(count: int = INSTRUMENTS) -> NDArray[np.int64]:
    """Tokens of so many instruments of NSE, shares and derivatives in turn."""
    segments = (ExchangeSegment.NSE_EQ, ExchangeSegment.NSE_FNO)
    return np.array([generate_instrument_token(segments[n % 2], _FIRST_SECURITY_ID + n) for n in range(count)])


class Packets:
    """The packets of a market, evenly spread over time, one a message. The same arguments give the same bytes.

    Instruments are subscribed in the modes in turn. One that is subscribed in full mode sends full packets only. The
    others announce their previous close first, and send their open interest when it changes.
    """

    def __init__(
        self, rate: float, *, tokens: NDArray[np.int64], modes: Sequence[Mode] = (Mode.FULL,), start_ns: int = START_NS
    ) -> None:
        """`rate` is in messages a second; the first is received at `start_ns` (since the Unix epoch, UTC)."""
        self.rate = rate
        self.next_ns = start_ns
        """When the next message is received. May be set, to go on at another time."""
        self._clock = HandClock(start_ns)
        self._market = Market(tokens, clock=self._clock)
        self._mode = np.arange(len(tokens)) % len(modes)
        self._modes = modes
        self._sends_full = np.array([mode == Mode.FULL for mode in modes])[self._mode]
        self._waiting = self._split(ResponseCode.PREVIOUS_CLOSE, np.flatnonzero(~self._sends_full))

    def take(self, count: int) -> Messages:
        """The next messages."""
        self._clock.at_ns = self.next_ns
        while len(self._waiting) < count:
            for index, changed in self._market.step(_EVENTS):
                self._waiting += self._encode(index, changed)
        payloads, self._waiting = self._waiting[:count], self._waiting[count:]
        start_ns, self.next_ns = self.next_ns, self.next_ns + round(count * 1e9 / self.rate)
        return Messages((start_ns + (np.arange(count) * (1e9 / self.rate)).astype(np.int64)).tolist(), payloads)

    def _encode(self, index: NDArray[np.intp], changed: NDArray[np.intp]) -> list[bytes]:
        if len(self._modes) == 1:
            payloads = self._split(_CODES[self._modes[0]], index)
        else:
            found = np.empty(len(index), object)
            for number, mode in enumerate(self._modes):
                of_mode = self._mode[index] == number
                found[of_mode] = self._split(_CODES[mode], index[of_mode])
            payloads = found.tolist()
        return payloads + self._split(ResponseCode.OPEN_INTEREST, changed[~self._sends_full[changed]])

    def _split(self, code: ResponseCode, index: NDArray[np.intp]) -> list[bytes]:
        packets = self._market.packets(code, index)
        size, data = packets.dtype.itemsize, packets.tobytes()
        return [data[start : start + size] for start in range(0, len(data), size)]


def fill_hour(journal: JournalWriter, packets: Packets, hour: str, messages: int, in_block: int) -> None:
    """Write so many messages, evenly spread over the hour of a partition key, in blocks of so many."""
    packets.next_ns = parse_hour_key(hour)
    # A little faster than would do, so that no rounding carries the last message into the next hour.
    packets.rate = 1.001 * messages / (HOUR_NS / 1e9)
    for start in range(0, messages, in_block):
        packets.take(min(in_block, messages - start)).append_to(journal)


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """A directory that other users may enter, since root's server runs as another one; removed at the end."""

    def end(signal_number: int, frame: object) -> None:
        sys.exit(128 + signal_number)

    before = signal.signal(signal.SIGTERM, end)  # else nothing would be removed, and a server run on
    folder = Path(tempfile.mkdtemp(prefix="dhan-pipeline-benchmark-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        for data in folder.glob("postgresql-*/data"):
            if data.is_symlink():  # the server's user could not enter the directory
                shutil.rmtree(data.resolve())
        shutil.rmtree(folder)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def database(tokens: NDArray[np.int64] | None = None) -> Iterator[Settings]:
    """Settings with a data directory and a migrated database of their own, which knows the instruments of `tokens`.

    The server is the embedded one, with its usual settings.
    """
    with temporary_dir() as folder:
        url = embedded.start(folder).url
        try:
            migrate(url)
            if tokens is not None:
                _add_instruments(url, tokens)
            # Validated, not read: nothing of the environment changes what is measured.
            yield Settings.model_validate(
                {"data_source": "dhan", "data_dir": folder, "database_url": url, "sessions": "always"}
            )
        finally:
            embedded.stop(folder)


def _add_instruments(url: str, tokens: NDArray[np.int64]) -> None:
    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) VALUES %s",
            [(token, "dhan", "NSE", f"S{token}") for token in tokens.tolist()],
        )


class RunningWriter:
    """The writer of a capture in a thread of its own, as the capture runs it; a context manager."""

    def __init__(
        self, settings: Settings, journal: JournalWriter, clock: Clock, tokens: NDArray[np.int64] | None = None
    ) -> None:
        """It begins with what the journal has and the database has not. `tokens` are those subscribed, if any."""
        connections = None if tokens is None else dict.fromkeys(tokens.tolist(), 0)
        self._troubles: list[str] = []
        self.backlog = Backlog(settings.journal_dir, settings.capture, journal.last_block_id, journal.last_received_ns)
        self.writer = Writer(
            settings, settings.database_url or "", self.backlog, clock, self._troubles.append, connections
        )
        # A daemon: what goes wrong here must end the benchmark, not wait for the database.
        self._thread = Thread(target=self.writer.run, name="writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.backlog.close()
        self.writer.stop(0)
        self._thread.join(10)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; end the benchmark where the writer warned of something."""
        while not condition():
            if self._troubles:
                wrong("the writer has trouble:", *self._troubles)
            time.sleep(0.002)

    def wait_for(self, received_ns: int) -> None:
        """Return once everything received up to this time is committed."""
        self.wait(lambda: self.writer.counts.committed_through_ns >= received_ns)


class ServerCpu:
    """Processor time of a database server on this machine, all its processes together. Linux only."""

    def __init__(self, conn: connection) -> None:
        with conn, conn.cursor() as cursor:
            cursor.execute("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")
            self._pid = int(cursor.fetchall()[0][0])

    def seconds(self) -> float:
        """CPU seconds since the server started. Connections that ended count, too."""
        while True:
            own = self._own()
            children = self._children()
            # None ended meanwhile: it would be in neither.
            if self._own()[2:] == own[2:]:
                return (sum(own) + children) / sysconf("SC_CLK_TCK")

    def _own(self) -> list[int]:
        """Clock ticks of the server's first process: user, system, and those of its children that ended."""
        return list(map(int, _stat(self._pid)[11:15]))

    def _children(self) -> int:
        """Clock ticks of its processes that are there, user and system."""
        ticks = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = _stat(int(process.name))
            except OSError:  # it has just ended
                continue
            if int(words[1]) == self._pid:
                ticks += sum(map(int, words[11:13]))
        return ticks


def _stat(pid: int) -> list[str]:
    """What Linux says of a process, behind its name: state, parent, and so on (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
