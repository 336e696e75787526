import pytest

from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of, kite_token_of
from dhan_pipeline.feeds.simulator.exchanges import make_exchanges
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sources import Source

RELIANCE, NIFTY = 738561, 256265


@pytest.mark.parametrize("sources", [("dhan",), ("kite",), ("dhan", "kite"), ("kite", "dhan")])
def test_each_source_has_an_exchange_and_all_of_them_one_market(sources: tuple[Source, ...]) -> None:
    made = make_exchanges(sources, [RELIANCE, dhan_token_of(NIFTY)], rate=5, seed=3, options={"kite": {"record": True}})
    assert tuple(made) == sources
    assert [exchange.source for exchange in made.values()] == list(sources)
    (trading,) = {exchange.trading for exchange in made.values()}
    assert trading.market.tokens.tolist() == [dhan_token_of(RELIANCE), dhan_token_of(NIFTY)]
    assert len(trading.audiences) == len(sources)
    assert all(exchange.rate == 5 for exchange in made.values())
    assert list(trading.market.step(5)) == []  # nothing trades before somebody is subscribed


def test_an_instrument_whose_number_kites_tokens_do_not_hold_is_refused() -> None:
    large = generate_instrument_token(ExchangeSegment.NSE_FNO, 1 << 24)
    assert make_exchanges(["dhan"], [large], rate=1)
    with pytest.raises(ValueError, match="16777216 does not fit 24 bits"):
        make_exchanges(["dhan", "kite"], [large], rate=1)
    with pytest.raises(ValueError, match="24 bits"):
        kite_token_of(large)
