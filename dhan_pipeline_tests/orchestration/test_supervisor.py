"""The supervisor's rules, each as a sentence."""

import time
from contextlib import closing
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterEvent, DagsterEventType

from dhan_pipeline.clock import Clock
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.orchestration import supervisor
from dhan_pipeline.orchestration.supervisor import (
    HEALTHY_S,
    MAX_BACKOFF_S,
    STALE_S,
    START_S,
    STOP_GRACE_S,
    UNLOCKED_S,
    Decision,
    IngestRun,
    decide,
)
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.orchestration.conftest import Pipeline

#: Of a Sunday.
NOON = Clock(start_ns=parse_hour_key("2026-11-22T12:00"), speed=1e-9)
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
    ("status", "what"),
    [
        (Status.QUEUED, "is queued"),
        (Status.NOT_STARTED, "is not started"),
        (Status.STARTING, "is starting"),
        (Status.STARTED, "captures"),
        (Status.CANCELING, "is canceling"),
    ],
)
def test_one_living_run_is_enough(status: dg.DagsterRunStatus, what: str) -> None:
    decision = in_session(run(status, started_s=NOW - 1))
    assert decision.action == "skip"
    assert decision.reason.endswith(f" {what}.")


def test_a_run_whose_heartbeat_stopped_is_given_up() -> None:
    silent = run(Status.STARTED, started_s=NOW - 1000, heartbeat_s=NOW - STALE_S - 1)
    assert in_session(silent).action == "give_up"
    assert in_session(silent).run_id == silent.run_id


def test_a_run_that_never_sent_a_heartbeat_is_given_up_as_late() -> None:
    assert in_session(run(Status.STARTED, started_s=NOW - STALE_S - 1)).action == "give_up"
    assert in_session(run(Status.STARTED, started_s=NOW - STALE_S + 1)).action == "skip"


def test_a_run_whose_captures_lock_is_free_is_given_up_unless_it_only_just_starts_or_ends() -> None:
    def gone(started: float, unlocked: float | None) -> str:
        return in_session(
            run(Status.STARTED, started_s=NOW - started, heartbeat_s=NOW - 1, unlocked_s=unlocked and NOW - unlocked)
        ).action

    assert gone(started=1000, unlocked=UNLOCKED_S + 1) == "give_up"
    assert gone(started=1000, unlocked=UNLOCKED_S - 1) == "skip"
    assert gone(started=1000, unlocked=None) == "skip"
    assert gone(started=START_S + UNLOCKED_S - 1, unlocked=5000) == "skip"
    assert gone(started=START_S + UNLOCKED_S + 1, unlocked=5000) == "give_up"


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


def test_a_failure_that_only_a_person_can_mend_is_not_repeated_until_one_has_acted() -> None:
    no_plan = run(Status.FAILURE, ended_s=NOW - 3600, needs_person="The account has no data plan.")
    decision = in_session(no_plan)
    assert decision == Decision("skip", "The account has no data plan. Once that is mended, launch its job.")
    # A person launched the job, and it failed for another reason.
    assert in_session(failed(10), no_plan).action == "launch"
    assert in_session(run(Status.STARTED, started_s=NOW - 1), no_plan).action == "skip"


def test_attempts_count_on_from_the_highest_of_the_session() -> None:
    runs = [run(Status.SUCCESS), run(Status.SUCCESS, attempt=7), run(Status.SUCCESS, attempt=6)]
    assert in_session(*runs).attempt == 8


class TestTheSensor:
    """The thin shell, over runs in a real instance."""

    @staticmethod
    def evaluate(pipeline: Pipeline, name: str = "ingest_supervisor") -> dg.RunRequest | dg.SkipReason:
        definitions = pipeline.definitions()
        sensor = definitions.get_repository_def().get_sensor_def(name)
        with dg.build_sensor_context(
            instance=pipeline.instance, resources={"settings": pipeline.settings, "clock": NOON}
        ) as context:
            result = sensor(context)
        assert isinstance(result, dg.RunRequest | dg.SkipReason)
        return result

    @staticmethod
    def create_run(pipeline: Pipeline, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
        job = pipeline.definitions().resolve_job_def("ingest_job")
        return pipeline.instance.create_run_for_job(job, tags={**job.tags, **tags}, status=status)

    @pytest.fixture
    def subscribed(self, pipeline: Pipeline) -> Pipeline:
        subscription = Subscription(generate_instrument_token("NSE_EQ", 1), Mode.FULL, "X")
        write_subscriptions(pipeline.settings.subscriptions_path, [subscription])
        return pipeline

    @pytest.fixture
    def closed(self, subscribed: Pipeline) -> Pipeline:
        weekend = subscribed.settings.model_copy(update={"sessions": "exchange"})
        return Pipeline(weekend, subscribed.instance)

    def test_waits_for_subscriptions(self, pipeline: Pipeline) -> None:
        assert isinstance(self.evaluate(pipeline), dg.SkipReason)

    def test_asks_for_a_run_whose_key_names_capture_session_and_attempt(self, subscribed: Pipeline) -> None:
        request = self.evaluate(subscribed)
        assert isinstance(request, dg.RunRequest)
        assert request.run_key == "0:2026-11-22#1"
        assert request.tags == {"dhan/session": "2026-11-22", "dhan/attempt": "1"}

    def test_each_of_two_sources_has_runs_of_its_own(self, pipeline: Pipeline) -> None:
        both = Pipeline(pipeline.settings.model_copy(update={"data_source": "kite,dhan"}), pipeline.instance)
        subscription = Subscription(738561, Mode.FULL, "RELIANCE")
        write_subscriptions(both.settings.of("kite").subscriptions_path, [subscription])
        request = self.evaluate(both, "ingest_supervisor_kite")
        assert isinstance(request, dg.RunRequest)
        assert request.run_key == "16:2026-11-22#1"
        job = both.definitions().resolve_job_def("ingest_job_kite")
        alive = both.instance.create_run_for_job(job, tags=job.tags, status=dg.DagsterRunStatus.STARTED)
        waits = self.evaluate(both, "ingest_supervisor_kite")
        assert isinstance(waits, dg.SkipReason)
        assert alive.run_id[:8] in (waits.skip_message or "")
        other = self.evaluate(both, "ingest_supervisor_dhan")
        assert isinstance(other, dg.SkipReason)
        assert "No subscriptions" in (other.skip_message or "")

    def test_a_second_source_leaves_the_runs_of_the_first_as_they_are(self, subscribed: Pipeline) -> None:
        alive = self.create_run(subscribed, dg.DagsterRunStatus.STARTED)
        both = Pipeline(subscribed.settings.model_copy(update={"data_source": "kite,dhan"}), subscribed.instance)
        waits = self.evaluate(both, "ingest_supervisor_dhan")
        assert isinstance(waits, dg.SkipReason)
        assert alive.run_id[:8] in (waits.skip_message or "")
        both.instance.delete_run(alive.run_id)
        self.create_run(subscribed, dg.DagsterRunStatus.CANCELED)
        stopped = self.evaluate(both, "ingest_supervisor_dhan")
        assert isinstance(stopped, dg.SkipReason)
        assert "A person stopped" in (stopped.skip_message or "")

    def test_counts_attempts_of_this_session_only(self, subscribed: Pipeline) -> None:
        succeeded = dg.DagsterRunStatus.SUCCESS
        self.create_run(subscribed, succeeded, **{"dhan/session": "2026-11-21", "dhan/attempt": "9"})
        self.create_run(subscribed, succeeded, **{"dhan/session": "2026-11-22", "dhan/attempt": "2"})
        self.create_run(subscribed, succeeded)
        request = self.evaluate(subscribed)
        assert isinstance(request, dg.RunRequest)
        assert request.run_key == "0:2026-11-22#3"

    def test_waits_for_a_person_until_the_next_session(self, subscribed: Pipeline) -> None:
        tags = {"dhan/session": "2026-11-22", "dhan/needs_person": "No data plan."}
        self.create_run(subscribed, dg.DagsterRunStatus.FAILURE, **tags)
        result = self.evaluate(subscribed)
        assert isinstance(result, dg.SkipReason)
        assert "No data plan. Once that is mended" in (result.skip_message or "")

    @pytest.mark.parametrize(
        "tags",
        [
            {"dhan/session": "2026-11-21", "dhan/needs_person": "No data plan."},
            {"dhan/session": "2026-11-22", "dhan/needs_person": "", "dhan/stop": "", "dhan/stop_at": ""},
        ],
    )
    def test_does_not_wait_for_a_person_without_need(self, subscribed: Pipeline, tags: dict[str, str]) -> None:
        self.create_run(subscribed, dg.DagsterRunStatus.SUCCESS, **tags)
        assert isinstance(self.evaluate(subscribed), dg.RunRequest)

    def test_leaves_a_living_run_alone(self, subscribed: Pipeline) -> None:
        self.create_run(subscribed, dg.DagsterRunStatus.STARTED)
        assert isinstance(self.evaluate(subscribed), dg.SkipReason)

    def test_ignores_the_runs_of_another_capture(self, subscribed: Pipeline) -> None:
        self.create_run(subscribed, dg.DagsterRunStatus.STARTED, **{"dhan/capture": "1"})
        assert isinstance(self.evaluate(subscribed), dg.RunRequest)

    def test_asks_a_run_to_stop_once_the_session_is_over(self, closed: Pipeline) -> None:
        run = self.create_run(closed, dg.DagsterRunStatus.STARTED)
        assert isinstance(self.evaluate(closed), dg.SkipReason)
        tags = closed.instance.get_runs()[0].tags
        assert tags["dhan/stop"] == "The session is over."
        assert float(tags["dhan/stop_at"]) <= time.time()
        assert closed.instance.get_runs()[0].run_id == run.run_id

    def test_remembers_since_when_nobody_holds_the_captures_lock(self, subscribed: Pipeline) -> None:
        definitions = subscribed.definitions()
        sensor = definitions.get_repository_def().get_sensor_def("ingest_supervisor")

        def cursor_after(cursor: str) -> str | None:
            resources = {"settings": subscribed.settings, "clock": NOON}
            with dg.build_sensor_context(subscribed.instance, cursor, resources=resources) as context:
                sensor(context)
                return context.cursor

        assert float(cursor_after("") or 0) == pytest.approx(time.time(), abs=60)
        assert cursor_after("123.0") == "123.0"
        with closing(JournalWriter(subscribed.settings.journal_dir, 0)):
            assert cursor_after("123.0") == ""
        assert cursor_after("") != ""

    def test_gives_a_run_up_whose_heartbeat_stopped(
        self, subscribed: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = self.create_run(subscribed, dg.DagsterRunStatus.STARTING)
        subscribed.instance.report_dagster_event(
            DagsterEvent(DagsterEventType.RUN_START.value, job_name="ingest_job"), run.run_id
        )
        assert isinstance(self.evaluate(subscribed), dg.SkipReason)
        assert subscribed.instance.get_runs()[0].status == dg.DagsterRunStatus.STARTED
        monkeypatch.setattr(supervisor, "STALE_S", -1.0)
        self.evaluate(subscribed)
        assert subscribed.instance.get_runs()[0].status == dg.DagsterRunStatus.FAILURE
