from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhan_pipeline.feeds.kite.instruments_dump import InstrumentsDumpError, parse_kite_csv
from dhan_pipeline.feeds.master_csv import COLUMNS
from dhan_pipeline.instruments import KiteSegment, make_kite_token, split_kite_token

HEADER = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange"
)
INFY = "408065,1594,INFY,INFOSYS,0,,,0.05,1,EQ,NSE,NSE"
NIFTY = "256265,1001,NIFTY 50,NIFTY 50,0,,0,0,0,EQ,INDICES,NSE"
FUTURE = "5720322,22345,NIFTY15DECFUT,NIFTY,78.0,2015-12-31,,0.05,75,FUT,NFO-FUT,NFO"
CALL = "5720578,22346,NIFTY159500CE,NIFTY,23.0,2015-12-31,9500,0.05,75,CE,NFO-OPT,NFO"
#: As the documentation has it: without its exchange token.
SILVER = "645639,SILVER15DECFUT,,7800.0,2015-12-31,,1,1,FUT,MCX,MCX"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines as a CSV file."""

    def write_lines(*lines: str | bytes) -> Path:
        path = tmp_path / "dump.csv"
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        return path

    return write_lines


def changed(line: str, **values: str) -> str:
    fields = line.split(",")
    for name, value in values.items():
        fields[HEADER.split(",").index(name)] = value
    return ",".join(fields)


def only(rows: pd.DataFrame) -> dict[str, Any]:
    """The one row of a frame, without its nulls."""
    assert len(rows) == 1
    return {str(k): v for k, v in rows.iloc[0].items() if not pd.isna(v)}


def test_a_share_keeps_what_the_dump_says_and_gets_its_segment_and_series(write: Write) -> None:
    dump = parse_kite_csv(write(HEADER, INFY))
    assert (dump.layout, dump.segment_counts) == ("kite", {"NSE_EQ": 1})
    assert tuple(dump.rows.columns) == COLUMNS
    assert only(dump.rows) == {
        "instrument_token": 408065,
        "exchange_token": 1594,
        "exchange": "NSE",
        "exchange_segment": "NSE_EQ",
        "trading_symbol": "INFY",
        "name": "INFOSYS",
        "segment": "NSE",
        "instrument_type": "EQ",
        "series": "EQ",
        "tick_size": 0.05,
        "lot_size": 1,
    }


def test_an_option_has_strike_type_expiry_and_underlying(write: Write) -> None:
    row = only(parse_kite_csv(write(HEADER, CALL)).rows)
    assert (row["strike"], row["option_type"], row["underlying_symbol"]) == (9500.0, "CE", "NIFTY")
    assert (row["instrument_type"], row["segment"], row["exchange_segment"]) == ("CE", "NFO-OPT", "NSE_FNO")
    assert row["expiry"] == pd.Timestamp("2015-12-31")


def test_a_future_has_no_strike_even_where_the_dump_writes_0(write: Write) -> None:
    row = only(parse_kite_csv(write(HEADER, changed(FUTURE, strike="0.0"))).rows)
    assert not row.keys() & {"strike", "option_type", "series"}
    assert row["underlying_symbol"] == "NIFTY"


def test_an_index_is_found_by_the_name_that_its_derivatives_use(write: Write) -> None:
    bank = "260105,1016,NIFTY BANK,NIFTY BANK,0,,0,0,0,EQ,INDICES,NSE"
    metal = "263689,1030,NIFTY METAL,NIFTY METAL,0,,0,0,0,EQ,INDICES,NSE"
    rows = parse_kite_csv(write(HEADER, NIFTY, bank, metal)).rows
    assert set(rows["exchange_segment"]) == {"IDX_I"}
    assert rows["underlying_symbol"].fillna("").tolist() == ["NIFTY", "BANKNIFTY", ""]
    assert rows[["tick_size", "lot_size", "series", "expiry"]].isna().all(axis=None)


@pytest.mark.parametrize(("symbol", "series"), [("ELECTCAST-W1", "W1"), ("736KA31-SG", "SG"), ("BAJAJ-AUTO", "EQ")])
def test_the_series_stands_behind_the_symbol_on_nse(write: Write, symbol: str, series: str) -> None:
    assert only(parse_kite_csv(write(HEADER, changed(INFY, tradingsymbol=symbol))).rows)["series"] == series


def test_commodities_of_nse_are_loaded_without_a_segment_of_dhans(write: Write) -> None:
    token = 500 << 8 | 12
    line = f"{token},500,GOLD26DECFUT,GOLD,0,2026-12-05,0,1,1,FUT,NCO-FUT,NCO"
    dump = parse_kite_csv(write(HEADER, line))
    row = only(dump.rows)
    assert "exchange_segment" not in row
    assert (row["exchange"], dump.segment_counts) == ("NCO", {"MCX_COMM": 1})


def test_columns_are_found_by_name_and_others_are_not_needed(write: Write) -> None:
    names, values = HEADER.split(","), INFY.split(",")
    del names[4], values[4]
    dump = parse_kite_csv(write(",".join([*reversed(names), "new"]), ",".join([*reversed(values), "1"])))
    pd.testing.assert_frame_equal(dump.rows, parse_kite_csv(write(HEADER, INFY)).rows)


def test_the_exchanges_test_instruments_are_skipped_and_counted(write: Write) -> None:
    dump = parse_kite_csv(write(HEADER, INFY, "3775745,14749,011NSETEST,011NSETEST,0,,0,0.05,1,EQ,NSE,NSE"))
    assert dump.skipped == {"test instrument": 1}
    assert len(dump.rows) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (SILVER, "11 fields instead of 12"),
        (INFY + ",1", "13 fields instead of 12"),
        (INFY.replace("INFOSYS", '"INFOSYS'), "a quote that does not end"),
        (changed(INFY, instrument_token=""), "no instrument token of 32 bits"),
        (changed(INFY, instrument_token="-408065"), "no instrument token of 32 bits"),
        (changed(INFY, instrument_token="4294967296"), "no instrument token of 32 bits"),
        (changed(INFY, instrument_token="408074", exchange_token="1594"), "an instrument token of an unknown segment"),
        (changed(INFY, exchange_token="1595"), "an exchange token that is not the instrument token's"),
        (changed(INFY, exchange_token=""), "an exchange token that is not the instrument token's"),
        (changed(INFY, instrument_type="BOND"), "an instrument type that is none of EQ, FUT, CE, PE"),
        (changed(INFY, tradingsymbol=""), "no trading symbol"),
        (changed(INFY, tradingsymbol="NSETEST" * 100), "a field of more than 500 characters"),
        (changed(INFY, exchange=""), "no exchange"),
        (changed(INFY, lot_size="0.5"), "a lot size that is not a whole number"),
        (changed(INFY, tick_size="five"), "a tick size that is not a price"),
        (changed(CALL, expiry=""), "a derivative without expiry"),
        (changed(FUTURE, expiry=""), "a derivative without expiry"),
        (changed(CALL, expiry="31-12-2015"), "an expiry that is not a date"),
        (changed(CALL, strike="0"), "an option without strike"),
        (changed(CALL, strike="1e300"), "a strike that is not a price"),
        (NIFTY.replace("NIFTY 50", "NIFTY FIFTY"), "the same instrument token as row 2"),
    ],
)
def test_a_row_that_cannot_be_read_is_quarantined_with_its_line_and_the_rest_is_read(
    write: Write, line: str, reason: str
) -> None:
    last = "738561,2885,RELIANCE,RELIANCE INDUSTRIES,0,,0,0.1,1,EQ,NSE,NSE"
    dump = parse_kite_csv(write(HEADER, NIFTY, "", line, last))
    assert dump.rows["trading_symbol"].tolist() == ["NIFTY 50", "RELIANCE"]
    assert dump.quarantined.to_dict("records") == [{"row": 4, "reason": reason, "raw": line}]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "is not Kite's instruments dump"),
        (["a,b", "1,2"], "is not Kite's instruments dump"),
        (["SEM_EXM_EXCH_ID,SEM_SEGMENT"], "is not Kite's instruments dump"),
        ([HEADER.replace(",expiry", ""), INFY], "lacks the column expiry"),
        ([HEADER + ",expiry"], "names the column expiry more than once"),
        ([HEADER], "holds no instrument that can be read"),
        ([HEADER, SILVER], "holds no instrument that can be read"),
    ],
)
def test_a_file_that_is_no_dump_is_refused_in_one_sentence(write: Write, lines: list[str], sentence: str) -> None:
    with pytest.raises(InstrumentsDumpError, match=sentence):
        parse_kite_csv(write(*lines))


_CELLS = st.one_of(
    st.sampled_from(
        ["", "NA", "NSE", "EQ", "CE", "2026-09-29", "-0.01", '"', '"a,b"', "1e999", "408065", "4294967295"]
    ),
    st.text(max_size=6),
)
_HOSTILE = st.one_of(
    st.binary(max_size=60),
    st.lists(_CELLS, max_size=14).map(lambda cells: ",".join(cells).encode()),
    st.tuples(st.sampled_from([INFY, CALL, FUTURE]), st.sampled_from(HEADER.split(",")), _CELLS).map(
        lambda part: changed(part[0], **{part[1]: part[2]}).encode()
    ),
)


@settings(max_examples=100)
@given(st.lists(_HOSTILE, max_size=12))
def test_hostile_rows_are_all_accounted_for_and_harm_no_other_row(write: Write, hostile: list[bytes]) -> None:
    last = f"{make_kite_token(KiteSegment.INDICES, 2**24 - 1)},{2**24 - 1},LAST,LAST,0,,0,0,0,EQ,INDICES,BSE"
    path = write(HEADER, NIFTY, *hostile, last)
    dump = parse_kite_csv(path)
    lines = [line for line in path.read_bytes().splitlines()[1:] if line.strip()]
    assert len(dump.rows) + len(dump.quarantined) + sum(dump.skipped.values()) == len(lines)
    assert {"NIFTY 50", "LAST"} <= set(dump.rows["trading_symbol"])
    assert dump.rows["instrument_token"].is_unique
    for token, number in zip(dump.rows["instrument_token"], dump.rows["exchange_token"], strict=True):
        assert split_kite_token(token)[1] == number
