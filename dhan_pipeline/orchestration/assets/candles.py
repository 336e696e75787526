"""Bars of one minute by the hour: `candles_1m`.

Belongs here: names, lineage, descriptions, and calls into the rooms that do the work. Does not: that work, and when it
is done (`orchestration/candles.py`).
"""

from collections.abc import Sequence
from contextlib import closing

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.columns import table_schema
from dhan_pipeline.orchestration.metadata import picture
from dhan_pipeline.orchestration.names import OWNERS, RESEARCH, TICKS
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.candles import rebuild_candles
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
        group_name=RESEARCH,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={"dagster/table_name": "candles_1m", "dagster/column_schema": table_schema("candles_1m")},
        description="Bars of one minute, by the exchange's time of the trades, made of the hour's ticks: prices from"
        " the last price, volume and turnover from differences of the day's cumulative volume. Where packets were"
        " missed, the broker's own bar stands in, if it was fetched. `candles_sensor` makes an hour some minutes after"
        " its end, and again whenever its ticks were.\n\nMaterialise an hour by hand to make it anew: the same rows,"
        " unless its ticks, its gaps or the broker's bars have changed.",
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
                "bars_a_minute": _picture(made.of_minute),
            }
        )

    return [candles_1m]


def _picture(of_minute: Sequence[int]) -> dg.MarkdownMetadataValue:
    """A column a minute."""
    highest = max(*of_minute, 1)
    tops = [_HEIGHT - round(_HEIGHT * count / highest) for count in of_minute]
    path = "".join(f"V{top}h{_WIDTH}" for top in tops)
    drawing = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH * len(tops)}' height='{_HEIGHT}'>"
        f"<path fill='#4f8' d='M0 {_HEIGHT}{path}V{_HEIGHT}z'/></svg>"
    )
    return picture(f"bars a minute, up to {highest:,}", drawing)
