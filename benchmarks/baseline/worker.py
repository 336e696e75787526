"""A process that stores: consumes from RabbitMQ, validates, and inserts batches of 1000 or of 0.1 s.

Started by `run` with its configuration as a line of JSON on standard input. It prints a line once it consumes, answers
each further line with its totals as one JSON object, and ends when standard input closes.
"""

import json
import sys
import threading
import time

import numpy as np
import pika
import psycopg2
from psycopg2.extensions import connection
from psycopg2.extras import execute_batch

from benchmarks.baseline.client import QUEUE
from benchmarks.baseline.models import EnrichedTick
from dhan_pipeline.ingest.latency import LatencyHistogram

BATCH = 1000

#: How long the first tick of a batch waits for the batch to fill. The existing system's 5 s would be the latency.
LONGEST_WAIT_S = 0.1

#: How often the age of the batch is looked at while nothing arrives.
_PULSE_S = 0.02

TABLE = "baseline_ticks"

#: The columns, by type.
_COLUMNS = {
    "timestamptz": "time last_trade_time",
    "bigint": "instrument_token tick_number last_traded_quantity volume_traded oi oi_day_high oi_day_low "
    "total_buy_quantity total_sell_quantity",
    "float8": "last_price average_traded_price day_open day_high day_low day_close change change_percent "
    "bid_ask_spread mid_price order_imbalance",
    "float8[]": "bid_prices ask_prices",
    "bigint[]": "bid_quantities ask_quantities",
    "int[]": "bid_orders ask_orders",
    "boolean": "tradable",
    "text": "mode",
}
_NAMES = " ".join(_COLUMNS.values()).split()

CREATE_TABLE = (
    f"CREATE TABLE {TABLE} ("
    + "".join(f"{name} {kind}, " for kind, names in _COLUMNS.items() for name in names.split())
    + "PRIMARY KEY (time, instrument_token, tick_number))"
)
_INSERT = f"INSERT INTO {TABLE} ({', '.join(_NAMES)}) VALUES ({', '.join(['%s'] * len(_NAMES))})"


class Worker:
    """One consumer with its own connection to the database."""

    def __init__(self, database_url: str) -> None:
        self.ticks = 0
        """Stored and committed."""
        self.latency = LatencyHistogram()
        """From the arrival of each tick to its commit."""
        self.stop = threading.Event()
        self._conn: connection = psycopg2.connect(database_url)

    def run(self, rabbitmq_url: str) -> None:
        """Consume until `stop` is set."""
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as broker:
            channel = broker.channel()
            channel.basic_qos(prefetch_count=BATCH)
            batch: list[EnrichedTick] = []
            began = 0.0
            last_tag = 0
            print(json.dumps({"ready": True}), flush=True)
            for method, _, body in channel.consume(QUEUE, inactivity_timeout=_PULSE_S):
                if body is not None:
                    if not batch:
                        began = time.monotonic()
                    batch.append(EnrichedTick.model_validate_json(body))
                    last_tag = method.delivery_tag
                if len(batch) == BATCH or (batch and time.monotonic() - began >= LONGEST_WAIT_S):
                    self._store(batch)
                    channel.basic_ack(last_tag, multiple=True)
                    batch = []
                if self.stop.is_set():
                    break
        self._conn.close()

    def _store(self, batch: list[EnrichedTick]) -> None:
        with self._conn, self._conn.cursor() as cursor:
            execute_batch(
                cursor, _INSERT, [[getattr(tick, name) for name in _NAMES] for tick in batch], page_size=BATCH
            )
        committed_ns = time.time_ns()
        self.latency.add(np.array([committed_ns - tick.received_ns for tick in batch]) / 1e6)
        self.ticks += len(batch)

    def answer(self) -> None:
        """Say the totals, line by line, until standard input closes."""
        while sys.stdin.readline():
            print(json.dumps({"ticks": self.ticks, "latency_counts": self.latency.counts.tolist()}), flush=True)
        self.stop.set()


def main() -> None:
    """Store until standard input closes."""
    configuration = json.loads(sys.stdin.readline())
    worker = Worker(configuration["database_url"])
    threading.Thread(target=worker.answer, name="answers", daemon=True).start()
    worker.run(configuration["rabbitmq_url"])


if __name__ == "__main__":
    main()
