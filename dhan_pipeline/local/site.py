"""What a production site has, on one machine: PostgreSQL, Dagster's three servers, and the live page."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

import dhan_pipeline
from dhan_pipeline.local.guardian import Guardian
from dhan_pipeline.local.services import Service, Services, answers, port_beside
from dhan_pipeline.orchestration.names import ROLE_TAG, STOP_TAG
from dhan_pipeline.sources import SOURCES
from dhan_pipeline.store import embedded

#: Longest that the ingest runs may take to flush and end: seconds, where the machine is busy.
FLUSH_S = 15.0

#: Where Dagster's programs find what we have defined.
MODULE = ("--module-name", "dhan_pipeline.definitions")

_CONFIG = "dagster.yaml"


@contextmanager
def postgres(data_dir: Path, guardian: Guardian, bin_dir: Path | None = None) -> Iterator[str]:
    """Run the embedded server, unless it runs already and is somebody else's; yields its URL, password included."""
    server = embedded.start(data_dir, bin_dir)
    if server.started:
        guardian.begin(data_dir)
    try:
        yield server.url
    finally:
        if server.started:
            embedded.stop(data_dir, bin_dir)
            guardian.end(data_dir)


def write_dagster_home(home: Path, *, anew: bool) -> None:
    """Make a folder Dagster's home on one machine. What a person has changed in it stays, unless `anew`."""
    home.mkdir(parents=True, exist_ok=True)
    if anew or not (home / _CONFIG).exists():
        package = Path(dhan_pipeline.__file__).parent
        config = Path("deploy/local") / _CONFIG  # in the package once installed, beside it in a checkout
        shutil.copy(package / config if (package / config).exists() else package.parent / config, home)


@contextmanager
def code_server(services: Services, environment: Mapping[str, str]) -> Iterator[tuple[Service, tuple[str, str]]]:
    """Run the code server; yields it, and the options with which Dagster's programs find it."""
    # The path of a Unix socket has at most 104 bytes on macOS; a data directory's may be longer.
    with tempfile.TemporaryDirectory(prefix="dhan-", dir="/tmp") as name:
        socket, workspace = Path(name) / "code", Path(name) / "workspace.yaml"
        location = {"grpc_server": {"socket": str(socket), "location_name": "dhan_pipeline"}}
        workspace.write_text(yaml.safe_dump({"load_from": [location]}))
        command = ("dagster", "api", "grpc", "--socket", str(socket), *MODULE)
        with services.run("code-server", *command, environment=environment) as code:
            code.wait_until(socket.exists)
            yield code, ("--workspace", str(workspace))


@contextmanager
def dagster(
    services: Services, environment: Mapping[str, str], port: int, before_capture: Callable[[dg.DagsterInstance], None]
) -> Iterator[dg.DagsterInstance]:
    """Run Dagster over the DAGSTER_HOME of the environment, its UI on a port of 127.0.0.1; stop it in order.

    `before_capture` is called once the definitions are loaded, and before the daemon starts, whose sensor starts the
    capture. Raises LocalError where something does not start.
    """
    with ExitStack() as stack:
        # Makes the storage: two processes that do so at once break it.
        instance = stack.enter_context(dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]))
        _end_old_runs(instance)
        _, workspace = stack.enter_context(code_server(services, environment))
        address = ("--host", "127.0.0.1", "--port", str(port))
        web = stack.enter_context(
            services.run("webserver", "dagster-webserver", *address, *workspace, environment=environment)
        )
        before_capture(instance)
        web.wait_until(lambda: answers(f"http://127.0.0.1:{port}/server_info"))
        daemon = stack.enter_context(
            services.run("daemon", "dagster-daemon", "run", *workspace, environment=environment)
        )
        try:
            yield instance
        finally:
            daemon.ask_to_stop()
            web.ask_to_stop()
            stop_ingest_runs(instance)


@contextmanager
def live_page(
    services: Services, environment: Mapping[str, str], dagster_port: int, database_url: str
) -> Iterator[str]:
    """Run the live page beside Dagster, on the next port or on a free one; yields its address."""
    port = port_beside(dagster_port)
    environment = {**environment, "DATABASE_URL": database_url}
    with services.run("live-page", "dhan-pipeline", "live", "--port", str(port), environment=environment):
        yield f"http://127.0.0.1:{port}"


def sync_instruments(services: Services, environment: Mapping[str, str]) -> None:
    """Run the instrument sync as a job of Dagster's. Raises LocalError where it failed."""
    command = ("dagster", "job", "execute", *MODULE, "--job", "instrument_sync_job")
    with services.run("instrument-sync", *command, environment=environment, keep=False) as sync:
        sync.wait_until_done()


def ingest_runs(instance: dg.DagsterInstance) -> Sequence[dg.DagsterRun]:
    """The ingest runs that are on their way, or capture."""
    alive = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    return instance.get_runs(dg.RunsFilter(statuses=alive, tags={ROLE_TAG: "ingest"}))


def stop_ingest_runs(instance: dg.DagsterInstance) -> None:
    """Ask the ingest runs to flush and succeed, and wait for it. The daemon must not be there to start another."""
    runs = ingest_runs(instance)
    for run in runs:
        instance.add_run_tags(run.run_id, {STOP_TAG: "everything is stopped"})
    deadline = time.monotonic() + FLUSH_S
    while time.monotonic() < deadline:
        left = [instance.get_run_by_id(run.run_id) for run in runs]
        if all(run is None or run.is_finished for run in left):
            return
        time.sleep(0.1)


def _end_old_runs(instance: dg.DagsterInstance) -> None:
    """Settle what was left by one that was killed: its runs are dead, and do not count as stopped by a person."""
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        instance.report_run_failed(run, "What it ran under was killed.")
    for run in instance.get_runs(dg.RunsFilter(tags={ROLE_TAG: "ingest"}), limit=len(SOURCES)):
        if run.status == dg.DagsterRunStatus.CANCELED:
            instance.add_run_tags(run.run_id, {STOP_TAG: "everything was stopped"})
