"""Identity: the reversible instrument token, and the look-up tables that the hot path indexes.

Dhan's `security_id` is unique only within its exchange segment, so the token packs both above every Kite token.
"""

from enum import IntEnum
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
