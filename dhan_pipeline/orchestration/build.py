"""Assembles the definitions, for the code location and, with other parts, for tests.

Belongs here: the list of everything. Does not: anything that does something.
"""

from collections.abc import Sequence

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.archive import build_archive_asset
from dhan_pipeline.orchestration.assets.broker import build_broker_assets
from dhan_pipeline.orchestration.assets.candles import build_candle_assets
from dhan_pipeline.orchestration.assets.hours import build_hourly_assets, live_feed
from dhan_pipeline.orchestration.assets.reference import instruments, scrip_master, subscriptions
from dhan_pipeline.orchestration.candles import candles_job, candles_sensor
from dhan_pipeline.orchestration.checks import build_checks
from dhan_pipeline.orchestration.ingest import build_ingest_job
from dhan_pipeline.orchestration.partitions import daily_partitions, hourly_partitions
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
from dhan_pipeline.orchestration.supervisor import build_supervisor
from dhan_pipeline.orchestration.tokens import token_refresh_job, token_refresh_schedule
from dhan_pipeline.settings import Settings


def build_defs(
    *,
    settings: Settings | None = None,
    clock: Clock | None = None,
    capture_command: Sequence[str] = CAPTURE_COMMAND,
) -> dg.Definitions:
    """Everything that Dagster shows and runs. Reads settings from the environment; touches no database, no network."""
    settings = settings or Settings()
    hours, days = hourly_partitions(settings), daily_partitions(settings)
    ingest_job = build_ingest_job(settings, hours)
    return dg.Definitions(
        assets=[
            scrip_master,
            instruments,
            subscriptions,
            live_feed,
            *build_hourly_assets(hours),
            *build_candle_assets(hours),
            *build_broker_assets(days),
            build_archive_asset(days),
        ],
        asset_checks=build_checks(hours),
        jobs=[
            ingest_job,
            instrument_sync_job,
            candles_job,
            archive_job,
            retention_job,
            reconciliation_job,
            gap_recovery_job,
            token_refresh_job,
        ],
        sensors=[build_supervisor(settings, ingest_job), candles_sensor, gap_recovery_sensor],
        schedules=[
            instrument_sync_schedule,
            archive_schedule,
            reconciliation_schedule,
            retention_schedule,
            token_refresh_schedule,
        ],
        resources=build_resources(settings, clock or Clock(), capture_command),
        # Every step here waits for a database or a file; a process of its own would only cost a second of imports.
        executor=dg.in_process_executor,
    )
