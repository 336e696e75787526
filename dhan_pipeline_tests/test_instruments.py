import numpy as np
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.instruments import (
    KITE_SEGMENTS,
    ExchangeSegment,
    InstrumentIndex,
    KiteSegment,
    decimals_of,
    dhan_tokens,
    exchange_segments,
    generate_instrument_token,
    make_kite_token,
    segment_of,
    segments_of,
    source_of,
    split_instrument_token,
    split_kite_token,
)

NIFTY = generate_instrument_token("IDX_I", 13)
ABB = generate_instrument_token("NSE_EQ", 13)
USDINR = generate_instrument_token("NSE_CURRENCY", 1)
KITE_RELIANCE = 738561


@pytest.mark.parametrize("segment", list(ExchangeSegment))
@pytest.mark.parametrize("security_id", [0, 13, 2_100_000, 2**32 - 1])
def test_a_token_gives_back_its_segment_and_id(segment: ExchangeSegment, security_id: int) -> None:
    token = generate_instrument_token(segment, security_id)
    assert split_instrument_token(token) == (segment, security_id)
    assert token > 2**32
    assert dhan_tokens(np.array([segment]), np.array([security_id], np.uint32)).tolist() == [token]


def test_the_same_id_in_two_segments_makes_two_instruments() -> None:
    index = InstrumentIndex([NIFTY, ABB])
    assert index.lookup(np.array([ABB, NIFTY])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("number", "error"), [(738561, "not a Dhan"), (-1, "not a Dhan"), ((1 << 40) + (6 << 32), "6 is not a valid")]
)
def test_a_number_that_is_no_dhan_token_is_not_split(number: int, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        split_instrument_token(number)


def test_what_is_not_in_the_index_is_unknown() -> None:
    index = InstrumentIndex([NIFTY, ABB])
    below, above = generate_instrument_token("NSE_EQ", 12), generate_instrument_token("NSE_EQ", 14)
    highest = 2**63 - 1
    other_segment = generate_instrument_token("BSE_FNO", 13)
    found = index.lookup(np.array([ABB, below, above, 0, 13, highest, other_segment, 2**40 + 2**36]))
    assert found.tolist() == [1, *[-1] * 7]


def test_an_empty_index_knows_nothing() -> None:
    index = InstrumentIndex([])
    assert len(index) == 0
    assert index.lookup(np.array([NIFTY, 0])).tolist() == [-1, -1]
    assert index.lookup(np.array([], np.int64)).tolist() == []


def test_tokens_of_two_feeds_stand_side_by_side() -> None:
    index = InstrumentIndex([KITE_RELIANCE, NIFTY, 2**32 - 1])
    assert index.lookup(np.array([NIFTY, 2**32 - 1, KITE_RELIANCE, 738562])).tolist() == [1, 2, 0, -1]


def test_currency_has_four_decimals_and_an_index_is_not_traded() -> None:
    index = InstrumentIndex([NIFTY, ABB, USDINR])
    assert index.decimals.tolist() == [2, 2, 4]
    assert index.scale.tolist() == [100.0, 100.0, 10_000.0]
    assert index.tradable.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("token", "segment", "exchange_token"),
    [
        (738561, KiteSegment.NSE, 2885),
        (256265, KiteSegment.INDICES, 1001),
        (265, KiteSegment.INDICES, 1),
        (128083204, KiteSegment.BSE, 500325),
        (2**32 - 256 + 12, KiteSegment.NCO, 2**24 - 1),
    ],
)
def test_a_token_of_kite_is_its_own_number_and_says_its_segment(
    token: int, segment: KiteSegment, exchange_token: int
) -> None:
    assert split_kite_token(token) == (segment, exchange_token)
    assert make_kite_token(segment, exchange_token) == token
    assert (source_of(token), source_of(NIFTY)) == ("kite", "dhan")
    assert segment_of(token) is KITE_SEGMENTS[segment]


@pytest.mark.parametrize(("number", "error"), [(NIFTY, "not a Kite"), (-1, "not a Kite"), (256 + 10, "10 is not a")])
def test_a_number_that_is_no_token_of_kite_is_not_split(number: int, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        split_kite_token(number)
    with pytest.raises(ValueError, match="24 bits"):
        make_kite_token(KiteSegment.NSE, 1 << 24)


def test_segments_and_decimals_of_many_tokens_are_those_of_each(conn: connection) -> None:
    kite = [make_kite_token(segment, number) for segment in KiteSegment for number in (1, 2885, 2**24 - 1)]
    dhan = [generate_instrument_token(segment, number) for segment in ExchangeSegment for number in (1, 2**32 - 1)]
    tokens = np.array([*kite, *dhan])
    found = [segment_of(token) for token in tokens.tolist()]
    assert segments_of(tokens).tolist() == found
    assert exchange_segments(tokens) == {*found}
    currencies = (ExchangeSegment.NSE_CURRENCY, ExchangeSegment.BSE_CURRENCY)
    assert decimals_of(tokens).tolist() == [4 if segment in currencies else 2 for segment in found]
    assert segments_of(np.array([10, 2**39, 2**50])).tolist() == [255, 255, 255]
    assert exchange_segments([10, tokens[0]]) == {found[0]}
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT array_agg(exchange_segment_of(token) ORDER BY at), array_agg(is_index(token) ORDER BY at) "
            "FROM unnest(%s::bigint[]) WITH ORDINALITY AS tokens (token, at)",
            (tokens.tolist(),),
        )
        assert cursor.fetchone() == (found, [segment == ExchangeSegment.IDX_I for segment in found])
        cursor.execute("SELECT exchange_segment_of(266), is_index(266)")
        assert cursor.fetchone() == (None, False)


def test_kite_s_instruments_are_found_by_tables_too() -> None:
    rng = np.random.default_rng(3)
    spans = {KiteSegment.NSE: (60_000, 9_000), KiteSegment.NFO: (200_000, 90_000), KiteSegment.BSE: (1_000_000, 12_000)}
    tokens = np.concatenate(
        [rng.choice(highest, count, replace=False) << 8 | segment for segment, (highest, count) in spans.items()]
    )
    rng.shuffle(tokens)
    index = InstrumentIndex(tokens)
    assert index.nbytes < 20_000_000
    assert np.array_equal(index.lookup(tokens), np.arange(len(tokens)))
    assert index.lookup(np.setdiff1d(tokens + 256, tokens)).max() == -1


def test_a_currency_of_kite_s_has_four_decimals_and_its_indices_are_not_traded() -> None:
    index = InstrumentIndex([256265, KITE_RELIANCE, make_kite_token(KiteSegment.CDS, 1)])
    assert index.decimals.tolist() == [2, 2, 4]
    assert index.tradable.tolist() == [False, True, True]


@pytest.mark.parametrize(("tokens", "error"), [([ABB, NIFTY, ABB], "appears twice"), ([-1], "not an instrument token")])
def test_impossible_tables_are_refused(tokens: list[int], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        InstrumentIndex(tokens)


def test_a_segment_whose_ids_lie_far_apart_is_searched() -> None:
    rng = np.random.default_rng(1)
    far = dhan_tokens(np.full(1000, ExchangeSegment.BSE_EQ), rng.choice(2**32, 1000, replace=False))
    near = dhan_tokens(np.full(1000, ExchangeSegment.NSE_EQ), rng.choice(30_000, 1000, replace=False))
    nobodys = (1 << 50) + np.arange(10)
    tokens = rng.permutation(np.concatenate((far, near, nobodys)))
    index = InstrumentIndex(tokens)
    assert index.nbytes < 1_000_000
    assert index.lookup(tokens).tolist() == list(range(len(tokens)))
    assert index.lookup(np.setdiff1d(tokens + 1, tokens)).max() == -1


def test_a_master_of_full_size_takes_less_than_20_megabytes() -> None:
    rng = np.random.default_rng(2)
    spans = {
        ExchangeSegment.IDX_I: (1_000, 200),
        ExchangeSegment.NSE_EQ: (60_000, 9_000),
        ExchangeSegment.NSE_FNO: (200_000, 98_800),
        ExchangeSegment.NSE_CURRENCY: (30_000, 14_000),
        ExchangeSegment.BSE_EQ: (1_000_000, 12_000),
        ExchangeSegment.MCX_COMM: (600_000, 20_000),
        ExchangeSegment.BSE_CURRENCY: (20_000, 4_000),
        ExchangeSegment.BSE_FNO: (2_100_000, 70_000),
    }
    tokens = np.concatenate(
        [
            dhan_tokens(np.full(count, segment), rng.choice(highest, count, replace=False))
            for segment, (highest, count) in spans.items()
        ]
    )
    rng.shuffle(tokens)
    index = InstrumentIndex(tokens)
    assert len(index) == 228_000
    assert index.nbytes < 20_000_000
    assert np.array_equal(index.lookup(tokens), np.arange(len(tokens)))
    assert index.lookup(np.setdiff1d(tokens + 1, tokens)).max() == -1
