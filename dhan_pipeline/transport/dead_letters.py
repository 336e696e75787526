"""What workers could not use: listed, and put back into its lanes."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message of the dead-letter queue."""

    lane: int
    body: bytes
    reason: str
    """A worker's words, or that it was delivered too often."""
    tries: int | None
    """How often it was delivered before. None: unknown."""
    died: datetime | None
    """When, UTC."""
    worker: str | None
    """The host that gave it up. None: the broker did, since those that took it ended without a word."""


async def dead_letters(url: str, limit: int = 100) -> list[DeadLetter]:
    """The oldest dead letters; they stay where they are. Raises BrokerError."""
    raise NotImplementedError


async def redrive_dead_letters(url: str) -> int:
    """Put the dead letters of this moment back into their lanes, and say how many.

    Each is confirmed in its lane before it leaves the dead letters: what is interrupted may double some, which workers
    then skip, and loses none. Raises BrokerError, QueueFullError where a lane is full.
    """
    raise NotImplementedError
