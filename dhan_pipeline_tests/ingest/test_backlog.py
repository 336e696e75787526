import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.ingest import backlog as backlog_module
from dhan_pipeline.ingest.backlog import BATCH_BLOCKS, Backlog
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.frame import iter_messages
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline_tests.ingest.feed import HOUR, SECOND_NS, START_NS, until

NO_TIME = 0.0


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[JournalWriter]:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        yield writer


def append(writer: JournalWriter, number: int, size: int = 100) -> Block:
    return writer.append([START_NS + number * SECOND_NS], [0], [False], [bytes([number % 256]) * size])


def new_backlog(writer: JournalWriter, directory: Path) -> Backlog:
    return Backlog(directory, 0, writer.last_block_id, writer.last_received_ns)


def take_all(backlog: Backlog) -> list[Block]:
    taken: list[Block] = []
    for _ in range(1000):
        if backlog.taken_through_ns() is not None:
            return taken
        taken += backlog.take(NO_TIME)
    pytest.fail("blocks wait that never come")


def ids(blocks: list[Block]) -> list[int]:
    return [block.block_id for block in blocks]


def test_blocks_that_are_put_while_nothing_waits_are_handed_over_in_memory(
    writer: JournalWriter, tmp_path: Path
) -> None:
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    blocks = [append(writer, number) for number in range(3)]
    for block in blocks:
        backlog.put(block)
    assert list(map(id, backlog.take(NO_TIME))) == list(map(id, blocks))
    assert backlog.take(NO_TIME) == []
    assert backlog.taken_through_ns() == blocks[-1].last_received_ns


def test_what_an_earlier_capture_left_is_read_from_the_journal_first(writer: JournalWriter, tmp_path: Path) -> None:
    left = [append(writer, number) for number in range(BATCH_BLOCKS + 10)]
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(left[4].block_id)
    new = append(writer, 100)
    backlog.put(new)
    assert ids(backlog.take(NO_TIME)) == ids(left[5 : 5 + BATCH_BLOCKS])
    assert ids(take_all(backlog)) == ids([*left[5 + BATCH_BLOCKS :], new])


def test_too_much_for_the_memory_waits_on_disk_and_later_blocks_in_memory_again(
    writer: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "MEMORY_LIMIT_BYTES", 450)
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    blocks = [append(writer, number) for number in range(10)]
    for block in blocks[:2]:
        backlog.put(block)
    taken = backlog.take(NO_TIME)
    for block in blocks[2:]:
        backlog.put(block)
    from_disk = take_all(backlog)
    assert ids(taken + from_disk) == ids(blocks)
    assert from_disk[0] is not blocks[2]
    after = append(writer, 11)
    backlog.put(after)
    assert backlog.take(NO_TIME)[0] is after


def test_an_overflow_before_anything_was_taken_loses_nothing(
    writer: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "MEMORY_LIMIT_BYTES", 150)
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    blocks = [append(writer, number) for number in range(4)]
    for block in blocks:
        backlog.put(block)
    assert ids(take_all(backlog)) == ids(blocks)


def test_what_was_taken_but_not_committed_comes_again(writer: JournalWriter, tmp_path: Path) -> None:
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    blocks = [append(writer, number) for number in range(6)]
    for block in blocks:
        backlog.put(block)
    assert ids(backlog.take(NO_TIME)) == ids(blocks)
    backlog.start_after(blocks[2].block_id)
    assert ids(take_all(backlog)) == ids(blocks[3:])


def test_a_block_that_is_in_the_file_but_not_yet_put_is_not_seen_and_then_comes_once(
    writer: JournalWriter, tmp_path: Path
) -> None:
    blocks = [append(writer, number) for number in range(3)]
    backlog = new_backlog(writer, tmp_path)
    early = append(writer, 3)
    backlog.start_after(None)
    assert ids(take_all(backlog)) == ids(blocks)
    assert backlog.take(NO_TIME) == []
    backlog.put(early)
    later = append(writer, 4)
    backlog.put(later)
    assert ids(take_all(backlog)) == ids([early, later])


def test_a_first_block_that_is_not_yet_put_is_not_seen_either(writer: JournalWriter, tmp_path: Path) -> None:
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    block = append(writer, 0)
    assert backlog.take(NO_TIME) == []
    backlog.put(block)
    assert ids(take_all(backlog)) == [block.block_id]


def test_a_block_that_became_unreadable_does_not_hold_up_the_others(writer: JournalWriter, tmp_path: Path) -> None:
    blocks = [append(writer, number) for number in range(5)]
    path = hour_path(tmp_path, 0, HOUR)
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 255
    path.write_bytes(damaged)
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert ids(take_all(backlog)) == ids(blocks[:4])
    assert backlog.taken_through_ns() == blocks[-1].last_received_ns


def test_closing_wakes_the_writer_that_waits(writer: JournalWriter, tmp_path: Path) -> None:
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    taken: list[list[Block]] = []
    thread = threading.Thread(target=lambda: taken.append(backlog.take(60.0)))
    thread.start()
    backlog.close()
    thread.join(10)
    assert taken == [[]]


def test_the_writer_stops_waiting_once_there_is_something_else_to_do(writer: JournalWriter, tmp_path: Path) -> None:
    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    done = threading.Event()
    taken: list[list[Block]] = []
    thread = threading.Thread(target=lambda: taken.append(backlog.take(60.0, unless=done.is_set)))
    thread.start()
    done.set()
    backlog.wake()
    thread.join(10)
    assert taken == [[]]
    assert backlog.take(60.0, unless=done.is_set) == []


@pytest.mark.parametrize("memory_limit", [1, 700, 3000, 1 << 30])
def test_nothing_is_lost_repeated_or_reordered_while_one_puts_and_one_takes(
    writer: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: int
) -> None:
    monkeypatch.setattr(backlog_module, "MEMORY_LIMIT_BYTES", memory_limit)
    monkeypatch.setattr(backlog_module, "BATCH_BLOCKS", 5)
    count, step_ns = 400, 3 * HOUR_NS // 400  # over three hours, so over several files
    made: list[int] = []

    def produce() -> None:
        for number in range(count):
            at_ns = START_NS + number * step_ns
            block = writer.append([at_ns], [0], [False], [bytes(number % 300)])
            made.append(block.block_id)
            backlog.put(block)
        backlog.close()

    backlog = new_backlog(writer, tmp_path)
    backlog.start_after(None)
    producer = threading.Thread(target=produce)
    producer.start()
    taken: list[int] = []
    rounds = 0
    while len(taken) < count:
        rounds += 1
        assert rounds < 100_000
        blocks = backlog.take(0.05)
        if rounds % 11 == 0 and blocks:  # a commit failed: all of the batch is wanted again
            backlog.start_after(taken[-1] if taken else None)
            continue
        taken += ids(blocks)
        if rounds % 7 == 0:  # a slow commit
            ahead = min(len(taken) + 15, count)
            until(lambda ahead=ahead: len(made) >= ahead)
    producer.join(10)
    assert taken == made
    assert backlog.take(NO_TIME) == []


def test_blocks_that_cannot_be_read_are_told_with_what_stands_around_them(
    writer: JournalWriter, tmp_path: Path
) -> None:
    for number in range(10):
        append(writer, number, size=1000)
    path = hour_path(tmp_path, 0, HOUR)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"rotten")
    told: list[tuple[int, int, str]] = []
    backlog = Backlog(tmp_path, 0, writer.last_block_id, writer.last_received_ns, lambda *facts: told.append(facts))
    backlog.start_after(None)
    taken = take_all(backlog)
    assert len(taken) == 9
    [(since_ns, until_ns, where)] = told
    assert until_ns - since_ns == 2 * SECOND_NS
    assert since_ns in {block.last_received_ns for block in taken}
    assert str(path) in where


class Damaged:
    """A journal of which parts are lost, and what a backlog tells of them."""

    def __init__(self, writer: JournalWriter, directory: Path) -> None:
        self.told: list[tuple[int, int, str]] = []
        self._writer = writer
        self._directory = directory

    def backlog(self) -> Backlog:
        last_id, last_ns = self._writer.last_block_id, self._writer.last_received_ns
        return Backlog(self._directory, 0, last_id, last_ns, lambda *facts: self.told.append(facts))

    def spoil(self, block: Block) -> None:
        """Change a byte of the block's payload on disk."""
        path = hour_path(self._directory, 0, block.hour)
        with path.open("r+b") as file:
            messages = iter_messages(file.fileno(), 0, path.stat().st_size)
            end = next(message.end for message in messages if message.block_id == block.block_id)
            file.seek(end - 20)
            byte = file.read(1)
            file.seek(end - 20)
            file.write(bytes([byte[0] ^ 255]))

    @property
    def spans(self) -> list[tuple[int, int]]:
        return [(since_ns, until_ns) for since_ns, until_ns, _ in self.told]


@pytest.fixture
def damaged(writer: JournalWriter, tmp_path: Path) -> Damaged:
    return Damaged(writer, tmp_path)


def span(before: Block, after: Block) -> tuple[int, int]:
    return before.last_received_ns, after.first_received_ns


def test_a_gap_after_the_last_committed_block_begins_there(writer: JournalWriter, damaged: Damaged) -> None:
    blocks = [append(writer, number) for number in range(5)]
    damaged.spoil(blocks[2])
    backlog = damaged.backlog()
    backlog.start_after(blocks[1].block_id, blocks[1].last_received_ns)
    assert ids(take_all(backlog)) == ids(blocks[3:])
    assert damaged.spans == [span(blocks[1], blocks[3])]


def test_a_gap_before_everything_begins_with_its_hour(writer: JournalWriter, damaged: Damaged) -> None:
    blocks = [append(writer, number) for number in range(10, 13)]
    damaged.spoil(blocks[0])
    backlog = damaged.backlog()
    backlog.start_after(None)
    assert ids(take_all(backlog)) == ids(blocks[1:])
    assert damaged.spans == [(START_NS, blocks[1].first_received_ns)]


def test_a_gap_after_blocks_from_memory_begins_with_the_last_of_them(
    writer: JournalWriter, damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "MEMORY_LIMIT_BYTES", 150)
    first = append(writer, 0)
    backlog = damaged.backlog()
    backlog.start_after(None)
    assert ids(take_all(backlog)) == [first.block_id]
    blocks = [append(writer, number) for number in range(1, 5)]
    backlog.put(blocks[0])
    assert ids(backlog.take(NO_TIME)) == ids(blocks[:1])
    damaged.spoil(blocks[1])
    for block in blocks[1:]:
        backlog.put(block)
    assert ids(take_all(backlog)) == ids(blocks[2:])
    assert damaged.spans == [span(blocks[0], blocks[2])]


def test_damage_among_stored_blocks_is_no_gap(writer: JournalWriter, damaged: Damaged) -> None:
    blocks = [append(writer, number) for number in range(6)]
    damaged.spoil(blocks[1])
    damaged.spoil(blocks[3])
    backlog = damaged.backlog()
    backlog.start_after(blocks[2].block_id, blocks[2].last_received_ns)
    assert ids(take_all(backlog)) == ids(blocks[4:])
    backlog.start_after(blocks[4].block_id, blocks[4].last_received_ns)
    assert ids(take_all(backlog)) == ids(blocks[5:])
    assert damaged.spans == [span(blocks[2], blocks[4])]


def test_damage_is_told_once_however_often_it_is_met(writer: JournalWriter, damaged: Damaged) -> None:
    blocks = [append(writer, number) for number in range(4)]
    damaged.spoil(blocks[1])
    damaged.spoil(blocks[3])
    backlog = damaged.backlog()
    for _ in range(3):
        backlog.start_after(blocks[0].block_id, blocks[0].last_received_ns)
        assert ids(take_all(backlog)) == [blocks[2].block_id]
    assert damaged.spans == [span(blocks[0], blocks[2]), span(blocks[2], blocks[3])]


def test_damage_before_a_block_that_is_not_yet_put_is_told(writer: JournalWriter, damaged: Damaged) -> None:
    blocks = [append(writer, number) for number in range(3)]
    damaged.spoil(blocks[2])
    backlog = damaged.backlog()
    early = append(writer, 3)
    backlog.start_after(None)
    assert ids(take_all(backlog)) == ids(blocks[:2])
    assert damaged.spans == [span(blocks[1], early)]
    backlog.put(early)
    assert ids(take_all(backlog)) == [early.block_id]
    assert len(damaged.told) == 1


def test_a_file_that_was_deleted_before_its_blocks_were_stored_is_told(
    writer: JournalWriter, damaged: Damaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "MEMORY_LIMIT_BYTES", 1)
    backlog = damaged.backlog()
    backlog.start_after(None)
    assert backlog.take(NO_TIME) == []
    blocks = [append(writer, hour * 3600 + number) for hour in range(4) for number in range(3)]
    for block in blocks:
        backlog.put(block)
    for gone in (blocks[3], blocks[6]):
        hour_path(tmp_path, 0, gone.hour).unlink()
    assert ids(take_all(backlog)) == ids(blocks[:3] + blocks[9:])
    [(since_ns, until_ns, where)] = damaged.told
    assert (since_ns, until_ns) == span(blocks[2], blocks[9])
    for gone in (blocks[3], blocks[6]):
        assert f"{hour_path(tmp_path, 0, gone.hour)}: the last blocks of the hour are gone" in where


def test_the_newest_file_deleted_while_its_blocks_waited_is_told(
    writer: JournalWriter, damaged: Damaged, tmp_path: Path
) -> None:
    blocks = [append(writer, number) for number in (0, 1, 3600, 3601)]
    backlog = damaged.backlog()
    hour_path(tmp_path, 0, blocks[2].hour).unlink()
    backlog.start_after(blocks[0].block_id, blocks[0].last_received_ns)
    assert ids(take_all(backlog)) == [blocks[1].block_id]
    assert damaged.spans == [span(blocks[1], blocks[3])]


def test_a_deleted_file_in_which_an_earlier_process_committed_last_is_told(
    writer: JournalWriter, damaged: Damaged, tmp_path: Path
) -> None:
    blocks = [append(writer, number) for number in (0, 1, 3600)]
    backlog = damaged.backlog()
    hour_path(tmp_path, 0, HOUR).unlink()
    for _ in range(2):
        backlog.start_after(blocks[0].block_id, blocks[0].last_received_ns)
        assert ids(take_all(backlog)) == [blocks[2].block_id]
    [(since_ns, until_ns, where)] = damaged.told
    assert (since_ns, until_ns) == span(blocks[0], blocks[2])
    assert where == f"{hour_path(tmp_path, 0, HOUR)} is gone"


def test_a_deleted_file_whose_blocks_were_all_stored_is_no_gap(
    writer: JournalWriter, damaged: Damaged, tmp_path: Path
) -> None:
    backlog = damaged.backlog()
    backlog.start_after(None)
    blocks = [append(writer, number) for number in (0, 1)]
    for block in blocks:
        backlog.put(block)
    assert ids(take_all(backlog)) == ids(blocks)
    hour_path(tmp_path, 0, HOUR).unlink()
    later = append(writer, 3600)
    backlog.put(later)
    backlog.start_after(blocks[1].block_id, blocks[1].last_received_ns)
    assert ids(take_all(backlog)) == [later.block_id]
    assert damaged.told == []
