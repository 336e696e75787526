"""Captures and workers as a person starts them, with RabbitMQ between them, while everything ends that can end."""

import asyncio
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import pika
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.ingest.rebuild import rebuild_hours
from dhan_pipeline.journal.reader import hours, read_blocks
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.transport.broker import EXCHANGE
from dhan_pipeline.transport.dead_letters import dead_letters, redrive_dead_letters
from dhan_pipeline.transport.lanes import LANES
from dhan_pipeline_tests.child import PROGRAM, Child, capture, environment, settled, until
from dhan_pipeline_tests.conservation import check
from dhan_pipeline_tests.ingest.feed import SUBSCRIBED, HandClock, prepare_capture, query
from dhan_pipeline_tests.ingest.lanes import assert_committed_in_order
from dhan_pipeline_tests.rabbitmq import Node

RATE = 20_000.0

#: Processes start meanwhile, and the broker; the machine may be busy.
soon = partial(until, within_s=90)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", database_url=database_url, dhan_token_file=tmp_path / "token.json"
    )
    prepare_capture(settings)
    return settings


@asynccontextmanager
async def worker(settings: Settings, rabbitmq_url: str) -> AsyncIterator[Child]:
    """A worker in a process of its own; killed where the test did not end it."""
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "worker", "--json"),
        stdout=PIPE,
        stderr=PIPE,
        env=environment(settings, "") | {"RABBITMQ_URL": rabbitmq_url},
        cwd=settings.data_dir.parent,
    )
    child = Child(process)
    try:
        yield child
    finally:
        if process.returncode is None:
            process.kill()
        await child.ended()


def lanes_of(workers: list[Child]) -> list[list[int]]:
    """The lanes of each worker, as it last said."""
    return [worker.last_status.get("lanes", []) for worker in workers]


def buried_by(workers: list[Child]) -> int:
    """Messages that they moved to the dead letters."""
    return sum(worker.last_status.get("buried", 0) for worker in workers)


def shared_by(workers: list[Child]) -> bool:
    """Whether each lane has one worker, and none of them has more than its share."""
    lanes = lanes_of(workers)
    share = -(-LANES // len(workers))
    return sorted(chain.from_iterable(lanes)) == [1, 2, 3] and max(map(len, lanes)) <= share


def held_up_by(child: Child) -> set[str]:
    """What the capture says of who has held up ticks of the last hours."""
    return {holder for seconds in child.last_status["waits"].values() for holder in seconds}


async def goes_on(database_url: str, seconds: float = 0.5) -> None:
    """Wait until so many seconds' ticks more are stored."""

    def stored() -> int:
        [(ticks,)] = query(database_url, "SELECT coalesce(sum(ticks), 0)::bigint FROM ingest_ledger")
        assert isinstance(ticks, int)
        return ticks

    enough = stored() + seconds * RATE
    await soon(lambda: stored() >= enough)


async def bodies(rabbitmq_url: str, count: int) -> list[tuple[str, bytes]]:
    """So many of the messages that pass now: (routing key, body)."""
    found: list[tuple[str, bytes]] = []
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as broker:
        channel = broker.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        for lane in range(1, LANES + 1):
            channel.queue_bind(queue, EXCHANGE, str(lane))

        def one_more() -> bool:
            method, _, body = channel.basic_get(queue, auto_ack=True)
            if method is not None:
                found.append((method.routing_key, body))
            return len(found) == count

        await soon(one_more)
    return found


def publish(rabbitmq_url: str, messages: list[tuple[str, bytes]]) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as broker:
        channel = broker.channel()
        channel.confirm_delivery()
        for routing_key, body in messages:
            channel.basic_publish(EXCHANGE, routing_key, body, mandatory=True)


@contextmanager
def nobody_commits(database_url: str) -> Iterator[connection]:
    """Whoever stores a block stands in the middle of its transaction: its ticks are there, its ledger row is not."""
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLE ingest_ledger IN SHARE MODE")
        yield conn


IN_THE_MIDDLE = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'EXECUTE add_books%%'
"""


async def test_nothing_is_lost_doubled_or_out_of_order_whatever_ends(
    settings: Settings, database_url: str, rabbitmq: Node, rabbitmq_url: str
) -> None:
    async with (
        DhanSimulator(SUBSCRIBED, rate=RATE / 10, record=True) as simulator,
        AsyncExitStack() as stack,
    ):

        async def another() -> Child:
            return await stack.enter_async_context(worker(settings, rabbitmq_url))

        child = await stack.enter_async_context(
            capture(settings, simulator.feed_url, TRANSPORT="rabbitmq", RABBITMQ_URL=rabbitmq_url)
        )
        workers = [await another() for _ in range(4)]
        # Three work, and one stands by.
        await soon(lambda: all(each.last_status for each in workers) and shared_by(workers))
        simulator.rate = RATE
        await goes_on(database_url)

        # What was delivered is delivered again, and between it comes what is no message.
        seen = await bodies(rabbitmq_url, 20)
        lane, body = seen[0]
        poison = body[:-1] + bytes([body[-1] ^ 1])
        publish(rabbitmq_url, [*seen[:10], (lane, poison), *seen[10:]])
        await soon(lambda: buried_by(workers) == 1)
        [letter] = await dead_letters(rabbitmq_url)
        assert (letter.lane, letter.body) == (int(lane), poison)
        assert "checksum" in letter.reason
        assert await redrive_dead_letters(rabbitmq_url) == 1
        await soon(lambda: buried_by(workers) == 2)
        await goes_on(database_url)

        # A worker is killed in the middle of a transaction; who stood by takes its lane.
        with nobody_commits(database_url):
            await soon(lambda: query(database_url, IN_THE_MIDDLE) == [(3,)])
            killed = next(each for each in workers if each.last_status["lanes"])
            workers.remove(killed)
            killed.process.kill()
            assert await killed.ended() == -signal.SIGKILL
        await soon(lambda: shared_by(workers))
        await goes_on(database_url)

        # The broker crashes.
        simulator.rate = RATE / 10
        rabbitmq.kill()
        await soon(lambda: held_up_by(child) == {"rabbitmq"})
        await asyncio.to_thread(rabbitmq.start)
        await soon(lambda: shared_by(workers))
        simulator.rate = RATE
        await goes_on(database_url, 1.0)

        # A worker is asked to end; the others have its lane.
        asked = workers.pop(0)
        asked.process.send_signal(signal.SIGTERM)
        assert await asked.ended() == 0
        await soon(lambda: shared_by(workers))
        await goes_on(database_url)

        simulator.rate = 0
        simulator.flush()
        await settled(child)
        child.process.send_signal(signal.SIGTERM)
        assert await child.ended() == 0
        assert simulator.skipped == 0
        parts = LANES * sum(1 for _ in read_blocks(settings.journal_dir, settings.capture))
        await soon(lambda: query(database_url, "SELECT count(*) FROM ingest_ledger") == [(parts,)])
        for each in workers:
            each.process.send_signal(signal.SIGTERM)
        assert [await each.ended() for each in workers] == [0, 0]
    assert not any("Traceback" in each.log for each in (child, asked, *workers))
    report = check(simulator.logs, settings, database_url)
    assert (report.problems, report.lost_in_gaps, report.rejected) == ([], 0, 0)
    assert_committed_in_order(database_url)
    assert_rows_are_those_of_the_journal(settings, database_url)


def assert_rows_are_those_of_the_journal(settings: Settings, database_url: str) -> None:
    """As a rebuild makes them, to the last bit."""
    later = HandClock(Clock().now_ns() + HOUR_NS)
    held = hours(settings.journal_dir, settings.capture)
    rebuilt = list(rebuild_hours(settings, database_url, held[0], held[-1], later, compare_only=True))
    assert rebuilt
    assert all(hour.same and hour.rows for hour in rebuilt)
