"""The existing system's database, upgraded in place: nothing of it changes, its queries answer, and one can go back."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import errors
from psycopg2.extensions import connection, parse_dsn

from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store import embedded, timescale
from dhan_pipeline.store import migrate as module
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.migrate import MigrationError, migrate, migration_files
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.ingest import feed, kite_feed
from dhan_pipeline_tests.ingest.feed import START_NS, HandClock, add_instruments, backlog_of, record, running, until
from dhan_pipeline_tests.store import existing_system
from dhan_pipeline_tests.store.existing_system import INSERT_TICK, LOAD_INSTRUMENTS, answers

SQL = migration_files()[0].parent
NINE = parse_hour_key("2026-11-18T09:00")

#: Every row of the existing system, byte by byte, by what is read.
INSTRUMENT_ROWS = """
SELECT string_agg(concat_ws('|', instrument_token, exchange_token, trading_symbol, coalesce(name, '-'), exchange,
    segment, instrument_type, coalesce(expiry::text, '-'), coalesce(strike::text, '-'), tick_size, lot_size,
    last_updated), E'\n' ORDER BY instrument_token) FROM instruments
"""
TICK_ROWS = "SELECT count(*), md5(string_agg(t::text, E'\n' ORDER BY time, instrument_token)) FROM {} t"
#: What tells two databases apart: columns, indexes, views.
SCHEMA = """
SELECT relname, relkind, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid),
    CASE WHEN relkind = 'v' THEN pg_get_viewdef(pg_class.oid) WHEN relkind = 'i' THEN pg_get_indexdef(pg_class.oid) END
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = 'public'::regnamespace AND attnum > 0 ORDER BY relname, attnum
"""


@pytest.fixture
def existing_url(database_url: str) -> str:
    """A database of the existing system; it shares the life of the test's own, whose tables are gone."""
    rows(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with closing(connect(database_url)) as conn:
        existing_system.build(conn)
    return database_url


@pytest.fixture
def new_url(postgres_url: str, template: str) -> Iterator[str]:
    """A new database beside the test's own."""
    url = create_database(postgres_url, "beside", template=template)
    yield url
    with closing(connect(postgres_url)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("DROP DATABASE beside WITH (FORCE)")


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def run_file(url: str, name: str) -> list[str]:
    """Run a file of `sql/`; returns what it says."""
    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute((SQL / name).read_text())
        return [notice.strip() for notice in conn.notices]


def as_numbers(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Prices are numeric in the existing system, and double precision in ours."""
    return {
        name: [tuple(float(value) if isinstance(value, Decimal) else value for value in row) for row in answer]
        for name, answer in found.items()
    }


def ask(url: str) -> dict[str, list[tuple[Any, ...]]]:
    with closing(connect(url)) as conn:
        return as_numbers(answers(conn))


def capture(url: str, folder: Path, source: Source) -> None:
    """What a capture of a source receives in an hour of 20 November, stored as its writer stores it."""
    settings = Settings(_env_file=None, data_source=source, data_dir=folder, database_url=url, sessions="always")
    made = feed if source == "dhan" else kite_feed
    known = {token for (token,) in rows(url, "SELECT instrument_token FROM instruments")}
    add_instruments(url, [token for token in made.TOKENS if token not in known])
    clock = HandClock()
    with closing(JournalWriter(settings.journal_dir, settings.capture_number)) as journal:
        record(journal, made.market_messages(300), START_NS)
        backlog = backlog_of(journal, settings)
        writer = Writer(settings, url, backlog, clock, pytest.fail)
        with running(writer, backlog):
            until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)


def test_no_row_of_the_existing_system_is_changed(existing_url: str) -> None:
    before = [rows(existing_url, INSTRUMENT_ROWS), rows(existing_url, TICK_ROWS.format("ticks"))]
    assert before[1][0][0] == 6000
    assert migrate(existing_url) == [file.stem for file in migration_files()]
    assert [rows(existing_url, INSTRUMENT_ROWS), rows(existing_url, TICK_ROWS.format("legacy_ticks"))] == before
    assert rows(existing_url, "SELECT DISTINCT source, is_active, security_id, exchange_segment FROM instruments") == [
        ("kite", True, None, None)
    ]
    assert rows(existing_url, "SELECT count(*) FROM active_instruments") == [(6,)]
    assert migrate(existing_url) == []


def test_its_queries_answer_as_before(existing_url: str) -> None:
    before = ask(existing_url)
    assert all(before.values())
    migrate(existing_url)
    assert ask(existing_url) == before
    rounded = (
        "SELECT DISTINCT round(last_price, 2)::text FROM ticks WHERE instrument_token = 260105 AND last_price = 1105"
    )
    assert rows(existing_url, rounded) == [("1105.00",)]


def test_its_rows_are_rows_of_ticks_with_the_symbols_of_their_instruments(existing_url: str) -> None:
    migrate(existing_url)
    at = "instrument_token = 14626306 AND time = '2026-11-18 09:15:01+05:30'"
    assert rows(
        existing_url,
        "SELECT tick_id, last_price, oi_day_high, bid_prices, bid_quantities, ask_orders, change, tradable, mode, "
        f"trading_symbol, strike FROM ticks_with_symbols WHERE {at}",
    ) == [
        (
            *(None, 1306.05, None, [1306.0, 1305.95, 1305.9, None, 0.0], [1, 1, 2, 0, 0], [1, 2, 3, 4, 5], None, True),
            *("full", "NIFTY26NOV26000CE", Decimal("26000.00")),
        )
    ]


def test_both_kinds_of_rows_are_found_by_their_indexes(existing_url: str) -> None:
    migrate(existing_url)
    with closing(connect(existing_url)) as conn:
        if timescale.is_hypertable(conn):
            pytest.skip("how a hypertable is read is seen in dhan_pipeline_tests/timescale")
        ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS)
    with closing(connect(existing_url)) as conn, conn.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET random_page_cost = 1")
        cursor.execute(
            "EXPLAIN SELECT last_price FROM ticks WHERE instrument_token = 738561 "
            "AND time >= '2026-11-18 09:20+05:30' AND time < '2026-11-18 09:25+05:30'"
        )
        plan = [line.strip() for (line,) in cursor.fetchall()]
    ours = next(at for at, line in enumerate(plan) if "ticks_20261118_09" in line)
    theirs = next(at for at, line in enumerate(plan) if "on legacy_ticks" in line)
    assert plan[ours + 1] == "Index Cond: (instrument_token = 738561)"
    assert plan[theirs + 1].startswith("Index Cond: ((\"time\" >= '2026-11-18 09:20:00+05:30'")
    assert plan[theirs + 1].endswith("AND (instrument_token = 738561))")
    assert "ticks_20261118_10" not in "".join(plan)


def test_its_loader_goes_on_loading_instruments_of_kite(existing_url: str) -> None:
    migrate(existing_url)
    rows(existing_url, LOAD_INSTRUMENTS)
    assert rows(
        existing_url, "SELECT name, source, is_active FROM active_instruments WHERE exchange_token IN (2885, 11536)"
    ) == [
        ("RELIANCE INDUSTRIES LTD", "kite", True),
        ("TATA CONSULTANCY", "kite", True),
    ]


def test_a_new_database_gets_the_same_instruments_table_index_and_view(existing_url: str, new_url: str) -> None:
    migrate(existing_url)
    columns = (
        "SELECT attname, format_type(atttypid, atttypmod), pg_get_expr(adbin, adrelid) FROM pg_attribute "
        "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = '{}'::regclass AND attnum > 0 "
        "AND attname <> 'last_updated' ORDER BY attname"
    )
    indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'instruments' ORDER BY 1"
    for query in (columns.format("instruments"), columns.format("active_instruments"), indexes):
        assert rows(existing_url, query) == rows(new_url, query)
    assert "CREATE INDEX instruments_security_id" in str(rows(new_url, indexes))


def test_every_file_may_be_run_again(existing_url: str) -> None:
    migrate(existing_url)
    found, schema = ask(existing_url), rows(existing_url, SCHEMA)
    for file in migration_files():
        run_file(existing_url, file.name)
    assert rows(existing_url, SCHEMA) == schema
    assert ask(existing_url) == found


def test_a_dry_run_prints_all_sql_and_changes_nothing(existing_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    schema = rows(existing_url, SCHEMA)
    names = migrate(existing_url, dry_run=True)
    said = capsys.readouterr().out
    assert all(file.read_text() in said for file in migration_files())
    assert rows(existing_url, SCHEMA) == schema
    assert migrate(existing_url) == names


def psql(url: str, name: str) -> None:
    program = embedded.client_program("psql") or shutil.which("psql")
    if program is None:
        pytest.skip("there is no psql")
    parts = parse_dsn(url)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    environment = os.environ | {names[key]: value for key, value in parts.items() if key in names}
    done = subprocess.run(
        [program, "-X", "-v", "ON_ERROR_STOP=1", "-1", "-f", SQL / name],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_psql_does_the_same_as_migrate(existing_url: str, new_url: str) -> None:
    other = new_url
    rows(other, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with closing(connect(other)) as conn:
        existing_system.build(conn)
    for file in migration_files():
        psql(other, file.name)
    migrate(existing_url)
    ours = "WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'schema_migrations%'"
    schema = SCHEMA.replace("WHERE relnamespace = 'public'::regnamespace", ours)
    assert rows(other, schema) == rows(existing_url, schema)
    assert ask(other) == ask(existing_url)
    before = rows(other, TICK_ROWS.format("legacy_ticks"))
    psql(other, "return_to_existing.sql")
    psql(other, "remove_dhan_data.sql")
    assert rows(other, TICK_ROWS.format("ticks")) == before


def test_the_file_for_instruments_works_alone(existing_url: str) -> None:
    before, instruments = ask(existing_url), rows(existing_url, INSTRUMENT_ROWS)
    for _ in range(2):
        run_file(existing_url, "add_dhan_security_id.sql")
    assert rows(existing_url, INSTRUMENT_ROWS) == instruments
    assert ask(existing_url) == before
    assert rows(
        existing_url, "SELECT count(*) FROM active_instruments WHERE source = 'kite' AND security_id IS NULL"
    ) == [(6,)]


def test_who_may_read_ticks_goes_on_reading_them(existing_url: str) -> None:
    rows(existing_url, "GRANT SELECT ON ticks TO pg_monitor, PUBLIC")
    migrate(existing_url)
    may = "has_table_privilege('pg_read_all_settings', 'ticks', '{}')"
    acl = "SELECT relacl::text FROM pg_class WHERE relname = 'ticks'"
    assert "pg_monitor=r/" in rows(existing_url, acl)[0][0]
    assert rows(existing_url, f"SELECT {may.format('SELECT')}, {may.format('INSERT')}") == [(True, False)]


def test_foreign_keys_of_integers_to_instruments_stay(existing_url: str) -> None:
    rows(
        existing_url,
        "CREATE TABLE watched (instrument_token integer REFERENCES instruments); INSERT INTO watched VALUES (738561)",
    )
    migrate(existing_url)
    with pytest.raises(errors.ForeignKeyViolation):
        rows(existing_url, "INSERT INTO watched VALUES (5)")


def test_a_view_that_is_in_the_way_is_named_and_nothing_is_changed(existing_url: str) -> None:
    rows(
        existing_url,
        "CREATE VIEW mine AS SELECT trading_symbol, last_price FROM ticks JOIN instruments USING (instrument_token);"
        "CREATE VIEW active_instruments AS SELECT trading_symbol FROM instruments;"
        "CREATE VIEW shares AS SELECT * FROM active_instruments",
    )
    schema = rows(existing_url, SCHEMA)
    with pytest.raises(MigrationError, match=r"changed nothing: Views of yours .* bigint: mine, shares\. Keep what"):
        migrate(existing_url)
    assert rows(existing_url, SCHEMA) == schema
    rows(existing_url, "DROP VIEW mine, shares")
    migrate(existing_url)


def test_views_of_ticks_alone_are_named_for_they_go_on_reading_the_old_rows(
    existing_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows(
        existing_url,
        "CREATE VIEW ticks_1min AS SELECT date_trunc('minute', time), max(last_price) FROM ticks GROUP BY 1",
    )
    before = rows(existing_url, "SELECT * FROM ticks_1min ORDER BY 1")
    with caplog.at_level(logging.WARNING):
        migrate(existing_url)
    assert "go on reading the rows of before alone, which are in legacy_ticks now: ticks_1min." in caplog.text
    assert rows(existing_url, "SELECT * FROM ticks_1min ORDER BY 1") == before


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DROP TABLE ticks; CREATE TABLE ticks (id int)", "What is named ticks in this database is not the table of"),
        ("ALTER TABLE ticks RENAME TO t; CREATE VIEW ticks AS SELECT * FROM t", "What is named ticks in this database"),
        ("CREATE TABLE legacy_ticks (a int)", "there is a legacy_ticks already"),
    ],
)
def test_a_table_that_is_in_the_way_is_named(existing_url: str, statement: str, sentence: str) -> None:
    rows(existing_url, statement)
    for _ in range(2):
        with pytest.raises(MigrationError, match=f"0000_existing_ticks.sql failed and changed nothing: .*{sentence}"):
            migrate(existing_url)


def test_a_table_with_a_tick_id_of_its_own_is_kept_as_well(existing_url: str) -> None:
    rows(existing_url, "ALTER TABLE ticks ADD COLUMN tick_id bigserial")
    before = rows(existing_url, TICK_ROWS.format("ticks"))
    migrate(existing_url)
    assert rows(existing_url, TICK_ROWS.format("legacy_ticks")) == before
    assert rows(existing_url, "SELECT count(*), count(tick_id) FROM ticks") == [(6000, 0)]


def test_no_file_drops_ticks_that_are_not_ours(existing_url: str) -> None:
    run_file(existing_url, "add_dhan_security_id.sql")
    for name in ("0001_instruments.sql", "0002_ticks.sql"):
        run_file(existing_url, name)
    with pytest.raises(errors.RaiseException, match=r"run sql/0000_existing_ticks\.sql first"):
        run_file(existing_url, "0006_tick_rows.sql")
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(6000,)]
    migrate(existing_url)
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(6000,)]


def test_a_database_of_ours_from_before_stays_as_it_is(
    database_url: str, new_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url
    rows(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    files = migration_files()
    monkeypatch.setattr(module, "migration_files", lambda: [file for file in files if "0001" <= file.name < "0015"])
    migrate(url)
    monkeypatch.undo()
    rows(url, "ALTER TABLE instruments ALTER source DROP DEFAULT; DROP INDEX instruments_security_id")
    late = [file.stem for file in files if not "0001" <= file.name < "0015"]
    assert migrate(url) == late
    assert rows(url, SCHEMA) == rows(database_url, SCHEMA)


def kites(url: str) -> dict[str, tuple[int, str]]:
    """Everything of Kite's, of both systems."""
    with closing(connect(url)) as conn:
        return existing_system.everything_of(conn, "kite")


def test_both_sources_are_captured_beside_the_old_rows_and_dhans_data_can_be_removed(
    existing_url: str, tmp_path: Path
) -> None:
    migrate(existing_url)
    capture(existing_url, tmp_path, "kite")
    of_kite = kites(existing_url)
    capture(existing_url, tmp_path, "dhan")
    assert kites(existing_url) == of_kite, "a capture of Dhan's touches nothing of Kite's"
    assert of_kite["tick_rows"][0] > 100
    counts = "SELECT tick_id IS NULL, instrument_token < 1099511627776, count(*) > 100 FROM ticks GROUP BY 1, 2"
    assert rows(existing_url, counts + " ORDER BY 1, 2") == [
        (False, False, True),
        (False, True, True),
        (True, True, True),
    ]
    rows(
        existing_url,
        "INSERT INTO hour_digests (hour, made_at, origin, rows, digest) SELECT hour, now(), 'capture', 1, '' "
        "FROM ingest_ledger GROUP BY 1",
    )

    said = run_file(existing_url, "remove_dhan_data.sql")
    assert any(line.startswith("NOTICE:  tick_rows: ") and not line.endswith(": 0 rows") for line in said)
    assert kites(existing_url) == of_kite
    assert rows(existing_url, counts + " ORDER BY 1, 2") == [(False, True, True), (True, True, True)]
    with closing(connect(existing_url)) as conn:
        assert not any(count for count, _ in existing_system.everything_of(conn, "dhan").values())
    assert rows(existing_url, "SELECT count(*) FROM hour_digests") == [(0,)], "it is recorded anew"
    assert {line.partition(": ")[2].partition(": ")[2] for line in run_file(existing_url, "remove_dhan_data.sql")} == {
        "0 rows"
    }
    old = "SELECT count(*) FROM ticks WHERE tick_id IS NULL"
    assert rows(existing_url, old) == [(6000,)]


def test_the_existing_system_takes_over_again_and_upgrades_again(existing_url: str, tmp_path: Path) -> None:
    before = ask(existing_url)
    migrate(existing_url)
    capture(existing_url, tmp_path, "dhan")
    both = rows(existing_url, TICK_ROWS.format("ticks"))
    with pytest.raises(errors.Error):
        rows(existing_url, INSERT_TICK)

    for _ in range(2):
        run_file(existing_url, "return_to_existing.sql")
    assert {**ask(existing_url), "instruments": []} == {**before, "instruments": []}
    for _ in range(2):
        rows(existing_url, INSERT_TICK)
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(6001,)]
    # With one more row, both are still to be seen together.
    assert rows(existing_url, "SELECT count(*) FROM ticks_upgraded") == [(both[0][0] + 1,)]
    with pytest.raises(errors.RaiseException, match=r"run sql/0000_existing_ticks\.sql first"):
        run_file(existing_url, "0006_tick_rows.sql")

    assert migrate(existing_url) == ["0000_existing_ticks", "0018_ticks_with_legacy"]
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(both[0][0] + 1,)]
    rows(existing_url, "DELETE FROM legacy_ticks WHERE time >= '2026-11-20'")
    assert rows(existing_url, TICK_ROWS.format("ticks")) == both
    assert rows(existing_url, "SELECT to_regclass('ticks_upgraded')") == [(None,)]
    assert migrate(existing_url) == []


def test_a_program_that_still_uses_the_tables_is_not_kept_waiting_for_ever(
    existing_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.2)
    with closing(connect(existing_url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ticks")
        with pytest.raises(MigrationError, match=r"0000_existing_ticks\.sql changed nothing: another program uses"):
            migrate(existing_url)
    migrate(existing_url)
    assert rows(existing_url, "SELECT count(*) FROM legacy_ticks") == [(6000,)]


@pytest.mark.parametrize("may", ["GRANT USAGE ON SCHEMA public TO PUBLIC", "REVOKE ALL ON SCHEMA public FROM PUBLIC"])
def test_a_role_that_may_not_is_told_what_it_needs(existing_url: str, may: str) -> None:
    def as_reader(url: str) -> str:
        return f"{url}{'&' if '?' in url else '?'}options=-c%20role%3Dpg_monitor"

    rows(existing_url, may)
    schema = rows(existing_url, SCHEMA)
    with pytest.raises(MigrationError, match=r"changed nothing: .*\. Migrate as a role that owns the tables and views"):
        migrate(as_reader(existing_url))
    assert rows(existing_url, SCHEMA) == schema


def test_a_view_of_active_instruments_that_meant_something_else_is_told_before_it_is_replaced(
    existing_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows(existing_url, "CREATE VIEW active_instruments AS SELECT * FROM instruments WHERE exchange = 'NSE'")
    rows(existing_url, "GRANT SELECT ON active_instruments TO pg_monitor, PUBLIC")
    migrate(existing_url)
    can = "SELECT has_table_privilege('pg_read_all_stats', 'active_instruments', 'SELECT'), relacl::text FROM pg_class"
    [(can_read, rights)] = rows(existing_url, f"{can} WHERE oid = 'active_instruments'::regclass")
    assert can_read
    assert "pg_monitor=r/" in rights
    assert "active_instruments of yours is replaced" in caplog.text
    assert "'NSE'" in caplog.text
    assert rows(existing_url, "SELECT count(*) FROM active_instruments") == [(6,)]


@pytest.mark.parametrize("last", ["0000", "0001", "0005", "0006", "0015"])
def test_there_is_a_way_back_from_an_upgrade_that_ended_half_way(
    existing_url: str, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    before = rows(existing_url, TICK_ROWS.format("ticks"))
    files = migration_files()
    until_then = [file for file in files if not file.name[0].isdigit() or file.name[:4] <= last]
    monkeypatch.setattr(module, "migration_files", lambda: until_then)
    migrate(existing_url)
    for _ in range(2):
        run_file(existing_url, "return_to_existing.sql")
        assert rows(existing_url, TICK_ROWS.format("ticks")) == before
    rows(existing_url, INSERT_TICK)
    monkeypatch.undo()
    migrate(existing_url)
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(6001,)]
    run_file(existing_url, "return_to_existing.sql")
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(6001,)]


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("CREATE TABLE feed_gaps (a int); CREATE VIEW candles_1m AS SELECT 1 AS a", "candles_1m, feed_gaps"),
        ("ALTER TABLE instruments RENAME trading_symbol TO tradingsymbol", "no trading_symbol"),
    ],
)
def test_what_a_later_file_would_stumble_over_is_named_before_ticks_is_renamed(
    existing_url: str, statement: str, names: str
) -> None:
    rows(existing_url, statement)
    with pytest.raises(MigrationError, match=names):
        migrate(existing_url)
    rows(existing_url, INSERT_TICK)  # its worker goes on
    assert rows(existing_url, "SELECT count(*) FROM ticks") == [(6001,)]


def test_the_names_that_may_not_be_taken_are_all_of_ours(database_url: str) -> None:
    text = (SQL / "0000_existing_ticks.sql").read_text()
    ours = rows(
        database_url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')"
        " AND NOT relispartition"
        " AND relname NOT IN ('instruments', 'active_instruments', 'ticks', 'schema_migrations')",
    )
    assert [name for (name,) in ours if f"'{name}'" not in text] == []


def test_there_is_nothing_to_return_to_in_a_new_database(conn: connection, database_url: str) -> None:
    schema = rows(database_url, SCHEMA)
    assert run_file(database_url, "return_to_existing.sql") == [
        "NOTICE:  There is no table legacy_ticks: nothing to return to."
    ]
    assert rows(database_url, SCHEMA) == schema
