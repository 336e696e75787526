"""Which of Kite's tokens is which of Dhan's, on the simulated exchange.

Both brokers number what the exchange lists as the exchange does; an index has a number of each broker's own.
"""

from dhan_pipeline.instruments import (
    KITE_SEGMENTS,
    ExchangeSegment,
    KiteSegment,
    generate_instrument_token,
    make_kite_token,
    split_instrument_token,
    split_kite_token,
    token_of,
)

#: Kite's number of an index by Dhan's: NIFTY, BANKNIFTY, SENSEX. Those of others are made up.
_INDICES = {13: 1001, 25: 1016, 51: 1}
_MADE_UP = 1_000_000
_INDICES_OF_KITE = {kite: dhan for dhan, kite in _INDICES.items()}


def kite_token_of(dhan_token: int) -> int:
    """Kite's token of the instrument. Raises ValueError for one whose number Kite's tokens do not hold."""
    segment, security_id = split_instrument_token(dhan_token)
    if segment is ExchangeSegment.IDX_I:
        return make_kite_token(KiteSegment.INDICES, _INDICES.get(security_id, _MADE_UP + security_id))
    return token_of("kite", segment, security_id)


def dhan_token_of(kite_token: int) -> int:
    """Dhan's token of the instrument. Raises ValueError for a number that is no token of Kite's."""
    segment, number = split_kite_token(kite_token)
    if segment is KiteSegment.INDICES:
        return generate_instrument_token(ExchangeSegment.IDX_I, _INDICES_OF_KITE.get(number, number - _MADE_UP))
    return generate_instrument_token(KITE_SEGMENTS[segment], number)
