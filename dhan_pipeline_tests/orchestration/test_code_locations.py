"""The two code locations of production, as processes over PostgreSQL: one is replaced, and the capture goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_graphql.cli import execute_query

from dhan_pipeline.orchestration.names import LIVE_FEED, STOP_TAG, TICKS
from dhan_pipeline.quality.measures import LIVE_CHECKS
from dhan_pipeline.store.engine import sqlalchemy_url
from dhan_pipeline_tests.orchestration.conftest import wait_until

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

CODE = {
    "ingest": ("--python-file", str(HERE / "ingest_location.py")),
    "dhan_pipeline": ("--module-name", "dhan_pipeline.pipeline_definitions"),
}

LAUNCH = """mutation { launchRun(executionParams: {selector: {repositoryLocationName: "ingest",
    repositoryName: "__repository__", jobName: "ingest_job"}}) { ... on LaunchRunSuccess { run { runId } } } }"""

RELOAD = """mutation { reloadRepositoryLocation(repositoryLocationName: "dhan_pipeline") {
    ... on WorkspaceLocationEntry { locationOrLoadError { ... on RepositoryLocation { serverId } } } } }"""

SHOWN = """{ assetNodes { assetKey { path } repository { location { name } } }
    live: assetNodes(assetKeys: [{path: ["live_feed"]}]) { assetChecksOrError { ... on AssetChecks { checks {
        name executionForLatestMaterialization { status } } } } } }"""


class Site:
    """Code servers at sockets, as the shipped workspace has them at hosts, and what a web server asks them."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self._home = home
        self._environment = environment
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.workspace = home / "workspace.yaml"
        shipped = yaml.safe_load((ROOT / "deploy/postgres/workspace.yaml").read_text())
        names = [entry["grpc_server"]["location_name"] for entry in shipped["load_from"]]
        assert names == list(CODE)
        servers = [{"grpc_server": {"socket": str(home / name), "location_name": name}} for name in names]
        self.workspace.write_text(yaml.safe_dump({"load_from": servers}))

    def start(self, name: str) -> None:
        dagster = Path(sys.executable).with_name("dagster")
        with (self._home / f"{name}.log").open("ab") as log:
            self._servers[name] = subprocess.Popen(
                [dagster, "api", "grpc", "--socket", self._home / name, *CODE[name]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._home,
                start_new_session=True,
            )

    def started(self, name: str) -> bool:
        assert self._servers[name].poll() is None, (self._home / f"{name}.log").read_text()
        return (self._home / name).exists()

    def kill(self, name: str) -> None:
        server = self._servers.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # and all that it started
        server.wait()
        (self._home / name).unlink(missing_ok=True)

    def kill_all(self) -> None:
        for name in list(self._servers):
            self.kill(name)


@pytest.fixture
def instance(open_dir: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    # The path must be short: sockets are in it.
    home = Path(tempfile.mkdtemp(dir=open_dir))
    monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(database_url))
    shutil.copy(ROOT / "deploy/postgres/dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def site(instance: dg.DagsterInstance, tmp_path: Path, database_url: str) -> Iterator[Site]:
    # No home: a code server is told of the instance with each run.
    ours = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    settings = {"DATA_DIR": str(tmp_path / "data"), "DATABASE_URL": database_url, "SESSIONS": "always"}
    running = Site(Path(instance.root_directory), {**ours, **settings, "FAKE_CAPTURE": "lock"})
    try:
        yield running
    finally:
        running.kill_all()


def test_replacing_everything_else_does_not_touch_a_capture(instance: dg.DagsterInstance, site: Site) -> None:
    for name in CODE:
        site.start(name)
    wait_until(lambda: all(map(site.started, CODE)))
    live = [dg.AssetCheckKey(LIVE_FEED, name) for name in LIVE_CHECKS]
    with WorkspaceProcessContext(instance, WorkspaceFileTarget([str(site.workspace)])) as workspace:

        def ask(query: str) -> Any:
            return execute_query(workspace, query)["data"]

        def capture() -> int | None:
            told = "\n".join(entry.user_message for entry in instance.all_logs(run_id))
            found = re.search(r"started as process (\d+)", told)
            return int(found[1]) if found else None

        def beats_again() -> bool:
            latest = [record.storage_id for record in instance.fetch_observations(TICKS, limit=1).records]
            wait_until(lambda: [r.storage_id for r in instance.fetch_observations(TICKS, limit=1).records] != latest)
            return True

        run_id = ask(LAUNCH)["launchRun"]["run"]["runId"]
        instance.launch_run(run_id, workspace.create_request_context())  # as the daemon does with what is queued
        wait_until(lambda: len(instance.event_log_storage.get_latest_asset_check_execution_by_key(live)) == len(live))
        pid = capture()
        assert pid is not None

        # What the run reports finds its assets and checks in the other location, the only one that defines them.
        shown = ask(SHOWN)
        locations = {
            node["assetKey"]["path"][0]: node["repository"]["location"]["name"] for node in shown["assetNodes"]
        }
        assert locations["live_feed"] == locations["ticks"] == locations["raw_packets"] == "dhan_pipeline"
        checks = {check["name"]: check for node in shown["live"] for check in node["assetChecksOrError"]["checks"]}
        assert checks.keys() >= set(LIVE_CHECKS)
        assert all(checks[name]["executionForLatestMaterialization"]["status"] == "SUCCEEDED" for name in LIVE_CHECKS)

        before = ask(RELOAD)
        site.kill("dhan_pipeline")
        assert beats_again()
        site.start("dhan_pipeline")
        wait_until(lambda: site.started("dhan_pipeline"))
        assert ask(RELOAD) != before
        assert beats_again()
        assert capture() == pid
        os.kill(pid, 0)  # it is there

        instance.add_run_tags(run_id, {STOP_TAG: "the test is over"})
        wait_until(lambda: instance.get_runs()[0].is_finished)
        assert [(run.run_id, run.status.value) for run in instance.get_runs()] == [(run_id, "SUCCESS")]
