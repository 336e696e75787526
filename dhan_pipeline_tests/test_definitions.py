"""The code locations load alone, and show what they promise."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from dhan_pipeline.orchestration.build import PARTS, build_defs
from dhan_pipeline.quality.measures import LIVE_CHECKS
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import COLUMNS
from dhan_pipeline_tests import shown


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return shown.definitions()


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


def test_the_ui_has_of_everything_what_shown_txt_says(definitions: dg.Definitions) -> None:
    said = (
        "write it anew if that is meant: .venv/bin/python -m dhan_pipeline_tests.shown > dhan_pipeline_tests/shown.txt"
    )
    assert shown.shown(definitions) == shown.EXPECTED.read_text(), said


def test_every_asset_says_what_it_is_and_what_a_person_does_with_it(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        what, do = (spec.description or "").split("\n\n")
        assert what.endswith(".")
        assert do.split()[0] in ("Execute", "Launch", "Look", "Materialise", "Query")


def test_what_lists_show_as_plain_text_has_no_marks(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    launched = [*repository.get_all_jobs(), *repository.schedule_defs, *repository.sensor_defs]
    texts = [each.description or "" for each in launched]
    # The catalog shows the beginning.
    texts += [(spec.description or "")[:75] for spec in definitions.resolve_all_asset_specs()]
    assert [text for text in texts if "`" in text] == []


def test_every_job_and_what_starts_it_says_what_it_does(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    jobs = {job.name: job for job in repository.get_all_jobs() if not job.name.startswith("__")}
    assert all(job.description for job in jobs.values())
    for instigator in (*repository.schedule_defs, *repository.sensor_defs):
        assert instigator.description
        assert instigator.default_status.value == "RUNNING"
        targets = instigator.targets if isinstance(instigator, dg.SensorDefinition) else [instigator]
        for target in targets:
            assert instigator.tags.items() <= jobs[target.job_name].tags.items()


def test_links_lead_to_the_code_on_the_web_where_the_settings_say_where_it_is() -> None:
    for code_url, expected in (
        ("https://github.com/you/dhan-pipeline/tree/main", "https://github.com/you/dhan-pipeline/tree/main/"),
        ("https://gitlab.com/you/dhan-pipeline/-/tree/v1", "https://gitlab.com/you/dhan-pipeline/-/tree/v1/"),
    ):
        settings = Settings(_env_file=None, data_source="dhan", code_url=code_url)
        specs = build_defs(location="dhan_pipeline", settings=settings).resolve_all_asset_specs()
        [ticks] = [spec for spec in specs if spec.key == dg.AssetKey("ticks")]
        [reference] = ticks.metadata["dagster/code_references"].code_references
        assert reference.url.startswith(f"{expected}dhan_pipeline/orchestration/assets/hours.py#L")


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
        assert {check.name for check in graph.asset_check_keys if check.asset_key == key} >= set(LIVE_CHECKS)


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
