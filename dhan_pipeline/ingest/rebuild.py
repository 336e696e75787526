"""Rebuild hours of `ticks` from the journal: the same rows as the live path, each hour in one transaction."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.journal.block import first_block_id
from dhan_pipeline.journal.reader import captures, hours, read_stretches
from dhan_pipeline.sessions import HOUR_NS, day_start_ns, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source, source_of_capture
from dhan_pipeline.store.differences import Difference
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import load_tokens
from dhan_pipeline.store.rebuilds import HourRebuild, JournalIncompleteError, replace_hour
from dhan_pipeline.store.ticks import StoredBlocks


class HourRefusedError(PipelineError):
    """The hour cannot be rebuilt."""


def rebuild_hour(settings: Settings, database_url: str, hour: str, clock: Clock) -> HourRebuild:
    """Make the hour's ticks, of all captures, what the journal says.

    `hour` is a partition key (IST). Raises ValueError for what is none, HourRefusedError for an hour that is still
    open or that the journal does not hold, JournalIncompleteError where the database holds blocks that the journal
    has lost. Nothing is changed then.
    """
    (rebuilt,) = rebuild_hours(settings, database_url, hour, hour, clock)
    return rebuilt


def rebuild_hours(
    settings: Settings,
    database_url: str,
    first: str,
    last: str,
    clock: Clock,
    progress: Callable[[str, int], object] = lambda hour, ticks: None,
    *,
    compare_only: bool = False,
    each_row: Callable[[Sequence[Difference]], object] | None = None,
) -> Iterator[HourRebuild]:
    """The same for all hours from `first` to `last` that the journal holds, in order, each when it is committed.

    What a day's hours say about later ones is carried on from hour to hour, so that each is read once; the rows are
    those of hours that are rebuilt alone. `progress` gets an hour and how many more of its ticks are made, from another
    thread. `compare_only` and `each_row` are those of `replace_hour`.

    Raises as `rebuild_hour` does, HourRefusedError before anything is changed. An hour of which the journal has lost
    blocks stays as it is, and the others are done before JournalIncompleteError names it.
    """
    held = held_hours(settings, first, last)
    if open_hours := [hour for hour in held or [last] if clock.now_ns() < parse_hour_key(hour) + HOUR_NS]:
        raise HourRefusedError(f"The hour {open_hours[0]} is still open: it can be rebuilt once it is over.")
    if not held:
        span = f"the hour {first}" if first == last else f"the hours from {first} to {last}"
        raise HourRefusedError(f"The journal holds nothing of {span}.")
    incomplete = []
    with closing(connect(database_url)) as conn:
        tokens = {source: load_tokens(conn, source) for source in SOURCES}
        conn.commit()
        replays = [_replay(settings, capture, held[0], tokens, progress) for capture in captures(settings.journal_dir)]
        for hour in held:
            blocks = (block for of_hour in replays for block in of_hour(hour))
            try:
                yield replace_hour(conn, hour, blocks, clock, compare_only=compare_only, each_row=each_row)
            except JournalIncompleteError as error:
                incomplete.append(str(error))
    if incomplete:
        raise JournalIncompleteError(" ".join(incomplete))


def held_hours(settings: Settings, first: str, last: str) -> list[str]:
    """Keys of the hours from `first` to `last` that the journal of any capture holds, in order. Raises ValueError."""
    first_ns, last_ns = parse_hour_key(first), parse_hour_key(last)
    of_captures = [hours(settings.journal_dir, capture) for capture in captures(settings.journal_dir)]
    return sorted({h for found in of_captures for h in found if first_ns <= parse_hour_key(h) <= last_ns})


def _replay(
    settings: Settings,
    capture: int,
    first: str,
    tokens: Mapping[Source, NDArray[np.int64]],
    progress: Callable[[str, int], object],
) -> Callable[[str], Iterator[StoredBlocks]]:
    """Gives the blocks of one hour after another, after the state that those of their day before leave."""
    source = source_of_capture(capture)
    processor = BlockProcessor(tokens[source], decoder(settings.of(source)))
    midnight = first_block_id(capture, day_start_ns(parse_hour_key(first)))
    coming = read_stretches(settings.journal_dir, capture, after=midnight - 1)
    stretch = next(coming, None)

    def of_hour(hour: str) -> Iterator[StoredBlocks]:
        nonlocal stretch
        while stretch is not None and stretch.hour <= hour:
            part, stretch = stretch, next(coming, None)
            if part.hour < hour:
                processor.fold(part)
            else:
                blocks = processor.process(part)
                yield blocks
                progress(hour, int(blocks.enriched.rows.sum()))

    return of_hour
