"""The assets: what exists, from what it follows, and how a person makes it anew.

Belongs here: names, lineage, descriptions, and calls into the rooms that do the work. Does not: that work, and the
reports of the running capture (`ingest.py`), which materialises the same hourly assets when an hour is complete.
"""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.scrip_master import download_instruments_csv, parse_dhan_csv
from dhan_pipeline.ingest.rebuild import HourRefusedError, rebuild_hour
from dhan_pipeline.orchestration.metadata import Metadata, raw_packets_metadata, ticks_metadata, ticks_schema
from dhan_pipeline.orchestration.names import LIVE_FEED, RAW_PACKETS, TICKS
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.quality.gap_words import gap_in_words
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.hours import hour_gaps, measure_hour
from dhan_pipeline.sessions import IST, hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.instruments import read_instruments, sync_to_database
from dhan_pipeline.subscriptions import load_rules, resolve, write_subscriptions

REFERENCE, MARKET_DATA = "reference", "market_data"
OWNERS = ("team:market-data",)

live_feed = dg.AssetSpec(
    LIVE_FEED,
    deps=["subscriptions"],
    group_name=MARKET_DATA,
    owners=OWNERS,
    kinds={"websocket"},
    description="What is happening now. The broker's feed as the running capture sees it: its checks are reported when"
    " their state changes and every five minutes. Run them here to ask again. The hours that are over are judged on"
    " `ticks`.",
)


@dg.asset(
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"csv"},
)
def scrip_master(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """The broker's list of every instrument, downloaded and kept as a file."""
    with explained():
        path = download_instruments_csv(settings.dhan_scrip_master_url, _master_path(settings))
        master = parse_dhan_csv(path)
    segments = "\n".join(f"| {segment} | {count:,} |" for segment, count in master.segment_counts.items())
    metadata: Metadata = {
        "dagster/row_count": len(master.rows),
        "segments": dg.MetadataValue.md(f"| segment | instruments |\n|---|---:|\n{segments}"),
        "layout": master.layout,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "quarantined": len(master.quarantined),
        "skipped": sum(master.skipped.values()),
        "file": dg.MetadataValue.path(str(path)),
    }
    if len(master.quarantined):
        metadata["quarantined_rows"] = dg.MetadataValue.md(
            "\n".join(f"- row {row.row}: {row.reason}" for row in master.quarantined.head(20).itertuples())
        )
    return dg.MaterializeResult(metadata=metadata)


@dg.asset(
    deps=[scrip_master],
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"postgres", "table"},
    metadata={"dagster/table_name": "instruments"},
)
def instruments(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """The instruments table, brought up to date; what the master no longer lists is deactivated, never deleted."""
    with explained():
        result = sync_to_database(database_url(settings), parse_dhan_csv(_master_path(settings)))
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": result.inserted + result.updated + result.reactivated + result.unchanged,
            "inserted": result.inserted,
            "updated": result.updated,
            "unchanged": result.unchanged,
            "reactivated": result.reactivated,
            "deactivated": result.deactivated,
            "quarantined": result.quarantined,
            "seconds": round(result.seconds, 3),
        }
    )


@dg.asset(
    deps=[instruments],
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"csv"},
)
def subscriptions(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.MaterializeResult[None]:
    """Which instruments to capture: the rules of the subscriptions file applied to the active instruments.

    The capture reads the result when it starts.
    """
    with explained():
        rules = load_rules(settings.subscriptions_file)
        with closing(connect(database_url(settings))) as conn:
            active = read_instruments(conn)
        resolution = resolve(rules, active, clock.now().astimezone(IST).date())
        write_subscriptions(settings.subscriptions_path, resolution.subscriptions)
    for rule in resolution.summary:
        if rule.missing:
            context.log.warning(
                f"Line {rule.line}, {rule.rule}: no active instrument for {len(rule.missing)} names,"
                f" {', '.join(rule.missing[:10])}"
            )
    rows = "\n".join(
        f"| {rule.line} | {rule.rule} | {rule.selected:,} | {rule.added:,} | {len(rule.missing)} |"
        for rule in resolution.summary
    )
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(resolution.subscriptions),
            "rules": dg.MetadataValue.md(
                f"| line | rule | selected | added | missing |\n|---:|---|---:|---:|---:|\n{rows}"
            ),
            "missing": sum(len(rule.missing) for rule in resolution.summary),
            "file": dg.MetadataValue.path(str(settings.subscriptions_path)),
        }
    )


def build_hourly_assets(hours: dg.HourlyPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """`raw_packets` and `ticks`. Without a backfill policy, so that each hour is a run and its checks land on it."""

    @dg.asset(
        key=RAW_PACKETS,
        deps=[subscriptions],
        partitions_def=hours,
        group_name=MARKET_DATA,
        owners=OWNERS,
        kinds={"arrow"},
        description="The journal's hour: every message as it came from the socket, with its time of receipt. The ingest"
        " run observes the open hour each minute and materialises it when it is over; materialising it by hand verifies"
        " and counts it again.",
    )
    def raw_packets(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.MaterializeResult[None]:
        hour = context.partition_key
        if hour >= hour_key(clock.now_ns()):
            raise dg.Failure(
                description=f"The hour {hour} is still open: it can be verified once it is over.", allow_retries=False
            )
        measures = measure_hour(settings, hour)
        if not measures.journal_blocks:
            raise dg.Failure(
                description=f"The journal holds nothing of the hour {hour}.{_missed(measures.gaps)}",
                allow_retries=False,
            )
        for sentence in measures.journal_damage:
            context.log.error(sentence)
        return dg.MaterializeResult(metadata=raw_packets_metadata(measures))

    @dg.asset(
        key=TICKS,
        deps=[RAW_PACKETS],
        partitions_def=hours,
        group_name=MARKET_DATA,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={
            "dagster/table_name": "ticks",
            "dagster/column_schema": ticks_schema(),
        },
        description="The hour's ticks in PostgreSQL. The ingest run writes them as they come and materialises the hour"
        " when it is over; materialising it by hand replaces it, in one transaction, by what the journal says: the same"
        " rows.",
    )
    def ticks(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.MaterializeResult[None]:
        hour = context.partition_key
        with explained():
            try:
                rebuild_hour(settings, database_url(settings), hour, clock)
            except HourRefusedError as error:
                over = hour < hour_key(clock.now_ns())
                raise HourRefusedError(f"{error}{_missed(hour_gaps(settings, hour)) if over else ''}") from error
        return dg.MaterializeResult(metadata=ticks_metadata(measure_hour(settings, hour)))

    return [raw_packets, ticks]


def _missed(gaps: Sequence[GapPart]) -> str:
    """A sentence on why nothing came; empty where no gap is known."""
    if not gaps:
        return ""
    return f" Nothing came {gap_in_words(max(gaps, key=lambda gap: gap.seconds))}."


def _master_path(settings: Settings) -> Path:
    return settings.data_dir / "scrip_master.csv"
