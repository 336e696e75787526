"""A capture that runs for a benchmark: real parts on this machine, over the load generator, measured from outside.

Latency is from the arrival of a message to the commit of its row, of every message, the journal included. After each
run the stored rows are compared with what was sent: their number, and the sum of their volumes.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from psycopg2 import sql

from benchmarks.generator import instrument_tokens
from benchmarks.processes import tree_cpu_s
from benchmarks.report import wrong
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline.transport.lanes import LANES
from dhan_pipeline_tests.rabbitmq import Node

INSTRUMENTS = 5_000

#: They store what a capture hands over through RabbitMQ: a lane each.
WORKERS = LANES
ONE_EACH = [1] * WORKERS

#: Sent before the measurement begins, so that it sees no start.
WARM_UP_S = 3.0

#: How often memory and pauses are read.
SAMPLE_S = 1.0

#: When an outage begins, in seconds of the measurement.
OUTAGE_AFTER_S = 10.0

#: How long what was sent may take to be stored.
PATIENCE_S = 120.0

CLIENT_ID = "1100000001"


class Peer:
    """A process that answers each line with one JSON object."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, line: str = "") -> dict[str, Any]:
        """Its answer. Ends the benchmark where it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def peer(*arguments: str, **environment: str) -> AsyncIterator[Peer]:
    """A Python process that ends when its standard input closes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE, env=os.environ | environment, limit=1 << 20
    )
    assert process.stdin is not None
    try:
        yield Peer(process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a benchmark keeps its data."""

    folder: Path
    server_url: str

    def postgres_s(self) -> float:
        """CPU time of the server and all of its processes, in seconds."""
        (pid_file,) = self.folder.glob("postgresql-*/data/postmaster.pid")
        return tree_cpu_s(int(pid_file.read_text().split()[0]))

    async def stop_for(self, seconds: float) -> None:
        """Take the server away for a while, from half a minute on."""
        if seconds:
            await asyncio.sleep(OUTAGE_AFTER_S)
            await asyncio.to_thread(embedded.stop, self.folder)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(embedded.start, self.folder)


@contextmanager
def place() -> Iterator[Place]:
    """A temporary directory with an embedded PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="dhan-pipeline-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # root's server runs as another user
        server = embedded.start(folder)
        try:
            yield Place(folder, server.url)
        finally:
            embedded.stop(folder)


def prepare(where: Place, name: str, instruments: int) -> dict[str, str]:
    """A new database and data directory of that name; the environment of a capture of them."""
    url = create_database(where.server_url, name)
    migrate(url)
    tokens = instrument_tokens(instruments).tolist()
    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) "
            "SELECT unnest(%s::bigint[]), 'dhan', '', ''",
            (tokens,),
        )
    data_dir = where.folder / name
    data_dir.mkdir()
    settings = Settings(_env_file=None, data_source="dhan", data_dir=data_dir)  # type: ignore[call-arg]
    write_subscriptions(
        settings.subscriptions_path,
        [Subscription(token, Mode.FULL, f"S{token}") for token in tokens],
    )
    save_token(data_dir / "token.json", make_token(CLIENT_ID, expires_in=1e7), CLIENT_ID)
    return {
        "DATA_SOURCE": "dhan",
        "DATA_DIR": str(data_dir),
        "DATABASE_URL": url,
        "DHAN_TOKEN_FILE": str(data_dir / "token.json"),
        "SESSIONS": "always",
    }


def connections_of(instruments: int) -> int:
    """Connections that a capture of so many instruments makes."""
    return -(-instruments // 5000)


@dataclass(slots=True)
class Highest:
    """The highest of what a capture, and any of its workers, said of itself while it was measured."""

    rss_mb: float = 0.0
    worker_rss_mb: float = 0.0
    loop_pause_ms: float = 0.0
    gc_pause_ms: float = 0.0

    def see(self, state: dict[str, Any]) -> None:
        """Take account of one answer."""
        for name in ("rss_mb", "worker_rss_mb", "loop_pause_ms", "gc_pause_ms"):
            setattr(self, name, max(getattr(self, name), state.get(name, 0.0)))


class Running:
    """A running capture with its generator; and, where it hands over to RabbitMQ, the workers that store for it."""

    def __init__(
        self, where: Place, generator: Peer, capture: Peer, workers: Sequence[Peer] = (), broker: Node | None = None
    ) -> None:
        self.sent = self.volume = 0
        """What the generator has sent: packets, and the sum of their volumes."""
        self._where = where
        self._generator = generator
        self._capture = capture
        self._workers = workers
        self._broker = broker

    async def state(self) -> dict[str, Any]:
        """What the capture says now. With workers, ticks and latency are what they have committed, together."""
        state, *of_workers = await asyncio.gather(*(process.ask() for process in (self._capture, *self._workers)))
        if of_workers:
            state["ticks"] = sum(worker["ticks"] for worker in of_workers)
            state["latency_counts"] = np.sum([worker["latency_counts"] for worker in of_workers], axis=0)
            state["workers_cpu_s"] = sum(worker["cpu_s"] for worker in of_workers)
            state["worker_rss_mb"] = max(worker["rss_mb"] for worker in of_workers)
            state["lanes"] = [len(worker["lanes"]) for worker in of_workers]
        return state

    async def until_ready(self, connections: int) -> None:
        """Return once all connections are up, and each worker has its lane."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                state = await self.state()
                if state["connections_up"] == connections and state.get("lanes", ONE_EACH) == ONE_EACH:
                    return
                await asyncio.sleep(0.05)

    async def send(self, rate: float, seconds: float) -> dict[str, Any]:
        """Have the generator send; what it says when it is done."""
        sent = await self._generator.ask(f"send {rate} {seconds}")
        self.sent += sent["sent"]
        self.volume += sent["volume"]
        return sent

    async def until_stored(self, highest: Highest | None = None) -> dict[str, Any]:
        """The state once all that was sent is committed, or nothing has been for a while."""
        seen, waited_s = -1, 0.0
        while True:
            state = await self.state()
            if highest is not None:
                highest.see(state)
            waited_s = waited_s + 0.1 if state["ticks"] == seen else 0.0
            seen = state["ticks"]
            if seen >= self.sent or waited_s > PATIENCE_S:
                return state
            await asyncio.sleep(0.1)

    async def measure(
        self, rate: float, seconds: float, outage_s: float = 0.0, warm_up_s: float = WARM_UP_S
    ) -> dict[str, Any]:
        """One row, measured for `seconds` after a warm-up; returns once all is stored."""
        await self.send(rate, warm_up_s)
        before = await self.until_stored()
        spent_s = self._spent_s(before)
        highest = Highest()
        sending = asyncio.create_task(self.send(rate, seconds))
        outage = asyncio.create_task(self._where.stop_for(outage_s))
        while not (sending.done() and outage.done()):
            highest.see(await self.state())
            await asyncio.wait([sending], timeout=SAMPLE_S)
        measured, then = await sending, await self.state()
        ended = time.perf_counter()
        after = await self.until_stored(highest)
        behind_s = time.perf_counter() - ended
        cpu_s = {name: spent - spent_s[name] for name, spent in self._spent_s(after).items()}
        if outage_s:  # the server's time began anew
            del cpu_s["postgres"]
        latency = LatencyHistogram()
        latency.counts = np.array(after["latency_counts"]) - np.array(before["latency_counts"])
        ticks = measured["sent"]
        whole_s = measured["seconds"] + behind_s
        stages_s = {name: spent - before["cpu_s_by_thread"][name] for name, spent in after["cpu_s_by_thread"].items()}
        rest = "decode, split, publish" if self._workers else "decode, enrich, send"
        stages_s[rest] = cpu_s["capture"] - sum(stages_s.values())
        stages_s |= {name: spent for name, spent in cpu_s.items() if name in ("workers", "postgres")}
        return {
            "rate": int(rate),
            "achieved": round((then["ticks"] - before["ticks"]) / measured["seconds"]),
            "p50_ms": latency.percentile(50),
            "p99_ms": latency.percentile(99),
            "p999_ms": latency.percentile(99.9),
            "lost": self.sent - after["ticks"],
            "cpu_pct_by_process": {
                **{name: round(100 * spent / whole_s, 1) for name, spent in cpu_s.items()},
                "generator": round(100 * measured["cpu_s"] / measured["seconds"], 1),
            },
            "cpu_us_per_tick": round(1e6 * sum(stages_s.values()) / ticks, 2),
            "cpu_us_by_stage": {name: round(1e6 * spent / ticks, 2) for name, spent in stages_s.items()},
            "rss_mb": highest.rss_mb,
            **({"worker_rss_mb": highest.worker_rss_mb} if self._workers else {}),
            **({"broker_us_per_tick": round(1e6 * cpu_s["broker"] / ticks, 2)} if self._broker else {}),
            "loop_pause_ms": round(highest.loop_pause_ms, 2),
            "gc_pause_ms": round(highest.gc_pause_ms, 2),
            "behind_s": round(behind_s, 1),
        }

    def _spent_s(self, state: dict[str, Any]) -> dict[str, float]:
        """CPU time until now, by process. The broker's is no part of what a tick costs."""
        spent_s = {"capture": state["cpu_s"], "postgres": self._where.postgres_s()}
        if self._broker is not None:
            spent_s |= {"workers": state["workers_cpu_s"], "broker": tree_cpu_s(self._broker.pid)}
        return spent_s


@asynccontextmanager
async def running(
    where: Place,
    instruments: int = INSTRUMENTS,
    prepared: tuple[str, dict[str, str]] | None = None,
    broker: Node | None = None,
) -> AsyncIterator[Running]:
    """A capture from its start to its end; then what is stored is compared with what was sent, and removed.

    `prepared`: the name and the environment of a database that `prepare` made; without it, a new one. With a `broker`
    the capture hands over to WORKERS workers.
    """
    name = f"capture_{os.urandom(4).hex()}"
    name, environment = prepared or (name, prepare(where, name, instruments))
    connections = connections_of(instruments)
    if broker is not None:
        environment |= {"TRANSPORT": "rabbitmq", "RABBITMQ_URL": await asyncio.to_thread(broker.new_url)}
    async with AsyncExitStack() as stack:
        generator = await stack.enter_async_context(
            peer("-m", "benchmarks.generator", str(instruments), str(connections))
        )
        environment["DHAN_FEED_URL"] = f"ws://127.0.0.1:{(await generator.hear())['port']}"
        workers = [
            await stack.enter_async_context(peer("-m", "benchmarks.worker_probe", **environment))
            for _ in range(WORKERS if broker else 0)
        ]
        capture = await stack.enter_async_context(peer("-m", "benchmarks.capture_probe", **environment))
        all_of_it = Running(where, generator, capture, workers, broker)
        await all_of_it.until_ready(connections)
        yield all_of_it
        state = await all_of_it.state()
    compare(environment["DATABASE_URL"], state, all_of_it.sent, all_of_it.volume)
    drop(where, name)


async def measure(
    where: Place,
    rate: float,
    seconds: float,
    instruments: int = INSTRUMENTS,
    outage_s: float = 0.0,
    prepared: tuple[str, dict[str, str]] | None = None,
    broker: Node | None = None,
) -> dict[str, Any]:
    """One row: a capture from its start to its end, measured for `seconds` in between.

    With `outage_s`, the database is stopped for so long a while after the measurement has begun. The rest is that of
    `running`.
    """
    async with running(where, instruments, prepared, broker) as capture:
        return await capture.measure(rate, seconds, outage_s)


def compare(database_url: str, state: dict[str, Any], sent: int, volume: int) -> None:
    """End the benchmark where the rows are not those that were sent."""
    with closing(connect(database_url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*), coalesce(sum(volume_traded), 0)::bigint FROM ticks")
        rows = cursor.fetchall()[0]
        cursor.execute("SELECT coalesce(sum(ticks), 0)::bigint, coalesce(sum(rejected), 0)::bigint FROM ingest_ledger")
        ledger = cursor.fetchall()[0]
    if rows != (sent, volume) or ledger != (sent, 0) or state["messages"] != sent:
        wrong(
            f"sent {sent} packets of volume {volume}",
            f"received {state['messages']}, stored {rows[0]} of volume {rows[1]}",
            f"in the ledger {ledger[0]}, rejected {ledger[1]}",
        )


def drop(where: Place, name: str) -> None:
    """Remove a capture's database and journal."""
    with closing(connect(where.server_url)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        cursor.execute("CHECKPOINT")
    shutil.rmtree(where.folder / name)
