"""The journal as a queue: blocks that are durable but not yet committed to the database.

Recent blocks wait in memory. When the writer falls behind (the database is away, or a restart left work), memory is
given up and the writer reads from the journal's files until it has caught up; so the backlog has no limit but the disk.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from threading import Condition

from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import JournalReader

#: Payload that may wait in memory: 160 ms at 200k full packets a second, or a minute at 2k.
MEMORY_LIMIT_BYTES = 32 << 20

#: Blocks handed out at once: bounds a transaction, and the memory of a catch-up.
BATCH_BLOCKS = 64
BATCH_BYTES = 4 << 20


class Backlog:
    """Blocks of one capture between the journal (which puts) and one writer (which takes)."""

    def __init__(self, journal_dir: Path, capture: int, last_durable: int | None) -> None:
        """`last_durable` is the journal's last block id at start, None for an empty journal."""
        self._journal_dir = journal_dir
        self._capture = capture
        self._ready = Condition()
        self._recent: deque[Block] = deque()
        self._recent_bytes = 0
        self._last_durable = last_durable
        self._last_taken: int | None = None
        self._reader = JournalReader(journal_dir, capture)
        self._on_disk: Iterator[Block] | None = None
        self._readable: int | None = None
        self._in_memory = False
        self._closed = False

    def start_after(self, block_id: int | None) -> None:
        """Begin with the block after `block_id`, the last that was committed; None begins with the journal."""
        with self._ready:
            self._last_taken = block_id
            self._leave_memory()
            self._reader = JournalReader(self._journal_dir, self._capture, block_id)

    def put(self, block: Block) -> None:
        """Add a block that is durable in the journal."""
        with self._ready:
            self._last_durable = block.block_id
            if self._in_memory:
                self._recent.append(block)
                self._recent_bytes += len(block.payload)
                if self._recent_bytes > MEMORY_LIMIT_BYTES:
                    self._leave_memory()
                    self._reader = JournalReader(self._journal_dir, self._capture, self._last_taken)
            self._ready.notify()

    def take(self, timeout_s: float) -> list[Block]:
        """The next blocks in order, at most a batch; empty when none came within the timeout."""
        with self._ready:
            if not self.pending and not self._closed:
                self._ready.wait(timeout_s)
            if self._in_memory:
                return self._take_from_memory()
        return self._take_from_disk()

    def close(self) -> None:
        """No block will be put any more: `take` no longer waits."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    @property
    def pending(self) -> bool:
        """Whether a durable block has not been taken."""
        return self._last_durable is not None and (self._last_taken is None or self._last_taken < self._last_durable)

    def _leave_memory(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self._on_disk = None
        self._in_memory = False

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
        return taken

    def _take_from_disk(self) -> list[Block]:
        # The files are read without the lock: capture must never wait for a catch-up.
        if self._on_disk is None:
            self._readable = self._last_durable
            self._on_disk = self._reader.blocks()
        taken: list[Block] = []
        size = 0
        for block in islice(self._on_disk, BATCH_BLOCKS):
            taken.append(block)
            size += len(block.payload)
            if size >= BATCH_BYTES:
                break
        with self._ready:
            if taken:
                self._last_taken = taken[-1].block_id
            else:
                # The iterator ended at the journal's tail as it was; what was durable when it began and did not
                # come out of it is corrupt, and will not come later.
                if self._readable is not None:
                    self._last_taken = max(self._last_taken or 0, self._readable)
                self._on_disk = None
                self._in_memory = not self.pending
        return taken
