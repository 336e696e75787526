"""When the candles of an hour are made: whenever its ticks were, by the ingest run or by a backfill.

Belongs here: the sensor and the job that it starts, and how a sensor follows the hours of ticks. Does not: the asset
(`assets/candles.py`), and the candles that a recovery from a gap makes anew (`recovery.py`).
"""

import json
import time

import dagster as dg

from dhan_pipeline.amounts import counted
from dhan_pipeline.candles import LATE_S
from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.names import ROLE_TAG, TICKS
from dhan_pipeline.orchestration.partitions import hourly_partitions
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings

#: How often the sensor looks, in seconds: an hour waits for its late packets five minutes anyway.
INTERVAL_S = 30

#: Hours that one look asks for at most. A backfill of many hours is followed in steps.
HOURS_AT_ONCE = 10

#: A run that failed is made again after so many seconds, so often: the database may have been away for a while.
RETRY_S = 600.0
RETRIES = 5

candles_job = dg.define_asset_job(
    "candles_job",
    selection=dg.AssetSelection.assets(CANDLES_1M),
    description="Makes an hour's bars of one minute from its ticks.",
    tags={ROLE_TAG: "candles"},
)


@dg.sensor(
    job=candles_job,
    name="candles_sensor",
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    tags=candles_job.tags,
    description=f"Starts candles_job for each hour of which ticks was materialised, once it is over for"
    f" {LATE_S // 60} minutes: until then packets of it may come. Not where its candles were made since, nor where the"
    f" hour has no tick. A run that failed is made again after {RETRY_S / 60:.0f} minutes, {RETRIES} times.",
)
def candles_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.SensorResult:
    """An hour waits for its late packets here, too."""
    return follow_ticks(context, settings, clock, candles_job.name, CANDLES_1M)


def follow_ticks(
    context: dg.SensorEvaluationContext, settings: Settings, clock: Clock, job_name: str, made: dg.AssetKey
) -> dg.SensorResult:
    """Ask for runs of a job that makes an asset's hours of those of `ticks`.

    The cursor holds the last materialisation that was seen; of the hours that are not over for long enough, theirs;
    and of those that were asked for, theirs and how often their run failed.
    """
    seen, waiting, asked = json.loads(context.cursor) if context.cursor else (0, {}, {})
    hours = hourly_partitions(settings)
    found = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=TICKS, after_storage_id=seen), limit=HOURS_AT_ONCE, ascending=True
    ).records
    for record in found:
        seen, hour = record.storage_id, record.partition_key
        # Hours from before the first partition have none of candles either.
        if hour is not None and _has_rows(record) and hours.has_partition_key(hour):
            waiting[hour] = seen
    now_ns = clock.now_ns()
    due = {hour: at for hour, at in waiting.items() if parse_hour_key(hour) + HOUR_NS + LATE_S * 10**9 <= now_ns}
    wanted = {hour: (at, 0) for hour, at in due.items() if not _made_since(context.instance, made, hour, at)}
    early = len(waiting) - len(due)
    later = f" Of {counted(early, 'hour')} with new ticks packets may still come." if early else ""
    still_asked = {}
    for hour, (at, failures) in asked.items():
        latest = _latest_run(context.instance, job_name, hour)
        if hour in due or latest is None or _made_since(context.instance, made, hour, at):
            continue
        if not latest.dagster_run.is_finished or time.time() < (latest.end_time or 0.0) + RETRY_S:
            still_asked[hour] = (at, failures)
        elif latest.dagster_run.is_failure and failures < RETRIES:
            wanted[hour] = (at, failures + 1)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"{hour}#{at}" + f"#{failures}" * bool(failures), partition_key=hour)
            for hour, (at, failures) in wanted.items()
        ],
        skip_reason=None if wanted else f"No hour is due.{later}",
        cursor=json.dumps(
            (seen, {hour: at for hour, at in waiting.items() if hour not in due}, {**still_asked, **wanted})
        ),
    )


def _has_rows(record: dg.EventLogRecord) -> bool:
    """Whether the hour has a tick, as far as is said: what an outage swallowed is materialised, too."""
    materialization = record.asset_materialization
    count = materialization.metadata.get("dagster/row_count") if materialization else None
    return count is None or count.value != 0


def _latest_run(instance: dg.DagsterInstance, job_name: str, hour: str) -> dg.RunRecord | None:
    of_hour = dg.RunsFilter(job_name=job_name, tags={"dagster/partition": hour})
    return next(iter(instance.get_run_records(of_hour, limit=1)), None)


def _made_since(instance: dg.DagsterInstance, made: dg.AssetKey, hour: str, storage_id: int) -> bool:
    """Whether the asset's hour was materialised after that: by a run that made its ticks, too."""
    of_hour = dg.AssetRecordsFilter(asset_key=made, asset_partitions=[hour], after_storage_id=storage_id)
    return bool(instance.fetch_materializations(of_hour, limit=1).records)
