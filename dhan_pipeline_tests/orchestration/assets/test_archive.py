"""A day of ticks, materialised for real: a database, a file."""

import dagster as dg
import pyarrow.parquet as pq
from psycopg2.extensions import connection

from dhan_pipeline.orchestration.assets.archive import build_archive_asset
from dhan_pipeline.orchestration.names import TICKS, TICKS_ARCHIVE
from dhan_pipeline.orchestration.partitions import daily_partitions
from dhan_pipeline.orchestration.resources import build_resources
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.orchestration.conftest import NOW, Pipeline
from dhan_pipeline_tests.orchestration.materialising import metadata, why_failed
from dhan_pipeline_tests.store.batches import AT_NS, make_batch, store


def archive(pipeline: Pipeline, day: str) -> dg.ExecuteInProcessResult:
    settings = pipeline.settings.model_copy(update={"partitions_start": None})
    definitions = dg.Definitions(
        [build_archive_asset(dg.DailyPartitionsDefinition("2026-11-18", timezone="Asia/Kolkata", end_offset=1))],
        jobs=[dg.define_asset_job("by_hand", selection=dg.AssetSelection.assets(TICKS_ARCHIVE))],
        resources=build_resources(settings, NOW, []),
    )
    return definitions.resolve_job_def("by_hand").execute_in_process(
        instance=pipeline.instance, partition_key=day, raise_on_error=False
    )


def test_a_day_becomes_a_file(pipeline: Pipeline, conn: connection) -> None:
    store(conn, [make_batch(Mode.FULL, 30, at_ns=AT_NS - 24 * HOUR_NS)])
    result = archive(pipeline, "2026-11-19")
    assert result.success
    facts = metadata(result, "ticks_archive")
    path = pipeline.settings.data_dir / "archive" / "ticks" / "date=2026-11-19" / "ticks.parquet"
    assert facts["file"] == str(path)
    assert (facts["dagster/row_count"], facts["row_groups"], facts["bytes"]) == (30, 1, path.stat().st_size)
    assert facts["bytes_per_row"] == round(path.stat().st_size / 30, 1)
    assert pq.read_metadata(path).num_rows == 30
    assert len(facts["digest"]) == 16
    assert facts["seconds"] >= 0


def test_a_day_that_is_not_over_and_a_day_without_ticks_are_refused(pipeline: Pipeline) -> None:
    assert why_failed(archive(pipeline, "2026-11-20")) == (
        "The day 2026-11-20 is not over yet: it can be archived from midnight on (IST)."
    )
    assert why_failed(archive(pipeline, "2026-11-19")) == (
        "The table holds no ticks of 2026-11-19, so there is nothing to archive."
    )


def test_a_day_is_made_of_its_hours(pipeline: Pipeline) -> None:
    asset = build_archive_asset(daily_partitions(pipeline.settings))
    assert {dep.asset_key for dep in asset.specs_by_key[TICKS_ARCHIVE].deps} == {TICKS}
