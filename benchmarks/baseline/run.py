"""Starts the replaced design's processes, says what they have stored and how late, and ends them."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pika
import psycopg2

from benchmarks.baseline.client import QUEUE
from benchmarks.baseline.worker import CREATE_TABLE, TABLE
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.store.engine import libpq_url
from dhan_pipeline.ticks import Mode

START_PATIENCE_S = 60.0
END_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Totals:
    """What was done since the start. The counts of two instants, subtracted, are those of the time between."""

    received: int
    """Messages that the client took from its sockets."""
    published: int
    """Ticks given to RabbitMQ."""
    stored: int
    """Ticks committed by all workers."""
    latency: LatencyHistogram
    """From the arrival at the client to the commit, of all ticks stored."""


class Baseline:
    """The running processes."""

    def __init__(self, client: Process, workers: list[Process]) -> None:
        self._client = client
        self._workers = workers

    @property
    def pids(self) -> dict[str, list[int]]:
        """Process ids by what the processes are: `client` and `workers`."""
        return {"client": [self._client.pid], "workers": [worker.pid for worker in self._workers]}

    async def totals(self) -> Totals:
        """As of now. Raises RuntimeError where a process has ended."""
        client, *workers = await asyncio.gather(*(_ask(process) for process in (self._client, *self._workers)))
        latency = LatencyHistogram()
        latency.counts = np.sum([worker["latency_counts"] for worker in workers], axis=0)
        return Totals(client["received"], client["published"], sum(worker["ticks"] for worker in workers), latency)


@asynccontextmanager
async def baseline(
    feed_url: str,
    client_id: str,
    token: str,
    tokens_and_modes: Mapping[int, Mode],
    database_url: str,
    rabbitmq_url: str,
    workers: int = 3,
) -> AsyncIterator[Baseline]:
    """The replaced design, connected, subscribed and consuming, over an empty queue and an empty table.

    Rows go to the table `baseline_ticks` of that database, which is made anew. The processes end with the context;
    what they have not stored by then is given up. Raises RuntimeError where one does not start.
    """
    stores_to = libpq_url(database_url)
    await asyncio.to_thread(_prepare, stores_to, rabbitmq_url)
    async with AsyncExitStack() as stack:
        storing = [
            await stack.enter_async_context(_process("worker", database_url=stores_to, rabbitmq_url=rabbitmq_url))
            for _ in range(workers)
        ]
        client = await stack.enter_async_context(
            _process(
                "client",
                feed_url=feed_url,
                client_id=client_id,
                token=token,
                subscriptions={str(instrument): str(mode) for instrument, mode in tokens_and_modes.items()},
                rabbitmq_url=rabbitmq_url,
            )
        )
        async with asyncio.timeout(START_PATIENCE_S):
            await asyncio.gather(*map(_hear, (client, *storing)))
        yield Baseline(client, storing)


def _prepare(database_url: str, rabbitmq_url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_delete(QUEUE)
        channel.queue_declare(QUEUE, durable=True)
    with closing(psycopg2.connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
        cursor.execute(CREATE_TABLE)


@asynccontextmanager
async def _process(module: str, **configuration: Any) -> AsyncIterator[Process]:
    """A process of this package. Its configuration, which holds the token, goes through its standard input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"benchmarks.baseline.{module}", stdin=PIPE, stdout=PIPE, limit=1 << 20
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(configuration).encode() + b"\n")
        yield process
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(END_PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ask(process: Process) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    return await _hear(process)


async def _hear(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the replaced design has ended")
    heard: dict[str, Any] = json.loads(line)
    return heard
