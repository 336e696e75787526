"""Journals to read and damage."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key

Append = Callable[..., Block]


@pytest.fixture
def start_ns() -> int:
    """09:00 IST of a trading day."""
    return parse_hour_key("2026-11-20T09:00")


@pytest.fixture
def append(start_ns: int) -> Append:
    """Appends a block of small messages, the i-th of a journal."""

    def append(writer: JournalWriter, i: int, at_ns: int | None = None, size: int = 16) -> Block:
        first_ns = start_ns + i * 50_000_000 if at_ns is None else at_ns
        payloads = [bytes([i % 256, k]) * (size // 2) for k in range(i % 4 + 1)]
        n = len(payloads)
        return writer.append([first_ns + k * 1000 for k in range(n)], [i % 5] * n, [False] * n, payloads)

    return append


@pytest.fixture
def journal(tmp_path: Path, append: Append, start_ns: int) -> tuple[Path, list[Block]]:
    """Five blocks at 09:00 IST, and one at 10:00 that seals their file."""
    with closing(JournalWriter(tmp_path, 0)) as writer:
        blocks = [append(writer, i) for i in range(5)]
        blocks.append(append(writer, 5, start_ns + HOUR_NS))
    return tmp_path, blocks


@pytest.fixture
def same_block() -> Callable[[Block, Block], bool]:
    """Whether two blocks hold the same."""

    def same(a: Block, b: Block) -> bool:
        return (
            a.block_id == b.block_id
            and a.payload == b.payload
            and a.received_ns.tolist() == b.received_ns.tolist()
            and a.connection.tolist() == b.connection.tolist()
            and a.text.tolist() == b.text.tolist()
            and a.offsets.tolist() == b.offsets.tolist()
        )

    return same
