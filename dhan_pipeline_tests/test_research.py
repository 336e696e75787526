"""Ticks by symbol and time: from the table, from the archive, and from both at once the same."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from psycopg2.extensions import connection

from dhan_pipeline import read_candles, read_ticks, research
from dhan_pipeline.clock import Clock
from dhan_pipeline.research import ResearchError
from dhan_pipeline.sessions import HOUR_NS, IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.archive import archive_day, archive_schema
from dhan_pipeline.store.engine import create_database
from dhan_pipeline.store.partitions import drop_expired
from dhan_pipeline.store.symbols import SymbolError
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.store.batches import AT_NS, RELIANCE, USDINR, add_lives, bits_of, make_batch, store

DAY_NS = 24 * HOUR_NS
FIRST, SECOND = date(2026, 11, 20), date(2026, 11, 21)
BEGIN, END = "2026-11-20", "2026-11-22"
AT = datetime.fromtimestamp(AT_NS / 1e9, UTC)
LATER = Clock(start_ns=AT_NS + 3 * DAY_NS, speed=1e-9)


@pytest.fixture
def settings(tmp_path: Path, database_url: str, conn: connection) -> Settings:
    """Of a database with ticks of two days, in two hours each; RELIANCE changes its symbol in the first."""
    add_lives(conn, RELIANCE, [AT, AT + timedelta(seconds=20)])
    add_lives(conn, USDINR, [], "USDINR")
    starts = [AT_NS, AT_NS + HOUR_NS, AT_NS + DAY_NS, AT_NS + DAY_NS + HOUR_NS]
    store(
        conn,
        [
            make_batch(mode, 30, number, 0.2, at_ns=at_ns, every_us=1_000_000)
            for number, at_ns in enumerate(starts)
            for mode in Mode
        ],
    )
    return Settings(_env_file=None, data_dir=tmp_path, database_url=database_url)


def move_to_archive(conn: connection, settings: Settings, *days: date) -> None:
    for day in days:
        archive_day(conn, settings.data_dir, day, LATER)
    assert drop_expired(conn, 1, AT_NS + 4 * DAY_NS, lambda day: day in days).dropped


def read(settings: Settings, start: Any = BEGIN, end: Any = END, symbols: Any = (RELIANCE, USDINR)) -> pa.Table:
    return read_ticks(symbols, start, end, as_="arrow", settings=settings)


@pytest.mark.parametrize("archived", [[FIRST], [SECOND], [FIRST, SECOND]])
def test_the_archive_gives_what_the_table_gave(conn: connection, settings: Settings, archived: list[date]) -> None:
    before = read(settings)
    assert before.num_rows == 360
    assert before.schema.equals(archive_schema(), check_metadata=True)
    move_to_archive(conn, settings, *archived)
    after = read(settings)
    assert after.schema.equals(archive_schema(), check_metadata=True)
    assert after.equals(before)
    assert bits_of(after.to_pylist()) == bits_of(before.to_pylist())


def test_rows_come_by_instrument_and_time_with_what_each_instrument_was(settings: Settings) -> None:
    rows = read(settings).to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["instrument_token"], row["time"], row["tick_id"]))
    renamed = AT + timedelta(seconds=20)
    for row in rows:
        symbol = (
            "USDINR" if row["instrument_token"] == USDINR else "RELIANCE" if row["time"] < renamed else "RELIANCE-1"
        )
        assert row["trading_symbol"] == symbol


def test_an_hour_that_was_rebuilt_after_its_day_was_dropped_is_there_once(conn: connection, settings: Settings) -> None:
    before = read(settings)
    move_to_archive(conn, settings, FIRST, SECOND)
    store(conn, [make_batch(mode, 30, 1, 0.2, at_ns=AT_NS + HOUR_NS, every_us=1_000_000) for mode in Mode])
    assert bits_of(read(settings).to_pylist()) == bits_of(before.to_pylist())


def test_a_range_is_in_ist_unless_it_has_a_zone_and_its_end_is_not_in_it(conn: connection, settings: Settings) -> None:
    ranges: list[tuple[Any, Any]] = [
        ("2026-11-20 09:30:05", "2026-11-20 10:30:05"),
        ("2026-11-20T04:00:05Z", "2026-11-20T05:00:05+00:00"),
        (datetime(2026, 11, 20, 9, 30, 5), datetime(2026, 11, 20, 10, 30, 5)),
        (AT + timedelta(seconds=5), pd.Timestamp("2026-11-20 10:30:05", tz="Asia/Kolkata")),
    ]

    def check() -> None:
        for start, end in ranges:
            times = [time.timestamp() - AT.timestamp() for time in read(settings, start, end)["time"].to_pylist()]
            assert sorted(times) == sorted([*range(5, 30), *range(3600, 3605)] * 3)

    check()
    move_to_archive(conn, settings, FIRST)
    check()


def test_a_date_is_its_midnight_in_india(settings: Settings) -> None:
    assert read(settings, SECOND, SECOND + timedelta(days=1)).num_rows == 180
    assert read(settings, "2026-11-19", FIRST).num_rows == 0


def test_instruments_are_asked_for_by_what_people_write(conn: connection, settings: Settings) -> None:
    by_name = read(settings, symbols=["RELIANCE-1", RELIANCE, "USDINR"])
    assert by_name.equals(read(settings))
    tokens = pd.Series([RELIANCE, USDINR])  # as `find_instruments` gives them
    assert by_name.equals(read(settings, symbols=tokens))
    assert read(settings, symbols=tokens[0]).equals(read(settings, symbols=RELIANCE))
    move_to_archive(conn, settings, FIRST)
    frame = read_ticks("USDINR", BEGIN, END, settings=settings)
    assert set(frame["instrument_token"]) == {USDINR}
    assert frame["trading_symbol"].cat.categories.tolist() == ["USDINR"]


def test_a_symbol_means_the_instrument_of_the_source_asked_for(conn: connection, settings: Settings) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) VALUES"
            " (738561, 'kite', 'NSE', 'RELIANCE-1')"
        )
    both = settings.model_copy(update={"data_source": "dhan,kite"})
    first = read(both, symbols="RELIANCE-1")
    assert first.num_rows
    assert first.equals(read(settings.of("kite"), symbols=RELIANCE)), "a token is what it is"
    assert not read(settings.of("kite"), symbols="RELIANCE-1").num_rows
    assert not read_ticks("RELIANCE-1", BEGIN, END, as_="arrow", settings=both, source="kite").num_rows
    kite_first = settings.model_copy(update={"data_source": "kite,dhan"})
    assert not read_ticks("RELIANCE-1", BEGIN, END, as_="arrow", settings=kite_first).num_rows
    assert read_candles("RELIANCE-1", BEGIN, END, settings=both, source="kite").empty


def test_pandas_gets_times_in_ist_and_whole_numbers(conn: connection, settings: Settings) -> None:
    table = read(settings)
    move_to_archive(conn, settings, FIRST)
    frame = read_ticks([RELIANCE, USDINR], BEGIN, END, settings=settings)
    assert frame.index.name == "time"
    assert frame.index.tz == IST
    assert str(frame["last_trade_time"].dtype) == "datetime64[us, Asia/Kolkata]"
    kinds = {name: str(frame[name].dtype) for name in ("tick_id", "oi", "last_price", "tradable", "mode", "exchange")}
    assert kinds == {
        "tick_id": "int64",
        "oi": "Int64",
        "last_price": "float64",
        "tradable": "bool",
        "mode": "category",
        "exchange": "category",
    }
    assert frame.index.tz_convert("UTC").to_pydatetime().tolist() == table["time"].to_pylist()
    for name in ("tick_id", "oi", "volume_traded", "last_price", "change", "mode", "trading_symbol"):
        assert frame[name].astype(object).where(frame[name].notna(), None).tolist() == table[name].to_pylist()
    assert frame["bid_prices"].dropna().map(len).unique().tolist() == [5]


def test_polars_gets_the_same(settings: Settings) -> None:
    frame = read_ticks([RELIANCE, USDINR], BEGIN, END, as_="polars", settings=settings)
    assert isinstance(frame, pl.DataFrame)
    assert frame.schema["time"] == frame.schema["last_trade_time"] == pl.Datetime("us", "Asia/Kolkata")
    assert bits_of(frame.to_dicts()) == bits_of(read(settings).to_pylist())


def test_some_columns_come_in_the_order_asked_for(conn: connection, settings: Settings) -> None:
    names = ["trading_symbol", "last_price", "bid_prices"]
    expected = read(settings).select(names)
    move_to_archive(conn, settings, FIRST)
    table = read_ticks([RELIANCE, USDINR], BEGIN, END, columns=names, as_="arrow", settings=settings)
    assert table.column_names == names
    assert bits_of(table.to_pylist()) == bits_of(expected.to_pylist())
    frame = read_ticks([RELIANCE], BEGIN, END, columns=["time", "last_price"], settings=settings)
    assert list(frame.columns) == ["last_price"]
    assert list(read_ticks([RELIANCE], BEGIN, END, columns="last_price", settings=settings)) == ["last_price"]


def test_what_makes_no_sense_is_refused_with_a_sentence(conn: connection, settings: Settings) -> None:
    with pytest.raises(SymbolError, match="No instrument is called NOBODY"):
        read_ticks(["NOBODY"], BEGIN, END, settings=settings)
    with pytest.raises(ResearchError, match="The range is empty: it starts at 2026-11-22"):
        read_ticks([RELIANCE], END, BEGIN, settings=settings)
    with pytest.raises(ResearchError, match="start is no time: yesterday"):
        read_ticks([RELIANCE], "yesterday", BEGIN, settings=settings)
    with pytest.raises(ResearchError, match="no column price; they have tick_id, time"):
        read_ticks([RELIANCE], BEGIN, END, columns=["price"], settings=settings)
    with pytest.raises(ResearchError, match="as_ is pandas, polars or arrow, not numpy"):
        read_ticks([RELIANCE], BEGIN, END, as_="numpy", settings=settings)  # type: ignore[arg-type]
    with pytest.raises(ResearchError, match="bars of 1, 5, 15, 60, 1440 minutes, not of 7"):
        read_candles([RELIANCE], BEGIN, END, 7, settings=settings)
    move_to_archive(conn, settings, FIRST)
    (settings.data_dir / "archive/ticks/date=2026-11-20/ticks.parquet").unlink()
    with pytest.raises(ResearchError, match="The archive of 2026-11-20 is not where it should be"):
        read(settings)
    assert read(settings, SECOND).num_rows == 180


def test_a_database_without_our_tables_is_said(settings: Settings, postgres_url: str) -> None:
    bare = settings.model_copy(update={"database_url": create_database(postgres_url, "bare")})
    for read in (read_ticks, read_candles):
        with pytest.raises(ResearchError, match="dhan-pipeline migrate"):
            read("RELIANCE", "2026-11-20", "2026-11-21", settings=bare)


def test_without_polars_its_name_is_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(research, "find_spec", lambda name: None)
    with pytest.raises(ResearchError, match=r"pip install 'dhan-pipeline\[research\]'"):
        read_ticks([RELIANCE], BEGIN, END, as_="polars", settings=settings)


def test_candles_come_with_their_symbol(conn: connection, settings: Settings) -> None:
    with conn, conn.cursor() as cursor:
        for minute in range(3):
            cursor.execute(
                "INSERT INTO candles_1m (instrument_token, time, open, high, low, close, ticks, touches_gap, "
                "starts_late, source) VALUES (%s, %s, 1, 4, 0.5, %s, 7, false, false, 'ticks')",
                (RELIANCE, AT + timedelta(minutes=minute), minute + 1),
            )
    frame = read_candles("RELIANCE-1", "2026-11-20 09:31", END, settings=settings)
    assert frame["close"].tolist() == [2.0, 3.0]
    assert frame["trading_symbol"].unique().tolist() == ["RELIANCE-1"]
    assert (frame["instrument_token"].dtype, frame["volume"].dtype) == ("int64", "Int64")
    assert frame.index[0] == pd.Timestamp("2026-11-20 09:31", tz="Asia/Kolkata")
    assert read_candles("RELIANCE-1", BEGIN, END, 5, as_="arrow", settings=settings)["close"].to_pylist() == [3.0]
