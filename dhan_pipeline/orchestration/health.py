"""What Dagster knows, as signals for alerts: how each check was last evaluated, runs that ended, runs that are stuck.

Belongs here: queries of Dagster's storage, and what is wrong with a run. Does not: whether it is told (`alerts/`), nor
when it is looked for (`orchestration/alerts.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.dagster_run import RunRecord

from dhan_pipeline.alerts.signals import Signal
from dhan_pipeline.alerts.transitions import Level, Patience, Reading, Standing, unchanged
from dhan_pipeline.amounts import duration, measured
from dhan_pipeline.errors import redacted
from dhan_pipeline.orchestration.names import OWNERS, ROLE_TAG

#: A check that changes back within this is no news; one that is well again has to stay so.
CHECKS = Patience(worse_s=20.0, better_s=60.0)

#: A run that failed, failed. A job is well again when a run of it succeeded, or an ingest run has lived for a minute.
JOBS = Patience(worse_s=0.0, better_s=60.0)

#: A run that waits in line for so long, while no other is going on, is stuck; so is one that does not get to work, or
#: is not gone. `dagster.yaml` ends those that start or are cancelled for longer than two minutes.
WAITING_S = 600.0
STARTING_S = 300.0

#: Two misses more than the supervisor's own patience: it has not replaced the run, so it does not work either.
HEARTBEAT_S = 300.0

#: No job but ingest takes this long.
LONG_S = 2 * 3600.0

#: Runs are looked for from this much before the newest change that was seen on: what is written last may be older.
OVERLAP_S = 60.0

Status = dg.DagsterRunStatus


def check_signals(
    instance: dg.DagsterInstance, graph: AssetGraph, keys: Iterable[dg.AssetCheckKey], ui: str = ""
) -> list[Signal]:
    """Each check as it was last evaluated. One that is being run, or never was, is left out."""
    signals = []
    for key, record in instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys)).items():
        evaluation = record.evaluation
        if record.status not in COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES or not record.event or not evaluation:
            continue
        level = Level.OK if evaluation.passed else Level[evaluation.severity.value]
        asset = key.asset_key.to_user_string()
        facts = {name: value.value for name, value in evaluation.metadata.items() if name in _FACTS}
        number = facts.get("value")
        signals.append(
            Signal(
                subject=check_subject(key),
                reading=Reading(level=level, at_s=record.event.timestamp, partition=record.partition or ""),
                patience=CHECKS,
                name=f"{asset}/{key.name}",
                text=partial(str, evaluation.description or "It gives no description."),
                owners=tuple(graph.get(key.asset_key).owners),
                aliases=(key.name, asset),
                url=f"{ui}/assets/{quote(asset)}?view=checks&checkDetail={quote(key.name)}" if ui else "",
                value=measured(number, str(facts.get("unit") or "")) if isinstance(number, float | int) else "",
                limits=str(facts.get("limits") or ""),
            )
        )
    return signals


_FACTS = ("value", "unit", "limits")


def run_signals(
    instance: dg.DagsterInstance, graph: AssetGraph, records: Iterable[RunRecord], ui: str = ""
) -> list[Signal]:
    """Jobs whose runs ended well or failed, in order; one that ingests is also well while it goes on."""
    signals = []
    for record in records:
        run = record.dagster_run
        job, level, at_s = _job(run), Level.OK, record.end_time
        if run.status == Status.FAILURE:
            level, text = Level.ERROR, partial(_why_it_failed, instance, run)
        elif run.status == Status.SUCCESS:
            text = partial("Run {} succeeded.".format, run.run_id[:8])
        elif run.status == Status.STARTED and _ingests(run):
            at_s, text = record.start_time, partial("Run {} goes on.".format, run.run_id[:8])
        else:
            continue
        signals.append(
            Signal(
                subject=f"job {job}",
                reading=Reading(level=level, at_s=at_s or record.update_timestamp.timestamp()),
                patience=JOBS,
                name=job,
                text=text,
                owners=_owners(run, graph),
                url=f"{ui}/runs/{run.run_id}" if ui else "",
            )
        )
    return sorted(signals, key=lambda signal: signal.reading.at_s)


def stuck_signals(
    instance: dg.DagsterInstance, graph: AssetGraph, records: Sequence[RunRecord], now_s: float, ui: str = ""
) -> list[Signal]:
    """Jobs with a run that does not move, given all runs that are not over."""
    signals = {}
    going = {_line(record.dagster_run) for record in records if record.dagster_run.status in _GOING}
    for record in records:
        run = record.dagster_run
        if (found := _stuck(instance, record, going, now_s)) is None:
            continue
        level, words = found
        job = _job(run)
        signals[job] = Signal(
            subject=f"stuck {job}",
            reading=Reading(level=level, at_s=now_s),
            patience=CHECKS,
            name=job,
            text=partial(str, f"Run {run.run_id[:8]} {words}"),
            owners=_owners(run, graph),
            url=f"{ui}/runs/{run.run_id}" if ui else "",
        )
    return list(signals.values())


def changed_runs(
    instance: dg.DagsterInstance, since_s: float, seen: Mapping[str, str]
) -> tuple[list[RunRecord], float, dict[str, str]]:
    """Runs that are in another status than was `seen`, and what to ask with the next time.

    Asks for what changed since a minute before `since_s` (Unix seconds), the newest change that was known: what is
    written last may be older.
    """
    records = instance.get_run_records(dg.RunsFilter(updated_after=datetime.fromtimestamp(since_s - OVERLAP_S, UTC)))
    statuses = {record.dagster_run.run_id: record.dagster_run.status.value for record in records}
    updated_s = {record.dagster_run.run_id: record.update_timestamp.timestamp() for record in records}
    newest_s = max([since_s, *updated_s.values()])
    recent = {run_id: status for run_id, status in statuses.items() if updated_s[run_id] > newest_s - OVERLAP_S}
    changed = [
        record for record in records if seen.get(record.dagster_run.run_id) != statuses[record.dagster_run.run_id]
    ]
    return changed, newest_s, recent


def still_signals(standings: Mapping[str, Standing], found: Iterable[Signal], now_s: float) -> list[Signal]:
    """What is to be thought of jobs of which something was told, or is about to be, and nothing new was found."""
    subjects = {signal.subject for signal in found}
    signals = []
    for subject, standing in standings.items():
        kind, _, job = subject.partition(" ")
        if subject in subjects or kind == "check":
            continue
        if kind == "stuck":  # what is not found to be stuck is not
            reading, text = Reading(level=Level.OK, at_s=now_s), "Its runs move again."
        else:
            reading, text = unchanged(standing), "Its runs go well again."
        signals.append(Signal(subject, job, reading, JOBS, partial(str, text), OWNERS))
    return signals


def check_subject(key: dg.AssetCheckKey) -> str:
    """The key under which it is remembered what was told of a check."""
    return f"check {key.asset_key.to_user_string()}/{key.name}"


_GOING = frozenset({Status.STARTING, Status.STARTED, Status.CANCELING})


def _stuck(instance: dg.DagsterInstance, record: RunRecord, going: set[str], now_s: float) -> tuple[Level, str] | None:
    run = record.dagster_run
    created_s, updated_s = record.create_timestamp.timestamp(), record.update_timestamp.timestamp()
    match run.status:
        case Status.QUEUED | Status.NOT_STARTED:
            if now_s - created_s > WAITING_S and _line(run) not in going:
                return Level.WARN, (
                    f"has waited to start for {duration(now_s - created_s)} while no other run is going on: does"
                    " Dagster's daemon run?"
                )
        case Status.STARTING | Status.CANCELING:
            if now_s - updated_s > STARTING_S:
                doing = "start" if run.status == Status.STARTING else "be cancelled"
                return Level.WARN, f"has taken {duration(now_s - updated_s)} to {doing}: does its code location run?"
        case Status.STARTED if _ingests(run):
            started_s = record.start_time or updated_s
            if now_s - started_s <= HEARTBEAT_S:
                return None
            heartbeats = instance.get_records_for_run(
                run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION, limit=1, ascending=False
            ).records
            silent_s = now_s - max([started_s, *(beat.timestamp for beat in heartbeats)])
            if silent_s > HEARTBEAT_S:
                return Level.ERROR, (
                    f"has sent no heartbeat for {duration(silent_s)}, and was not replaced: is the sensor of its"
                    " supervisor on?"
                )
        case Status.STARTED:
            started_s = record.start_time or updated_s
            if now_s - started_s > LONG_S:
                return Level.WARN, f"has been going on for {duration(now_s - started_s)}, longer than any should take."
    return None


def _line(run: dg.DagsterRun) -> str:
    """Runs of one line wait for each other: those of a capture, and all others."""
    return run.job_name if _ingests(run) else ""


def _ingests(run: dg.DagsterRun) -> bool:
    return run.tags.get(ROLE_TAG) == "ingest"


def _job(run: dg.DagsterRun) -> str:
    """The job's name; the assets' where a person materialises some."""
    if run.job_name != IMPLICIT_ASSET_JOB_NAME:
        return run.job_name
    checks = run.asset_check_selection if not run.asset_selection else None
    keys = run.asset_selection or {key.asset_key for key in checks or ()}
    return ", ".join(sorted(key.to_user_string() for key in keys)) or run.job_name


def _owners(run: dg.DagsterRun, graph: AssetGraph) -> tuple[str, ...]:
    """The owners of the assets that a run was launched for, else those of all."""
    selected = [graph.get(key).owners for key in run.asset_selection or () if graph.has(key)]
    return tuple(dict.fromkeys(owner for owners in selected for owner in owners)) or OWNERS


def _why_it_failed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """What the first step that failed said, else the run."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    said = ""
    for record in instance.get_records_for_run(run.run_id, of_type=kinds, limit=1).records:
        entry = record.event_log_entry
        event = entry.dagster_event
        if event is not None and event.event_type == dg.DagsterEventType.STEP_FAILURE:
            failure = event.step_failure_data
            if failure.user_failure_data and failure.user_failure_data.description:
                said = failure.user_failure_data.description
            elif failure.error:
                said = (failure.error.cause or failure.error).message
        said = said or (event.message if event is not None else None) or entry.user_message
    if "DagsterExecutionInterruptedError" in said:
        said = "its process was told to end, as by a restart of its code location."
    words = " ".join(redacted(said).split())[:500]
    of = f" of {run.tags['dagster/partition']}" if "dagster/partition" in run.tags else ""
    return f"Run {run.run_id[:8]}{of} failed: {words or 'it said nothing.'}"
