"""Reading the journal: in order, from any block on, while it is being written, and across damage."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import ipc

from dhan_pipeline.journal.block import MAX_CAPTURE, Block, split_block_id
from dhan_pipeline.journal.frame import SCHEMA, SCHEMA_MESSAGE, Message, find_message, iter_messages, read_message
from dhan_pipeline.sessions import hour_key, parse_hour_key

log = logging.getLogger(__name__)

#: Looking for a block inside a file ends at a stretch of this size, which is then read in order.
_SEEK_BYTES = 1 << 20

#: How much larger another version of Arrow may write the schema.
_SCHEMA_GROWTH = 1024


@dataclass(frozen=True, slots=True)
class Corruption:
    """Bytes of a journal file that hold no intact block. What follows them was read."""

    path: Path
    offset: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.size} bytes at offset {self.offset} are lost, {self.reason}"


@dataclass(frozen=True, slots=True)
class HourSummary:
    """What the journal holds of one hour of one capture. Times are ns since the Unix epoch, None without blocks."""

    blocks: int
    messages: int
    payload_bytes: int
    file_bytes: int
    first_received_ns: int | None
    last_received_ns: int | None
    corruptions: tuple[Corruption, ...]


def capture_dir(journal_dir: Path, capture: int) -> Path:
    """Where the files of a capture are."""
    return journal_dir / f"{capture:02d}"


def hour_path(journal_dir: Path, capture: int, hour: str) -> Path:
    """The file of an hour, given by its partition key. Raises ValueError for what is not the key of an hour."""
    parse_hour_key(hour)
    return capture_dir(journal_dir, capture) / hour[:10] / f"{hour[11:13]}.arrows"


def captures(journal_dir: Path) -> list[int]:
    """Numbers of the captures that have a journal, in order."""
    if not journal_dir.is_dir():
        return []
    numbers = (int(entry.name) for entry in journal_dir.iterdir() if re.fullmatch(r"\d\d", entry.name))
    return sorted(number for number in numbers if number <= MAX_CAPTURE)


def hours(journal_dir: Path, capture: int) -> list[str]:
    """Partition keys of the hours that the capture has a file of, in order."""
    return [_hour_of(path) for path in list_files(journal_dir, capture)]


def list_files(journal_dir: Path, capture: int, since: str = "") -> list[Path]:
    """The capture's files from the day `since` (YYYY-MM-DD) on, in the order in which they were written."""
    root = capture_dir(journal_dir, capture)
    if not root.is_dir():
        return []
    days = sorted(d for d in root.iterdir() if re.fullmatch(r"\d{4}-\d\d-\d\d", d.name) and d.name >= since)
    return [path for day in days for path in sorted(day.iterdir()) if re.fullmatch(r"\d\d\.arrows", path.name)]


def _hour_of(path: Path) -> str:
    return f"{path.parent.name}T{path.stem}:00"


class JournalReader:
    """Reads a capture's blocks in order and remembers how far it came.

    Every byte is verified before it is decoded. Bytes that hold no intact block are skipped and reported, except at the
    end of the newest file: there a block may be half written, and the next call looks again.
    """

    def __init__(
        self,
        journal_dir: Path,
        capture: int,
        after: int | None = None,
        on_corruption: Callable[[Corruption], None] = log.error,
    ) -> None:
        """Begin with the block after the id `after`, or with the journal's first."""
        self._journal_dir = journal_dir
        self._capture = capture
        self._after = -1 if after is None else after
        self._on_corruption = on_corruption
        self._path: Path | None = None
        self._offset = 0

    def blocks(self) -> Iterator[Block]:
        """The blocks up to the journal's present end. Called again, those that were written since."""
        paths = list_files(self._journal_dir, self._capture, self._path.parent.name if self._path else "")
        if self._path is None:
            paths = _skip_files(paths, self._after)
        for path in paths:
            if self._path is None or path > self._path:
                seek = self._path is None
                self._path, self._offset = path, 0
                if seek:
                    with _opened(path) as (fd, size):
                        self._offset = _seek(fd, size, self._after)
            elif path < self._path:
                continue
            for message in _scan(path, self._offset, path is paths[-1], self._on_corruption):
                self._offset = message.end
                if message.block_id > self._after:
                    self._after = message.block_id
                    yield message.block()


def read_blocks(
    journal_dir: Path,
    capture: int,
    after: int | None = None,
    until: int | None = None,
    on_corruption: Callable[[Corruption], None] = log.error,
) -> Iterator[Block]:
    """The blocks whose id is above `after` and at most `until`, in order, up to the journal's present end."""
    for block in JournalReader(journal_dir, capture, after, on_corruption).blocks():
        if until is not None and block.block_id > until:
            return
        yield block


def read_hour(
    journal_dir: Path, capture: int, hour: str, on_corruption: Callable[[Corruption], None] = log.error
) -> Iterator[Block]:
    """The blocks of one hour, given by its partition key. None for an hour without a file."""
    return (message.block() for message in _scan_hour(journal_dir, capture, hour, on_corruption))


def hour_summary(journal_dir: Path, capture: int, hour: str) -> HourSummary:
    """Counts of one hour, from its blocks' stamps: every block is verified, only the first and last are decoded."""
    corruptions: list[Corruption] = []
    first = last = None
    blocks = messages = payload_bytes = 0
    for message in _scan_hour(journal_dir, capture, hour, corruptions.append):
        first = first or message
        last = message
        blocks += 1
        messages += message.messages
        payload_bytes += message.payload_bytes
    path = hour_path(journal_dir, capture, hour)
    return HourSummary(
        blocks=blocks,
        messages=messages,
        payload_bytes=payload_bytes,
        file_bytes=path.stat().st_size if path.exists() else 0,
        first_received_ns=first.block().first_received_ns if first else None,
        last_received_ns=last.block().last_received_ns if last else None,
        corruptions=tuple(corruptions),
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """A file's descriptor and its size now."""
    with path.open("rb", buffering=0) as file:
        yield file.fileno(), os.fstat(file.fileno()).st_size


def _scan_hour(
    journal_dir: Path, capture: int, hour: str, on_corruption: Callable[[Corruption], None]
) -> Iterator[Message]:
    path = hour_path(journal_dir, capture, hour)
    following = list_files(journal_dir, capture, since=path.parent.name)
    if path in following:
        yield from _scan(path, 0, path == following[-1], on_corruption)


def _scan(path: Path, offset: int, newest: bool, on_corruption: Callable[[Corruption], None]) -> Iterator[Message]:
    """The intact messages of a file from the offset on. What lies between them is reported."""
    with _opened(path) as (fd, size):

        def report(end: int) -> None:
            start = min(_schema_size(fd), end) if offset == 0 else offset
            if start < end:
                on_corruption(Corruption(path, start, end - start, str(read_message(fd, start, size))))

        for message in iter_messages(fd, offset, size):
            report(message.offset)
            yield message
            offset = message.end
        if not newest:
            report(size)


def _schema_size(fd: int) -> int:
    """Bytes of the schema message that begins the file, as this or another version of Arrow wrote it; 0 without one."""
    data = os.pread(fd, len(SCHEMA_MESSAGE) + _SCHEMA_GROWTH, 0)
    if data.startswith(SCHEMA_MESSAGE):
        return len(SCHEMA_MESSAGE)
    size = 8 + int.from_bytes(data[4:8], "little")
    try:
        return size if ipc.read_schema(pa.py_buffer(data[:size])).equals(SCHEMA) else 0
    except (pa.ArrowException, OSError):
        return 0


def _skip_files(paths: list[Path], after: int) -> list[Path]:
    """Leave out the files at the beginning that hold no block above `after`."""
    if after < 0:
        return paths
    # A block's number is the receive time in ms, or above it: files of later hours lie wholly after the block.
    hour = hour_key(split_block_id(after)[1] * 1_000_000)
    start = sum(_hour_of(path) <= hour for path in paths) - 1
    while start > 0:
        with _opened(paths[start]) as (fd, size):
            first = find_message(fd, 0, size)
        if first is not None and first.block_id <= after:
            break
        start -= 1
    return paths[max(start, 0) :]


def _seek(fd: int, size: int, after: int) -> int:
    """An offset in the file from which on no block above `after` is missed, at most 1 MiB and a block before it."""
    low, high = 0, size
    while high - low > _SEEK_BYTES:
        middle = (low + high) // 2
        message = find_message(fd, middle, high)
        if message is None or message.block_id > after:
            high = middle
        else:
            low = message.offset
    return low
