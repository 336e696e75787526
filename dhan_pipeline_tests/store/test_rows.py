"""Stored rows as Arrow tables: what was written, and what the view `ticks` says, to the last bit."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection

from dhan_pipeline.enrich import DERIVED, derived
from dhan_pipeline.store.rows import each_tick_table, read_tick_table, tick_batches
from dhan_pipeline.ticks import COLUMNS, Mode, arrow_schema
from dhan_pipeline_tests.store.batches import bits_of, make_batch, rows_of, stored


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sets(st.sampled_from(list(Mode)), min_size=1))
def test_what_is_written_is_read_back_to_the_last_bit(
    conn: connection, seed: int, absent: float, modes: set[Mode]
) -> None:
    batches = [make_batch(mode, 20, seed, absent) for mode in Mode if mode in modes]
    with stored(conn, batches) as cur:
        table = read_tick_table(conn, "TRUE", [], order="tick_id")
        cur.execute(f"SELECT {', '.join(column.name for column in COLUMNS)} FROM ticks ORDER BY tick_id")
        seen = [dict(zip((column.name for column in COLUMNS), row, strict=True)) for row in cur.fetchall()]
    table.validate(full=True)
    assert table.schema.equals(arrow_schema(), check_metadata=True)
    assert bits_of(table.to_pylist()) == bits_of(rows_of(batches)) == bits_of(seen)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 1.0]))
def test_batches_of_a_table_are_those_that_were_written(conn: connection, seed: int, absent: float) -> None:
    batches = [make_batch(mode, 20, seed, absent) for mode in Mode]
    with stored(conn, batches):
        table = read_tick_table(conn, "TRUE", [], order="tick_id")
    again = tick_batches(table)
    assert bits_of(rows_of(again)) == bits_of(rows_of(batches))
    with stored(conn, again, "again"):
        assert read_tick_table(conn, "TRUE", [], order="tick_id", relation="again").equals(table)


def test_rows_come_in_parts_in_the_order_asked_for(conn: connection) -> None:
    parts: list[pa.Table] = []
    with stored(conn, [make_batch(mode, 20) for mode in Mode]):
        each_tick_table(conn, "mode <> %s", ["quote"], parts.append, order="tick_id DESC", rows_at_once=15)
    assert [part.num_rows for part in parts] == [15, 15, 10]
    assert pa.concat_tables(parts)["tick_id"].to_pylist() == [*range(2019, 1999, -1), *range(19, -1, -1)]


def test_without_rows_the_table_is_empty(conn: connection) -> None:
    table = read_tick_table(conn, "instrument_token = %(token)s", {"token": 1})
    assert table.num_rows == 0
    assert table.schema == arrow_schema()
    assert tick_batches(table) == []


def test_batches_of_a_part_of_a_table_are_of_that_part(conn: connection) -> None:
    batches = [make_batch(mode, 20, absent=0.3) for mode in Mode]
    with stored(conn, batches):
        table = read_tick_table(conn, "TRUE", [], order="tick_id")
    part = pa.concat_tables([table.slice(5, 30), table.slice(50, 7)])
    assert bits_of(rows_of(tick_batches(part))) == bits_of(part.to_pylist())


@pytest.mark.parametrize("mode", list(Mode))
def test_a_mode_has_only_the_derived_columns_that_its_own_lead_to(mode: Mode) -> None:
    names = {
        Mode.TICKER: DERIVED[:2],
        Mode.QUOTE: ("change", "change_percent", "order_imbalance"),
        Mode.FULL: DERIVED,
    }
    assert set(derived(make_batch(mode, 3).columns)) == set(names[mode])
