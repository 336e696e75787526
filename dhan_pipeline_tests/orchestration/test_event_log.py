"""Pruning takes what is old and nobody asks for; the present state stays as it is, whatever the storage."""

import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from dhan_pipeline.orchestration import event_log, ingest
from dhan_pipeline.orchestration.event_log import KEEP_DAYS
from dhan_pipeline.orchestration.names import LIVE_FEED, RAW_PACKETS, TICKS
from dhan_pipeline.orchestration.partitions import hourly_partitions
from dhan_pipeline.quality.measures import HOUR_CHECKS, LIVE_CHECKS
from dhan_pipeline.store.engine import sqlalchemy_url
from dhan_pipeline_tests.orchestration.conftest import (
    HOUR,
    NEXT_HOUR,
    Pipeline,
    Record,
    checks,
    execute,
    meanwhile,
    stop_when,
)

ROOT = Path(__file__).parents[2]

TIMES = ((SqlEventLogStorageTable, "timestamp"), (AssetCheckExecutionsTable, "evaluation_event_timestamp"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat and all live checks a tenth of a second; batches of which there are several."""
    for name in ("POLL_S", "HEARTBEAT_S", "LIVE_JUDGE_S", "LIVE_REPORT_S"):
        monkeypatch.setattr(ingest, name, 0.1)
    monkeypatch.setattr(event_log, "BATCH_ROWS", 7)


@pytest.fixture(params=["local", "postgres"])
def instance(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance in a copy of the home that we ship; the pipeline's."""
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(database_url))
    shutil.copy(ROOT / "deploy" / request.param / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def tables(instance: dg.DagsterInstance) -> Iterator[tuple[sa.Connection, sa.Table, str]]:
    """All that is pruned: a connection, a table, and its column that says when."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    for connected in (storage.index_connection(), storage.run_connection(RUNLESS_RUN_ID)):
        with connected as conn:
            yield conn, SqlEventLogStorageTable, "timestamp"
            yield conn, AssetCheckExecutionsTable, "evaluation_event_timestamp"


def let_days_pass(instance: dg.DagsterInstance, days: int) -> None:
    then = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days)
    for conn, table, column in tables(instance):
        conn.execute(sa.update(table).values({column: then}))


def events(instance: dg.DagsterInstance) -> Counter[str | None]:
    """How many there are of each type, None being messages. With SQLite, in the index over all runs."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as conn:
        return Counter(conn.execute(sa.select(SqlEventLogStorageTable.c.dagster_event_type)).scalars())


def capture(pipeline: Pipeline) -> None:
    """An ingest run that seals the hour and reports each live check a few times."""
    name = LIVE_CHECKS[-1]
    before = len(checks(pipeline, LIVE_FEED, name))

    def enough() -> bool:
        sealed = HOUR in pipeline.instance.get_materialized_partitions(TICKS)
        return sealed and len(checks(pipeline, LIVE_FEED, name)) >= before + 3

    with meanwhile(stop_when(pipeline, enough)):
        assert execute(pipeline, HOUR).success


def materialize(pipeline: Pipeline, hour: str) -> bool:
    """Whether materialising an hour of ticks succeeds."""
    job = pipeline.definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=pipeline.instance, asset_selection=[TICKS], partition_key=hour, raise_on_error=False
    )
    return result.success


def present(pipeline: Pipeline) -> dict[str, object]:
    """What the UI and the sensors ask for."""
    instance, hours = pipeline.instance, hourly_partitions(pipeline.settings)
    log = instance.event_log_storage
    keys = [dg.AssetCheckKey(TICKS, name) for name in HOUR_CHECKS]
    live = [dg.AssetCheckKey(LIVE_FEED, name) for name in LIVE_CHECKS]
    state: dict[str, object] = {
        "runs": [
            (record.dagster_run, record.start_time, record.end_time)
            for record in instance.get_run_records()
            if record.dagster_run.job_name != "event_log_job"
        ],
        "summaries": log.get_asset_check_summary_records([*keys, *live]),
        "check hours": log.get_asset_check_partition_info(keys),
        "check state": log.get_asset_check_state([*((key, hours) for key in keys), *((key, None) for key in live)]),
        "failures": [
            entry.dagster_event.step_failure_data.user_failure_data.description
            for run in instance.get_runs()
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ],
    }
    for key in (RAW_PACKETS, TICKS):
        state |= {
            f"{key} latest": instance.get_latest_materialization_event(key),
            f"{key} all": instance.fetch_materializations(key, limit=100).records,
            f"{key} hours": instance.get_materialized_partitions(key),
            f"{key} versions": log.get_latest_tags_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
            ),
            f"{key} shown": get_and_update_asset_status_cache_value(instance, key, hours),
        }
    return state


def prune(pipeline: Pipeline) -> dict[str, int]:
    """Run the job, and return how many rows it says it deleted."""
    result = pipeline.definitions().resolve_job_def("event_log_job").execute_in_process(instance=pipeline.instance)
    assert result.success
    (output,) = result.filter_events(lambda event: event.event_type == dg.DagsterEventType.STEP_OUTPUT)
    metadata = {name: int(value.value) for name, value in output.step_output_data.metadata.items()}
    assert metadata.pop("bytes") > 0
    return metadata


def test_what_is_old_goes_and_the_present_state_stays(pipeline: Pipeline, record_hour: Record) -> None:
    instance = pipeline.instance
    record_hour(HOUR)
    capture(pipeline)
    assert materialize(pipeline, HOUR)
    assert not materialize(pipeline, NEXT_HOUR)  # the journal holds nothing of it
    job = pipeline.definitions().resolve_job_def("ingest_job")
    going_on = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    instance.report_engine_event("It goes on.", going_on)

    let_days_pass(instance, KEEP_DAYS - 1)
    before, events_before = present(pipeline), events(instance)
    assert before[f"{TICKS} hours"] == {HOUR}
    assert before["failures"] == [f"The journal holds nothing of the hour {NEXT_HOUR}."]
    assert set(prune(pipeline).values()) == {0}
    assert events(instance) >= events_before

    let_days_pass(instance, KEEP_DAYS + 1)
    deleted, left = prune(pipeline), events(instance)
    assert present(pipeline) == before
    assert deleted["observations"] == events_before["ASSET_OBSERVATION"] > 0
    assert left["ASSET_OBSERVATION"] == 0
    # The last outcome of each check; of those of the hour, that of the rebuild.
    assert {len(checks(pipeline, LIVE_FEED, name)) for name in LIVE_CHECKS} == {1}
    assert left["ASSET_CHECK_EVALUATION"] == len(LIVE_CHECKS) + len(HOUR_CHECKS)
    if not instance.event_log_storage.is_run_sharded:
        assert deleted["run_logs"] > 0
        told = [entry.dagster_event_type for entry in instance.all_logs(going_on.run_id)]
        assert told == [dg.DagsterEventType.ENGINE_EVENT]

    # Nothing is left to be deleted.
    again = prune(pipeline)
    assert set(again.values()) == {0}
    assert present(pipeline) == before
