"""Identity: the reversible instrument token, and the look-up tables that the hot path indexes.

Dhan's `security_id` is unique only within its exchange segment, so the token packs both above every Kite token.
"""

from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Kite's tokens are below 2^32; this bit keeps Dhan's apart from them.
DHAN_TOKEN_BIT = 1 << 40
_SEGMENT_SHIFT = 32
_SECURITY_ID_MASK = (1 << _SEGMENT_SHIFT) - 1


class ExchangeSegment(IntEnum):
    """Dhan's exchange segments as numbered on the wire (annexure). 6 is not assigned."""

    IDX_I = 0
    NSE_EQ = 1
    NSE_FNO = 2
    NSE_CURRENCY = 3
    BSE_EQ = 4
    MCX_COMM = 5
    BSE_CURRENCY = 7
    BSE_FNO = 8


#: Decimals of a segment's prices. Rupee instruments have paise; currency pairs trade in quarter-paise ticks.
PRICE_DECIMALS = {
    segment: 4 if segment in (ExchangeSegment.NSE_CURRENCY, ExchangeSegment.BSE_CURRENCY) else 2
    for segment in ExchangeSegment
}


def generate_instrument_token(exchange_segment: ExchangeSegment | str | int, security_id: int | str) -> int:
    """The token of a Dhan instrument: the same in every process, reversible, above every Kite token.

    Raises ValueError for an unknown segment number,
    KeyError for an unknown segment name, ValueError for a security id outside 32 bits.
    """
    if isinstance(exchange_segment, str):
        exchange_segment = ExchangeSegment[exchange_segment]
    segment = ExchangeSegment(exchange_segment)
    number = int(security_id)
    if not 0 <= number <= _SECURITY_ID_MASK:
        raise ValueError(f"security id {security_id} does not fit 32 bits")
    return DHAN_TOKEN_BIT | segment << _SEGMENT_SHIFT | number


def split_instrument_token(instrument_token: int) -> tuple[ExchangeSegment, int]:
    """(exchange segment, security id) of a Dhan token. Raises ValueError for any other number."""
    if instrument_token < 0 or instrument_token >> 36 != DHAN_TOKEN_BIT >> 36:
        raise ValueError(f"{instrument_token} is not a Dhan instrument token")
    return ExchangeSegment(instrument_token >> _SEGMENT_SHIFT & 0xF), instrument_token & _SECURITY_ID_MASK


def dhan_tokens(segment: NDArray[Any], security_id: NDArray[Any]) -> NDArray[np.int64]:
    """`generate_instrument_token` over arrays of wire values, unchecked."""
    return DHAN_TOKEN_BIT | segment.astype(np.int64) << _SEGMENT_SHIFT | security_id.astype(np.int64)


#: Pages of 2^32 tokens. Those from here on are nobody's, and are searched.
_PAGES = 512

#: Slots of 4 bytes that the tables of all pages may take together: 16 MB.
_DIRECT_SLOTS = 4_000_000


class InstrumentIndex:
    """The place of each known instrument in arrays of values, found for whole arrays of tokens at once.

    The ids of a segment lie close enough together for a table addressed by the id itself. A segment whose ids are too
    far apart to share the 16 MB of tables is searched instead, at a tenth of the speed. Tokens of several feeds may
    stand side by side.
    """

    tokens: NDArray[np.int64]
    """Token of each instrument; its index here is its index everywhere."""
    decimals: NDArray[np.int8]
    """Decimals of each instrument's prices."""
    scale: NDArray[np.float64]
    """10 to the power of `decimals`."""
    tradable: NDArray[np.bool_]
    """False for an index."""

    def __init__(self, tokens: Sequence[int] | NDArray[np.int64]) -> None:
        """Index the tokens in the order given. Raises ValueError if one is negative or appears twice."""
        self.tokens = np.array(tokens, np.int64)
        order = self.tokens.argsort().astype(np.int32)
        ordered = self.tokens[order]
        if len(ordered) and ordered[0] < 0:
            raise ValueError(f"{ordered[0]} is not an instrument token")
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"instrument token {twice[0]} appears twice")

        pages = ordered >> _SEGMENT_SHIFT
        digits, tradable = np.full(_PAGES + 1, 2, np.int8), np.ones(_PAGES + 1, np.bool_)
        for segment, decimals in PRICE_DECIMALS.items():
            page = generate_instrument_token(segment, 0) >> _SEGMENT_SHIFT
            digits[page], tradable[page] = decimals, segment != ExchangeSegment.IDX_I
        self.decimals = digits.take(self.tokens >> _SEGMENT_SHIFT, mode="clip")
        self.tradable = tradable.take(self.tokens >> _SEGMENT_SHIFT, mode="clip")
        self.scale = np.power(10.0, self.decimals)

        # A page's table holds the index of each token between its lowest and its highest. The densest pages get theirs
        # first. What a look-up finds is compared with the token, so that empty slots may hold anything.
        bounds = [0, *(np.flatnonzero(np.diff(pages)) + 1).tolist(), len(pages)] if len(pages) else []
        runs = [range(*ends) for ends in pairwise(bounds)]
        slots = {run: int(ordered[run[-1]] - ordered[run[0]]) + 1 for run in runs}
        searched = np.ones(len(order), np.bool_)
        self._shift = np.zeros(_PAGES + 1, np.int64)
        used = 0
        for run in sorted(runs, key=lambda run: slots[run] / len(run)):
            if pages[run[0]] < _PAGES and used + slots[run] <= _DIRECT_SLOTS:
                self._shift[pages[run[0]]] = used - ordered[run[0]]
                searched[run.start : run.stop] = False
                used += slots[run]
        self._table = np.zeros(max(used, 1), np.int32)
        direct = order[~searched]
        self._table[self.tokens[direct] + self._shift[self.tokens[direct] >> _SEGMENT_SHIFT]] = direct
        self._searched = order[searched]
        self._searched_tokens = ordered[searched]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Memory of all look-up tables, in bytes."""
        return sum(table.nbytes for table in vars(self).values())

    def lookup(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """Index of each token, -1 where it is unknown. Tokens are not negative."""
        if not len(self.tokens):
            return np.full(len(tokens), -1, np.int32)
        slot = self._shift.take(tokens >> _SEGMENT_SHIFT, mode="clip")
        slot += tokens
        index = self._table.take(slot, mode="clip")
        missing = self.tokens.take(index) != tokens
        if np.count_nonzero(missing):
            index[missing] = self._search(tokens[missing])
        return index

    def _search(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        if not len(self._searched):
            return np.full(len(tokens), -1, np.int32)
        near = self._searched_tokens.searchsorted(tokens)
        np.minimum(near, len(self._searched) - 1, out=near)
        return np.where(self._searched_tokens[near] == tokens, self._searched[near], np.int32(-1))
