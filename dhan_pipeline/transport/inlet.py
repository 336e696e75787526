"""The end of the lanes at a worker: takes messages, and acknowledges or buries them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

#: Messages that may be taken and not yet acknowledged, of each lane.
PREFETCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message that was taken and is to be acknowledged or buried."""

    lane: int
    body: bytes
    tries: int
    """How often it was delivered before, to any worker."""

    async def ack(self) -> None:
        """Say that it is done: it leaves the queue. Raises BrokerError where the lane is not consumed any more."""
        raise NotImplementedError


class Inlet:
    """A connection that consumes lanes. Once it is lost it is of no more use: open another.

    What is neither acknowledged nor buried then goes back to its place in the queue, for the next consumer.
    """

    @property
    def lost(self) -> str | None:
        """Why the connection, or the consumption of a lane, has ended; None as long as it has not."""
        raise NotImplementedError

    async def consume(self, lane: int) -> None:
        """Begin to take a lane's messages. Of all that consume a lane one gets its messages. Raises BrokerError."""
        raise NotImplementedError

    async def cancel(self, lane: int) -> None:
        """Take no more of a lane's messages. What was taken and is not acknowledged goes back, in order."""
        raise NotImplementedError

    async def take(self, at_most: int, timeout_s: float) -> list[Delivery]:
        """Wait for a message, at most that long; then all that are here, in the order of each lane. Empty: none came.

        Raises BrokerError once the connection is lost.
        """
        raise NotImplementedError

    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Move a message to the dead letters, with the reason. It is confirmed there before it leaves its lane.

        Raises BrokerError.
        """
        raise NotImplementedError


@asynccontextmanager
async def inlet(url: str, prefetch: int = PREFETCH) -> AsyncIterator[Inlet]:
    """A connection to the broker, whose exchanges and queues are declared; consumes nothing yet. Raises BrokerError."""
    raise NotImplementedError
    yield
