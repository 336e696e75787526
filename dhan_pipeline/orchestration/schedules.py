"""Jobs that a clock starts: the instrument sync before the session, the archive of ticks and their retention.

Belongs here: cron expressions, always in IST, and the small jobs behind them. Does not: the ingest run, which no clock
starts (`supervisor.py`).
"""

from contextlib import closing
from datetime import date, timedelta

import dagster as dg
import psycopg2

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.orchestration.names import ROLE_TAG, TICKS_ARCHIVE
from dhan_pipeline.quality.calendar import SYNC_AT
from dhan_pipeline.sessions import IST, day_bounds_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.archive import day_is_archived
from dhan_pipeline.store.candle_differences import has_ticks
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.partitions import drop_expired, instant, kept_since_ns
from dhan_pipeline.store.subscribed import forget

TIME_ZONE = "Asia/Kolkata"

instrument_sync_job = dg.define_asset_job(
    "instrument_sync_job",
    selection=["scrip_master", "instruments", "subscriptions"],
    description="Downloads the scrip master, updates the instruments, and resolves what to capture.",
    tags={ROLE_TAG: "instrument_sync"},
)

instrument_sync_schedule = dg.ScheduleDefinition(
    name="instrument_sync_schedule",
    job=instrument_sync_job,
    cron_schedule=f"{SYNC_AT.minute} {SYNC_AT.hour} * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=instrument_sync_job.tags,
    description=f"Every day at {SYNC_AT:%H:%M} IST, before the sessions begin.",
)


archive_job = dg.define_asset_job(
    "archive_job",
    selection=dg.AssetSelection.assets(TICKS_ARCHIVE),
    description="Writes a day of ticks to a Parquet file.",
    tags={ROLE_TAG: "archive"},
)


#: Before the retention, which drops no day that is not archived.
@dg.schedule(
    name="archive_schedule",
    job=archive_job,
    cron_schedule="10 0 * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=archive_job.tags,
    description="Every day at 00:10 IST: the day that is over, if it has ticks.",
)
def archive_schedule(
    context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """Yesterday's partition of `ticks_archive`. Where the database is away, the run says so."""
    day = (context.scheduled_execution_time.astimezone(IST) - timedelta(days=1)).date()
    if settings.archive == "off":
        return dg.SkipReason("ARCHIVE is off.")
    try:
        with closing(connect(database_url(settings))) as conn:
            captured = has_ticks(conn, *day_bounds_ns(day))
    except (psycopg2.Error, PipelineError):
        captured = True
    if not captured:
        return dg.SkipReason(f"There are no ticks of {day}.")
    return dg.RunRequest(run_key=str(day), partition_key=str(day))


@dg.op(
    description="Drops the hourly partitions of ticks that are older than the retention, and what was subscribed then."
)
def drop_expired_ticks(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Drop what expired and is archived. The journal is not touched, so a dropped hour can be rebuilt."""

    def may_drop(day: date) -> bool:
        return settings.archive == "off" or day_is_archived(conn, settings.data_dir, day)

    with closing(connect(database_url(settings))) as conn:
        expired = drop_expired(conn, settings.retention_days, clock.now_ns(), may_drop)
        # Completeness asks it of hours whose ticks are there.
        forgotten = forget(conn, instant(kept_since_ns(conn, settings.retention_days, clock.now_ns())))
    dropped, kept = expired.dropped, expired.kept
    context.log.info(f"Dropped {len(dropped)} partitions older than {settings.retention_days} days: {dropped}")
    context.log.info(f"Forgot {forgotten:,} subscriptions that ended before the ticks that are kept.")
    if kept:
        context.log.warning(
            f"Not dropped, because the archive does not hold what the table holds of {', '.join(map(str, kept))}:"
            " materialise these partitions of ticks_archive, or set ARCHIVE=off to have expired days dropped without."
        )
    if expired.held_up:
        days = ", ".join(map(str, expired.held_up))
        context.log.warning(
            f"Not dropped now, because a transaction that has ticks in use did not end: {days}. The next run tries"
            " again; `select * from pg_stat_activity` shows who has one open."
        )


@dg.job(
    description="Drops ticks older than the retention, once they are archived. The journal keeps them, so a dropped"
    " hour can be rebuilt.",
    tags={ROLE_TAG: "retention"},
)
def retention_job() -> None:
    """Drop expired ticks."""
    drop_expired_ticks()


#: No Indian session is open then, so dropping waits for nobody.
retention_schedule = dg.ScheduleDefinition(
    name="retention_schedule",
    job=retention_job,
    cron_schedule="30 0 * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=retention_job.tags,
    description="Every day at 00:30 IST, when no session is open.",
)
