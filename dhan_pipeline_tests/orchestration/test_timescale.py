"""The storage of ticks is watched: every 15 minutes where TimescaleDB has jobs, and whenever a person asks."""

from datetime import datetime

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.orchestration.resources import build_resources
from dhan_pipeline.orchestration.timescale import (
    TICK_STORAGE,
    tick_storage,
    tick_storage_checks,
    tick_storage_job,
    tick_storage_schedule,
)
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import timescale
from dhan_pipeline_tests.orchestration.conftest import NOW, Pipeline


def definitions(settings: Settings) -> dg.Definitions:
    return dg.Definitions(
        assets=[tick_storage],
        asset_checks=[tick_storage_checks],
        jobs=[tick_storage_job],
        schedules=[tick_storage_schedule],
        resources=build_resources(settings, NOW, []),
        executor=dg.in_process_executor,
    )


def run(pipeline: Pipeline) -> dict[str, dg.AssetCheckEvaluation]:
    job = definitions(pipeline.settings).resolve_job_def("tick_storage_job")
    result = job.execute_in_process(instance=pipeline.instance)
    assert result.success
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def scheduled(settings: Settings, instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    at = datetime(2026, 11, 20, 9, 15, tzinfo=IST)
    context = dg.build_schedule_context(instance, at, resources=build_resources(settings, NOW, []))
    said = tick_storage_schedule(context)
    assert isinstance(said, dg.RunRequest | dg.SkipReason)
    return said


def test_the_storage_is_observed_and_judged(pipeline: Pipeline, conn: connection) -> None:
    licence = timescale.licence(conn)
    outcomes = run(pipeline)
    assert outcomes["licence"].passed == (licence != "apache")
    if licence != "timescale":
        assert outcomes["jobs"].passed
    else:  # of a database so young, the server has not run them all
        assert "failed" not in str(outcomes["jobs"].description)
    [observed] = pipeline.instance.fetch_observations(TICK_STORAGE, limit=1).records
    assert observed.asset_observation is not None
    metadata = observed.asset_observation.metadata
    assert metadata["partitions"].value == 0
    assert ("native partitions" in str(metadata["storage"].value)) == (licence is None)


def test_it_is_watched_all_the_time_where_jobs_run_and_else_once_a_day(pipeline: Pipeline, conn: connection) -> None:
    said = scheduled(pipeline.settings, pipeline.instance)
    assert isinstance(said, dg.RunRequest)
    assert said.run_key == (None if timescale.is_hypertable(conn) else "2026-11-20")


def test_a_database_that_does_not_answer_is_not_asked(pipeline: Pipeline) -> None:
    away = pipeline.settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/none"})
    said = scheduled(away, pipeline.instance)
    assert isinstance(said, dg.SkipReason)
    assert str(said.skip_message).startswith("The database cannot be used: ")
    with pytest.raises(dg.Failure):
        definitions(away).resolve_job_def("tick_storage_job").execute_in_process(instance=pipeline.instance)
