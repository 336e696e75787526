"""Days of ticks as files: `ticks_archive`.

Belongs here: name, lineage, description, and the call into `store/archive.py`, which does the work. Does not: the hours
that a day is made of (`hours.py`), and when a day may leave the database (`schedules.py`).
"""

import time
from contextlib import closing
from datetime import date

import dagster as dg
import pyarrow.parquet as pq

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.columns import ticks_archive_schema
from dhan_pipeline.orchestration.names import OWNERS, RESEARCH, TICKS, TICKS_ARCHIVE
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.archive import archive_day
from dhan_pipeline.store.engine import connect, database_url


def build_archive_asset(days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """`ticks_archive`. Without a backfill policy, so that each day is a run."""

    @dg.asset(
        key=TICKS_ARCHIVE,
        deps=[TICKS],
        partitions_def=days,
        group_name=RESEARCH,
        owners=OWNERS,
        kinds={"parquet"},
        metadata={"dagster/column_schema": ticks_archive_schema()},
        description="The day's ticks as one Parquet file, sorted by instrument and time, with what each instrument was"
        " then: for pandas, polars, DuckDB. It is made each night. It is read back and compared with the table before"
        " it gets its name, and only then may the day leave the database.\n\nMaterialise a day again to replace its"
        " file, such as after its ticks were rebuilt.",
    )
    def ticks_archive(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.MaterializeResult[None]:
        started = time.perf_counter()
        with explained(), closing(connect(database_url(settings))) as conn:
            archived = archive_day(conn, settings.data_dir, date.fromisoformat(context.partition_key), clock)
        path = settings.data_dir / archived.file
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": archived.rows,
                "bytes": archived.bytes,
                "bytes_per_row": round(archived.bytes / archived.rows, 1),
                "row_groups": pq.read_metadata(path).num_row_groups,
                "digest": archived.digest,
                "file": dg.MetadataValue.path(str(path.absolute())),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )

    return ticks_archive
