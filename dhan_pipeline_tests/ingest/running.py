"""A capture in the tests' own process, over a simulated exchange."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.ingest.run import Ingest
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.ingest.feed import query


class Running:
    """A capture that runs, and what it says."""

    def __init__(self, settings: Settings, clock: Clock, policy: FeedPolicy | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop = asyncio.Event()
        self.capture = Ingest(settings, settings.database_url or "", self.events.append, clock, policy)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def complete_hours(self) -> list[str]:
        """The hours that it told complete."""
        return [event["hour"] for event in self.of_kind("hour_complete")]


@asynccontextmanager
async def ingest(
    settings: Settings, clock: Clock | None = None, policy: FeedPolicy | None = None
) -> AsyncIterator[Running]:
    """A capture, stopped in order at the end."""
    running = Running(settings, clock or Clock(), policy)
    try:
        task = asyncio.create_task(running.capture.run(running.stop))
        try:
            yield running
        finally:
            running.stop.set()
            await task
    finally:
        running.capture.close()


def stored(database_url: str) -> tuple[int, int]:
    """Messages and packets in the ledger, less the note that the capture has started."""
    [(messages, packets)] = query(
        database_url, "SELECT coalesce(sum(messages), 1)::int, coalesce(sum(packets), 1)::int FROM ingest_ledger"
    )
    assert isinstance(messages, int)
    assert isinstance(packets, int)
    return messages - 1, packets - 1


def with_feed(settings: Settings, simulator: DhanSimulator) -> Settings:
    """The settings of a capture of this exchange."""
    return settings.model_copy(update={"dhan_feed_url": simulator.feed_url})
