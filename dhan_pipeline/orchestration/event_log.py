"""Keeps Dagster's event log from growing without end: the job, what starts it, and what it deletes.

Belongs here: which events nobody asks for any more. Does not: ticks of sensors and schedules (`retention` in
`dagster.yaml`), and ticks of the market (`schedules.py`).

A day of captures writes some 6 MB into PostgreSQL and twice that into SQLite: heartbeats, and the live checks every
five minutes. Dagster itself offers to delete whole runs only, which would take the materialisations with them: the
hours of a deleted ingest run were not captured, as far as Dagster knows. So rows are deleted by SQL, and never what the
present state is read from: materialisations and the plans for them, the last outcome of each check of each partition,
how each run went, and why a step failed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg
import sqlalchemy as sa
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)

from dhan_pipeline.orchestration.names import ROLE_TAG
from dhan_pipeline.orchestration.schedules import TIME_ZONE

#: A fault is looked into within days; two weeks also outlast a holiday. What is kept of them is some 100 MB.
KEEP_DAYS = 14

#: Rows that are deleted at once: no statement holds locks for longer than some hundredths of a second.
BATCH_ROWS = 1000

Type = dg.DagsterEventType

#: What only the page of a finished run shows, beside its log messages. A list of what may go, not of what must stay: an
#: event that a later Dagster adds is kept.
RUN_LOG = (
    Type.ENGINE_EVENT,
    Type.LOGS_CAPTURED,
    Type.RESOURCE_INIT_STARTED,
    Type.RESOURCE_INIT_SUCCESS,
    Type.STEP_WORKER_STARTING,
    Type.STEP_WORKER_STARTED,
    Type.STEP_START,
    Type.STEP_INPUT,
    Type.STEP_OUTPUT,
    Type.STEP_SUCCESS,
    Type.LOADED_INPUT,
    Type.HANDLED_OUTPUT,
)

_SIZE = {
    "postgresql": "SELECT pg_total_relation_size('event_logs') + pg_total_relation_size('asset_check_executions')",
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
}

Connect = Callable[[], AbstractContextManager[sa.Connection]]


def prune(instance: dg.DagsterInstance, before: datetime) -> dict[str, int]:
    """Delete what nobody asks for of the time before `before` (aware); returns how many rows of each kind.

    Where SQLite is the storage, each run's own file is left as it is: a few MB, which no other run has to read. What
    grows there, too, is the index over all runs.
    """
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    cutoff = before.astimezone(UTC).replace(tzinfo=None)  # as the tables have it
    unfinished = instance.get_run_ids(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    connects: list[Connect] = [storage.index_connection]
    if storage.is_run_sharded:
        connects.append(partial(storage.run_connection, RUNLESS_RUN_ID))
    deleted: dict[str, int] = {}
    for connect in connects:
        for name, table, condition in _prunable(cutoff, unfinished):
            deleted[name] = deleted.get(name, 0) + _delete(connect, table, condition)
    return deleted


def log_bytes(instance: dg.DagsterInstance) -> int:
    """Size of the event log on disk; with SQLite, of the index over all runs. Deleted rows' space is used again."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as conn:
        size: int = conn.execute(sa.text(_SIZE[conn.dialect.name])).scalar_one()
    return size


def _prunable(cutoff: datetime, unfinished: Sequence[str]) -> Iterator[tuple[str, sa.Table, sa.ColumnElement[bool]]]:
    """Names, tables, and which of their rows to delete. In this order: a check's event goes after its outcome."""
    events, outcomes, later = SqlEventLogStorageTable, AssetCheckExecutionsTable, AssetCheckExecutionsTable.alias()
    superseded = sa.exists().where(
        later.c.asset_key == outcomes.c.asset_key,
        later.c.check_name == outcomes.c.check_name,
        later.c.partition.is_not_distinct_from(outcomes.c.partition),
        later.c.execution_status.in_([status.value for status in COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES]),
        later.c.id > outcomes.c.id,
    )
    yield "check_outcomes", outcomes, sa.and_(outcomes.c.evaluation_event_timestamp < cutoff, superseded)

    def old(*types: dg.DagsterEventType) -> sa.ColumnElement[bool]:
        named = events.c.dagster_event_type.in_([event_type.value for event_type in types])
        return sa.and_(named, events.c.timestamp < cutoff)

    in_use = sa.exists().where(outcomes.c.evaluation_event_storage_id == events.c.id)
    check_events = old(Type.ASSET_CHECK_EVALUATION, Type.ASSET_CHECK_EVALUATION_PLANNED)
    yield "check_events", events, sa.and_(check_events, ~in_use)
    yield "observations", events, old(Type.ASSET_OBSERVATION)
    message = sa.and_(events.c.dagster_event_type.is_(None), events.c.timestamp < cutoff)
    yield "run_logs", events, sa.and_(sa.or_(message, old(*RUN_LOG)), events.c.run_id.not_in(unfinished))


def _delete(connect: Connect, table: sa.Table, condition: sa.ColumnElement[bool]) -> int:
    """Delete the table's rows for which the condition holds, a batch at a time; returns how many."""
    deleted = last = 0
    while True:
        batch = sa.select(table.c.id).where(table.c.id > last, condition).order_by(table.c.id).limit(BATCH_ROWS)
        with connect() as conn:
            ids = conn.execute(batch).scalars().all()
            if not ids:
                return deleted
            if table is SqlEventLogStorageTable:
                conn.execute(sa.delete(AssetEventTagsTable).where(AssetEventTagsTable.c.event_id.in_(ids)))
            conn.execute(sa.delete(table).where(table.c.id.in_(ids)))
        deleted += len(ids)
        last = ids[-1]


@dg.op(description=f"Deletes events of Dagster's that are older than {KEEP_DAYS} days and that nobody asks for.")
def prune_event_log(context: dg.OpExecutionContext) -> None:
    """Prune, and say what was deleted and how large the log is."""
    deleted = prune(context.instance, datetime.now(UTC) - timedelta(days=KEEP_DAYS))
    size = log_bytes(context.instance)
    context.add_output_metadata({**deleted, "bytes": size})
    counts = ", ".join(f"{rows:,} {name.replace('_', ' ')}" for name, rows in deleted.items())
    context.log.info(f"Deleted of the time before {KEEP_DAYS} days ago: {counts}. The log has {size / 1e6:,.0f} MB.")


@dg.job(
    description=f"Prunes Dagster's own event log of what is older than {KEEP_DAYS} days: heartbeats, superseded check"
    " outcomes, the logs of finished runs. What was materialised, how runs went and the last outcomes of checks stay.",
    tags={ROLE_TAG: "event_log"},
)
def event_log_job() -> None:
    """Prune the event log."""
    prune_event_log()


event_log_schedule = dg.ScheduleDefinition(
    name="event_log_schedule",
    job=event_log_job,
    cron_schedule="40 0 * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=event_log_job.tags,
    description="Every day at 00:40 IST, when no session is open.",
)
