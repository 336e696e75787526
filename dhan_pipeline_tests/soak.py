"""Random faults against the running system, and then the question whether anything was lost.

`make soak`, or `python -m dhan_pipeline_tests.soak`: PostgreSQL, Dagster's code server and daemon with its supervisor,
and the capture that it starts, all as a user has them; the exchange is in this process, and remembers what it sent.
The same seed makes the same faults, as many as there is time for. It ends with the conservation report, the exchange's
rate and the capture's memory, exit code 0 or 1.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import psycopg2

from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.holder import Holder
from dhan_pipeline.journal.reader import capture_dir
from dhan_pipeline.local.guardian import guarded
from dhan_pipeline.local.services import Services
from dhan_pipeline.local.site import code_server, postgres, stop_ingest_runs, write_dagster_home
from dhan_pipeline.orchestration.resources import settings_environment
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded, ledger
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.broker import NO_BROKER
from dhan_pipeline_tests.conservation import check
from dhan_pipeline_tests.ingest.feed import CLIENT_ID, add_instruments, query

INSTRUMENTS = 200
RATE = 5000.0
SILENCE_S = 10.0

#: The exchange must have offered so much of its rate while the capture was well and left alone, for so long in all.
RATE_SHARE, RESTED_S = 0.5, 5.0

#: Longest pause between two faults; a short soak has no time for it.
PAUSE_S, SHORT_PAUSE_S = 2.0, 0.5

#: What the capture says of itself counts if it is no older than this, and said so long after a fault.
FRESH_S, SETTLE_S = 3.0, 1.0

#: Longest that the capture may take to be well again. Where nobody else can tell that a run is dead, the supervisor
#: gives it up once it has sent no heartbeat for 150 s.
RECOVERY_S = 240.0

#: A process's memory is compared after so long, between its first and last third.
WARM_UP_S = 20.0
GROWTH_SHARE, GROWTH_MB = 1.15, 20.0


class Soak:
    """The running system, and what is done to it."""

    def __init__(self, settings: Settings, server_dir: Path, simulator: DhanSimulator, services: Services) -> None:
        self.settings = settings
        self.simulator = simulator
        self.services = services
        self.server_dir = server_dir
        self.url = settings.database_url or ""
        self.running: dict[str, int] = {}
        self.silences: list[tuple[float, float]] = []
        """Times that must lie in a gap of cause stall, s since the Unix epoch."""
        self.rested_s = 0.0
        self.rested_packets = 0
        self.memory: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self._tokens = 0
        self._settled_at = 0.0
        self.started = time.monotonic()

    def say(self, sentence: str) -> None:
        """A line for whoever watches."""
        print(f"{time.monotonic() - self.started:7.1f} s  {sentence}", file=sys.stderr, flush=True)

    def new_token(self) -> None:
        """Put another token into the file."""
        self._tokens += 1
        save_token(self.settings.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6 + self._tokens), CLIENT_ID)

    @property
    def capture_pid(self) -> int | None:
        """The process that holds the capture's lock, if it is there."""
        with suppress(OSError), (capture_dir(self.settings.journal_dir, 0) / "lock").open("rb") as lock:
            holder = Holder.read(lock.fileno())
            if holder.pid is not None and holder.end is None and Path(f"/proc/{holder.pid}").exists():
                return holder.pid
        return None

    def status(self) -> ledger.CaptureStatus | None:
        """What the capture said within the last seconds; None if it or the database is away."""
        with suppress(psycopg2.Error), closing(connect(self.url)) as conn:
            for status in ledger.statuses(conn):
                if status.updated_at.timestamp() > max(time.time() - FRESH_S, self._settled_at):
                    return status
        return None

    async def well(self) -> bool:
        """Wait until the capture is connected, has caught up and reports; False if that takes too long."""
        self._settled_at = time.time() + SETTLE_S
        deadline = time.monotonic() + RECOVERY_S
        while time.monotonic() < deadline:
            for name in self.services.revive():
                self.say(f"The {name} was started again.")
            status = await asyncio.to_thread(self.status)
            if status is not None:
                now = status.status
                if now["connections_up"] == now["connections"] and now["backlog_seconds"] < 1 and not now["gap_open_s"]:
                    return True
            await asyncio.sleep(0.2)
        return False

    async def rest(self, seconds: float) -> None:
        """Leave everything alone, and see how many packets the exchange has to offer."""
        before, began = self._offered, time.monotonic()
        await asyncio.sleep(seconds)
        self.rested_packets += self._offered - before
        self.rested_s += time.monotonic() - began

    async def rest_until_measured(self) -> None:
        """Rest on until rate and memory can be judged: no process may have lived for long enough yet."""
        deadline = time.monotonic() + 3 * WARM_UP_S
        while time.monotonic() < deadline and (self.rested_s < RESTED_S or not memory_problems(self.memory)[0]):
            await self.rest(1)

    @property
    def _offered(self) -> int:
        return sum(self.simulator.sent.values()) + self.simulator.skipped

    async def exchange(self, *texts: str) -> None:
        """Faults of the exchange, all at once, for as long as the longest lasts."""
        faults = [parse_fault(text) for text in texts]
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._happen(fault))

    async def _happen(self, fault: object) -> None:
        async with happening(self.simulator, fault):  # type: ignore[arg-type]
            await asyncio.sleep(fault.for_s)  # type: ignore[attr-defined]

    async def silence(self, seconds: int) -> None:
        """Connections stand and bring nothing, for longer than the capture bears."""
        began = time.time()
        await self.exchange(f"stall+{seconds}")
        self.silences.append((began + 1, time.time() - 1))

    async def refused_token(self) -> None:
        """Dhan ends the token; somebody makes another one."""
        await self.simulator.disconnect(807)
        await asyncio.sleep(2)
        self.new_token()

    async def signal_capture(
        self, number: int, parent: bool = False, then: int | None = None, after_s: float = 7.0
    ) -> None:
        """Send a signal to the capture or to the run that keeps it, and perhaps another one a while later."""
        pid = await self._signalled(number, parent)
        if then is not None:
            await asyncio.sleep(after_s)
            with suppress(ProcessLookupError):
                os.kill(pid, then)

    async def _signalled(self, number: int, parent: bool) -> int:
        """The process that got the signal, once it is there."""
        async with asyncio.timeout(RECOVERY_S):
            while True:
                with suppress(FileNotFoundError, ProcessLookupError):
                    pid = self.capture_pid
                    if pid is not None and parent:
                        pid = _parent(pid)
                    if pid is not None and pid > 1:
                        os.kill(pid, number)
                        return pid
                await asyncio.sleep(0.1)

    async def kill_service(self, name: str) -> None:
        """Kill one of Dagster's processes, and start it again."""
        os.kill(self.running[name], signal.SIGKILL)
        while name not in self.services.revive():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def kill_database(self) -> None:
        """Kill PostgreSQL with all its processes, and start it again."""
        pid_file = next(self.server_dir.glob("postgresql-*/data/postmaster.pid"))
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        await asyncio.sleep(3)
        await asyncio.to_thread(embedded.start, self.server_dir)

    async def sql(self, *statements: str, wait_s: float = 0.0, then: str = "") -> None:
        """Statements on the server, and perhaps another one after a while."""
        server = create_database(self.url, "postgres")
        for statement in statements:
            await asyncio.to_thread(_execute, server, statement)
        await asyncio.sleep(wait_s)
        if then:
            await asyncio.to_thread(_execute, server, then)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _execute(url: str, statement: str) -> None:
    with closing(connect(url)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(statement)


_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dhan_pipeline' AND pid <> pg_backend_pid()"
)

FAULTS: dict[str, Callable[[Soak], Awaitable[None]]] = {
    "TCP reset": lambda soak: soak.exchange("reset"),
    "connection dropped": lambda soak: soak.exchange("drop"),
    "closed with 1011": lambda soak: soak.exchange("close=1011"),
    "half a message": lambda soak: soak.exchange("half"),
    "a message of 100 MB": lambda soak: soak.exchange("huge"),
    "garbage": lambda soak: soak.exchange("garbage"),
    "disconnect 800": lambda soak: soak.exchange("disconnect=800"),
    "token refused": lambda soak: soak.refused_token(),
    "short stall": lambda soak: soak.exchange("stall+3"),
    "pause": lambda soak: soak.exchange("stall+7"),
    "long stall": lambda soak: soak.silence(14),
    "vanished": lambda soak: soak.exchange("vanish+14"),
    "slow": lambda soak: soak.exchange("slow+3"),
    "slow reader": lambda soak: soak.exchange("reset", "slow-reader+3"),
    "stacked": lambda soak: soak.exchange("stacked+3"),
    "reordered": lambda soak: soak.exchange("reordered+3"),
    "snapshot twice": lambda soak: soak.exchange("reset", "duplicate-snapshot+5"),
    "true UTC": lambda soak: soak.exchange("wrong-epoch+3"),
    "HTTP 503": lambda soak: soak.exchange("reset", "refuse=503+3"),
    "unreachable": lambda soak: soak.exchange("reset", "unreachable+3"),
    "mute": lambda soak: soak.exchange("reset", "mute+3"),
    "capture killed": lambda soak: soak.signal_capture(signal.SIGKILL),
    "capture asked to end": lambda soak: soak.signal_capture(signal.SIGTERM),
    "capture suspended": lambda soak: soak.signal_capture(signal.SIGSTOP, then=signal.SIGCONT),
    "ingest run killed": lambda soak: soak.signal_capture(signal.SIGKILL, parent=True),
    "code server killed": lambda soak: soak.kill_service("code-server"),
    "daemon killed": lambda soak: soak.kill_service("daemon"),
    "PostgreSQL killed": lambda soak: soak.kill_database(),
    "sessions ended": lambda soak: soak.sql(_END_SESSIONS),
    "database read-only": lambda soak: soak.sql(
        "ALTER DATABASE dhan_pipeline SET default_transaction_read_only = on",
        _END_SESSIONS,
        wait_s=5,
        then="ALTER DATABASE dhan_pipeline RESET default_transaction_read_only",
    ),
    "database closed": lambda soak: soak.sql(
        "ALTER DATABASE dhan_pipeline ALLOW_CONNECTIONS false",
        _END_SESSIONS,
        wait_s=5,
        then="ALTER DATABASE dhan_pipeline ALLOW_CONNECTIONS true",
    ),
}

#: These cost a minute's rest each, so a short soak leaves them out.
LONG_FAULTS: dict[str, Callable[[Soak], Awaitable[None]]] = {
    "disconnect 805": lambda soak: soak.exchange("disconnect=805"),
    "HTTP 429": lambda soak: soak.exchange("reset", "refuse=429+3"),
    "capture suspended for a minute": lambda soak: soak.signal_capture(signal.SIGSTOP, then=signal.SIGCONT, after_s=60),
}
LONG_SOAK_MINUTES = 5.0


async def torment(soak: Soak, minutes: float, randomness: random.Random, done: Counter[str]) -> list[str]:
    """One fault after another, each kind once before any comes again. Returns what went wrong."""
    is_long = minutes >= LONG_SOAK_MINUTES
    faults = FAULTS | (LONG_FAULTS if is_long else {})
    end = time.monotonic() + 60 * minutes
    order: list[str] = []
    while time.monotonic() < end:
        if not order:
            order = sorted(faults)
            randomness.shuffle(order)
        name = order.pop()
        soak.say(name)
        try:
            await faults[name](soak)
        except TimeoutError:
            return [f"Within {RECOVERY_S:g} s there was nobody to suffer: {name}."]
        done[name] += 1
        if not await soak.well():
            return [f"The capture was not well again within {RECOVERY_S:g} s of: {name}."]
        await soak.rest(randomness.uniform(0, PAUSE_S if is_long else SHORT_PAUSE_S))
    return []


def memory_problems(memory: dict[int, list[tuple[float, float]]]) -> tuple[list[str], list[str]]:
    """(a line a process, what is wrong with it)."""
    lines, problems = [], []
    for pid, samples in memory.items():
        warm = [rss for at, rss in samples if at - samples[0][0] > WARM_UP_S]
        if len(warm) < 9:
            continue
        third = len(warm) // 3
        first, last = statistics.median(warm[:third]), statistics.median(warm[-third:])
        lines.append(f"process {pid}: {first:.0f} MB at first, {last:.0f} MB at last, {max(warm):.0f} MB at most")
        if last > first * GROWTH_SHARE + GROWTH_MB:
            problems.append(f"The memory of process {pid} grew from {first:.0f} to {last:.0f} MB.")
    return lines, problems or ([] if lines else ["No process lived for long enough to measure its memory."])


def rate_problems(soak: Soak) -> tuple[str, list[str]]:
    """(a line, what is wrong with it)."""
    rate = soak.rested_packets / max(soak.rested_s, 1e-3)
    line = f"the exchange offered {rate:,.0f} packets a second, over {soak.rested_s:.1f} s of rest between the faults"
    return line, [] if rate >= RATE_SHARE * RATE else [f"That is less than {RATE_SHARE * RATE:,.0f}: {line}."]


def silence_problems(soak: Soak) -> list[str]:
    """Silences that no gap tells of."""
    during = (
        "SELECT 1 FROM feed_gaps WHERE cause = %s AND started_at < to_timestamp(%s) AND ended_at > to_timestamp(%s)"
    )
    untold = [
        (began, ended) for began, ended in soak.silences if not query(soak.url, during, Cause.STALL, ended, began)
    ]
    return [f"{len(untold)} of {len(soak.silences)} long stalls are in no gap."] if untold else []


async def sample_memory(soak: Soak) -> None:
    while True:
        status = await asyncio.to_thread(soak.status)
        if status is not None:
            soak.memory[status.pid].append((time.monotonic(), status.status["rss_mb"]))
        await asyncio.sleep(1)


async def soak_for(minutes: float, seed: int, folder: Path) -> tuple[list[str], dict[str, object]]:
    """Set everything up, torment it, end it in order. Returns (problems, facts)."""
    done: Counter[str] = Counter()
    with ExitStack() as stack:
        logs = folder / "logs"
        logs.mkdir()
        guardian = stack.enter_context(guarded(folder))
        services = Services(logs, guardian)
        database_url = stack.enter_context(postgres(folder, guardian))
        migrate(database_url)
        settings = Settings(
            _env_file=None,
            data_source="dhan",
            data_dir=folder / "data",
            database_url=database_url,
            dhan_token_file=folder / "token.json",
            sessions="always",
            feed_silence_s=SILENCE_S,
            **NO_BROKER,
        )
        chosen = [
            Subscription(generate_instrument_token(("NSE_EQ", "NSE_FNO")[n % 2], 100_000 + n), Mode.FULL, f"S{n}")
            for n in range(INSTRUMENTS)
        ]
        write_subscriptions(settings.subscriptions_path, chosen)
        tokens = [subscription.instrument_token for subscription in chosen]
        add_instruments(database_url, tokens)
        async with DhanSimulator(tokens, rate=RATE, seed=seed, record=True) as simulator:
            settings = settings.model_copy(update={"dhan_feed_url": simulator.feed_url})
            soak = Soak(settings, folder, simulator, services)
            soak.new_token()
            home = folder / "dagster"
            write_dagster_home(home, anew=True)
            instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
            environment = {**os.environ, **settings_environment(settings), "DAGSTER_HOME": str(home)}
            code, workspace = stack.enter_context(code_server(services, environment))
            daemon = stack.enter_context(
                services.run("daemon", "dagster-daemon", "run", *workspace, environment=environment)
            )
            soak.running = _Pids({"code-server": code, "daemon": daemon})  # type: ignore[assignment]
            repeat = f"SOAK_MINUTES={minutes:g} SOAK_SEED={seed} make soak"
            soak.say(f"Everything starts. The same faults again: {repeat}")
            problems = [] if await soak.well() else ["The capture did not start."]
            if not problems:
                sampling = asyncio.create_task(sample_memory(soak))
                problems += await torment(soak, minutes, random.Random(seed), done)
                await soak.rest_until_measured()
                sampling.cancel()
            soak.say("The faults are over; everything that was received is stored.")
            simulator.rate = 0
            simulator.flush()
            if not await soak.well():
                problems.append("The capture did not catch up in the end.")
            daemon.ask_to_stop()
            await asyncio.to_thread(stop_ingest_runs, instance)
        report = await asyncio.to_thread(check, simulator.logs, settings, database_url)
        lines, growth = memory_problems(soak.memory)
        rate, slowness = rate_problems(soak)
        problems += [*report.problems, *silence_problems(soak), *slowness, *growth]
    facts: dict[str, object] = {"seed": seed, "minutes": minutes, "faults": dict(done), **asdict(report)}
    facts |= {"rate": rate, "memory": lines, "problems": problems}
    print(
        "\n".join(["", str(report), f"{sum(done.values())} faults, {len(done)} kinds", rate, *lines]), file=sys.stderr
    )
    return problems, facts


class _Pids(dict[str, object]):
    """The present process of each service."""

    def __getitem__(self, name: str) -> int:
        return super().__getitem__(name).pid  # type: ignore[attr-defined,no-any-return]


def main() -> None:
    """Run it as the arguments or SOAK_MINUTES and SOAK_SEED say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "10")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SOAK_SEED", "1")))
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    parser.add_argument("--keep", action="store_true", help="keep the data directory for a look")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dhan-soak-"))
    folder.chmod(0o755)  # root's PostgreSQL runs as another user, who has to enter
    try:
        problems, facts = asyncio.run(soak_for(arguments.minutes, arguments.seed, folder))
    finally:
        if arguments.keep:
            print(f"Kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps(facts))
    for problem in problems:
        print(f"soak: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
