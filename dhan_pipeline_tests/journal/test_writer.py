import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from dhan_pipeline.journal import file as file_module
from dhan_pipeline.journal.block import Block, split_block_id
from dhan_pipeline.journal.frame import SCHEMA_MESSAGE
from dhan_pipeline.journal.reader import captures, hour_path, hours, read_blocks, read_hour
from dhan_pipeline.journal.writer import JournalWriter, LockHeldError, nobody_writes, somebody_writes
from dhan_pipeline.sessions import HOUR_NS

Append = Callable[..., Block]


def ids(journal_dir: Path, capture: int = 0) -> list[int]:
    return [block.block_id for block in read_blocks(journal_dir, capture)]


def test_what_was_appended_is_read_back(
    tmp_path: Path, append: Append, same_block: Callable[[Block, Block], bool]
) -> None:
    with closing(JournalWriter(tmp_path, 3)) as writer:
        written = [append(writer, i) for i in range(10)]
        read = list(read_blocks(tmp_path, 3))
    assert all(map(same_block, read, written))
    assert len(read) == 10
    assert captures(tmp_path) == [3]
    assert split_block_id(read[0].block_id)[0] == 3


def test_each_hour_of_receipt_has_its_file(tmp_path: Path, append: Append, start_ns: int) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i, start_ns + i * HOUR_NS // 2) for i in range(4)]
    assert hours(tmp_path, 0) == ["2026-11-20T09:00", "2026-11-20T10:00"]
    assert [block.block_id for block in read_hour(tmp_path, 0, "2026-11-20T10:00")] == [b.block_id for b in blocks[2:]]
    assert blocks[2].hour == "2026-11-20T10:00"
    assert hour_path(tmp_path, 0, "2026-11-20T10:00") == tmp_path / "00" / "2026-11-20" / "10.arrows"


def test_a_file_is_a_plain_arrow_stream(journal: tuple[Path, list[Block]]) -> None:
    journal_dir, blocks = journal
    table = pa.ipc.open_stream(hour_path(journal_dir, 0, "2026-11-20T09:00")).read_all()
    assert table.schema.names == ["received", "connection", "text", "payload"]
    assert b"".join(table["payload"].to_pylist()) == b"".join(block.payload for block in blocks[:5])
    assert table["received"].cast(pa.int64()).to_pylist() == [t for block in blocks[:5] for t in block.received_ns]


def test_whether_anybody_writes_can_be_asked_without_harm(tmp_path: Path) -> None:
    assert nobody_writes(tmp_path, 0)
    with closing(JournalWriter(tmp_path, 0)):
        assert not nobody_writes(tmp_path, 0)
        assert somebody_writes(tmp_path, 0)
        assert not somebody_writes(tmp_path, 1)
        assert nobody_writes(tmp_path, 1)
    assert nobody_writes(tmp_path, 0)
    JournalWriter(tmp_path, 0).close()


def test_of_a_journal_that_cannot_be_looked_at_neither_is_known(tmp_path: Path) -> None:
    (tmp_path / "00").touch()  # no folder
    assert not nobody_writes(tmp_path, 0)
    assert not somebody_writes(tmp_path, 0)


def test_a_second_writer_of_a_capture_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    with closing(JournalWriter(tmp_path, 0)):
        with pytest.raises(LockHeldError, match=f"process {os.getpid()} holds") as caught:
            JournalWriter(tmp_path, 0)
        JournalWriter(tmp_path, 1).close()
    assert caught.value.pid == os.getpid()
    JournalWriter(tmp_path, 0).close()


def test_a_second_writer_in_another_process_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dhan_pipeline.journal.writer import *\n"
        "try: JournalWriter(Path(sys.argv[1]), 0)\n"
        "except LockHeldError as error: print(error.pid)"
    )
    with closing(JournalWriter(tmp_path, 0)):
        told = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(told.stdout) == os.getpid()


def test_numbering_continues_after_a_restart_though_the_clock_stepped_back(
    tmp_path: Path, append: Append, start_ns: int
) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        before = append(writer, 0, start_ns + HOUR_NS)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        assert writer.last_block_id == before.block_id
        assert writer.last_received_ns == before.last_received_ns
        after = append(writer, 1, start_ns)
    assert after.block_id == before.block_id + 1
    assert after.received_ns.tolist() == [before.last_received_ns] * after.messages
    assert ids(tmp_path) == [before.block_id, after.block_id]
    assert hours(tmp_path, 0) == ["2026-11-20T10:00"]


def test_a_block_that_is_empty_or_uneven_or_crosses_an_hour_is_refused(tmp_path: Path, start_ns: int) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        with pytest.raises(ValueError, match="needs messages"):
            writer.append([], [], [], [])
        with pytest.raises(ValueError, match="needs messages"):
            writer.append([start_ns], [0], [False], [b"a", b"b"])
        with pytest.raises(ValueError, match="needs messages"):
            writer.append([start_ns], [0], [False], [b"ab"], [1, 1])
        with pytest.raises(ValueError, match="needs messages"):
            writer.append([], [], [], [], [])
        with pytest.raises(ValueError, match="cross an hour"):
            writer.append([start_ns - 1, start_ns], [0, 0], [False, False], [b"a", b"b"])
    assert ids(tmp_path) == []


def test_messages_given_together_make_the_same_block_as_one_by_one(
    tmp_path: Path, start_ns: int, same_block: Callable[[Block, Block], bool]
) -> None:
    arrivals = [
        (start_ns, 3, False, [b"alpha", b"beta.", b"gamma"]),
        (start_ns + 5, 4, True, ["grüße".encode()]),
        (start_ns + 5, 3, False, [b""] * 9),
        (start_ns + 7, 0, False, [bytes([n]) * 162 for n in range(100)]),
        (start_ns + 6, 255, False, [b""]),
    ]
    together = [
        [at_ns for at_ns, _, _, _ in arrivals],
        [number for _, number, _, _ in arrivals],
        [text for _, _, text, _ in arrivals],
        [b"".join(messages) for _, _, _, messages in arrivals],
    ]
    single = [(at_ns, number, text, message) for at_ns, number, text, messages in arrivals for message in messages]
    with closing(JournalWriter(tmp_path / "a", 0)) as a, closing(JournalWriter(tmp_path / "b", 0)) as b:
        one = a.append(*together, [len(messages) for _, _, _, messages in arrivals])  # type: ignore[arg-type]
        other = b.append(*map(list, zip(*single, strict=True)))  # type: ignore[arg-type]
        assert a.last_received_ns == b.last_received_ns == start_ns + 7
    assert same_block(one, other)
    assert one.messages == 114
    files = [hour_path(tmp_path / name, 0, "2026-11-20T09:00").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    [read] = read_blocks(tmp_path / "a", 0)
    assert same_block(read, one)


def test_a_block_is_synced_whole_before_append_returns(
    tmp_path: Path, append: Append, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def sync(fd: int) -> None:
        os.fdatasync(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(file_module, "_sync", sync)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        for i in range(3):
            append(writer, i)
            assert synced[-1] == hour_path(tmp_path, 0, "2026-11-20T09:00").stat().st_size
    assert len(synced) == 4  # the file when it is opened, and each block once


@pytest.mark.parametrize("kept", ["schema", "whole blocks"])
def test_recovery_cuts_a_torn_end_at_every_offset(tmp_path: Path, append: Append, kept: str) -> None:
    path = hour_path(tmp_path, 0, "2026-11-20T09:00")
    ends, written = [0], []
    with closing(JournalWriter(tmp_path, 0)) as writer:
        for i in range(2):
            written.append(append(writer, i).block_id)
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for size in range(ends[1]) if kept == "schema" else range(ends[1], ends[2]):
        path.write_bytes(whole[:size])
        with closing(JournalWriter(tmp_path, 0)) as writer:
            assert writer.last_block_id == (None if kept == "schema" else written[0])
            keep = [end for end in (0, len(SCHEMA_MESSAGE), ends[1]) if end <= size]
            assert writer.cut_bytes == size - keep[-1]
            added = append(writer, 7) if size % 16 == 0 else None
        known = [] if kept == "schema" else written[:1]
        if added is not None:
            known.append(added.block_id)
            assert pa.ipc.open_stream(path).read_all().num_rows > 0
        assert ids(tmp_path) == known


@pytest.mark.parametrize("tail", [bytes(5000), b"\xff" * 5000, bytes(range(256)) * 20], ids=["zeros", "ones", "other"])
def test_recovery_cuts_garbage_at_the_end(tmp_path: Path, append: Append, tail: bytes) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i).block_id for i in range(3)]
    path = hour_path(tmp_path, 0, "2026-11-20T09:00")
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        assert writer.cut_bytes == len(tail)
        assert writer.last_block_id == blocks[-1]
    assert path.read_bytes() == whole


def test_recovery_finds_the_last_block_before_a_torn_end_larger_than_it_looks_at_first(
    tmp_path: Path, append: Append
) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        block = append(writer, 0)
    path = hour_path(tmp_path, 0, "2026-11-20T09:00")
    size = path.stat().st_size
    with path.open("ab") as file:
        file.truncate(size + (6 << 20))
    with closing(JournalWriter(tmp_path, 0)) as writer:
        assert writer.last_block_id == block.block_id
    assert path.stat().st_size == size


def test_recovery_looks_into_the_hour_before_when_the_last_file_holds_no_block(
    tmp_path: Path, append: Append, start_ns: int
) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        first = append(writer, 0)
        append(writer, 1, start_ns + HOUR_NS)
    torn = hour_path(tmp_path, 0, "2026-11-20T10:00")
    os.truncate(torn, 100)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        assert writer.last_block_id == first.block_id
        second = append(writer, 1, start_ns + HOUR_NS)
    assert ids(tmp_path) == [first.block_id, second.block_id]
    assert pa.ipc.open_stream(torn).read_all().num_rows == second.messages


def test_a_short_write_leaves_the_journal_at_the_block_before(tmp_path: Path, append: Append) -> None:
    path = hour_path(tmp_path, 0, "2026-11-20T09:00")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        first = append(writer, 0)
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, hard))
        try:
            with pytest.raises(OSError, match=r"journal cannot be written .*File too large"):
                append(writer, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == whole
        assert writer.last_block_id == first.block_id
        second = append(writer, 1)
    assert ids(tmp_path) == [first.block_id, second.block_id]


def test_a_file_whose_very_beginning_does_not_fit_is_begun_again(tmp_path: Path, append: Append) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                append(writer, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        block = append(writer, 0)
    assert ids(tmp_path) == [block.block_id]


def test_a_writer_killed_at_any_moment_loses_no_block_that_it_reported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dhan_pipeline.journal.writer import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]), 0)\n"
        "start = 1_795_145_400_000_000_000\n"
        "for i in range(10**9):\n"
        "    n = i % 300 + 1\n"
        "    block = writer.append([start + i * 10**6] * n, [0] * n, [False] * n, [b'%d' % i * 30] * n)\n"
        "    print(block.block_id, flush=True)"
    )
    last = 0
    for blocks_before_kill in (1, 20, 57):
        with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            reported = [int(process.stdout.readline()) for _ in range(blocks_before_kill)]
            process.send_signal(signal.SIGKILL)
            reported += [int(line) for line in process.stdout if line.endswith("\n")]
        with closing(JournalWriter(tmp_path, 0)) as writer:
            found = [block_id for block_id in ids(tmp_path) if block_id > last]
            assert found[: len(reported)] == reported
            assert len(found) - len(reported) in (0, 1)
            assert writer.last_block_id == found[-1]
        assert found == sorted(set(found))
        last = found[-1]
