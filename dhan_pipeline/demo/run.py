"""Runs what a production site has over the simulated exchange, shows how it goes, and says what came of it.

PostgreSQL, the exchange, Dagster, the instrument sync, the capture of the hours before, and the live capture.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.demo.exchange import exchange
from dhan_pipeline.demo.history import capture_history, first_day
from dhan_pipeline.local.guardian import LocalError, guarded
from dhan_pipeline.local.services import Services, free_port, make_logs
from dhan_pipeline.local.site import dagster, ingest_runs, live_page, postgres, sync_instruments, write_dagster_home
from dhan_pipeline.local.terminal import LiveLine, interruptible, statuses, stderr_console
from dhan_pipeline.orchestration.names import TICKS, live_feed_key, of_source
from dhan_pipeline.orchestration.resources import settings_environment
from dhan_pipeline.quality.calendar import CAPTURE_START_S
from dhan_pipeline.quality.measures import HOUR_CHECKS, LIVE_CHECKS
from dhan_pipeline.sources import Source
from dhan_pipeline.store import embedded, ledger
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.store.ticks import count_ticks

#: On a busy machine, captures whose runs are on their way are waited for, but for no longer.
_LONGEST_START_S = 300.0


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

    `rate` in ticks a second, `port` of the Dagster UI, 0 for a free one; the live page is beside it. Everything is kept
    in `data_dir`, and the next start goes on with it. Raises PipelineError where something cannot start.
    """
    console = stderr_console()
    port = free_port(port)
    logs = make_logs(data_dir)
    result: dict[str, Any] = {}
    with interruptible(console), ExitStack() as stack:
        guardian = stack.enter_context(guarded(data_dir))
        services = Services(logs, guardian)
        database_url = stack.enter_context(postgres(data_dir, guardian))
        migrate(database_url)
        console.print(f"PostgreSQL runs. The exchange opens: {instruments} instruments, {rate:,.0f} ticks a second.")
        settings = stack.enter_context(exchange(services, sources, data_dir, database_url, instruments, rate))
        dagster_url = f"http://127.0.0.1:{port}"
        settings = settings.model_copy(update={"partitions_start": first_day(settings), "dagster_url": dagster_url})
        home = data_dir / "dagster"
        write_dagster_home(home, anew=True)
        environment = {**os.environ, **settings_environment(settings), "DAGSTER_HOME": str(home)}

        def before_capture(_: dg.DagsterInstance) -> None:
            sync_instruments(services, environment)
            capture_history(settings, database_url, console, Clock().now_ns())

        console.print("Dagster starts, and syncs some 200,000 instruments.")
        started_s: float | None = None
        try:
            with (
                dagster(services, environment, port, before_capture) as instance,
                live_page(services, environment, port, database_url) as live_url,
            ):
                result |= {"database_url": database_url, "dagster_url": dagster_url, "live_url": live_url}
                console.print(f"\nLive      {live_url}\nDagster   {dagster_url}\nDatabase  {database_url}\n")
                started_s = time.time()
                try:
                    said = statuses(services, database_url, lambda: embedded.start(data_dir).started, console)
                    line = LiveLine(console) if live_line else None
                    _watch(said, len(sources), for_s, lambda: len(ingest_runs(instance)), line)
                finally:
                    result["checks"] = _checks(instance, sources)
                    result["partitions_materialized"] = len(instance.get_materialized_partitions(TICKS))
        finally:
            if started_s is not None:
                result |= _totals(database_url, started_s)
                console.print(f"\n{_in_words(result)}\nThe next demo goes on from {data_dir}.", soft_wrap=True)
    return result


def _watch(
    seconds: Iterable[Sequence[dict[str, Any]]],
    captures: int,
    for_s: float | None,
    runs: Callable[[], int],
    line: LiveLine | None,
) -> None:
    """Wait until the live captures are over their time, or for ever; show what they say of themselves each second.

    `runs` tells how many ingest runs are on their way. Raises LocalError where the captures do not start.
    """
    started = time.monotonic()
    first_word: float | None = None
    for said in seconds:
        if first_word is not None and for_s is not None and time.monotonic() - first_word >= for_s:
            return
        if len(said) < captures:
            waited_s = time.monotonic() - started
            late = waited_s > CAPTURE_START_S and (waited_s > _LONGEST_START_S or runs() < captures)
            if first_word is None and late:
                raise LocalError("The capture did not start; see the run in the Dagster UI, and the logs.")
            continue
        first_word = first_word or time.monotonic()
        if line is not None:
            line.show(said)


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
        # What a run has only planned says nothing yet.
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            value = evaluation.metadata.get("value")
            found[keys[key]] = {
                "passed": evaluation.passed,
                "severity": evaluation.severity.value,
                "value": value.value if value else None,
            }
    return found


def _in_words(result: dict[str, Any]) -> str:
    checks: dict[str, dict[str, Any]] = result.get("checks", {})
    failed = [name for name, check in checks.items() if not check["passed"]]
    passed = f"{len(checks) - len(failed)} of {len(checks)} checks passed" + (
        f"; not {', '.join(failed)}" * bool(failed)
    )
    return (
        f"{result['ticks_stored']:,} ticks are stored, {result['packets_rejected']:,} packets were rejected. {passed}."
    )


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
