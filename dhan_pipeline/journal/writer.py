"""Writing the journal: one capture, one writer, durable before anybody sees a block."""

import contextlib
import fcntl
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.gaps import Cause
from dhan_pipeline.journal.block import Block, next_block_id
from dhan_pipeline.journal.frame import SCHEMA_MESSAGE, Message, encode, iter_messages
from dhan_pipeline.journal.holder import Holder, boot_id
from dhan_pipeline.journal.reader import capture_dir, hour_path, list_files
from dhan_pipeline.sessions import hour_key, hour_start_ns

log = logging.getLogger(__name__)

#: Only the end of a file is verified when it is opened: each block before the last was durable before the next began.
_TAIL_BYTES = 4 << 20

# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)


class LockHeldError(PipelineError):
    """Another process writes this capture's journal. `pid` is None where it has not yet said who it is."""

    def __init__(self, capture: int, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"Capture {capture} is already running: {who} holds its lock.")
        self.capture = capture
        self.pid = pid


class JournalWriter:
    """Appends blocks to the hourly files of one capture. For one thread at a time."""

    def __init__(self, journal_dir: Path, capture: int) -> None:
        """Take the capture's lock and recover: what a crash left after the last whole block is cut off.

        Raises LockHeldError where another process holds the lock, OSError where the directory cannot be written.
        """
        self.last_block_id: int | None = None
        """Id of the last block in the journal, None while it is empty."""
        self.last_received_ns = 0
        """Receive time of the last message in the journal; none will be earlier. 0 while it is empty."""
        self.cut_bytes = 0
        """How many bytes recovery cut off the end of the journal."""
        self.previous: Cause | None = None
        """How the process that wrote it before ended: STOP, DISK, HOST_DOWN or RESTART. None while it is empty."""
        self._journal_dir = journal_dir
        self._capture = capture
        self._fd: int | None = None
        self._size = 0
        self._hour_start_ns = -1
        _make_dir(capture_dir(journal_dir, capture))
        self._lock_fd, before = _lock(capture_dir(journal_dir, capture) / "lock", capture)
        try:
            self._recover()
        except BaseException:
            os.close(self._lock_fd)
            raise
        if self.last_block_id is not None:
            self.previous = before.ended(boot_id())

    def append(
        self,
        received_ns: Sequence[int],
        connection: Sequence[int],
        text: Sequence[bool],
        payloads: Sequence[bytes],
    ) -> Block:
        """Write messages (parallel sequences, at least one, all of one IST hour) as a block, durable on return.

        Receive times (ns since the Unix epoch, UTC) never step back in a journal: an earlier one is raised to the last.
        Raises ValueError for messages that make no block. Raises OSError when the disk refuses: the journal then ends
        with the block before, and the same call may be tried again.
        """
        if not len(received_ns) == len(connection) == len(text) == len(payloads) > 0:
            raise ValueError("a block needs messages, each with time, connection, kind and payload")
        received = np.maximum.accumulate(np.maximum(np.asarray(received_ns, np.int64), self.last_received_ns))
        first_ns, last_ns = int(received[0]), int(received[-1])
        hour_ns = hour_start_ns(first_ns)
        if hour_start_ns(last_ns) != hour_ns:
            raise ValueError("a block must not cross an hour")
        offsets = np.zeros(len(payloads) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, payloads), np.int64, len(payloads)), out=offsets[1:])
        block = Block(
            block_id=next_block_id(self._capture, self.last_block_id, first_ns),
            received_ns=received,
            connection=np.frombuffer(bytes(connection), np.uint8),
            text=np.frombuffer(bytes(text), np.bool_),
            payload=b"".join(payloads),
            offsets=offsets,
        )
        data = encode(block)
        try:
            if self._fd is None or hour_ns != self._hour_start_ns:
                self._open(hour_path(self._journal_dir, self._capture, hour_key(hour_ns)))
                self._hour_start_ns = hour_ns
            self._write(data)
        except OSError as error:
            self._abandon_file()
            where = str(capture_dir(self._journal_dir, self._capture))
            raise OSError(error.errno, f"The journal cannot be written ({error.strerror})", where) from error
        self.last_block_id, self.last_received_ns = block.block_id, last_ns
        return block

    def close(self, end: Cause | None = None) -> None:
        """Close the file and release the lock. Everything appended is durable already.

        `end` tells the next writer why: STOP or DISK. Without it, this one just vanished.
        """
        self._close_file()
        if self._lock_fd >= 0:
            if end is not None:
                with contextlib.suppress(OSError):
                    Holder(os.getpid(), boot_id(), end).write(self._lock_fd)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _recover(self) -> None:
        for path in reversed(list_files(self._journal_dir, self._capture)):
            last = self._open(path)
            self._close_file()
            if last is not None:
                self.last_block_id, self.last_received_ns = last.block_id, last.block().last_received_ns
                return

    def _open(self, path: Path) -> Message | None:
        """Open or create an hour's file, cut back to its last whole block, which is returned."""
        self._close_file()
        _make_dir(path.parent)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        last = _last_message(self._fd, size)
        if last is not None:
            self._size = last.end
        else:
            schema = os.pread(self._fd, len(SCHEMA_MESSAGE), 0)
            self._size = len(schema) if schema == SCHEMA_MESSAGE else 0
        if self._size < size:
            os.ftruncate(self._fd, self._size)
            _sync(self._fd)
            self.cut_bytes += size - self._size
            log.warning("Cut %d bytes of an unfinished block off the end of %s", size - self._size, path)
        if self._size == 0:
            self._write(SCHEMA_MESSAGE)
            _sync_dir(path.parent)
        return last

    def _write(self, data: bytes | bytearray) -> None:
        assert self._fd is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        _sync(self._fd)
        self._size += len(data)

    def _abandon_file(self) -> None:
        """After a failed write: back to the last whole block now if the disk allows, else when it is opened again."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                _sync(self._fd)
        self._close_file()

    def _close_file(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _last_message(fd: int, size: int) -> Message | None:
    """The last intact message of a file."""
    for start in (max(0, size - _TAIL_BYTES), 0):
        if last := deque(iter_messages(fd, start, size), maxlen=1):
            return last[0]
    return None


def _lock(path: Path, capture: int) -> tuple[int, Holder]:
    """Lock the file for this process. Returns the descriptor that holds the lock, and who held it before."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    before = Holder.read(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise LockHeldError(capture, before.pid) from None
    try:
        before = Holder.read(fd)
        Holder(os.getpid(), boot_id()).write(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, before


def _make_dir(path: Path) -> None:
    """Create a directory and its parents, durably."""
    if not path.is_dir():
        _make_dir(path.parent)
        path.mkdir(exist_ok=True)
        _sync_dir(path.parent)


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
