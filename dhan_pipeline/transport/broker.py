"""RabbitMQ as both ends of the lanes see it: connecting, what goes wrong in words, exchanges and queues.

`outlet` is the end of the capture, `inlet` that of a worker, `dead_letters` what workers could not use.

The client is aiormq, which aio-pika is made of: one layer less, and a connection whose peer reads no more can be cut,
without which closing it waits forever. Nothing here connects again by itself: whoever uses a connection opens the next.
"""

import asyncio
import logging
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiormq import (
    AMQPError,
    ChannelClosed,
    ChannelInvalidStateError,
    ChannelPreconditionFailed,
    Connection,
    ConnectionClosed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
    TransportFactory,
    spec,
)
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory
from yarl import URL

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings
from dhan_pipeline.transport.lanes import FIRST_LANE, LANES

#: Bodies of the lanes go to this exchange; the routing key is the lane's number.
EXCHANGE = "dhan.blocks"

#: The exchange and the queue of dead letters; the routing key is the number of the lane that they come from.
DEAD = "dhan.dead"

#: Bytes that wait in a lane. That is six minutes of 20,000 ticks a second in three lanes, hours of a usual day; and it
#: is disk that the broker needs. What is more than that waits in the capture's journal, which is made for it.
LANE_BYTES = 256 << 20

#: Deliveries after which a message is a dead letter by itself: what ends every worker that takes it. Each end of a
#: worker, of whatever cause, counts for all that it held, so a few would bury what is only near by.
DELIVERY_LIMIT = 20

#: For dead letters, which count as delivered when they are listed. RabbitMQ 4 would drop them after 20.
_NO_LIMIT = 1_000_000

CONNECT_S = 10.0

#: RabbitMQ notices a worker that vanished after two of these, and gives its messages to another.
HEARTBEAT_S = 10

#: Longest wait for an answer, such as the confirmation of a message. One takes milliseconds.
ANSWER_S = 20.0

_CLOSE_S = 2.0

_PERSISTENT = 2

# They tell each failure with a traceback; it is told here in a sentence.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)


class BrokerError(PipelineError):
    """RabbitMQ is away, refuses, or takes nothing. One sentence, never with a password."""


class QueueFullError(BrokerError):
    """Lanes have refused their bodies: the workers are behind. All other lanes have confirmed theirs."""

    def __init__(self, lanes: tuple[int, ...]) -> None:
        which = ", ".join(map(str, lanes))
        super().__init__(f"RabbitMQ takes no more for lane {which}: its queue is full, since the workers are behind.")
        self.lanes = lanes
        """What has refused."""


def queue_name(lane: int) -> str:
    """The queue of a lane."""
    return f"{EXCHANGE}.{lane}"


#: All queues.
QUEUES = (*map(queue_name, range(FIRST_LANE, FIRST_LANE + LANES)), DEAD)


def check_url(url: str) -> str:
    """The URL. Raises BrokerError for what is no amqp:// or amqps:// address, without quoting it."""
    try:
        parts = URL(url)
        usable = parts.scheme in ("amqp", "amqps") and bool(parts.host)
    except ValueError:
        usable = False
    if not usable:
        raise BrokerError(
            "RABBITMQ_URL is no address of RabbitMQ: it reads amqp://user:password@host:5672/vhost, with amqps:// for"
            " TLS, and special characters of the password are percent-encoded."
        )
    return url


def broker_url(settings: Settings) -> str:
    """The address of RabbitMQ. Raises BrokerError where none is set, and for what is none."""
    if settings.rabbitmq_url is None:
        raise BrokerError("RABBITMQ_URL is not set; it says where RabbitMQ is: amqp://user:password@host:5672/vhost.")
    return check_url(settings.rabbitmq_url.get_secret_value())


@asynccontextmanager
async def connected(url: str, who: str) -> AsyncIterator[AbstractConnection]:
    """A connection to the broker, closed with the context. `who` is what its operators see.

    Raises BrokerError where there is none to be had.
    """
    address = URL(check_url(url))
    if "heartbeat" not in address.query:
        address = address.update_query(heartbeat=HEARTBEAT_S)
    transport = _Transport()
    name = f"dhan-pipeline {who} on {socket.gethostname()}"
    try:
        connection = Connection(address, transport_factory=transport, client_properties={"connection_name": name})
    except ValueError as error:
        raise BrokerError("The cadata of RABBITMQ_URL is not base64.") from error
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.connect()
        except (AMQPError, OSError) as error:
            raise BrokerError(_why_not(error, address)) from error
        yield connection
    finally:
        await _close(connection, transport.writer)


async def declare(channel: AbstractChannel) -> None:
    """Make the exchanges and queues where there are none. Raises BrokerError where there are others of these names."""
    await answers(
        channel.exchange_declare(EXCHANGE, exchange_type="direct", durable=True),
        channel.exchange_declare(DEAD, exchange_type="fanout", durable=True),
    )
    lane = {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-max-length-bytes": LANE_BYTES,
        "x-overflow": "reject-publish",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": DEAD,
        "x-dead-letter-strategy": "at-least-once",
    }
    await _declare_queue(channel, DEAD, {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT})
    await answers(channel.queue_bind(DEAD, DEAD))
    for number in range(FIRST_LANE, FIRST_LANE + LANES):
        await _declare_queue(channel, queue_name(number), lane)
        await answers(channel.queue_bind(queue_name(number), EXCHANGE, routing_key=str(number)))


async def publish(
    channel: AbstractChannel, body: bytes, exchange: str, lane: int, headers: dict[str, Any] | None = None
) -> None:
    """Return once the message is on disk. To be awaited by `answers` or `outcomes`: raises what aiormq does.

    The channel has confirms, and tells of messages that have no queue.
    """
    properties = spec.Basic.Properties(delivery_mode=_PERSISTENT, headers=headers)
    await channel.basic_publish(body, exchange=exchange, routing_key=str(lane), properties=properties, mandatory=True)


def is_refusal(outcome: object) -> bool:
    """Whether a queue that is full has refused the message."""
    return isinstance(outcome, DeliveryError) and isinstance(outcome.frame, spec.Basic.Nack)


async def answers(*asked: Awaitable[Any]) -> list[Any]:
    """What the broker answers, to all together. Raises BrokerError for the first that fails, or is late."""
    given = await outcomes(*asked)
    for outcome in given:
        if isinstance(outcome, BaseException):
            raise BrokerError(in_words(outcome)) from outcome
    return given


async def outcomes(*asked: Awaitable[Any]) -> list[Any]:
    """The same, with the errors in place of what failed. TimeoutError: no answer within `ANSWER_S`.

    A connection that ends lets some of those who wait for it see a cancellation. It is an error like others here,
    never one of the caller's task.
    """
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        await asyncio.wait(tasks, timeout=ANSWER_S)
        return [_outcome(task) for task in tasks]
    finally:
        for task in tasks:
            task.add_done_callback(_outcome)  # so that asyncio does not complain of an error that nobody saw
            task.cancel()


def in_words(error: BaseException) -> str:
    """What ended something on a connection that stood, as a sentence."""
    if isinstance(error, TimeoutError):
        return f"RabbitMQ has not answered for {ANSWER_S:.0f} s."
    if isinstance(error, PublishError):
        return "RabbitMQ has no queue for a message: somebody has deleted it or its binding. Both are made anew."
    if isinstance(error, DeliveryError):
        return "RabbitMQ has refused a message."
    said = " ".join(str(part) for part in error.args if part)
    if isinstance(error, ChannelClosed | ConnectionClosed) and said:
        return f"RabbitMQ has ended it: {said.rstrip('.')}."
    return "The connection to RabbitMQ is lost."


class _Transport(TransportFactory):
    """TCP or TLS as the scheme says, remembered."""

    writer: StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[StreamReader, StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self.writer = await factory.create(url, **kwargs)
        return reader, self.writer


async def _close(connection: Connection, writer: StreamWriter | None) -> None:
    """End the connection; cut it where that takes long, such as when the broker reads no more."""
    closing = asyncio.ensure_future(connection.close())
    try:
        await asyncio.wait([closing], timeout=_CLOSE_S)
    finally:
        if not closing.done() and writer is not None:
            writer.transport.abort()
    await asyncio.wait([closing], timeout=_CLOSE_S)


async def _declare_queue(channel: AbstractChannel, name: str, arguments: Mapping[str, Any]) -> None:
    try:
        await answers(channel.queue_declare(name, durable=True, arguments=dict(arguments)))
    except BrokerError as error:
        if isinstance(error.__cause__, ChannelPreconditionFailed):
            raise BrokerError(
                f"RabbitMQ has a queue {name} with other properties: once it is empty, delete it, and it is made anew"
                f" ({error.__cause__.args[0]})."
            ) from error
        raise


def _outcome(task: asyncio.Future[Any]) -> Any:
    if not task.done():
        return TimeoutError()
    if task.cancelled():
        return ChannelInvalidStateError()
    return task.exception() or task.result()


def _why_not(error: BaseException, address: URL) -> str:
    """Why there is no connection, as a sentence."""
    place = f"{address.host}:{address.port or (5671 if address.scheme == 'amqps' else 5672)}"
    cause = error.__cause__ or error
    match error, cause:
        case ProbableAuthenticationError(), _:
            return "RabbitMQ refuses the user or the password of RABBITMQ_URL."
        case InvalidFrameError(), _ if "Connection.OpenOk" in str(error):
            return "RabbitMQ has no such virtual host as RABBITMQ_URL says, or the user may not use it."
        case _, ssl.SSLCertVerificationError():
            return (
                f"The certificate of RabbitMQ at {place} is not accepted: {cause.verify_message.rstrip('.')}."
                " RABBITMQ_URL names the authority to trust with ?cafile=…"
            )
        case ssl.SSLError() | FileNotFoundError() | PermissionError(), _:
            return "A file of certificates that RABBITMQ_URL names cannot be read, or holds none."
        case _, ssl.SSLError():
            return f"What answers at {place} does not speak TLS: amqps:// usually has port 5671, amqp:// 5672."
        case TimeoutError(), _:
            return f"RabbitMQ does not answer at {place}."
        case AMQPError(), OSError() if not isinstance(cause, AMQPError | ConnectionResetError):
            return f"RabbitMQ cannot be reached at {place}: {_reason(cause)}."
    return f"What answers at {place} is not RabbitMQ, or not for amqp://: amqps:// usually has port 5671, amqp:// 5672."


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    return error.strerror or type(error).__name__
