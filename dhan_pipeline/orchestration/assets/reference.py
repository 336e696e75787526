"""The reference data: the brokers' lists of instruments, the table of them, and which of them to capture.

Each asset does it for every broker that is captured. Of one broker, metadata has plain names (`quarantined`); of
several, each one's are below its name (`kite/quarantined`), and `dagster/row_count` is the sum. Then one broker that
cannot be asked holds nothing of the other up: its `problem` is said, and what was there of it stays.

Belongs here: names, lineage, descriptions, and calls into the rooms that do the work. Does not: that work.
"""

import hashlib
from collections.abc import Callable
from contextlib import closing
from datetime import date

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.masters import download_master, parse_master
from dhan_pipeline.holidays import calendar_problem_left
from dhan_pipeline.orchestration.metadata import Metadata, of_each_source
from dhan_pipeline.orchestration.names import OWNERS, REFERENCE
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.instruments import read_instruments, sync_to_database
from dhan_pipeline.subscriptions import load_rules, resolve, write_subscriptions


@dg.asset(
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"csv"},
)
def scrip_master(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """The broker's list of every instrument, downloaded and kept as a file."""
    return _of_each_source(context, settings, _scrip_master)


def _scrip_master(settings: Settings) -> Metadata:
    path = download_master(settings)
    master = parse_master(settings.source, path)
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
    return metadata


@dg.asset(
    deps=[scrip_master],
    group_name=REFERENCE,
    owners=OWNERS,
    kinds={"postgres", "table"},
    metadata={"dagster/table_name": "instruments"},
)
def instruments(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """The instruments table, brought up to date; what the master no longer lists is deactivated, never deleted."""
    return _of_each_source(context, settings, _instruments)


def _instruments(settings: Settings) -> Metadata:
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
    on = clock.now().astimezone(IST).date()
    problem = calendar_problem_left(settings, on)
    if problem:
        context.log.warning(problem)
    result = _of_each_source(context, settings, lambda of_one: _subscriptions(of_one, on, context))
    return result._replace(metadata={**(result.metadata or {}), "calendar": problem or "ok"})


def _subscriptions(settings: Settings, on: date, context: dg.AssetExecutionContext) -> Metadata:
    rules = load_rules(settings.subscriptions_file)
    with closing(connect(database_url(settings))) as conn:
        active = read_instruments(conn, settings.source)
    resolution = resolve(rules, active, on, settings.source)
    write_subscriptions(settings.subscriptions_path, resolution.subscriptions)
    for rule in resolution.summary:
        if rule.missing:
            context.log.warning(
                f"Line {rule.line}, {rule.rule}: no active instrument of {settings.source} for {len(rule.missing)}"
                f" names, {', '.join(rule.missing[:10])}"
            )
    rows = "\n".join(
        f"| {rule.line} | {rule.rule} | {rule.selected:,} | {rule.added:,} | {len(rule.missing)} |"
        for rule in resolution.summary
    )
    return {
        "dagster/row_count": len(resolution.subscriptions),
        "rules": dg.MetadataValue.md(
            f"| line | rule | selected | added | missing |\n|---:|---|---:|---:|---:|\n{rows}"
        ),
        "missing": sum(len(rule.missing) for rule in resolution.summary),
        "file": dg.MetadataValue.path(str(settings.subscriptions_path)),
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
