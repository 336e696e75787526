"""The sensor against a real instance, real evaluations and runs, and a server that takes what it sends."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterEvent, DagsterEventType
from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.alerts import ALERTS, DELIVERED, alert_sensor, alerts_delivered
from dhan_pipeline.orchestration.build import build_defs
from dhan_pipeline.orchestration.health import HEARTBEAT_S, LONG_S, STARTING_S, WAITING_S
from dhan_pipeline.orchestration.names import LIVE_FEED, ROLE_TAG, TICKS
from dhan_pipeline.quality.measures import HOUR_CHECKS
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.receivers import Receiver, receiver, telegrams_rules

Status = dg.DagsterRunStatus


@dg.op
def work() -> None:
    raise ValueError("The broker's password=hunter2 is wrong.")


@dg.job
def failing_job() -> None:
    work()


@dg.op
def succeed() -> None: ...


@dg.job(name="failing_job")
def mended_job() -> None:
    succeed()


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    settings = Settings(_env_file=None, database_url="postgresql://127.0.0.1:1/none")
    return build_defs(location="dhan_pipeline", settings=settings).get_repository_def()


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as received:
        yield received


class Site:
    """A sensor that is evaluated tick after tick, at a time that the test moves on."""

    def __init__(self, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, settings: Settings) -> None:
        self.instance = instance
        self.settings = settings
        self.cursor: str | None = None
        self.cursors_written = 0
        self.later_s = 0.0
        self.events: list[Any] = []
        self._repository = repository

    def tick(self, seconds: float = 0.0) -> str:
        """Let so many seconds pass, and the sensor look; returns what it says."""
        self.later_s += seconds
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self._repository,
            resources={
                "settings": self.settings,
                "clock": Clock(start_ns=time.time_ns() + int(self.later_s * 1e9), speed=1e-9),
            },
        )
        result = alert_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursors_written += context.cursor_updated
        if context.cursor_updated:
            self.cursor = context.cursor
        self.events += result.asset_events
        assert result.skip_reason is not None
        return result.skip_reason.skip_message or ""

    def report(self, name: str, level: str, key: dg.AssetKey = LIVE_FEED, **more: Any) -> None:
        """Have a check evaluated."""
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=name,
                passed=level == "OK",
                severity=dg.AssetCheckSeverity[level if level != "OK" else "WARN"],
                description=f"{name} is {level}.",
                metadata={"value": 12.5, "unit": "s", "limits": "warns above 5 s"},
                **more,
            )
        )

    def run(self, status: dg.DagsterRunStatus, job: dg.JobDefinition = failing_job, **tags: str) -> dg.DagsterRun:
        """A run that has got so far."""
        run = self.instance.create_run_for_job(job, status=Status.NOT_STARTED, tags=tags)
        kinds = {Status.STARTING: DagsterEventType.RUN_STARTING, Status.STARTED: DagsterEventType.RUN_START}
        if status in kinds:
            self.instance.report_dagster_event(DagsterEvent(kinds[status].value, job.name), run.run_id)
        return run


@pytest.fixture
def site(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, there: Receiver, tmp_path: Path) -> Site:
    settings = Settings(
        _env_file=None,
        alert_webhook_url=there.url,
        alerts_file=tmp_path / "alerts.yaml",
        dagster_url="http://host:3000/",
    )
    return Site(instance, repository, settings)


def test_a_check_that_fails_and_mends_is_told_once_each(site: Site, there: Receiver) -> None:
    site.report("connected", "OK")
    site.tick()
    site.report("connected", "ERROR")
    assert site.tick() == "Nothing new."
    assert "Taken by webhook." in site.tick(30)
    assert site.tick(30) == "Nothing new. Not OK: live_feed/connected ERROR."
    site.report("connected", "OK")
    site.tick(30)
    site.tick(70)
    site.tick(1000)
    assert there.titles == ["ERROR: live_feed/connected", "OK again: live_feed/connected"]
    (first, _) = [post["alerts"][0] for _, post in there.posts]
    assert (first["text"], first["value"], first["limits"]) == ("connected is ERROR.", "12.5 s", "warns above 5 s")
    assert first["url"] == "http://host:3000/assets/live_feed?view=checks&checkDetail=connected"
    assert first["owners"] == ["team:market-data"]


def test_a_tick_without_a_change_writes_nothing(site: Site) -> None:
    site.report("connected", "WARN")
    site.tick()
    written = site.cursors_written
    for _ in range(3):
        site.report("connected", "WARN")
        site.tick(300)
    assert site.cursors_written == written
    assert len(site.events) == 1  # at the beginning, that all is delivered


def test_a_lost_cursor_tells_what_fails_once_and_then_only_what_changes(site: Site, there: Receiver) -> None:
    for name in ("connected", "disk", "gaps"):
        site.report(name, "ERROR")
    site.report("latency_p99", "WARN")
    site.tick(3600)
    site.tick(30)
    ((_, post),) = there.posts
    assert post["title"] == "ERROR: alerts begin"
    assert [name for name in ("connected", "disk", "gaps", "latency_p99") if f"live_feed/{name}" in post["text"]] == [
        "connected",
        "disk",
        "gaps",
    ]
    site.cursor = "another version's"
    site.tick(30)
    assert there.titles == ["ERROR: alerts begin"] * 2
    site.report("disk", "OK")
    site.tick(30)
    site.tick(100)
    assert there.titles[2:] == ["OK again: live_feed/disk"]


def test_nothing_is_said_at_the_beginning_where_nothing_fails(site: Site, there: Receiver) -> None:
    site.report("connected", "OK")
    site.tick()
    assert there.posts == []


def test_many_changes_at_once_are_one_message(site: Site, there: Receiver) -> None:
    names = ("connected", "disk", "gaps", "token", "latency_p99", "conservation")
    site.tick()
    for name in names:
        site.report(name, "ERROR")
    site.tick(30)
    assert there.titles == ["6 alerts: 6 ERROR"]


def test_an_hour_is_named_and_an_earlier_one_that_is_well_mends_nothing(site: Site, there: Receiver) -> None:
    site.tick()
    site.report("gaps", "ERROR", TICKS, partition="2026-11-20T10:00")
    site.tick(30)
    site.report("gaps", "OK", TICKS, partition="2026-11-18T10:00")
    site.tick(200)
    site.report("gaps", "OK", TICKS, partition="2026-11-20T11:00")
    site.tick(200)
    assert there.titles == [
        "ERROR: ticks/gaps, the hour 10:00 to 11:00 IST of 2026-11-20",
        "OK again: ticks/gaps, the hour 11:00 to 12:00 IST of 2026-11-20",
    ]


def test_fifty_hours_that_are_red_at_once_are_one_message_whatever_happens_on_its_way(
    site: Site, there: Receiver
) -> None:
    hours = [f"2026-11-{day:02}T{hour:02}:00" for day in range(16, 26) for hour in range(10, 15)]
    every = f"{len(HOUR_CHECKS)} alerts: {len(HOUR_CHECKS)}"
    site.tick()
    there.status = 500
    for hour in hours:
        site.report("gaps", "ERROR", TICKS, partition=hour)
    for name in set(HOUR_CHECKS) - {"gaps"}:
        site.report(name, "ERROR", TICKS, partition=hours[-1])
    for _ in range(12):  # nobody takes it for an hour
        site.tick(300)
    assert there.posts == []
    there.status = 200
    site.tick(600)
    assert there.titles == [f"{every} ERROR"]
    for seconds in (15, -7200, 15, 7200, 600):  # the machine's clock is set back, and right again
        site.tick(seconds)
    for name in HOUR_CHECKS:
        site.report(name, "OK", TICKS, partition="2026-11-26T10:00")
    for seconds in (15, 70, -3600, 15, 3600, 70):
        site.tick(seconds)
    assert there.titles == [f"{every} ERROR", f"{every} OK"]


def test_each_owner_is_told_once_of_what_is_theirs_and_nobody_of_what_is_muted(site: Site, there: Receiver) -> None:
    with receiver() as telegram:
        telegram.rules = telegrams_rules
        site.settings = site.settings.model_copy(
            update={
                "alert_telegram_token": SecretStr("123456:AAbbCCddEEffGGhh"),
                "alert_telegram_chat": "-1",
                "alert_telegram_api_url": telegram.url,
            }
        )
        site.settings.alerts_file.write_text(
            "mute:\n  - name: live_feed/disk\nroutes:\n  team:market-data: [webhook, 'telegram:-1002']\n"
        )
        site.tick()
        for name in ("connected", "disk"):
            site.report(name, "ERROR")
        for _ in range(4):
            site.tick(30)
        assert there.titles == ["ERROR: live_feed/connected"]
        assert [(body["chat_id"], body["text"].splitlines()[0]) for _, body in telegram.posts] == [
            ("-1002", "ERROR: live_feed/connected")
        ]


def test_a_run_that_fails_is_told_with_its_reason_and_the_next_success_too(site: Site, there: Receiver) -> None:
    site.tick()
    for _ in range(2):
        failing_job.execute_in_process(instance=site.instance, raise_on_error=False)
    run = site.instance.get_runs(limit=1)[0]
    site.tick(1)
    site.tick(30)
    ((_, post),) = there.posts
    assert post["title"] == "ERROR: failing_job"
    assert "failed: ValueError: The broker's password=*** is wrong." in post["text"]
    assert post["alerts"][0]["url"].startswith("http://host:3000/runs/")
    mended_job.execute_in_process(instance=site.instance)
    site.tick(30)
    site.tick(100)
    assert there.titles == ["ERROR: failing_job", "OK again: failing_job"]
    assert run.run_id not in there.posts[1][1]["text"]


def test_runs_that_failed_before_alerts_began_are_not_told(site: Site, there: Receiver) -> None:
    failing_job.execute_in_process(instance=site.instance, raise_on_error=False)
    site.tick(120)
    site.tick(30)
    assert there.posts == []


def test_an_ingest_run_that_lives_for_a_minute_ends_the_alert_of_the_one_before(site: Site, there: Receiver) -> None:
    site.tick()
    dead = site.run(Status.STARTED, **{ROLE_TAG: "ingest"})
    site.instance.report_run_failed(dead, "The run has sent no heartbeat for 151 s.")
    site.run(Status.STARTED, **{ROLE_TAG: "ingest"})
    site.tick(5)
    assert "The run has sent no heartbeat for 151 s." in there.posts[0][1]["text"]
    site.tick(15)
    assert len(there.posts) == 1
    site.tick(60)
    assert there.titles == ["ERROR: failing_job", "OK again: failing_job"]


@pytest.mark.parametrize(
    ("status", "tags", "patience_s", "words"),
    [
        (Status.NOT_STARTED, {}, WAITING_S, "while no other run is going on"),
        (Status.STARTING, {}, STARTING_S, "to start: does its code location run?"),
        (Status.STARTED, {}, LONG_S, "has been going on for 2 h"),
        (Status.STARTED, {ROLE_TAG: "ingest"}, HEARTBEAT_S, "has sent no heartbeat for"),
    ],
)
def test_a_run_that_is_stuck_is_told_and_when_it_moves_again(
    site: Site, there: Receiver, status: dg.DagsterRunStatus, tags: dict[str, str], patience_s: float, words: str
) -> None:
    site.tick()
    run = site.run(status, **tags)
    site.tick(patience_s - 60)
    site.tick(25)
    assert there.posts == []
    site.tick(60)
    site.tick(25)
    ((_, post),) = there.posts
    assert words in post["text"]
    site.instance.report_run_canceled(run)
    site.tick(30)
    site.tick(100)
    assert there.titles[1:] == ["OK again: failing_job"]


def test_a_heartbeat_is_a_sign_of_life(site: Site, there: Receiver) -> None:
    site.tick()
    run = site.run(Status.STARTED, **{ROLE_TAG: "ingest"})
    site.tick(HEARTBEAT_S - 5)
    observation = DagsterEvent(
        DagsterEventType.ASSET_OBSERVATION.value,
        "failing_job",
        event_specific_data=dg._core.events.AssetObservationData(dg.AssetObservation(TICKS)),  # type: ignore[attr-defined]
    )
    site.instance.report_dagster_event(observation, run.run_id, timestamp=time.time() + HEARTBEAT_S - 5)
    site.tick(HEARTBEAT_S - 60)
    site.tick(25)
    assert there.posts == []


def test_a_run_in_a_line_that_moves_is_not_stuck(site: Site, there: Receiver) -> None:
    site.tick()
    site.run(Status.NOT_STARTED)
    site.run(Status.STARTED)
    site.tick(WAITING_S + 10)
    site.tick(30)
    assert there.posts == []


def test_what_is_not_taken_is_tried_again_and_seen_in_the_check(site: Site, there: Receiver) -> None:
    site.report("connected", "OK")
    site.tick()
    there.status = 500
    site.report("connected", "ERROR")
    said = site.tick(30)
    assert "webhook: The webhook refuses the message (HTTP 500)." in said
    assert "Waiting for webhook: 1 alert; tried once in 0 s, and next in 15 s." in said
    assert "connected is ERROR." in (site.cursor or "")
    there.status = 200
    site.tick()
    assert there.posts == []
    assert "Taken by webhook." in site.tick(15)
    assert there.titles == ["ERROR: live_feed/connected"]
    assert [(e.asset_check_key, e.passed) for e in site.events] == [(DELIVERED, p) for p in (True, False, True)]
    for event in site.events:
        site.instance.report_runless_asset_event(event)
    site.tick(300)  # and it is no check to be told of
    assert len(there.posts) == 1


def test_what_nobody_takes_is_given_up_and_the_check_fails(site: Site, there: Receiver) -> None:
    site.tick()
    there.status = 404
    site.report("connected", "ERROR")
    site.tick(30)
    said = site.tick(6 * 3600)
    assert "The webhook refuses the message (HTTP 404). Is ALERT_WEBHOOK_URL right? Given up so far: 1 alert." in said
    assert site.events[-1].severity == dg.AssetCheckSeverity.ERROR


def test_what_is_muted_is_not_told_before_that_ends(site: Site, there: Receiver) -> None:
    site.tick()
    site.settings.alerts_file.write_text("mute:\n  - name: live_feed/conn*\n  - name: failing_job\n")
    site.report("connected", "ERROR")
    failing_job.execute_in_process(instance=site.instance, raise_on_error=False)
    site.tick(30)
    assert there.posts == []
    site.settings.alerts_file.unlink()
    site.tick(30)
    assert there.titles == ["ERROR: live_feed/connected"]


def test_rules_that_cannot_be_read_keep_nobody_from_being_told(site: Site, there: Receiver) -> None:
    site.tick()
    site.settings.alerts_file.write_text("mute: [")
    site.report("connected", "ERROR")
    assert "line 1: not valid YAML" in site.tick(30)
    assert there.titles == ["ERROR: live_feed/connected"]
    assert not site.events[-1].passed


def test_without_a_channel_the_sensor_says_what_to_set_and_forgets(site: Site) -> None:
    site.report("connected", "ERROR")
    site.tick()
    site.settings = site.settings.model_copy(update={"alert_webhook_url": None})
    assert "set ALERT_SLACK_WEBHOOK_URL" in site.tick()
    assert site.cursor == ""
    assert "ALERT_TELEGRAM_CHAT" in site.tick()


def test_the_cursor_holds_no_secret(site: Site, there: Receiver) -> None:
    site.settings = site.settings.model_copy(
        update={
            "alert_webhook_url": Settings(_env_file=None, alert_webhook_url=f"{there.url}/s3cret").alert_webhook_url
        }
    )
    site.tick()
    there.status = 500
    site.report("connected", "ERROR")
    said = site.tick(30)
    assert "s3cret" not in f"{said}{site.cursor}{site.events}"
    assert json.loads(site.cursor or "")["outbox"]["webhook"]["failures"] == 1


def test_a_person_who_runs_the_check_sends_a_test(site: Site, there: Receiver) -> None:
    result = alerts_delivered(site.settings)
    assert isinstance(result, dg.AssetCheckResult)
    assert (result.passed, result.description) == (True, "A test message was taken by webhook.")
    there.status = 500
    result = alerts_delivered(site.settings)
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed
    assert "webhook: The webhook refuses the message (HTTP 500)." in (result.description or "")
    assert dg.AssetCheckKey(ALERTS, "delivered") == DELIVERED
