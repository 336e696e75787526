from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection

import dhan_pipeline
from dhan_pipeline import load_instruments_cache
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan import InstrumentInfo
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.store.engine import create_database
from dhan_pipeline.store.instruments import sync_to_database


@pytest.fixture
def rows(database_url: str, tmp_path: Path) -> list[dict[Any, Any]]:
    """A master that was synced."""
    write_synthetic_master(tmp_path / "master.csv", 3_000, on=date(2026, 11, 20))
    master = parse_dhan_csv(tmp_path / "master.csv")
    sync_to_database(database_url, master)
    return master.rows.astype(object).where(master.rows.notna(), None).to_dict("records")


def test_every_active_instrument_is_there_as_the_table_has_it(database_url: str, rows: list[dict[Any, Any]]) -> None:
    cache = load_instruments_cache(database_url)
    assert len(cache) == len(rows)
    for row in rows:
        found = cache[row["exchange_segment"], int(row["security_id"])]
        assert found == InstrumentInfo(**row | {"expiry": row["expiry"] and row["expiry"].date()})
    reliance = cache["NSE_EQ", 2885]
    assert (reliance.trading_symbol, reliance.exchange, reliance.tick_size) == ("RELIANCE", "NSE", 0.1)
    assert reliance.instrument_token == generate_instrument_token("NSE_EQ", 2885)


def test_the_same_id_in_two_segments_is_two_instruments(database_url: str, rows: list[dict[Any, Any]]) -> None:
    cache = load_instruments_cache(database_url)
    assert cache["IDX_I", 13].trading_symbol == "NIFTY"
    assert cache["NSE_EQ", 13].trading_symbol == "ABB"


def test_what_is_no_longer_listed_is_not_there(conn: connection, rows: list[dict[Any, Any]]) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE instruments SET is_active = false WHERE security_id = 2885")
    assert ("NSE_EQ", 2885) not in load_instruments_cache(conn)
    assert conn.closed == 0


def test_either_spelling_of_the_url_and_the_settings_will_do(
    database_url: str, rows: list[dict[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spelt = database_url.replace("postgresql://", "postgresql+psycopg2://")
    assert len(load_instruments_cache(spelt)) == len(rows)
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert len(load_instruments_cache()) == len(rows)


def test_kites_instruments_are_a_cache_of_their_own(database_url: str, conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        for segment, number, name in (
            (KiteSegment.NSE, 2885, "NSE_EQ"),
            (KiteSegment.NCO, 7, None),
            (KiteSegment.MCXSX, 7, "NSE_CURRENCY"),
        ):
            cursor.execute(
                "INSERT INTO instruments (instrument_token, source, exchange, exchange_segment, trading_symbol) "
                "VALUES (%s, 'kite', 'NSE', %s, 'RELIANCE')",
                (make_kite_token(segment, number), name),
            )
    assert [info.trading_symbol for info in load_instruments_cache(database_url, "kite").values()] == ["RELIANCE"]
    assert len(load_instruments_cache(database_url)) == 0


def test_a_database_without_our_table_is_one_sentence(postgres_url: str) -> None:
    empty = create_database(postgres_url, "without_instruments")
    with pytest.raises(PipelineError, match="run: dhan-pipeline migrate"):
        load_instruments_cache(empty)
    with closing(psycopg2.connect(empty)) as conn, pytest.raises(PipelineError):
        load_instruments_cache(conn)


def test_the_package_has_no_other_names() -> None:
    assert not hasattr(dhan_pipeline, "load_instruments")
