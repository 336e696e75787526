"""Which instruments of two brokers are the same, from real rows of `instruments`."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import ExchangeSegment, KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.instruments import load_tokens, sync_to_database
from dhan_pipeline.store.pairs import Unpaired, pair_instruments

AT_NS = parse_hour_key("2026-11-20T10:00")
EXPIRY = date(2026, 11, 24)

KITE_SEGMENTS = {
    ExchangeSegment.NSE_EQ: KiteSegment.NSE,
    ExchangeSegment.NSE_FNO: KiteSegment.NFO,
    ExchangeSegment.NSE_CURRENCY: KiteSegment.CDS,
    ExchangeSegment.BSE_EQ: KiteSegment.BSE,
    ExchangeSegment.BSE_FNO: KiteSegment.BFO,
    ExchangeSegment.MCX_COMM: KiteSegment.MCX,
    ExchangeSegment.IDX_I: KiteSegment.INDICES,
}


class Masters:
    """Rows of `instruments` as either broker's sync writes them."""

    def __init__(self, conn: connection) -> None:
        self.conn = conn
        self.tokens: list[int] = []

    def add(self, token: int, **facts: Any) -> int:
        facts = {"instrument_token": token, "exchange": "NSE", **facts}
        with self.conn, self.conn.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO instruments ({', '.join(facts)}) VALUES ({', '.join(['%s'] * len(facts))})",
                list(facts.values()),
            )
        self.tokens.append(token)
        return token

    def dhan(self, segment: ExchangeSegment, number: int, symbol: str, **facts: Any) -> int:
        token = generate_instrument_token(segment, number)
        return self.add(token, source="dhan", exchange_segment=segment.name, trading_symbol=symbol, **facts)

    def kite(self, segment: ExchangeSegment, number: int, symbol: str, **facts: Any) -> int:
        token = make_kite_token(KITE_SEGMENTS[segment], number)
        return self.add(token, source="kite", exchange_segment=segment.name, trading_symbol=symbol, **facts)

    def pairs(self) -> list[tuple[int, int]]:
        return [(pair.dhan_token, pair.kite_token) for pair in pair_instruments(self.conn, self.tokens, AT_NS).pairs]


@pytest.fixture
def masters(conn: connection) -> Masters:
    return Masters(conn)


def test_shares_are_paired_by_exchange_and_symbol(masters: Masters) -> None:
    nse = masters.dhan(ExchangeSegment.NSE_EQ, 2885, "RELIANCE", series="EQ", tick_size=0.1)
    bse = masters.dhan(ExchangeSegment.BSE_EQ, 500325, "RELIANCE", series="A", exchange="BSE")
    kite_bse = masters.kite(ExchangeSegment.BSE_EQ, 500325, "RELIANCE", exchange="BSE", tick_size=0.05)
    kite_nse = masters.kite(ExchangeSegment.NSE_EQ, 2885, "RELIANCE", series="EQ", tick_size=0.05)
    pairing = pair_instruments(masters.conn, masters.tokens, AT_NS)
    assert [(pair.dhan_token, pair.kite_token) for pair in pairing.pairs] == [(nse, kite_nse), (bse, kite_bse)]
    assert [(pair.symbol, pair.tick_size) for pair in pairing.pairs] == [("RELIANCE", 0.1), ("RELIANCE", 0.05)]
    assert pairing.unpaired == []


def test_a_share_and_its_warrant_are_told_apart_by_their_series(masters: Masters) -> None:
    share = masters.dhan(ExchangeSegment.NSE_EQ, 928, "ELECTCAST", series="EQ")
    warrant = masters.dhan(ExchangeSegment.NSE_EQ, 18116, "ELECTCAST", series="W1")
    dashed = masters.dhan(ExchangeSegment.NSE_EQ, 16669, "BAJAJ-AUTO", series="EQ")
    kite_warrant = masters.kite(ExchangeSegment.NSE_EQ, 18116, "ELECTCAST-W1", series="W1")
    kite_share = masters.kite(ExchangeSegment.NSE_EQ, 928, "ELECTCAST")
    kite_dashed = masters.kite(ExchangeSegment.NSE_EQ, 16669, "BAJAJ-AUTO", series="EQ")
    assert masters.pairs() == [(share, kite_share), (dashed, kite_dashed), (warrant, kite_warrant)]


def test_derivatives_are_paired_by_what_they_are_whatever_they_are_called(masters: Masters) -> None:
    contract = {"underlying_symbol": "NIFTY", "expiry": EXPIRY}
    option = {**contract, "strike": 26000, "option_type": "CE"}
    future = masters.dhan(ExchangeSegment.NSE_FNO, 1, "NIFTY-Nov2026-FUT", instrument_type="FUTIDX", **contract)
    call = masters.dhan(ExchangeSegment.NSE_FNO, 2, "NIFTY-Nov2026-26000-CE", instrument_type="OPTIDX", **option)
    put = masters.dhan(ExchangeSegment.NSE_FNO, 3, "NIFTY-Nov2026-26000-PE", **{**option, "option_type": "PE"})
    other = masters.dhan(ExchangeSegment.NSE_FNO, 4, "NIFTY-Nov2026-26050-CE", **{**option, "strike": 26050})
    kite_future = masters.kite(ExchangeSegment.NSE_FNO, 1, "NIFTY26NOVFUT", instrument_type="FUT", **contract)
    kite_call = masters.kite(ExchangeSegment.NSE_FNO, 2, "NIFTY26NOV26000CE", instrument_type="CE", **option)
    later = masters.kite(ExchangeSegment.NSE_FNO, 5, "NIFTY26D0126000CE", **{**option, "expiry": date(2026, 12, 1)})
    assert masters.pairs() == [(future, kite_future), (call, kite_call)]
    left = pair_instruments(masters.conn, masters.tokens, AT_NS).unpaired
    assert left == [
        Unpaired("kite", later, "NSE_FNO", "NIFTY26D0126000CE"),
        Unpaired("dhan", put, "NSE_FNO", "NIFTY-Nov2026-26000-PE"),
        Unpaired("dhan", other, "NSE_FNO", "NIFTY-Nov2026-26050-CE"),
    ]


def test_rows_of_a_system_that_knew_no_option_types_are_paired_too(masters: Masters) -> None:
    contract = {"underlying_symbol": "NIFTY", "expiry": EXPIRY}
    future = masters.dhan(ExchangeSegment.NSE_FNO, 1, "NIFTY-Nov2026-FUT", **contract)
    call = masters.dhan(
        ExchangeSegment.NSE_FNO, 2, "NIFTY-Nov2026-26000-CE", strike=26000, option_type="CE", **contract
    )
    old = {"exchange": "NFO", "name": "NIFTY", "expiry": EXPIRY}
    kite_future = make_kite_token(KiteSegment.NFO, 1)
    kite_call = make_kite_token(KiteSegment.NFO, 2)
    masters.add(kite_future, trading_symbol="NIFTY26NOVFUT", instrument_type="FUT", strike=0, **old)
    masters.add(kite_call, trading_symbol="NIFTY26NOV26000CE", instrument_type="CE", strike=26000, **old)
    assert masters.pairs() == [(future, kite_future), (call, kite_call)]


def test_indices_are_paired_by_exchange_and_name(masters: Masters) -> None:
    names = {"NIFTY": "NIFTY 50", "BANKNIFTY": "NIFTY BANK", "NIFTYIT": "NIFTY IT", "INDIA VIX": "INDIA VIX"}
    names |= {"NIFTY SMALLCAP 250": "NIFTY SMLCAP 250", "Nifty Housing": "NIFTY HOUSING"}
    expected = [
        (
            masters.dhan(ExchangeSegment.IDX_I, number, name, instrument_type="INDEX"),
            masters.kite(ExchangeSegment.IDX_I, 1000 - number, kite_name),
        )
        for number, (name, kite_name) in enumerate(names.items(), 13)
    ]
    sensex = masters.dhan(ExchangeSegment.IDX_I, 51, "SENSEX", exchange="BSE")
    masters.kite(ExchangeSegment.IDX_I, 900, "SENSEX", exchange="NSE")
    assert masters.pairs() == expected
    kite_sensex = masters.kite(ExchangeSegment.IDX_I, 1, "SENSEX", exchange="BSE")
    assert masters.pairs() == [*expected, (sensex, kite_sensex)]


def test_where_a_symbol_means_several_the_exchanges_numbers_decide_but_not_of_indices(masters: Masters) -> None:
    for number in (544000, 544001):
        masters.dhan(ExchangeSegment.BSE_EQ, number, "TWICE", exchange="BSE")
    for number in (99, 846):
        masters.dhan(ExchangeSegment.IDX_I, number, "CAPINS", exchange="BSE")
    one = masters.kite(ExchangeSegment.BSE_EQ, 544001, "TWICE", exchange="BSE")
    masters.kite(ExchangeSegment.IDX_I, 99, "CAPINS", exchange="BSE")
    assert masters.pairs() == [(generate_instrument_token(ExchangeSegment.BSE_EQ, 544001), one)]


def test_commodities_of_nse_are_not_those_of_mcx(masters: Masters) -> None:
    contract = {"underlying_symbol": "GOLD", "expiry": EXPIRY}
    dhan = masters.dhan(ExchangeSegment.MCX_COMM, 1, "GOLD-24Nov2026-FUT", exchange="MCX", **contract)
    nco = make_kite_token(KiteSegment.NCO, 1)
    masters.add(nco, source="kite", trading_symbol="GOLD26NOVFUT", **{**contract, "exchange": "NCO"})
    assert masters.pairs() == []
    mcx = masters.kite(ExchangeSegment.MCX_COMM, 2, "GOLD26NOVFUT", exchange="MCX", **contract)
    assert masters.pairs() == [(dhan, mcx)]
    [left] = pair_instruments(masters.conn, masters.tokens, AT_NS).unpaired
    assert (left.instrument_token, left.segment) == (nco, "NCO")


def test_a_recycled_id_is_what_it_was_in_that_hour(masters: Masters) -> None:
    dhan = masters.dhan(ExchangeSegment.NSE_EQ, 7, "NEW", series="EQ")
    old, new = (masters.kite(ExchangeSegment.NSE_EQ, number, symbol) for number, symbol in ((7, "OLD"), (8, "NEW")))
    with masters.conn, masters.conn.cursor() as cursor:
        for symbol, since, until in (("OLD", "2026-11-01", "2026-11-21"), ("NEW", "2026-11-21", None)):
            cursor.execute(
                "INSERT INTO instrument_versions (instrument_token, valid_from, valid_to, source, exchange, "
                "exchange_segment, trading_symbol, series) VALUES (%s, %s, %s, 'dhan', 'NSE', 'NSE_EQ', %s, 'EQ')",
                (dhan, since, until, symbol),
            )
    assert masters.pairs() == [(dhan, old)]
    later = pair_instruments(masters.conn, masters.tokens, parse_hour_key("2026-11-23T10:00"))
    assert [pair.kite_token for pair in later.pairs] == [new]


def test_tokens_that_nobody_knows_are_left_over(masters: Masters) -> None:
    unknown = generate_instrument_token(ExchangeSegment.NSE_EQ, 1)
    strange = masters.add(0xFF, trading_symbol="STRANGE")
    assert pair_instruments(masters.conn, [unknown, strange], AT_NS).unpaired == [
        Unpaired("kite", strange, "", "STRANGE"),
        Unpaired("dhan", unknown, "", str(unknown)),
    ]


def test_everything_that_both_masters_list_is_paired_with_itself(
    conn: connection, database_url: str, tmp_path: Path
) -> None:
    write_synthetic_master(tmp_path / "dhan.csv", 2_000, on=date(2026, 11, 20))
    write_synthetic_dump(tmp_path / "kite.csv", tmp_path / "dhan.csv")
    sync_to_database(database_url, parse_dhan_csv(tmp_path / "dhan.csv"), source="dhan")
    sync_to_database(database_url, parse_kite_csv(tmp_path / "kite.csv"), source="kite")
    dhan = load_tokens(conn, "dhan").tolist()
    pairing = pair_instruments(conn, [*dhan, *load_tokens(conn, "kite").tolist()], AT_NS)
    assert all(pair.kite_token == kite_token_of(pair.dhan_token) for pair in pairing.pairs)
    # Two indices have one name.
    assert {one.symbol for one in pairing.unpaired} == {"CAPINS"}
    assert len(pairing.pairs) == len(dhan) - 2
