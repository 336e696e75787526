"""From the sockets to the journal: stamp, batch, write durably, hand on.

The event loop only stamps and appends. Blocks are written by a thread of their own, since a disk that takes its time
must not stall the sockets.
"""

import queue
from collections.abc import Callable
from dataclasses import dataclass, field

from dhan_pipeline.clock import Clock
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.notes import NOTE_CONNECTION, Note, encode_note
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, hour_start_ns
from dhan_pipeline.ticks import POSITION_BITS

#: How many packets a block can number. A message has at most a packet for 8 bytes, and one more for a torn rest.
_POSITIONS = 1 << POSITION_BITS
_SMALLEST_PACKET = 8


@dataclass(slots=True)
class Messages:
    """Messages of one hour on their way into a block: parallel lists, an entry an arrival, in order of receipt."""

    received_ns: list[int] = field(default_factory=list)
    connection: list[int] = field(default_factory=list)
    text: list[bool] = field(default_factory=list)
    payload: list[bytes] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    """How many messages of equal size the payload is."""
    positions: int = 0
    """How many packets there can be in all of them."""


class Receiver:
    """Collects messages into blocks. `receive` and `flush` belong to the event loop, `run` to the journal's thread."""

    def __init__(
        self,
        journal: JournalWriter,
        clock: Clock,
        on_block: Callable[[Block], None],
        on_open: Callable[[], None] = lambda: None,
        heartbeat_size: int = 0,
    ) -> None:
        """`on_block` is called in the journal's thread with each block that is durable.

        `on_open` is called in the event loop when a message begins a block: it wants to be flushed some time later.
        Messages of `heartbeat_size` bytes, or less, are kept as all others, and are no sign of data.
        """
        self._heartbeat_size = heartbeat_size
        self._journal = journal
        self._clock = clock
        self._on_block = on_block
        self._on_open = on_open
        self._open = Messages()
        self._sealed: queue.SimpleQueue[Messages | None] = queue.SimpleQueue()
        self._last_received_ns = journal.last_received_ns
        self._last_message_ns = 0
        self._hour_end_ns = 0
        self.failure: Exception | None = None
        """Why the journal could not be written; `run` has ended then."""

    @property
    def last_received_ns(self) -> int:
        """Receive time of the last message or note; the journal's last before the first."""
        return self._last_received_ns

    @property
    def last_message_ns(self) -> int:
        """Receive time of the feed's last message since the start, heartbeats aside; 0 before the first."""
        return self._last_message_ns

    def receive(self, payload: bytes | str, connection: int, count: int = 1) -> None:
        """Stamp what arrived at once, `count` messages of equal size, and add it to the open block."""
        # The bytes as they came, also where they are no UTF-8.
        data = payload.encode(errors="surrogateescape") if isinstance(payload, str) else payload
        now_ns = self._add(data, isinstance(payload, str), connection, count)
        if len(data) > self._heartbeat_size * count:
            self._last_message_ns = now_ns

    def note(self, note: Note) -> None:
        """Add a note to the open block."""
        self._add(encode_note(note), True, NOTE_CONNECTION, 1)

    def _add(self, data: bytes, text: bool, connection: int, count: int) -> int:
        # A clock that steps back must not put a later message before an earlier one.
        now_ns = self._last_received_ns = max(self._clock.now_ns(), self._last_received_ns)
        if now_ns >= self._hour_end_ns:
            self._seal()
            self._hour_end_ns = hour_start_ns(now_ns) + HOUR_NS
        size = len(data) // count
        positions = size // _SMALLEST_PACKET + 1
        while count > (room := (_POSITIONS - self._open.positions) // positions):
            if room or not self._open.payload:
                some = max(room, 1)
                self._append(now_ns, connection, text, data[: some * size], some, some * positions)
                data, count = data[some * size :], count - some
            self._seal()
        if count:
            self._append(now_ns, connection, text, data, count, count * positions)
        return now_ns

    def _append(self, now_ns: int, connection: int, text: bool, data: bytes, count: int, positions: int) -> None:
        messages = self._open
        if not messages.payload:
            self._on_open()
        messages.received_ns.append(now_ns)
        messages.connection.append(connection)
        messages.text.append(text)
        messages.payload.append(data)
        messages.count.append(count)
        messages.positions += positions

    def flush(self) -> bool:
        """Pass the open block to the journal's thread, unless one waits there: blocks grow where the disk is slow."""
        if self._sealed.empty():
            self._seal()
        return not self._open.payload

    def close(self) -> None:
        """Seal what is open; `run` ends when all is written."""
        self._seal()
        self._sealed.put(None)

    def run(self) -> None:
        """Write sealed blocks until closed. A journal that cannot be written ends it with `failure` set."""
        try:
            while (messages := self._sealed.get()) is not None:
                self._on_block(
                    self._journal.append(
                        messages.received_ns, messages.connection, messages.text, messages.payload, messages.count
                    )
                )
        except Exception as error:  # a thread's exception would be seen by nobody, and the capture go on without it
            self.failure = error

    def _seal(self) -> None:
        if self._open.payload:
            self._sealed.put(self._open)
            self._open = Messages()
