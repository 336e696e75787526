from contextlib import closing
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dhan_pipeline.journal import stretch as module
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import JournalReader, read_blocks, read_stretches
from dhan_pipeline.journal.stretch import Stretch, merge
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
                payloads = [random.randbytes(random.choice([0, 1, 16, 162, 3000])) for _ in range(count)]
                text = [random.random() < 0.2 for _ in range(count)]
                blocks.append(writer.append([start_ns + hour * HOUR_NS] * count, [0] * count, text, payloads))
            blocks.append(writer.append([start_ns + hour * HOUR_NS], [0], [False], [b""]))
    return blocks


def messages(found: Block | Stretch) -> list[tuple[bytes, bool]]:
    bounds = found.offsets.tolist()
    parts = [found.payload[start:end] for start, end in pairwise(bounds)]
    return list(zip(parts, found.text.tolist(), strict=True))


@pytest.mark.parametrize("count", [1, 2, 7, 61])
def test_a_stretch_has_the_messages_of_its_blocks(tmp_path: Path, start_ns: int, count: int) -> None:
    blocks = make_journal(tmp_path, start_ns)
    stored = [message for _, message in JournalReader(tmp_path, 0).messages()]
    for at in range(0, len(blocks), count):
        merged = merge(stored[at : at + count], start_ns)
        assert messages(merged) == [m for block in blocks[at : at + count] for m in messages(block)]
        assert merged.offsets.dtype == np.int64
        assert merged.text.dtype == np.bool_


@pytest.mark.parametrize("size", [1, 5000, 1 << 30])
def test_blocks_that_are_wanted_whole_stand_among_stretches_in_order(
    tmp_path: Path, start_ns: int, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "STRETCH_BYTES", size)
    blocks = make_journal(tmp_path, start_ns, hours=3)
    whole = {block.block_id for block in blocks if block.block_id % 5 == 0}
    last = blocks[-3]
    found = list(read_stretches(tmp_path, 0, after=blocks[4].block_id, until=last.block_id, whole=whole.__contains__))
    assert [m for part in found for m in messages(part)] == [m for block in blocks[5:-2] for m in messages(block)]
    assert [b.block_id for b in found if isinstance(b, Block)] == [
        block.block_id for block in blocks[5:-2] if block.block_id in whole
    ]
    hours = {part.hour_ns for part in found if isinstance(part, Stretch)}
    assert hours == {start_ns + hour * HOUR_NS for hour in range(3)}
    assert [b.block_id for b in read_stretches(tmp_path, 0, whole=lambda _: True) if isinstance(b, Block)] == [
        block.block_id for block in read_blocks(tmp_path, 0)
    ]
