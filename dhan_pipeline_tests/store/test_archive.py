"""A day as a Parquet file: what it holds, who can read it, and that it is whole or not there."""

import errno
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.store import archive
from dhan_pipeline.store.archive import (
    ArchivedDay,
    ArchiveError,
    archive_day,
    archive_schema,
    archived_days,
    day_is_archived,
)
from dhan_pipeline.store.digests import Digest, table_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.lives import Lives
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline.ticks import COLUMNS, Mode
from dhan_pipeline_tests.store.batches import AT_NS, RELIANCE, USDINR, add_lives, bits_of, make_batch, store
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

DAY = date(2026, 11, 20)
FILE = "archive/ticks/date=2026-11-20/ticks.parquet"
NIGHT = StandingClock(15.5 * 3600)  # half past midnight
NAMES = [*(column.name for column in COLUMNS), "trading_symbol", "exchange", "instrument_type", "underlying_symbol"]


def fill(conn: connection, rows: int = 40) -> None:
    """Ticks of all modes in three hours of the day, and one on each side of it."""
    add_lives(conn, RELIANCE, [datetime.fromtimestamp(AT_NS / 1e9, UTC) + timedelta(seconds=at) for at in (-9, 10, 20)])
    add_lives(conn, USDINR, [], "USDINR")
    store(conn, [make_batch(mode, rows, absent=0.2, every_us=1_000_000) for mode in Mode])
    start_ns = AT_NS - 9 * HOUR_NS - HOUR_NS // 2  # midnight, IST
    for number, at_ns in enumerate(
        (start_ns - 1000, start_ns, start_ns + 24 * HOUR_NS - 1000, start_ns + 24 * HOUR_NS)
    ):
        store(conn, [make_batch(Mode.FULL, 1, number, at_ns=at_ns)])


def make(conn: connection, tmp_path: Path, **options: Any) -> ArchivedDay:
    return archive_day(conn, tmp_path, DAY, NIGHT, **options)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())


def test_the_file_holds_the_day_as_the_view_says_it_to_the_last_bit(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    archived = make(conn, tmp_path)
    table = pq.read_table(tmp_path / FILE, partitioning=None)
    assert table.schema.equals(archive_schema())
    with conn.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(NAMES)}, expiry, strike::float8 AS strike, option_type FROM ticks_with_symbols "
            "WHERE time >= '2026-11-20T00:00+05:30' AND time < '2026-11-21T00:00+05:30' "
            "ORDER BY instrument_token, time, tick_id"
        )
        names = [column.name for column in cursor.description or ()]
        seen = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    assert bits_of(table.to_pylist()) == bits_of(seen)
    assert len(set(table["trading_symbol"].to_pylist())) == 4
    assert archived == archived_days(conn)[0]
    assert archived.rows == len(seen) == 122
    assert (archived.file, archived.bytes) == (FILE, (tmp_path / FILE).stat().st_size)
    assert files(tmp_path) == [FILE]


def test_the_file_says_what_it_is(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    archived = make(conn, tmp_path, row_group=50)
    file = pq.ParquetFile(tmp_path / FILE)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [50, 50, 22]
    assert {column.compression for column in map(file.metadata.row_group(0).column, range(30))} == {"ZSTD"}
    facts = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert facts == {
        "dhan_pipeline.version": "0.1.0",
        "dhan_pipeline.day": "2026-11-20",
        "dhan_pipeline.rows": "122",
        "dhan_pipeline.digest": archived.digest,
    }
    assert file.schema_arrow.field("strike").metadata[b"unit"] == b"rupees"
    assert file.schema_arrow.field("oi").metadata[b"meaning"] == b"open interest"


def test_pandas_polars_and_duckdb_read_the_same(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    make(conn, tmp_path, row_group=50)
    folder = tmp_path / "archive" / "ticks"
    by_pandas = pd.read_parquet(folder, dtype_backend="pyarrow")
    by_polars = pl.read_parquet(folder / "**" / "*.parquet", hive_partitioning=True)
    by_duckdb = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/*/*.parquet', hive_partitioning = true)").arrow()
    expected = comparable(pa.Table.from_pandas(by_pandas))
    assert expected.num_rows == 122
    assert set(map(str, expected["date"].to_pylist())) == {"2026-11-20"}
    assert bits_of(comparable(by_polars.to_arrow()).to_pylist()) == bits_of(expected.to_pylist())
    assert bits_of(comparable(by_duckdb.read_all()).to_pylist()) == bits_of(expected.to_pylist())


def comparable(table: pa.Table) -> pa.Table:
    """The same columns with the same types, whatever a reader makes of text, lists and NULLs in integers."""
    columns = {}
    for field in pa.schema([*archive_schema(), ("date", pa.string())]):
        kind = pa.string() if pa.types.is_dictionary(field.type) else field.type
        values = table[field.name]
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        columns[field.name] = pa.chunked_array(values.cast(kind).chunks, kind)
    return pa.table(columns)


def test_an_older_archive_of_the_day_is_replaced(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    before = make(conn, tmp_path)
    store(conn, [make_batch(Mode.TICKER, 5, at_ns=AT_NS + HOUR_NS)])
    after = make(conn, tmp_path)
    assert (before.rows, after.rows) == (122, 127)
    assert archived_days(conn) == [after]
    assert pq.read_metadata(tmp_path / FILE).num_rows == 127


def test_a_day_that_is_not_over_is_refused(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    with pytest.raises(ArchiveError, match="is not over yet"):
        archive_day(conn, tmp_path, DAY, StandingClock(15 * 3600 - 1))
    assert files(tmp_path) == []


def test_a_day_without_ticks_is_refused(conn: connection, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no ticks of 2026-11-20"):
        make(conn, tmp_path)
    assert files(tmp_path) == []


def test_two_do_not_archive_a_day_at_once(
    conn: connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    refused = []

    def meanwhile(table: pa.Table, lives: Lives) -> pa.Table:
        with closing(connect(database_url)) as other, pytest.raises(ArchiveError, match="by somebody else"):
            make(other, tmp_path)
        refused.append(table.num_rows)
        return with_symbols(table, lives)

    with_symbols = archive.with_symbols
    monkeypatch.setattr(archive, "with_symbols", meanwhile)
    assert make(conn, tmp_path).rows == 122
    assert refused == [122]
    assert files(tmp_path) == [FILE]


def test_what_fails_midway_leaves_no_file_and_the_old_one_as_it_was(
    conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    written: list[pa.Table] = []

    def die(table: pa.Table, lives: Lives) -> pa.Table:
        written.append(table)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return with_symbols(table, lives)

    with_symbols = archive.with_symbols
    monkeypatch.setattr(archive, "with_symbols", die)
    with pytest.raises(ArchiveError, match=r"2026-11-20 cannot be written, .*: No space left on device\."):
        make(conn, tmp_path, row_group=10)
    assert files(tmp_path) == []
    monkeypatch.undo()
    before = make(conn, tmp_path)
    old = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr(archive, "with_symbols", die)
    written.clear()
    with pytest.raises(ArchiveError, match="No space"):
        make(conn, tmp_path, row_group=10)
    assert files(tmp_path) == [FILE]
    assert (tmp_path / FILE).read_bytes() == old
    assert archived_days(conn) == [before]


def test_a_folder_that_cannot_be_written_to_is_named(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    (tmp_path / "archive").write_text("in the way")
    with pytest.raises(ArchiveError, match=r"written, .*/archive/ticks/date=2026-11-20/ticks\.parquet: Not a"):
        make(conn, tmp_path)
    assert archived_days(conn) == []


def test_who_reads_the_folder_while_it_is_archived_again_gets_the_old_file(
    conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    rows = make(conn, tmp_path).rows
    read = []

    def meanwhile(table: pa.Table, lives: Lives) -> pa.Table:
        read.append(len(pd.read_parquet((tmp_path / FILE).parent, columns=["time"])))
        return with_symbols(table, lives)

    with_symbols = archive.with_symbols
    monkeypatch.setattr(archive, "with_symbols", meanwhile)
    make(conn, tmp_path)
    assert read == [rows]


def test_a_file_that_holds_anything_else_than_the_table_gets_no_name(
    conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)

    def wrong(table: pa.Table, lives: Lives) -> pa.Table:
        at = table.schema.get_field_index("last_price")
        prices = table["last_price"].to_numpy().copy()
        prices[1] = np.nextafter(prices[1], np.inf)
        return with_symbols(table.set_column(at, "last_price", pa.array(prices, from_pandas=True)), lives)

    with_symbols = archive.with_symbols
    monkeypatch.setattr(archive, "with_symbols", wrong)
    with pytest.raises(ArchiveError, match="would not hold what the table holds"):
        make(conn, tmp_path)
    assert files(tmp_path) == []
    assert archived_days(conn) == []


def test_a_day_may_go_only_while_the_archive_holds_exactly_its_rows(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    assert not day_is_archived(conn, tmp_path, DAY)
    make(conn, tmp_path)
    assert day_is_archived(conn, tmp_path, DAY)
    with conn.cursor() as cursor:
        cursor.execute("UPDATE tick_rows SET volume_traded = volume_traded + 1 WHERE tick_id = 2000")
        assert not day_is_archived(conn, tmp_path, DAY)
        conn.rollback()
        cursor.execute("DELETE FROM tick_rows WHERE tick_id = 2000")
        assert not day_is_archived(conn, tmp_path, DAY)
        conn.rollback()
    assert day_is_archived(conn, tmp_path, DAY)
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:-1])
    assert not day_is_archived(conn, tmp_path, DAY)
    (tmp_path / FILE).unlink()
    assert not day_is_archived(conn, tmp_path, DAY)


def test_a_day_without_ticks_may_go(conn: connection, tmp_path: Path) -> None:
    assert day_is_archived(conn, tmp_path, DAY)


def test_an_hour_that_was_rebuilt_after_its_day_was_dropped_may_go_again(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    make(conn, tmp_path)
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM tick_rows WHERE time < '2026-11-20T09:00+05:30' OR time > '2026-11-20T10:00+05:30'")
        assert day_is_archived(conn, tmp_path, DAY)
        cursor.execute("UPDATE tick_rows SET oi = 1 WHERE tick_id = 2000")
        assert not day_is_archived(conn, tmp_path, DAY)


def test_a_part_of_a_day_does_not_replace_the_whole(conn: connection, tmp_path: Path) -> None:
    write_blocks(conn, [make_block(1), make_block(2, hour="2026-11-20T10:00")], NIGHT)
    whole = make(conn, tmp_path)
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM tick_rows WHERE time >= '2026-11-20T10:00+05:30'")
    with pytest.raises(ArchiveError, match=r"lacks ticks of 2026-11-20 that the ledger has, in the hours 10 \(IST\)"):
        make(conn, tmp_path)
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM tick_rows")
    with pytest.raises(ArchiveError, match=r"in the hours 09, 10 \(IST\)"):
        make(conn, tmp_path)
    assert archived_days(conn) == [whole]
    assert pq.read_metadata(tmp_path / FILE).num_rows == 12


def test_the_digest_of_a_day_is_that_of_its_rows(conn: connection, tmp_path: Path) -> None:
    fill(conn)
    archived = make(conn, tmp_path)
    with conn.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE day AS SELECT * FROM tick_rows "
            "WHERE time >= '2026-11-20T00:00+05:30' AND time < '2026-11-21T00:00+05:30'"
        )
    assert Digest(archived.rows, archived.digest) == table_digest(conn, "day")
    assert list(archived.hours) == ["00", "09", "23"]
