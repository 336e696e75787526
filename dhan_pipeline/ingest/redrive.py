"""Rejected packets again, after what rejected them is mended: a decoder, or instruments that were not known yet.

A packet that is accepted now may change later rows of its day (it may carry a previous close or an open interest). So
the day's blocks are recomputed from the first one that changes, and the rows are those of a rebuild.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest.process import BlockProcessor, resume
from dhan_pipeline.journal.block import first_block_id, split_block_id
from dhan_pipeline.journal.reader import read_stretches
from dhan_pipeline.sessions import DAY_NS, day_start_ns, hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, source_of_capture
from dhan_pipeline.store import ledger
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import load_tokens
from dhan_pipeline.store.rebuilds import JournalIncompleteError, replace_blocks
from dhan_pipeline.store.ticks import StoredBlocks


@dataclass(frozen=True, slots=True)
class RedriveResult:
    """What came of it, in packets but for `blocks`."""

    examined: int = 0
    driven: int = 0
    """Accepted now."""
    still_rejected: int = 0
    no_journal: int = 0
    """Whose block the journal no longer has; they stay as they are."""
    blocks: int = 0
    """Blocks whose rows were renewed."""

    def __add__(self, other: "RedriveResult") -> "RedriveResult":
        return RedriveResult(
            self.examined + other.examined,
            self.driven + other.driven,
            self.still_rejected + other.still_rejected,
            self.no_journal + other.no_journal,
            self.blocks + other.blocks,
        )


def redrive(
    settings: Settings,
    database_url: str,
    clock: Clock,
    *,
    reason: str | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
) -> RedriveResult:
    """Process the rejected packets again, those of one `reason` or all of them.

    Each IST day of a capture is one transaction: done again, or interrupted and done again, it comes to the same rows.
    The capture may run meanwhile. `progress` gets a sentence a day. Days older than the retention are left alone.

    Raises JournalIncompleteError where the journal lacks later blocks of days that change: these stay as they are, and
    all others are done. Raises psycopg2.Error.
    """
    total = RedriveResult()
    incomplete = []
    with closing(connect(database_url)) as conn:
        tokens = {source: load_tokens(conn, source) for source in SOURCES}
        # What has expired is not to come back: whole days, so that none is half there.
        kept_ns = day_start_ns(clock.now_ns() - (settings.retention_days - 1) * DAY_NS)
        rejected = ledger.rejections(conn, kept_ns, reason)
        conn.commit()
        for (capture, day_ns), of_day in groupby(rejected, lambda row: _day(row[0])):
            day = f"Capture {capture}, {hour_key(day_ns)[:10]}"
            try:
                source = source_of_capture(capture)
                result = _redrive_day(
                    settings.of(source), conn, clock, tokens[source], capture, day_ns, dict(of_day), reason
                )
            except JournalIncompleteError as error:
                incomplete.append(f"{day}: {error}")
                continue
            progress(
                f"{day}: {result.driven:,} of {result.examined:,} packets are"
                f" accepted now, {result.blocks:,} blocks were renewed."
            )
            total += result
    if incomplete:
        raise JournalIncompleteError(" ".join(incomplete))
    return total


def _day(block_id: int) -> tuple[int, int]:
    capture, number = split_block_id(block_id)
    return capture, day_start_ns(number * 1_000_000)


def _redrive_day(
    settings: Settings,
    conn: connection,
    clock: Clock,
    tokens: NDArray[np.int64],
    capture: int,
    day_ns: int,
    rejected: dict[int, int],
    reason: str | None,
) -> RedriveResult:
    midnight, next_midnight = first_block_id(capture, day_ns), first_block_id(capture, day_ns + DAY_NS)
    before = ledger.rejected_positions(conn, list(rejected), reason)
    conn.commit()
    first = None
    found = driven = 0
    processor = BlockProcessor(tokens, decoder(settings))
    for stretch in read_stretches(settings.journal_dir, capture, after=midnight - 1, until=max(rejected)):
        here = [block_id for block_id in stretch.block_ids.tolist() if block_id in rejected]
        if not here:
            processor.fold(stretch)
            continue
        still = {(again.block_id, again.position) for again in processor.process(stretch).enriched.rejected}
        for block_id in here:
            accepted = sum((block_id, position) not in still for position in before[block_id])
            found += rejected[block_id]
            driven += accepted
            if accepted and first is None:
                first = block_id
    examined = sum(rejected.values())
    result = RedriveResult(examined, driven, found - driven, no_journal=examined - found)
    if first is None:
        return result
    processor = BlockProcessor(tokens, decoder(settings))
    resume(processor, settings.journal_dir, capture, first - 1)
    renewed = 0

    def renew(first: int, last: int) -> Iterator[StoredBlocks]:
        nonlocal renewed
        for stretch in read_stretches(settings.journal_dir, capture, after=first - 1, until=last):
            renewed += len(stretch.block_ids)
            yield processor.process(stretch)

    replace_blocks(conn, first, next_midnight, renew, clock)
    return replace(result, blocks=renewed)
