"""The checks that a person runs: of the feed now."""

import re
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from psycopg2.extensions import connection

from dhan_pipeline.orchestration.names import LIVE_FEED
from dhan_pipeline.quality.measures import LIVE_CHECKS
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline_tests.orchestration.conftest import Pipeline

STATUS: dict[str, Any] = {
    "event": "status",
    "at": datetime.now(UTC).isoformat(),
    "connections_up": 1,
    "connections": 1,
    "packets": 100,
    "ticks": 90,
    "state": 8,
    "control": 2,
    "rejected": 0,
    "backlog_seconds": 0.0,
    "latency_p99_ms": 2.0,
    "rss_mb": 150.0,
    "last_packet_at": None,
    "gaps": 0,
    "gap_open_s": 0.0,
    "gap_recent_s": 0.0,
    "silent": [],
    "silent_count": 0,
    "trade_clock": "ok",
    "token_expires_at": None,
    "disk_free_gb": 100.0,
}


def run_checks(pipeline: Pipeline, *names: str) -> dict[str, dg.AssetCheckEvaluation]:
    selection = dg.AssetSelection.checks(*(dg.AssetCheckKey(LIVE_FEED, name) for name in names or LIVE_CHECKS))
    definitions = dg.Definitions.merge(
        pipeline.definitions(), dg.Definitions(jobs=[dg.define_asset_job("by_hand", selection=selection)])
    )
    result = definitions.resolve_job_def("by_hand").execute_in_process(instance=pipeline.instance)
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def test_a_capture_that_reports_is_judged_by_its_status(pipeline: Pipeline, conn: connection) -> None:
    write_status(conn, 0, "dhan", {**STATUS, "connections_up": 0})
    found = run_checks(pipeline)
    assert {name for name, evaluation in found.items() if not evaluation.passed} == {"connected"}
    assert set(found) == set(LIVE_CHECKS)
    assert {evaluation.partition for evaluation in found.values()} == {None}


def test_one_check_can_be_run_alone(pipeline: Pipeline, conn: connection) -> None:
    write_status(conn, 0, "dhan", STATUS)
    found = run_checks(pipeline, "latency_p99")
    assert {name: evaluation.passed for name, evaluation in found.items()} == {"latency_p99": True}


def test_a_capture_that_fell_silent_fails_every_check(pipeline: Pipeline, conn: connection) -> None:
    write_status(conn, 0, "dhan", STATUS)
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE captures SET updated_at = now() - interval '1 minute'")
    found = run_checks(pipeline)
    assert not any(evaluation.passed for evaluation in found.values())
    assert re.match(r"The capture last reported at [\d-]+ [\d:]+ IST\.", found["connected"].description or "")


def test_without_any_capture_in_session_every_check_fails(pipeline: Pipeline) -> None:
    assert "No capture has run yet." in (run_checks(pipeline)["connected"].description or "")


def test_another_capture_does_not_speak_for_this_one(pipeline: Pipeline, conn: connection) -> None:
    write_status(conn, 7, "dhan", STATUS)
    assert not run_checks(pipeline)["connected"].passed


def test_a_database_that_is_away_fails_every_check(pipeline: Pipeline) -> None:
    away = pipeline.settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/none"})
    found = run_checks(Pipeline(away, pipeline.instance))
    assert not any(evaluation.passed for evaluation in found.values())
    assert "cannot be reached" in (found["connected"].description or "")
