"""Definitions over a journal and a database of the test's own, a real Dagster instance, and a capture that is fake."""

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.orchestration.build import build_defs
from dhan_pipeline.orchestration.names import STOP_TAG
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.partitions import instant

HOUR = "2026-11-20T09:00"
NEXT_HOUR = "2026-11-20T10:00"
OPEN_HOUR = "2026-11-20T11:00"

#: A quarter past eleven on the day of these hours. Stands still, nearly.
NOW = Clock(start_ns=parse_hour_key(OPEN_HOUR) + 15 * 60 * 10**9, speed=1e-9)


@dataclass(frozen=True)
class Pipeline:
    """What a test needs of the whole."""

    settings: Settings
    instance: dg.DagsterInstance

    def definitions(self, *fake_capture_arguments: str) -> dg.Definitions:
        fake = str(Path(__file__).with_name("fake_capture.py"))
        return build_defs(
            settings=self.settings, clock=NOW, capture_command=[sys.executable, fake, *fake_capture_arguments]
        )


@contextmanager
def local_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dagster's storage of nothing: a copy is made in no time, unlike a new one."""
    home = tmp_path_factory.mktemp("dagster")
    with local_instance(home):
        return home


@pytest.fixture
def instance(tmp_path: Path, empty_home: Path) -> Iterator[dg.DagsterInstance]:
    with local_instance(shutil.copytree(empty_home, tmp_path / "dagster")) as instance:
        yield instance


@pytest.fixture
def pipeline(tmp_path: Path, database_url: str, instance: dg.DagsterInstance) -> Pipeline:
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=database_url,
        sessions="always",
        partitions_start=date(2026, 11, 20),
    )
    return Pipeline(settings, instance)


Record = Callable[..., None]


@pytest.fixture
def record_hour(pipeline: Pipeline, conn: connection) -> Record:
    """Puts five blocks of two messages, a heartbeat each, into an hour's journal and ledger; or fewer there."""

    def record_hour(hour: str, blocks_lost: int = 0, latency_ms: float = 12.5) -> None:
        start_ns = parse_hour_key(hour)
        with closing(JournalWriter(pipeline.settings.journal_dir, 0)) as writer:
            blocks = [
                writer.append([start_ns + i * 10**9] * 2, [0, 0], [False, False], [b"\x00" * 8] * 2) for i in range(5)
            ]
        with conn, conn.cursor() as cursor:
            for block in blocks[blocks_lost:]:
                cursor.execute(
                    "INSERT INTO ingest_ledger VALUES (%s, 0, %s, 2, 2, 0, 0, 2, 0, 16, %s, %s, now(), %s)",
                    (
                        block.block_id,
                        instant(start_ns),
                        instant(block.first_received_ns),
                        instant(block.last_received_ns),
                        latency_ms,
                    ),
                )

    return record_hour


@pytest.fixture
def record_gap(conn: connection) -> Record:
    """Puts a gap into the books: of an equity on connection 2, from so many seconds after an hour's start."""

    def record_gap(
        hour: str, from_s: float, seconds: float | None, cause: Cause = Cause.STALL, detail: str = "", gap_id: int = 1
    ) -> None:
        started_ns = parse_hour_key(hour) + int(from_s * 1e9)
        ended_ns = None if seconds is None else started_ns + int(seconds * 1e9)
        token = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
        with conn, conn.cursor() as cursor:
            apply_notes(cursor, 0, [(gap_id, Gap(gap_id, 2, started_ns, cause, detail, (token,), ended_ns))])

    return record_gap


class Said:
    """What the fake capture is made to say while it runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def say(self, **event: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def gap(self, hour: str, from_s: float, seconds: float, *, over: bool, **facts: Any) -> None:
        """A gap on connection 2 began, or is over."""
        started = instant(parse_hour_key(hour) + int(from_s * 1e9))
        ended = (started + timedelta(seconds=seconds)).isoformat() if over else None
        event = {
            "connection": 2,
            "cause": "stall",
            "detail": "",
            "instruments": 1,
            "recovery": "connected again" if over else "",
            **facts,
        }
        self.say(event="gap", started_at=started.isoformat(), ended_at=ended, seconds=seconds, **event)


@pytest.fixture
def capture_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    path = tmp_path / "says"
    monkeypatch.setenv("FAKE_CAPTURE_SAYS", str(path))
    return Said(path)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Act in another thread while the run has this one."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    if failures:
        raise failures[0]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def execute(pipeline: Pipeline, *complete_hours: str, job: str = "ingest_job") -> dg.ExecuteInProcessResult:
    ingest_job = pipeline.definitions(*complete_hours).resolve_job_def(job)
    return ingest_job.execute_in_process(instance=pipeline.instance, raise_on_error=False)


def stop_when(pipeline: Pipeline, condition: Callable[[], object]) -> Callable[[], None]:
    """Ask the run to stop once the condition holds; ask anyway at the end of patience."""

    def act() -> None:
        try:
            wait_until(condition)
        finally:
            pipeline.instance.add_run_tags(pipeline.instance.get_runs()[0].run_id, {STOP_TAG: "the test is over"})

    return act


def checks(pipeline: Pipeline, key: dg.AssetKey, name: str) -> list[dg.AssetCheckEvaluation]:
    """Evaluations of a check, the newest first."""
    records = pipeline.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(key, name), limit=100
    )
    return [record.evaluation for record in records if record.event and record.evaluation]
