import threading
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.journal.block import Block, first_block_id, make_block_id, split_block_id
from dhan_pipeline.journal.frame import SCHEMA_MESSAGE, iter_messages
from dhan_pipeline.journal.reader import (
    Corruption,
    JournalReader,
    captures,
    hour_path,
    hour_summary,
    hours,
    read_blocks,
    read_hour,
)
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS

Append = Callable[..., Block]
Journal = tuple[Path, list[Block]]
Same = Callable[[Block, Block], bool]

HOUR = "2026-11-20T09:00"


def ids(blocks: object) -> list[int]:
    return [block.block_id for block in blocks]  # type: ignore[attr-defined]


def boundaries(path: Path) -> list[int]:
    """Where each block of a file begins, and where the last ends."""
    with path.open("rb") as file:
        messages = list(iter_messages(file.fileno(), 0, path.stat().st_size))
    return [message.offset for message in messages] + [messages[-1].end]


def test_a_journal_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert captures(tmp_path / "none") == []
    assert hours(tmp_path, 0) == []
    assert list(read_blocks(tmp_path, 0)) == []
    assert list(read_hour(tmp_path, 0, HOUR)) == []
    assert hour_summary(tmp_path, 0, HOUR).blocks == 0


@pytest.mark.parametrize("key", ["2026-11-20T09:30", "2026-11-20", "../../../x", "2026-1-2T9:00"])
def test_what_is_not_the_key_of_an_hour_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(read_hour(tmp_path, 0, key))


def test_other_files_in_the_directory_are_left_alone(journal: Journal) -> None:
    journal_dir, blocks = journal
    (journal_dir / "notes").mkdir()
    (journal_dir / "99").mkdir()
    (journal_dir / "00" / "2026-11-20" / "09.arrows.bak").write_bytes(b"x")
    (journal_dir / "00" / "old").mkdir()
    assert captures(journal_dir) == [0]
    assert ids(read_blocks(journal_dir, 0)) == ids(blocks)


def test_reading_begins_after_any_block_and_ends_with_any_block(journal: Journal) -> None:
    journal_dir, blocks = journal
    known = ids(blocks)
    for i, after in enumerate(known):
        assert ids(read_blocks(journal_dir, 0, after=after)) == known[i + 1 :]
        assert ids(read_blocks(journal_dir, 0, after=after - 1)) == known[i:]
        assert ids(read_blocks(journal_dir, 0, until=after)) == known[: i + 1]
        assert ids(read_blocks(journal_dir, 0, until=after - 1)) == known[:i]
    assert ids(read_blocks(journal_dir, 0, after=0)) == known


def test_reading_begins_after_a_block_in_the_middle_of_many_and_of_large_files(
    tmp_path: Path, start_ns: int, append: Append
) -> None:
    noise = bytes((i * i * 31 + i // 7) % 251 for i in range(200_000))
    with closing(JournalWriter(tmp_path, 2)) as writer:
        known = []
        for hour in range(4):
            for i in range(30 if hour == 2 else 3):
                at_ns = start_ns + hour * HOUR_NS + i * 10**9
                payload = noise[i:] if hour == 2 else b"small"
                known.append(writer.append([at_ns], [0], [False], [payload[: len(payload) - hour]]).block_id)
    for i, after in enumerate(known):
        assert next(ids([b]) for b in [*read_blocks(tmp_path, 2, after=after), *read_blocks(tmp_path, 2)]) == (
            known[i + 1 : i + 2] or known[:1]
        )
    midnight = first_block_id(2, start_ns - 9 * HOUR_NS)
    assert ids(read_blocks(tmp_path, 2, after=midnight - 1)) == known
    assert ids(read_blocks(tmp_path, 2, after=make_block_id(2, 2**42 - 1))) == []


def test_no_block_is_missed_when_numbers_ran_ahead_of_the_clock(tmp_path: Path, append: Append, start_ns: int) -> None:
    """More than a block a millisecond: the ids at the end of an hour reach into the next."""
    with closing(JournalWriter(tmp_path, 0)) as writer:
        known = [append(writer, 0, start_ns + HOUR_NS - 1_000_000).block_id for _ in range(20)]
        known += [append(writer, 0, start_ns + HOUR_NS).block_id for _ in range(5)]
    assert split_block_id(known[19])[1] > (start_ns + HOUR_NS) // 1_000_000
    for i, after in enumerate(known):
        assert ids(read_blocks(tmp_path, 0, after=after)) == known[i + 1 :]


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path, append: Append, start_ns: int) -> None:
    reader = JournalReader(tmp_path, 0)
    assert list(reader.blocks()) == []
    with closing(JournalWriter(tmp_path, 0)) as writer:
        for i, at_ns in enumerate([start_ns, start_ns + 1, start_ns + HOUR_NS, start_ns + 24 * HOUR_NS]):
            written = [append(writer, i, at_ns).block_id for _ in range(2)]
            assert ids(reader.blocks()) == written
            assert list(reader.blocks()) == []


def test_a_reader_that_is_dropped_in_the_middle_goes_on_there(journal: Journal) -> None:
    journal_dir, blocks = journal
    reader = JournalReader(journal_dir, 0, after=blocks[0].block_id)
    read = [next(reader.blocks()).block_id for _ in range(5)]
    assert read == ids(blocks[1:])


def test_a_reader_keeps_up_with_a_writer_in_another_thread(tmp_path: Path, append: Append, start_ns: int) -> None:
    written: list[int] = []

    def write() -> None:
        with closing(JournalWriter(tmp_path, 0)) as writer:
            written.extend(append(writer, i, start_ns + i * HOUR_NS // 100, 4000).block_id for i in range(250))

    thread = threading.Thread(target=write)
    corruptions: list[Corruption] = []
    reader = JournalReader(tmp_path, 0, on_corruption=corruptions.append)
    read: list[int] = []
    thread.start()
    while thread.is_alive():
        read += ids(reader.blocks())
    thread.join()
    read += ids(reader.blocks())
    assert read == written
    assert corruptions == []


def test_the_end_of_the_newest_file_may_be_half_written_at_every_offset(journal: Journal) -> None:
    journal_dir, blocks = journal
    hour_path(journal_dir, 0, "2026-11-20T10:00").unlink()
    path = hour_path(journal_dir, 0, HOUR)
    whole = path.read_bytes()
    ends = boundaries(path)[1:]
    corruptions: list[Corruption] = []
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        reader = JournalReader(journal_dir, 0, on_corruption=corruptions.append)
        read = ids(reader.blocks())
        path.write_bytes(whole)
        assert read == ids(blocks[: sum(end <= size for end in ends)])
        assert read + ids(reader.blocks()) == ids(blocks[:5])
    assert corruptions == []


def test_a_sealed_file_cut_at_every_offset_gives_its_whole_blocks_and_reports_the_rest(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    whole = path.read_bytes()
    ends = [len(SCHEMA_MESSAGE), *boundaries(path)[1:]]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        corruptions: list[Corruption] = []
        read = ids(read_blocks(journal_dir, 0, on_corruption=corruptions.append))
        complete = [end for end in ends if end <= size]
        assert read == ids([*blocks[: max(len(complete) - 1, 0)], blocks[5]])
        assert sum(c.size for c in corruptions) == size - max(complete, default=0)


def test_one_changed_byte_costs_one_block_at_most_wherever_it_is(journal: Journal, same_block: Same) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    whole = path.read_bytes()
    spans = list(pairwise(boundaries(path)))
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        corruptions: list[Corruption] = []
        read = list(read_blocks(journal_dir, 0, on_corruption=corruptions.append))
        expected = [b for b, (start, end) in zip(blocks, spans, strict=False) if not start <= offset < end]
        assert len(read) == len(expected) + 1
        assert all(map(same_block, read, [*expected, blocks[5]]))
        hit = [(start, end - start) for start, end in spans if start <= offset < end]
        if hit:
            assert [(c.offset, c.size) for c in corruptions] == hit
        if offset % 16 == 0:
            assert hour_summary(journal_dir, 0, HOUR).blocks == len(expected)


@given(st.data())
def test_bytes_cut_out_or_put_in_cost_only_the_blocks_they_touch(
    journal: Journal, same_block: Same, data: st.DataObject
) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    original = path.with_suffix(".original")
    if not original.exists():
        original.write_bytes(path.read_bytes())
    whole = original.read_bytes()
    path.write_bytes(whole)
    spans = list(pairwise(boundaries(path)))
    start = data.draw(st.integers(0, len(whole)), "start")
    end = data.draw(st.integers(start, min(len(whole), start + 1500)), "end")
    hostile = st.one_of(
        st.binary(max_size=40),
        st.sampled_from([whole[:400], whole[-100:], b"\xff" * 9, bytes(4096), b"\xff\xff\xff\xff\x00\x02\x00\x00"]),
    )
    inserted = b"".join(data.draw(st.lists(hostile, max_size=4), "inserted"))
    path.write_bytes(whole[:start] + inserted + whole[end:])
    read = {b.block_id: b for b in read_blocks(journal_dir, 0, on_corruption=lambda _: None)}
    for block, (first, last) in zip(blocks, spans, strict=False):
        if last <= start or first >= end:
            assert same_block(read[block.block_id], block)
    assert set(read) <= set(ids(blocks))
    with closing(JournalWriter(journal_dir, 0)) as writer:
        assert writer.last_block_id == blocks[5].block_id


def test_a_block_that_was_copied_is_read_once(journal: Journal) -> None:
    journal_dir, blocks = journal
    path = hour_path(journal_dir, 0, HOUR)
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    assert ids(read_blocks(journal_dir, 0, on_corruption=lambda _: None)) == ids(blocks)


def test_a_corruption_reads_as_a_sentence(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal_dir, _ = journal
    path = hour_path(journal_dir, 0, HOUR)
    first, second, *_ = boundaries(path)
    damaged = bytearray(path.read_bytes())
    damaged[second - 1] ^= 1
    path.write_bytes(damaged)
    list(read_hour(journal_dir, 0, HOUR))
    assert f"{path}: {second - first} bytes at offset {first} are lost, the block's checksum does not match" in (
        caplog.text
    )


def test_an_hour_is_summed_up_from_its_stamps(journal: Journal) -> None:
    journal_dir, blocks = journal
    summary = hour_summary(journal_dir, 0, HOUR)
    assert summary.blocks == 5
    assert summary.messages == sum(block.messages for block in blocks[:5])
    assert summary.payload_bytes == sum(len(block.payload) for block in blocks[:5])
    assert summary.file_bytes == hour_path(journal_dir, 0, HOUR).stat().st_size
    assert summary.first_received_ns == blocks[0].first_received_ns
    assert summary.last_received_ns == blocks[4].last_received_ns
    assert summary.corruptions == ()
