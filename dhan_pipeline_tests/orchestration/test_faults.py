"""What surrounds a run is killed, one after the other: the run, the daemon, the code server, Dagster's storage."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import dagster as dg
import dagster_postgres.utils
import pytest
import yaml

from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.orchestration import ingest
from dhan_pipeline.orchestration.names import LIVE_FEED, ROLE_TAG, TICKS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect, create_database, sqlalchemy_url
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.broker import NO_BROKER
from dhan_pipeline_tests.orchestration.conftest import (
    HOUR,
    Pipeline,
    Record,
    Said,
    checks,
    execute,
    meanwhile,
    stop_when,
    wait_until,
)

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def parent(pid: int) -> int:
    listed = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(listed.stdout)


def reset_signals() -> None:
    # Where the tests run in a shell's background, SIGINT is ignored; Dagster would ignore SIGTERM then.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Dagster:
    """The daemon and the code server as processes, in a home of their own, and what their storage tells."""

    def __init__(self, home: Path, settings: Settings) -> None:
        self.home = home
        self.socket = home / "code.sock"
        shutil.copy(ROOT / "deploy/local/dagster.yaml", home)
        location = {"grpc_server": {"socket": str(self.socket), "location_name": "dhan_pipeline"}}
        (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [location]}))
        assert settings.database_url
        self.environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "DATA_DIR": str(settings.data_dir),
            "DATABASE_URL": settings.database_url,
            "SESSIONS": "always",
            "FAKE_CAPTURE": "lock",
            **{name.upper(): url for name, url in NO_BROKER.items()},
        }
        self.started: list[subprocess.Popen[bytes]] = []
        self.instance = dg.DagsterInstance.from_config(str(home))

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.home,
                start_new_session=True,
                preexec_fn=reset_signals,
            )
        self.started.append(process)
        return process

    def start_code_server(self) -> subprocess.Popen[bytes]:
        self.socket.unlink(missing_ok=True)
        file = str(Path(__file__).with_name("location.py"))
        server = self.start("code", "dagster", "api", "grpc", "--socket", str(self.socket), "--python-file", file)
        wait_until(self.socket.exists)
        return server

    def start_daemon(self) -> subprocess.Popen[bytes]:
        return self.start("daemon", "dagster-daemon", "run", "--workspace", str(self.home / "workspace.yaml"))

    def stop(self) -> None:
        for process in reversed(self.started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started
            process.wait()
        self.instance.dispose()

    def runs(self) -> Sequence[dg.DagsterRun]:
        """Of the ingest job, the newest first. Schedules start others every quarter of an hour."""
        return self.instance.get_runs(dg.RunsFilter(tags={ROLE_TAG: "ingest"}))

    def captures(self) -> list[int]:
        """Process ids of the captures of all runs, the newest first."""
        return [
            int(found[1])
            for run in self.runs()
            for entry in self.instance.all_logs(run.run_id)
            if (found := re.search(r"started as process (\d+)", entry.user_message))
        ]

    def statuses(self) -> list[str]:
        """Of all runs, the newest first."""
        return [run.status.value for run in self.runs()]

    def beats_again(self) -> bool:
        """Whether a heartbeat came since the last one that there was when this was first asked."""
        return self._new(lambda: [r.storage_id for r in self.instance.fetch_observations(TICKS, limit=1).records])

    def ticks_again(self) -> bool:
        """Whether the sensor was evaluated since this was first asked."""
        return self._new(
            lambda: [
                state.instigator_data.last_tick_start_timestamp
                for state in self.instance.all_instigator_state()
                if state.instigator_name == "ingest_supervisor" and state.instigator_data
            ]
        )

    def _new(self, ask: Callable[[], Sequence[object]]) -> bool:
        before = ask()
        deadline = time.monotonic() + 60
        while ask() == before:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def dagster(tmp_path: Path, open_dir: Path, database_url: str) -> Iterator[Dagster]:
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url)
    subscription = Subscription(generate_instrument_token("NSE_EQ", 1), Mode.FULL, "X")
    write_subscriptions(settings.subscriptions_path, [subscription])
    # Its path must be short: a socket is in it.
    running = Dagster(Path(tempfile.mkdtemp(dir=open_dir)), settings)
    try:
        yield running
    finally:
        running.stop()


def test_whatever_is_killed_around_it_one_capture_goes_on_or_is_replaced(dagster: Dagster) -> None:
    code_server, daemon = dagster.start_code_server(), dagster.start_daemon()
    wait_until(dagster.captures)
    [first] = dagster.captures()

    # The run: its capture's input closes, so it ends by itself; the supervisor launches another.
    os.kill(parent(first), signal.SIGKILL)
    wait_until(lambda: not is_alive(first))
    wait_until(lambda: len(dagster.captures()) == 2)
    second = dagster.captures()[0]
    assert dagster.statuses() == ["STARTED", "FAILURE"]

    # The daemon: the run does not notice, and the next daemon adopts it.
    daemon.kill()
    daemon.wait()
    assert dagster.beats_again()
    dagster.start_daemon()
    assert dagster.ticks_again()
    assert dagster.beats_again()

    # The code server: the run goes on as an orphan, which the next code server's supervisor leaves alone.
    code_server.kill()
    code_server.wait()
    assert dagster.beats_again()
    code_server = dagster.start_code_server()
    assert dagster.ticks_again()
    assert dagster.beats_again()
    assert is_alive(second)
    assert dagster.captures() == [second, first]
    assert dagster.statuses() == ["STARTED", "FAILURE"]

    # The orphan: nobody is its parent, so the supervisor learns of its death from the capture's lock.
    os.kill(parent(second), signal.SIGKILL)
    wait_until(lambda: len(dagster.captures()) == 3)
    third = dagster.captures()[0]
    assert not is_alive(second)
    assert dagster.statuses() == ["STARTED", "FAILURE", "FAILURE"]

    # Nobody can signal an orphan; it sees for itself that it is to end.
    code_server.kill()
    code_server.wait()
    dagster.start_code_server()
    dagster.instance.report_run_canceling(dagster.runs()[0])
    wait_until(lambda: not is_alive(third))
    wait_until(lambda: dagster.statuses() == ["CANCELED", "FAILURE", "FAILURE"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "POLL_S", 0.1)
    monkeypatch.setattr(ingest, "RETRY_S", 0.1)
    monkeypatch.setattr(ingest, "LIVE_JUDGE_S", 0.1)
    # Dagster tries a connection to PostgreSQL for 12 s before it says that there is none.
    monkeypatch.setattr(dagster_postgres.utils, "calculate_delay", lambda **_: 0.02)


@pytest.mark.usefixtures("quick")
def test_while_dagsters_storage_is_away_the_capture_goes_on_and_what_happened_is_reported_later(
    pipeline: Pipeline,
    record_hour: Record,
    capture_says: Said,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"dagster_away_{tmp_path.name[-8:]}".lower()
    monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(create_database(postgres_url, name)))
    shutil.copy(ROOT / "deploy/postgres/dagster.yaml", tmp_path)

    def storage(allowed: bool) -> None:
        with closing(connect(postgres_url)) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}")
                cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        pipeline = Pipeline(pipeline.settings, instance)
        record_hour(HOUR)

        def take_storage_away_and_give_it_back() -> None:
            stop = stop_when(pipeline, lambda: checks(pipeline, TICKS, "conservation"))
            try:
                wait_until(lambda: checks(pipeline, LIVE_FEED, "connected"))
                storage(allowed=False)
                capture_says.say(event="hour_complete", hour=HOUR)
                wait_until(lambda: f"Dagster could not be told (reporting the hour {HOUR})" in caplog.text)
                wait_until(lambda: "The run's status cannot be read, the capture goes on" in caplog.text)
            finally:
                storage(allowed=True)
                stop()

        with caplog.at_level("WARNING"), meanwhile(take_storage_away_and_give_it_back):
            result = execute(pipeline)
        assert result.success
        assert instance.get_materialized_partitions(TICKS) == {HOUR}
