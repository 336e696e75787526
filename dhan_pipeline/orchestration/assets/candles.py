"""Bars of one minute by the hour: `candles_1m`, and the clock that has each hour made when it is over.

Belongs here: names, lineage, descriptions, and calls into the rooms that do the work. Does not: that work.
"""

import base64
from collections.abc import Sequence
from contextlib import closing

import dagster as dg
import psycopg2

from dhan_pipeline.candles import LATE_S
from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.orchestration.names import MARKET_DATA, OWNERS, TICKS
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.sessions import HOUR_NS, hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.candles import rebuild_candles, ticks_booked
from dhan_pipeline.store.engine import connect, database_url

CANDLES_1M = dg.AssetKey("candles_1m")

#: Heights of the picture's columns, in pixels, and their width. With more the UI would hide it behind a link.
_HEIGHT, _WIDTH = 30, 4


def build_candle_assets(hours: dg.HourlyPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """`candles_1m`. Without a backfill policy, like the hours of `ticks` that it is made of."""

    @dg.asset(
        key=CANDLES_1M,
        deps=[TICKS],
        partitions_def=hours,
        group_name=MARKET_DATA,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={"dagster/table_name": "candles_1m"},
        description="Bars of one minute, by the exchange's time of the trades, made of the hour's ticks: prices from"
        " the last price, volume and turnover from differences of the day's cumulative volume. Where packets were"
        " missed, the broker's own bar stands in, if it was fetched. Materialising an hour by hand makes it anew: the"
        " same rows, unless its ticks, its gaps or the broker's bars have changed.",
    )
    def candles_1m(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.MaterializeResult[None]:
        with explained(), closing(connect(database_url(settings))) as conn:
            made = rebuild_candles(conn, context.partition_key, clock.now_ns())
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": made.bars,
                "instruments": made.instruments,
                "touching_a_gap": made.touching_gap,
                "from_the_broker": made.from_rest,
                "bars_a_minute": dg.MetadataValue.md(_picture(made.of_minute)),
            }
        )

    return [candles_1m]


candles_job = dg.define_asset_job(
    "candles_job",
    selection=dg.AssetSelection.assets(CANDLES_1M),
    description="Makes an hour's bars of one minute from its ticks.",
    tags={"dhan/role": "candles"},
)


@dg.schedule(
    job=candles_job,
    name="candles_schedule",
    cron_schedule=f"{LATE_S // 60 + 1} * * * *",
    execution_timezone="Asia/Kolkata",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=f"Each hour, {LATE_S // 60 + 1} minutes after its end, when no packet of it comes any more: makes its"
    " bars, if it has ticks.",
)
def candles_schedule(
    context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """The hour before, by the time for which the schedule was due: what was missed meanwhile is made up for."""
    hour = hour_key(int(context.scheduled_execution_time.timestamp()) * 1_000_000_000 - HOUR_NS)
    try:
        with closing(connect(database_url(settings))) as conn:
            if not ticks_booked(conn, hour):
                return dg.SkipReason(f"The hour {hour} has no ticks.")
    except (PipelineError, psycopg2.Error):
        context.log.warning("The database cannot be asked; the run will say so if that is still so.")
    return dg.RunRequest(run_key=hour, partition_key=hour)


def _picture(of_minute: Sequence[int]) -> str:
    """A column a minute, as Markdown with a drawing in it that is small enough to be shown in place."""
    highest = max(*of_minute, 1)
    tops = [_HEIGHT - round(_HEIGHT * count / highest) for count in of_minute]
    path = "".join(f"V{top}h{_WIDTH}" for top in tops)
    drawing = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH * len(tops)}' height='{_HEIGHT}'>"
        f"<path fill='#4f8' d='M0 {_HEIGHT}{path}V{_HEIGHT}z'/></svg>"
    )
    return (
        f"![bars a minute, up to {highest:,}](data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()})"
    )
