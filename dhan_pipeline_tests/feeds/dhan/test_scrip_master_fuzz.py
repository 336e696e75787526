"""Hostile scrip masters: one sentence, or every good row loaded and every bad one named. Never anything else."""

import gzip
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.scrip_master import COLUMNS, InstrumentMaster, ScripMasterError, parse_dhan_csv
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import sync_to_database

BOUNDED = settings(max_examples=100)

COMPACT = (
    "SEM_EXM_EXCH_ID,SEM_SEGMENT,SEM_SMST_SECURITY_ID,SEM_INSTRUMENT_NAME,SEM_EXPIRY_CODE,SEM_TRADING_SYMBOL,"
    "SEM_LOT_UNITS,SEM_CUSTOM_SYMBOL,SEM_EXPIRY_DATE,SEM_STRIKE_PRICE,SEM_OPTION_TYPE,SEM_TICK_SIZE,SEM_EXPIRY_FLAG,"
    "SEM_EXCH_INSTRUMENT_TYPE,SEM_SERIES,SM_SYMBOL_NAME"
)
NIFTY = "NSE,I,13,INDEX,0,NIFTY,1,Nifty 50,0001-01-01,,XX,0.05,,INDEX,X,NIFTY"
RELIANCE = "NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance Industries,,,,10.0000,NA,ES,EQ,RELIANCE INDUSTRIES LTD"
CALL = (
    "NSE,D,35084,OPTIDX,0,NIFTY-Sep2026-29150-CE,65.0,NIFTY 29 SEP 29150 CALL,2026-09-29 14:30:00,29150.00000,CE,"
    "5.0000,M,OP,NA,"
)
FUTURE = (
    "MCX,M,569900,FUTCOM,0,CRUDEOIL-19Oct2026-FUT,1.0,CRUDEOIL OCT FUT,2026-10-19 23:30:00,0.00000,XX,100.0000,M,"
    "FUTCOM,2,CRUDEOIL"
)
DETAILED = (
    "EXCH_ID,SEGMENT,SECURITY_ID,ISIN,INSTRUMENT,UNDERLYING_SECURITY_ID,UNDERLYING_SYMBOL,SYMBOL_NAME,DISPLAY_NAME,"
    "INSTRUMENT_TYPE,SERIES,LOT_SIZE,SM_EXPIRY_DATE,STRIKE_PRICE,OPTION_TYPE,TICK_SIZE,EXPIRY_FLAG"
)
DETAILED_CALL = (
    "NSE,D,35084,NA,OPTIDX,13,NIFTY,NIFTY,NIFTY 29 SEP 29150 CALL,OP,NA,65.0,2026-09-29,29150.00000,CE,5.0000,M"
)
DETAILED_RELIANCE = "NSE,E,2885,INE002A01018,EQUITY,,RELIANCE,RELIANCE INDUSTRIES LTD,Reliance,ES,EQ,1,,,,10.0000,NA"
FIRST, LAST = NIFTY, "BSE,I,4294967295,INDEX,0,LAST,1,Last,0001-01-01,,XX,0.05,,INDEX,X,LAST"

Parse = Callable[[bytes], InstrumentMaster | None]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    """Parses a file of these bytes; None where it is refused in one sentence."""
    path = tmp_path / "master.csv"

    def parse_bytes(content: bytes) -> InstrumentMaster | None:
        path.write_bytes(content)
        try:
            return parse_dhan_csv(path)
        except ScripMasterError as error:
            sentence = str(error)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert len(sentence) < 1000
        return None

    return parse_bytes


def changed(line: str, column: str, value: str, header: str = COMPACT) -> str:
    cells = line.split(",")
    cells[header.split(",").index(column)] = value
    return ",".join(cells)


def lines(*parts: str, end: str = "\n") -> bytes:
    return "".join(part + end for part in parts).encode()


def assert_sane(master: InstrumentMaster, content: bytes) -> None:
    """Every line is in one place, and every row fits the database."""
    rows = master.rows
    assert tuple(rows.columns) == COLUMNS
    assert rows["instrument_token"].is_unique
    assert rows["security_id"].between(0, 2**32 - 1).all()
    assert (rows["trading_symbol"].str.len() > 0).all()
    assert not rows[["exchange", "exchange_segment", "instrument_type"]].isna().any(axis=None)
    assert rows["strike"].dropna().between(0.005, 9_999_999_999.99).all()
    assert rows["tick_size"].dropna().between(0.0001, 999_999.9999).all()
    assert rows["lot_size"].dropna().between(1, 2**31 - 1).all()
    assert (rows["expiry"].dropna() >= pd.Timestamp(1900, 1, 1)).all()
    physical = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    written = sum(bool(line.strip()) for line in physical[1:])
    assert len(rows) + len(master.quarantined) + sum(master.skipped.values()) == written
    assert all(master.quarantined["reason"])
    assert master.quarantined["row"].is_monotonic_increasing
    assert master.quarantined["row"].is_unique
    for row, raw in zip(master.quarantined["row"], master.quarantined["raw"], strict=True):
        assert physical[row - 1].decode(errors="replace") == raw


numbers = st.sampled_from(
    [
        "1e309", "-1e309", "nan", "NaN", "inf", "-inf", "-1", "-0", "+5", "0x10", "1_000", "1,000", "1e-400", "1E+07",
        "5.", ".5", "1.1.1", "9" * 19, "9" * 30, "9" * 31, "9" * 400, "0." + "3" * 400, str(2**63), str(2**32), "1e99",
        "\u0661\u0662", "\uff11\uff12", "\u00b2", "\u00bd", " 7 ", "7\u00a0", "9999999999.995", "999999.99995", "1e10",
    ]
)  # fmt: skip
dates = st.sampled_from(
    [
        "0000-01-01", "0001-01-01", "0001-01-02", "1899-12-31", "1900-02-29", "2026-02-30", "2026-13-01", "9999-12-31",
        "10000-01-01", "2026-9-29", "29/09/2026", "2026-09-29T25:99", "\u0662\u0660\u0662\u0666-09-29", "20260929",
        "2026-09-29 14:30:00+05:30", "1e5", "-2026-09-29", "2026-09-29x",
    ]
)  # fmt: skip
words = st.one_of(
    st.sampled_from(["", "NA", "nan", "NSETEST", "CE", "E", "I", "M", '"', '""', '"a,b"', 'a"b', "\0", "\x1a", "\\."]),
    st.sampled_from(["x" * 500, "x" * 501, "\u0928" * 3000, "x" * 40_000, "\u2028", "\x85", "\x0b", "\x1c", "\ufeff"]),
    st.text(max_size=8),
)
cells = numbers | dates | words
rows_ = st.one_of(
    st.binary(max_size=80),
    st.lists(cells, max_size=18).map(lambda row: ",".join(row).encode(errors="replace")),
    st.tuples(st.sampled_from([RELIANCE, CALL, FUTURE, NIFTY]), st.sampled_from(COMPACT.split(",")), cells).map(
        lambda part: changed(*part).encode(errors="replace")
    ),
    st.integers(0, 40).map(lambda commas: b"," * commas),
)


@BOUNDED
@given(st.lists(rows_, max_size=15), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())
def test_good_rows_are_loaded_whatever_stands_between_them(
    parse: Parse, between: list[bytes], end: bytes, byte_order_mark: bool
) -> None:
    content = end.join([COMPACT.encode(), FIRST.encode(), *between, LAST.encode()])
    content = b"\xef\xbb\xbf" * byte_order_mark + content
    master = parse(content)
    assert master is not None
    assert_sane(master, content)
    assert master.rows["trading_symbol"].iloc[0] == "NIFTY"
    assert master.rows["security_id"].iloc[0] == 13
    # A row between may name the last one's segment and id: then that one counts.
    tokens = master.rows["security_id"][master.rows["exchange_segment"] == "IDX_I"].tolist()
    assert 4294967295 in tokens


@BOUNDED
@given(
    st.sampled_from(["compact", "detailed"]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 60), st.binary(max_size=60)), min_size=1, max_size=4),
)
def test_a_master_of_which_any_bytes_are_others_is_read_or_refused(
    parse: Parse, layout: str, changes: list[tuple[int, int, bytes]]
) -> None:
    content = (
        lines(COMPACT, NIFTY, RELIANCE, CALL, FUTURE)
        if layout == "compact"
        else lines(DETAILED, DETAILED_RELIANCE, DETAILED_CALL)
    )
    for start, size, inserted in changes:
        content = content[:start] + inserted + content[start + size :]
    master = parse(content)
    if master is not None:
        assert_sane(master, content)


@BOUNDED
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_refused_in_one_sentence(parse: Parse, content: bytes) -> None:
    assert parse(content) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n" * 1000,
        b"\xef\xbb\xbf",
        b"\0" * 5000,
        b"x" * 200_000,
        b"x" * 200_000 + b"\n" + lines(COMPACT, NIFTY),
        b'"' + lines(COMPACT, NIFTY),
        b"\n" + lines(COMPACT, NIFTY),
        lines(COMPACT),
        COMPACT.encode(),
        lines(COMPACT, "", "  ", "\t"),
        lines(COMPACT, COMPACT, COMPACT),
        lines(COMPACT.replace("SEM_EXPIRY_CODE", "SEM_SERIES"), NIFTY),
        lines(COMPACT.replace(",", ";"), NIFTY.replace(",", ";")),
        lines(COMPACT + "," * 1_000_000, NIFTY),
        lines(COMPACT, NIFTY).decode().encode("utf-16"),
        lines(COMPACT, NIFTY).decode().encode("utf-32"),
        gzip.compress(lines(COMPACT, NIFTY), mtime=0),
        b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>",
        b'{"errorType":"Rate_Limit","errorCode":"DH-904"}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_no_scrip_master_is_refused_in_one_sentence(parse: Parse, content: bytes) -> None:
    assert parse(content) is None


def test_a_path_that_is_no_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScripMasterError, match=r"cannot be read: Is a directory\.$"):
        parse_dhan_csv(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (changed(RELIANCE, "SEM_SMST_SECURITY_ID", "\u0661\u0662"), "no security id of 32 bits"),
        (changed(RELIANCE, "SEM_SMST_SECURITY_ID", str(2**63)), "no security id of 32 bits"),
        (changed(RELIANCE, "SEM_LOT_UNITS", "\uff11"), "a lot size that is not a whole number"),
        (changed(RELIANCE, "SEM_LOT_UNITS", "1" * 400), "a lot size that is not a whole number"),
        (changed(RELIANCE, "SEM_LOT_UNITS", "1" * 20), "a lot size that is not a whole number"),
        (changed(RELIANCE, "SEM_TICK_SIZE", "1e309"), "a tick size that is not a price"),
        (changed(RELIANCE, "SEM_TICK_SIZE", "99999999.9999"), "a tick size that is not a price"),
        (changed(CALL, "SEM_STRIKE_PRICE", "9999999999.999"), "a strike that is not a price"),
        (changed(CALL, "SEM_STRIKE_PRICE", "0.001"), "an option without strike"),
        (changed(CALL, "SEM_EXPIRY_DATE", "0000-01-01"), "an expiry that is not a date"),
        (changed(CALL, "SEM_EXPIRY_DATE", "\u0662\u0660\u0662\u0666-09-29"), "an expiry that is not a date"),
        (changed(RELIANCE, "SEM_TRADING_SYMBOL", "x" * 501), "a field of more than 500 characters"),
        (changed(RELIANCE, "SEM_TRADING_SYMBOL", "NSETEST" * 100), "a field of more than 500 characters"),
        (changed(RELIANCE, "SEM_CUSTOM_SYMBOL", "x" * 5_000_000), "a field of more than 500 characters"),
        (RELIANCE + "," * 1_000_000, "1000016 fields instead of 16"),
        ('"' * 100_000, "1 fields instead of 16"),
        ('"' * 100_001, "a quote that does not end"),
        ('a"b,' * 100_000 + '"', "a quote that does not end"),
    ],
    ids=lambda value: value[-40:],
)
def test_a_bad_row_is_quarantined_alone(parse: Parse, line: str, reason: str) -> None:
    content = lines(COMPACT, NIFTY, line, CALL.replace("35084", "35085"))
    master = parse(content)
    assert master is not None
    assert_sane(master, content)
    assert master.rows["security_id"].tolist() == [13, 35085]
    assert master.quarantined[["row", "reason"]].to_numpy().tolist() == [[3, reason]]


def test_what_is_loaded_at_the_limits_fits_the_database(parse: Parse, database_url: str) -> None:
    odd = "\\.\x01\x7f\u2028\U0001f600 ' ; -- \ufffd"
    content = lines(
        COMPACT,
        NIFTY,
        changed(LAST, "SEM_TRADING_SYMBOL", "\U0001f600" * 500),
        changed(RELIANCE, "SEM_LOT_UNITS", str(2**31 - 1)),
        changed(CALL.replace("35084", "1"), "SEM_STRIKE_PRICE", "9999999999.99"),
        changed(CALL.replace("35084", "2"), "SEM_STRIKE_PRICE", "0.0051"),
        changed(CALL.replace("35084", "3"), "SEM_TICK_SIZE", "99999999.98"),
        changed(CALL.replace("35084", "4"), "SEM_EXPIRY_DATE", "9999-12-31"),
        changed(CALL.replace("35084", "5"), "SEM_EXPIRY_DATE", "1900-01-01"),
        changed(FUTURE, "SEM_TRADING_SYMBOL", odd),
        changed(FUTURE.replace("569900", "6"), "SEM_CUSTOM_SYMBOL", odd),
    )
    master = parse(content)
    assert master is not None
    assert_sane(master, content)
    assert master.quarantined.empty
    assert sync_to_database(database_url, master).inserted == 10
    with closing(connect(database_url)) as conn, conn.cursor() as cur:
        cur.execute("SELECT name FROM instruments WHERE security_id = 6")
        assert cur.fetchall() == [(odd,)]
    assert sync_to_database(database_url, master).unchanged == 10
