"""The end of the lanes at the capture: publishes, and knows what RabbitMQ has confirmed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass


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

    async def publish(self, bodies: Sequence[bytes | None]) -> None:
        """Put body `i` into lane `i + 1`, and return when RabbitMQ has all of them on disk. None: none for that lane.

        Raises QueueFullError where lanes have refused; the others have confirmed, so only what was refused is to be
        published again. Raises BrokerError where it is not known what has arrived: publish all again.
        """
        raise NotImplementedError

    async def depths(self) -> Depths:
        """What waits now. Raises BrokerError."""
        raise NotImplementedError


@asynccontextmanager
async def outlet(url: str) -> AsyncIterator[Outlet]:
    """A connection to the broker, whose exchanges and queues are declared. Raises BrokerError."""
    raise NotImplementedError
    yield
