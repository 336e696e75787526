import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.gaps import Cause
from dhan_pipeline.journal import file as file_module
from dhan_pipeline.journal import writer as writer_module
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.holder import boot_id, held_since
from dhan_pipeline.journal.reader import read_blocks
from dhan_pipeline.journal.writer import JournalWriter, LockHeldError

Append = Callable[..., Block]

ANOTHER_BOOT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def lock(journal: tuple[Path, list[Block]]) -> Path:
    """The lock file of a journal that is not empty."""
    return journal[0] / "00" / "lock"


def previous(lock: Path) -> Cause | None:
    with closing(JournalWriter(lock.parent.parent, 0)) as writer:
        return writer.previous


def test_nobody_wrote_an_empty_journal_before(tmp_path: Path) -> None:
    for end in (None, Cause.STOP, Cause.DISK, None):
        writer = JournalWriter(tmp_path, 0)
        assert writer.previous is None
        writer.close(end)


@pytest.mark.parametrize(
    ("end", "told"), [(Cause.STOP, Cause.STOP), (Cause.DISK, Cause.DISK), (None, Cause.RESTART)], ids=str
)
def test_the_next_process_is_told_how_this_one_ended(lock: Path, end: Cause | None, told: Cause) -> None:
    JournalWriter(lock.parent.parent, 0).close(end)
    writer = JournalWriter(lock.parent.parent, 0)
    assert writer.previous is told
    writer.close(Cause.STOP)
    writer.close(Cause.DISK)  # nothing happens: the lock is no longer ours
    assert previous(lock) is Cause.STOP
    assert previous(lock) is Cause.RESTART


def test_the_lock_file_says_who_holds_it_and_how_it_ended(lock: Path) -> None:
    writer = JournalWriter(lock.parent.parent, 0)
    assert lock.read_text().split() == [str(os.getpid()), boot_id()]
    assert lock.stat().st_size == 128
    assert held_since(lock) == lock.stat().st_mtime
    writer.close(Cause.STOP)
    assert held_since(lock) is None
    assert lock.read_text().split() == [str(os.getpid()), boot_id(), "stop"]
    assert lock.stat().st_size == 128
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id()


def test_a_process_that_was_killed_did_not_say_how_it_ended(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dhan_pipeline.journal.writer import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]), 0)\n"
        "writer.append([1_795_145_400_000_000_000], [0], [False], [b'x'])\n"
        "print(flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockHeldError, match=f"process {process.pid} holds"):
            JournalWriter(tmp_path, 0)
        assert held_since(tmp_path / "00" / "lock") is not None
        process.send_signal(signal.SIGKILL)
    assert held_since(tmp_path / "00" / "lock") is None
    assert previous(tmp_path / "00" / "lock") is Cause.RESTART


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"1234\t{ANOTHER_BOOT}\t", Cause.HOST_DOWN),
        (f"1234\t{ANOTHER_BOOT}\t".ljust(127) + "\n", Cause.HOST_DOWN),
        (f"1234\t{ANOTHER_BOOT}\tstop", Cause.STOP),
        (f"1234\t{ANOTHER_BOOT}\tdisk", Cause.DISK),
        (f"1234\t{boot_id()}\t", Cause.RESTART),
        ("1234\t\t", Cause.RESTART),
        ("1234\t\tstop", Cause.STOP),
        (f"1234\t{ANOTHER_BOOT}\tstall", Cause.HOST_DOWN),
        (f"1234\t{boot_id()}\tsuspended", Cause.RESTART),
    ],
)
def test_how_it_ended_follows_from_what_it_said_and_whether_the_machine_went_down(
    lock: Path, text: str, told: Cause
) -> None:
    lock.write_text(text)
    assert previous(lock) is told


@pytest.mark.parametrize("pid", [1, os.getpid(), 2**22 + 1], ids=["init", "this one", "none"])
def test_a_process_id_that_means_another_process_by_now_blocks_nobody(lock: Path, pid: int) -> None:
    lock.write_text(f"{pid}\t{ANOTHER_BOOT}\t")
    assert previous(lock) is Cause.HOST_DOWN


@pytest.mark.parametrize(
    ("content", "pid"),
    [
        (b"", None),
        (b"1234\n", 1234),  # an older version's
        (b" 1234 \n", 1234),
        (b"\0" * 128, None),
        (b"\xff\xfe\t\x80\tstop", None),
        (b"garbled", None),
        (b"-5\t\t", None),
        (b"\t\t\t\t\t\n\n\n", None),
        ("١٢\t\t".encode(), 12),
        (b"9" * 128, None),
        (b"x" * 10_000, None),
    ],
)
def test_a_lock_file_that_says_anything_else_is_lived_with(lock: Path, content: bytes, pid: int | None) -> None:
    lock.write_bytes(content)
    with lock.open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockHeldError) as caught:
            JournalWriter(lock.parent.parent, 0)
        assert caught.value.pid == pid or content.isdigit()
        assert lock.read_bytes() == content
    assert previous(lock) in (Cause.RESTART, Cause.STOP)
    assert previous(lock) is Cause.RESTART
    assert lock.stat().st_size == 128


def test_a_writer_waits_for_somebody_who_only_asks_whether_anybody_writes(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_PATIENCE_S", 60.0)
    with ThreadPoolExecutor(1) as starting:
        with lock.open("rb") as asking:
            fcntl.flock(asking, fcntl.LOCK_SH)
            writer = starting.submit(JournalWriter, lock.parent.parent, 0)
            with pytest.raises(TimeoutError):
                writer.result(0.05)
        writer.result(10).close()


def test_a_process_that_has_ended_is_not_said_to_hold_the_lock(lock: Path) -> None:
    JournalWriter(lock.parent.parent, 0).close(Cause.STOP)
    with lock.open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        with pytest.raises(LockHeldError, match="another process holds its lock"):
            JournalWriter(lock.parent.parent, 0)


def test_a_start_that_fails_does_not_hide_how_the_process_before_it_ended(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JournalWriter(lock.parent.parent, 0).close(Cause.STOP)

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(file_module, "_sync", refuse)
        with pytest.raises(OSError, match=r"cannot be written \(Input/output error\): '.*/00'"):
            JournalWriter(lock.parent.parent, 0)
    assert previous(lock) is Cause.STOP


def test_a_writer_whose_lock_was_removed_writes_no_more(lock: Path, append: Append, start_ns: int) -> None:
    at_ns = start_ns + 10**13
    first = JournalWriter(lock.parent.parent, 0)
    append(first, 1, at_ns)
    lock.unlink()
    with pytest.raises(OSError, match="its lock was removed or replaced"):
        append(first, 2, at_ns)
    with closing(JournalWriter(lock.parent.parent, 0)) as second:
        with pytest.raises(OSError, match="its lock was removed or replaced"):
            append(first, 2, at_ns)
        written = append(second, 3, at_ns + 10**9)
        first.close(Cause.DISK)
        again = append(second, 4, at_ns + 10**9)
    assert [block.block_id for block in read_blocks(lock.parent.parent, 0)][-2:] == [written.block_id, again.block_id]
    assert previous(lock) is Cause.RESTART
