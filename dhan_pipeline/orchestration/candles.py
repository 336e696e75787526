"""When the candles of an hour are made: whenever its ticks were, by the ingest run or by a backfill.

Belongs here: the sensor and the job that it starts. Does not: the asset (`assets/candles.py`), and the candles that a
recovery from a gap makes anew (`recovery.py`).
"""

import json

import dagster as dg

from dhan_pipeline.candles import LATE_S
from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.names import ROLE_TAG, TICKS
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key

#: How often the sensor looks, in seconds: an hour waits for its late packets five minutes anyway.
INTERVAL_S = 30

#: Hours that one look asks for at most. A backfill of many hours is followed in steps.
HOURS_AT_ONCE = 10

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
    description=f"Starts `candles_job` for each hour of which `ticks` was materialised, once it is over for"
    f" {LATE_S // 60} minutes: until then packets of it may come. Not where its candles were made since.",
)
def candles_sensor(context: dg.SensorEvaluationContext, clock: dg.ResourceParam[Clock]) -> dg.SensorResult:
    """The cursor holds the last materialisation that was seen, and the hours that are not over for long enough."""
    seen, waiting = json.loads(context.cursor) if context.cursor else (0, {})
    found = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=TICKS, after_storage_id=seen), limit=HOURS_AT_ONCE, ascending=True
    ).records
    for record in found:
        seen = record.storage_id
        if record.partition_key is not None:
            waiting[record.partition_key] = seen
    now_ns = clock.now_ns()
    due = {hour: at for hour, at in waiting.items() if parse_hour_key(hour) + HOUR_NS + LATE_S * 10**9 <= now_ns}
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"{hour}#{at}", partition_key=hour)
            for hour, at in due.items()
            if not _made_since(context.instance, hour, at)
        ],
        skip_reason=None if due else f"No hour has new ticks; {len(waiting)} are not over for {LATE_S // 60} minutes.",
        cursor=json.dumps((seen, {hour: at for hour, at in waiting.items() if hour not in due})),
    )


def _made_since(instance: dg.DagsterInstance, hour: str, storage_id: int) -> bool:
    """Whether the hour's candles were materialised after that: by a run that made its ticks, too."""
    candles = dg.AssetRecordsFilter(asset_key=CANDLES_1M, asset_partitions=[hour], after_storage_id=storage_id)
    return bool(instance.fetch_materializations(candles, limit=1).records)
