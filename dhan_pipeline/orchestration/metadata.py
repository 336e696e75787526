"""What the UI shows beside an asset or an event: tables, units, counts, times.

Belongs here: turning our numbers into Dagster metadata, once for the ingest run, backfills and live checks alike. Does
not: computing those numbers (`quality/`).
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from dhan_pipeline.quality import tables
from dhan_pipeline.quality.gap_words import gaps_table
from dhan_pipeline.quality.measures import HourMeasures
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.quality.pictures import ticks_picture
from dhan_pipeline.sessions import IST, parse_hour_key
from dhan_pipeline.sources import Source
from dhan_pipeline.store.differences import Difference
from dhan_pipeline.store.rebuilds import HourRebuild

Metadata = dict[str, Any]


def of_each_source(parts: Mapping[Source, Metadata]) -> Metadata:
    """Of one source, what there is; of several the sum of the rows, and all else under the source's name."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    metadata: Metadata = {"dagster/row_count": sum(part["dagster/row_count"] for part in parts.values())}
    for source, part in parts.items():
        metadata |= {f"{source}/{name.removeprefix('dagster/')}": value for name, value in part.items()}
    return metadata


def raw_packets_metadata(measures: HourMeasures) -> Metadata:
    """What the journal holds of an hour."""
    metadata: Metadata = {
        "blocks": measures.journal_blocks,
        "messages": measures.journal_messages,
        "bytes": measures.journal_bytes,
        "damaged": len(measures.journal_damage),
        "gap_seconds": round(sum(gap.seconds for gap in measures.gaps if not gap.of_one), 3),
        "silent_instruments": sum(gap.of_one for gap in measures.gaps),
    }
    if drawing := ticks_picture(measures.flow.ticks_by_minute, parse_hour_key(measures.hour), measures.gaps):
        metadata["ticks_a_minute"] = picture(drawing.words, drawing.svg)
    if measures.gaps:
        metadata["gaps"] = dg.MetadataValue.md(gaps_table(measures.gaps))
    for name, at_ns in (("first_received", measures.first_received_ns), ("last_received", measures.last_received_ns)):
        if at_ns is not None:
            metadata[name] = dg.MetadataValue.timestamp(at_ns / 1e9)
    if measures.journal_damage:
        metadata["damage"] = dg.MetadataValue.md("\n".join(f"- {sentence}" for sentence in measures.journal_damage))
    return metadata


def ticks_metadata(measures: HourMeasures) -> Metadata:
    """What the ledger and the table hold of an hour."""
    metadata: Metadata = {
        "dagster/row_count": measures.rows,
        "packets": measures.packets,
        "state": measures.state,
        "control": measures.control,
        "rejected": measures.rejected,
        "digest": measures.digest,
    }
    for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_p999_ms"):
        if (value := getattr(measures, name)) is not None:
            metadata[name] = value
    if drawing := ticks_picture(measures.flow.ticks_by_minute, parse_hour_key(measures.hour), measures.gaps):
        metadata["ticks_a_minute"] = picture(drawing.words, drawing.svg)
    for name, made in (("latencies", measures.latencies), ("day_so_far", measures.day)):
        if made:
            metadata[name] = picture(made.words, made.svg)
    return metadata


def ticks_version(measures: HourMeasures) -> dg.DataVersion:
    """The same rows are the same version: what was made of them stays in sync when they are made again."""
    return dg.DataVersion(measures.digest)


def rebuild_metadata(rebuilt: HourRebuild) -> Metadata:
    """What a rebuild of an hour changed."""
    found = rebuilt.differences
    metadata: Metadata = {
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "digest_before": rebuilt.digest_before,
    }
    if found.columns:
        metadata["changed_columns"] = table(
            ("column", "rows that differ"), ((name, f"{rows:,}") for name, rows in found.columns)
        )
    if found.examples:
        metadata["differences"] = table(
            ("tick_id", "time (IST)", "instrument_token", "column", "before", "after"),
            (
                (d.tick_id, f"{d.time.astimezone(IST):%H:%M:%S.%f}", d.instrument_token, d.column or "", *_sides(d))
                for d in found.examples
            ),
        )
    return metadata


def _sides(difference: Difference) -> tuple[str, str]:
    before, after = ("NULL" if side is None else str(side) for side in (difference.before, difference.after))
    return before, after


def table(head: Sequence[str], rows: Iterable[Iterable[object]], *, numbers: bool = False) -> dg.MarkdownMetadataValue:
    """A table; with `numbers`, all but its first column are that."""
    return dg.MetadataValue.md(tables.table(head, rows, head[1:] if numbers else ()))


def picture(words: str, drawing: str) -> dg.MarkdownMetadataValue:
    """An SVG drawing with words for who cannot see it. The UI shows less than 1000 characters of Markdown in place."""
    return dg.MetadataValue.md(f"![{words}](data:image/svg+xml;base64,{b64encode(drawing.encode()).decode()})")


def heartbeat_metadata(status: Mapping[str, Any]) -> tuple[Metadata, Metadata]:
    """What a status line says about the open hour of `raw_packets` and of `ticks`. Counts run since the start."""
    raw = {
        "messages_since_start": status["messages"],
        "bytes_since_start": status["bytes"],
        "messages_per_second": status["messages_per_second"],
        "connections": f"{status['connections_up']} of {status['connections']} up",
    }
    ticks = {
        "ticks_since_start": status["ticks"],
        "rejected_since_start": status["rejected"],
        "backlog_seconds": status["backlog_seconds"],
        "latency_p99_ms": status["latency_p99_ms"],
        "memory_mb": status["rss_mb"],
        "cpu_percent": status["cpu_percent"],
    }
    return raw, {name: value for name, value in ticks.items() if value is not None}


def check_metadata(outcome: CheckOutcome) -> Metadata:
    """A check's one number, which the UI plots, and its limits in words."""
    metadata: Metadata = {"limits": outcome.limits}
    if outcome.value is not None:
        metadata["value"] = round(float(outcome.value), 4)
        metadata["unit"] = outcome.unit
    if outcome.picture:
        metadata["picture"] = picture(outcome.picture.words, outcome.picture.svg)
    if outcome.table:
        metadata["details"] = dg.MetadataValue.md(outcome.table)
    return metadata
