"""The supervisor's rules, each as a sentence."""

from typing import Any

import dagster as dg
import pytest

from dhan_pipeline.orchestration.supervisor import (
    HEALTHY_S,
    MAX_BACKOFF_S,
    STALE_S,
    STOP_GRACE_S,
    Decision,
    IngestRun,
    decide,
)

NOW = 1_800_000_000.0
Status = dg.DagsterRunStatus


def run(status: dg.DagsterRunStatus, **facts: Any) -> IngestRun:
    return IngestRun("0123456789", status, **facts)


def in_session(*runs: IngestRun) -> Decision:
    return decide(NOW, in_session=True, subscribed=True, runs=runs)


def closed(*runs: IngestRun) -> Decision:
    return decide(NOW, in_session=False, subscribed=True, runs=runs)


def failed(seconds_ago: float = 0, lived: float = 10) -> IngestRun:
    return run(Status.FAILURE, started_s=NOW - seconds_ago - lived, ended_s=NOW - seconds_ago, attempt=1)


def test_nothing_starts_before_subscriptions_are_resolved() -> None:
    decision = decide(NOW, in_session=True, subscribed=False, runs=[])
    assert decision.action == "skip"
    assert "instrument_sync_job" in decision.reason


def test_a_run_is_stopped_at_the_close_even_if_the_subscriptions_vanished() -> None:
    decision = decide(NOW, in_session=False, subscribed=False, runs=[run(Status.STARTED)])
    assert decision.action == "ask_to_stop"


def test_out_of_session_nothing_starts() -> None:
    assert closed().action == "skip"


def test_at_the_close_a_run_is_asked_to_stop_once() -> None:
    assert closed(run(Status.STARTED)).action == "ask_to_stop"
    assert closed(run(Status.STARTED, stop_asked=True, stop_asked_s=NOW - 1)).action == "skip"


def test_a_run_that_does_not_stop_when_asked_is_cancelled() -> None:
    stubborn = run(Status.STARTED, stop_asked=True, stop_asked_s=NOW - STOP_GRACE_S - 1)
    assert closed(stubborn) == Decision("cancel", closed(stubborn).reason, stubborn.run_id)


def test_a_run_that_is_being_cancelled_is_left_to_dagster() -> None:
    assert closed(run(Status.CANCELING, stop_asked=True, stop_asked_s=NOW - 1000)).action == "skip"


def test_in_session_a_run_is_launched() -> None:
    assert in_session() == Decision("launch", "In session, and no ingest run is alive.", attempt=1)


@pytest.mark.parametrize(
    "status", [Status.QUEUED, Status.NOT_STARTED, Status.STARTING, Status.STARTED, Status.CANCELING]
)
def test_one_living_run_is_enough(status: dg.DagsterRunStatus) -> None:
    assert in_session(run(status, started_s=NOW - 1)).action == "skip"


def test_a_run_whose_heartbeat_stopped_is_given_up() -> None:
    silent = run(Status.STARTED, started_s=NOW - 1000, heartbeat_s=NOW - STALE_S - 1)
    assert in_session(silent).action == "give_up"
    assert in_session(silent).run_id == silent.run_id


def test_a_run_that_never_sent_a_heartbeat_is_given_up_as_late() -> None:
    assert in_session(run(Status.STARTED, started_s=NOW - STALE_S - 1)).action == "give_up"
    assert in_session(run(Status.STARTED, started_s=NOW - STALE_S + 1)).action == "skip"


def test_a_failed_run_is_replaced_after_a_growing_pause() -> None:
    assert in_session(failed(1)).action == "skip"
    assert in_session(failed(2)).action == "launch"
    assert in_session(failed(7), failed(20), failed(30)).action == "skip"
    assert in_session(failed(8), failed(20), failed(30)).action == "launch"


def test_the_pause_is_never_longer_than_a_minute() -> None:
    runs = [failed(MAX_BACKOFF_S + n) for n in range(20)]
    assert in_session(*runs).action == "launch"


def test_a_failure_after_a_healthy_life_is_replaced_at_once() -> None:
    assert in_session(failed(0, lived=HEALTHY_S + 1), failed(400), failed(500)).action == "launch"


def test_a_run_that_a_person_stopped_stays_stopped() -> None:
    decision = in_session(run(Status.CANCELED, ended_s=NOW - 3600))
    assert decision.action == "skip"
    assert "A person stopped" in decision.reason


def test_a_run_that_was_cancelled_at_the_close_is_followed_by_one_in_the_next_session() -> None:
    assert in_session(run(Status.CANCELED, ended_s=NOW - 3600, stop_asked=True)).action == "launch"


def test_a_person_who_starts_the_job_again_lifts_the_hold() -> None:
    assert in_session(failed(10), run(Status.CANCELED, ended_s=NOW - 3600)).action == "launch"


def test_attempts_count_on_from_the_highest_of_the_session() -> None:
    runs = [run(Status.SUCCESS), run(Status.SUCCESS, attempt=7), run(Status.SUCCESS, attempt=6)]
    assert in_session(*runs).attempt == 8
