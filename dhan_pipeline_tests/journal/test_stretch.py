from contextlib import closing
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dhan_pipeline.journal import stretch as module
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import JournalReader, hour_path, read_blocks, read_stretches
from dhan_pipeline.journal.stretch import Stretch, join, joined, merge
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS


def make_journal(journal_dir: Path, start_ns: int, hours: int = 1) -> list[Block]:
    """Blocks of one to twenty messages, empty, text and large ones among them."""
    random = Random(1)
    blocks = []
    with closing(JournalWriter(journal_dir, 0)) as writer:
        for hour in range(hours):
            for _ in range(60):
                count = random.randint(1, 20)
                times = sorted(start_ns + hour * HOUR_NS + random.randint(0, 10**9) for _ in range(count))
                payloads = [random.randbytes(random.choice([0, 1, 16, 162, 3000])) for _ in range(count)]
                text = [random.random() < 0.02 for _ in range(count)]
                blocks.append(writer.append(times, random.choices(range(256), k=count), text, payloads))
            blocks.append(writer.append([start_ns + hour * HOUR_NS], [0], [False], [b""]))
    return blocks


Message = tuple[int, int, bytes, bool]


def messages(found: Block | Stretch) -> list[Message]:
    parts = [found.payload[start:end] for start, end in pairwise(found.offsets.tolist())]
    return list(zip(found.received_ns.tolist(), found.connection.tolist(), parts, found.text.tolist(), strict=True))


def of_blocks(stretch: Stretch) -> list[tuple[int, list[Message]]]:
    """Id and messages of each block."""
    all_ = messages(stretch)
    bounds = pairwise(stretch.first_messages.tolist())
    return [(block_id, all_[first:end]) for block_id, (first, end) in zip(stretch.block_ids.tolist(), bounds)]  # noqa: B905


def as_written(blocks: list[Block]) -> list[tuple[int, list[Message]]]:
    return [(block.block_id, messages(block)) for block in blocks]


@pytest.mark.parametrize("count", [1, 2, 7, 61])
def test_a_stretch_is_its_blocks_whether_they_come_from_disk_or_from_memory(
    tmp_path: Path, start_ns: int, count: int
) -> None:
    blocks = make_journal(tmp_path, start_ns)
    stored = [message for _, message in JournalReader(tmp_path, 0).messages()]
    for at in range(0, len(blocks), count):
        some = blocks[at : at + count]
        for stretch in (merge(stored[at : at + count]), join(some)):
            assert of_blocks(stretch) == as_written(some)
            assert len(stretch.first_messages) == len(some) + 1
            assert (stretch.capture, stretch.hour, stretch.hour_ns) == (0, some[0].hour, start_ns)
            assert stretch.last_block_id == some[-1].block_id
            assert stretch.last_received_ns == some[-1].last_received_ns
            for name in ("received_ns", "connection", "text", "offsets"):
                assert getattr(stretch, name).dtype == getattr(blocks[0], name).dtype
            assert stretch.block_ids.dtype == stretch.first_messages.dtype == np.int64


@pytest.mark.parametrize("size", [1, 5000, 1 << 30])
def test_stretches_are_the_blocks_that_were_asked_for_and_none_reaches_into_another_hour(
    tmp_path: Path, start_ns: int, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "STRETCH_BYTES", size)
    blocks = make_journal(tmp_path, start_ns, hours=3)
    found = list(read_stretches(tmp_path, 0, after=blocks[4].block_id, until=blocks[-3].block_id))
    assert [block for part in found for block in of_blocks(part)] == as_written(blocks[5:-2])
    assert {part.hour_ns for part in found} == {start_ns + hour * HOUR_NS for hour in range(3)}
    if size > 5000:
        assert len(found) == 3


def test_stretches_reach_across_damage(tmp_path: Path, start_ns: int) -> None:
    blocks = make_journal(tmp_path, start_ns)
    offsets = [message.offset for _, message in JournalReader(tmp_path, 0).messages()]
    path = hour_path(tmp_path, 0, blocks[0].hour)
    data = bytearray(path.read_bytes())
    for at in (3, 20):
        data[offsets[at] + 200] ^= 255
    path.write_bytes(data)
    intact = list(read_blocks(tmp_path, 0))
    assert len(intact) == len(blocks) - 2
    [stretch] = read_stretches(tmp_path, 0)
    assert of_blocks(stretch) == as_written(intact)


def test_blocks_in_memory_are_joined_within_a_second_an_hour_and_up_to_the_next_text(
    tmp_path: Path, start_ns: int
) -> None:
    second = 1_000_000_000
    begins = [0, 0, second - 1, second, second + 5, 9 * second, HOUR_NS - 5, HOUR_NS, HOUR_NS + 1, HOUR_NS + 2]
    text = [False] * 8 + [True, False]
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [
            writer.append([start_ns + at, start_ns + at + 1], [0, 1], [False, is_text], [b"a", b"bc"])
            for at, is_text in zip(begins, text, strict=True)
        ]
    found = list(joined(blocks))
    assert [block for part in found for block in of_blocks(part)] == as_written(blocks)
    assert [len(part.block_ids) for part in found] == [3, 2, 1, 1, 1, 2]
    assert not list(joined([]))
