"""Starts what a production site has, shows how it goes, and stops it in order.

PostgreSQL, the exchange, Dagster's code server and web server, the instrument sync, the capture of the hours before,
and the daemon, whose sensor starts the live capture.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import yaml
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from rich.console import Console

import dhan_pipeline
from dhan_pipeline.clock import Clock
from dhan_pipeline.demo.exchange import exchange
from dhan_pipeline.demo.guardian import DemoError, Guardian, guarded
from dhan_pipeline.demo.history import capture_history, first_day
from dhan_pipeline.demo.services import Services, answers, free_port
from dhan_pipeline.orchestration.names import ROLE_TAG, STOP_TAG, TICKS, live_feed_key, of_source
from dhan_pipeline.orchestration.resources import settings_environment
from dhan_pipeline.quality.measures import HOUR_CHECKS, LIVE_CHECKS
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store import embedded, ledger
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.store.ticks import count_ticks

#: Longest from the daemon's start to the first word of the capture.
CAPTURE_START_S = 90.0

#: Longest that the ingest run may take to flush and end.
FLUSH_S = 6.0

_LINE_S = 10.0

_MODULE = ("--module-name", "dhan_pipeline.definitions")


class _Interrupted(BaseException):
    """SIGINT or SIGTERM came: stop everything, in order."""


def run_demo(
    *,
    sources: Sequence[Source],
    data_dir: Path,
    instruments: int,
    rate: float,
    for_s: float | None,
    port: int,
    live_line: bool,
) -> dict[str, Any]:
    """Run until interrupted, or until `for_s` seconds of live capture are over; returns what came of it.

    `rate` in ticks a second, `port` of the Dagster UI, 0 for a free one. Everything is kept in `data_dir`, and the next
    start goes on with it. Raises PipelineError where something cannot start.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    url = f"http://127.0.0.1:{free_port(port)}"
    logs = data_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"The data directory {data_dir} cannot be used: {error.strerror}.") from None
    result: dict[str, Any] = {}
    with _interruptible(console), ExitStack() as stack:
        guardian = stack.enter_context(guarded(data_dir))
        services = Services(logs, guardian)
        server = embedded.start(data_dir)
        if server.started:
            guardian.begin(data_dir)
            stack.callback(_stop_postgres, data_dir, guardian)
        migrate(server.url)
        console.print(f"PostgreSQL runs. The exchange opens: {instruments} instruments, {rate:,.0f} ticks a second.")
        settings = stack.enter_context(exchange(services, sources, data_dir, server.url, instruments, rate))
        settings = settings.model_copy(update={"partitions_start": first_day(settings), "dagster_url": url})

        console.print("Dagster starts, and syncs some 200,000 instruments.")
        # The path of a Unix socket has at most 104 bytes on macOS; a data directory's may be longer.
        socket = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dhan-", dir="/tmp"))) / "code"
        home = _write_dagster_home(data_dir / "dagster", socket)
        # Makes the storage: two processes that do so at once break it.
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        _end_old_runs(instance)
        workspace = ("--workspace", str(home / "workspace.yaml"))
        environment = {**os.environ, **settings_environment(settings), "DAGSTER_HOME": str(home)}

        code = stack.enter_context(
            services.run(
                "code-server", "dagster", "api", "grpc", "--socket", str(socket), *_MODULE, environment=environment
            )
        )
        sync_job = ("dagster", "job", "execute", *_MODULE, "--job", "instrument_sync_job")
        with services.run("instrument-sync", *sync_job, environment=environment, keep=False) as sync:
            sync.wait_until_done()
        code.wait_until(socket.exists)
        address = ("--host", "127.0.0.1", "--port", url.rpartition(":")[2])
        web = stack.enter_context(
            services.run("webserver", "dagster-webserver", *address, *workspace, environment=environment)
        )
        capture_history(settings, server.url, console)
        web.wait_until(lambda: answers(f"{url}/server_info"))
        daemon = stack.enter_context(
            services.run("daemon", "dagster-daemon", "run", *workspace, environment=environment)
        )
        console.print(f"\nDagster   {url}\nDatabase  {server.url}\n")
        started_s = time.time()
        try:
            _watch(services, len(sources), data_dir, server.url, for_s, console, live_line)
        finally:
            result["checks"] = _checks(instance, sources)
            daemon.ask_to_stop()
            web.ask_to_stop()
            _stop_ingest_runs(instance)
            result |= _totals(server.url, started_s)
            result["partitions_materialized"] = len(instance.get_materialized_partitions(TICKS))
            result |= {"database_url": server.url, "dagster_url": url}
    return result


@contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> None:
        # Once is enough: what follows must not be cut short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        console.print("\nStopping.")
        raise _Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with suppress(_Interrupted):
        yield


def _write_dagster_home(home: Path, socket: Path) -> Path:
    home.mkdir(exist_ok=True)
    package = Path(dhan_pipeline.__file__).parent
    config = Path("deploy/local/dagster.yaml")  # in the package once installed, beside it in a checkout
    shutil.copy(package / config if (package / config).exists() else package.parent / config, home)
    location = {"grpc_server": {"socket": str(socket), "location_name": "dhan_pipeline"}}
    (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [location]}))
    return home


def _watch(
    services: Services,
    captures: int,
    data_dir: Path,
    database_url: str,
    for_s: float | None,
    console: Console,
    live_line: bool,
) -> None:
    """Wait until the live captures are over their time, or for ever; show what they say of themselves, once a second.

    What ends by itself meanwhile is started again.
    """
    started = time.monotonic()
    first_word: float | None = None
    began = Clock().now()
    next_line_s = 0.0
    while for_s is None or first_word is None or time.monotonic() - first_word < for_s:
        time.sleep(1)
        for name in services.revive():
            console.print(f"The {name} had ended, and is started again; see {data_dir / 'logs' / f'{name}.log'}.")
        try:
            with closing(connect(database_url)) as conn:
                statuses = [s.status for s in ledger.statuses(conn) if s.updated_at > began]
        except psycopg2.Error:
            if embedded.start(data_dir).started:
                console.print("PostgreSQL had ended, and is started again.")
            continue
        if len(statuses) < captures:
            if first_word is None and time.monotonic() - started > CAPTURE_START_S:
                raise DemoError("The capture did not start; see the run in the Dagster UI, and the logs.")
            continue
        first_word = first_word or time.monotonic()
        if live_line and (console.is_terminal or time.monotonic() >= next_line_s):
            next_line_s = time.monotonic() + _LINE_S
            console.print(_line(statuses), end="\r" if console.is_terminal else "\n")


def _line(statuses: Sequence[dict[str, Any]]) -> str:
    """What all captures come to; the slowest one's latency and backlog."""
    rate, ticks, rejected = (
        sum(status[name] for status in statuses) for name in ("messages_per_second", "ticks", "rejected")
    )
    p50_ms, p99_ms, backlog_s = (
        max(status[name] or 0 for status in statuses)
        for name in ("latency_p50_ms", "latency_p99_ms", "backlog_seconds")
    )
    return (
        f"{rate:>9,.0f} messages/s  {ticks:>11,} ticks stored  {rejected:>4,} rejected  p50 {p50_ms:>4.0f} ms  "
        f"p99 {p99_ms:>4.0f} ms  backlog {backlog_s:.1f} s  "
    )


def _stop_postgres(data_dir: Path, guardian: Guardian) -> None:
    embedded.stop(data_dir)
    guardian.end(data_dir)


def _end_old_runs(instance: dg.DagsterInstance) -> None:
    """Settle what a demo left that was killed: its runs are dead, and do not count as stopped by a person."""
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        instance.report_run_failed(run, "The demo was killed.")
    for run in instance.get_runs(dg.RunsFilter(tags={ROLE_TAG: "ingest"}), limit=len(SOURCES)):
        if run.status == dg.DagsterRunStatus.CANCELED:
            instance.add_run_tags(run.run_id, {STOP_TAG: "the demo ended"})


def _stop_ingest_runs(instance: dg.DagsterInstance) -> None:
    """Ask the ingest run to flush and succeed, and wait for it. The daemon must not be there to start another."""
    alive = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    runs = instance.get_runs(dg.RunsFilter(statuses=alive, tags={ROLE_TAG: "ingest"}))
    for run in runs:
        instance.add_run_tags(run.run_id, {STOP_TAG: "the demo ends"})
    deadline = time.monotonic() + FLUSH_S
    while time.monotonic() < deadline:
        left = [instance.get_run_by_id(run.run_id) for run in runs]
        if all(run is None or run.is_finished for run in left):
            return
        time.sleep(0.1)


def _checks(instance: dg.DagsterInstance, sources: Sequence[Source]) -> dict[str, dict[str, Any]]:
    """The latest evaluation of every check. Those of a live feed have `live_`, or `live_kite_`, before their name."""
    keys = {dg.AssetCheckKey(TICKS, name): name for name in HOUR_CHECKS}
    for source in sources:
        feed, prefix = live_feed_key(source, sources), of_source("live", source, sources)
        keys |= {dg.AssetCheckKey(feed, name): f"{prefix}_{name}" for name in LIVE_CHECKS}
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    found = {}
    for key, record in records.items():
        event = record.event.dagster_event if record.event else None
        if event is not None:
            evaluation = event.asset_check_evaluation_data
            value = evaluation.metadata.get("value")
            found[keys[key]] = {
                "passed": evaluation.passed,
                "severity": evaluation.severity.value,
                "value": value.value if value else None,
            }
    return found


def _totals(database_url: str, since_s: float) -> dict[str, Any]:
    with closing(connect(database_url)) as conn:
        totals = ledger.recent_totals(conn, Clock())
        latest = [s.status for s in ledger.statuses(conn) if s.updated_at.timestamp() > since_s]
        return {
            "packets_received": totals.packets,
            "packets_parsed": totals.ticks + totals.state + totals.control,
            "packets_rejected": totals.rejected,
            "ticks_stored": count_ticks(conn),
            "blocks": totals.blocks,
            "latency_p50_ms": max((status["latency_total_p50_ms"] or 0 for status in latest), default=None),
            "latency_p99_ms": max((status["latency_total_p99_ms"] or 0 for status in latest), default=None),
        }
