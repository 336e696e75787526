"""When the broker's REST API is asked: after gaps, and each night for the bars of the day before.

Belongs here: the sensor, the schedule, their jobs, and why they do nothing. Does not: fetching (`ingest/recovery.py`,
`ingest/broker_bars.py`), comparing (`quality/`), and the daily assets (`assets/broker.py`).
"""

import time
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta

import dagster as dg
import psycopg2

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError, in_words
from dhan_pipeline.feeds.auth import check_token_validity
from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials
from dhan_pipeline.feeds.errors import CredentialsError
from dhan_pipeline.feeds.kite.auth import get_kite_credentials
from dhan_pipeline.ingest.recovery import due, recover_gaps
from dhan_pipeline.orchestration.assets.broker import BROKER_CANDLES, CANDLE_RECONCILIATION
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.names import ROLE_TAG
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.orchestration.schedules import TIME_ZONE
from dhan_pipeline.orchestration.supervisor import ALIVE
from dhan_pipeline.sessions import IST, day_bounds_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.candle_differences import has_ticks
from dhan_pipeline.store.engine import connect, database_url, running_url

#: How often the sensor looks. Bars are due three minutes after a gap: a minute more or less does not matter.
INTERVAL_S = 60

#: A recovery that failed is tried again after so many seconds: what is wrong may pass by itself.
RETRY_S = 600.0


@dg.op(
    description="Fetches quotes and bars of the minutes that gaps swallowed, and rebuilds the candles of their hours."
)
def recover_from_gaps(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Recover what is due. Fails with a sentence where a person has to act, or the broker does not answer."""
    with explained():
        recovered = recover_gaps(settings, database_url(settings), clock, context.log.info)
    for hour in recovered.hours:
        context.log_event(
            dg.AssetMaterialization(
                CANDLES_1M,
                description="Made again after a gap, with the broker's bars where ours lack packets.",
                partition=hour,
            )
        )
    for problem in recovered.problems:
        context.log.warning(problem)
    context.log.info(recovered.in_words())
    if recovered.unfinished:
        raise dg.Failure(description=recovered.unfinished, allow_retries=False)


@dg.job(
    description="Asks the broker's REST API for what gaps swallowed: quotes at once, bars of a minute once the broker"
    " has them. Nothing of it goes into ticks.",
    tags={ROLE_TAG: "gap_recovery"},
)
def gap_recovery_job() -> None:
    """Recover from gaps."""
    recover_from_gaps()


@dg.sensor(
    job_name=gap_recovery_job.name,
    name="gap_recovery_sensor",
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    tags=gap_recovery_job.tags,
    description="Starts gap_recovery_job where a gap in session is over and something is left to be fetched.",
)
def gap_recovery_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.RunRequest | dg.SkipReason:
    """One run at a time, and none when there is nothing to do."""
    # A server that nobody runs is not started to be asked.
    try:
        with closing(connect(running_url(settings))) as conn:
            work = due(settings, conn, clock)
    except (psycopg2.Error, PipelineError) as error:
        return dg.SkipReason(in_words(error))
    if not work.quotes and not work.bars:
        later = f" {len(work.waiting)} are too fresh for bars." if work.waiting else ""
        return dg.SkipReason(f"No gap has anything left to be fetched.{later}")
    concerned = {gap.source for gap in (*work.quotes, *work.bars)}
    if (problem := _no_credentials(settings, clock, concerned)) is not None:
        return dg.SkipReason(problem)
    latest = context.instance.get_run_records(dg.RunsFilter(job_name=gap_recovery_job.name), limit=1)
    for record in latest:
        if record.dagster_run.status in ALIVE:
            return dg.SkipReason(f"Run {record.dagster_run.run_id[:8]} is at it.")
        wait_s = (record.end_time or 0.0) + RETRY_S - time.time()
        if record.dagster_run.status == dg.DagsterRunStatus.FAILURE and wait_s > 0:
            return dg.SkipReason(f"The last recovery failed; the next one starts in {wait_s:.0f} s.")
    return dg.RunRequest()


reconciliation_job = dg.define_asset_job(
    "reconciliation_job",
    selection=dg.AssetSelection.assets(BROKER_CANDLES, CANDLE_RECONCILIATION),
    description="Fetches the broker's bars of a day, and compares the day's candles with them.",
    tags={ROLE_TAG: "reconciliation"},
)


@dg.schedule(
    job=reconciliation_job,
    name="reconciliation_schedule",
    cron_schedule="20 0 * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=reconciliation_job.tags,
    description="Every day at 00:20 IST, for the day before, if it has ticks.",
)
def reconciliation_schedule(
    context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.RunRequest | dg.SkipReason:
    """A run for the day before the tick, where there is something to compare and somebody to ask.

    A machine that was off at night is told of the ticks that it missed, of up to five days, when it is back.
    """
    day = (context.scheduled_execution_time.astimezone(IST) - timedelta(days=1)).date()
    try:
        with closing(connect(database_url(settings))) as conn:
            captured = has_ticks(conn, *day_bounds_ns(day))
    except (psycopg2.Error, PipelineError) as error:
        return dg.SkipReason(in_words(error))
    if not captured:
        return dg.SkipReason(f"There are no ticks of {day}.")
    if (problem := _no_credentials(settings, clock, settings.sources)) is not None:
        return dg.SkipReason(problem)
    return dg.RunRequest(run_key=str(day), partition_key=str(day))


def _no_credentials(settings: Settings, clock: Clock, sources: Iterable[Source]) -> str | None:
    """Why none of these brokers can be asked; None where one can. A run says of the others why not."""
    problems = [_problem(settings.of(source), clock) for source in sources]
    return None if None in problems else " ".join(filter(None, problems))


def _problem(settings: Settings, clock: Clock) -> str | None:
    """Why the broker cannot be asked; None where it can."""
    try:
        credentials = get_dhan_credentials(settings) if settings.source == "dhan" else get_kite_credentials(settings)
    except CredentialsError as error:
        return str(error)
    if not check_token_validity(credentials, timedelta(0), clock.now()):
        return f"The access token's time is over; it comes from {credentials.source}."
    return None
