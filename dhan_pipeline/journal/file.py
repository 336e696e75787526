"""An hour's file, open for appending: it takes whole blocks or nothing, and says so when it cannot."""

import contextlib
import errno
import logging
import os
from pathlib import Path

from dhan_pipeline.journal.frame import SCHEMA_MESSAGE, Message, iter_messages
from dhan_pipeline.journal.reader import misplaced

log = logging.getLogger(__name__)

#: Only the end of a file is verified when it is opened: each block before the last was durable before the next began.
_TAIL_BYTES = 4 << 20

# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)


class HourFile:
    """A file to which one writer appends. Every method but `close` raises OSError when the disk refuses.

    Its first bytes, the schema, are written with its first block: a file that is only opened needs no room.
    """

    def __init__(self, path: Path) -> None:
        """Open or create it, cut back to its last whole block, and make durable what it holds."""
        self.path = path
        self.last: Message | None = None
        """The block with the highest id in it when it was opened."""
        self.cut_bytes = 0
        """How many bytes were cut off its end when it was opened."""
        self.torn = False
        """Whether it may end in what `append` could not finish."""
        self._size = 0
        make_dir(path.parent)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes | bytearray) -> None:
        """Write at the end, durable on return. After an error the file ends as before, or is `torn`."""
        if self.torn:
            self.mend()
        here = os.fstat(self._fd)
        if not is_at(self._fd, self.path) or here.st_size != self._size:
            raise OSError(errno.ESTALE, f"{self.path.name} was removed, replaced or changed by another program")
        self._write(data if self._size else SCHEMA_MESSAGE + data)

    def mend(self) -> None:
        """Cut a torn file back to its last whole block."""
        if os.fstat(self._fd).st_size > self._size:
            os.ftruncate(self._fd, self._size)
            _sync(self._fd)
        self.torn = False

    def close(self) -> None:
        """Close the file, torn or not: whoever opens it next cuts it. Everything appended is durable already."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            close_quietly(fd)

    def _recover(self) -> None:
        size = os.fstat(self._fd).st_size
        self.last, self._size = _last_message(self.path, self._fd, size)
        if not self._size and os.pread(self._fd, len(SCHEMA_MESSAGE), 0) == SCHEMA_MESSAGE:
            self._size = len(SCHEMA_MESSAGE)
        if self._size < size:
            os.ftruncate(self._fd, self._size)
            self.cut_bytes = size - self._size
            log.warning("Cut %d bytes of an unfinished block off the end of %s", self.cut_bytes, self.path)
        # The process that wrote all this may have ended before it was synced.
        _sync(self._fd)
        sync_dir(self.path.parent)
        sync_dir(self.path.parent.parent)

    def _write(self, data: bytes | bytearray) -> None:
        try:
            view = memoryview(data)
            while view:
                written = os.write(self._fd, view)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view = view[written:]
            _sync(self._fd)
        except BaseException:
            self.torn = True
            with contextlib.suppress(OSError):
                self.mend()
            raise
        self._size += len(data)


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file is what stands at the path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def close_quietly(fd: int) -> None:
    """Close a descriptor, which is closed even where the disk complains: everything that matters was synced before."""
    with contextlib.suppress(OSError):
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create a directory and its parents, durably. Raises OSError."""
    if not path.is_dir():
        make_dir(path.parent)
        path.mkdir(exist_ok=True)
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make the entries of a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _last_message(path: Path, fd: int, size: int) -> tuple[Message | None, int]:
    """The file's message with the highest id, and where its last intact one ends, be it of another file."""
    last, end = None, 0
    for start in (max(0, size - _TAIL_BYTES), 0):
        # What the disk does not give back is an error here: nothing may be cut off that somebody may yet read.
        for message in iter_messages(fd, start, size, os.pread):
            end = message.end
            if misplaced(path, message) is None and (last is None or message.block_id > last.block_id):
                last = message
        if last is not None:
            break
    return last, end
