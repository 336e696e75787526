import threading
from contextlib import closing
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline import ticks
from dhan_pipeline.store import migrate as module
from dhan_pipeline.store.engine import DatabaseError, connect
from dhan_pipeline.store.migrate import MigrationError, migrate, migration_files

_NAMES = {
    "int8": "bigint",
    "int4": "integer",
    "bool": "boolean",
    "float8": "double precision",
    "timestamptz": "timestamp with time zone",
}

#: PostgreSQL's type of each column.
TYPES = {
    column.name: _NAMES.get(column.kind.removesuffix("[]"), column.kind) + "[]" * column.kind.endswith("[]")
    for column in ticks.COLUMNS
}


@pytest.fixture
def empty_url(database_url: str) -> str:
    """A database without any table; it shares the life of the test's own."""
    with connect(database_url) as conn, conn.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    conn.close()
    return database_url


def test_all_files_run_once_and_in_order(empty_url: str) -> None:
    assert migrate(empty_url) == [file.stem for file in migration_files()]
    assert migrate(empty_url) == []


def test_a_dry_run_prints_the_sql_and_changes_nothing(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = migrate(empty_url, dry_run=True)
    assert "CREATE TABLE IF NOT EXISTS ticks" in capsys.readouterr().out
    assert migrate(empty_url) == names


def test_concurrent_migrations_run_each_file_once(empty_url: str) -> None:
    applied: list[str] = []
    threads = [threading.Thread(target=lambda: applied.extend(migrate(empty_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied == [file.stem for file in migration_files()]


def test_a_failing_file_changes_nothing_and_is_named(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "0001_good.sql", tmp_path / "0002_bad.sql"
    good.write_text("CREATE TABLE good (a int);")
    bad.write_text("CREATE TABLE half (a int); SELECT nonsense;")
    monkeypatch.setattr(module, "migration_files", lambda: [good, bad])
    with pytest.raises(MigrationError, match=r'0002_bad.sql failed and changed nothing: column "nonsense"'):
        migrate(empty_url)
    with connect(empty_url) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('good') IS NOT NULL, to_regclass('half') IS NULL")
        assert cursor.fetchone() == (True, True)
    conn.close()
    bad.write_text("CREATE TABLE half (a int)")
    assert migrate(empty_url) == ["0002_bad"]


def test_an_unreachable_database_is_one_sentence_without_the_password() -> None:
    with pytest.raises(DatabaseError, match="The database cannot be used: ") as caught:
        migrate("postgresql://someone:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_files_may_be_run_again_by_hand(database_url: str) -> None:
    with connect(database_url) as conn, conn.cursor() as cursor:
        for file in migration_files():
            cursor.execute(file.read_text())
    conn.close()


def test_rows_with_arrays_of_depth_are_moved_and_read_as_before(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_files = migration_files()
    monkeypatch.setattr(module, "migration_files", lambda: [file for file in all_files if file.name < "0006"])
    migrate(empty_url)
    levels = [1, 2, 3, 4, 5]
    depth = {
        "bid_prices": [101.05, 101.0, 0.29, None, None],
        "ask_prices": [101.1, 42_949_672.95, 1.1, 2.2, 3.3],
        "bid_quantities": [2**32 - 1, 2**31, 0, 1, 7],
        "bid_orders": [65535, 256, 255, 0, 1],
        "ask_quantities": levels,
        "ask_orders": levels,
    }
    rupees, currency = 1 << 40 | 2 << 32 | 5, 1 << 40 | 3 << 32 | 5
    rows = [
        {"tick_id": 1, "instrument_token": rupees, "mode": "full", "last_price": 101.05, **depth}
        | {"mid_price": 101.075, "bid_ask_spread": 0.05},
        {"tick_id": 2, "instrument_token": currency, "mode": "full", **depth}
        | {"ask_prices": [101.0525, 85.005, 0.1, 1, 2], "mid_price": 101.05125, "bid_ask_spread": 0.0025},
        {"tick_id": 3, "instrument_token": rupees, "mode": "ticker", "last_price": 7.5},
        {"tick_id": 4, "instrument_token": rupees, "mode": "quote", "last_price": 101.55, "day_close": 99.5}
        | {"change": 2.05, "change_percent": 2.0603, "total_buy_quantity": 1, "total_sell_quantity": 3}
        | {"order_imbalance": -0.5},
    ]
    with closing(connect(empty_url)) as conn, conn, conn.cursor() as cursor:
        for hour in ("2026-11-20 09:00+05:30", "2026-11-20 10:00+05:30"):
            name = f"ticks_20261120_{hour[11:13]}"
            cursor.execute(
                f"CREATE TABLE {name} PARTITION OF ticks FOR VALUES FROM ('{hour}') "
                f"TO ('{hour}'::timestamptz + interval '1 hour')"
            )
            for row in rows:
                names, values = [*row, "time", "tradable"], [*row.values(), hour, True]
                marks = ", ".join(f"%s::{TYPES[name]}" for name in names)
                cursor.execute(f"INSERT INTO ticks ({', '.join(names)}) VALUES ({marks})", values)
        cursor.execute("SELECT * FROM ticks_with_symbols ORDER BY time, tick_id")
        before = cursor.fetchall()
    monkeypatch.setattr(module, "migration_files", lambda: [file for file in all_files if file.name < "0007"])
    assert migrate(empty_url) == ["0006_tick_rows"]
    with closing(connect(empty_url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT * FROM ticks_with_symbols ORDER BY time, tick_id")
        assert cursor.fetchall() == before
        cursor.execute("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1")
        assert cursor.fetchall() == [("ticks_20261120_09",), ("ticks_20261120_10",)]


def test_ticks_has_the_columns_of_the_schema_with_their_meaning(conn: connection) -> None:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT attname, format_type(atttypid, NULL), col_description(attrelid, attnum) "
            "FROM pg_attribute WHERE attrelid = 'ticks'::regclass AND attnum > 0 ORDER BY attnum"
        )
        found = cursor.fetchall()
    assert found == [
        (
            column.name,
            TYPES[column.name],
            f"{column.meaning} ({column.unit})" if column.unit else column.meaning,
        )
        for column in ticks.COLUMNS
    ]


def test_every_table_is_explained(conn: connection) -> None:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') "
            "AND obj_description(oid) IS NULL"
        )
        assert cursor.fetchall() == [("schema_migrations",)]
