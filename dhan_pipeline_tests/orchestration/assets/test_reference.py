"""The reference data, materialised for real."""

from pathlib import Path

from dhan_pipeline.instruments import generate_instrument_token
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
    assert subscriptions["calendar"] == "ok"
    assert [s.symbol for s in read_subscriptions(pipeline.settings.subscriptions_path)] == ["NIFTY", "RELIANCE"]


def test_each_sync_says_what_is_wrong_with_the_calendar(pipeline: Pipeline, tmp_path: Path) -> None:
    own = tmp_path / "sessions.csv"
    own.write_text("date,equity\n2026-11-08,18:15\n")
    settings = pipeline.settings.model_copy(update={"sessions": "exchange", "sessions_file": own})
    result = run_job(Pipeline(settings, pipeline.instance), "instrument_sync_job")
    assert result.success
    assert metadata(result, "subscriptions")["calendar"].startswith(f"{own}, line 2: 18:15 is nothing that equity can")


def test_with_both_brokers_each_has_its_files_its_rows_and_its_metadata(pipeline: Pipeline) -> None:
    settings = pipeline.settings.model_copy(update={"data_source": "kite,dhan"})
    result = run_job(Pipeline(settings, pipeline.instance), "instrument_sync_job")
    assert result.success
    master = metadata(result, "scrip_master")
    assert (master["dagster/row_count"], master["dhan/row_count"], master["kite/row_count"]) == (5, 3, 2)
    assert (master["kite/layout"], master["kite/quarantined"]) == ("kite", 1)
    assert (metadata(result, "instruments")["dhan/inserted"], metadata(result, "instruments")["kite/inserted"]) == (
        3,
        2,
    )
    assert metadata(result, "subscriptions")["dagster/row_count"] == 4
    tokens = {
        source: [s.instrument_token for s in read_subscriptions(settings.of(source).subscriptions_path)]
        for source in settings.sources
    }
    assert tokens == {
        "dhan": [generate_instrument_token("IDX_I", 13), generate_instrument_token("NSE_EQ", 2885)],
        "kite": [256265, 738561],
    }


def test_a_broker_that_cannot_be_asked_holds_the_other_s_sync_not_up(pipeline: Pipeline) -> None:
    settings = pipeline.settings.model_copy(update={"data_source": "kite,dhan", "kite_api_url": "http://127.0.0.1:1"})
    result = run_job(Pipeline(settings, pipeline.instance), "instrument_sync_job")
    assert result.success
    assert "could not be downloaded" in metadata(result, "scrip_master")["kite/problem"]
    assert metadata(result, "instruments")["dhan/inserted"] == 3
    assert [s.symbol for s in read_subscriptions(settings.of("dhan").subscriptions_path)] == ["NIFTY", "RELIANCE"]
    assert not settings.of("kite").subscriptions_path.exists()


def test_what_a_person_can_mend_is_said_in_one_sentence(pipeline: Pipeline) -> None:
    pipeline.settings.subscriptions_file.unlink()
    result = run_job(pipeline, "instrument_sync_job")
    assert why_failed(result).startswith("There is no file of rules")
