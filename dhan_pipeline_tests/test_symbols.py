from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.symbols import Reading, read_symbol, write_symbol

ON = date(2026, 11, 20)


def said(text: str, on: date = ON) -> list[tuple[Any, ...]]:
    """Of each reading as a derivative: underlying, first and last day of expiry, strike, CE or PE."""
    return [
        (r.symbol, str(r.first), str(r.last), *((r.strike, r.option_type) if r.kind == "option" else ()))
        for r in read_symbol(text, on, "dhan")
        if r.kind in ("future", "option")
    ]


NOVEMBER = ("2026-11-01", "2026-11-30")
THE_26TH = ("2026-11-26", "2026-11-26")


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("NIFTY 26NOV 26000 CE", [("NIFTY", *THE_26TH, 26000, "CE"), ("NIFTY", *NOVEMBER, 26000, "CE")]),
        ("nifty 26 nov 26000 call", [("NIFTY", *THE_26TH, 26000, "CE"), ("NIFTY", *NOVEMBER, 26000, "CE")]),
        ("NIFTY 2026-11-26 26000 PE", [("NIFTY", *THE_26TH, 26000, "PE")]),
        ("NIFTY 26NOV2026 26000 PUT", [("NIFTY", *THE_26TH, 26000, "PE")]),
        ("NIFTY NOV 26 26000 CE", [("NIFTY", *NOVEMBER, 26000, "CE")]),
        ("NIFTY-Nov2026-26000-CE", [("NIFTY", *NOVEMBER, 26000, "CE")]),
        ("BAJAJ-AUTO-Nov2026-FUT", [("BAJAJ-AUTO", *NOVEMBER)]),
        ("CRUDEOIL-18Dec2026-FUT", [("CRUDEOIL", "2026-12-18", "2026-12-18")]),
        ("USDINR-27Nov2026-88.25-CE", [("USDINR", "2026-11-27", "2026-11-27", 88.25, "CE")]),
        ("NIFTY24NOV2626000CE", [("NIFTY", "2024-11-01", "2024-11-30", 2626000, "CE")]),
        ("NIFTY26N2426000CE", [("NIFTY", "2026-11-24", "2026-11-24", 26000, "CE")]),
        ("NIFTYNXT5026NOVFUT", [("NIFTYNXT50", *NOVEMBER), ("NIFTYNXT50", *THE_26TH)]),
        ("RELIANCE FUT", [("RELIANCE", "2026-11-20", "9999-12-31")]),
        ("NIFTY 26000CE", [("NIFTY", "2026-11-20", "9999-12-31", 26000, "CE")]),
        ("NIFTY JAN FUT", [("NIFTY", "2027-01-01", "2027-01-31")]),
        ("NIFTY 31FEB FUT", [("NIFTY", "2031-02-01", "2031-02-28")]),
        ("NIFTY NOV 0 CE", []),
        ("INDIA VIX", []),
    ],
)
def test_derivatives_are_read_as_traders_and_exchanges_write_them(text: str, readings: list[tuple[Any, ...]]) -> None:
    assert said(text)[: len(readings)] == readings
    assert bool(said(text)) == bool(readings)


def test_where_an_exchange_writes_no_space_the_year_stands_before_the_month() -> None:
    assert said("NIFTY26NOV26000CE")[:2] == [("NIFTY", *NOVEMBER, 26000, "CE"), ("NIFTY", *THE_26TH, 26000, "CE")]
    assert ("NIFTY", "2026-11-24", "2026-11-24", 26000, "CE") in said("NIFTY24NOV2626000CE")


def test_a_month_without_a_year_is_the_next_one_that_has_not_passed() -> None:
    assert said("NIFTY NOV FUT") == [("NIFTY", "2026-11-20", "2026-11-30"), ("NIFTY", "2027-11-01", "2027-11-30")]
    assert said("NIFTY OCT FUT") == [("NIFTY", "2027-10-01", "2027-10-31")]
    assert said("NIFTY 19NOV FUT")[0] == ("NIFTY", "2027-11-19", "2027-11-19")


def test_every_text_may_be_a_plain_name() -> None:
    assert read_symbol(" india  Vix ", ON, "dhan") == [Reading("name", "INDIA VIX", first=ON)]
    assert read_symbol("NIFTY FUT", ON, "dhan")[-1] == Reading("name", "NIFTY FUT", first=ON)
    assert read_symbol("ELECTCAST-W1", ON, "dhan")[1] == Reading("name", "ELECTCAST", series="W1", first=ON)


def test_what_stands_before_a_colon_is_an_exchange_or_a_segment() -> None:
    assert read_symbol("bse: reliance", ON, "dhan") == [Reading("name", "RELIANCE", exchange="BSE", first=ON)]
    assert {(r.exchange, r.segment) for r in read_symbol("NFO:NIFTY FUT", ON, "dhan")} == {(None, "NSE_FNO")}
    assert read_symbol("A:B", ON, "dhan") == [Reading("name", "A:B", first=ON)]


def test_digits_are_a_token_and_after_a_colon_a_security_id() -> None:
    assert read_symbol("738561", ON, "dhan")[0].token == 738561
    assert read_symbol("NSE_FNO:49081", ON, "dhan")[0].token == 1 << 40 | 2 << 32 | 49081
    assert read_symbol("BSE:500325", ON, "dhan")[0].token == 1 << 40 | 4 << 32 | 500325
    assert read_symbol("BSE:99999999999", ON, "dhan")[0].token == -1, "no security id has more than 32 bits"


@pytest.mark.parametrize("text", ["NIFTY DEC FUT", "NIFTY 31DEC FUT"])
def test_the_last_day_that_there_is_has_no_next_year(text: str) -> None:
    assert read_symbol(text, date.max, "dhan")[0].last == date.max


@pytest.mark.parametrize("text", ["", "  ", "NSE:", "NSE: ", "NIF\0TY", "NIFTY \udce9 FUT", "NSE:\x1b"])
def test_nothing_is_read_from_nothing(text: str) -> None:
    assert read_symbol(text, ON, "dhan") == []


@given(
    st.sampled_from(["NIFTY", "BAJAJ-AUTO", "M&M", "360ONE", "NIFTYNXT50"]),
    st.dates(date(2020, 1, 1), date(2099, 12, 31)),
    st.one_of(st.none(), st.integers(1, 10_000_000).map(lambda n: n / 100)),
)
def test_what_is_written_is_read_back_in_one_way(symbol: str, expiry: date, strike: float | None) -> None:
    text = write_symbol(symbol, expiry, strike, None if strike is None else "PE")
    reading, _ = read_symbol(text, ON, "dhan")
    assert (reading.symbol, reading.first, reading.last, reading.strike) == (symbol, expiry, expiry, strike)
    assert reading.option_type == (None if strike is None else "PE")


@given(st.text(st.sampled_from("NIFTY26NOVCEPUTFUT:- .0"), max_size=30))
def test_any_text_can_be_read(text: str) -> None:
    for reading in read_symbol(text, ON, "dhan"):
        assert reading.first <= reading.last
