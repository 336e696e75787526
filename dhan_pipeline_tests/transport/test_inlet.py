import pika
import pytest

from dhan_pipeline.transport import broker
from dhan_pipeline.transport.broker import BrokerError
from dhan_pipeline.transport.inlet import Delivery, Inlet, inlet
from dhan_pipeline.transport.outlet import outlet
from dhan_pipeline_tests.proxy import proxy


async def publish(url: str, count: int, lane: int = 1) -> list[bytes]:
    """Bodies 0 to count - 1 into a lane."""
    bodies = [b"%d" % number for number in range(count)]
    async with outlet(url) as end:
        for body in bodies:
            await end.publish([body if number == lane else None for number in (1, 2, 3)])
    return bodies


async def taken(worker: Inlet, count: int) -> list[Delivery]:
    """So many deliveries, when they have come."""
    got: list[Delivery] = []
    while len(got) < count:
        more = await worker.take(count - len(got), 10)
        assert more, f"{len(got)} of {count} came"
        got += more
    return got


async def test_messages_come_in_the_order_in_which_they_were_published(rabbitmq_url: str) -> None:
    bodies = await publish(rabbitmq_url, 300)
    async with inlet(rabbitmq_url) as worker:
        await worker.consume(1)
        got: list[Delivery] = []
        while len(got) < len(bodies):
            for delivery in await worker.take(7, 10):
                got.append(delivery)
                await delivery.ack()
        assert [delivery.body for delivery in got] == bodies
        assert await worker.take(1, 0) == []


async def test_no_more_messages_are_taken_than_asked_for(rabbitmq_url: str) -> None:
    await publish(rabbitmq_url, 30)
    async with inlet(rabbitmq_url, prefetch=10) as worker, outlet(rabbitmq_url) as end:
        await worker.consume(1)
        got = await taken(worker, 10)
        assert await worker.take(1, 0.1) == []
        assert (await end.depths()).ready == (20, 0, 0)
        await got[0].ack()
        assert [delivery.body for delivery in await taken(worker, 1)] == [b"10"]


async def test_one_worker_gets_a_lane_and_when_it_goes_the_next_one_takes_over_in_order(rabbitmq_url: str) -> None:
    bodies = await publish(rabbitmq_url, 20)
    async with inlet(rabbitmq_url, prefetch=10) as second:
        async with inlet(rabbitmq_url, prefetch=10) as first:
            await first.consume(1)
            await second.consume(1)
            for delivery in (await taken(first, 10))[:4]:
                await delivery.ack()
            await taken(first, 4)
            assert await second.take(1, 0.1) == []
        got = await taken(second, 10)
        assert [(delivery.body, delivery.tries) for delivery in got] == [
            (body, 1 if number < 14 else 0) for number, body in enumerate(bodies) if number in range(4, 14)
        ]


async def test_a_lane_that_is_cancelled_goes_back_to_its_place_and_others_go_on(rabbitmq_url: str) -> None:
    bodies = await publish(rabbitmq_url, 20)
    await publish(rabbitmq_url, 2, lane=3)
    async with inlet(rabbitmq_url, prefetch=10) as first, inlet(rabbitmq_url, prefetch=10) as second:
        await first.consume(1)
        held = await taken(first, 3)
        await held[0].ack()
        await first.cancel(1)
        with pytest.raises(BrokerError):
            await held[1].ack()
        assert await first.take(1, 0) == []
        await second.consume(1)
        assert [delivery.body for delivery in await taken(second, 10)] == bodies[1:11]
        await first.consume(3)
        assert [delivery.body for delivery in await taken(first, 2)] == [b"0", b"1"]
        await first.cancel(2)  # it never had that one
        assert first.lost is None


async def test_a_lane_may_be_consumed_again(rabbitmq_url: str) -> None:
    bodies = await publish(rabbitmq_url, 5)
    async with inlet(rabbitmq_url) as worker:
        for tries in range(3):
            await worker.consume(1)
            assert [(delivery.body, delivery.tries) for delivery in await taken(worker, 5)] == [
                (body, tries) for body in bodies
            ]
            await worker.cancel(1)


async def test_a_lane_that_cannot_be_left_is_a_lost_connection(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "_CLOSE_S", 0.1)
    monkeypatch.setattr(broker, "ANSWER_S", 0.2)
    async with proxy(rabbitmq_url) as between, inlet(between.url) as worker:
        await worker.consume(1)
        with between.black_hole():
            await worker.cancel(1)
        assert worker.lost == "RabbitMQ has not answered when lane 1 was left."


async def test_a_message_whose_number_of_deliveries_is_no_number_is_taken(rabbitmq_url: str) -> None:
    async with inlet(rabbitmq_url) as worker:
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as foreign:
            properties = pika.BasicProperties(headers={"x-delivery-count": "many"})
            foreign.channel().basic_publish(broker.EXCHANGE, "1", b"1", properties)
        await worker.consume(1)
        [delivery] = await taken(worker, 1)
        assert (delivery.body, delivery.tries) == (b"1", 0)
