"""Journals that somebody or something damaged: what is intact is read, in order and once, and what is lost is said."""

import errno
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.file import HourFile
from dhan_pipeline.journal.frame import MESSAGE_LIMIT, SCHEMA_MESSAGE, iter_messages, read_message
from dhan_pipeline.journal.reader import (
    Corruption,
    JournalReader,
    captures,
    hour_path,
    hour_summary,
    hours,
    list_files,
    read_blocks,
    read_hour,
)
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS

Append = Callable[..., Block]
Journal = tuple[Path, list[Block]]

HOUR = "2026-11-20T09:00"
NEXT_HOUR = "2026-11-20T10:00"

BOUNDED = settings(max_examples=120)


def ids(blocks: object) -> list[int]:
    return [block.block_id for block in blocks]  # type: ignore[attr-defined]


def stored(path: Path) -> list[bytes]:
    """The bytes of each block of an undamaged file."""
    content = path.read_bytes()
    with path.open("rb") as file:
        return [content[m.offset : m.end] for m in iter_messages(file.fileno(), 0, len(content))]


def occurrences(content: bytes, part: bytes) -> Iterator[tuple[int, int]]:
    start = content.find(part)
    while start >= 0:
        yield start, start + len(part)
        start = content.find(part, start + 1)


def gaps(content: bytes, intact: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offset and size of what lies between the intact blocks; the schema at the beginning is no gap."""
    found = []
    position = len(SCHEMA_MESSAGE) if content.startswith(SCHEMA_MESSAGE) else 0
    for start, end in [*sorted(intact), (len(content), len(content))]:
        if start > position:
            found.append((position, start - position))
        position = end
    return found


@st.composite
def damaged(draw: st.DrawFn, content: bytes, schema_too: bool = False) -> bytes:
    """The content after something happened to it."""
    for _ in range(draw(st.integers(1, 3))):
        size = len(content)
        low = min(0 if schema_too else len(SCHEMA_MESSAGE), size)
        start = draw(st.integers(low, size))
        end = draw(st.one_of(st.integers(start, min(start + 64, size)), st.integers(start, size)))
        to = draw(st.integers(low, size))
        piece, page = content[start:end], max(start // 512 * 512, low)
        match draw(
            st.sampled_from(["flip", "cut", "insert", "delete", "repeat", "overwrite", "zeros", "move", "other"])
        ):
            case "flip":
                flips = bytes(byte ^ draw(st.integers(1, 255)) for byte in content[start : start + 2])
                content = content[:start] + flips + content[start + 2 :]
            case "cut":
                content = content[:start]
            case "insert":
                content = content[:start] + draw(st.binary(max_size=100)) + content[start:]
            case "delete":
                content = content[:start] + content[end:]
            case "repeat":
                content = content[:to] + piece + content[to:]
            case "overwrite":
                content = content[:to] + piece + content[to + len(piece) :]
            case "zeros":
                content = content[:page] + bytes(512) + content[page + 512 :]
            case "move":
                rest = content[:start] + content[end:]
                to = min(to, len(rest))
                content = rest[:to] + piece + rest[to:]
            case "other":
                other = b"\xff\xff\xff\xff\x00\x01\x00\x00" + b"PK\x03\x04" * draw(st.integers(1, 40))
                content = content[:start] + other + content[start:]
    return content


@BOUNDED
@given(data=st.data())
def test_whatever_happened_to_a_file_its_intact_blocks_are_read_and_the_rest_is_reported(
    journal: Journal, data: st.DataObject
) -> None:
    journal_dir, blocks = journal
    path, kept = hour_path(journal_dir, 0, HOUR), journal_dir / "kept"
    shutil.copy(*((kept, path) if kept.exists() else (path, kept)))
    messages = dict(zip(ids(blocks), stored(path), strict=False))
    content = data.draw(damaged(path.read_bytes()), "content")
    path.write_bytes(content)
    whole = [block_id for block_id, message in messages.items() if message in content]
    intact = [place for message in messages.values() for place in occurrences(content, message)]
    payloads = {block.block_id: block.payload for block in blocks}

    corruptions: list[Corruption] = []
    read = list(read_blocks(journal_dir, 0, on_corruption=corruptions.append))
    assert ids(read) == [*whole, blocks[5].block_id]
    assert [block.payload for block in read] == [payloads[block.block_id] for block in read]
    assert [(c.offset, c.size) for c in corruptions] == gaps(content, intact)
    assert {c.path for c in corruptions} <= {path}

    # Every other way of reading says the same.
    again: list[Corruption] = []
    assert ids(read_hour(journal_dir, 0, HOUR, again.append)) == whole
    assert again == corruptions
    summary = hour_summary(journal_dir, 0, HOUR)
    assert (summary.blocks, list(summary.corruptions)) == (len(whole), corruptions)
    assert summary.payload_bytes == sum(len(payloads[block_id]) for block_id in whole)
    piecemeal: list[Corruption] = []
    reader = JournalReader(journal_dir, 0, on_corruption=piecemeal.append)
    assert [next(reader.blocks()).block_id for _ in read] == ids(read)
    assert list(reader.blocks()) == []
    assert piecemeal == corruptions
    for after in ids(blocks)[::2]:
        rest = read_blocks(journal_dir, 0, after=after, on_corruption=lambda _: None)
        assert ids(rest) == [block_id for block_id in ids(read) if block_id > after]


@BOUNDED
@given(data=st.data())
def test_whatever_happened_to_the_newest_file_a_writer_goes_on_after_its_last_intact_block(
    journal: Journal, append: Append, start_ns: int, data: st.DataObject
) -> None:
    journal_dir, blocks = journal
    path, kept = hour_path(journal_dir, 0, HOUR), journal_dir / "kept"
    hour_path(journal_dir, 0, NEXT_HOUR).unlink(missing_ok=True)
    shutil.copy(*((kept, path) if kept.exists() else (path, kept)))
    messages = dict(zip(ids(blocks), stored(path), strict=False))
    content = data.draw(damaged(path.read_bytes(), schema_too=True), "content")
    path.write_bytes(content)
    whole = [block_id for block_id, message in messages.items() if message in content]
    end = max((place[1] for message in messages.values() for place in occurrences(content, message)), default=0)

    before: list[Corruption] = []
    assert ids(read_blocks(journal_dir, 0, on_corruption=before.append)) == whole
    with closing(JournalWriter(journal_dir, 0)) as writer:
        assert writer.last_block_id == (whole[-1] if whole else None)
        kept_bytes = path.read_bytes()
        assert kept_bytes == content[: end or len(kept_bytes)]
        assert len(kept_bytes) in (end, len(SCHEMA_MESSAGE))
        assert writer.cut_bytes == len(content) - len(kept_bytes)
        added = append(writer, 9)
    after: list[Corruption] = []
    assert ids(read_blocks(journal_dir, 0, on_corruption=after.append)) == [*whole, added.block_id]
    assert after == before


@BOUNDED
@given(content=st.one_of(st.binary(max_size=600), st.binary(max_size=300).map(lambda end: SCHEMA_MESSAGE + end)))
def test_a_file_of_another_program_is_reported_as_a_whole_and_taken_over(
    journal: Journal, append: Append, content: bytes
) -> None:
    journal_dir, blocks = journal
    hour_path(journal_dir, 0, HOUR).write_bytes(content)
    corruptions: list[Corruption] = []
    assert ids(read_blocks(journal_dir, 0, on_corruption=corruptions.append)) == [blocks[5].block_id]
    assert [(c.offset, c.size) for c in corruptions] == gaps(content, [])
    with closing(HourFile(hour_path(journal_dir, 0, HOUR))) as file:
        assert file.last is None
        assert file.cut_bytes == len(content) - (len(SCHEMA_MESSAGE) if content.startswith(SCHEMA_MESSAGE) else 0)


def test_a_schema_with_any_byte_changed_costs_no_block(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    whole = path.read_bytes()
    for at in range(len(SCHEMA_MESSAGE)):
        for byte in {0, 255, whole[at] ^ 1} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            corruptions: list[Corruption] = []
            assert ids(read_hour(journal_dir, 0, HOUR, corruptions.append)) == ids(blocks[:5])
            assert all(c.offset + c.size == len(SCHEMA_MESSAGE) for c in corruptions)


def test_zeros_after_the_end_as_a_power_cut_leaves_them_are_cut_and_nothing_else(
    journal: Journal, append: Append, start_ns: int
) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, NEXT_HOUR)
    size = path.stat().st_size
    for zeros in (1, 8, 4096, 5 << 20):
        os.truncate(path, size + zeros)
        assert ids(read_blocks(journal_dir, 0, on_corruption=pytest.fail)) == ids(blocks)
        with closing(JournalWriter(journal_dir, 0)) as writer:
            assert writer.cut_bytes == zeros
    assert path.stat().st_size == size


@pytest.mark.parametrize("order", ["0910", "1009", "0909", "091009"])
def test_files_that_were_joined_are_read_in_order(journal: Journal, order: str) -> None:
    """Blocks of another hour count where they belong, and are reported where they do not."""
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    parts = {"09": path.read_bytes(), "10": hour_path(journal_dir, 0, NEXT_HOUR).read_bytes()}
    path.write_bytes(b"".join(parts[order[at : at + 2]] for at in range(0, len(order), 2)))
    corruptions: list[Corruption] = []
    assert ids(read_blocks(journal_dir, 0, on_corruption=corruptions.append)) == ids(blocks)
    assert ids(read_hour(journal_dir, 0, HOUR, on_corruption=lambda _: None)) == ids(blocks[:5])
    assert hour_summary(journal_dir, 0, HOUR).blocks == 5
    assert ("a block of another hour" in {c.reason for c in corruptions}) == ("10" in order)
    for i, after in enumerate(ids(blocks)):
        assert ids(read_blocks(journal_dir, 0, after=after, on_corruption=lambda _: None)) == ids(blocks[i + 1 :])


def test_a_file_of_an_earlier_hour_at_the_end_of_a_later_one_is_not_cut_off(
    journal: Journal, append: Append, start_ns: int
) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, NEXT_HOUR)
    joined = path.read_bytes() + hour_path(journal_dir, 0, HOUR).read_bytes()
    path.write_bytes(joined)
    with closing(JournalWriter(journal_dir, 0)) as writer:
        assert (writer.last_block_id, writer.cut_bytes) == (blocks[5].block_id, 0)
        added = append(writer, 6, start_ns + HOUR_NS)
    assert path.read_bytes().startswith(joined)
    assert ids(read_blocks(journal_dir, 0, on_corruption=lambda _: None)) == [*ids(blocks), added.block_id]


def test_blocks_of_another_capture_hide_none_of_this_one(journal: Journal, append: Append, start_ns: int) -> None:
    journal_dir, blocks = journal
    with closing(JournalWriter(journal_dir, 3)) as writer:
        append(writer, 1)
    path = hour_path(journal_dir, 0, HOUR)
    (stranger,) = stored(hour_path(journal_dir, 3, HOUR))
    size = path.stat().st_size
    messages = stored(path)
    path.write_bytes(SCHEMA_MESSAGE + stranger + b"".join(messages) + stranger)
    corruptions: list[Corruption] = []
    assert ids(read_blocks(journal_dir, 0, on_corruption=corruptions.append)) == ids(blocks)
    assert [(c.offset, c.size) for c in corruptions] == [
        (len(SCHEMA_MESSAGE), len(stranger)),
        (size + len(stranger), len(stranger)),
    ]
    assert str(corruptions[0]).endswith("are lost, a block of capture 3")
    hour_path(journal_dir, 0, NEXT_HOUR).unlink()
    with closing(JournalWriter(journal_dir, 0)) as writer:
        assert writer.last_block_id == blocks[4].block_id
        added = append(writer, 9)
    assert ids(read_blocks(journal_dir, 0, on_corruption=lambda _: None)) == [*ids(blocks[:5]), added.block_id]


@pytest.mark.parametrize("order", [[1, 0], [0, 2, 1], [2, 1, 0]], ids=str)
def test_large_blocks_out_of_order_are_found_from_any_block_on(tmp_path: Path, start_ns: int, order: list[int]) -> None:
    """Larger than what is searched at once, so that places in the file are guessed."""
    noise = Random(1).randbytes(80_000)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [writer.append([start_ns + i * 10**9], [0], [False], [noise[i:]]) for i in range(24)]
    path = hour_path(tmp_path, 0, HOUR)
    messages = stored(path)
    thirds = [b"".join(messages[at : at + 8]) for at in (0, 8, 16)]
    path.write_bytes(SCHEMA_MESSAGE + b"".join(thirds[part] for part in order) + b"".join(messages))
    assert len(path.read_bytes()) > 2 << 20
    assert ids(read_blocks(tmp_path, 0)) == ids(blocks)
    for i, after in enumerate(ids(blocks)):
        assert ids(read_blocks(tmp_path, 0, after=after)) == ids(blocks[i + 1 :])
    with closing(JournalWriter(tmp_path, 0)) as writer:
        assert writer.last_block_id == blocks[-1].block_id


def test_a_stamp_that_claims_gigabytes_costs_no_memory(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    stamp = b"%019d %010d %010d %010d 00000000\0"
    claims = [MESSAGE_LIMIT, MESSAGE_LIMIT + 1, 300 << 20, 2**32 - 1, 9_999_999_999]
    lies = [b"\xff\xff\xff\xff\x00\x01\x00\x00" + stamp % (blocks[0].block_id, size, size, size) for size in claims]
    content = path.read_bytes() + b"".join(lies)
    path.write_bytes(content)
    os.truncate(path, 320 << 20)
    with path.open("rb") as file:
        tracemalloc.start()
        try:
            for i in range(1, 5):
                assert isinstance(read_message(file.fileno(), len(content) - len(lies[0]) * i, 10**11), str)
            small = tracemalloc.get_traced_memory()[1]
            assert ids(read_blocks(journal_dir, 0, on_corruption=lambda _: None)) == ids(blocks)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert small < 1 << 20
    assert peak < 2 * MESSAGE_LIMIT


def test_recovery_finds_the_last_block_before_garbage_of_any_size(
    tmp_path: Path, append: Append, start_ns: int
) -> None:
    """What is looked at first are the last 4 MiB: garbage that fills them, or all but a block, or all but a byte."""
    path = hour_path(tmp_path, 0, HOUR)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i) for i in range(3)]
    whole = path.read_bytes()
    last = len(stored(path)[-1])
    for garbage in ((4 << 20) - last - 1, (4 << 20) - last, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20):
        path.write_bytes(whole + ((b"\xff\xff\xff\xff\x00\x01\x00\x00" + bytes(8000)) * 1200)[:garbage])
        with closing(JournalWriter(tmp_path, 0)) as writer:
            assert writer.last_block_id == blocks[-1].block_id
            assert writer.cut_bytes == garbage
        assert path.read_bytes() == whole


def test_damage_is_reported_where_it_lies_among_the_blocks(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    content = bytearray(path.read_bytes())
    messages = stored(path)
    for lost in (1, 3):
        content[content.index(messages[lost]) + 400] ^= 1
    path.write_bytes(content)
    heard: list[int | str] = []
    for block in read_blocks(journal_dir, 0, on_corruption=lambda corruption: heard.append(corruption.reason)):
        heard.append(block.block_id)  # noqa: PERF401
    wrong = "the block's checksum does not match"
    known = ids(blocks)
    assert heard == [known[0], wrong, known[2], wrong, known[4], known[5]]


def test_damage_before_the_block_that_reading_begins_with_is_not_reported(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    content = bytearray(path.read_bytes())
    messages = stored(path)
    starts = [content.index(messages[lost]) for lost in (1, 3)]
    for start in starts:
        content[start + 400] ^= 1
    path.write_bytes(content)
    for after, reported in [(0, starts), (2, starts[1:]), (3, starts[1:]), (4, [])]:
        corruptions: list[Corruption] = []
        read = ids(read_blocks(journal_dir, 0, after=blocks[after].block_id, on_corruption=corruptions.append))
        assert read == [block.block_id for at, block in enumerate(blocks) if at > after and at not in (1, 3)]
        assert [c.offset for c in corruptions] == reported


def test_a_file_that_was_cut_while_it_was_read_is_read_on(tmp_path: Path, append: Append) -> None:
    path = hour_path(tmp_path, 0, HOUR)
    reader = JournalReader(tmp_path, 0, on_corruption=pytest.fail)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i) for i in range(4)]
    assert ids(reader.blocks()) == ids(blocks)
    end = path.stat().st_size - len(stored(path)[-1])
    os.truncate(path, end)
    assert ids(reader.blocks()) == []
    with closing(JournalWriter(tmp_path, 0)) as writer:
        added = append(writer, 9)
    assert ids(reader.blocks()) == [added.block_id]


def test_a_file_that_vanishes_between_listing_and_opening_is_passed_over(
    journal: Journal, append: Append, start_ns: int
) -> None:
    journal_dir, blocks = journal
    with closing(JournalWriter(journal_dir, 0)) as writer:
        blocks.append(append(writer, 6, start_ns + 2 * HOUR_NS))
    reader = read_blocks(journal_dir, 0, on_corruption=pytest.fail)
    first = next(reader)
    shutil.rmtree(hour_path(journal_dir, 0, HOUR).parent)
    # What is open stays readable; what was listed and not opened is gone.
    assert ids([first, *reader]) == ids(blocks[:5])
    assert hour_summary(journal_dir, 0, HOUR).file_bytes == 0


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Nobody but root may read the path, and we are not root."""
    mode = path.stat().st_mode
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)


@pytest.fixture
def open_journal(open_dir: Path, request: pytest.FixtureRequest, append: Append, start_ns: int) -> Journal:
    """A journal that every user may read: two blocks at 09:00 IST, one at 10:00, one at 11:00."""
    journal_dir = open_dir / request.node.name
    with closing(JournalWriter(journal_dir, 0)) as writer:
        return journal_dir, [append(writer, i, start_ns + max(i - 1, 0) * HOUR_NS) for i in range(4)]


@pytest.mark.parametrize("hour", [HOUR, NEXT_HOUR, "2026-11-20T11:00"])
def test_a_file_that_may_not_be_opened_is_reported_as_a_whole_and_the_others_are_read(
    open_journal: Journal, hour: str
) -> None:
    journal_dir, blocks = open_journal
    path = hour_path(journal_dir, 0, hour)
    corruptions: list[Corruption] = []
    reader = JournalReader(journal_dir, 0, on_corruption=corruptions.append)
    with unreadable(path):
        assert ids(reader.blocks()) == [block.block_id for block in blocks if block.hour != hour]
        assert list(reader.blocks()) == []
        assert [str(c) for c in corruptions] == [
            f"{path}: {path.stat().st_size} bytes at offset 0 are lost, it cannot be opened (Permission denied)"
        ]
        summary = hour_summary(journal_dir, 0, hour)
        assert (summary.blocks, summary.corruptions) == (0, tuple(corruptions))
        assert summary.file_bytes == path.stat().st_size
        assert list(read_hour(journal_dir, 0, hour)) == []
        for i, after in enumerate(ids(blocks)):
            rest = ids(read_blocks(journal_dir, 0, after=after, on_corruption=lambda _: None))
            assert rest == [block.block_id for block in blocks[i + 1 :] if block.hour != hour]
    newest = hour == "2026-11-20T11:00"
    assert ids(reader.blocks()) == (ids(blocks[3:]) if newest else [])
    assert len(corruptions) == 1


@pytest.mark.parametrize("directory", ["00", "00/2026-11-20"])
def test_a_directory_that_may_not_be_listed_is_an_error_not_an_empty_journal(
    open_journal: Journal, directory: str
) -> None:
    journal_dir, _ = open_journal
    with unreadable(journal_dir / directory):
        for read in (read_blocks(journal_dir, 0), read_hour(journal_dir, 0, HOUR)):
            with pytest.raises(PermissionError):
                list(read)


def test_what_only_looks_like_a_capture_a_day_or_an_hour_is_none(journal: Journal) -> None:
    journal_dir, blocks = journal
    capture = journal_dir / "00"
    (journal_dir / "01").write_bytes(b"a file")
    (journal_dir / "\u0660\u0660").mkdir()
    (capture / "2026-11-21").write_bytes(b"a file")
    for name in ("2026-02-30", "0001-01-01", "0000-00-00", "\u0662\u0660\u0662\u0666-11-20"):
        (capture / name).mkdir()
        (capture / name / "09.arrows").write_bytes(b"x")
    day = capture / "2026-11-20"
    (day / "11.arrows").mkdir()
    (day / "12.arrows").symlink_to(day / "nowhere")
    for name in ("24.arrows", "99.arrows", "\u0660\u0669.arrows", "08.arrows~"):
        (day / name).write_bytes(b"x")
    assert captures(journal_dir) == [0]
    assert hours(journal_dir, 0) == [HOUR, NEXT_HOUR]
    assert ids(read_blocks(journal_dir, 0, on_corruption=pytest.fail)) == ids(blocks)
    assert list_files(journal_dir, 1) == []
    with closing(JournalWriter(journal_dir, 0)) as writer:
        assert writer.last_block_id == blocks[-1].block_id


def test_a_file_elsewhere_may_stand_in_for_one(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    path.rename(journal_dir / "archived")
    path.symlink_to(journal_dir / "archived")
    assert ids(read_blocks(journal_dir, 0, on_corruption=pytest.fail)) == ids(blocks)


def test_pages_that_the_disk_cannot_give_back_cost_only_the_blocks_that_they_touch(
    tmp_path: Path, start_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Random(1).randbytes(20_000)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [writer.append([start_ns + i * 10**9], [0], [False], [noise[i : i + 3000]]) for i in range(40)]
    path = hour_path(tmp_path, 0, HOUR)
    bad = [(20_480, 24_576), (40_960, 40_960 + 8192)]
    places = []
    with path.open("rb") as file:
        places = [(m.offset, m.end) for m in iter_messages(file.fileno(), 0, path.stat().st_size)]
    expected = [
        block.block_id
        for block, (start, end) in zip(blocks, places, strict=True)
        if not any(start < high and low < end for low, high in bad)
    ]
    pread = os.pread

    def fail_on_bad_pages(fd: int, size: int, offset: int) -> bytes:
        """As Linux does: up to the first bad page it reads, and from there on it fails."""
        for low, high in bad:
            if low <= offset < high:
                raise OSError(errno.EIO, "Input/output error")
            if offset < low < offset + size:
                return pread(fd, low - offset, offset)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", fail_on_bad_pages)
    corruptions: list[Corruption] = []
    assert ids(read_hour(tmp_path, 0, HOUR, corruptions.append)) == expected
    assert len(corruptions) == 2
    assert 0 < len(blocks) - len(expected) < 12
    with pytest.raises(OSError, match=r"cannot be written \(Input/output error\)"):
        JournalWriter(tmp_path, 0)
    monkeypatch.undo()
    assert ids(read_blocks(tmp_path, 0)) == ids(blocks)


@settings(BOUNDED, max_examples=50)
@given(
    steps=st.lists(
        st.one_of(st.integers(-7 * 10**12, 7 * 10**12), st.integers(-(10**6), 10**7), st.just(None)),
        min_size=1,
        max_size=12,
    )
)
def test_however_the_clock_steps_blocks_and_times_are_read_in_order(
    tmp_path: Path, append: Append, start_ns: int, steps: list[int | None]
) -> None:
    """None is a restart."""
    journal_dir = tmp_path / "journal"
    shutil.rmtree(journal_dir, ignore_errors=True)
    writer = JournalWriter(journal_dir, 0)
    at_ns, written = start_ns, []
    for i, step in enumerate(steps):
        if step is None:
            writer.close()
            writer = JournalWriter(journal_dir, 0)
        else:
            at_ns += step
            now_ns = max(at_ns, writer.last_received_ns)
            written.append(writer.append([now_ns, at_ns], [0, 0], [False, False], [b"%d" % i, b""]))
    writer.close()
    read = list(read_blocks(journal_dir, 0, on_corruption=pytest.fail))
    assert ids(read) == ids(written) == sorted(set(ids(written)))
    times = [at for block in read for at in block.received_ns.tolist()]
    assert times == sorted(times)
    assert [b.payload for b in read] == [b.payload for b in written]
    for after in ids(written):
        assert ids(read_blocks(journal_dir, 0, after=after)) == [i for i in ids(written) if i > after]
    assert sum(hour_summary(journal_dir, 0, hour).blocks for hour in hours(journal_dir, 0)) == len(written)
