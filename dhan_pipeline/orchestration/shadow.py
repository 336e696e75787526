"""When both brokers are compared: each hour that has ticks, while both are captured.

Belongs here: the sensor, the job that it starts, and the parts of the definitions that a comparison adds. Does not: the
asset (`assets/shadow.py`), and how a sensor follows the hours of ticks (`candles.py`).
"""

import dagster as dg

from dhan_pipeline.candles import LATE_S
from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.shadow import SHADOW_COMPARISON
from dhan_pipeline.orchestration.candles import INTERVAL_S, RETRIES, RETRY_S, follow_ticks
from dhan_pipeline.orchestration.names import ROLE_TAG
from dhan_pipeline.settings import Settings

shadow_job = dg.define_asset_job(
    "shadow_job",
    selection=dg.AssetSelection.assets(SHADOW_COMPARISON),
    description="Compares both brokers' ticks of an hour.",
    tags={ROLE_TAG: "shadow"},
)


@dg.sensor(
    job=shadow_job,
    name="shadow_sensor",
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    tags=shadow_job.tags,
    description=f"Starts shadow_job for each hour of which ticks was materialised, once it is over for"
    f" {LATE_S // 60} minutes: by then both brokers' ticks are there. Not where it was compared since, nor where the"
    f" hour has no tick. A run that failed is made again after {RETRY_S / 60:.0f} minutes, {RETRIES} times.",
)
def shadow_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.SensorResult:
    """Hours of ticks are followed as `candles_sensor` does."""
    return follow_ticks(context, settings, clock, shadow_job.name, SHADOW_COMPARISON)


def build_shadow(settings: Settings) -> dg.Definitions:
    """What compares each hour by itself, where both brokers are captured."""
    both = len(settings.sources) > 1
    return dg.Definitions(
        jobs=[shadow_job] if both else [],
        sensors=[shadow_sensor] if both else [],
    )
