"""Hours that are judged again, without being rebuilt: those that a person chooses, or the latest."""

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline_tests.orchestration.conftest import HOUR, NEXT_HOUR, Pipeline, Record
from dhan_pipeline_tests.orchestration.materialising import materialize, why_failed


@pytest.fixture
def damaged(pipeline: Pipeline, record_hour: Record, conn: connection) -> Pipeline:
    """An hour that was well when it was materialised, and has lost a row of the ledger since."""
    record_hour(HOUR)
    assert materialize(pipeline, TICKS, HOUR).success
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM ingest_ledger WHERE block_id = (SELECT min(block_id) FROM ingest_ledger)")
    return pipeline


def failed(result: dg.ExecuteInProcessResult) -> set[tuple[str, str | None]]:
    found = result.get_asset_check_evaluations()
    assert found
    return {(evaluation.check_name, evaluation.partition) for evaluation in found if not evaluation.passed}


def test_a_chosen_hour_is_judged_and_left_as_it_is(damaged: Pipeline) -> None:
    job = damaged.definitions().resolve_job_def("hour_checks_job")
    result = job.execute_in_process(instance=damaged.instance, partition_key=HOUR)
    assert failed(result) == {("conservation", HOUR)}
    assert len(damaged.instance.fetch_materializations(TICKS, limit=5).records) == 1
    key = dg.AssetCheckKey(TICKS, "conservation")
    (info,) = damaged.instance.event_log_storage.get_asset_check_partition_info([key])
    assert (info.partition_key, info.latest_execution_status.value, info.is_current) == (HOUR, "FAILED", True)


def test_an_hour_that_is_not_materialised_is_not_judged(pipeline: Pipeline, record_hour: Record) -> None:
    record_hour(HOUR)
    job = pipeline.definitions().resolve_job_def("hour_checks_job")
    result = job.execute_in_process(instance=pipeline.instance, partition_key=HOUR, raise_on_error=False)
    assert why_failed(result).startswith(f"The hour {HOUR} of ticks is not materialised")


def test_an_hour_of_which_nothing_came_is_passed_over(damaged: Pipeline) -> None:
    job = damaged.definitions().resolve_job_def("hour_checks_job")
    result = job.execute_in_process(instance=damaged.instance, partition_key=NEXT_HOUR)
    assert result.success
    assert result.get_asset_check_evaluations() == []


def execute_all(pipeline: Pipeline) -> dg.ExecuteInProcessResult:
    """As the button on the page of checks does: a run without an hour."""
    selection = dg.AssetSelection.checks_for_assets(TICKS)
    all_checks = dg.Definitions(jobs=[dg.define_asset_job("execute_all", selection=selection)])
    job = dg.Definitions.merge(pipeline.definitions(), all_checks).resolve_job_def("execute_all")
    return job.execute_in_process(instance=pipeline.instance, raise_on_error=False)


def test_a_run_of_the_checks_without_an_hour_judges_the_latest(damaged: Pipeline) -> None:
    assert failed(execute_all(damaged)) == {("conservation", HOUR)}


def test_without_any_hour_there_is_nothing_to_judge(pipeline: Pipeline) -> None:
    assert why_failed(execute_all(pipeline)).startswith("There is no hour to judge yet")
