import asyncio
from contextlib import suppress
from itertools import count

import pika
import pytest

from dhan_pipeline.transport import broker
from dhan_pipeline.transport.broker import BrokerError, QueueFullError
from dhan_pipeline.transport.inlet import inlet
from dhan_pipeline.transport.outlet import Depths, Outlet, outlet
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.rabbitmq import Node


async def publish_on(end: Outlet, sent: list[bytes]) -> None:
    """Publish large bodies to lane 2, and small ones to lane 3, until that fails; the last one is the body that did."""
    for number in range(1000):
        sent.append(b"%d " % number * 3000)
        await end.publish([None, sent[-1], b"small"])


async def all_of_lane_1(url: str, at_least: int) -> list[bytes]:
    """Its bodies, from a broker that starts, and may be refusing still."""
    async with asyncio.timeout(30):
        while True:
            bodies: list[bytes] = []
            with suppress(BrokerError):
                async with inlet(url, prefetch=1000) as worker:
                    await worker.consume(1)
                    while len(bodies) < at_least:
                        bodies += [delivery.body for delivery in await worker.take(1000, 5)]
                    return bodies


async def test_each_lane_gets_its_body(rabbitmq_url: str) -> None:
    async with outlet(rabbitmq_url) as end, inlet(rabbitmq_url) as worker:
        await end.publish([b"one", b"two", None])
        assert await end.depths() == Depths(ready=(1, 1, 0), consumers=(0, 0, 0), dead_letters=0)
        for lane in (1, 2, 3):
            await worker.consume(lane)
        got = [*await worker.take(1, 5), *await worker.take(1, 5)]
        assert sorted((delivery.lane, delivery.body, delivery.tries) for delivery in got) == [
            (1, b"one", 0),
            (2, b"two", 0),
        ]
        assert await end.depths() == Depths(ready=(0, 0, 0), consumers=(1, 1, 1), dead_letters=0)


async def test_what_was_confirmed_is_there_after_the_broker_was_killed_in_the_middle(
    rabbitmq: Node, rabbitmq_url: str
) -> None:
    confirmed = 0
    async with outlet(rabbitmq_url) as end, inlet(rabbitmq_url) as worker:
        await worker.consume(2)

        async def publish() -> None:
            nonlocal confirmed
            for number in count():
                await end.publish([b"%d " % number * 3000, None, None])
                confirmed += 1

        publishing = asyncio.create_task(publish())
        await until(lambda: confirmed >= 20)
        rabbitmq.kill()
        with pytest.raises(BrokerError) as raised:
            await publishing
        assert str(raised.value) == "The connection to RabbitMQ is lost."
        with pytest.raises(BrokerError, match="is lost"):
            await worker.take(1, 5)
        assert worker.lost == "The connection to RabbitMQ is lost."
        with pytest.raises(BrokerError):
            await end.depths()
    rabbitmq.start()
    bodies = await all_of_lane_1(rabbitmq_url, confirmed)
    # The one that was on its way may be there, too.
    assert [int(body.split()[0]) for body in bodies] == list(range(len(bodies)))
    assert len(bodies) in (confirmed, confirmed + 1)


async def test_a_full_queue_refuses_and_drops_nothing(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "LANE_BYTES", 100_000)
    sent: list[bytes] = []
    async with outlet(rabbitmq_url) as end, inlet(rabbitmq_url, prefetch=1000) as worker:
        with pytest.raises(QueueFullError) as raised:
            await publish_on(end, sent)
        assert raised.value.lanes == (2,)
        assert "no more for lane 2: its queue is full, since the workers are behind." in str(raised.value)
        body = sent.pop()
        # The refused body alone is published again, once a worker has taken what was there.
        assert (await end.depths()).ready == (0, len(sent), len(sent) + 1)
        await worker.consume(2)
        got: list[bytes] = []
        while len(got) < len(sent):
            for delivery in await worker.take(1000, 5):
                got.append(delivery.body)
                await delivery.ack()
        async with asyncio.timeout(20):
            while True:
                try:
                    await end.publish([None, body, None])
                    break
                except QueueFullError:  # it has not noticed yet that there is room
                    await asyncio.sleep(0.01)
        got += [delivery.body for delivery in await worker.take(1000, 5)]
        assert got == [*sent, body]


async def test_a_queue_that_somebody_has_deleted_is_an_error_and_no_loss(rabbitmq_url: str) -> None:
    async with outlet(rabbitmq_url) as end, inlet(rabbitmq_url) as worker:
        await worker.consume(2)
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
            connection.channel().queue_delete("dhan.blocks.2")
        with pytest.raises(BrokerError, match="has no queue for a message: somebody has deleted it"):
            await end.publish([b"1", b"2", b"3"])
        with pytest.raises(BrokerError, match="has ended lane 2: somebody has deleted its queue"):
            await worker.take(1, 5)
    async with outlet(rabbitmq_url) as end:
        await end.publish([b"1", b"2", b"3"])
        assert (await end.depths()).ready == (2, 1, 2)


async def test_a_broker_that_is_low_on_memory_is_told_of_instead_of_waited_for(
    rabbitmq: Node, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "ANSWER_S", 1.0)
    monkeypatch.setattr(broker, "_CLOSE_S", 0.2)
    try:
        async with outlet(rabbitmq_url) as end:
            rabbitmq.control("set_vm_memory_high_watermark", "0.000001")
            with pytest.raises(BrokerError, match="RabbitMQ is low on memory or disk, and has taken no messages for"):
                await publish_on(end, [])
    finally:
        rabbitmq.control("set_vm_memory_high_watermark", "0.4")
    async with outlet(rabbitmq_url) as end:
        await end.publish([b"1", b"2", b"3"])
