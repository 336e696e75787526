"""The reference data, materialised for real."""

from dhan_pipeline.subscriptions import read_subscriptions
from dhan_pipeline_tests.orchestration.conftest import Pipeline
from dhan_pipeline_tests.orchestration.materialising import metadata, run_job, why_failed


def test_the_instrument_sync_downloads_loads_and_resolves(pipeline: Pipeline) -> None:
    result = run_job(pipeline, "instrument_sync_job")
    assert result.success
    master = metadata(result, "scrip_master")
    assert (master["dagster/row_count"], master["layout"], master["quarantined"]) == (3, "compact", 0)
    assert "| NSE_EQ | 2 |" in master["segments"]
    assert metadata(result, "instruments")["inserted"] == 3
    subscriptions = metadata(result, "subscriptions")
    assert (subscriptions["dagster/row_count"], subscriptions["missing"]) == (2, 1)
    assert [s.symbol for s in read_subscriptions(pipeline.settings.subscriptions_path)] == ["NIFTY", "RELIANCE"]


def test_what_a_person_can_mend_is_said_in_one_sentence(pipeline: Pipeline) -> None:
    pipeline.settings.subscriptions_file.unlink()
    result = run_job(pipeline, "instrument_sync_job")
    assert why_failed(result).startswith("There is no file of rules")
