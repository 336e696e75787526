"""The code locations load alone, and show what they promise."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from dhan_pipeline.orchestration.build import PARTS, build_defs
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import COLUMNS

HOURLY, DAILY = dg.HourlyPartitionsDefinition, dg.DailyPartitionsDefinition

#: key: (upstream, group, kinds, partitions, checks)
ASSETS = {
    "scrip_master": (set(), "reference", {"csv"}, None, set()),
    "instruments": ({"scrip_master"}, "reference", {"postgres", "table"}, None, set()),
    "subscriptions": ({"instruments"}, "reference", {"csv"}, None, set()),
    "live_feed": (
        {"subscriptions"},
        "market_data",
        {"websocket"},
        None,
        {
            "parser_error_rate",
            "latency_p99",
            "conservation",
            "gaps",
            "connected",
            "silent_instruments",
            "trade_clock",
            "token",
            "disk",
            "queue_depth",
            "ready",
        },
    ),
    "raw_packets": ({"subscriptions"}, "market_data", {"arrow"}, HOURLY, set()),
    "ticks": (
        {"raw_packets"},
        "market_data",
        {"postgres", "table"},
        HOURLY,
        {"parser_error_rate", "latency_p99", "conservation", "gaps", "digest"},
    ),
    "candles_1m": ({"ticks"}, "market_data", {"postgres", "table"}, HOURLY, set()),
    "ticks_archive": ({"ticks"}, "market_data", {"parquet"}, DAILY, set()),
    "broker_candles": ({"subscriptions"}, "market_data", {"postgres", "table"}, DAILY, {"bars_fetched"}),
    "candle_reconciliation": (
        {"candles_1m", "broker_candles"},
        "market_data",
        {"postgres", "table"},
        DAILY,
        {"candles_agree"},
    ),
    "shadow_comparison": ({"ticks"}, "market_data", {"postgres", "table"}, HOURLY, {"sources_agree"}),
    "tick_storage": ({"ticks"}, "market_data", {"postgres"}, None, {"jobs", "licence"}),
    "alerts": (set(), "operations", set(), None, {"delivered"}),
}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    # A server that does not exist: definitions must not need one.
    return build_defs(settings=Settings(_env_file=None, database_url="postgresql://127.0.0.1:1/none"))


def test_everything_resolves(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)


def names(definitions: dg.Definitions) -> set[object]:
    """All that a code location has: jobs, sensors, schedules, assets, checks."""
    repository, graph = definitions.get_repository_def(), definitions.resolve_asset_graph()
    jobs = {name for name in repository.job_names if not name.startswith("__")}
    instigators = {instigator.name for instigator in (*repository.sensor_defs, *repository.schedule_defs)}
    return {*jobs, *instigators, *graph.get_all_asset_keys(), *graph.asset_check_keys}


def test_the_two_code_locations_of_production_have_everything_once(definitions: dg.Definitions) -> None:
    settings = Settings(_env_file=None, database_url="postgresql://127.0.0.1:1/none")
    ingest, rest = (names(build_defs(location=location, settings=settings)) for location in PARTS)
    assert ingest == {"ingest_job", "ingest_supervisor"}
    assert not ingest & rest
    assert ingest | rest == names(definitions)


def test_each_door_loads_in_a_fresh_process_without_a_warning(tmp_path: Path) -> None:
    code = (
        "import dagster as dg; from dhan_pipeline import definitions, ingest_definitions, pipeline_definitions\n"
        "for door in definitions, ingest_definitions, pipeline_definitions: dg.Definitions.validate_loadable(door.defs)"
    )
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (loaded.returncode, loaded.stderr) == (0, "")


def test_the_assets_are_these(definitions: dg.Definitions) -> None:
    checks = definitions.resolve_asset_graph().asset_check_keys
    shown = {
        spec.key.to_user_string(): (
            {dependency.asset_key.to_user_string() for dependency in spec.deps},
            spec.group_name,
            spec.kinds,
            spec.partitions_def and type(spec.partitions_def),
            {check.name for check in checks if check.asset_key == spec.key},
        )
        for spec in definitions.resolve_all_asset_specs()
    }
    assert shown == ASSETS


def test_every_asset_says_what_it_is_and_who_owns_it(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        assert spec.description
        assert list(spec.owners) == ["team:market-data"]


def test_the_live_feed_cannot_be_materialised(definitions: dg.Definitions) -> None:
    assert not definitions.resolve_asset_graph().get(dg.AssetKey("live_feed")).is_materializable


def test_the_columns_of_ticks_are_shown_with_their_units(definitions: dg.Definitions) -> None:
    (ticks,) = [s for s in definitions.resolve_all_asset_specs() if s.key == dg.AssetKey("ticks")]
    schema = ticks.metadata["dagster/column_schema"]
    assert [column.name for column in schema.columns] == [column.name for column in COLUMNS]
    by_name = {column.name: column for column in schema.columns}
    assert by_name["last_price"].description == "last traded price (rupees)"
    assert not by_name["time"].constraints.nullable
    assert ticks.metadata["dagster/table_name"] == "ticks"


def test_the_jobs_and_what_starts_them(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    assert {name for name in repository.job_names if not name.startswith("__")} == {
        "ingest_job",
        "instrument_sync_job",
        "candles_job",
        "archive_job",
        "reconciliation_job",
        "gap_recovery_job",
        "retention_job",
        "token_refresh_job",
        "event_log_job",
        "tick_storage_job",
        "readiness_job",
    }
    assert {(s.name, s.cron_schedule, s.execution_timezone) for s in repository.schedule_defs} == {
        ("instrument_sync_schedule", "30 8 * * *", "Asia/Kolkata"),
        ("archive_schedule", "10 0 * * *", "Asia/Kolkata"),
        ("reconciliation_schedule", "20 0 * * *", "Asia/Kolkata"),
        ("retention_schedule", "30 0 * * *", "Asia/Kolkata"),
        ("token_refresh_schedule", "*/15 * * * *", "Asia/Kolkata"),
        ("event_log_schedule", "40 0 * * *", "Asia/Kolkata"),
        ("tick_storage_schedule", "*/15 * * * *", "Asia/Kolkata"),
        ("readiness_schedule", "45 8 * * *", "Asia/Kolkata"),
    }
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "ingest_supervisor",
        "candles_sensor",
        "gap_recovery_sensor",
        "alert_sensor",
    }
    for instigator in (*repository.schedule_defs, *repository.sensor_defs):
        assert instigator.default_status.value == "RUNNING"


def test_each_of_two_sources_has_a_capture_a_supervisor_and_checks_of_its_own() -> None:
    settings = Settings(_env_file=None, data_source="kite,dhan", database_url="postgresql://127.0.0.1:1/none")
    both = build_defs(settings=settings)
    dg.Definitions.validate_loadable(both)
    jobs = {f"ingest_job_{source}" for source in settings.sources}
    assert names(build_defs(location="ingest", settings=settings)) == jobs | {
        f"ingest_supervisor_{source}" for source in settings.sources
    }
    everything = names(both)
    assert {"token_refresh_job", "token_check_job", "shadow_job", "shadow_sensor"} <= everything
    assert everything.isdisjoint({"ingest_job", "ingest_supervisor", dg.AssetKey("live_feed")})
    captures = {both.resolve_job_def(name).tags["dhan/capture"] for name in jobs}
    assert captures == {"0", "16"}
    graph = both.resolve_asset_graph()
    for source in settings.sources:
        key = dg.AssetKey(f"live_feed_{source}")
        assert {check.name for check in graph.asset_check_keys if check.asset_key == key} == ASSETS["live_feed"][4]


def test_of_a_token_that_only_a_login_makes_it_is_looked_whether_it_is_good() -> None:
    kite = build_defs(
        settings=Settings(_env_file=None, data_source="kite", database_url="postgresql://127.0.0.1:1/none")
    )
    assert {"token_check_job", "token_check_schedule"} <= names(kite)
    assert names(kite).isdisjoint({"token_refresh_job", "token_refresh_schedule", "shadow_job"})


def test_an_ingest_run_says_which_capture_it_keeps() -> None:
    third = build_defs(settings=Settings(_env_file=None, capture=3)).resolve_job_def("ingest_job")
    assert third.tags["dhan/role"] == "ingest"
    assert third.tags["dhan/capture"] == "3"
