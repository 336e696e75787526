"""Prices that windows of options follow while nothing is stored: the database is away, or the writer is behind.

What a window leaves out that stands still would be lost for good. The market as stored packets show it is of the past
then, and runs through hours that are over while the writer catches up. So prices are read where blocks become durable.
"""

import contextlib
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.by_source import Decode
from dhan_pipeline.journal.block import Block


class Spots:
    """The last prices of a few instruments, from blocks that nobody has decoded yet. `see` is for another thread."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        self.prices: dict[int, float] = {}
        """In rupees, by instrument token, as the wire says them. Another dictionary whenever one changes."""

    def watch(self, instrument_tokens: Collection[int]) -> None:
        """These are the instruments."""
        self._tokens = np.fromiter(instrument_tokens, np.int64, len(instrument_tokens))

    def forget(self) -> None:
        """What was seen is of the past."""
        if self.prices:
            self.prices = {}

    def see(self, block: Block) -> None:
        """Take account of a block; costs a decoding of it, where there is anything to watch."""
        if len(self._tokens):
            # Of a mistake in the decoder the writer tells, again and again; the journal must not end with it.
            with contextlib.suppress(Exception):
                self._see(block, self._tokens)

    def _see(self, block: Block, tokens: NDArray[np.int64]) -> None:
        for ticks in self._decode(block.payload, block.offsets, block.text).ticks:
            price = ticks.columns["last_price"]
            found = np.flatnonzero(np.isin(ticks.instrument_token, tokens) & (price > 0))
            if len(found):
                last = zip(ticks.instrument_token[found].tolist(), price[found].tolist(), strict=True)
                self.prices = self.prices | dict(last)
