"""The process that receives: websocket, parse, enrich, JSON, and a message a tick to RabbitMQ.

Started by `run` with its configuration as a line of JSON on standard input. It prints a line once all connections are
subscribed, answers each further line with its totals as one JSON object, and ends when standard input closes.

Packets are handled in the event loop, as they arrive; a thread publishes, with pika's blocking connection, from a queue
between both. There are no confirms, and the queue has no limit, so that overload shows as latency and not as loss.
"""

import asyncio
import json
import queue
import sys
import threading
import time
from typing import Any

import pika
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.baseline.enrich import Enricher, Instruments
from benchmarks.baseline.models import InstrumentInfo
from benchmarks.baseline.parse import parse
from dhan_pipeline.feeds.client import shard
from dhan_pipeline.feeds.dhan.auth import Credentials, get_websocket_url
from dhan_pipeline.feeds.dhan.requests import (
    MAX_CONNECTIONS,
    MAX_INSTRUMENTS_PER_CONNECTION,
    subscribe_messages,
)
from dhan_pipeline.instruments import split_instrument_token
from dhan_pipeline.ticks import Mode

QUEUE = "ticks_queue"

#: How soon the publishing thread notices that it should end, in seconds.
_PULSE_S = 0.2


class Publisher:
    """The thread that publishes, and its queue."""

    def __init__(self, rabbitmq_url: str) -> None:
        self.waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.published = 0
        self._url = rabbitmq_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; what still waits is given up."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            channel = connection.channel()
            persistent = pika.BasicProperties(delivery_mode=2)
            while not self._stop.is_set():
                try:
                    body = self.waiting.get(timeout=_PULSE_S)
                except queue.Empty:
                    connection.process_data_events(0)  # heartbeats
                    continue
                channel.basic_publish("", QUEUE, body, persistent)
                self.published += 1


class Client:
    """The connections to the feed."""

    def __init__(self, url: str, subscriptions: dict[int, Mode], publisher: Publisher) -> None:
        self.received = 0
        """Messages."""
        self._url = url
        self._shards = shard(subscriptions, MAX_INSTRUMENTS_PER_CONNECTION, MAX_CONNECTIONS, "Dhan")
        self._publisher = publisher
        self._enricher = Enricher(load_instruments_cache(subscriptions))
        self._connections: list[ClientConnection] = []
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Receive until all connections have ended."""
        async with asyncio.TaskGroup() as group:
            for subscriptions in self._shards:
                group.create_task(self._receive(subscriptions))

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(connection.close() for connection in self._connections))

    async def _receive(self, subscriptions: dict[int, Mode]) -> None:
        # Without its own pings, which under overload would end the connection.
        async with connect(self._url, ping_interval=None, close_timeout=1) as connection:
            for request in subscribe_messages(subscriptions):
                await connection.send(request)
            self._connections.append(connection)
            if len(self._connections) == len(self._shards):
                self.subscribed.set()
            async for message in connection:
                received_ns = time.time_ns()
                self.received += 1
                assert isinstance(message, bytes)
                tick = self._enricher.enrich(parse(message), received_ns)
                if tick is not None:
                    self._publisher.waiting.put(tick.model_dump_json().encode())


def load_instruments_cache(subscriptions: dict[int, Mode]) -> Instruments:
    """The subscribed instruments; what is not in the token is made up."""
    cache = {}
    for token in subscriptions:
        segment, security_id = split_instrument_token(token)
        exchange, _, kind = segment.name.partition("_")
        cache[int(segment), security_id] = InstrumentInfo(
            instrument_token=token,
            security_id=str(security_id),
            exchange_segment=segment.name,
            trading_symbol=f"S{security_id}",
            exchange=exchange,
            instrument_type=kind,
        )
    return cache


async def main(configuration: dict[str, Any]) -> None:
    """Receive until standard input closes."""
    credentials = Credentials(configuration["client_id"], SecretStr(configuration["token"]), None, "the benchmark")
    url = get_websocket_url(credentials, configuration["feed_url"])
    subscriptions = {int(token): Mode(mode) for token, mode in configuration["subscriptions"].items()}
    publisher = Publisher(configuration["rabbitmq_url"])
    client = Client(url, subscriptions, publisher)
    receiving = asyncio.create_task(client.run())
    ready = asyncio.create_task(client.subscribed.wait())
    await asyncio.wait([receiving, ready], return_when=asyncio.FIRST_COMPLETED)
    if not receiving.done():
        print(json.dumps({"ready": True}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            if receiving.done():
                break
            print(json.dumps({"received": client.received, "published": publisher.published}), flush=True)
    ready.cancel()
    await client.close()
    await receiving
    publisher.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
