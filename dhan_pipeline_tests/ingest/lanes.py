"""What a capture hands to RabbitMQ, made by hand; and workers in the tests' own process."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.by_source import Decode
from dhan_pipeline.feeds.dhan.decode import decode as decode_dhan
from dhan_pipeline.ingest.parts import split
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.ingest.worker import Worker
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.stretch import joined
from dhan_pipeline.settings import Settings
from dhan_pipeline.transport.message import Part
from dhan_pipeline_tests.ingest.feed import query


def parts_of(
    blocks: Iterable[Block], tokens: Sequence[int], in_run: int = 3, decode: Decode = decode_dhan
) -> list[list[Part]]:
    """The parts of blocks, so many blocks together: an entry a run, in it a part a lane."""
    processor = BlockProcessor(np.array(sorted(tokens), np.int64), decode)
    blocks = list(blocks)
    runs: list[list[Part]] = []
    for start in range(0, len(blocks), in_run):
        for stretch in joined(blocks[start : start + in_run]):
            decoded = processor.decode(stretch)
            before = processor.remembered(stretch, decoded)
            processor.process(stretch, decoded)
            follows = int(runs[-1][0].block_ids[-1]) if runs else 0
            runs.append([replace(part, follows=follows) for part in split(stretch, decoded, before)])
    return runs


class Working:
    """A worker that runs, and what it says."""

    def __init__(self, settings: Settings, rabbitmq_url: str, clock: Clock) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop = asyncio.Event()
        self.worker = Worker(settings, settings.database_url or "", rabbitmq_url, self.events.append, clock)

    @property
    def warnings(self) -> list[str]:
        """What it warned of, in order."""
        return [event["message"] for event in self.events if event["event"] == "warning"]


@asynccontextmanager
async def working(settings: Settings, rabbitmq_url: str, clock: Clock | None = None) -> AsyncIterator[Working]:
    """A worker, stopped in order at the end."""
    running = Working(settings, rabbitmq_url, clock or Clock())
    task = asyncio.create_task(running.worker.run(running.stop))
    try:
        yield running
    finally:
        running.stop.set()
        await task


def parts_stored(database_url: str) -> int:
    """Rows of the ledger."""
    [(count,)] = query(database_url, "SELECT count(*) FROM ingest_ledger")
    assert isinstance(count, int)
    return count


def assert_committed_in_order(database_url: str) -> None:
    """Within a lane, no transaction stored a block before one that an earlier transaction stored."""
    assert query(
        database_url,
        "SELECT count(*) FROM (SELECT block_id - lag(block_id) OVER (PARTITION BY capture, part "
        "ORDER BY xmin::text::bigint, block_id) AS step FROM ingest_ledger) AS steps WHERE step < 0",
    ) == [(0,)]
