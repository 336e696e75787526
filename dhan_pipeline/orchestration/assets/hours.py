"""The feed now, one a source, and the hours that were captured: `live_feed`, `raw_packets`, `ticks`.

Belongs here: names, lineage, descriptions, and calls into the rooms that do the work. Does not: that work, and the
reports of the running capture (`ingest.py`), which materialises the same hourly assets when an hour is complete.
"""

from collections.abc import Sequence

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.rebuild import HourRefusedError, rebuild_hour
from dhan_pipeline.orchestration.columns import file_schema, ticks_schema
from dhan_pipeline.orchestration.metadata import (
    raw_packets_metadata,
    rebuild_metadata,
    ticks_metadata,
    ticks_version,
)
from dhan_pipeline.orchestration.names import CAPTURE, OWNERS, RAW_PACKETS, TICKS, live_feed_key
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.quality.gap_words import gap_in_words
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.hours import hour_gaps, measure_hour
from dhan_pipeline.sessions import hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.engine import database_url

_BROKERS: dict[Source, str] = {"dhan": "Dhan", "kite": "Kite"}


def build_live_feeds(settings: Settings) -> list[dg.AssetSpec]:
    """What is happening now, a source each."""
    return [
        dg.AssetSpec(
            live_feed_key(source, settings.sources),
            deps=["subscriptions"],
            group_name=CAPTURE,
            owners=OWNERS,
            kinds={"websocket"},
            metadata={
                "capture": settings.of(source).capture_number,
                "journal": dg.MetadataValue.path(str(settings.of(source).journal_dir.absolute())),
            },
            description=f"What is happening now. {_BROKERS[source]}'s feed as the running capture sees it: its checks"
            " are reported when their state changes and every five minutes. It is never materialised: the hours that"
            " are over are `raw_packets` and `ticks`, and are judged there.\n\nLook at its checks to see whether the"
            " capture is well, and execute them to ask it again.",
        )
        for source in settings.sources
    ]


def build_hourly_assets(hours: dg.HourlyPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """`raw_packets` and `ticks`. Without a backfill policy, so that each hour is a run and its checks land on it."""

    @dg.asset(
        key=RAW_PACKETS,
        deps=["subscriptions"],
        partitions_def=hours,
        group_name=CAPTURE,
        owners=OWNERS,
        kinds={"arrow"},
        metadata={
            "dagster/column_schema": file_schema(
                ("received", "timestamp[ns, tz=UTC]", "when the message was received"),
                ("connection", "uint8", "which connection of the capture it came from"),
                ("text", "bool", "whether it was a text frame"),
                ("payload", "binary", "the message, untouched; one may hold several packets"),
            )
        },
        description="The journal's hour: every message as it came from the socket, with its time of receipt. The ingest"
        " run observes the open hour each minute and materialises it when it is over. Hours without a session stay"
        " missing, and miss nothing.\n\nMaterialise an hour by hand to verify and count what is on the disk.",
    )
    def raw_packets(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.MaterializeResult[None]:
        hour = context.partition_key
        if hour >= hour_key(clock.now_ns()):
            raise dg.Failure(
                description=f"The hour {hour} is still open: it can be verified once it is over.", allow_retries=False
            )
        measures = measure_hour(settings, hour, clock)
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
        group_name=CAPTURE,
        owners=OWNERS,
        kinds={"postgres", "table"},
        metadata={
            "dagster/table_name": "ticks",
            "dagster/column_schema": ticks_schema(),
        },
        description="The hour's ticks in PostgreSQL. The ingest run writes them as they come, materialises the hour"
        " when it is over, and has it judged by the checks. Hours without a session stay missing, and miss nothing."
        "\n\nMaterialise hours by hand to rebuild them from the journal, each in one transaction: the same rows, whose"
        " digest is the same. Where they were others, the metadata says which and in which columns.",
    )
    def ticks(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> dg.MaterializeResult[None]:
        hour = context.partition_key
        with explained():
            try:
                rebuilt = rebuild_hour(settings, database_url(settings), hour, clock)
            except HourRefusedError as error:
                over = hour < hour_key(clock.now_ns())
                raise HourRefusedError(f"{error}{_missed(hour_gaps(settings, hour)) if over else ''}") from error
        measures = measure_hour(settings, hour, clock)
        return dg.MaterializeResult(
            metadata=ticks_metadata(measures) | rebuild_metadata(rebuilt), data_version=ticks_version(measures)
        )

    return [raw_packets, ticks]


def _missed(gaps: Sequence[GapPart]) -> str:
    """A sentence on why nothing came; empty where no gap is known."""
    if not gaps:
        return ""
    return f" Nothing came {gap_in_words(max(gaps, key=lambda gap: gap.seconds))}."
