import subprocess
import sys
import threading
from contextlib import closing
from datetime import date
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.scrip_master import COLUMNS, InstrumentMaster, generate_instrument_token, parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.instruments import (
    SCHEMA,
    SEGMENT_ROWS,
    InstrumentSyncError,
    load_futures,
    load_tokens,
    read_instruments,
    sync_to_database,
)
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline_tests.store import existing_system

#: One share and one index; most tests add to them.
ABB = {"segment": "E", "id": 13, "symbol": "ABB"}
NIFTY = {"segment": "I", "id": 13, "symbol": "NIFTY"}


def master_of(*instruments: dict[str, Any]) -> InstrumentMaster:
    """A master of the detailed layout that names these NSE instruments and nothing else, read by the parser."""
    header = (
        "EXCH_ID,SEGMENT,SECURITY_ID,ISIN,INSTRUMENT,UNDERLYING_SYMBOL,SYMBOL_NAME,DISPLAY_NAME,SERIES,LOT_SIZE,"
        "SM_EXPIRY_DATE,STRIKE_PRICE,OPTION_TYPE,TICK_SIZE"
    )
    kinds = {"E": "EQUITY", "I": "INDEX", "D": "OPTIDX"}
    lines = [header]
    for i in instruments:
        option = i["segment"] == "D"
        lines.append(
            f"NSE,{i['segment']},{i['id']},{i.get('isin', 'NA')},{kinds[i['segment']]},{i['symbol']},"
            f"{i['symbol']}{'-Nov2026-CE' if option else ''},{i.get('name', i['symbol'])},NA,{i.get('lot', 1)},"
            f"{i.get('expiry', '2026-11-24') if option else ''},{i.get('strike', 100) if option else ''},CE,5"
        )
    with NamedTemporaryFile("w", suffix=".csv") as file:
        file.write("\n".join(lines))
        file.flush()
        return parse_dhan_csv(Path(file.name))


def dump_of(*lines: str) -> InstrumentMaster:
    """A dump of Kite's that holds these lines, read by the parser."""
    header = (
        "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,"
        "instrument_type,segment,exchange"
    )
    with NamedTemporaryFile("w", suffix=".csv") as file:
        file.write("\n".join([header, *lines]))
        file.flush()
        return parse_kite_csv(Path(file.name))


INFY = "408065,1594,INFY,INFOSYS,0,,,0.05,1,EQ,NSE,NSE"
NIFTY_50 = "256265,1001,NIFTY 50,NIFTY 50,0,,0,0,0,EQ,INDICES,NSE"
CALL = "12000002,46875,NIFTY26NOV24000CE,NIFTY,0,2026-11-24,24000,0.05,65,CE,NFO-OPT,NFO"
#: The call's token, given to another contract after its expiry.
PUT = "12000002,46875,RELIANCE26DEC1300PE,RELIANCE,0,2026-12-29,1300,0.05,500,PE,NFO-OPT,NFO"


def query(conn: connection, statement: str) -> list[tuple[Any, ...]]:
    """Rows of a query in a transaction of its own, so that other connections' commits are seen."""
    with conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def counts(result: Any) -> dict[str, int]:
    """The counts of a result that are not 0."""
    names = ("inserted", "updated", "unchanged", "deactivated", "reactivated", "quarantined")
    return {name: getattr(result, name) for name in names if getattr(result, name)}


def test_the_table_takes_exactly_what_the_parser_gives() -> None:
    assert tuple(SCHEMA.names) == COLUMNS


def test_a_whole_master_is_stored_and_read_back_the_same(database_url: str, conn: connection, tmp_path: Path) -> None:
    write_synthetic_master(tmp_path / "master.csv", 5_000, on=date(2026, 11, 20))
    master = parse_dhan_csv(tmp_path / "master.csv")
    result = sync_to_database(database_url, master, batch_size=999)
    assert counts(result) == {"inserted": len(master.rows)}
    stored = read_instruments(conn, "dhan")
    pd.testing.assert_frame_equal(stored, master.rows.sort_values("instrument_token").reset_index(drop=True))
    assert load_tokens(conn, "dhan").tolist() == stored["instrument_token"].tolist()
    futures = stored[stored["instrument_type"].str.startswith("FUT")]
    assert set(load_futures(conn, "dhan")) == set(futures["instrument_token"])
    assert len(futures)
    conn.rollback()

    assert counts(sync_to_database(database_url, master)) == {"unchanged": len(master.rows)}
    # The compact layout lacks the ISIN, which stays.
    write_synthetic_master(tmp_path / "compact.csv", 5_000, on=date(2026, 11, 20), layout="compact")
    compact = parse_dhan_csv(tmp_path / "compact.csv")
    assert counts(sync_to_database(database_url, compact)) == {"unchanged": len(master.rows)}


def test_nothing_is_read_from_an_empty_table(conn: connection) -> None:
    assert load_tokens(conn, "dhan").dtype == np.int64
    assert len(load_tokens(conn, "dhan")) == 0
    frame = read_instruments(conn, "dhan")
    assert tuple(frame.columns) == COLUMNS
    assert frame.empty


def test_only_what_changed_is_written(database_url: str, conn: connection) -> None:
    sync_to_database(database_url, master_of(ABB, NIFTY))
    before = dict(query(conn, "SELECT trading_symbol, last_updated FROM instruments"))
    result = sync_to_database(database_url, master_of(ABB | {"lot": 5}, NIFTY))
    assert counts(result) == {"updated": 1, "unchanged": 1}
    after = dict(query(conn, "SELECT trading_symbol, last_updated FROM instruments"))
    assert after["NIFTY"] == before["NIFTY"]
    assert after["ABB"] > before["ABB"]


def test_what_the_master_no_longer_names_is_deactivated_and_reactivated_when_it_returns(
    database_url: str, conn: connection
) -> None:
    both = master_of(ABB, ABB | {"id": 14, "symbol": "ACC"})
    sync_to_database(database_url, both)
    assert counts(sync_to_database(database_url, master_of(ABB))) == {"unchanged": 1, "deactivated": 1}
    assert query(conn, "SELECT trading_symbol FROM active_instruments") == [("ABB",)]
    assert len(load_tokens(conn, "dhan")) == 2, "ticks of the past still need it"
    conn.rollback()
    assert counts(sync_to_database(database_url, master_of(ABB))) == {"unchanged": 1}, "it is deactivated once"
    assert counts(sync_to_database(database_url, both)) == {"unchanged": 1, "reactivated": 1}
    versions = query(
        conn, "SELECT valid_to IS NULL FROM instrument_versions WHERE trading_symbol = 'ACC' ORDER BY valid_from"
    )
    assert versions == [(False,), (True,)]


def test_a_recycled_derivative_id_closes_the_old_version_and_opens_a_new_one(
    database_url: str, conn: connection
) -> None:
    option = {"segment": "D", "id": 35000, "symbol": "NIFTY", "strike": 24000, "expiry": "2026-11-24"}
    sync_to_database(database_url, master_of(option))
    result = sync_to_database(database_url, master_of(option | {"strike": 61000, "symbol": "SENSEX"}))
    assert counts(result) == {"updated": 1}
    versions = query(
        conn,
        "SELECT instrument_token, underlying_symbol, strike, valid_from, valid_to FROM instrument_versions"
        " ORDER BY valid_from",
    )
    assert [row[:3] for row in versions] == [
        (generate_instrument_token("NSE_FNO", 35000), "NIFTY", 24000),
        (generate_instrument_token("NSE_FNO", 35000), "SENSEX", 61000),
    ]
    assert versions[0][4] == versions[1][3], "one ends where the other begins"
    assert versions[1][4] is None


def test_quarantined_rows_are_reported(database_url: str) -> None:
    assert counts(sync_to_database(database_url, master_of(ABB, ABB | {"symbol": ""}))) == {
        "inserted": 1,
        "quarantined": 1,
    }


def test_rows_of_another_source_are_left_alone(database_url: str, conn: connection) -> None:
    insert = (
        "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) VALUES (738561, {}, 'NSE', 'X')"
    )
    with conn, conn.cursor() as cursor:
        cursor.execute(insert.format("'kite'"))
    kite = query(conn, "SELECT * FROM instruments")
    sync_to_database(database_url, master_of(ABB))
    sync_to_database(database_url, master_of(ABB))
    assert query(conn, "SELECT * FROM instruments WHERE source = 'kite'") == kite
    assert load_tokens(conn, "kite").tolist() == [738561]


def many(segment: str, count: int, expiry: str = "2099-11-24") -> list[dict[str, Any]]:
    """So many instruments of a segment; options expire on that day."""
    return [{"segment": segment, "id": i, "symbol": f"S{i}", "expiry": expiry} for i in range(count)]


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ([*many("E", 10), NIFTY], many("E", 10), "names no instrument of IDX_I"),
        (many("E", 10), many("E", 4), "names 4 instruments where 10 are active"),
        (
            [*many("E", 10), *many("D", 10, "2020-11-24")],
            [*many("E", 4), *many("D", 10, "2020-11-24")],
            "names 4 instruments where 10 are active",
        ),
        (
            [*many("E", SEGMENT_ROWS), *many("D", 900)],
            [*many("E", 400), *many("D", 900)],
            "names 400 instruments of NSE_EQ where 1000 are active",
        ),
    ],
)
def test_a_collapsed_master_is_refused_and_changes_nothing_unless_forced(
    database_url: str,
    conn: connection,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    sentence: str,
) -> None:
    sync_to_database(database_url, master_of(*before))
    stored = query(conn, "SELECT * FROM instruments ORDER BY 1")
    with pytest.raises(InstrumentSyncError, match=sentence):
        sync_to_database(database_url, master_of(*after))
    assert query(conn, "SELECT * FROM instruments ORDER BY 1") == stored
    result = sync_to_database(database_url, master_of(*after), force=True)
    assert result.deactivated == len(before) - len(after)


def test_syncs_at_the_same_time_take_turns(database_url: str, conn: connection) -> None:
    masters = [master_of(ABB | {"lot": lot}, NIFTY) for lot in range(1, 7)]
    threads = [threading.Thread(target=sync_to_database, args=(database_url, master)) for master in masters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = query(
        conn, "SELECT valid_from, valid_to FROM instrument_versions WHERE trading_symbol = 'ABB' ORDER BY valid_from"
    )
    assert len(versions) == len(masters)
    assert [end for _, end in versions] == [*(start for start, _ in versions[1:]), None]


def test_a_database_without_tables_or_none_at_all_is_said_in_one_sentence(postgres_url: str) -> None:
    with pytest.raises(InstrumentSyncError, match="migrate it first"):
        sync_to_database(postgres_url, master_of(ABB))
    with pytest.raises(InstrumentSyncError, match="could not be written to the database"):
        sync_to_database("postgresql://nobody@127.0.0.1:9/none", master_of(ABB))


_INSTRUMENT = st.fixed_dictionaries(
    {
        "lot": st.integers(1, 2),
        "name": st.sampled_from(["A", "B"]),
        "expiry": st.sampled_from(["2026-11-24", "2026-12-01"]),
    }
)
_MASTERS = st.lists(
    st.dictionaries(st.integers(1, 4), _INSTRUMENT, min_size=1).map(
        lambda named: [{"segment": "D", "id": i, "symbol": "NIFTY"} | facts for i, facts in named.items()]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=30)
@given(_MASTERS)
def test_after_any_syncs_the_table_is_the_last_master_and_each_active_instrument_has_one_open_version(
    database_url: str, masters: list[list[dict[str, Any]]]
) -> None:
    with closing(connect(database_url)) as conn:
        with conn, conn.cursor() as cursor:
            cursor.execute("TRUNCATE instruments, instrument_versions")
        ever: set[int] = set()
        for instruments in masters:
            master = master_of(*instruments)
            result = sync_to_database(database_url, master, force=True)
            parts = (result.inserted, result.updated, result.reactivated, result.unchanged)
            assert sum(parts) == len(instruments)
            ever |= set(master.rows["instrument_token"])
        stored = read_instruments(conn, "dhan")
        conn.rollback()
        pd.testing.assert_frame_equal(stored, master.rows.sort_values("instrument_token").reset_index(drop=True))
        assert set(load_tokens(conn, "dhan").tolist()) == ever
        conn.rollback()
        names = ", ".join(name for name in COLUMNS if name != "exchange_token")
        active = query(conn, f"SELECT {names} FROM active_instruments ORDER BY 1")
        assert query(conn, f"SELECT {names} FROM instrument_versions WHERE valid_to IS NULL ORDER BY 1") == active
        overlaps = (
            "SELECT FROM instrument_versions a JOIN instrument_versions b USING (instrument_token)"
            " WHERE a.valid_from < b.valid_from AND coalesce(a.valid_to, 'infinity') > b.valid_from"
        )
        assert query(conn, overlaps) == []


def test_the_capture_can_load_tokens_without_pandas() -> None:
    code = "import sys, dhan_pipeline.store.instruments; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dump_of_kites_is_stored_and_read_back_the_same(database_url: str, conn: connection) -> None:
    dump = dump_of(INFY, NIFTY_50, CALL)
    assert counts(sync_to_database(database_url, dump, source="kite")) == {"inserted": 3}
    stored = read_instruments(conn, "kite")
    conn.rollback()
    pd.testing.assert_frame_equal(stored, dump.rows.sort_values("instrument_token").reset_index(drop=True))
    assert query(conn, "SELECT exchange_token, security_id FROM instruments ORDER BY 1") == [
        (1001, None),
        (1594, None),
        (46875, None),
    ]
    assert counts(sync_to_database(database_url, dump, source="kite")) == {"unchanged": 3}


def test_each_source_has_its_own_rows_and_its_own_guard(database_url: str, conn: connection) -> None:
    sync_to_database(database_url, master_of(ABB, NIFTY))
    sync_to_database(database_url, dump_of(INFY, NIFTY_50), source="kite")
    dhans = query(conn, "SELECT * FROM instruments WHERE source = 'dhan' ORDER BY 1")
    assert counts(sync_to_database(database_url, dump_of(INFY, NIFTY_50, CALL), source="kite")) == {
        "inserted": 1,
        "unchanged": 2,
    }
    with pytest.raises(InstrumentSyncError, match="names no instrument of IDX_I"):
        sync_to_database(database_url, dump_of(INFY), source="kite")
    assert query(conn, "SELECT * FROM instruments WHERE source = 'dhan' ORDER BY 1") == dhans
    kites = query(conn, "SELECT * FROM instruments WHERE source = 'kite' ORDER BY 1")
    assert counts(sync_to_database(database_url, master_of(ABB, NIFTY))) == {"unchanged": 2}
    assert query(conn, "SELECT * FROM instruments WHERE source = 'kite' ORDER BY 1") == kites


def test_the_master_of_another_source_is_refused(database_url: str) -> None:
    with pytest.raises(ValueError, match="408065 is no instrument of dhan"):
        sync_to_database(database_url, dump_of(INFY))
    with pytest.raises(ValueError, match="is no instrument of kite"):
        sync_to_database(database_url, master_of(ABB), source="kite")


def test_what_expired_since_the_last_sync_does_not_count_as_a_collapse(database_url: str) -> None:
    stale, *weekly = (
        f"{number << 8 | 2},{number},NIFTY{number}CE,NIFTY,0,{expiry},{number},0.05,65,CE,NFO-OPT,NFO"
        for number, expiry in enumerate(["2015-12-31", *["2020-11-24"] * 10], 40_000)
    )
    call = CALL.replace("2026", "2099")
    sync_to_database(database_url, dump_of(INFY, call, *weekly), source="kite")
    after = dump_of(INFY, call, stale)
    assert counts(sync_to_database(database_url, after, source="kite")) == {
        "inserted": 1,
        "unchanged": 2,
        "deactivated": 10,
    }


@pytest.fixture
def existing(conn: connection) -> list[tuple[Any, ...]]:
    """Rows of the existing system in an upgraded database: they say neither segment nor type of option."""
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, exchange_token, trading_symbol, name, exchange, segment,"
            " instrument_type, expiry, strike, tick_size, lot_size, last_updated, source) VALUES"
            " (408065, 1594, 'INFY', 'INFOSYS', 'NSE', 'NSE', 'EQ', NULL, 0, 0.05, 1, '2026-01-05', 'kite'),"
            " (256265, 1001, 'NIFTY 50', 'NIFTY 50', 'NSE', 'INDICES', 'EQ', NULL, 0, 0, 0, '2026-01-05', 'kite'),"
            " (12000002, 46875, 'NIFTY26NOV24000CE', 'NIFTY', 'NFO', 'NFO-OPT', 'CE', '2026-11-24', 24000, 0.05, 65,"
            " '2026-01-05', 'kite')"
        )
    return query(conn, "SELECT * FROM instruments ORDER BY 1")


LIVES = "SELECT instrument_token, trading_symbol, valid_from = '-infinity', valid_to = 'infinity' FROM instrument_lives"


def test_rows_of_the_existing_system_are_versioned_from_their_first_sync_on(
    database_url: str, conn: connection, existing: list[tuple[Any, ...]]
) -> None:
    sync_to_database(database_url, master_of(ABB))
    assert query(conn, "SELECT * FROM instruments WHERE source = 'kite' ORDER BY 1") == existing
    dump = dump_of(INFY, NIFTY_50, CALL)
    assert counts(sync_to_database(database_url, dump, source="kite")) == {"updated": 3}
    stored = read_instruments(conn, "kite")
    conn.rollback()
    pd.testing.assert_frame_equal(stored, dump.rows.sort_values("instrument_token").reset_index(drop=True))
    assert query(conn, LIVES + " WHERE source = 'kite' ORDER BY 1") == [
        (256265, "NIFTY 50", True, True),
        (408065, "INFY", True, True),
        (12000002, "NIFTY26NOV24000CE", True, True),
    ], "the same contract has one life"


def test_a_database_of_the_existing_system_takes_both_sources_after_its_upgrade(postgres_url: str) -> None:
    url = create_database(postgres_url, "instruments_of_the_existing_system")
    with closing(connect(url)) as old, old, old.cursor() as cursor:
        cursor.execute(existing_system.TABLES + existing_system.INSTRUMENTS)
    migrate(url)
    dump = dump_of(
        NIFTY_50,
        "260105,1016,NIFTY BANK,NIFTY BANK,0,,0,0,0,EQ,INDICES,NSE",  # there, it is called a future
        "738561,2885,RELIANCE,RELIANCE INDUSTRIES,0,,0,0.1,1,EQ,NSE,NSE",
        "14626306,57134,TCS26DEC3000CE,TCS,0,2026-12-29,3000,0.05,175,CE,NFO-OPT,NFO",  # used again
    )
    sync_to_database(url, master_of(ABB))
    with pytest.raises(InstrumentSyncError, match="names no instrument of BSE_EQ"):
        sync_to_database(url, dump, source="kite")
    assert counts(sync_to_database(url, dump, source="kite", force=True)) == {"updated": 4, "deactivated": 2}
    with closing(connect(url)) as new:
        assert query(new, LIVES + " WHERE source = 'kite' ORDER BY 1, valid_from") == [
            (256265, "NIFTY 50", True, True),
            (260105, "NIFTY BANK", True, True),
            (341249, "HDFCBANK", True, True),
            (738561, "RELIANCE", True, True),
            (14626306, "NIFTY26NOV26000CE", True, False),
            (14626306, "TCS26DEC3000CE", False, True),
            (128083204, "RELIANCE", True, True),
        ]
        assert load_tokens(new, "kite").tolist() == [256265, 260105, 341249, 738561, 14626306, 128083204]
        assert read_instruments(new, "dhan")["trading_symbol"].tolist() == ["ABB"]


@pytest.mark.parametrize("gone_first", [False, True])
def test_a_token_that_is_used_again_never_inherits_the_past_of_the_existing_system(
    database_url: str, conn: connection, existing: list[tuple[Any, ...]], gone_first: bool
) -> None:
    if gone_first:
        assert counts(sync_to_database(database_url, dump_of(INFY, NIFTY_50), source="kite", force=True)) == {
            "updated": 2,
            "deactivated": 1,
        }
    sync_to_database(database_url, dump_of(INFY, NIFTY_50, PUT), source="kite")
    assert query(conn, LIVES + " WHERE instrument_token = 12000002 ORDER BY valid_from") == [
        (12000002, "NIFTY26NOV24000CE", True, False),
        (12000002, "RELIANCE26DEC1300PE", False, True),
    ]
    versions = query(conn, "SELECT trading_symbol FROM instrument_versions WHERE valid_to IS NULL ORDER BY 1")
    assert versions == [("INFY",), ("NIFTY 50",), ("RELIANCE26DEC1300PE",)]


def test_tokens_that_the_existing_system_made_by_hash_neither_stop_a_sync_nor_take_instruments_away(
    database_url: str, conn: connection
) -> None:
    of_kite, unassigned = 738561, (1 << 61) + (6 << 32) + 5
    with conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol)"
            " VALUES (%s, 'dhan', 'NSE', 'ABB'), (%s, 'dhan', 'NSE', 'TCS'), (256265, NULL, 'NSE', 'NIFTY 50')",
            (of_kite, unassigned),
        )
    conn.commit()
    dump = dump_of(
        "738561,2885,RELIANCE,RELIANCE INDUSTRIES,0,,0,0.1,1,EQ,NSE,NSE",
        "256265,1001,NIFTY 50,NIFTY 50,0,,0,0,0,EQ,INDICES,NSE",
    )
    for _ in range(2):
        sync_to_database(database_url, dump, source="kite")
        sync_to_database(database_url, master_of(ABB, NIFTY), source="dhan")
    assert load_tokens(conn, "kite").tolist() == [256265, of_kite]
    assert query(conn, "SELECT instrument_token FROM active_instruments WHERE source = 'dhan' ORDER BY 1") == [
        (generate_instrument_token("IDX_I", 13),),
        (generate_instrument_token("NSE_EQ", 13),),
    ]
    assert read_instruments(conn, "kite")["trading_symbol"].tolist() == ["NIFTY 50", "RELIANCE"]
