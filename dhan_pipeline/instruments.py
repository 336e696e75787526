"""Identity: the reversible instrument token, and the look-up tables that the hot path indexes.

Kite's token is its own number, of 32 bits: the exchange's number and the segment. Dhan's `security_id` is unique only
within its exchange segment, so its token packs both above every Kite token.
"""

from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dhan_pipeline.sources import Source

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


class KiteSegment(IntEnum):
    """Kite's segments: the last byte of its tokens. 10 and 11 are not assigned."""

    NSE = 1
    NFO = 2
    CDS = 3
    BSE = 4
    BFO = 5
    BCD = 6
    MCX = 7
    MCXSX = 8
    INDICES = 9
    NCO = 12


#: What each of Kite's segments is to us. NSE's commodities trade in the hours of MCX, MCX-SX had currencies.
KITE_SEGMENTS = {
    KiteSegment.NSE: ExchangeSegment.NSE_EQ,
    KiteSegment.NFO: ExchangeSegment.NSE_FNO,
    KiteSegment.CDS: ExchangeSegment.NSE_CURRENCY,
    KiteSegment.BSE: ExchangeSegment.BSE_EQ,
    KiteSegment.BFO: ExchangeSegment.BSE_FNO,
    KiteSegment.BCD: ExchangeSegment.BSE_CURRENCY,
    KiteSegment.MCX: ExchangeSegment.MCX_COMM,
    KiteSegment.MCXSX: ExchangeSegment.NSE_CURRENCY,
    KiteSegment.INDICES: ExchangeSegment.IDX_I,
    KiteSegment.NCO: ExchangeSegment.MCX_COMM,
}

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


def make_kite_token(segment: KiteSegment, exchange_token: int) -> int:
    """Kite's token of an instrument. Raises ValueError where it would not fit 32 bits."""
    if not 0 <= exchange_token < 1 << 24:
        raise ValueError(f"exchange token {exchange_token} does not fit 24 bits")
    return exchange_token << 8 | segment


def split_kite_token(instrument_token: int) -> tuple[KiteSegment, int]:
    """(segment, exchange token) of one of Kite's tokens. Raises ValueError for any other number."""
    if not 0 <= instrument_token < 1 << 32:
        raise ValueError(f"{instrument_token} is not a Kite instrument token")
    return KiteSegment(instrument_token & 0xFF), instrument_token >> 8


def source_of(instrument_token: int) -> Source:
    """Whose token it is."""
    return "kite" if instrument_token < 1 << 32 else "dhan"


def segment_of(instrument_token: int) -> ExchangeSegment:
    """The exchange segment of a token of either source. Raises ValueError for a number that is no token."""
    if instrument_token < 1 << 32:
        return KITE_SEGMENTS[split_kite_token(instrument_token)[0]]
    return split_instrument_token(instrument_token)[0]


#: The one of Kite's segments that carries the instruments of an exchange segment of Dhan's.
_KITE_SEGMENT_OF = {segment: kite for kite, segment in reversed(KITE_SEGMENTS.items())}


def token_of(source: Source, exchange_segment: ExchangeSegment, number: int) -> int:
    """A source's token of what has a number in a segment: the exchange's own, or of an index, the broker's.

    Raises ValueError for a number that the source's tokens do not hold.
    """
    if source == "dhan":
        return generate_instrument_token(exchange_segment, number)
    return make_kite_token(_KITE_SEGMENT_OF[exchange_segment], number)


#: In place of a segment's number, where a number is no token.
NO_SEGMENT = 255

#: By page (see `_keys`): the number of its exchange segment, and the decimals of its prices.
_PAGES = 512
_SEGMENT_OF_PAGE = np.full(_PAGES + 1, NO_SEGMENT, np.uint8)
_DECIMALS_OF_PAGE = np.full(_PAGES + 1, 2, np.int8)
for _kite, _segment in KITE_SEGMENTS.items():
    _SEGMENT_OF_PAGE[_kite], _DECIMALS_OF_PAGE[_kite] = _segment, PRICE_DECIMALS[_segment]
for _segment in ExchangeSegment:
    _page = DHAN_TOKEN_BIT >> _SEGMENT_SHIFT | _segment
    _SEGMENT_OF_PAGE[_page], _DECIMALS_OF_PAGE[_page] = _segment, PRICE_DECIMALS[_segment]


def _keys(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens with the segment before the id, as Dhan's have them: ids of one segment lie close together, in a page."""
    is_kite = tokens < 1 << _SEGMENT_SHIFT
    count = np.count_nonzero(is_kite)
    if not count:
        return tokens
    keys = (tokens & 0xFF) << _SEGMENT_SHIFT | tokens >> 8
    return keys if count == len(tokens) else np.where(is_kite, keys, tokens)


def segments_of(tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The number of the exchange segment of each token, of either source; NO_SEGMENT for a number that is no token."""
    return _SEGMENT_OF_PAGE.take(_keys(tokens) >> _SEGMENT_SHIFT, mode="clip")


def exchange_segments(tokens: ArrayLike) -> frozenset[ExchangeSegment]:
    """The exchange segments that tokens of either source are of; a number that is no token is of none."""
    numbers = np.unique(segments_of(np.asarray(tokens, np.int64))).tolist()
    return frozenset(ExchangeSegment(number) for number in numbers if number != NO_SEGMENT)


def decimals_of(tokens: NDArray[np.int64]) -> NDArray[np.int8]:
    """The decimals of each token's prices."""
    return _DECIMALS_OF_PAGE.take(_keys(tokens) >> _SEGMENT_SHIFT, mode="clip")


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
        if len(self.tokens) and self.tokens.min() < 0:
            raise ValueError(f"{self.tokens.min()} is not an instrument token")
        self._has_kite = bool((self.tokens < 1 << _SEGMENT_SHIFT).any())
        self._keys = _keys(self.tokens)
        order = self._keys.argsort().astype(np.int32)
        ordered = self._keys[order]
        twice = order[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"instrument token {self.tokens[twice[0]]} appears twice")

        pages = ordered >> _SEGMENT_SHIFT
        self.decimals = decimals_of(self.tokens)
        self.tradable = segments_of(self.tokens) != ExchangeSegment.IDX_I
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
        self._table[self._keys[direct] + self._shift[self._keys[direct] >> _SEGMENT_SHIFT]] = direct
        self._searched = order[searched]
        self._searched_keys = ordered[searched]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Memory of all look-up tables, in bytes."""
        tables = {id(table): table.nbytes for table in vars(self).values() if isinstance(table, np.ndarray)}
        return sum(tables.values())

    def lookup(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """Index of each token, -1 where it is unknown. Tokens are not negative."""
        if not len(self.tokens):
            return np.full(len(tokens), -1, np.int32)
        keys = _keys(tokens) if self._has_kite else tokens
        slot = self._shift.take(keys >> _SEGMENT_SHIFT, mode="clip") + keys
        index = self._table.take(slot, mode="clip")
        missing = self._keys.take(index) != keys
        if np.count_nonzero(missing):
            index[missing] = self._search(keys[missing])
        return index

    def _search(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        if not len(self._searched):
            return np.full(len(keys), -1, np.int32)
        near = self._searched_keys.searchsorted(keys)
        np.minimum(near, len(self._searched) - 1, out=near)
        return np.where(self._searched_keys[near] == keys, self._searched[near], np.int32(-1))
