"""The reference data: the brokers' lists of instruments, the table of them, and which of them to capture.

Each asset does it for every broker that is captured. Of one broker, metadata has plain names (`quarantined`); of
several, each one's are below its name (`kite/quarantined`), and `dagster/row_count` is the sum. Then one broker that
cannot be asked holds nothing of the other up: its `problem` is said, and what was there of it stays.

Belongs here: names, lineage, descriptions, and calls into the rooms that do the work. Does not: that work.
"""

import hashlib
from collections.abc import Callable
from contextlib import closing

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.holidays import calendar_problem_left
from dhan_pipeline.orchestration.columns import file_schema, table_schema
from dhan_pipeline.orchestration.metadata import Metadata, of_each_source, table
from dhan_pipeline.orchestration.names import INSTRUMENTS, OWNERS, REFERENCE, SCRIP_MASTER
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.store.resolved import resolve_rules
from dhan_pipeline.subscriptions import MAX_SUBSCRIPTIONS, load_rules, spot_in_words
from dhan_pipeline.windows import write_resolution


@dg.asset(
    key=SCRIP_MASTER,
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"csv"},
    description="The broker's list of every instrument, downloaded and kept as a file, every day at 08:30 IST.\n\n"
    "Launch `instrument_sync_job` to fetch it again, with what follows from it. A list that lacks a column, or most of"
    " its rows, is refused: then what was there before stays.",
)
def scrip_master(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """Download each source's list."""
    return _of_each_source(context, settings, _scrip_master)


def _scrip_master(settings: Settings) -> Metadata:
    from dhan_pipeline.feeds.masters import download_master, parse_master  # and with it pandas, which others need not

    path = download_master(settings)
    master = parse_master(settings.source, path)
    segments = ((segment, f"{count:,}") for segment, count in master.segment_counts.items())
    metadata: Metadata = {
        "dagster/row_count": len(master.rows),
        "segments": table(("segment", "instruments"), segments, numbers=True),
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
    return metadata


@dg.asset(
    key=INSTRUMENTS,
    deps=[SCRIP_MASTER],
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"postgres", "table"},
    metadata={"dagster/table_name": "instruments", "dagster/column_schema": table_schema("instruments")},
    description="The table of every instrument that a list ever named. What the list of today no longer has is"
    " deactivated, never deleted.\n\nQuery `active_instruments` for those of today. `quarantined` counts rows that"
    " could not be read; they are shown with `scrip_master`.",
)
def instruments(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """Bring the table up to date."""
    return _of_each_source(context, settings, _instruments)


def _instruments(settings: Settings) -> Metadata:
    from dhan_pipeline.feeds.masters import parse_master  # as above

    master = parse_master(settings.source, settings.master_path)
    result = sync_to_database(database_url(settings), master, source=settings.source)
    return {
        "dagster/row_count": result.inserted + result.updated + result.reactivated + result.unchanged,
        "inserted": result.inserted,
        "updated": result.updated,
        "unchanged": result.unchanged,
        "reactivated": result.reactivated,
        "deactivated": result.deactivated,
        "quarantined": result.quarantined,
        "seconds": round(result.seconds, 3),
    }


@dg.asset(
    deps=[INSTRUMENTS],
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"csv"},
    metadata={
        "dagster/column_schema": file_schema(
            ("instrument_token", "integer", "the instrument; see instruments"),
            ("exchange_segment", "string", "its segment, as Dhan's feed names it: NSE_EQ, NSE_FNO ..."),
            ("security_id", "integer", "Dhan's id within the segment; empty for Kite"),
            ("mode", "string", "ticker, quote or full"),
            ("symbol", "string", "symbol as the exchange writes it"),
            (
                "follows",
                "integer",
                "token of the underlying near whose price it is, an underlying's own; empty for what stays",
            ),
        )
    },
    description="Which instruments to capture: the rules of the subscriptions file, applied to the active instruments."
    " A capture that runs takes the result over within seconds, without a reconnect.\n\nMaterialise it after a change"
    " of the rules. Its metadata says what each rule comes to, and which names no instrument has.",
)
def subscriptions(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.MaterializeResult[None]:
    """Apply the rules of each source."""
    on = clock.now().astimezone(IST).date()
    problem = calendar_problem_left(settings, on)
    if problem:
        context.log.warning(problem)
    result = _of_each_source(context, settings, lambda of_one: _subscriptions(of_one, clock, context))
    return result._replace(metadata={**(result.metadata or {}), "calendar": problem or "ok"})


def _subscriptions(settings: Settings, clock: Clock, context: dg.AssetExecutionContext) -> Metadata:
    rules = load_rules(settings.subscriptions_file)
    with closing(connect(database_url(settings))) as conn:
        resolution = resolve_rules(conn, rules, settings.source, clock)
    write_resolution(settings, resolution)
    for rule in resolution.summary:
        if rule.missing:
            context.log.warning(
                f"Line {rule.line}, {rule.rule}: no active instrument of {settings.source} for {len(rule.missing)}"
                f" names, {', '.join(rule.missing[:10])}"
            )
    rows = (
        (f"line {rule.line}: {rule.rule}", f"{rule.selected:,}", f"{rule.added:,}", f"{len(rule.missing):,}")
        for rule in resolution.summary
    )
    spots = "\n".join(
        f"- line {rule.line}: {spot_in_words(spot)}" for rule in resolution.summary for spot in rule.spots
    )
    return {
        "dagster/row_count": len(resolution.subscriptions),
        "rules": table(("rule", "selected", "added", "missing"), rows, numbers=True),
        "limit": MAX_SUBSCRIPTIONS[settings.source],
        "missing": sum(len(rule.missing) for rule in resolution.summary),
        "file": dg.MetadataValue.path(str(settings.subscriptions_path)),
        **({"around": dg.MetadataValue.md(spots)} if spots else {}),
    }


def _of_each_source(
    context: dg.AssetExecutionContext, settings: Settings, work: Callable[[Settings], Metadata]
) -> dg.MaterializeResult[None]:
    """Of several brokers, one that fails holds nothing of the others up; what is wrong is said, and no row counts."""
    parts: dict[Source, Metadata] = {}
    failures: list[PipelineError] = []
    for source in settings.sources:
        try:
            parts[source] = work(settings.of(source))
        except PipelineError as error:
            failures.append(error)
            context.log.error(str(error))
            parts[source] = {"dagster/row_count": 0, "problem": str(error)}
    if len(failures) == len(parts):
        with explained():
            raise failures[0]
    return dg.MaterializeResult(metadata=of_each_source(parts))
