import pytest

from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of, kite_token_of
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token

SEGMENTS = [*ExchangeSegment]


@pytest.mark.parametrize(
    ("segment", "security_id", "kite"),
    [("NSE_EQ", 2885, 738561), ("IDX_I", 13, 256265), ("IDX_I", 25, 260105), ("IDX_I", 51, 265)],
)
def test_well_known_instruments_have_their_real_tokens(segment: str, security_id: int, kite: int) -> None:
    assert kite_token_of(generate_instrument_token(segment, security_id)) == kite


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("security_id", [1, 21, 2_100_000])
def test_there_and_back_is_the_same_instrument(segment: ExchangeSegment, security_id: int) -> None:
    token = generate_instrument_token(segment, security_id)
    assert dhan_token_of(kite_token_of(token)) == token
