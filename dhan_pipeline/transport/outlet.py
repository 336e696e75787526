"""The end of the lanes at the capture: publishes, and knows what RabbitMQ has confirmed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiormq import ChannelNotFoundEntity
from aiormq.abc import AbstractChannel, AbstractConnection

from dhan_pipeline.transport.broker import (
    ANSWER_S,
    EXCHANGE,
    QUEUES,
    BrokerError,
    QueueFullError,
    answers,
    connected,
    declare,
    in_words,
    is_refusal,
    outcomes,
    publish,
)
from dhan_pipeline.transport.lanes import FIRST_LANE


@dataclass(frozen=True, slots=True)
class Depths:
    """What waits in the broker."""

    ready: tuple[int, ...]
    """Messages in each lane that no worker has taken yet; lane 1 first."""
    consumers: tuple[int, ...]
    """Workers that listen to each lane. One of a lane is active."""
    dead_letters: int


class Outlet:
    """A connection that publishes. After any BrokerError but QueueFullError it is of no more use: open another."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel

    async def publish(self, bodies: Sequence[bytes | None]) -> None:
        """Put body `i` into lane `i + 1`, and return when RabbitMQ has all of them on disk. None: none for that lane.

        Raises QueueFullError where lanes have refused; the others have confirmed, so only what was refused is to be
        published again. Raises BrokerError where it is not known what has arrived: publish all again.
        """
        lanes = {lane: body for lane, body in enumerate(bodies, FIRST_LANE) if body is not None}
        given = await outcomes(*(publish(self._channel, body, EXCHANGE, lane) for lane, body in lanes.items()))
        refused = tuple(lane for lane, outcome in zip(lanes, given, strict=True) if is_refusal(outcome))
        for outcome in given:
            if isinstance(outcome, BaseException) and not is_refusal(outcome):
                raise BrokerError(await self._why(outcome)) from outcome
        if refused:
            raise QueueFullError(refused)

    async def depths(self) -> Depths:
        """What waits now. Raises BrokerError."""
        declared = await answers(*(self._channel.queue_declare(name, passive=True) for name in QUEUES))
        *lanes, dead = ((ok.message_count or 0, ok.consumer_count or 0) for ok in declared)
        ready, consumers = zip(*lanes, strict=True)
        return Depths(ready, consumers, dead[0])

    async def _why(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError) and await self._blocked():
            return f"RabbitMQ is low on memory or disk, and has taken no messages for {ANSWER_S:.0f} s."
        return in_words(error)

    async def _blocked(self) -> bool:
        """Whether the broker has said that it takes none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await self._connection.ready()  # at once, unless it has
            return False
        return True


async def version_and_depths(url: str) -> tuple[str, Depths | None]:
    """RabbitMQ's version, and what waits in it; None where nobody has made its queues yet. Changes nothing.

    Raises BrokerError.
    """
    async with connected(url, "looking on") as connection:
        version = connection.server_properties.get("version", b"")
        (channel,) = await answers(connection.channel())
        try:
            depths = await Outlet(connection, channel).depths()
        except BrokerError as error:
            if not isinstance(error.__cause__, ChannelNotFoundEntity):
                raise
            depths = None
    return version.decode() if isinstance(version, bytes) else str(version), depths


@asynccontextmanager
async def outlet(url: str) -> AsyncIterator[Outlet]:
    """A connection to the broker, whose exchanges and queues are declared. Raises BrokerError."""
    async with connected(url, "capture") as connection:
        (channel,) = await answers(connection.channel(on_return_raises=True))
        await declare(channel)
        yield Outlet(connection, channel)
