"""One journal block -> the rows that are stored. The live writer and the rebuild of an hour both come through here.

The rows of a block depend on the block, on the blocks of its capture before it on the same IST day (previous close and
open interest are remembered), and on the known instruments; on nothing else.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.enrich import MarketState, enrich, fold
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.journal.block import Block, first_block_id, split_block_id
from dhan_pipeline.journal.notes import notes
from dhan_pipeline.journal.reader import read_blocks
from dhan_pipeline.sessions import IST_OFFSET_S, day_start_ns
from dhan_pipeline.store.ticks import StoredBlock
from dhan_pipeline.ticks import Decoded


class BlockProcessor:
    """Decodes and enriches the blocks of one capture, in order."""

    def __init__(self, tokens: NDArray[np.int64], trade_time_offset_s: int = IST_OFFSET_S) -> None:
        """`tokens`: every known instrument token of the source. Its trade times are that far ahead of UTC."""
        self._instruments = InstrumentIndex(tokens)
        self._state = MarketState(len(self._instruments))
        self._trade_time_offset_s = trade_time_offset_s
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

    def _decode(self, block: Block) -> Decoded:
        return decode(block.payload, block.offsets, block.text, self._trade_time_offset_s)

    def _enter_day(self, block: Block) -> None:
        day_ns = day_start_ns(block.first_received_ns)
        if day_ns != self._day_ns:
            self._day_ns = day_ns
            self._state = MarketState(len(self._instruments))

    def fold(self, block: Block) -> None:
        """Take over what a block says about later ones, without making rows."""
        self._enter_day(block)
        fold(self._decode(block), self._instruments, self._state)

    def process(self, block: Block) -> StoredBlock:
        """The rows of a block, and what its ledger row says."""
        self._enter_day(block)
        enriched = enrich(self._decode(block), block.block_id, block.received_ns, self._instruments, self._state)
        return StoredBlock(
            block_id=block.block_id,
            messages=block.messages,
            payload_bytes=len(block.payload),
            first_received_ns=block.first_received_ns,
            last_received_ns=block.last_received_ns,
            enriched=enriched,
            received_ns=block.received_ns,
            connection=block.connection,
            notes=tuple(notes(block)),
        )


def resume(processor: BlockProcessor, journal_dir: Path, capture: int, block_id: int) -> None:
    """Bring the processor to its state after `block_id`, from the journal of that block's IST day."""
    _, number = split_block_id(block_id)
    midnight = first_block_id(capture, day_start_ns(number * 1_000_000))
    for block in read_blocks(journal_dir, capture, after=midnight - 1, until=block_id):
        processor.fold(block)
