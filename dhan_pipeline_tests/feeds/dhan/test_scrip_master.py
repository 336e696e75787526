from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.scrip_master import (
    COLUMNS,
    ScripMasterError,
    generate_instrument_token,
    parse_dhan_csv,
)

COMPACT = (
    "SEM_EXM_EXCH_ID,SEM_SEGMENT,SEM_SMST_SECURITY_ID,SEM_INSTRUMENT_NAME,SEM_EXPIRY_CODE,SEM_TRADING_SYMBOL,"
    "SEM_LOT_UNITS,SEM_CUSTOM_SYMBOL,SEM_EXPIRY_DATE,SEM_STRIKE_PRICE,SEM_OPTION_TYPE,SEM_TICK_SIZE,SEM_EXPIRY_FLAG,"
    "SEM_EXCH_INSTRUMENT_TYPE,SEM_SERIES,SM_SYMBOL_NAME"
)
RELIANCE = "NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance Industries,,,,10.0000,NA,ES,EQ,RELIANCE INDUSTRIES LTD"
NIFTY = "NSE,I,13,INDEX,0,NIFTY,1,Nifty 50,0001-01-01,,XX,0.05,,INDEX,X,NIFTY"
ABB = "NSE,E,13,EQUITY,0,ABB,1,ABB,,,,50,NA,ES,EQ,ABB INDIA LIMITED"
CRUDE = (
    "MCX,M,569900,FUTCOM,0,CRUDEOIL-19Oct2026-FUT,1.0,CRUDEOIL OCT FUT,2026-10-19 23:30:00,0.00000,XX,100.0000,M,"
    "FUTCOM,2,CRUDEOIL"
)
CALL = (
    "NSE,D,35084,OPTIDX,0,NIFTY-Sep2026-29150-CE,65.0,NIFTY 29 SEP 29150 CALL,2026-09-29 14:30:00,29150.00000,CE,"
    "5.0000,M,OP,NA,"
)

DETAILED_FIRST = (
    "EXCH_ID,SEGMENT,SECURITY_ID,ISIN,INSTRUMENT,UNDERLYING_SECURITY_ID,UNDERLYING_SYMBOL,SYMBOL_NAME,DISPLAY_NAME,"
    "INSTRUMENT_TYPE,SERIES,LOT_SIZE,SM_EXPIRY_DATE,STRIKE_PRICE,OPTION_TYPE,TICK_SIZE,EXPIRY_FLAG"
)
DETAILED = f"{DETAILED_FIRST},MTF_LEVERAGE,SM_FREEZE_QTY,"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines as a CSV file."""

    def write_lines(*lines: str | bytes, end: bytes = b"\n") -> Path:
        path = tmp_path / "master.csv"
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + end for line in lines))
        return path

    return write_lines


def only(rows: pd.DataFrame) -> dict[str, Any]:
    """The one row of a frame, without its nulls."""
    assert len(rows) == 1
    return {str(k): v for k, v in rows.iloc[0].items() if not pd.isna(v)}


def test_a_compact_future_becomes_a_row_in_rupees_with_nulls_where_nothing_is_said(write: Write) -> None:
    master = parse_dhan_csv(write(COMPACT, CRUDE))
    assert master.layout == "compact"
    assert tuple(master.rows.columns) == COLUMNS
    assert only(master.rows) == {
        "instrument_token": generate_instrument_token("MCX_COMM", 569900),
        "security_id": 569900,
        "exchange": "MCX",
        "exchange_segment": "MCX_COMM",
        "trading_symbol": "CRUDEOIL-19Oct2026-FUT",
        "name": "CRUDEOIL OCT FUT",
        "segment": "M",
        "instrument_type": "FUTCOM",
        "series": "2",
        "underlying_symbol": "CRUDEOIL",
        "expiry": pd.Timestamp("2026-10-19"),
        "tick_size": 1.0,
        "lot_size": 1,
    }


def test_an_index_keeps_its_tick_size_in_rupees_and_has_no_expiry_series_or_option_type(write: Write) -> None:
    row = only(parse_dhan_csv(write(COMPACT, NIFTY)).rows)
    assert row["exchange_segment"] == "IDX_I"
    assert row["tick_size"] == 0.05
    assert not row.keys() & {"expiry", "strike", "option_type", "series", "underlying_symbol", "isin"}


def test_an_option_has_strike_type_and_underlying(write: Write) -> None:
    row = only(parse_dhan_csv(write(COMPACT, CALL)).rows)
    assert (row["strike"], row["option_type"], row["underlying_symbol"]) == (29150.0, "CE", "NIFTY")
    assert (row["lot_size"], row["tick_size"]) == (65, 0.05)


def test_the_underlying_of_a_hyphenated_symbol_is_whole(write: Write) -> None:
    line = "NSE,D,50001,FUTSTK,0,BAJAJ-AUTO-Jul2026-FUT,75.0,BAJAJ-AUTO JUL FUT,2026-07-28,-0.01000,XX,10,M,FUT,NA,"
    row = only(parse_dhan_csv(write(COMPACT, line)).rows)
    assert row["underlying_symbol"] == "BAJAJ-AUTO"
    assert "strike" not in row


def test_the_same_id_in_two_segments_is_two_instruments(write: Write) -> None:
    master = parse_dhan_csv(write(COMPACT, NIFTY, ABB))
    assert master.segment_counts == {"IDX_I": 1, "NSE_EQ": 1}
    assert master.rows["instrument_token"].is_unique


def test_the_detailed_layout_takes_a_shares_symbol_from_its_underlying(write: Write) -> None:
    line = (
        "NSE,E,2885,INE002A01018,EQUITY,,RELIANCE,RELIANCE INDUSTRIES LTD,Reliance Industries,ES,EQ,1,,,,10,NA,4.5,0,"
    )
    row = only(parse_dhan_csv(write(DETAILED, line)).rows)
    assert (row["trading_symbol"], row["name"], row["isin"]) == ("RELIANCE", "Reliance Industries", "INE002A01018")
    assert "underlying_symbol" not in row


def test_both_layouts_agree_on_commodities_and_currencies_which_detailed_names_by_underlying_only(
    write: Write,
) -> None:
    detailed = parse_dhan_csv(
        write(
            DETAILED,
            "MCX,M,569900,NA,FUTCOM,294,CRUDEOIL,CRUDEOIL,CRUDEOIL OCT FUT,FUTCOM,2,1.0,2026-10-19,0,XX,100,M,0,0,",
            "MCX,M,576266,NA,OPTFUT,294,CRUDEOIL,CRUDEOIL,A CALL,OPTFUT,NA,1.0,2026-09-17,7000.0,CE,10,M,0,0,",
            "NSE,C,2885,NA,OPTCUR,601,EURINR,EURINR,EURINR CALL,OPTCUR,NA,1.0,2026-08-07,102.75000,PE,0.25,M,0,0,",
        )
    ).rows
    assert detailed["trading_symbol"].tolist() == [
        "CRUDEOIL-19Oct2026-FUT",
        "CRUDEOIL-17Sep2026-7000-CE",
        "EURINR-07Aug2026-102.75-PE",
    ]
    assert detailed["tick_size"].tolist() == [1.0, 0.1, 0.0025]
    compact = parse_dhan_csv(write(COMPACT, CRUDE)).rows
    pd.testing.assert_frame_equal(compact, detailed.head(1))


def test_the_detailed_next_50_is_called_as_its_derivatives_call_it(write: Write) -> None:
    line = "NSE,I,38,NA,INDEX,38,NIFTY NEXT 50,NIFTY NEXT 50,Nifty Next 50,INDEX,NA,1,0001-01-01,,XX,0.05,N,0,0,"
    assert only(parse_dhan_csv(write(DETAILED, line)).rows)["trading_symbol"] == "NIFTYNXT50"


def test_columns_are_found_by_name_in_any_order_with_others_blank_or_repeated(write: Write) -> None:
    names, values = COMPACT.split(","), RELIANCE.split(",")
    header = ",".join(["", *reversed(names), "NEW", "NEW", ""])
    master = parse_dhan_csv(write(header, ",".join(["x", *reversed(values), "1", "2", ""])))
    pd.testing.assert_frame_equal(master.rows, parse_dhan_csv(write(COMPACT, RELIANCE)).rows)


@pytest.mark.parametrize(("of_header", "of_rows"), [("", ","), (",", ""), (",", ",,")])
def test_a_comma_more_or_less_at_the_end_of_all_rows_is_tolerated(write: Write, of_header: str, of_rows: str) -> None:
    expected = parse_dhan_csv(write(COMPACT, RELIANCE, CALL, CRUDE)).rows
    master = parse_dhan_csv(write(COMPACT + of_header, *(line + of_rows for line in (RELIANCE, CALL, CRUDE))))
    pd.testing.assert_frame_equal(master.rows, expected)
    assert master.quarantined.empty


DETAILED_ABB = "NSE,E,13,INE117A01022,EQUITY,,ABB,ABB INDIA LIMITED,ABB,ES,EQ,1,,,,50,NA,4.1,0,"


@pytest.mark.parametrize(
    ("header", "good", "line", "reason"),
    [
        (
            DETAILED,
            DETAILED_ABB,
            "NSE,E,2885,INE002A01018,EQUITY,,RELIANCE,Reliance Industries,ES,EQ,1,,,,10,NA,4.5,0,",
            "19 fields instead of 20",
        ),
        (
            DETAILED,
            DETAILED_ABB,
            "NSE,E,2885,INE002A01018,EQUITY,RELIANCE,RELIANCE INDUSTRIES LTD,Reliance,ES,EQ,1,,,,10,NA,4.5,0,",
            "19 fields instead of 20",
        ),
        (
            COMPACT,
            ABB,
            "NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance Industries,,,,,10.0000,NA,ES,EQ,",
            "17 fields instead of 16",
        ),
        (COMPACT, ABB + ",", RELIANCE.replace(",,,,", ",,,") + ",", "15 fields instead of 16"),
        (COMPACT, ABB + ",", RELIANCE.replace(",,,,", ",,,,,") + ",", "17 fields instead of 16"),
        (COMPACT, ABB + ",", RELIANCE + ",1", "17 fields instead of 16"),
        (COMPACT, ABB + ",", ",", "unknown exchange and segment"),
        (COMPACT + ",", ABB, RELIANCE.replace(",,,,", ",,,,,"), "17 fields instead of 16"),
    ],
)
def test_a_row_with_a_comma_more_or_less_than_the_others_is_not_read_with_its_columns_shifted(
    write: Write, header: str, good: str, line: str, reason: str
) -> None:
    master = parse_dhan_csv(write(header, good, good.replace("13", "14", 1), line))
    assert master.rows["trading_symbol"].tolist() == ["ABB", "ABB"]
    assert master.quarantined.to_dict("records") == [{"row": 4, "reason": reason, "raw": line}]


def test_a_row_without_the_comma_that_ends_all_others_is_read(write: Write) -> None:
    master = parse_dhan_csv(write(COMPACT, ABB + ",", RELIANCE, NIFTY + ","))
    assert master.rows["trading_symbol"].tolist() == ["ABB", "RELIANCE", "NIFTY"]


def test_windows_line_ends_a_byte_order_mark_blank_lines_and_blanks_around_values_are_tolerated(write: Write) -> None:
    path = write(b"\xef\xbb\xbf" + COMPACT.encode(), "", RELIANCE.replace(",", " , "), "   ", end=b"\r\n")
    row = only(parse_dhan_csv(path).rows)
    assert (row["trading_symbol"], row["series"], row["name"]) == ("RELIANCE", "EQ", "Reliance Industries")


def test_a_quoted_name_keeps_its_comma_and_its_quotes(write: Write) -> None:
    line = RELIANCE.replace("Reliance Industries", '"Bajaj, ""Sons"" & Co"')
    assert only(parse_dhan_csv(write(COMPACT, line)).rows)["name"] == 'Bajaj, "Sons" & Co'


def test_a_name_that_is_not_utf8_loses_its_letter_but_not_its_instrument(write: Write) -> None:
    line = RELIANCE.encode().replace(b"Reliance", b"Caf\xe9")
    assert only(parse_dhan_csv(write(COMPACT, line)).rows)["name"] == "Caf\ufffd Industries"


def test_numbers_that_an_editor_rewrote_are_read(write: Write) -> None:
    line = "BSE,E,975196,EQUITY,0,875ST28,1.00E+07,STN23II,,,,1,NA,PTC,F,STN23II"
    assert only(parse_dhan_csv(write(COMPACT, line)).rows)["lot_size"] == 10_000_000


def test_test_scrips_and_nse_commodities_are_skipped_and_counted(write: Write) -> None:
    test = "NSE,E,14747,EQUITY,0,011NSETEST,1,011NSETEST,,,,5,NA,Other,EQ,011NSETEST"
    commodity = CRUDE.replace("MCX,M", "NSE,M")
    master = parse_dhan_csv(write(COMPACT, RELIANCE, test, commodity))
    assert master.skipped == {"NSE commodity": 1, "test instrument": 1}
    assert len(master.rows) == 1
    assert master.quarantined.empty


def changed(line: str, **values: str) -> str:
    names, fields = COMPACT.split(","), line.split(",")
    for name, value in values.items():
        fields[names.index(name)] = value
    return ",".join(fields)


@pytest.mark.parametrize("line", [RELIANCE, NIFTY])
def test_what_is_no_derivative_has_no_expiry_whatever_the_file_says(write: Write, line: str) -> None:
    row = only(parse_dhan_csv(write(COMPACT, changed(line, SEM_EXPIRY_DATE="2026-09-29"))).rows)
    assert "expiry" not in row


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (changed(RELIANCE, SEM_SMST_SECURITY_ID=""), "no security id of 32 bits"),
        (changed(RELIANCE, SEM_SMST_SECURITY_ID="-1"), "no security id of 32 bits"),
        (changed(RELIANCE, SEM_SMST_SECURITY_ID="4294967296"), "no security id of 32 bits"),
        (changed(RELIANCE, SEM_EXM_EXCH_ID="NCDEX"), "unknown exchange and segment"),
        (changed(RELIANCE, SEM_TRADING_SYMBOL=" "), "no trading symbol"),
        (changed(RELIANCE, SEM_TRADING_SYMBOL="NA"), "no trading symbol"),
        (changed(RELIANCE, SEM_INSTRUMENT_NAME=""), "no instrument type"),
        (changed(RELIANCE, SEM_LOT_UNITS="1.5"), "a lot size that is not a whole number"),
        (changed(RELIANCE, SEM_LOT_UNITS="inf"), "a lot size that is not a whole number"),
        (changed(RELIANCE, SEM_LOT_UNITS="1e999"), "a lot size that is not a whole number"),
        (changed(RELIANCE, SEM_TICK_SIZE="ten"), "a tick size that is not a price"),
        (changed(CALL, SEM_EXPIRY_DATE=""), "a derivative without expiry"),
        (changed(CALL, SEM_EXPIRY_DATE="2026-02-30"), "an expiry that is not a date"),
        (changed(CALL, SEM_EXPIRY_DATE="29/09/2026"), "an expiry that is not a date"),
        (changed(CALL, SEM_STRIKE_PRICE="-0.01000"), "an option without strike"),
        (changed(CALL, SEM_STRIKE_PRICE="1e300"), "a strike that is not a price"),
        (changed(CALL, SEM_OPTION_TYPE="XX"), "an option that is neither CE nor PE"),
        (RELIANCE.replace(",EQ,", ","), "15 fields instead of 16"),
        (RELIANCE + ",1", "17 fields instead of 16"),
        (RELIANCE.replace("Reliance", '"Reliance'), "a quote that does not end"),
        (RELIANCE.replace("Reliance", "Rel\0iance"), "a NUL byte"),
        (ABB, "the same segment and security id as row 2"),
    ],
)
def test_a_row_that_cannot_be_read_is_quarantined_with_its_line_and_the_rest_is_read(
    write: Write, line: str, reason: str
) -> None:
    master = parse_dhan_csv(write(COMPACT, ABB, "", line, NIFTY))
    assert master.rows["trading_symbol"].tolist() == ["ABB", "NIFTY"]
    assert master.quarantined.to_dict("records") == [{"row": 4, "reason": reason, "raw": line}]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "is not a Dhan scrip master"),
        (["a,b,c", "1,2,3"], "is not a Dhan scrip master"),
        ([COMPACT.replace("SEM_SERIES", "SERIES_NO")], r"\(compact layout\) lacks the column SEM_SERIES"),
        ([DETAILED.replace("ISIN,", "")], r"\(detailed layout\) lacks the column ISIN"),
        ([COMPACT + ",SEM_SERIES"], "names the column SEM_SERIES more than once"),
        ([COMPACT], "holds no instrument"),
        ([COMPACT, "1,2"], "holds no instrument"),
    ],
)
def test_a_file_that_is_no_scrip_master_is_refused_in_one_sentence(
    write: Write, lines: list[str], sentence: str
) -> None:
    with pytest.raises(ScripMasterError, match=sentence):
        parse_dhan_csv(write(*lines))


def test_a_file_that_is_not_there_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScripMasterError, match=r"cannot be read: No such file"):
        parse_dhan_csv(tmp_path / "none.csv")


_CELLS = st.one_of(
    st.sampled_from(
        ["", "NA", "NSE", "E", "D", "M", "OPTIDX", "CE", "2026-09-29", "-0.01", '"', '""', '"a,b"', "1e999"]
    ),
    st.text(max_size=6),
)
_HOSTILE = st.one_of(
    st.binary(max_size=60),
    st.lists(_CELLS, max_size=18).map(lambda cells: ",".join(cells).encode()),
    st.tuples(st.sampled_from([RELIANCE, CALL, CRUDE]), st.sampled_from(COMPACT.split(",")), _CELLS).map(
        lambda three: changed(three[0], **{three[1]: three[2]}).encode()
    ),
)


@given(st.lists(_HOSTILE, max_size=12))
def test_hostile_rows_are_all_accounted_for_and_harm_no_other_row(write: Write, hostile: list[bytes]) -> None:
    last = "NSE,I,4294967295,INDEX,0,LAST,1,Last,0001-01-01,,XX,0.05,,INDEX,X,LAST"
    path = write(COMPACT, NIFTY, *hostile, last)
    master = parse_dhan_csv(path)
    lines = [line for line in path.read_bytes().splitlines()[1:] if line.strip()]
    assert len(master.rows) + len(master.quarantined) + sum(master.skipped.values()) == len(lines)
    assert master.rows["trading_symbol"].iloc[0] == "NIFTY"
    assert "LAST" in master.rows["trading_symbol"].to_numpy()
    assert master.rows["instrument_token"].is_unique
    physical = path.read_bytes().splitlines()
    for row, raw in zip(master.quarantined["row"], master.quarantined["raw"], strict=True):
        assert physical[row - 1].decode(errors="replace") == raw
