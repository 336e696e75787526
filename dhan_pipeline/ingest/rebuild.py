"""Rebuild an hour of `ticks` from the journal: the same rows as the live path, replaced in one transaction."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.journal.block import first_block_id
from dhan_pipeline.journal.reader import captures, hour_path, read_stretches
from dhan_pipeline.sessions import HOUR_NS, day_start_ns, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import load_tokens
from dhan_pipeline.store.ticks import StoredBlocks, replace_hour


class HourRefusedError(PipelineError):
    """The hour cannot be rebuilt."""


def rebuild_hour(settings: Settings, database_url: str, hour: str, clock: Clock) -> int:
    """Replace the hour's ticks, of all captures, by what the journal says. Returns the number of rows.

    `hour` is a partition key (IST). Raises ValueError for what is none, HourRefusedError for an hour that is still
    open or that the journal does not hold, JournalIncompleteError where the database holds blocks that the journal
    has lost. Nothing is changed then.
    """
    if clock.now_ns() < parse_hour_key(hour) + HOUR_NS:
        raise HourRefusedError(f"The hour {hour} is still open: it can be rebuilt once it is over.")
    with_hour = [c for c in captures(settings.journal_dir) if hour_path(settings.journal_dir, c, hour).exists()]
    if not with_hour:
        raise HourRefusedError(f"The journal holds nothing of the hour {hour}.")
    with closing(connect(database_url)) as conn:
        tokens = load_tokens(conn, settings.data_source)
        conn.commit()
        blocks = (block for capture in with_hour for block in _stored_blocks(settings, capture, hour, tokens))
        return replace_hour(conn, hour, blocks, clock)


def _stored_blocks(settings: Settings, capture: int, hour: str, tokens: NDArray[np.int64]) -> Iterator[StoredBlocks]:
    """The hour's blocks of one capture, after the state that the day's earlier blocks leave."""
    processor = BlockProcessor(tokens, settings.dhan_trade_time_offset_s)
    midnight = first_block_id(capture, day_start_ns(parse_hour_key(hour)))
    for stretch in read_stretches(settings.journal_dir, capture, after=midnight - 1):
        if stretch.hour > hour:
            return
        if stretch.hour == hour:
            yield processor.process(stretch)
        else:
            processor.fold(stretch)
