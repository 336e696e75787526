"""The end of the lanes at a worker: takes messages, and acknowledges or buries them."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

from dhan_pipeline.errors import redacted
from dhan_pipeline.transport.broker import (
    DEAD,
    BrokerError,
    answers,
    connected,
    declare,
    in_words,
    outcomes,
    publish,
    queue_name,
)

#: Messages that may be taken and not yet acknowledged, of each lane.
PREFETCH = 64

_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message that was taken and is to be acknowledged or buried."""

    lane: int
    body: bytes
    tries: int
    """How often it was delivered before, to any worker."""
    _channel: AbstractChannel
    _tag: int

    async def ack(self) -> None:
        """Say that it and all that its lane gave before are done: they leave the queue.

        Raises BrokerError where the lane is not consumed any more.
        """
        await answers(self._channel.basic_ack(self._tag, multiple=True))


class Inlet:
    """A connection that consumes lanes. Once it is lost it is of no more use: open another.

    What is neither acknowledged nor buried then goes back to its place in the queue, for the next consumer.
    """

    def __init__(self, connection: AbstractConnection, confirming: AbstractChannel, prefetch: int) -> None:
        self._connection = connection
        self._confirming = confirming
        self._prefetch = prefetch
        # A channel a lane: closing it gives back what was taken before another consumer becomes the active one.
        self._channels: dict[int, AbstractChannel] = {}
        self._here: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._lost: str | None = None
        confirming.closing.add_done_callback(partial(self._closed, None))

    @property
    def lost(self) -> str | None:
        """Why the connection, or the consumption of a lane, has ended; None as long as it has not."""
        return self._lost

    async def consume(self, lane: int) -> None:
        """Begin to take a lane's messages. Of all that consume a lane one gets its messages. Raises BrokerError."""
        (channel,) = await answers(self._connection.channel(publisher_confirms=False))
        self._channels[lane] = channel
        channel.closing.add_done_callback(partial(self._closed, lane))
        channel.on_consumer_cancel_callbacks.add(partial(self._cancelled, lane))
        await answers(channel.basic_qos(prefetch_count=self._prefetch))
        await answers(channel.basic_consume(queue_name(lane), partial(self._arrived, lane, channel)))

    async def cancel(self, lane: int) -> None:
        """Take no more of a lane's messages. What was taken and is not acknowledged goes back, in order."""
        channel = self._channels.pop(lane, None)
        if channel is not None:
            await outcomes(channel.close())
            if channel.number in self._connection.channels:
                # Else RabbitMQ might go on to give us what nobody takes, and give it to nobody else.
                self._lose(f"RabbitMQ has not answered when lane {lane} was left.")
        self._here = deque(delivery for delivery in self._here if delivery.lane != lane)

    async def take(self, at_most: int, timeout_s: float) -> list[Delivery]:
        """Wait for a message, at most that long; then all that are here, in the order of each lane. Empty: none came.

        Raises BrokerError once the connection is lost.
        """
        if not self._here and self._lost is None:
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        if self._lost is not None:
            raise BrokerError(self._lost)
        return [self._here.popleft() for _ in range(min(at_most, len(self._here)))]

    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Move a message to the dead letters, with the reason. It is confirmed there before it leaves its lane.

        Raises BrokerError.
        """
        headers = {
            "reason": redacted(reason)[:_LONGEST_REASON],
            "lane": delivery.lane,
            "tries": delivery.tries,
            "died": datetime.now(UTC).isoformat(timespec="seconds"),
            "worker": socket.gethostname(),
        }
        await answers(publish(self._confirming, delivery.body, DEAD, delivery.lane, headers))
        await delivery.ack()

    def _arrived(self, lane: int, channel: AbstractChannel, message: DeliveredMessage) -> None:
        if self._channels.get(lane) is not channel:
            return  # it is on its way back
        tries = (message.header.properties.headers or {}).get("x-delivery-count")
        assert message.delivery_tag is not None
        # Whoever publishes may write what he likes there.
        known = tries if isinstance(tries, int) else 0
        self._here.append(Delivery(lane, message.body, known, channel, message.delivery_tag))
        self._news.set()

    def _closed(self, lane: int | None, closing: "asyncio.Future[None]") -> None:
        if lane is None or lane in self._channels:
            error = None if closing.cancelled() else closing.exception()
            self._lose(in_words(error or ConnectionError()))

    def _cancelled(self, lane: int, _: object) -> None:
        self._lose(f"RabbitMQ has ended lane {lane}: somebody has deleted its queue. It is made anew.")

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._news.set()


@asynccontextmanager
async def inlet(url: str, prefetch: int = PREFETCH) -> AsyncIterator[Inlet]:
    """A connection to the broker, whose exchanges and queues are declared; consumes nothing yet. Raises BrokerError."""
    async with connected(url, "worker") as connection:
        (confirming,) = await answers(connection.channel(on_return_raises=True))
        await declare(confirming)
        yield Inlet(connection, confirming, prefetch)
