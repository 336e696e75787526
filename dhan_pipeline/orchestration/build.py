"""Assembles the definitions, for the code location and, with other parts, for tests.

Belongs here: the list of everything. Does not: anything that does something.
"""

from collections.abc import Sequence

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.hours import build_hourly_assets, live_feed
from dhan_pipeline.orchestration.assets.reference import instruments, scrip_master, subscriptions
from dhan_pipeline.orchestration.checks import build_checks
from dhan_pipeline.orchestration.ingest import build_ingest_job
from dhan_pipeline.orchestration.partitions import hourly_partitions
from dhan_pipeline.orchestration.resources import CAPTURE_COMMAND, build_resources
from dhan_pipeline.orchestration.schedules import (
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
    hours = hourly_partitions(settings)
    ingest_job = build_ingest_job(settings, hours)
    return dg.Definitions(
        assets=[
            scrip_master,
            instruments,
            subscriptions,
            live_feed,
            *build_hourly_assets(hours),
        ],
        asset_checks=build_checks(hours),
        jobs=[ingest_job, instrument_sync_job, retention_job, token_refresh_job],
        sensors=[build_supervisor(settings, ingest_job)],
        schedules=[instrument_sync_schedule, retention_schedule, token_refresh_schedule],
        resources=build_resources(settings, clock or Clock(), capture_command),
        # Every step here waits for a database or a file; a process of its own would only cost a second of imports.
        executor=dg.in_process_executor,
    )
