"""Where ticks are stored, and whether TimescaleDB's background jobs run: the asset, its checks, and what asks for them.

Belongs here: asking, running what was left undone, and handing outcomes to Dagster. Does not: the words
(`quality/storage.py`), nor the SQL (`store/timescale.py`). Retention is no job of TimescaleDB's: `schedules.py` drops
days, since it knows of the archive.
"""

from collections.abc import Iterator
from contextlib import closing

import dagster as dg
import psycopg2

from dhan_pipeline.errors import PipelineError, in_words
from dhan_pipeline.orchestration.evaluations import check_result
from dhan_pipeline.orchestration.metadata import Metadata
from dhan_pipeline.orchestration.names import OPERATIONS, OWNERS, ROLE_TAG, TICKS
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.orchestration.schedules import TIME_ZONE
from dhan_pipeline.quality.storage import STORAGE_CHECKS, needs_run, storage_outcomes
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import timescale
from dhan_pipeline.store.engine import connect, database_url, running_url

TICK_STORAGE = dg.AssetKey("tick_storage")

DESCRIPTIONS = {
    "jobs": "TimescaleDB's background jobs on ticks run: compression, and the sums of live candles.",
    "licence": "What TimescaleDB's licence leaves out.",
}

tick_storage = dg.AssetSpec(
    TICK_STORAGE,
    deps=[TICKS],
    group_name=OPERATIONS,
    owners=OWNERS,
    kinds={"postgres"},
    description="Where the rows of ticks are: a hypertable of TimescaleDB, or native partitions. Its size is observed"
    " once a day, and every 15 minutes where there is TimescaleDB, whose background jobs are run from here where they"
    " failed. It is never materialised.\n\nExecute its checks to see its size now.",
)


@dg.multi_asset_check(
    name="tick_storage_checks",
    specs=[dg.AssetCheckSpec(name, asset=TICK_STORAGE, description=DESCRIPTIONS[name]) for name in STORAGE_CHECKS],
    can_subset=True,
)
def tick_storage_checks(
    context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]
) -> Iterator[dg.AssetCheckResult]:
    """Run the jobs that the server left undone, and say how things are."""
    with explained():
        url = database_url(settings)
        with closing(connect(url)) as conn:
            jobs = timescale.jobs(conn)
            conn.commit()
            ran = {job.job_id: timescale.run_job(url, job.job_id) for job in jobs if needs_run(job)}
            storage = timescale.storage(conn)
    context.op_execution_context.log_event(dg.AssetObservation(TICK_STORAGE, metadata=_metadata(storage)))
    for outcome in storage_outcomes(storage, jobs, ran):
        if dg.AssetCheckKey(TICK_STORAGE, outcome.name) in context.selected_asset_check_keys:
            yield check_result(outcome, TICK_STORAGE)


def _metadata(storage: timescale.Storage) -> Metadata:
    metadata: Metadata = {
        "storage": f"TimescaleDB {storage.version}, {storage.licence} licence"
        if storage.version
        else "native partitions",
        "partitions": storage.partitions,
        "bytes": storage.size,
    }
    if storage.compressed:
        metadata["compressed_partitions"] = storage.compressed
        metadata["compression_ratio"] = round(storage.size_before / storage.size_after, 2)
    return metadata


tick_storage_job = dg.define_asset_job(
    "tick_storage_job",
    selection=dg.AssetSelection.checks_for_assets(TICK_STORAGE),
    description="Watches TimescaleDB's background jobs, and runs those that failed.",
    tags={ROLE_TAG: "tick_storage"},
)


@dg.schedule(
    job=tick_storage_job,
    name="tick_storage_schedule",
    cron_schedule="*/15 * * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=tick_storage_job.tags,
    description="Every 15 minutes where ticks are in a hypertable of TimescaleDB; else once a day, for their size.",
)
def tick_storage_schedule(
    context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """A run where there is something to watch. Where the database is away, other checks say so."""
    try:
        with closing(connect(running_url(settings))) as conn:
            hypertable = timescale.is_hypertable(conn)
    except (psycopg2.Error, PipelineError) as error:
        return dg.SkipReason(in_words(error))
    if hypertable:
        return dg.RunRequest()
    # No job runs there. A key is launched once, so this is once a day.
    return dg.RunRequest(run_key=f"{context.scheduled_execution_time.astimezone(IST):%Y-%m-%d}")
