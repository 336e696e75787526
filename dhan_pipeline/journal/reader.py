"""Reading the journal: in order, from any block on, while it is being written, and across damage."""

import errno
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from itertools import groupby, pairwise, takewhile
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
from pyarrow import ipc

from dhan_pipeline.journal.block import MAX_CAPTURE, Block, split_block_id
from dhan_pipeline.journal.frame import SCHEMA, SCHEMA_MESSAGE, Message, iter_messages, read_message
from dhan_pipeline.journal.stretch import Stretch, stretches
from dhan_pipeline.sessions import HOUR_NS, hour_key, parse_hour_key

log = logging.getLogger(__name__)

#: Looking for a block inside a file ends at a stretch of this size, which is then read in order.
_SEEK_BYTES = 1 << 20

#: How much larger another version of Arrow may write the schema.
_SCHEMA_GROWTH = 1024

#: Blocks that somebody put out of order are read in order, as long as they lie no further apart than this.
_STRETCH_BYTES = 4 << 20

#: Read at once where a file is read from front to back.
_AHEAD_BYTES = 1 << 20

#: What a disk fails to give back, it fails to give back in pieces of this size.
_PAGE = 4096

_CAPTURE = re.compile("[0-9]{2}")
_DAY = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FILE = re.compile(r"([01][0-9]|2[0-3])\.arrows")


@dataclass(frozen=True, slots=True)
class Corruption:
    """Bytes of a journal file that hold no intact block. What follows them was read."""

    path: Path
    offset: int
    size: int
    reason: str

    @property
    def hour_ns(self) -> int:
        """Start of the file's hour: ns since the Unix epoch, UTC."""
        return _home(self.path)[1]

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


def lock_path(journal_dir: Path, capture: int) -> Path:
    """The file whose lock the process holds that writes a capture's journal. It need not exist."""
    return capture_dir(journal_dir, capture) / "lock"


def hour_path(journal_dir: Path, capture: int, hour: str) -> Path:
    """The file of an hour, given by its partition key. Raises ValueError for what is not the key of an hour."""
    parse_hour_key(hour)
    return capture_dir(journal_dir, capture) / hour[:10] / f"{hour[11:13]}.arrows"


def captures(journal_dir: Path) -> list[int]:
    """Numbers of the captures that have a journal, in order."""
    names = _entries(journal_dir, _CAPTURE, os.DirEntry.is_dir)
    return [number for number in map(int, names) if number <= MAX_CAPTURE]


def hours(journal_dir: Path, capture: int) -> list[str]:
    """Partition keys of the hours that the capture has a file of, in order."""
    return [_hour_of(path) for path in list_files(journal_dir, capture)]


def list_files(journal_dir: Path, capture: int, since: str = "") -> list[Path]:
    """The capture's files from the day `since` (YYYY-MM-DD) on, in the order in which they were written.

    Raises OSError where a directory may not be listed: what is in it cannot be left out without a word.
    """
    root = capture_dir(journal_dir, capture)
    days = [day for day in _entries(root, _DAY, os.DirEntry.is_dir) if day >= since and _is_day(day)]
    return [root / day / name for day in days for name in _entries(root / day, _FILE, os.DirEntry.is_file)]


def misplaced(path: Path, message: Message) -> str | None:
    """Why an intact block does not belong into the file that it lies in; None if it does."""
    capture, hour_ns = _home(path)
    found, number = split_block_id(message.block_id)
    if found != capture:
        return f"a block of capture {found}"
    # The number is the receive time in ms, or above it: an hour that seems too late must be looked up.
    early = number < hour_ns // 1_000_000
    if early or (number >= (hour_ns + HOUR_NS) // 1_000_000 and message.block().hour != _hour_of(path)):
        return "a block of another hour"
    return None


@lru_cache(maxsize=64)
def _home(path: Path) -> tuple[int, int]:
    """Capture of a file, and start of its hour (ns since the Unix epoch, UTC)."""
    return int(path.parent.parent.name), parse_hour_key(_hour_of(path))


def _is_day(name: str) -> bool:
    try:
        return date.fromisoformat(name).year >= 1970
    except ValueError:
        return False


def _hour_of(path: Path) -> str:
    return f"{path.parent.name}T{path.stem}:00"


def _entries(directory: Path, pattern: re.Pattern[str], kind: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Names in the directory that match and are of the kind, in order; none where it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name) and kind(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []


class JournalReader:
    """Reads a capture's blocks in order and remembers how far it came.

    Every byte is verified before it is decoded. Bytes that hold no intact block, or one of another file, are skipped
    and reported once, except at the end of the newest file: there a block may be half written, and the next call looks
    again. What lies before a block that is not asked for is not reported. A file that may not be opened is reported as
    a whole, and read once it may be, as long as it is the newest.
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
        self._place = _Place(after=self._after)
        self._on_corruption = on_corruption
        self._path: Path | None = None

    def blocks(self) -> Iterator[Block]:
        """The blocks up to the journal's present end. Called again, those that were written since.

        Raises OSError where a directory may not be listed, or the system has no room for an open file.
        """
        return (message.block() for _, message in self.messages())

    def messages(self) -> Iterator[tuple[Path, Message]]:
        """The same before they are decompressed, each with its file."""
        paths = list_files(self._journal_dir, self._capture, self._path.parent.name if self._path else "")
        if self._path is None:
            paths = _skip_files(paths, self._place.after)
        for path in paths:
            if self._path is None:
                self._place = replace(self._place, offset=_seek(path, self._place.after))
            elif path > self._path:
                self._place = _Place(after=self._place.after)
            elif path < self._path:
                continue
            self._path = path
            for message in _scan(path, self._place, path is paths[-1], self._on_corruption, self._after):
                yield path, message


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


def read_stretches(
    journal_dir: Path, capture: int, after: int | None = None, until: int | None = None
) -> Iterator[Stretch]:
    """The same blocks, merged into stretches, which is faster."""
    messages = JournalReader(journal_dir, capture, after).messages()
    wanted = takewhile(lambda found: until is None or found[1].block_id <= until, messages)
    for _, of_file in groupby(wanted, itemgetter(0)):
        yield from stretches(message for _, message in of_file)


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
    return HourSummary(
        blocks=blocks,
        messages=messages,
        payload_bytes=payload_bytes,
        file_bytes=_size_of(hour_path(journal_dir, capture, hour)),
        first_received_ns=first.block().first_received_ns if first else None,
        last_received_ns=last.block().last_received_ns if last else None,
        corruptions=tuple(corruptions),
    )


@dataclass(slots=True)
class _Place:
    """How far the reading of a file has come."""

    offset: int = 0
    """Everything before it was read."""
    reported: int = 0
    """What is damaged before this offset was reported."""
    after: int = -1
    """Id of the last block that was read, in this file or before."""


def _scan_hour(
    journal_dir: Path, capture: int, hour: str, on_corruption: Callable[[Corruption], None]
) -> Iterator[Message]:
    path = hour_path(journal_dir, capture, hour)
    following = list_files(journal_dir, capture, since=path.parent.name)
    if path in following:
        yield from _scan(path, _Place(), path == following[-1], on_corruption)


def _scan(
    path: Path, place: _Place, newest: bool, on_corruption: Callable[[Corruption], None], after: int = -1
) -> Iterator[Message]:
    """The file's intact messages from the place on, by id, each once. What lies between them is reported.

    What lies before messages up to `after` is nobody's loss.
    """

    def report(corruption: Corruption) -> None:
        if corruption.offset >= place.reported:
            place.reported = corruption.offset + max(corruption.size, 1)
            on_corruption(corruption)

    with _opened(path) as file:
        if isinstance(file, str):
            if file:
                report(Corruption(path, 0, _size_of(path), file))
            return
        fd, size = file
        if size < place.offset:  # it was cut, or is another file now
            place.offset = 0
        messages = iter_messages(fd, place.offset, size, _Ahead())
        while True:
            # Blocks lie in order unless somebody put them there. A stretch at a time, they are put in order again.
            stretch, damage, end = _read_stretch(path, fd, size, place.offset, messages)
            for message in sorted(stretch, key=lambda message: message.block_id):
                while damage and damage[0].offset < message.offset:
                    corruption = damage.popleft()
                    if message.block_id > after:
                        report(corruption)
                if message.block_id > place.after:
                    place.after = message.block_id
                    yield message
            for corruption in damage:
                report(corruption)
            place.offset = end
            if not stretch and not damage:
                break
        if not newest and (lost := _lost(path, fd, place.offset, size, size)):
            report(lost)
            place.offset = size


def _read_stretch(
    path: Path, fd: int, size: int, start: int, messages: Iterator[Message]
) -> tuple[list[Message], deque[Corruption], int]:
    """The next messages, at least `_STRETCH_BYTES` of them if there are as many; what is damaged; where they end."""
    stretch: list[Message] = []
    damage: deque[Corruption] = deque()
    end = start
    for message in messages:
        if lost := _lost(path, fd, end, message.offset, size):
            damage.append(lost)
        if reason := misplaced(path, message):
            damage.append(Corruption(path, message.offset, len(message.data), reason))
        else:
            stretch.append(message)
        end = message.end
        if end - start >= _STRETCH_BYTES:
            break
    return stretch, damage, end


def _lost(path: Path, fd: int, start: int, end: int, size: int) -> Corruption | None:
    """What is lost between two messages of a file of `size` bytes."""
    if start == 0:
        start = min(_schema_size(fd), end)
    return Corruption(path, start, end - start, str(read_message(fd, start, size, _pread))) if start < end else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int] | str]:
    """A file's descriptor and its size now; or, in words, why it cannot be opened, whoever tries again.

    The words are empty for a file that is not there any more: listing the directory now would not have named it.
    """
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        yield ""
        return
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        yield f"it cannot be opened ({error.strerror})"
        return
    with file:
        yield file.fileno(), os.fstat(file.fileno()).st_size


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _pread(fd: int, size: int, offset: int) -> bytes:
    """`os.pread`, with zeros for the pages that the disk cannot give back: they are damaged like any other."""
    try:
        return os.pread(fd, size, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    end = min(offset + size, os.fstat(fd).st_size)
    if end <= (offset // _PAGE + 1) * _PAGE:
        return bytes(max(end - offset, 0))
    starts = [offset, *range((offset // _PAGE + 1) * _PAGE, end, _PAGE)]
    return b"".join(_pread(fd, stop - start, start) for start, stop in pairwise([*starts, end]))


class _Ahead:
    """`_pread` for a file that is read from front to back: it reads more than it is asked for, and less often.

    Of blocks of 8 messages each takes 12 us instead of 13 to read.
    """

    def __init__(self) -> None:
        self._data = b""
        self._start = 0

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            self._start, self._data, begin = offset, _pread(fd, max(size, _AHEAD_BYTES), offset), 0
        return self._data[begin : begin + size]


def _schema_size(fd: int) -> int:
    """Bytes of the schema message that begins the file, as this or another version of Arrow wrote it; 0 without one."""
    data = _pread(fd, len(SCHEMA_MESSAGE) + _SCHEMA_GROWTH, 0)
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
        with _opened(paths[start]) as file:
            first = None if isinstance(file, str) else _find(paths[start], file[0], 0, file[1])
        if first is not None and first.block_id <= after:
            break
        start -= 1
    return paths[max(start, 0) :]


def _seek(path: Path, after: int) -> int:
    """An offset in the file, at most 1 MiB and a block before the first block above `after`, if they lie in order."""
    with _opened(path) as file:
        if isinstance(file, str):
            return 0
        fd, high = file
        low = 0
        while high - low > _SEEK_BYTES:
            middle = (low + high) // 2
            message = _find(path, fd, middle, high)
            if message is None or message.block_id > after:
                high = middle
            else:
                low = message.offset
        return low


def _find(path: Path, fd: int, offset: int, end: int) -> Message | None:
    """The first intact block of the file at or after the offset."""
    messages = iter_messages(fd, offset, end, _pread)
    return next((message for message in messages if misplaced(path, message) is None), None)
