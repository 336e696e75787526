"""The homes that we ship: Dagster accepts them, they differ only in storage, and either storage bears our events."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.scheduler.instigation import InstigatorType, TickStatus

from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline.store.engine import sqlalchemy_url
from dhan_pipeline_tests.orchestration.conftest import HOUR, Pipeline, Record, checks, execute, meanwhile, stop_when

ROOT = Path(__file__).parents[2]


def home(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name / "dagster.yaml").read_text())
    return content


@pytest.fixture(params=["local", "postgres"])
def shipped(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance in a copy of the home."""
    monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(database_url))
    shutil.copy(ROOT / "deploy" / request.param / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def test_the_homes_differ_only_in_storage() -> None:
    local, postgres = home("local"), home("postgres")
    assert postgres.pop("storage") == {"postgres": {"postgres_url": {"env": "DAGSTER_PG_URL"}}}
    assert local == postgres


def test_one_ingest_run_a_capture_two_of_a_backfill_at_once_and_nothing_kept_for_ever(
    shipped: dg.DagsterInstance,
) -> None:
    queue = shipped.get_concurrency_config().run_queue_config
    assert queue is not None
    limits = {limit["key"]: (limit["limit"], limit.get("value")) for limit in queue.tag_concurrency_limits}
    assert limits == {"dhan/capture": (1, {"applyLimitPerUniqueValue": True}), "dagster/backfill": (2, None)}
    assert shipped.run_monitoring_enabled
    for kind in (InstigatorType.SENSOR, InstigatorType.SCHEDULE):
        days = shipped.get_tick_retention_settings(kind)
        assert all(days[status] > 0 for status in (TickStatus.SKIPPED, TickStatus.SUCCESS, TickStatus.FAILURE))
    assert not shipped.telemetry_enabled
    assert not shipped.nux_enabled
    assert shipped.freshness_enabled  # by default; the master and the instruments have a deadline


def test_an_hour_is_sealed_whatever_the_storage(
    pipeline: Pipeline, shipped: dg.DagsterInstance, record_hour: Record
) -> None:
    record_hour(HOUR)
    pipeline = Pipeline(pipeline.settings, shipped)
    with meanwhile(stop_when(pipeline, lambda: checks(pipeline, TICKS, "conservation"))):
        result = execute(pipeline, HOUR)
    assert result.success
    assert shipped.get_materialized_partitions(TICKS) == {HOUR}
    keys = [dg.AssetCheckKey(TICKS, "conservation")]
    (info,) = shipped.event_log_storage.get_asset_check_partition_info(keys)
    assert (info.partition_key, info.latest_execution_status.value, info.is_current) == (HOUR, "SUCCEEDED", True)
