"""The demo as a person sees it: the real program, all of its processes, and the Dagster UI's own API."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psycopg2
import pytest

from dhan_pipeline.demo import run as run_module
from dhan_pipeline.local.guardian import LocalError
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.ledger import statuses

pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")


def wait_for(found: Callable[[], T | None], seconds: float, what: str) -> T:
    deadline = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)
    return value


def processes_below(folder: Path) -> list[str]:
    """Command lines and working directories of the processes that have to do with a folder."""
    listed = subprocess.run(["ps", "-axo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


class Demo:
    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        command = [sys.executable, "-m", "dhan_pipeline.cli", "demo", "--data-dir", str(data_dir), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self.said = ""

    def wait_for_urls(self) -> tuple[str, str]:
        """(Dagster's address, the database's), once the demo has printed them."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"Dagster +(http://\S+)\s+Database +(\S+)", self.said):
                return found[1], found[2]
        raise AssertionError(f"the demo ended: {self.said}")

    def interrupt(self) -> str:
        """Ctrl-C; returns, when it has ended in order, what it said meanwhile."""
        self.process.send_signal(signal.SIGINT)
        _, rest = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, rest
        return rest


@pytest.fixture(scope="module")
def data_dir(open_dir: Path) -> Path:
    """One for all: each run goes on with what the one before has left."""
    folder = Path(tempfile.mkdtemp(dir=open_dir))
    folder.chmod(0o755)
    return folder


@pytest.fixture
def demo(data_dir: Path) -> Iterator[Demo]:
    running = Demo(data_dir, "--instruments", "60", "--rate", "500")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.interrupt()


def ask(dagster_url: str, query: str, **variables: Any) -> Any:
    request = urllib.request.Request(
        f"{dagster_url}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        answer = json.load(reply)
    assert "errors" not in answer, answer
    return answer["data"]


def materialized_hours(dagster_url: str) -> list[str]:
    node = ask(
        dagster_url,
        '{assetNodeOrError(assetKey: {path: ["ticks"]}) {... on AssetNode {assetPartitionStatuses'
        " {... on TimePartitionStatuses {ranges {startKey endKey status}}}}}}",
    )["assetNodeOrError"]
    ranges = node["assetPartitionStatuses"]["ranges"]
    return [key for r in ranges if r["status"] == "MATERIALIZED" for key in (r["startKey"], r["endKey"])]


def capture_pid(database_url: str, *but: int) -> int | None:
    """Process id of the running capture, unless it is one of `but`."""
    with closing(psycopg2.connect(database_url)) as conn:
        return next((status.pid for status in statuses(conn) if status.pid not in but), None)


LAUNCH = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}
  }
}
"""
BACKFILL = "query($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {status}}}"


def test_a_capture_is_waited_for_while_its_run_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "CAPTURE_START_S", 0.0)
    runs = iter([2, 2, 1])
    with pytest.raises(LocalError, match="The capture did not start"):
        run_module._watch([[]] * 4, 2, None, lambda: next(runs), None)
    assert next(runs, None) is None

    run_module._watch([[], [{}]], 1, None, lambda: 1, None)


def test_a_check_that_a_run_has_only_planned_is_left_out() -> None:
    @dg.asset_check(asset="ticks")
    def digest() -> dg.AssetCheckResult:
        raise dg.Failure

    @dg.asset_check(asset="ticks")
    def gaps() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True, metadata={"value": 0.0})

    checks = dg.define_asset_job("checks", selection=dg.AssetSelection.all_asset_checks())
    job = dg.Definitions(assets=[dg.AssetSpec("ticks")], asset_checks=[digest, gaps], jobs=[checks])
    with dg.DagsterInstance.ephemeral() as instance:
        job.resolve_job_def("checks").execute_in_process(instance=instance, raise_on_error=False)
        found = run_module._checks(instance, ("dhan",))
    assert found == {"gaps": {"passed": True, "severity": "ERROR", "value": 0.0}}


def test_past_hours_are_green_a_killed_capture_returns_and_a_backfill_gives_the_same_rows(
    demo: Demo, data_dir: Path
) -> None:
    dagster_url, database_url = demo.wait_for_urls()
    first = wait_for(lambda: capture_pid(database_url, demo.process.pid), 240, "the live capture")
    wait_for(lambda: len(materialized_hours(dagster_url)) >= 2 or None, 180, "the seal of the past hours")
    live_url = re.search(r"Live +(http://\S+)", demo.said)
    assert live_url
    with urllib.request.urlopen(f"{live_url[1]}/now", timeout=30) as reply:
        assert [capture["state"] for capture in json.load(reply)["captures"]] == ["live"]

    os.kill(first, signal.SIGKILL)
    wait_for(lambda: capture_pid(database_url, demo.process.pid, first), 180, "the capture's return")

    with closing(psycopg2.connect(database_url)) as conn:
        hour = materialized_hours(dagster_url)[0]
        live = hour_digest(conn, hour)
        conn.rollback()
        launched = ask(
            dagster_url,
            LAUNCH,
            params={"assetSelection": [{"path": ["ticks"]}], "partitionNames": [hour], "title": "again"},
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

        def ended() -> str | None:
            answer = ask(dagster_url, BACKFILL, id=launched["backfillId"])["partitionBackfillOrError"]
            return answer["status"] if answer["status"] not in ("REQUESTED",) else None

        assert wait_for(ended, 180, "the backfill") == "COMPLETED_SUCCESS"
        assert hour_digest(conn, hour) == live
        with conn.cursor() as cursor:
            cursor.execute(
                "SELECT count(rebuilt_at) > 0, count(*) = count(rebuilt_at) FROM ingest_ledger"
                " WHERE hour = (SELECT min(hour) FROM ingest_ledger)"
            )
            assert cursor.fetchall() == [(True, True)]

    assert re.search(r"ticks are stored, 0 packets were rejected\. \d+ of \d+ checks passed", demo.interrupt())
    assert processes_below(data_dir) == []


def test_a_run_without_a_terminal_ends_by_itself_with_one_json_object(data_dir: Path) -> None:
    demo = Demo(data_dir, "--instruments", "60", "--rate", "1000", "--for", "10", "--json")
    try:
        out, err = demo.process.communicate(timeout=300)
    finally:
        demo.process.kill()  # its guardian ends what it leaves
    assert demo.process.returncode == 0, err
    result = json.loads(out)
    assert result["packets_received"] == result["packets_parsed"] + result["packets_rejected"]
    with_state = result["packets_parsed"] - result["ticks_stored"]
    assert 0 < with_state < result["packets_parsed"]
    assert result["ticks_stored"] > 10_000
    assert result["blocks"] > 100
    assert 0 < result["latency_p50_ms"] <= result["latency_p99_ms"]
    assert result["partitions_materialized"] >= 3
    assert {"parser_error_rate", "latency_p99", "conservation"} <= set(result["checks"])
    # A machine that stands still for seconds has gaps, and is slow. An hour that ends now may have few ticks, since for
    # a part of it nothing ran.
    judged = {name: check for name, check in result["checks"].items() if not re.search("latency|gaps|^tick_rate", name)}
    assert all(check["passed"] for check in judged.values()), judged
    assert processes_below(data_dir) == []
