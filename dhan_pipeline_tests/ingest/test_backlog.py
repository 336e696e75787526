import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.ingest import backlog as backlog_module
from dhan_pipeline.ingest.backlog import BATCH_BLOCKS, Backlog
from dhan_pipeline.journal.block import Block
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
