from datetime import date

import pytest

from dhan_pipeline.chains import Chain
from dhan_pipeline.ticks import Mode


def chain(*strikes: float, around_spot: int = 1) -> Chain:
    options = tuple(((2 * at, f"{strike:g} CE"), (2 * at + 1, f"{strike:g} PE")) for at, strike in enumerate(strikes))
    return Chain(13, around_spot, Mode.FULL, date(2026, 11, 26), strikes, options)


NIFTY = chain(*range(24_000, 24_550, 50))


@pytest.mark.parametrize(
    ("spot", "strike"),
    [(24_200.0, 24_200), (24_224.0, 24_200), (24_226.0, 24_250), (1.0, 24_000), (99_999.0, 24_500), (None, 24_250)],
)
def test_the_strike_at_the_money_is_the_nearest_and_without_a_price_the_middle_one(
    spot: float | None, strike: int
) -> None:
    assert NIFTY.strikes[NIFTY.at_the_money(spot)] == strike


@pytest.mark.parametrize(
    ("spot", "strike"),
    [(24_237.0, 24_200), (24_238.0, 24_250), (24_163.0, 24_200), (24_162.0, 24_150), (24_400.0, 24_400)],
)
def test_it_is_left_once_the_price_is_well_past_the_midpoint(spot: float, strike: int) -> None:
    before = NIFTY.strikes.index(24_200)
    assert NIFTY.strikes[NIFTY.at_the_money(spot, before)] == strike


def test_a_price_that_goes_to_and_fro_about_a_midpoint_moves_nothing() -> None:
    at = NIFTY.at_the_money(24_220.0)
    for spot in (24_226.0, 24_224.0, 24_230.0, 24_215.0) * 3:
        assert NIFTY.at_the_money(spot, at) == at


def test_a_window_is_calls_and_puts_on_each_side_the_nearest_first_and_ends_where_the_chain_does() -> None:
    assert [symbol for _, symbol in NIFTY.window(2)] == [
        *("24100 CE", "24100 PE", "24050 CE", "24050 PE", "24150 CE", "24150 PE")
    ]
    assert len(NIFTY.window(0)) == 4
    assert len(chain(24_000, around_spot=20).window(0)) == 2
