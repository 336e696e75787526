import re
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.scrip_master import COLUMNS as MASTER_COLUMNS
from dhan_pipeline.feeds.dhan.scrip_master import InstrumentMaster, parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.store import symbols
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.symbols import COLUMNS, SymbolError

ON = date(2026, 11, 20)

# Dhan's, unless a test says otherwise.
find_instruments = partial(symbols.find_instruments, source="dhan")
resolve_symbols = partial(symbols.resolve_symbols, source="dhan")
not_found = partial(symbols.not_found, source="dhan")

SHARE = {"security_id": 2885, "exchange_segment": "NSE_EQ", "trading_symbol": "RELIANCE", "series": "EQ", "lot_size": 1}


def option(symbol: str, expiry: str, strike: float) -> dict[str, Any]:
    """An option that always has the same id."""
    return {
        "security_id": 49081,
        "exchange_segment": "NSE_FNO",
        "trading_symbol": f"{symbol}-{pd.Timestamp(expiry):%b%Y}-{strike:g}-CE",
        "underlying_symbol": symbol,
        "expiry": pd.Timestamp(expiry),
        "strike": strike,
        "option_type": "CE",
    }


MARCH = option("NIFTY", "2026-03-31", 22000)
MAY = option("RELIANCE", "2026-05-26", 1300)
TOKEN = generate_instrument_token("NSE_FNO", 49081)


def sync(database_url: str, at: str, *instruments: dict[str, Any]) -> None:
    """Sync a master that names these instruments, as if it had happened at that time (IST)."""
    kinds = {"NSE_EQ": "EQUITY", "NSE_FNO": "OPTSTK", "IDX_I": "INDEX"}
    rows = (
        pd.DataFrame(
            [
                {"instrument_token": generate_instrument_token(i["exchange_segment"], i["security_id"])}
                | {
                    "exchange": "NSE",
                    "segment": "?",
                    "instrument_type": kinds[i["exchange_segment"]],
                    "tick_size": 0.05,
                }
                | i
                for i in instruments
            ]
        )
        .reindex(columns=list(MASTER_COLUMNS))
        .astype({"expiry": "datetime64[s]"})
    )
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        before = cursor.fetchall()[0][0]
        conn.commit()
        sync_to_database(database_url, InstrumentMaster(rows, rows[:0], "detailed", {}, {}), force=True)
        for name in ("valid_from", "valid_to"):
            cursor.execute(
                f"UPDATE instrument_versions SET {name} = %s WHERE {name} >= %s", (datetime.fromisoformat(at), before)
            )


def add_ticks(conn: connection, token: int, *times: str) -> None:
    for at in map(datetime.fromisoformat, times):
        start_ns = int(at.timestamp()) * 1_000_000_000
        ensure_partitions(conn, start_ns, start_ns + 1)
        with conn, conn.cursor() as cursor:
            cursor.execute(
                "INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode)"
                " VALUES (1, %s, %s, true, 'full')",
                (at, token),
            )


def query(conn: connection, statement: str) -> list[tuple[Any, ...]]:
    """Rows of a query, times in IST, in a transaction of its own, so that other connections' commits are seen."""
    with conn, conn.cursor() as cursor:
        cursor.execute("SET LOCAL timezone = 'Asia/Kolkata'")
        cursor.execute(statement)
        return cursor.fetchall()


LIVES = """
SELECT underlying_symbol, lot_size, valid_from::text, valid_to::text FROM instrument_lives
ORDER BY instrument_token, valid_from
"""


def test_a_tick_of_march_names_the_contract_of_march_though_its_id_was_recycled_in_may(
    database_url: str, conn: connection
) -> None:
    sync(database_url, "2026-03-02T08:30+05:30", SHARE, MARCH)
    sync(database_url, "2026-04-01T08:30+05:30", SHARE)
    sync(database_url, "2026-05-04T08:30+05:30", SHARE, MAY)
    times = ["2026-02-27T10:00+05:30", "2026-03-31T15:29+05:30", "2026-04-15T10:00+05:30", "2026-05-04T08:30+05:30"]
    add_ticks(conn, TOKEN, *times)
    add_ticks(conn, TOKEN + 1, times[0])
    add_ticks(conn, generate_instrument_token("NSE_EQ", 2885), times[0])
    joined = query(
        conn,
        "SELECT instrument_token, to_char(time, 'MM-DD'), trading_symbol, exchange, instrument_type, underlying_symbol,"
        " expiry::text, strike::int, option_type FROM ticks_with_symbols ORDER BY instrument_token DESC, time",
    )
    march = ("NIFTY-Mar2026-22000-CE", "NSE", "OPTSTK", "NIFTY", "2026-03-31", 22000, "CE")
    may = ("RELIANCE-May2026-1300-CE", "NSE", "OPTSTK", "RELIANCE", "2026-05-26", 1300, "CE")
    assert joined == [
        (TOKEN + 1, "02-27", *[None] * 7),
        (TOKEN, "02-27", *march),
        (TOKEN, "03-31", *march),
        (TOKEN, "04-15", *march),
        (TOKEN, "05-04", *may),
        (generate_instrument_token("NSE_EQ", 2885), "02-27", "RELIANCE", "NSE", "EQUITY", *[None] * 4),
    ]


def test_lives_have_no_holes_and_the_first_reaches_back_for_ever(database_url: str, conn: connection) -> None:
    sync(database_url, "2026-03-02T08:30+05:30", SHARE, MARCH)
    sync(database_url, "2026-04-01T08:30+05:30", SHARE)
    sync(database_url, "2026-05-04T08:30+05:30", SHARE, MAY)
    sync(database_url, "2026-05-05T08:30+05:30", SHARE | {"lot_size": 5})
    assert query(conn, LIVES) == [
        (None, 1, "-infinity", "2026-05-05 08:30:00+05:30"),
        (None, 5, "2026-05-05 08:30:00+05:30", "infinity"),
        ("NIFTY", None, "-infinity", "2026-05-04 08:30:00+05:30"),
        ("RELIANCE", None, "2026-05-04 08:30:00+05:30", "infinity"),
    ], "a new lot size is a life of the same contract, too"


def test_an_instrument_without_versions_has_one_life(database_url: str, conn: connection) -> None:
    sync(database_url, "2026-03-02T08:30+05:30", SHARE)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol, lot_size)"
            " VALUES (738561, 'kite', 'NSE', 'RELIANCE', 7)"
        )
    assert query(conn, LIVES) == [(None, 7, "-infinity", "infinity"), (None, 1, "-infinity", "infinity")]
    assert find_instruments(conn, "reliance", source="kite")["instrument_token"].tolist() == [738561]
    assert find_instruments(conn, "738561", source="kite")["instrument_token"].tolist() == [738561]


def test_lives_have_the_columns_of_versions(conn: connection) -> None:
    columns = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = '{}'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert query(conn, columns.format("instrument_lives")) == query(conn, columns.format("instrument_versions"))


def test_joined_ticks_are_the_same_rows_as_ticks(database_url: str, conn: connection) -> None:
    for month, strike in ((3, 1000), (4, 1100), (5, 1200)):
        sync(database_url, f"2026-0{month}-02T08:30+05:30", SHARE, option("NIFTY", f"2026-0{month}-24", strike))
        sync(database_url, f"2026-0{month}-25T08:30+05:30", SHARE)
    hours = [f"2026-0{month}-{day:02}T10:00+05:30" for month in (2, 3, 4, 5) for day in (1, 2, 24, 26)]
    for token in (TOKEN, TOKEN + 1, generate_instrument_token("NSE_EQ", 2885)):
        add_ticks(conn, token, *hours)
    ticks = query(conn, "SELECT * FROM ticks ORDER BY instrument_token, time")
    assert len(ticks) == 3 * len(hours)
    joined = query(conn, "SELECT * FROM ticks_with_symbols ORDER BY instrument_token, time")
    assert [row[: len(ticks[0])] for row in joined] == ticks


def test_the_ticks_of_an_instrument_and_hour_are_found_by_index_in_one_partition(
    database_url: str, conn: connection
) -> None:
    sync(database_url, "2026-03-02T08:30+05:30", SHARE)
    add_ticks(conn, TOKEN, "2026-03-02T10:00+05:30", "2026-03-02T11:00+05:30")
    where = "time >= '2026-03-02 10:00+05:30' AND time < '2026-03-02 11:00+05:30' AND "
    for condition in (f"instrument_token = {TOKEN}", "trading_symbol = 'RELIANCE' AND exchange = 'NSE'"):
        with conn, conn.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN SELECT * FROM ticks_with_symbols WHERE {where} {condition}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        [index] = set(re.findall(r"Scan (?:using|on) (\w*instrument_token\w*)", plan))
        assert index.startswith(("ticks_20260302_10_", "_hyper_")), plan
        assert "ticks_20260302_11" not in plan
        assert "Seq Scan" not in plan


@pytest.fixture(scope="module")
def synced(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[connection]:
    """A database that knows the instruments of a whole market as of `ON`."""
    path = tmp_path_factory.mktemp("master") / "master.csv"
    write_synthetic_master(path, 5_000, on=ON)
    url = create_database(postgres_url, "symbols")
    migrate(url)
    sync_to_database(url, parse_dhan_csv(Path(path)))
    with closing(connect(url)) as conn:
        yield conn


@pytest.mark.parametrize(
    ("text", "segment", "symbol", "expiry"),
    [
        ("NIFTY", "IDX_I", "NIFTY", None),
        ("nifty 50", "IDX_I", "NIFTY", None),
        ("India Vix", "IDX_I", "INDIA VIX", None),
        ("METAL", "IDX_I", "METAL", None),
        ("NSE:METAL", "NSE_EQ", "METAL", None),
        ("RELIANCE", "NSE_EQ", "RELIANCE", None),
        ("NSE:RELIANCE", "NSE_EQ", "RELIANCE", None),
        ("bse:reliance", "BSE_EQ", "RELIANCE", None),
        ("Reliance Industries", "NSE_EQ", "RELIANCE", None),
        ("M&M", "NSE_EQ", "M&M", None),
        ("BSE:500325", "BSE_EQ", "RELIANCE", None),
        ("CRUDEOIL", "MCX_COMM", "CRUDEOIL-18Dec2026-FUT", "2026-12-18"),
        ("USDINR", "NSE_CURRENCY", "USDINR-27Nov2026-FUT", "2026-11-27"),
        ("RELIANCE FUT", "NSE_FNO", "RELIANCE-Nov2026-FUT", "2026-11-24"),
        ("BSE:RELIANCE FUT", "BSE_FNO", "RELIANCE-Nov2026-FUT", "2026-11-26"),
        ("NIFTY FUT", "NSE_FNO", "NIFTY-Nov2026-FUT", "2026-11-24"),
        ("NIFTY 26NOV 24000 CE", "NSE_FNO", "NIFTY-Nov2026-24000-CE", "2026-11-24"),
        ("SENSEX 26 NOV 80000 CALL", "BSE_FNO", "SENSEX-Nov2026-80000-CE", "2026-11-26"),
        ("NIFTY 2026-12-01 24000 PE", "NSE_FNO", "NIFTY-Dec2026-24000-PE", "2026-12-01"),
        ("NIFTY DEC 24000 CE", "NSE_FNO", "NIFTY-Dec2026-24000-CE", "2026-12-29"),
        ("NIFTY-Dec2026-24000-CE", "NSE_FNO", "NIFTY-Dec2026-24000-CE", "2026-12-29"),
        ("NIFTY 08 DEC 24000 CALL", "NSE_FNO", "NIFTY-Dec2026-24000-CE", "2026-12-08"),
        ("NIFTY26DEC24000CE", "NSE_FNO", "NIFTY-Dec2026-24000-CE", "2026-12-29"),
        ("RELIANCE26NOV1320CE", "NSE_FNO", "RELIANCE-Nov2026-1320-CE", "2026-11-24"),
        ("NIFTY26D0124000PE", "NSE_FNO", "NIFTY-Dec2026-24000-PE", "2026-12-01"),
        ("NIFTY 24000 PE", "NSE_FNO", "NIFTY-Nov2026-24000-PE", "2026-11-24"),
        ("usdinr-27nov2026-88.25-ce", "NSE_CURRENCY", "USDINR-27Nov2026-88.25-CE", "2026-11-27"),
        ("ELECTCAST", "NSE_EQ", "ELECTCAST", None),
    ],
)
def test_what_a_trader_writes_is_found(
    synced: connection, text: str, segment: str, symbol: str, expiry: str | None
) -> None:
    frame = find_instruments(synced, text, on=ON)
    best = frame.iloc[0]
    assert (best["exchange_segment"], best["trading_symbol"]) == (segment, symbol)
    assert (str(best["expiry"].date()) if expiry else None) == expiry
    assert resolve_symbols(synced, [text], on=ON) == [best["instrument_token"]]


def test_the_last_day_that_there_is_can_be_asked_for(synced: connection) -> None:
    assert resolve_symbols(synced, ["NIFTY"], on=date.max) == [generate_instrument_token("IDX_I", 13)]


def test_all_matches_are_told_with_their_facts(synced: connection) -> None:
    frame = find_instruments(synced, "ELECTCAST", on=ON)
    assert tuple(frame.columns) == COLUMNS
    assert frame["security_id"].tolist() == [928, 18116, 500128], "the share before its warrant, NSE before BSE"
    assert str(frame["valid_from"].dtype) == "datetime64[us, Asia/Kolkata]"
    assert frame["valid_from"].isna().all()
    assert find_instruments(synced, "ELECTCAST W1", on=ON)["security_id"].tolist() == [18116]
    option = find_instruments(synced, "NIFTY 24000 PE", on=ON)
    assert option["expiry"].is_monotonic_increasing
    assert option["strike"].unique().tolist() == [24000]
    nothing = find_instruments(synced, "NOBODY", on=ON)
    assert nothing.empty
    assert nothing.dtypes.equals(option.dtypes)


def test_a_number_is_a_token_and_a_segment_with_an_id_is_exact(synced: connection) -> None:
    nifty = generate_instrument_token("IDX_I", 13)
    assert resolve_symbols(synced, [nifty, str(nifty), "IDX_I:13", "NSE_EQ:2885"], on=ON) == [
        *[nifty] * 3,
        generate_instrument_token("NSE_EQ", 2885),
    ]


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("RELAINCE", "near it: RELIANCE"),
        ("RELAINCE FUT", "near it: RELIANCE FUT"),
        ("NIFTY DECEMBER FUT", "No instrument is called NIFTY DECEMBER FUT on 2026-11-20."),
        ("MCX:CRUDEOI", "near it: MCX:CRUDEOIL, MCX:CRUDEOILM"),
        ("NIFTY 2026-12-03 24010 CE", "near it: NIFTY 2026-12-01 24000 CE, NIFTY 2026-12-01 24050 CE, NIFTY 2026-12"),
        ("NIFTY 2028-01-01 FUT", "near it: NIFTY 2026-12-08 FUT"),
        (" 12345 ", "No instrument is called 12345 on 2026-11-20"),
        ("NSE:", "NSE: is the name of no instrument"),
        ("", "An empty text is the name of no instrument"),
        ("NIF\0TY", "is the name of no instrument"),
        ("NIFTY\udce9", "is the name of no instrument"),  # an argument that is not UTF-8
    ],
)
def test_what_is_not_found_is_named_with_what_is_near(synced: connection, text: str, near: str) -> None:
    with pytest.raises(SymbolError) as caught:
        resolve_symbols(synced, ["NIFTY", text], on=ON)
    assert near in str(caught.value)


def test_what_is_near_follows_from_all_readings(synced: connection) -> None:
    expired = not_found(synced, "NIFTY 26NOV 24010 CE", on=date(2026, 11, 27))
    assert "near it: NIFTY 2026-12-01 24000 CE, NIFTY 2026-12-01 24050 CE" in str(expired), "not November 2027"


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        (
            "CAPINS",
            "CAPINS may be IDX_I:99 (BSE Capital Markets & Insurance) or IDX_I:846"
            " (BSE Capital Goods Industrial Solutions); write one of these instead.",
        ),
        ("RELIANCE 26NOV 1320 CE", r"(RELIANCE 26 NOV 1320 CALL) or NSE_FNO:"),
    ],
)
def test_what_may_be_several_instruments_alike_is_refused(synced: connection, text: str, alike: str) -> None:
    with pytest.raises(SymbolError) as caught:
        resolve_symbols(synced, [text], on=ON)
    assert alike in str(caught.value)


def test_a_symbol_means_what_it_meant_on_the_day(database_url: str, conn: connection) -> None:
    old = SHARE | {"security_id": 1}
    sync(database_url, "2026-03-02T08:30+05:30", old, MARCH)
    sync(database_url, "2026-05-04T08:30+05:30", SHARE, MAY)
    share, before = generate_instrument_token("NSE_EQ", 2885), generate_instrument_token("NSE_EQ", 1)
    assert resolve_symbols(conn, ["RELIANCE"]) == [share]
    assert resolve_symbols(conn, ["RELIANCE"], on=date(2026, 5, 4)) == [share], "by the end of the day"
    assert resolve_symbols(conn, ["RELIANCE"], on=date(2026, 3, 31)) == [before]
    assert find_instruments(conn, "RELIANCE", on=date(2026, 3, 31))["instrument_token"].tolist() == [before, share]

    march = find_instruments(conn, "NSE_FNO:49081", on=date(2026, 5, 3)).iloc[0]
    assert march["trading_symbol"] == "NIFTY-Mar2026-22000-CE"
    assert march["valid_to"] == pd.Timestamp("2026-05-04 08:30", tz=IST)
    assert find_instruments(conn, "NSE_FNO:49081", on=date(2026, 5, 4)).iloc[0]["strike"] == 1300
    assert resolve_symbols(conn, ["NIFTY 2026-03-31 22000 CE"], on=date(2026, 3, 31)) == [TOKEN]
    with pytest.raises(SymbolError, match="No instrument is called NIFTY 2026-03-31 22000 CE"):
        resolve_symbols(conn, ["NIFTY 2026-03-31 22000 CE"])


def test_what_the_latest_master_does_not_name_is_found_by_token_only(database_url: str, conn: connection) -> None:
    sync(database_url, "2026-03-02T08:30+05:30", SHARE, MARCH)
    sync(database_url, "2026-04-01T08:30+05:30", SHARE)
    assert find_instruments(conn, "NIFTY 2026-03-31 22000 CE").empty
    assert resolve_symbols(conn, [TOKEN, "NSE_FNO:49081"]) == [TOKEN, TOKEN]
    with pytest.raises(SymbolError, match=r"No instrument is called NIFTY 2026-03-31 22010 CE\.$"):
        resolve_symbols(conn, ["NIFTY 2026-03-31 22010 CE"])
    assert "near it: NIFTY 2026-03-31 22000 CE" in str(
        not_found(conn, "NIFTY 2026-03-31 22010 CE", on=date(2026, 3, 30))
    )


def test_a_database_without_instruments_is_no_wrong_spelling(conn: connection) -> None:
    assert "no instruments of dhan yet; run: dhan-pipeline sync-instruments" in str(not_found(conn, "NIFTY"))


DUMP = """\
instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,segment,exchange
256265,1001,NIFTY 50,NIFTY 50,0,,0,0,0,EQ,INDICES,NSE
260105,1016,NIFTY BANK,NIFTY BANK,0,,0,0,0,EQ,INDICES,NSE
265,1,SENSEX,SENSEX,0,,0,0,0,EQ,INDICES,BSE
264969,1035,INDIA VIX,INDIA VIX,0,,0,0,0,EQ,INDICES,NSE
738561,2885,RELIANCE,RELIANCE INDUSTRIES,0,,0,0.1,1,EQ,NSE,NSE
128083204,500325,RELIANCE,RELIANCE INDUSTRIES,0,,0,0.05,1,EQ,BSE,BSE
237569,928,ELECTCAST,ELECTROSTEEL CASTINGS,0,,0,0.01,1,EQ,NSE,NSE
4637697,18116,ELECTCAST-W1,ELECTROSTEEL CASTINGS,0,,0,0.01,1,EQ,NSE,NSE
25857,101,ALOKINDS-BE,ALOK INDUSTRIES,0,,0,0.1,1,EQ,NSE,NSE
133395204,521075,ALOKINDS,ALOK INDUSTRIES,0,,0,0.01,1,EQ,BSE,BSE
12800258,50001,NIFTY26NOVFUT,NIFTY,0,2026-11-24,0,0.05,65,FUT,NFO-FUT,NFO
12800514,50002,NIFTY26NOV26000CE,NIFTY,0,2026-11-24,26000,0.05,65,CE,NFO-OPT,NFO
12800770,50003,NIFTY26D0126000CE,NIFTY,0,2026-12-01,26000,0.05,65,CE,NFO-OPT,NFO
12801026,50004,RELIANCE26NOVFUT,RELIANCE,0,2026-11-24,0,0.1,500,FUT,NFO-FUT,NFO
204800005,800000,SENSEX26NOV80000PE,SENSEX,0,2026-11-26,80000,0.05,20,PE,BFO-OPT,BFO
145894407,569900,CRUDEOIL26DECFUT,CRUDEOIL,0,2026-12-18,0,1,100,FUT,MCX-FUT,MCX
256003,1000,USDINR26NOVFUT,USDINR,0,2026-11-27,0,0.0025,1,FUT,CDS-FUT,CDS
"""


@pytest.fixture(scope="module")
def kites(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[connection]:
    """A database that knows a few of Kite's instruments, and of Dhan's an index and a share."""
    path = tmp_path_factory.mktemp("dump") / "dump.csv"
    path.write_text(DUMP)
    url = create_database(postgres_url, "kite_symbols")
    migrate(url)
    sync_to_database(url, parse_kite_csv(path), source="kite")
    nifty = {"security_id": 13, "exchange_segment": "IDX_I", "trading_symbol": "NIFTY", "name": "Nifty 50"}
    sync(url, "2026-11-20T08:30+05:30", nifty, SHARE)
    with closing(connect(url)) as conn:
        yield conn


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("NIFTY", 256265),
        ("nifty 50", 256265),
        ("NSE:NIFTY 50", 256265),
        ("BANKNIFTY", 260105),
        ("SENSEX", 265),
        ("India Vix", 264969),
        ("RELIANCE", 738561),
        ("NSE:RELIANCE", 738561),
        ("BSE:RELIANCE", 128083204),
        ("Reliance Industries", 738561),
        ("738561", 738561),
        ("NSE_EQ:2885", 738561),
        ("BSE:500325", 128083204),
        ("ELECTCAST", 237569),
        ("ELECTCAST W1", 4637697),
        ("ELECTCAST-W1", 4637697),
        ("ALOKINDS", 25857),
        ("alokinds be", 25857),
        ("NSE:ALOKINDS-BE", 25857),
        ("BSE:ALOKINDS", 133395204),
        ("NIFTY FUT", 12800258),
        ("NFO:NIFTY26NOVFUT", 12800258),
        ("NSE:RELIANCE FUT", 12801026),
        ("NIFTY26NOV26000CE", 12800514),
        ("NFO:NIFTY26NOV26000CE", 12800514),
        ("NIFTY 2026-12-01 26000 CE", 12800770),
        ("NFO:NIFTY26D0126000CE", 12800770),
        ("BFO:SENSEX 26NOV 80000 PE", 204800005),
        ("CRUDEOIL", 145894407),
        ("CDS:USDINR26NOVFUT", 256003),
    ],
)
def test_kites_instruments_are_found_by_the_same_words_and_by_its_own(kites: connection, text: str, token: int) -> None:
    assert resolve_symbols(kites, [text], on=ON, source="kite") == [token]


def test_a_share_of_another_series_is_kites_second_choice_on_its_exchange(kites: connection) -> None:
    found = symbols.find_instruments(kites, "ELECTCAST", on=ON, source="kite")
    assert found["trading_symbol"].tolist() == ["ELECTCAST", "ELECTCAST-W1"]
    found = symbols.find_instruments(kites, "ALOKINDS", on=ON, source="kite")
    assert found["trading_symbol"].tolist() == ["ALOKINDS-BE", "ALOKINDS"]
    assert symbols.find_instruments(kites, "ALOKIND", on=ON, source="kite").empty


def test_words_mean_the_instruments_of_the_source_asked_for(kites: connection) -> None:
    assert resolve_symbols(kites, ["NIFTY", "RELIANCE"]) == [
        generate_instrument_token("IDX_I", 13),
        generate_instrument_token("NSE_EQ", 2885),
    ]
    assert resolve_symbols(kites, [738561]) == [738561], "a token is what it is"
    with pytest.raises(SymbolError, match="near it: RELIANCE"):
        resolve_symbols(kites, ["RELAINCE"], on=ON, source="kite")
    assert "NIFTY 2026-11-24 26000 CE" in str(not_found(kites, "NIFTY 26NOV 26010 CE", on=ON, source="kite"))


def test_rows_of_the_existing_system_are_found_before_their_first_sync(conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) VALUES"
            " (256265, 'kite', 'NSE', 'NIFTY 50'), (12800514, 'kite', 'NFO', 'NIFTY26NOV26000CE')"
        )
    assert resolve_symbols(conn, ["NIFTY", "NFO:NIFTY26NOV26000CE"], source="kite") == [256265, 12800514]
