"""The journal as a queue: blocks that are durable but not yet committed to the database.

Recent blocks wait in memory. When the writer falls behind (the database is away, or a restart left work), memory is
given up and the writer reads from the journal's files until it has caught up; so the backlog has no limit but the disk.
"""

import logging
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Condition

from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import Corruption, JournalReader, hour_path
from dhan_pipeline.sessions import hour_key, hour_start_ns

log = logging.getLogger(__name__)

#: Payload that may wait in memory: a quarter of a second at 200k full packets a second, or 25 seconds at 2k.
MEMORY_LIMIT_BYTES = 8 << 20

#: Blocks handed out at once: bounds a transaction, and the memory of a catch-up.
BATCH_BLOCKS = 64
BATCH_BYTES = 3 << 18

#: So often ids of blocks are forgotten that were taken.
_FORGET_BLOCKS = 4096

#: Below every block id.
_NONE = -1

#: Told of blocks that can no longer be read: the receive times (ns) of what stands before and after, and where it was.
OnDamage = Callable[[int, int, str], None]


class Backlog:
    """Blocks of one capture between the journal (which puts) and one writer (which takes)."""

    def __init__(
        self,
        journal_dir: Path,
        capture: int,
        last_durable: int | None,
        last_received_ns: int,
        on_damage: OnDamage = lambda since_ns, until_ns, where: None,
    ) -> None:
        """At start, the journal's last block id, None if it is empty, and its last receive time.

        `on_damage` is called in the writer's thread.
        """
        self._journal_dir = journal_dir
        self._capture = capture
        self._on_damage = on_damage
        self._damage: dict[str, int] = {}
        """What was met since the last block that was read: in words, and the start of its hour."""
        self._told: set[str] = set()
        self._read_through_ns = 0
        self._last_of_hour: dict[int, int] = {}
        """The last durable block of each hour (by its start, ns), as far as this process knows."""
        if last_durable is not None:
            self._last_of_hour[hour_start_ns(last_received_ns)] = last_durable
        self._expected: deque[tuple[int, int]] = deque()
        self._ready = Condition()
        self._recent: deque[Block] = deque()
        self._recent_bytes = 0
        self._last_durable = _NONE if last_durable is None else last_durable
        self._last_received_ns = last_received_ns
        self._last_taken = _NONE
        self._in_memory = False
        self._closed = False
        self.awaited = False
        """Whether the writer waits for a block right now."""
        self._put: array[int] = array("q")
        """Ids of the blocks put, in order, but for those that were taken long ago."""
        self._readable = _NONE
        self._read_after(_NONE)

    def start_after(self, block_id: int | None, last_received_ns: int = 0) -> None:
        """Begin with the block after `block_id`, the last that was committed; None begins with the journal.

        `last_received_ns` is when its last message was received; 0: unknown.
        """
        with self._ready:
            self._last_taken = _NONE if block_id is None else block_id
            self._read_through_ns = last_received_ns
            self._leave_memory()
            hour_ns = hour_start_ns(last_received_ns)
            if last_received_ns and self._pending and hour_ns not in self._last_of_hour:
                path = self._path(hour_ns)
                if not path.exists():  # only it could tell whether more came in that hour
                    self._damage[f"{path} is gone"] = hour_ns

    def put(self, block: Block) -> None:
        """Add a block that is durable in the journal."""
        with self._ready:
            self._last_durable = block.block_id
            self._put.append(block.block_id)
            if len(self._put) % _FORGET_BLOCKS == 0:
                del self._put[: bisect_right(self._put, self._last_taken)]
            self._last_received_ns = block.last_received_ns
            self._last_of_hour[hour_start_ns(block.first_received_ns)] = block.block_id
            if self._in_memory:
                self._recent.append(block)
                self._recent_bytes += len(block.payload)
                if self._recent_bytes > MEMORY_LIMIT_BYTES:
                    self._leave_memory()
            self._ready.notify()

    def take(self, timeout_s: float, unless: Callable[[], bool] = lambda: False) -> list[Block]:
        """The next blocks in order, at most a batch; empty when none came within the timeout.

        None are waited for where `unless` says so; who makes it say so later calls `wake`.
        """
        with self._ready:
            if not self._pending and not self._closed and not unless():
                self.awaited = True
                self._ready.wait(timeout_s)
                self.awaited = False
            if self._in_memory:
                return self._take_from_memory()
        return self._take_from_disk()

    def close(self) -> None:
        """No block will be put any more: `take` no longer waits."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def wake(self) -> None:
        """End the waiting of `take`."""
        with self._ready:
            self._ready.notify()

    def taken_through_ns(self) -> int | None:
        """Receive time of the last durable message if all blocks were taken, None while any waits."""
        with self._ready:
            return None if self._pending else self._last_received_ns

    @property
    def waiting(self) -> bool:
        """Whether durable blocks wait to be taken."""
        with self._ready:
            return self._pending

    @property
    def blocks(self) -> int:
        """How many blocks wait to be taken, of those that were put; what a process before has left is not counted."""
        with self._ready:
            return len(self._put) - bisect_right(self._put, self._last_taken)

    @property
    def last_durable(self) -> int | None:
        """The journal's last block, None while it is empty."""
        with self._ready:
            return None if self._last_durable == _NONE else self._last_durable

    @property
    def _pending(self) -> bool:
        return self._last_taken < self._last_durable

    def _leave_memory(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self._in_memory = False
        self._read_after(self._last_taken)

    def _read_after(self, block_id: int) -> None:
        self._reader = JournalReader(self._journal_dir, self._capture, block_id, self._remember_damage)
        self._on_disk: Iterator[Block] | None = None
        self._damage.clear()  # it is met again

    def _take_from_memory(self) -> list[Block]:
        taken: list[Block] = []
        size = 0
        while self._recent and len(taken) < BATCH_BLOCKS and size < BATCH_BYTES:
            block = self._recent.popleft()
            taken.append(block)
            size += len(block.payload)
        self._recent_bytes -= size
        if taken:
            self._last_taken = taken[-1].block_id
            self._read_through_ns = taken[-1].last_received_ns
        return taken

    def _take_from_disk(self) -> list[Block]:
        # The files are read without the lock: capture must never wait for a catch-up.
        if self._on_disk is None:
            with self._ready:
                self._readable = self._last_durable
                self._expected = deque(
                    (block_id, hour_ns)
                    for hour_ns, block_id in self._last_of_hour.items()
                    if block_id > self._last_taken
                )
            self._on_disk = self._reader.blocks()
        taken: list[Block] = []
        size = 0
        for block in self._on_disk:
            self._miss_before(block.block_id)
            self._report_damage(block.first_received_ns)
            if block.block_id > self._last_durable:
                # In the file, but perhaps not on the disk yet: nobody may see it before it is put.
                self._read_after(taken[-1].block_id if taken else self._last_taken)
                break
            self._read_through_ns = block.last_received_ns
            taken.append(block)
            size += len(block.payload)
            if len(taken) == BATCH_BLOCKS or size >= BATCH_BYTES:
                with self._ready:
                    self._last_taken = block.block_id
                return taken
        self._miss_before(self._readable + 1)
        self._report_damage(self._last_received_ns)
        with self._ready:
            # All was read that was durable when the iterator began. What of it did not come is corrupt, and never will.
            self._last_taken = max(self._last_taken, self._readable, *(block.block_id for block in taken[-1:]))
            self._on_disk = None
            self._in_memory = not self._pending
        return taken

    def _path(self, hour_ns: int) -> Path:
        return hour_path(self._journal_dir, self._capture, hour_key(hour_ns))

    def _miss_before(self, block_id: int) -> None:
        """The next block that can be read is this one: those known to be durable before it should have come."""
        while self._expected and self._expected[0][0] <= block_id:
            expected, hour_ns = self._expected.popleft()
            if expected < block_id and hour_ns not in self._damage.values():  # else it is known why
                self._damage[f"{self._path(hour_ns)}: the last blocks of the hour are gone"] = hour_ns

    def _remember_damage(self, corruption: Corruption) -> None:
        log.error("%s", corruption)
        self._damage[str(corruption)] = corruption.hour_ns

    def _report_damage(self, until_ns: int) -> None:
        """Tell what was met between the last block that was read and what came at `until_ns`, once."""
        if not self._damage:
            return
        where = [words for words in self._damage if words not in self._told]
        since_ns = self._read_through_ns or min(self._damage.values())
        self._damage.clear()
        if where:
            self._told.update(where)
            self._on_damage(min(since_ns, until_ns), until_ns, "; ".join(where))
