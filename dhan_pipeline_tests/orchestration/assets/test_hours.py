"""The hourly assets, materialised for real: a database, a journal."""

import struct
from contextlib import closing

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.orchestration.names import RAW_PACKETS, TICKS
from dhan_pipeline.quality.hours import measure_hour
from dhan_pipeline.quality.measures import HOUR_CHECKS, hour_outcomes
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store.partitions import drop_expired
from dhan_pipeline_tests.orchestration.conftest import HOUR, NOW, OPEN_HOUR, Pipeline, Record
from dhan_pipeline_tests.orchestration.materialising import materialize, metadata, run_job, why_failed

RELIANCE = 2885


def capture(pipeline: Pipeline, hour: str, *prices: float) -> None:
    """A journal's hour: a block of one message, a ticker packet of RELIANCE in it, for each price."""
    start_ns = parse_hour_key(hour)
    with closing(JournalWriter(pipeline.settings.journal_dir, 0)) as writer:
        for i, price in enumerate(prices):
            trade_time = start_ns // 10**9 + 19_800 + i
            packet = struct.pack("<BHBIfI", 2, 16, ExchangeSegment.NSE_EQ, RELIANCE, price, trade_time)
            writer.append([start_ns + i * 10**9], [0], [False], [packet])


def test_an_hour_of_the_journal_is_verified_and_counted(pipeline: Pipeline) -> None:
    capture(pipeline, HOUR, 2890.5, 2891.0)
    result = materialize(pipeline, RAW_PACKETS, HOUR)
    assert result.success
    counts = metadata(result, "raw_packets")
    assert (counts["blocks"], counts["messages"], counts["bytes"], counts["damaged"]) == (2, 2, 32, 0)
    assert counts["first_received"] == parse_hour_key(HOUR) / 1e9


def test_an_hour_that_the_journal_does_not_hold_is_refused(pipeline: Pipeline) -> None:
    assert why_failed(materialize(pipeline, RAW_PACKETS, HOUR)) == f"The journal holds nothing of the hour {HOUR}."


@pytest.mark.parametrize("key", [RAW_PACKETS, TICKS])
def test_an_hour_of_which_nothing_came_is_refused_with_the_gap_that_swallowed_it(
    pipeline: Pipeline, record_gap: Record, key: dg.AssetKey
) -> None:
    record_gap(HOUR, -600, 5000, Cause.HOST_DOWN, "the machine was off")
    record_gap(HOUR, 0, 20, Cause.SILENT, gap_id=2)
    assert why_failed(materialize(pipeline, key, HOUR)) == (
        f"The journal holds nothing of the hour {HOUR}."
        " Nothing came from 08:50:00.000 to 10:13:20.000 IST: host down, the machine was off."
    )


def test_the_gaps_of_an_hour_are_shown_beside_it_and_judged_whenever_it_is_materialised(
    pipeline: Pipeline, record_gap: Record
) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5)
    record_gap(HOUR, 60, 12.5, Cause.STALL, "nothing came")
    raw = metadata(materialize(pipeline, RAW_PACKETS, HOUR), "raw_packets")
    assert (raw["gap_seconds"], raw["silent_instruments"]) == (12.5, 0)
    assert "| dhan 2 | 1 | 09:01:00.000 | 09:01:12.500 | 12.5 | stall | nothing came |" in raw["gaps"]
    record_gap(HOUR, 600, 90, gap_id=2)
    result = materialize(pipeline, TICKS, HOUR)
    (judged,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "gaps"]
    assert (judged.passed, judged.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert judged.metadata["value"].value == 90.0
    assert "| dhan 2 | 1 | 09:10:00.000 | 09:11:30.000 | 90.0 |" in str(judged.metadata["details"].value)


@pytest.mark.parametrize("key", [RAW_PACKETS, TICKS])
def test_an_hour_that_is_still_open_is_refused(pipeline: Pipeline, key: dg.AssetKey) -> None:
    capture(pipeline, OPEN_HOUR, 2890.5)
    assert "is still open" in why_failed(materialize(pipeline, key, OPEN_HOUR))


def test_materialising_an_hour_of_ticks_rebuilds_it_and_judges_it(pipeline: Pipeline, conn: connection) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5, 2891.0, 2891.5)
    result = materialize(pipeline, TICKS, HOUR)
    assert result.success
    shown = metadata(result, "ticks")
    assert shown["dagster/row_count"] == 3
    for name in ("ticks_a_minute", "day_so_far"):
        assert shown[name].startswith("![ticks a minute, up to 3](data:image/svg+xml;base64,")
        assert len(shown[name]) < 1000  # what is longer the UI does not show in place
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT last_price FROM ticks ORDER BY tick_id")
        assert cursor.fetchall() == [(2890.5,), (2891.0,), (2891.5,)]
    assert pipeline.instance.get_materialized_partitions(TICKS) == {HOUR}
    evaluations = result.get_asset_check_evaluations()
    assert {(e.check_name, e.partition, e.passed) for e in evaluations} == {(name, HOUR, True) for name in HOUR_CHECKS}
    assert all(evaluation.target_materialization_data for evaluation in evaluations)


def test_rows_that_somebody_changed_are_critical_until_they_are_mended_and_named(
    pipeline: Pipeline, conn: connection
) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5, 2891.0, 2891.5)
    first = metadata(materialize(pipeline, TICKS, HOUR), "ticks")
    assert (first["added"], first["removed"], first["changed"], len(first["digest"])) == (3, 0, 0, 16)
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE tick_rows SET last_price = 1 WHERE last_price = 2891")
        cursor.execute("DELETE FROM tick_rows WHERE last_price = 2891.5")
    judged = hour_outcomes(measure_hour(pipeline.settings, HOUR, NOW), pipeline.settings)[-1]
    assert (judged.name, judged.passed, judged.severity) == ("digest", False, "ERROR")
    result = materialize(pipeline, TICKS, HOUR)
    found = metadata(result, "ticks")
    assert (found["added"], found["removed"], found["changed"]) == (1, 0, 1)
    assert found["digest"] == first["digest"] != found["digest_before"]
    assert "| last_price | 1 |" in found["changed_columns"]
    assert "| 09:00:01.000000 | 1103806597957 | last_price | 1.0 | 2891.0 |" in found["differences"]
    assert "| 09:00:02.000000 | 1103806597957 |  | absent | present |" in found["differences"]
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())


@pytest.mark.parametrize("recorded", [True, False])
def test_an_hour_that_the_retention_dropped_passes_and_comes_back_the_same(
    pipeline: Pipeline, conn: connection, recorded: bool
) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5, 2891.0)
    assert materialize(pipeline, TICKS, HOUR).success
    with conn, conn.cursor() as cursor:
        if not recorded:  # it was stored before digests were
            cursor.execute("DELETE FROM hour_digests")
    keep_days = pipeline.settings.retention_days
    later_ns = NOW.now_ns() + (1 + keep_days) * 24 * HOUR_NS
    assert drop_expired(conn, keep_days, later_ns).dropped

    def failed(at_ns: int) -> list[str]:
        measures = measure_hour(pipeline.settings, HOUR, Clock(start_ns=at_ns, speed=1e-9))
        assert bool(measures.recorded) is recorded
        return [outcome.name for outcome in hour_outcomes(measures, pipeline.settings) if not outcome.passed]

    assert failed(later_ns) == []
    if recorded:  # nothing takes rows away before their time
        assert failed(NOW.now_ns()) == ["conservation", "digest"]
    result = materialize(pipeline, TICKS, HOUR)
    assert metadata(result, "ticks")["added"] == 2
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())


def test_what_was_made_of_an_hour_stays_in_sync_when_its_rows_come_out_the_same(pipeline: Pipeline) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5, 2891.0)
    first = metadata(materialize(pipeline, TICKS, HOUR), "ticks")["digest"]
    assert materialize(pipeline, TICKS, HOUR).success
    for record in pipeline.instance.fetch_materializations(TICKS, limit=2).records:
        assert record.asset_materialization is not None
        assert (record.asset_materialization.tags or {})["dagster/data_version"] == first
