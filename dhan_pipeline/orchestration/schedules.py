"""Jobs that a clock starts: the instrument sync before the session, and the retention of ticks.

Belongs here: cron expressions, always in IST, and the small jobs behind them. Does not: the ingest run, which no clock
starts (`supervisor.py`).
"""

from contextlib import closing

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.partitions import drop_expired

TIME_ZONE = "Asia/Kolkata"

instrument_sync_job = dg.define_asset_job(
    "instrument_sync_job",
    selection=["scrip_master", "instruments", "subscriptions"],
    description="Downloads the scrip master, updates the instruments, and resolves what to capture.",
    tags={"dhan/role": "instrument_sync"},
)

#: The broker renews the master overnight; half an hour before the first session (commodities, 09:00) is left.
instrument_sync_schedule = dg.ScheduleDefinition(
    name="instrument_sync_schedule",
    job=instrument_sync_job,
    cron_schedule="30 8 * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every day at 08:30 IST, before the sessions begin.",
)


@dg.op(description="Drops the hourly partitions of ticks that are older than the retention.")
def drop_expired_ticks(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Drop what expired. The journal is not touched, so a dropped hour can be rebuilt."""
    with closing(connect(database_url(settings))) as conn:
        dropped = drop_expired(conn, settings.retention_days, clock.now_ns())
    context.log.info(f"Dropped {len(dropped)} partitions older than {settings.retention_days} days: {dropped}")


@dg.job(
    description="Drops ticks older than the retention. The journal keeps them, so a dropped hour can be rebuilt.",
    tags={"dhan/role": "retention"},
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
    description="Every day at 00:30 IST, when no session is open.",
)
