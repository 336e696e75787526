"""The brokers' own bars, and how ours compare with them: `broker_candles`, `candle_reconciliation`.

Where several feeds are captured, each broker is asked for the bars of its own instruments, with its own credentials.

Belongs here: names, lineage, descriptions, checks of these assets, and calls into the rooms that do the work. Does not:
that work, and when it is done (`recovery.py`).
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.ingest.broker_bars import EXPIRED, Fetch, fetch_day
from dhan_pipeline.instruments import source_of
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.columns import table_schema
from dhan_pipeline.orchestration.evaluations import check_result
from dhan_pipeline.orchestration.metadata import Metadata, of_each_source, picture, table
from dhan_pipeline.orchestration.names import COMPARISON, OWNERS
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.quality.days import reconcile_day
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.quality.reconciliation import Reconciliation, agreement_picture, bars_fetched, candles_agree
from dhan_pipeline.sessions import day_bounds_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.broker_candles import Contract
from dhan_pipeline.store.candles import CandlesRefusedError, hours_to_renew, rebuild_candles
from dhan_pipeline.store.engine import connect, database_url

BROKER_CANDLES = dg.AssetKey("broker_candles")
CANDLE_RECONCILIATION = dg.AssetKey("candle_reconciliation")

BARS_FETCHED, CANDLES_AGREE = "bars_fetched", "candles_agree"


class BrokerCandlesConfig(dg.Config):
    """What a person may choose when materialising by hand."""

    again: bool = False
    """Fetch also what was fetched after the day's end."""


def build_broker_assets(days: dg.DailyPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """Both, with their checks. Without a backfill policy, so that each day is a run and its checks land on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitioned checks: in use, and covered by our tests
        fetched = dg.AssetCheckSpec(
            BARS_FETCHED,
            asset=BROKER_CANDLES,
            partitions_def=days,
            description="Each broker gave its bars of all instruments that were asked for.",
        )
        agree = dg.AssetCheckSpec(
            CANDLES_AGREE,
            asset=CANDLE_RECONCILIATION,
            partitions_def=days,
            description="Our candles are the broker's, where no noted gap or late start explains why not.",
        )

    @dg.asset(
        key=BROKER_CANDLES,
        deps=["subscriptions"],
        partitions_def=days,
        group_name=COMPARISON,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={"dagster/table_name": "broker_candles", "dagster/column_schema": table_schema("broker_candles")},
        check_specs=[fetched],
        description="The day's bars of a minute, and of the day, as the broker's history has them: of what had ticks,"
        " and of what is subscribed. They are fetched each night. Of contracts that have expired since, Dhan has"
        " options that were near the money, and Kite nothing. Candles that touch a gap are made again with the bars."
        "\n\nMaterialise a day by hand where instruments failed: what was fetched after the day's end is not fetched"
        " again, unless `again` is set in the launchpad. Dhan takes five requests a second and Kite three, so 5,000"
        " instruments take half an hour or one; an interrupted run goes on where it was.",
    )
    def broker_candles(
        context: dg.AssetExecutionContext,
        config: BrokerCandlesConfig,
        settings: dg.ResourceParam[Settings],
        clock: dg.ResourceParam[Clock],
    ) -> Iterator[dg.MaterializeResult[None]]:
        day = date.fromisoformat(context.partition_key)
        with explained():
            url = database_url(settings)
            fetches, refusals = _fetch(settings, url, day, clock, context.log.info, config.again)
            renewed = _renew_candles(url, day, clock, context.log.warning)
        for hour in renewed:
            context.log_event(
                dg.AssetMaterialization(
                    CANDLES_1M, partition=hour, description="Made again, with the broker's bars where ours touch a gap."
                )
            )
        for refusal in refusals:
            context.log.warning(refusal)
        metadata = of_each_source({source: _fetch_metadata(fetch) for source, fetch in fetches.items()})
        metadata["candle_hours_renewed"] = len(renewed)
        yield dg.MaterializeResult(metadata=metadata, check_results=[check_result(_bars_fetched(fetches, refusals))])

    @dg.asset(
        key=CANDLE_RECONCILIATION,
        deps=[CANDLES_1M, BROKER_CANDLES],
        partitions_def=days,
        group_name=COMPARISON,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={
            "dagster/table_name": "candle_differences",
            "dagster/column_schema": table_schema("candle_differences"),
        },
        check_specs=[agree],
        description="Where the day's candles differ from the broker's: minutes that one side lacks, prices, volumes."
        " What a noted gap or a late start explains is told apart. It is made each night.\n\nMaterialise a day again"
        " after its candles or the broker's bars have changed.",
    )
    def candle_reconciliation(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.MaterializeResult[None]]:
        with explained():
            result, known = reconcile_day(settings, database_url(settings), date.fromisoformat(context.partition_key))
        yield dg.MaterializeResult(
            metadata=_reconciliation_metadata(result, known),
            check_results=[check_result(candles_agree(result, settings))],
        )

    return [broker_candles, candle_reconciliation]


def _fetch(
    settings: Settings, database_url: str, day: date, clock: Clock, tell: Callable[[str], object], again: bool
) -> tuple[dict[Source, Fetch], list[str]]:
    """What came of each source, and why others could not be asked. Raises PipelineError where that is all of them."""
    fetches: dict[Source, Fetch] = {}
    problems: list[PipelineError] = []
    for source in settings.sources:
        try:
            fetches[source] = fetch_day(settings.of(source), database_url, day, clock, tell, again=again)
        except PipelineError as error:
            problems.append(error)
    if not fetches:
        raise problems[0]
    return fetches, [str(problem) for problem in problems]


def _fetch_metadata(fetch: Fetch) -> Metadata:
    metadata: Metadata = {
        "dagster/row_count": fetch.rows,
        "instruments": fetch.wanted,
        "fetched_before": fetch.before,
        "failed": fetch.failures,
        "requests": fetch.requests,
        "seconds": fetch.seconds,
    }
    if fetch.failed:
        metadata["failures"] = table(
            ("reason", "instruments"),
            [(reason, f"{count:,}") for reason, count in fetch.failed.most_common()],
            numbers=True,
        )
    return metadata


def _bars_fetched(fetches: Mapping[Source, Fetch], refusals: Sequence[str]) -> CheckOutcome:
    failed = sum((fetch.failed for fetch in fetches.values()), Counter[str]())
    expired = failed.pop(EXPIRED, 0)
    last_error = next((fetch.last_error for fetch in fetches.values() if fetch.last_error), "")
    return bars_fetched(sum(fetch.wanted for fetch in fetches.values()), expired, failed, last_error, refusals)


def _renew_candles(database_url: str, day: date, clock: Clock, warn: Callable[[str], object]) -> list[str]:
    """Make the candles of those hours again in which bars of the broker's can stand in now. Returns their keys."""
    renewed = []
    with closing(connect(database_url)) as conn:
        hours = hours_to_renew(conn, *day_bounds_ns(day))
        conn.commit()
        for hour in hours:
            try:
                rebuild_candles(conn, hour, clock.now_ns())
                renewed.append(hour)
            except CandlesRefusedError as error:
                warn(f"The candles of {hour} stay as they are. {error}")
    return renewed


def _reconciliation_metadata(result: Reconciliation, known: dict[int, Contract]) -> Metadata:
    several = len({source_of(token) for token in known}) > 1
    metadata: Metadata = {
        "dagster/row_count": len(result.differences),
        "instruments": result.instruments,
        "bars": result.bars,
        "bars_explained": result.explained,
        "bars_that_differ": result.unexplained,
        "stand_ins": result.stand_ins,
        "instruments_left_out": result.left_out,
    }
    if result.agreement is not None:
        metadata["agreement_percent"] = round(100 * result.agreement, 3)
        metadata["by_time_of_day"] = picture(
            "share of bars that agree, from 90 % to 100 %", agreement_picture(result.by_minute)
        )
    if len(result.differences):
        fields = [(name, f"{bare:,}", f"{explained:,}") for name, (bare, explained) in result.by_field().items()]
        metadata["differences"] = table(("field", "unexplained", "explained"), fields, numbers=True)
        worst = [(_name(token, known, several), f"{bare:,}", f"{every:,}") for token, bare, every in result.worst()]
        metadata["instruments_with_most"] = table(("instrument", "unexplained", "all"), worst, numbers=True)
    return metadata


def _name(token: int, known: dict[int, Contract], several: bool) -> str:
    """The instrument's symbol; where there are several sources, with its source before it."""
    symbol = known[token].symbol if token in known else str(token)
    return f"{source_of(token)} {symbol}" if several else symbol
