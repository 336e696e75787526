import socket
from datetime import UTC, datetime, timedelta

import pika
import pytest

from dhan_pipeline.transport import broker
from dhan_pipeline.transport.broker import QueueFullError
from dhan_pipeline.transport.dead_letters import dead_letters, redrive_dead_letters
from dhan_pipeline.transport.inlet import inlet
from dhan_pipeline.transport.outlet import outlet
from dhan_pipeline_tests.child import until


async def bury(url: str, bodies: list[bytes | None], reason: str = "It cannot be read.") -> None:
    async with outlet(url) as end, inlet(url) as worker:
        await end.publish(bodies)
        for lane, body in enumerate(bodies, 1):
            if body is not None:
                await worker.consume(lane)
                (delivery,) = await worker.take(1, 10)
                await worker.bury(delivery, reason)


async def test_a_message_is_buried_with_its_reason_and_redriven_into_its_lane(rabbitmq_url: str) -> None:
    await bury(rabbitmq_url, [b"one", None, b"\0three\xff"])
    for _ in range(2):  # looking at them changes nothing
        first, second = await dead_letters(rabbitmq_url)
        assert (first.lane, first.body, second.lane, second.body) == (1, b"one", 3, b"\0three\xff")
        assert (first.reason, first.tries, first.worker) == ("It cannot be read.", 0, socket.gethostname())
        assert first.died is not None
        assert timedelta(0) <= datetime.now(UTC) - first.died < timedelta(minutes=1)
    assert await dead_letters(rabbitmq_url, limit=1) == [first]
    async with outlet(rabbitmq_url) as end, inlet(rabbitmq_url) as worker:
        depths = await end.depths()
        assert (depths.ready, depths.dead_letters) == ((0, 0, 0), 2)
        assert await redrive_dead_letters(rabbitmq_url) == 2
        depths = await end.depths()
        assert (depths.ready, depths.dead_letters) == ((1, 0, 1), 0)
        await worker.consume(3)
        (delivery,) = await worker.take(1, 10)
        assert (delivery.body, delivery.tries) == (b"\0three\xff", 0)
    assert await dead_letters(rabbitmq_url) == []
    assert await redrive_dead_letters(rabbitmq_url) == 0


async def test_a_reason_is_cut_and_holds_no_password(rabbitmq_url: str) -> None:
    await bury(rabbitmq_url, [b"body"], f"could not reach postgresql://u:only-for-us@host {'x' * 1000}")
    (letter,) = await dead_letters(rabbitmq_url)
    assert letter.reason.startswith("could not reach postgresql://u:***@host xxx")
    assert len(letter.reason) == 500


async def test_a_message_that_ends_every_worker_is_buried_by_the_broker(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "DELIVERY_LIMIT", 2)
    async with outlet(rabbitmq_url) as end:
        await end.publish([None, b"deadly", None])
        for tries in range(3):
            async with inlet(rabbitmq_url) as worker:
                await worker.consume(2)
                assert [delivery.tries for delivery in await worker.take(1, 10)] == [tries]
        dead = 0
        while dead == 0:
            dead = (await end.depths()).dead_letters
    (letter,) = await dead_letters(rabbitmq_url)
    assert (letter.lane, letter.body, letter.tries, letter.worker) == (2, b"deadly", None, None)
    assert letter.reason.endswith("times, and whoever took it ended without a word.")
    assert letter.died is not None
    assert await redrive_dead_letters(rabbitmq_url) == 1


async def test_a_redrive_into_a_full_lane_keeps_what_it_refuses(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "LANE_BYTES", 100_000)
    await bury(rabbitmq_url, [b"one", b"two", b"three"])
    async with outlet(rabbitmq_url) as end:
        for _ in range(1000):
            try:
                await end.publish([None, bytes(20_000), None])
            except QueueFullError:
                break
        with pytest.raises(QueueFullError) as raised:
            await redrive_dead_letters(rabbitmq_url)
        assert raised.value.lanes == (2,)
        assert [letter.body for letter in await dead_letters(rabbitmq_url)] == [b"two", b"three"]
        assert (await end.depths()).ready[0] == 1


async def test_what_somebody_else_has_put_among_the_dead_letters_is_shown_and_stays(rabbitmq_url: str) -> None:
    await bury(rabbitmq_url, [b"one"])
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        properties = pika.BasicProperties(headers={"tries": "many", "died": "long ago", "x-death": "no list"})
        connection.channel().basic_publish("dhan.dead", "elsewhere", b"stray", properties)
        await until(lambda: connection.channel().queue_declare("dhan.dead", passive=True).method.message_count == 2)
    _, stray = await dead_letters(rabbitmq_url)
    assert (stray.lane, stray.reason, stray.tries, stray.died) == (0, "It says no reason.", None, None)
    assert await redrive_dead_letters(rabbitmq_url) == 1
    assert [letter.body for letter in await dead_letters(rabbitmq_url)] == [b"stray"]
