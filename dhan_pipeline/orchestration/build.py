"""Assembles the definitions, for the code locations and, with other parts, for tests.

Belongs here: the list of everything. Does not: anything that does something.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.alerts import alert_sensor, alerts_asset, alerts_delivered
from dhan_pipeline.orchestration.assets.archive import build_archive_asset
from dhan_pipeline.orchestration.assets.broker import build_broker_assets
from dhan_pipeline.orchestration.assets.candles import build_candle_assets
from dhan_pipeline.orchestration.assets.hours import build_hourly_assets, build_live_feeds
from dhan_pipeline.orchestration.assets.reference import instruments, scrip_master, subscriptions
from dhan_pipeline.orchestration.assets.shadow import build_shadow_asset
from dhan_pipeline.orchestration.candles import candles_job, candles_sensor
from dhan_pipeline.orchestration.checks import build_checks, build_checks_job
from dhan_pipeline.orchestration.event_log import event_log_job, event_log_schedule
from dhan_pipeline.orchestration.ingest import build_ingest_job
from dhan_pipeline.orchestration.partitions import daily_partitions, hourly_partitions
from dhan_pipeline.orchestration.policies import Asset, with_policies
from dhan_pipeline.orchestration.readiness import build_readiness
from dhan_pipeline.orchestration.recovery import (
    gap_recovery_job,
    gap_recovery_sensor,
    reconciliation_job,
    reconciliation_schedule,
)
from dhan_pipeline.orchestration.resources import CAPTURE_COMMAND, build_resources
from dhan_pipeline.orchestration.schedules import (
    archive_job,
    archive_schedule,
    instrument_sync_job,
    instrument_sync_schedule,
    retention_job,
    retention_schedule,
)
from dhan_pipeline.orchestration.shadow import build_shadow
from dhan_pipeline.orchestration.supervisor import build_supervisor
from dhan_pipeline.orchestration.timescale import (
    tick_storage,
    tick_storage_checks,
    tick_storage_job,
    tick_storage_schedule,
)
from dhan_pipeline.orchestration.tokens import TOKEN_JOBS, TOKEN_SCHEDULES
from dhan_pipeline.settings import Settings
from dhan_pipeline.special_days import use_special_days

Location = Literal["ingest", "dhan_pipeline"]

Resources = Mapping[str, object]

#: Every step here waits for a database or a file; a process of its own would only cost a second of imports.
EXECUTOR = dg.in_process_executor


def build_defs(
    *,
    location: Location | None = None,
    settings: Settings | None = None,
    clock: Clock | None = None,
    capture_command: Sequence[str] = CAPTURE_COMMAND,
) -> dg.Definitions:
    """What Dagster shows and runs: of one code location, or everything in one.

    Reads settings from the environment; touches no database, no network.
    """
    settings = settings or Settings()
    use_special_days(settings.holidays_path, settings.sessions_file)
    resources = build_resources(settings, clock or Clock(), capture_command)
    parts = [PARTS[location]] if location else PARTS.values()
    return dg.Definitions.merge(*(build(settings, resources) for build in parts))


def _ingest(settings: Settings, resources: Resources) -> dg.Definitions:
    """The capture. Its events find their assets by key: those are defined once, in the other location."""
    hours = hourly_partitions(settings)
    jobs = {source: build_ingest_job(settings, source, hours) for source in settings.sources}
    return dg.Definitions(
        jobs=list(jobs.values()),
        sensors=[build_supervisor(settings, source, job) for source, job in jobs.items()],
        resources=resources,
        executor=EXECUTOR,
    )


def _pipeline(settings: Settings, resources: Resources) -> dg.Definitions:
    """Everything else."""
    hours, days = hourly_partitions(settings), daily_partitions(settings)
    assets: list[Asset] = [
        scrip_master,
        instruments,
        subscriptions,
        *build_live_feeds(settings),
        *build_hourly_assets(hours),
        *build_candle_assets(hours),
        *build_broker_assets(days),
        build_archive_asset(days),
        build_shadow_asset(hours),
        tick_storage,
        alerts_asset,
    ]
    everything = dg.Definitions(
        assets=with_policies(assets, settings),
        asset_checks=[*build_checks(settings, hours), tick_storage_checks, alerts_delivered],
        jobs=[
            instrument_sync_job,
            build_checks_job(hours),
            candles_job,
            archive_job,
            retention_job,
            reconciliation_job,
            gap_recovery_job,
            *(TOKEN_JOBS[source] for source in settings.sources),
            event_log_job,
            tick_storage_job,
        ],
        sensors=[candles_sensor, gap_recovery_sensor, alert_sensor],
        schedules=[
            instrument_sync_schedule,
            archive_schedule,
            reconciliation_schedule,
            retention_schedule,
            *(TOKEN_SCHEDULES[source] for source in settings.sources),
            event_log_schedule,
            tick_storage_schedule,
        ],
        resources=resources,
        executor=EXECUTOR,
    )
    return dg.Definitions.merge(everything, build_readiness(settings), build_shadow(settings))


#: The code locations of a production site, by name, and what builds them. Ingest is alone in its own, so that nothing
#: that is deployed or reloaded elsewhere touches a capture.
PARTS: dict[Location, Callable[[Settings, Resources], dg.Definitions]] = {"ingest": _ingest, "dhan_pipeline": _pipeline}
