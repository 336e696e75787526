"""What workers could not use: listed, and put back into its lanes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage

from dhan_pipeline.transport.broker import (
    DEAD,
    DELIVERY_LIMIT,
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
    queue_name,
)


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
    async with _channel(url) as channel:
        # What is taken here goes back to its place when the channel closes.
        return [_read(message) async for message in _messages(channel, limit)]


async def redrive_dead_letters(url: str) -> int:
    """Put the dead letters of this moment back into their lanes, and say how many.

    Each is confirmed in its lane before it leaves the dead letters: what is interrupted may double some, which workers
    then skip, and loses none. What belongs to no lane stays. Raises BrokerError, QueueFullError where a lane is full.
    """
    moved = 0
    async with _channel(url) as channel:
        async for message in _messages(channel):
            lane = _read(message).lane
            if queue_name(lane) not in QUEUES:
                continue
            (outcome,) = await outcomes(publish(channel, message.body, EXCHANGE, lane))
            if is_refusal(outcome):
                raise QueueFullError((lane,))
            if isinstance(outcome, BaseException):
                raise BrokerError(in_words(outcome)) from outcome
            assert message.delivery_tag is not None
            await answers(channel.basic_ack(message.delivery_tag))
            moved += 1
    return moved


@asynccontextmanager
async def _channel(url: str) -> AsyncIterator[AbstractChannel]:
    async with connected(url, "dead letters") as connection:
        (channel,) = await answers(connection.channel(on_return_raises=True))
        await declare(channel)
        yield channel


async def _messages(channel: AbstractChannel, limit: int | None = None) -> AsyncIterator[DeliveredMessage]:
    """Those that are there now, oldest first, taken but not acknowledged."""
    (queue,) = await answers(channel.queue_declare(DEAD, passive=True))
    for _ in range(queue.message_count if limit is None else min(queue.message_count, limit)):
        (message,) = await answers(channel.basic_get(DEAD))
        if message.delivery_tag is None:  # somebody else has taken the rest
            return
        yield message


def _read(message: DeliveredMessage) -> DeadLetter:
    headers: dict[str, Any] = dict(message.header.properties.headers or {})
    # Who buries a message is not bound to write what we do: the queue is open to people with other tools.
    deaths = headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    if death.get("reason") == "delivery_limit":
        reason = f"It was delivered more than {DELIVERY_LIMIT} times, and whoever took it ended without a word."
    else:
        reason = str(headers.get("reason") or death.get("reason") or "It says no reason.")
    tries, worker, key = headers.get("tries"), headers.get("worker"), str(message.routing_key)
    return DeadLetter(
        lane=int(key) if key.isdecimal() else 0,
        body=message.body,
        reason=reason,
        tries=tries if isinstance(tries, int) else None,
        died=_time(headers.get("died") or death.get("time")),
        worker=worker if isinstance(worker, str) else None,
    )


def _time(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    return value if isinstance(value, datetime) else None
