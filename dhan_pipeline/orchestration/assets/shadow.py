"""Both brokers side by side: `shadow_comparison`, an hour at a time.

Belongs here: name, lineage, description, check of the asset, what the UI shows of it, and the call into the room that
does the work. Does not: that work (`quality/shadow.py`), and when it is done (`orchestration/shadow.py`).
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import dagster as dg
import numpy as np

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.columns import table_schema
from dhan_pipeline.orchestration.evaluations import check_result
from dhan_pipeline.orchestration.metadata import Metadata, picture, table
from dhan_pipeline.orchestration.names import COMPARISON, OWNERS, TICKS
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.quality.reconciliation import agreement_picture
from dhan_pipeline.quality.shadow import ShadowComparison, sources_agree, why_nothing_is_compared
from dhan_pipeline.quality.shadow_hours import compare_hour
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES
from dhan_pipeline.store.engine import database_url
from dhan_pipeline.ticks import NULL_INT

SHADOW_COMPARISON = dg.AssetKey("shadow_comparison")

SOURCES_AGREE = "sources_agree"

#: Names that a table of what was not paired shows of each segment.
_EXAMPLES = 3


def build_shadow_asset(hours: dg.HourlyPartitionsDefinition) -> dg.AssetsDefinition:
    """The asset, with its check. Without a backfill policy, like the hours of `ticks` that it compares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitioned checks: in use, and covered by our tests
        agree = dg.AssetCheckSpec(
            SOURCES_AGREE,
            asset=SHADOW_COMPARISON,
            partitions_def=hours,
            description="Dhan's ticks and Kite's say the same, of all instruments and of each.",
        )

    @dg.asset(
        key=SHADOW_COMPARISON,
        deps=[TICKS],
        partitions_def=hours,
        group_name=COMPARISON,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={
            "dagster/table_name": "shadow_comparisons",
            "dagster/column_schema": table_schema("shadow_comparisons"),
        },
        check_specs=[agree],
        description="How Dhan's ticks of an hour and Kite's compare, of each instrument that both have: prices and"
        " volumes that differ, seconds that one of them missed, and who was later. What lasts for under two seconds is"
        " delivery, and counts as agreement. With `DATA_SOURCE=kite,dhan` each hour is compared by itself.\n\n"
        "Materialise an hour by hand to compare it again. Where only one of them was captured, there is nothing to"
        " compare.",
    )
    def shadow_comparison(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> Iterator[dg.MaterializeResult[None]]:
        with explained():
            result = compare_hour(settings, database_url(settings), context.partition_key, clock.now_ns())
        outcome = sources_agree(result, settings)
        yield dg.MaterializeResult(
            metadata=_metadata(result),
            check_results=[check_result(outcome)],
        )

    return shadow_comparison


def _metadata(result: ShadowComparison) -> Metadata:
    metadata: Metadata = {
        "dagster/row_count": len(result.pairs),
        "dhan_ticks": result.ticks["dhan"],
        "kite_ticks": result.ticks["kite"],
        "instruments_without_partner": len(result.unpaired),
    }
    if result.unpaired:
        metadata["without_partner"] = _unpaired(result)
    if result.agreement is None:
        metadata["nothing_to_compare"] = why_nothing_is_compared(result)[0]
        return metadata
    metadata |= {
        "agreement_percent": round(100 * result.agreement, 3),
        "by_minute": picture(
            "share of the seconds that agree, from 90 % to 100 %", agreement_picture(result.by_minute)
        ),
        "seconds_compared": result.seconds,
        "price_differs_seconds": result.total("price_differs_seconds"),
        "volume_differs_seconds": result.total("volume_differs_seconds"),
        "dhan_missing_seconds": result.total("dhan_missing_seconds"),
        "kite_missing_seconds": result.total("kite_missing_seconds"),
        "brokers": _brokers(result),
    }
    if result.lag_ms is not None:
        metadata["dhan_later_by_ms"] = round(result.lag_ms, 3)
    if worst := result.worst():
        metadata["instruments_that_differ_most"] = _instruments(result, worst)
    return metadata


def _brokers(result: ShadowComparison) -> dg.MarkdownMetadataValue:
    def row(words: str, column: str) -> tuple[str, ...]:
        return (words, *(f"{result.total(f'{source}_{column}'):,}" for source in SOURCES))

    def delay(source: str) -> str:
        return _number(_median(result.columns[f"{source}_trade_delay_ms"]), ",.0f")

    return table(
        ("of the instruments compared", *(source.capitalize() for source in SOURCES)),
        [
            row("ticks", "ticks"),
            row("seconds with a tick", "seconds"),
            row("seconds missing", "missing_seconds"),
            ("ms from a trade to its tick, the median instrument", *map(delay, SOURCES)),
        ],
        numbers=True,
    )


def _instruments(result: ShadowComparison, places: list[int]) -> dg.MarkdownMetadataValue:
    columns = result.columns

    def row(at: int) -> tuple[str, ...]:
        of = {name: column[at].item() for name, column in columns.items()}
        when = of["price_differs_most_at"]
        return (
            result.pairs[at].symbol,
            f"{100 * of['agreeing_seconds'] / of['seconds']:.2f}",
            f"{of['price_differs_seconds']:,}",
            _number(of["price_difference"], "+,.4g"),
            "" if when == NULL_INT else f"{datetime.fromtimestamp(when // 1_000_000, IST):%H:%M:%S}",
            f"{of['volume_differs_seconds']:,}",
            _number(100 * of["volume_difference"], "+.2f"),
            f"{of['dhan_missing_seconds']:,}",
            f"{of['kite_missing_seconds']:,}",
            _number(of["lag_median_ms"], "+,.0f"),
        )

    return table(
        (
            "instrument",
            "agrees (%)",
            "price differs (s)",
            "at most, Dhan less Kite (Rs)",
            "at (IST)",
            "volume differs (s)",
            "at most (%)",
            "Dhan missed (s)",
            "Kite missed (s)",
            "Dhan later by (ms)",
        ),
        map(row, places),
        numbers=True,
    )


def _unpaired(result: ShadowComparison) -> dg.MarkdownMetadataValue:
    counts = Counter((one.segment or "not in instruments", one.source) for one in result.unpaired)
    rows = []
    for segment in sorted({segment for segment, _ in counts}):
        names = [one.symbol for one in result.unpaired if (one.segment or "not in instruments") == segment]
        more = ", …" if len(names) > _EXAMPLES else ""
        rows.append(
            (segment, *(f"{counts[segment, source]:,}" for source in SOURCES), ", ".join(names[:_EXAMPLES]) + more)
        )
    return table(("segment", *(f"only {source.capitalize()}" for source in SOURCES), "examples"), rows)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else np.nan


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)
