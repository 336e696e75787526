"""The sensor that keeps exactly one ingest run alive in session: `decide` has the rules, the sensor is a thin shell.

Belongs here: when an ingest run is started, asked to stop, cancelled or given up. Does not: what happens inside a run.
Exclusivity is not decided here but by the capture's lock: a wrong decision costs a refused start, not a second writer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dagster as dg

from dhan_pipeline.amounts import counted
from dhan_pipeline.clock import Clock
from dhan_pipeline.journal.writer import nobody_writes
from dhan_pipeline.orchestration.names import (
    ATTEMPT_TAG,
    CAPTURE_TAG,
    NEEDS_PERSON_TAG,
    ROLE_TAG,
    SESSION_TAG,
    SOURCE_TAG,
    STOP_AT_TAG,
    STOP_TAG,
    of_source,
)
from dhan_pipeline.quality.calendar import capture_expected, session_name
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source

#: Seconds without a heartbeat after which a started run is given up: two missed heartbeats and some patience. It is
#: how the death of a whole container is noticed, which Dagster's run monitoring cannot see with the default launcher.
STALE_S = 150.0

#: The death of a run on this machine is noticed sooner, and also where it is an orphan of an earlier code server: its
#: capture ends with it, and the capture's lock is free. A capture takes the lock first of all, but where it has to
#: start the embedded PostgreSQL after a crash; and a run may live on for seconds after its capture.
START_S = 120.0
UNLOCKED_S = 12.0

#: A run that was asked to stop flushes within 15 s; after this long it is cancelled.
STOP_GRACE_S = 30.0

#: A failed run is replaced after 2, 4, 8… seconds, at most this many: each second without capture is lost for good.
MAX_BACKOFF_S = 60.0

#: A run that lived this long was healthy: its failure starts the count anew.
HEALTHY_S = 300.0

#: How often the sensor looks, and so how long a dead run goes unnoticed. The daemon wakes every 5 s: asking for just
#: that would make it skip every other time.
INTERVAL_S = 4

#: Runs that are looked at: more than the failures of a session that the back-off permits to matter.
RECENT_RUNS = 25

Status = dg.DagsterRunStatus

ALIVE = frozenset({Status.QUEUED, Status.NOT_STARTED, Status.STARTING, Status.STARTED, Status.CANCELING})


@dataclass(frozen=True, slots=True)
class IngestRun:
    """What `decide` knows of a run of the ingest job. Times are Unix seconds, None where it did not happen."""

    run_id: str
    status: dg.DagsterRunStatus
    started_s: float | None = None
    ended_s: float | None = None
    heartbeat_s: float | None = None
    unlocked_s: float | None = None
    """Since when nobody has been seen to hold the capture's lock."""
    attempt: int | None = None
    """Its number in this session, None for a run of another session or one that a person launched."""
    stop_asked: bool = False
    stop_asked_s: float | None = None
    needs_person: str | None = None
    """Why it failed, if it did in this session and trying again is of no use before a person has acted."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and why in a sentence. `run_id` is the run that is meant, `attempt` the number to launch."""

    action: Literal["skip", "launch", "ask_to_stop", "cancel", "give_up"]
    reason: str
    run_id: str | None = None
    attempt: int = 0


def decide(now_s: float, in_session: bool, subscribed: bool, runs: Sequence[IngestRun]) -> Decision:
    """The supervisor's rules, the first that applies. `runs` are those of one capture, the newest first."""
    alive = [run for run in runs if run.status in ALIVE]
    if not subscribed and not alive:
        return Decision("skip", "No subscriptions are resolved yet: run instrument_sync_job, or materialise them.")
    if not in_session:
        return _close(now_s, alive)
    for run in alive:
        if run.status == Status.STARTED:
            silent_s = now_s - max(run.heartbeat_s or 0.0, run.started_s or now_s)
            if silent_s > STALE_S:
                return Decision("give_up", f"The run has sent no heartbeat for {silent_s:.0f} s.", run.run_id)
            unlocked_s = now_s - max(run.unlocked_s or now_s, (run.started_s or now_s) + START_S)
            if unlocked_s > UNLOCKED_S:
                return Decision("give_up", "The run's capture is gone: nobody holds its lock.", run.run_id)
    if alive:
        what = (
            "captures" if alive[0].status == Status.STARTED else f"is {alive[0].status.value.lower().replace('_', ' ')}"
        )
        return Decision("skip", f"Run {alive[0].run_id[:8]} {what}.")
    newest = runs[0] if runs else None
    if newest and newest.status == Status.CANCELED and not newest.stop_asked:
        return Decision("skip", "A person stopped the last ingest run; launch its job to capture again.")
    if newest and newest.needs_person:
        return Decision("skip", f"{newest.needs_person.rstrip('.')}. Once that is mended, launch its job.")
    failures = _failures_in_a_row(runs)
    if newest and newest.ended_s and failures:
        wait_s = newest.ended_s + min(2.0**failures, MAX_BACKOFF_S) - now_s
        if wait_s > 0:
            return Decision(
                "skip", f"{counted(failures, 'run')} in a row failed; the next one starts in {wait_s:.0f} s."
            )
    attempt = 1 + max((run.attempt for run in runs if run.attempt is not None), default=0)
    return Decision("launch", "In session, and no ingest run is alive.", attempt=attempt)


def _close(now_s: float, alive: Sequence[IngestRun]) -> Decision:
    for run in alive:
        if not run.stop_asked:
            return Decision("ask_to_stop", "The session is over.", run.run_id)
        if run.status != Status.CANCELING and now_s - (run.stop_asked_s or 0.0) > STOP_GRACE_S:
            return Decision("cancel", "The session is over and the run did not stop when asked.", run.run_id)
    return Decision("skip", "The session is over; waiting for the run to stop." if alive else "No session is open.")


def _failures_in_a_row(runs: Sequence[IngestRun]) -> int:
    failures = 0
    for run in runs:
        if run.status != Status.FAILURE or (run.started_s and run.ended_s and run.ended_s - run.started_s > HEALTHY_S):
            break
        failures += 1
    return failures


def build_supervisor(settings: Settings, source: Source, ingest_job: dg.JobDefinition) -> dg.SensorDefinition:
    """The sensor over the runs of the ingest job of a source."""
    capture = str(settings.of(source).capture_number)

    @dg.sensor(
        name=of_source("ingest_supervisor", source, settings.sources),
        job_name=ingest_job.name,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        tags={ROLE_TAG: "ingest", SOURCE_TAG: source},
        description="In session keeps one ingest run alive: replaces a dead one, leaves one that a person stopped, and"
        " asks it to stop when the session ends.",
    )
    def ingest_supervisor(
        context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.SkipReason | dg.RunRequest:
        settings = settings.of(source)
        session = session_name(settings, clock)
        now_s = time.time()
        # The sensor's cursor: since when the lock has been free.
        unlocked_s = (
            float(context.cursor or now_s) if nobody_writes(settings.journal_dir, settings.capture_number) else None
        )
        context.update_cursor("" if unlocked_s is None else str(unlocked_s))
        decision = decide(
            now_s=now_s,
            in_session=capture_expected(settings, clock),
            subscribed=settings.subscriptions_path.exists(),
            runs=_ingest_runs(context.instance, capture, session, unlocked_s),
        )
        if decision.action == "launch":
            return dg.RunRequest(
                # The attempt is part of the key, because Dagster never launches the same key twice.
                run_key=f"{capture}:{session}#{decision.attempt}",
                tags={SESSION_TAG: session, ATTEMPT_TAG: str(decision.attempt)},
            )
        _carry_out(context.instance, decision)
        return dg.SkipReason(decision.reason)

    return ingest_supervisor


def _carry_out(instance: dg.DagsterInstance, decision: Decision) -> None:
    if decision.run_id is None:
        return
    match decision.action:
        case "ask_to_stop":
            instance.add_run_tags(decision.run_id, {STOP_TAG: decision.reason, STOP_AT_TAG: str(time.time())})
        case "cancel":
            instance.run_coordinator.cancel_run(decision.run_id)
        case "give_up":
            run = instance.get_run_by_id(decision.run_id)
            if run is not None:
                instance.report_run_failed(run, decision.reason)


def _ingest_runs(instance: dg.DagsterInstance, capture: str, session: str, unlocked_s: float | None) -> list[IngestRun]:
    # Not by the job, whose name is another where a second source is captured since, or no more.
    filters = dg.RunsFilter(tags={ROLE_TAG: "ingest", CAPTURE_TAG: capture})
    records = instance.get_run_records(filters, limit=RECENT_RUNS)
    runs = []
    for record in records:
        run, tags = record.dagster_run, record.dagster_run.tags
        heartbeat = None
        if run.status == Status.STARTED:
            heartbeats = instance.get_records_for_run(
                run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION, limit=1, ascending=False
            ).records
            heartbeat = heartbeats[0].timestamp if heartbeats else None
        runs.append(
            IngestRun(
                run_id=run.run_id,
                status=run.status,
                started_s=record.start_time,
                ended_s=record.end_time,
                heartbeat_s=heartbeat,
                unlocked_s=unlocked_s,
                attempt=int(tags[ATTEMPT_TAG]) if tags.get(SESSION_TAG) == session and ATTEMPT_TAG in tags else None,
                stop_asked=bool(tags.get(STOP_TAG)),
                stop_asked_s=float(tags.get(STOP_AT_TAG) or 0.0) or None,
                needs_person=(tags.get(NEEDS_PERSON_TAG) or None) if tags.get(SESSION_TAG) == session else None,
            )
        )
    return runs
