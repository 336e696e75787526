from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from dhan_pipeline.chains import Chain
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Resolution, Subscription, SubscriptionError, read_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline.windows import around, move_windows, read_chains, write_resolution

NIFTY = generate_instrument_token("IDX_I", 13)
INDEX = Subscription(NIFTY, Mode.QUOTE, "NIFTY", NIFTY)
STRIKES = (24_000.0, 24_050.0, 24_100.5, 24_150.0)
FIXED = Subscription(generate_instrument_token("NSE_FNO", 106), Mode.TICKER, "24150 CE")


def make_chain(
    mode: Mode = Mode.FULL, around_spot: int = 1, expiry: date = date(2026, 11, 26), first: int = 0
) -> Chain:
    options = tuple(
        tuple(
            (generate_instrument_token("NSE_FNO", 100 + first + 2 * at + put), f"{strike:g} {kind}")
            for put, kind in enumerate(("CE", "PE"))
        )
        for at, strike in enumerate(STRIKES)
    )
    return Chain(INDEX.instrument_token, around_spot, mode, expiry, STRIKES, options)


CHAIN = make_chain()


def listed(chain: Chain, centre: int) -> list[Subscription]:
    window = chain.window(centre)
    return [INDEX, *(Subscription(token, chain.mode, symbol, chain.underlying_token) for token, symbol in window)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_source="dhan", data_dir=tmp_path)


def symbols(subscriptions: list[Subscription]) -> set[str]:
    return {each.symbol for each in subscriptions}


def test_a_list_and_its_chains_read_back_the_same(settings: Settings) -> None:
    chains = [CHAIN, make_chain(Mode.QUOTE, 3, date(2026, 12, 3), first=50)]
    subscriptions = listed(CHAIN, 0)
    write_resolution(settings, Resolution(subscriptions, [], chains))
    assert read_chains(settings.chains_path) == chains
    assert read_subscriptions(settings.subscriptions_path, "dhan") == subscriptions


@pytest.mark.parametrize("text", [None, "", "chain,strike\n1,x\n", "\x00"])
def test_chains_that_are_not_there_or_cannot_be_read_are_none(settings: Settings, text: str | None) -> None:
    if text is not None:
        settings.chains_path.write_text(text)
    assert read_chains(settings.chains_path) == []


def test_a_window_that_moves_leaves_what_is_there_for_another_reason(settings: Settings) -> None:
    subscriptions = [INDEX, FIXED, *listed(CHAIN, 1)[1:]]
    write_resolution(settings, Resolution(subscriptions, [], [CHAIN]))
    assert not move_windows(settings, [CHAIN], {CHAIN: 1})
    assert move_windows(settings, [CHAIN], {CHAIN: 2})
    moved = read_subscriptions(settings.subscriptions_path, "dhan")
    assert moved[:2] == [INDEX, FIXED]  # in the mode that was given to it
    assert symbols(moved) == {"NIFTY", *(f"{strike:g} {kind}" for strike in STRIKES[1:] for kind in ("CE", "PE"))}
    assert move_windows(settings, [CHAIN], {CHAIN: 0})
    assert FIXED in read_subscriptions(settings.subscriptions_path, "dhan")


def test_where_windows_overlap_the_first_chain_decides_the_mode() -> None:
    narrow, wide = CHAIN, make_chain(Mode.TICKER, 3)
    moved = around(listed(wide, 1), [narrow, wide], {narrow: 0, wide: 0})
    assert [each.symbol for each in moved if each.mode is Mode.FULL] == [symbol for _, symbol in narrow.window(0)]
    assert len(moved) == 9


def test_a_chain_whose_price_is_not_known_keeps_its_window() -> None:
    other = make_chain(expiry=date(2026, 12, 3), first=50)
    subscriptions = [*listed(CHAIN, 0), *listed(other, 0)[1:]]
    moved = around(subscriptions, [CHAIN, other], {CHAIN: 2})
    assert {s.instrument_token for s in moved if s.instrument_token in dict(sum(other.options, ()))} == {
        token for token, _ in other.window(0)
    }


def test_a_window_moves_on_from_where_all_its_options_are_there_for_another_reason() -> None:
    stay = [INDEX, *(replace(each, follows=None) for each in listed(CHAIN, 0)[1:])]
    assert around(stay, [CHAIN], {CHAIN: 0}) == stay
    moved = around(stay, [CHAIN], {CHAIN: 2})
    assert symbols(moved) == {"NIFTY", *(f"{strike:g} {kind}" for strike in STRIKES for kind in ("CE", "PE"))}
    assert around(moved, [CHAIN], {CHAIN: 0}) == stay


def test_chains_of_another_list_add_nothing() -> None:
    by_hand = [replace(each, follows=None) for each in listed(CHAIN, 0)]
    assert around(by_hand, [CHAIN], {CHAIN: 2}) == by_hand


def test_a_list_that_would_be_too_long_stays_as_it_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhan_pipeline.windows.MAX_SUBSCRIPTIONS", {"dhan": 5})
    write_resolution(settings, Resolution(listed(CHAIN, 0), [], [CHAIN]))
    before = settings.subscriptions_path.read_text()
    with pytest.raises(SubscriptionError, match="7 instruments are over 5"):
        move_windows(settings, [CHAIN], {CHAIN: 1})
    assert settings.subscriptions_path.read_text() == before
