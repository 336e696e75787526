"""The ingest run: what its capture says becomes events, and it ends in each of the ways a run can end."""

import logging
import os
import re
import signal

import dagster as dg
import pytest
from dagster import AssetCheckKey
from psycopg2.extensions import connection

from dhan_pipeline.gaps import Cause
from dhan_pipeline.orchestration import ingest
from dhan_pipeline.orchestration.names import (
    LIVE_FEED,
    NEEDS_PERSON_TAG,
    RAW_PACKETS,
    SESSION_TAG,
    STOP_AT_TAG,
    STOP_TAG,
    TICKS,
    live_feed_key,
)
from dhan_pipeline.quality.measures import HOUR_CHECKS, LIVE_CHECKS
from dhan_pipeline.store.engine import create_database
from dhan_pipeline_tests.orchestration.conftest import (
    HOUR,
    NEXT_HOUR,
    OPEN_HOUR,
    Pipeline,
    Record,
    Said,
    checks,
    execute,
    meanwhile,
    stop_when,
    wait_until,
)
from dhan_pipeline_tests.status import status


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and retries happen in tenths of a second."""
    monkeypatch.setattr(ingest, "POLL_S", 0.1)
    monkeypatch.setattr(ingest, "RETRY_S", 0.1)
    monkeypatch.setattr(ingest, "LIVE_JUDGE_S", 0.1)


def materialized(pipeline: Pipeline) -> set[str]:
    return pipeline.instance.get_materialized_partitions(TICKS)


def live(pipeline: Pipeline) -> dict[str, bool]:
    """The latest state of the live checks."""
    return {
        name: checks(pipeline, LIVE_FEED, name)[0].passed for name in LIVE_CHECKS if checks(pipeline, LIVE_FEED, name)
    }


def capture_pid(pipeline: Pipeline) -> int | None:
    """Process id of the capture of the newest run, once it has started."""
    for run in pipeline.instance.get_runs(limit=1):
        if found := re.search(r"started as process (\d+)", logged(pipeline, run.run_id)):
            return int(found[1])
    return None


def is_alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def logged(pipeline: Pipeline, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in pipeline.instance.all_logs(run_id))


def told(pipeline: Pipeline, words: str) -> bool:
    """Whether the newest run has said so."""
    return any(words in logged(pipeline, run.run_id) for run in pipeline.instance.get_runs(limit=1))


def why_failed(result: dg.ExecuteInProcessResult) -> str | None:
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    return data.description if data else None


def test_each_complete_hour_is_materialised_with_its_counts_and_its_digest_recorded(
    pipeline: Pipeline, record_hour: Record, conn: connection
) -> None:
    record_hour(HOUR)
    record_hour(NEXT_HOUR)
    with meanwhile(stop_when(pipeline, lambda: materialized(pipeline) == {HOUR, NEXT_HOUR})):
        result = execute(pipeline, HOUR, NEXT_HOUR)
    assert result.success
    assert pipeline.instance.get_materialized_partitions(RAW_PACKETS) == {HOUR, NEXT_HOUR}
    raw, ticks = (
        pipeline.instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key, asset_partitions=[HOUR]), limit=1)
        .records[0]
        .asset_materialization
        for key in (RAW_PACKETS, TICKS)
    )
    assert raw
    assert ticks
    assert {name: raw.metadata[name].value for name in ("blocks", "messages", "bytes", "damaged")} == {
        "blocks": 5,
        "messages": 10,
        "bytes": 80,
        "damaged": 0,
    }
    assert ticks.tags is not None
    assert ticks.tags["dagster/data_version"] == ticks.metadata["digest"].value
    assert {name: ticks.metadata[name].value for name in ("dagster/row_count", "packets", "control", "digest")} == {
        "dagster/row_count": 0,
        "packets": 10,
        "control": 10,
        "digest": 16 * "0",
    }
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT origin, rows, digest FROM hour_digests ORDER BY hour")
        assert cursor.fetchall() == 2 * [("capture", 0, 16 * "0")]


def test_each_check_of_a_complete_hour_lands_on_its_partition(pipeline: Pipeline, record_hour: Record) -> None:
    record_hour(HOUR)
    record_hour(NEXT_HOUR, blocks_lost=1)
    conservation = AssetCheckKey(TICKS, "conservation")
    with meanwhile(stop_when(pipeline, lambda: len(checks(pipeline, TICKS, "conservation")) == 2)):
        execute(pipeline, HOUR, NEXT_HOUR)
    keys = [AssetCheckKey(TICKS, name) for name in HOUR_CHECKS]
    infos = pipeline.instance.event_log_storage.get_asset_check_partition_info(keys)
    assert {(info.check_key, info.partition_key) for info in infos} == {(k, h) for k in keys for h in (HOUR, NEXT_HOUR)}
    # Without this the UI says "Missing" of every hour.
    assert all(info.is_current and info.latest_target_materialization_storage_id for info in infos)
    failed = {(info.check_key, info.partition_key) for info in infos if info.latest_execution_status.value == "FAILED"}
    assert failed == {(conservation, NEXT_HOUR)}
    (evaluation,) = [e for e in checks(pipeline, TICKS, "conservation") if e.partition == NEXT_HOUR]
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert "journal blocks = ledger blocks does not hold: 5 and 4" in (evaluation.description or "")


def test_an_hour_that_is_materialised_already_is_left_alone(pipeline: Pipeline, record_hour: Record) -> None:
    record_hour(HOUR)
    record_hour(NEXT_HOUR)
    for key in (RAW_PACKETS, TICKS):
        pipeline.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=HOUR))
    with meanwhile(stop_when(pipeline, lambda: NEXT_HOUR in materialized(pipeline))):
        execute(pipeline, HOUR, NEXT_HOUR)
    history = pipeline.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=TICKS, asset_partitions=[HOUR]), limit=10
    )
    assert len(history.records) == 1


def test_hours_before_the_first_partition_are_left_out(pipeline: Pipeline, record_hour: Record) -> None:
    record_hour(HOUR)
    with meanwhile(stop_when(pipeline, lambda: materialized(pipeline))):
        execute(pipeline, "2026-11-19T15:00", HOUR)
    assert materialized(pipeline) == {HOUR}


def test_the_open_hour_is_observed_as_a_heartbeat(pipeline: Pipeline) -> None:
    def observed() -> bool:
        return bool(pipeline.instance.fetch_observations(TICKS, limit=1).records)

    with meanwhile(stop_when(pipeline, observed)):
        execute(pipeline)
    for key in (RAW_PACKETS, TICKS):
        observation = pipeline.instance.fetch_observations(key, limit=1).records[0].asset_observation
        assert observation is not None
        assert observation.partition == OPEN_HOUR
    assert not materialized(pipeline)


def test_live_checks_are_reported_again_and_again_without_a_partition(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LIVE_REPORT_S", 0.1)
    with meanwhile(stop_when(pipeline, lambda: len(checks(pipeline, LIVE_FEED, "connected")) >= 3)):
        execute(pipeline)
    assert live(pipeline) == dict.fromkeys(LIVE_CHECKS, True)
    assert {evaluation.partition for evaluation in checks(pipeline, LIVE_FEED, "connected")} == {None}


def test_live_checks_are_reported_at_once_when_their_state_changes_and_else_seldom(pipeline: Pipeline) -> None:
    with meanwhile(stop_when(pipeline, lambda: len(live(pipeline)) == len(LIVE_CHECKS))):
        execute(pipeline)
    assert [e.passed for e in checks(pipeline, LIVE_FEED, "connected")] == [True, True]  # at its start, at its stop


def test_a_number_that_becomes_known_is_reported_at_once(
    pipeline: Pipeline, capture_says: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "once")

    def act() -> None:
        wait_until(lambda: checks(pipeline, LIVE_FEED, "cpu"))
        capture_says.say(**status(hour=OPEN_HOUR, bytes=1, cpu_percent_minute=12.34567))
        stop_when(pipeline, lambda: len(checks(pipeline, LIVE_FEED, "cpu")) > 1)()

    with meanwhile(act):
        execute(pipeline)
    known, first = checks(pipeline, LIVE_FEED, "cpu")[-2:]
    assert first.description == "The capture has not run for a minute yet."
    assert known.metadata["value"].value == 12.3457


def test_a_check_that_fails_is_reported_anew_so_that_its_words_are_of_now(
    pipeline: Pipeline, capture_says: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "once")
    monkeypatch.setattr(ingest, "LIVE_FAILING_S", 0.0)

    def act() -> None:
        for open_s, recent_s in ((30.0, 0.0), (0.0, 31.0)):
            reported = len(checks(pipeline, LIVE_FEED, "gaps"))
            capture_says.say(**status(hour=OPEN_HOUR, bytes=1, gap_open_s=open_s, gap_recent_s=recent_s))
            wait_until(lambda reported=reported: len(checks(pipeline, LIVE_FEED, "gaps")) > reported + 1)
        stop_when(pipeline, lambda: True)()

    with meanwhile(act):
        execute(pipeline)
    sentences = [evaluation.description for evaluation in checks(pipeline, LIVE_FEED, "gaps")]
    assert any("missing for 30.0 s" in sentence for sentence in sentences)
    assert any("took 31.0 s of the session, and is over" in sentence for sentence in sentences)


def test_the_capture_of_one_of_two_sources_is_told_which_and_reports_checks_of_its_own(pipeline: Pipeline) -> None:
    both = Pipeline(pipeline.settings.model_copy(update={"data_source": "kite,dhan"}), pipeline.instance)
    kite = live_feed_key("kite", both.settings.sources)
    with meanwhile(stop_when(both, lambda: checks(both, kite, "connected") and told(both, "started as"))):
        result = execute(both, job="ingest_job_kite")
    assert result.success
    assert checks(both, kite, "connected")
    assert not checks(both, LIVE_FEED, "connected")
    assert not checks(both, live_feed_key("dhan", both.settings.sources), "connected")


def test_an_hour_waits_for_what_the_other_capture_has_yet_to_store_but_not_for_ever(
    pipeline: Pipeline, record_hour: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Pipeline(pipeline.settings.model_copy(update={"data_source": "kite,dhan"}), pipeline.instance)
    record_hour(HOUR, blocks_lost=1)
    monkeypatch.setattr(ingest, "OTHERS_S", 0.3)
    with meanwhile(stop_when(both, lambda: HOUR in materialized(both))):
        execute(both, HOUR, job="ingest_job_dhan")
    assert [evaluation.passed for evaluation in checks(both, TICKS, "conservation")] == [False]


def test_asked_to_stop_it_lets_the_capture_flush_and_succeeds(pipeline: Pipeline) -> None:
    with meanwhile(stop_when(pipeline, lambda: capture_pid(pipeline))):
        result = execute(pipeline)
    assert result.success
    assert "The capture stopped: asked to stop" in logged(pipeline, result.run_id)
    assert not is_alive(capture_pid(pipeline))


def test_a_capture_that_refuses_to_start_fails_the_run_with_its_sentence(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "refuse")
    result = execute(pipeline)
    assert why_failed(result) == "The capture ended with exit code 1: Process 42 captures already."


def test_a_capture_that_dies_of_an_error_fails_the_run_and_the_live_checks(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "die")
    result = execute(pipeline)
    assert not result.success
    assert why_failed(result) == "The capture ended with exit code 1: The token has expired."
    assert live(pipeline) == dict.fromkeys(LIVE_CHECKS, False)


def test_a_capture_that_is_killed_fails_the_run(pipeline: Pipeline) -> None:

    def kill() -> None:
        wait_until(lambda: capture_pid(pipeline))
        pid = capture_pid(pipeline)
        assert pid
        os.kill(pid, signal.SIGKILL)

    with meanwhile(kill):
        result = execute(pipeline)
    assert (why_failed(result) or "").startswith("The capture ended with signal 9")


def test_a_capture_that_ends_by_itself_ends_the_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "quit")
    assert execute(pipeline).success


@pytest.mark.parametrize("declare", ["report_run_failed", "report_run_canceling", "report_run_canceled"])
def test_a_run_that_was_given_up_from_outside_stops_its_capture(pipeline: Pipeline, declare: str) -> None:

    def give_up() -> None:
        wait_until(lambda: capture_pid(pipeline))
        getattr(pipeline.instance, declare)(pipeline.instance.get_runs()[0], message="from outside")

    with meanwhile(give_up):
        result = execute(pipeline)
    assert not result.success
    assert not is_alive(capture_pid(pipeline))


def test_a_capture_that_only_a_person_can_help_leaves_word_for_the_supervisor(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "no_plan")
    assert not execute(pipeline).success
    tags = pipeline.instance.get_runs()[0].tags
    assert tags[NEEDS_PERSON_TAG] == "Dhan refused the connection (806, data APIs are not subscribed)"
    assert tags[SESSION_TAG] == "2026-11-20"


def test_what_was_said_of_another_run_does_not_count_for_one_that_inherits_its_tags(pipeline: Pipeline) -> None:
    job = pipeline.definitions().resolve_job_def("ingest_job")
    inherited = {STOP_TAG: "The session is over.", STOP_AT_TAG: "1.5", NEEDS_PERSON_TAG: "No data plan."}
    with meanwhile(stop_when(pipeline, lambda: len(live(pipeline)) == len(LIVE_CHECKS))):
        result = job.execute_in_process(instance=pipeline.instance, raise_on_error=False, tags=inherited)
    assert result.success
    tags = pipeline.instance.get_runs()[0].tags
    assert (tags[STOP_TAG], tags[STOP_AT_TAG], tags[NEEDS_PERSON_TAG]) == ("the test is over", "", "")


def latest_gaps(pipeline: Pipeline) -> dg.AssetCheckEvaluation | None:
    """The latest word on the gaps of `HOUR`."""
    return next((e for e in checks(pipeline, TICKS, "gaps") if e.partition == HOUR), None)


def test_a_gap_that_becomes_known_after_its_hour_was_sealed_is_judged_once_it_is_stored(
    pipeline: Pipeline, record_hour: Record, record_gap: Record, capture_says: Said
) -> None:
    record_hour(HOUR)

    def fall_silent_at_the_end_of_the_hour() -> None:
        judge = stop_when(pipeline, lambda: not getattr(latest_gaps(pipeline), "passed", True))
        try:
            wait_until(lambda: latest_gaps(pipeline))
            record_gap(HOUR, 3560, None, detail="nothing came for 90 s")
            capture_says.gap(HOUR, 3560, 90, over=False)
        finally:
            judge()

    with meanwhile(fall_silent_at_the_end_of_the_hour):
        assert execute(pipeline, HOUR).success
    judged = latest_gaps(pipeline)
    assert judged is not None
    assert judged.metadata["value"].value == 40.0
    assert "from 09:59:20.000 on, and lasts: stall, nothing came for 90 s." in (judged.description or "")
    (info,) = pipeline.instance.event_log_storage.get_asset_check_partition_info([AssetCheckKey(TICKS, "gaps")])
    assert (info.partition_key, info.latest_execution_status.value, info.is_current) == (HOUR, "FAILED", True)
    # Nothing else is said again.
    assert len(checks(pipeline, TICKS, "conservation")) == 1
    history = pipeline.instance.fetch_materializations(dg.AssetRecordsFilter(TICKS, asset_partitions=[HOUR]), limit=10)
    assert len(history.records) == 1


def test_a_run_that_follows_a_dead_one_judges_the_gaps_of_the_last_sealed_hour_again(
    pipeline: Pipeline, record_hour: Record, record_gap: Record
) -> None:
    record_hour(HOUR)
    with meanwhile(stop_when(pipeline, lambda: latest_gaps(pipeline))):
        execute(pipeline, HOUR)
    record_gap(HOUR, 3560, 20)
    with meanwhile(stop_when(pipeline, lambda: not getattr(latest_gaps(pipeline), "passed", True))):
        execute(pipeline, HOUR)
    judged = latest_gaps(pipeline)
    assert judged is not None
    assert (judged.passed, judged.metadata["value"].value) == (False, 20.0)


def gaps_of(pipeline: Pipeline, hour: str) -> list[dg.AssetCheckEvaluation]:
    return [evaluation for evaluation in checks(pipeline, TICKS, "gaps") if evaluation.partition == hour]


def test_an_hour_that_is_lost_as_a_whole_is_sealed_with_its_gap(
    pipeline: Pipeline, record_hour: Record, record_gap: Record, capture_says: Said
) -> None:
    record_hour(HOUR)
    record_gap(HOUR, 3000, 4800, cause=Cause.TOKEN)
    capture_says.gap(HOUR, 3000, 4800, over=True, cause="token")
    with meanwhile(stop_when(pipeline, lambda: gaps_of(pipeline, NEXT_HOUR))):
        assert execute(pipeline, HOUR).success
    assert materialized(pipeline) == {HOUR, NEXT_HOUR}
    (judged,) = gaps_of(pipeline, NEXT_HOUR)
    assert (judged.passed, judged.severity, judged.metadata["value"].value) == (
        False,
        dg.AssetCheckSeverity.ERROR,
        3600.0,
    )


def test_a_run_finds_hours_that_were_lost_before_it_but_those_for_which_a_person_stopped_the_capture(
    pipeline: Pipeline, record_hour: Record, record_gap: Record
) -> None:
    first = "2026-11-20T07:00"
    record_hour(first)
    with meanwhile(stop_when(pipeline, lambda: gaps_of(pipeline, first))):
        execute(pipeline, first)
    record_gap(first, 3000, 4800, cause=Cause.STOP, gap_id=1)
    record_gap(HOUR, 0, 3600, cause=Cause.HOST_DOWN, gap_id=2)
    with meanwhile(stop_when(pipeline, lambda: gaps_of(pipeline, HOUR))):
        execute(pipeline)
    assert materialized(pipeline) == {first, HOUR}


def test_gaps_are_told_as_they_begin_and_end_and_so_are_changes_of_what_is_subscribed(
    pipeline: Pipeline, capture_says: Said
) -> None:
    capture_says.gap(HOUR, 60, 90, over=False, detail="no byte for 90 s")
    capture_says.gap(HOUR, 60, 92.25, over=True, detail="no byte for 90 s")
    capture_says.gap(HOUR, -20 * 3600, 20 * 3600, over=False, cause="silent")
    capture_says.say(event="gap", what="nothing that is known")
    changed = "The subscriptions have changed: +12 -8 instruments; 250 in all."
    capture_says.say(event="subscriptions", added=12, removed=8, changed=0, subscribed=250, message=changed)
    capture_says.say(event="warning", message="the end")
    with meanwhile(stop_when(pipeline, lambda: told(pipeline, "the end"))):
        result = execute(pipeline)
    assert result.success
    log = {entry.user_message: entry.level for entry in pipeline.instance.all_logs(result.run_id)}
    assert log["A gap: connection 2 brings nothing since 09:01:00.000 IST: stall, no byte for 90 s."] == logging.WARNING
    over = "The gap of connection 2 since 09:01:00.000 IST (stall) is over after 92.2 s: connected again."
    assert log[over] == logging.INFO
    yesterday = "A gap: an instrument of connection 2 brings nothing since 2026-11-19 13:00:00.000 IST: silent."
    assert log[yesterday] == logging.WARNING
    assert log[changed] == logging.INFO


def test_of_a_connection_that_comes_and_goes_all_day_not_every_gap_is_told(
    pipeline: Pipeline, capture_says: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "GAPS_TOLD", 2)
    for second in range(5):
        capture_says.gap(HOUR, second, 0.5, over=False)
        capture_says.gap(HOUR, second, 0.5, over=True)
    capture_says.say(event="warning", message="the end")
    with meanwhile(stop_when(pipeline, lambda: told(pipeline, "the end"))):
        result = execute(pipeline)
    log = logged(pipeline, result.run_id)
    assert (log.count("A gap:"), log.count("is over after"), log.count("There are many gaps")) == (2, 2, 1)


def test_a_line_that_is_not_an_event_is_logged_and_does_no_harm(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CAPTURE", "noisy")
    with meanwhile(stop_when(pipeline, lambda: live(pipeline))):
        result = execute(pipeline)
    assert result.success
    assert "this is no JSON" in logged(pipeline, result.run_id)


def test_an_hour_that_cannot_be_measured_now_is_tried_again(
    pipeline: Pipeline,
    postgres_url: str,
    template: str,
    record_hour: Record,
    caplog: pytest.LogCaptureFixture,
) -> None:
    record_hour(HOUR)
    absent = "not_there_yet"
    url = pipeline.settings.database_url
    assert url is not None
    away = Pipeline(
        pipeline.settings.model_copy(update={"database_url": url.rpartition("/")[0] + f"/{absent}"}), pipeline.instance
    )

    def return_to_life() -> None:
        try:
            wait_until(lambda: "tried again" in caplog.text)
            create_database(postgres_url, absent, template=template)
        finally:
            stop_when(pipeline, lambda: materialized(pipeline))()

    with caplog.at_level(logging.WARNING), meanwhile(return_to_life):
        result = execute(away, HOUR)
    assert result.success
    assert materialized(pipeline) == {HOUR}
