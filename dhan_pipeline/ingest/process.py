"""Journal blocks -> the rows that are stored. The live writer and the rebuild of an hour both come through here.

The rows of a block depend on the block, on the blocks of its capture before it on the same IST day (previous close and
open interest are remembered), and on the known instruments; on nothing else.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.enrich import MarketState, enrich, fold
from dhan_pipeline.feeds.by_source import Decode
from dhan_pipeline.feeds.dhan.decode import decode as decode_dhan
from dhan_pipeline.ingest.parts import remembered
from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.journal.block import first_block_id, split_block_id
from dhan_pipeline.journal.notes import notes
from dhan_pipeline.journal.reader import read_stretches
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.sessions import day_start_ns
from dhan_pipeline.store.ticks import StoredBlocks
from dhan_pipeline.ticks import Decoded
from dhan_pipeline.transport.message import Remembered


class BlockProcessor:
    """Decodes and enriches the blocks of one capture, in order."""

    def __init__(self, tokens: NDArray[np.int64], decode: Decode = decode_dhan) -> None:
        """`tokens`: every known instrument token of the source, whose messages `decode` reads."""
        self._instruments = InstrumentIndex(tokens)
        self._state = MarketState(len(self._instruments))
        self._decode = decode
        self._day_ns = 0

    @property
    def instruments(self) -> InstrumentIndex:
        """The known instruments."""
        return self._instruments

    def learn(self, tokens: NDArray[np.int64]) -> None:
        """Know these instruments from the next block on. What was remembered of those known before stays."""
        before, old = self._instruments, self._state
        self._instruments = InstrumentIndex(tokens)
        self._state = MarketState(len(self._instruments))
        at = self._instruments.lookup(before.tokens)
        kept = at >= 0
        for name in ("previous_close", "announced", "open_interest"):
            getattr(self._state, name)[at[kept]] = getattr(old, name)[kept]

    def decode(self, stretch: Stretch) -> Decoded:
        """What is in the messages of blocks."""
        return self._decode(stretch.payload, stretch.offsets, stretch.text)

    def remembered(self, stretch: Stretch, decoded: Decoded) -> Remembered:
        """What packets of the day before the blocks said about the instruments in them."""
        self._enter_day(stretch)
        return remembered(self._instruments, self._state, decoded)

    def _enter_day(self, stretch: Stretch) -> None:
        day_ns = day_start_ns(int(stretch.received_ns[0]))
        if day_ns != self._day_ns:
            self._day_ns = day_ns
            self._state = MarketState(len(self._instruments))

    def fold(self, stretch: Stretch) -> None:
        """Take over what blocks say about later ones, without making rows: the state is that after each in turn."""
        self._enter_day(stretch)
        fold(self.decode(stretch), self._instruments, self._state)

    def process(self, stretch: Stretch, decoded: Decoded | None = None) -> StoredBlocks:
        """The rows of blocks, and what the ledger row of each says. However many come at once, they are the same."""
        self._enter_day(stretch)
        enriched = enrich(
            decoded or self.decode(stretch),
            stretch.block_ids,
            stretch.first_messages,
            stretch.received_ns,
            self._instruments,
            self._state,
        )
        return StoredBlocks(stretch, enriched, tuple(notes(stretch)))


def resume(
    processor: BlockProcessor,
    journal_dir: Path,
    capture: int,
    block_id: int,
    give_up: Callable[[], bool] = lambda: False,
) -> bool:
    """Bring the processor to its state after `block_id`, from the journal of that block's IST day.

    `give_up` is asked every few milliseconds; False when it said yes.
    """
    _, number = split_block_id(block_id)
    midnight = first_block_id(capture, day_start_ns(number * 1_000_000))
    for stretch in read_stretches(journal_dir, capture, after=midnight - 1, until=block_id):
        if give_up():
            return False
        processor.fold(stretch)
    return True
