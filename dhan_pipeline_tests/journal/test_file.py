"""Every way in which a disk can refuse: the journal then holds whole blocks, all that were reported, and goes on."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from dhan_pipeline.gaps import Cause
from dhan_pipeline.journal import file as file_module
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.frame import MESSAGE_LIMIT
from dhan_pipeline.journal.reader import Corruption, hour_path, list_files, read_blocks
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS

Append = Callable[..., Block]
Result = TypeVar("Result")

HOUR = "2026-11-20T09:00"
CALLS = ("open", "stat", "fstat", "pread", "pwrite", "write", "ftruncate", "fsync", "close", "mkdir")


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, first: int, times: int, error: int = errno.EIO
) -> Iterator[Callable[[], int]]:
    """From the call `first` on, so many calls to the disk fail; writes do half of their work. Yields a counter."""
    numbers = count()
    made = 0

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal made
            made = next(numbers) + 1
            if first < made <= first + times:
                if name in ("write", "pwrite"):
                    call(args[0], args[1][: len(args[1]) // 2], *args[2:])
                if name == "close":
                    call(*args)
                raise OSError(error, os.strerror(error))
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, wrap(name, getattr(os, name)))
        patched.setattr(file_module, "_sync", wrap("sync", file_module._sync))
        yield lambda: made


def attempt(do: Callable[[], Result], journal_dir: Path) -> list[Result]:
    """What it returns; or nothing, if it raises the error that it should."""
    try:
        return [do()]
    except OSError as error:
        raised = error
    assert raised.filename == str(journal_dir / "00")
    assert raised.strerror.startswith("The journal cannot be written (")
    return []


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read(journal_dir: Path) -> list[tuple[int, bytes]]:
    """Ids and payloads of all blocks, of which none is damaged."""
    corruptions: list[Corruption] = []
    blocks = [
        (block.block_id, block.payload) for block in read_blocks(journal_dir, 0, on_corruption=corruptions.append)
    ]
    assert corruptions == []
    return blocks


def known(*blocks: Block) -> list[tuple[int, bytes]]:
    return [(block.block_id, block.payload) for block in blocks]


@pytest.mark.parametrize("times", [1, 2, 3, 10**9])
@pytest.mark.parametrize("hours", [0, 1], ids=["same hour", "next hour"])
def test_whatever_fails_while_a_block_is_written_the_same_writer_can_go_on(
    tmp_path: Path, append: Append, start_ns: int, monkeypatch: pytest.MonkeyPatch, times: int, hours: int
) -> None:
    at_ns = start_ns + hours * HOUR_NS
    for first in count():
        journal_dir = tmp_path / str(first)
        with closing(JournalWriter(journal_dir, 0)) as writer:
            files = open_files()
            blocks = [append(writer, i, start_ns) for i in range(2)]
            with failing(monkeypatch, first, times) as calls:
                blocks += attempt(partial(append, writer, 2, at_ns), journal_dir)
                reached = calls() > first
            # What could not be written is given up here: its id is free.
            blocks += [append(writer, i, at_ns) for i in (3, 4)]
            assert read(journal_dir) == known(*blocks)
            assert open_files() <= files + 1
        for path in list_files(journal_dir, 0):
            assert pa.ipc.open_stream(path).read_all().num_rows > 0
        if not reached:
            break
    assert first > 5


@pytest.mark.parametrize("times", [1, 2, 10**9])
@pytest.mark.parametrize("hours", [0, 1], ids=["same hour", "next hour"])
def test_whatever_fails_while_a_block_is_written_a_new_writer_can_go_on(
    tmp_path: Path, append: Append, start_ns: int, monkeypatch: pytest.MonkeyPatch, times: int, hours: int
) -> None:
    at_ns = start_ns + hours * HOUR_NS
    for first in count():
        journal_dir = tmp_path / str(first)
        writer = JournalWriter(journal_dir, 0)
        blocks = [append(writer, i, start_ns) for i in range(2)]
        with failing(monkeypatch, first, times) as calls:
            blocks += attempt(partial(append, writer, 2, at_ns), journal_dir)
            reached = calls() > first
            writer.close(Cause.DISK)
        with closing(JournalWriter(journal_dir, 0)) as writer:
            found = read(journal_dir)
            # A block may have come to the disk although nobody could be told so. It is kept.
            assert found[: len(blocks)] == known(*blocks)
            assert len(found) <= 3
            blocks = [append(writer, i, at_ns) for i in (3, 4)]
            assert read(journal_dir) == found + known(*blocks)
        if not reached:
            break
    assert first > 5


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_whatever_fails_while_a_journal_is_opened_it_can_be_opened_later(
    tmp_path: Path, append: Append, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i) for i in range(3)]
    path = hour_path(tmp_path, 0, HOUR)
    size = path.stat().st_size
    for times in (1, 10**9):
        for first in count():
            if torn:
                os.truncate(path, size + 100)
            files = open_files()
            with failing(monkeypatch, first, times) as calls:
                attempt(lambda: JournalWriter(tmp_path, 0).close(), tmp_path)
                reached = calls() > first
            JournalWriter(tmp_path, 0).close()
            assert path.stat().st_size == size
            if not reached:
                break
            assert open_files() == files
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks.append(append(writer, 3))
    assert read(tmp_path) == known(*blocks)


def test_whatever_fails_while_a_journal_is_begun_it_can_be_begun_later(
    tmp_path: Path, append: Append, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> None:
        with closing(JournalWriter(journal_dir, 0)) as writer:
            append(writer, 0)

    for first in count():
        journal_dir = tmp_path / str(first) / "journal"
        with failing(monkeypatch, first, 10**9, errno.ENOSPC) as calls:
            attempt(begin, journal_dir)
            reached = calls() > first
        with closing(JournalWriter(journal_dir, 0)) as writer:
            before = read(journal_dir)
            block = append(writer, 1)
        assert read(journal_dir) == before + known(block)
        assert len(before) <= 1
        if not reached:
            break
    assert first > 15


def test_the_block_that_was_written_but_not_synced_is_not_read_beside_the_one_that_takes_its_id(
    tmp_path: Path, append: Append, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither syncing nor cutting works for a while: a whole block stands in the file that nobody was told of."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with closing(JournalWriter(tmp_path, 0)) as writer:
        first = append(writer, 0)
        with monkeypatch.context() as patched:
            patched.setattr(file_module, "_sync", refuse)
            patched.setattr(os, "ftruncate", refuse)
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output error"):
                    append(writer, 1)
        second = append(writer, 2)
        assert second.block_id != first.block_id
        assert read(tmp_path) == known(first, second)


def test_the_hour_before_keeps_its_end_when_the_next_hours_file_cannot_be_opened(
    tmp_path: Path, append: Append, start_ns: int
) -> None:
    """The next hour's file is there and larger: its size must not be mistaken for the other's."""
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i, size=i * 400 + 4) for i in range(4)]
        obstacle = hour_path(tmp_path, 0, "2026-11-20T10:00")
        obstacle.mkdir()
        for _ in range(2):
            with pytest.raises(OSError, match=r"The journal cannot be written \(Is a directory\)"):
                append(writer, 4, start_ns + HOUR_NS)
        assert read(tmp_path) == known(*blocks)
        obstacle.rmdir()
        blocks.append(append(writer, 4, start_ns + HOUR_NS))
    assert read(tmp_path) == known(*blocks)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def noise(i: int, size: int) -> bytes:
    return bytes((i + k * k * 31 + k // 7) % 251 for k in range(size))


def test_a_full_disk_ends_with_a_whole_block_says_so_and_goes_on_when_there_is_room(
    small_disk: Path, start_ns: int
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))
    written: list[Block] = []

    def fill(writer: JournalWriter) -> None:
        for i in count(len(written)):
            block = attempt(
                lambda i=i: writer.append([start_ns + i * 10**6], [0], [False], [noise(i, 3000)]), small_disk
            )
            if not block:
                return
            written.extend(block)

    writer = JournalWriter(small_disk, 0)
    fill(writer)
    assert len(written) > 10
    assert read(small_disk) == known(*written)
    writer.close(Cause.DISK)

    # Still full: what is there can be opened, and how it ended can be said.
    writer = JournalWriter(small_disk, 0)
    assert writer.previous is Cause.DISK
    with pytest.raises(OSError, match="No space left on device"):
        writer.append([start_ns + HOUR_NS], [0], [False], [noise(0, 9000)])
    assert read(small_disk) == known(*written)
    writer.close(Cause.DISK)

    writer = JournalWriter(small_disk, 0)
    assert writer.previous is Cause.DISK
    ballast.unlink()
    fill(writer)
    writer.close()
    assert read(small_disk) == known(*written)


def test_a_disk_that_is_full_from_the_beginning_says_so(small_disk: Path, append: Append) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match=r"The journal cannot be written \(No space left on device\): '.*/00'"):
        JournalWriter(small_disk, 0)
    (small_disk / "ballast").unlink()
    with closing(JournalWriter(small_disk, 0)) as writer:
        block = append(writer, 0)
    assert read(small_disk) == known(block)


def test_a_limit_on_the_size_of_files_met_at_every_offset_leaves_whole_blocks(tmp_path: Path, append: Append) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = hour_path(tmp_path, 0, HOUR)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, 0)]
        for room in (0, 1, 7, 8, 100, 500):
            whole = path.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, hard))
            try:
                with pytest.raises(OSError, match=r"cannot be written \(File too large\)"):
                    append(writer, room)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert path.read_bytes() == whole
            blocks.append(append(writer, room))
    assert read(tmp_path) == known(*blocks)


@contextmanager
def ordinary_user(*owned: Path) -> Iterator[None]:
    """Root may do everything: be somebody else for a while, who owns these files."""
    if os.geteuid() != 0:
        yield
        return
    for path in owned:
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("refused", ["capture", "day", "file", "lock"])
def test_a_directory_or_file_that_may_not_be_written_is_named(
    open_dir: Path, append: Append, start_ns: int, request: pytest.FixtureRequest, refused: str
) -> None:
    journal_dir = open_dir / request.node.name
    with closing(JournalWriter(journal_dir, 0)) as writer:
        block = append(writer, 0)
    capture, file, lock = journal_dir / "00", hour_path(journal_dir, 0, HOUR), journal_dir / "00" / "lock"
    readonly = {"capture": capture, "day": file.parent, "file": file, "lock": lock}[refused]

    def begin() -> None:
        with closing(JournalWriter(journal_dir, 0)) as writer:
            append(writer, 1, start_ns + (24 if refused == "capture" else 1) * HOUR_NS)

    with ordinary_user(journal_dir, capture, file.parent, file, lock):
        readonly.chmod(0o555 if readonly.is_dir() else 0o444)
        try:
            with pytest.raises(OSError, match=r"The journal cannot be written \(Permission denied\): '.*/00'"):
                begin()
        finally:
            readonly.chmod(0o755)
        assert read(journal_dir) == known(block)
        with closing(JournalWriter(journal_dir, 0)) as writer:
            again = append(writer, 1)
    assert read(journal_dir) == known(block, again)


def test_a_file_that_was_deleted_is_begun_again(tmp_path: Path, append: Append) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        append(writer, 0)
        hour_path(tmp_path, 0, HOUR).unlink()
        with pytest.raises(OSError, match=r"09\.arrows was removed, replaced or changed by another program.*/00'"):
            append(writer, 1)
        block = append(writer, 1)
        assert read(tmp_path) == known(block)


@pytest.mark.parametrize("change", ["cut", "grown", "replaced"])
def test_a_file_that_another_program_changed_is_put_in_order_first(tmp_path: Path, append: Append, change: str) -> None:
    path = hour_path(tmp_path, 0, HOUR)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, 0)]
        end = path.stat().st_size
        append(writer, 1)
        whole = path.read_bytes()
        if change == "cut":
            os.truncate(path, end + 50)
        elif change == "grown":
            path.write_bytes(whole[:end] + b"another program's")
        else:
            path.rename(path.with_suffix(".old"))
            path.write_bytes(whole[:end])
        with pytest.raises(OSError, match=r"09\.arrows was removed, replaced or changed by another program"):
            append(writer, 2)
        blocks.append(append(writer, 2))
        assert blocks[1].block_id > blocks[0].block_id + 1
        assert read(tmp_path) == known(*blocks)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_was_removed_ends_this_writer_and_not_the_next(
    tmp_path: Path, append: Append, replaced: bool
) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        append(writer, 0)
        (tmp_path / "00").rename(tmp_path / "moved")
        if replaced:
            shutil.copytree(tmp_path / "moved", tmp_path / "00")
        for _ in range(2):
            with pytest.raises(OSError, match=r"its lock was removed or replaced\): '.*/00'"):
                append(writer, 1)
        assert len(read(tmp_path)) == replaced
        with closing(JournalWriter(tmp_path, 0)) as after:
            append(after, 1)
            append(after, 2)
    assert len(read(tmp_path)) == replaced + 2


def test_a_block_that_no_reader_would_believe_is_refused(tmp_path: Path, append: Append, start_ns: int) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        large = writer.append([start_ns], [0], [False], [os.urandom(MESSAGE_LIMIT - 2000)])
        with pytest.raises(ValueError, match="is larger than 16777216"):
            writer.append([start_ns], [0], [False], [os.urandom(MESSAGE_LIMIT)])
        small = append(writer, 0)
    assert read(tmp_path) == known(large, small)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        assert writer.last_block_id == small.block_id
        assert writer.cut_bytes == 0
