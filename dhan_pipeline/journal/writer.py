"""Writing the journal: one capture, one writer, durable before anybody sees a block."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.gaps import Cause
from dhan_pipeline.journal.block import Block, next_block_id
from dhan_pipeline.journal.file import HourFile, close_quietly, is_at, make_dir, sync_dir
from dhan_pipeline.journal.frame import MESSAGE_LIMIT, encode
from dhan_pipeline.journal.holder import Holder, boot_id
from dhan_pipeline.journal.reader import capture_dir, hour_path, list_files, lock_path
from dhan_pipeline.sessions import hour_key, hour_start_ns

#: How long a writer that starts waits for the lock: somebody may only be asking whether it is free.
_PATIENCE_S = 0.3


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
        self._dir = capture_dir(journal_dir, capture)
        self._lock_path = lock_path(journal_dir, capture)
        self._file: HourFile | None = None
        self._hour_ns = 0
        with _named(self._dir):
            make_dir(self._dir)
            sync_dir(journal_dir)
            self._lock_fd, before = _lock(self._lock_path, capture)
            try:
                self._recover()
            except BaseException:
                # Nothing was written: how the one before ended is still news to the next.
                with contextlib.suppress(OSError):
                    before.write(self._lock_fd)
                close_quietly(self._lock_fd)
                raise
        if self.last_block_id is not None:
            self.previous = before.ended(boot_id())

    def append(
        self,
        received_ns: Sequence[int],
        connection: Sequence[int],
        text: Sequence[bool],
        payloads: Sequence[bytes],
        counts: Sequence[int] | None = None,
    ) -> Block:
        """Write messages (parallel sequences, at least one, all of one IST hour) as a block, durable on return.

        With `counts`, each payload is so many messages of equal size, which have the rest in common.
        Receive times (ns since the Unix epoch, UTC) never step back in a journal: an earlier one is raised to the last.
        Raises ValueError for messages that make no block. Raises OSError when the disk refuses, and when the file was
        removed or changed under our hands: the journal then ends with the block before, and the same call may be tried
        again. Where the lock is gone it never succeeds again: another process may hold a new one.
        """
        counts = [1] * len(payloads) if counts is None else counts
        if not len(received_ns) == len(connection) == len(text) == len(payloads) == len(counts) > 0:
            raise ValueError("a block needs messages, each with time, connection, kind and payload")
        if any(count < 1 or len(payload) % count for payload, count in zip(payloads, counts, strict=True)):
            raise ValueError("the messages of a payload are at least one, and of equal size")
        received = np.maximum.accumulate(np.maximum(np.asarray(received_ns, np.int64), self.last_received_ns))
        first_ns, last_ns = int(received[0]), int(received[-1])
        hour_ns = hour_start_ns(first_ns)
        if hour_start_ns(last_ns) != hour_ns:
            raise ValueError("a block must not cross an hour")
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads)) // counts
        offsets = np.zeros(sum(counts) + 1, np.int64)
        sizes.repeat(counts).cumsum(out=offsets[1:])
        block = Block(
            block_id=next_block_id(self._capture, self.last_block_id, first_ns),
            received_ns=received.repeat(counts),
            connection=np.frombuffer(bytes(connection), np.uint8).repeat(counts),
            text=np.frombuffer(bytes(text), np.bool_).repeat(counts),
            payload=b"".join(payloads),
            offsets=offsets,
        )
        data = encode(block)
        if len(data) > MESSAGE_LIMIT:
            raise ValueError(f"a block of {len(data)} bytes is larger than {MESSAGE_LIMIT}")
        with _named(self._dir):
            self._write(hour_ns, data)
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
            close_quietly(self._lock_fd)
            self._lock_fd = -1

    def _recover(self) -> None:
        for path in reversed(list_files(self._journal_dir, self._capture)):
            file = HourFile(path)
            file.close()
            self.cut_bytes += file.cut_bytes
            if file.last is not None:
                self.last_block_id, self.last_received_ns = file.last.block_id, file.last.block().last_received_ns
                return

    def _write(self, hour_ns: int, data: bytearray) -> None:
        if not is_at(self._lock_fd, self._lock_path):
            raise OSError(errno.ESTALE, "its lock was removed or replaced")
        if self._file is not None and self._file.torn:
            self._file.mend()
        if self._file is None or self._hour_ns != hour_ns:
            self._close_file()
            self._file = HourFile(hour_path(self._journal_dir, self._capture, hour_key(hour_ns)))
            self._hour_ns = hour_ns
            self.cut_bytes += self._file.cut_bytes
        try:
            self._file.append(data)
        except OSError:
            if not self._file.torn:
                self._close_file()
            raise

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def nobody_writes(journal_dir: Path, capture: int) -> bool:
    """Whether a capture's lock is free. What cannot be found out counts as held.

    Takes the lock for an instant, which a writer that starts in this instant waits for.
    """
    return _is_locked(journal_dir, capture) is False


def somebody_writes(journal_dir: Path, capture: int) -> bool:
    """Whether a capture's lock is held. What cannot be found out counts as free."""
    return _is_locked(journal_dir, capture) is True


def _is_locked(journal_dir: Path, capture: int) -> bool | None:
    """None where it cannot be found out."""
    try:
        fd = os.open(lock_path(journal_dir, capture), os.O_RDONLY)
    except OSError as error:
        return False if isinstance(error, FileNotFoundError) else None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        close_quietly(fd)
    return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _named(directory: Path) -> Iterator[None]:
    """Say in an OSError which journal it is about."""
    try:
        yield
    except OSError as error:
        why = f"The journal cannot be written ({error.strerror or error})"
        raise OSError(error.errno, why, str(directory)) from error


def _lock(path: Path, capture: int) -> tuple[int, Holder]:
    """Lock the file for this process. Returns the descriptor that holds the lock, and who held it before."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _PATIENCE_S
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            holder = Holder.read(fd)
            close_quietly(fd)
            # One that has said how it ended is not the one that holds it now.
            raise LockHeldError(capture, None if holder.end else holder.pid)
        time.sleep(0.01)
    if not is_at(fd, path):  # it was removed, and perhaps made again, in the meantime
        close_quietly(fd)
        return _lock(path, capture)
    try:
        before = Holder.read(fd)
        Holder(os.getpid(), boot_id()).write(fd)
    except BaseException:
        close_quietly(fd)
        raise
    return fd, before
