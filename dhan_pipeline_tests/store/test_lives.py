import re
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.store.lives import SYMBOL_FIELDS, read_lives, with_symbols
from dhan_pipeline.store.rows import read_tick_table
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.store.batches import AT_NS, RELIANCE, USDINR, add_lives, make_batch, store

START = datetime.fromtimestamp(AT_NS / 1e9, UTC)
NAMES = [field.name for field in SYMBOL_FIELDS]


def table_of(conn: connection) -> pa.Table:
    store(conn, [make_batch(Mode.TICKER, 40)])
    return read_tick_table(conn, "TRUE", [], order="instrument_token, time")


@pytest.mark.parametrize("renamed", [[], [20], [-5, 10, 11, 20, 100]])
def test_each_row_says_what_its_token_meant_at_its_time(conn: connection, renamed: list[int]) -> None:
    add_lives(conn, RELIANCE, [START + timedelta(microseconds=at) for at in renamed] or [START])
    table = table_of(conn)
    lives = read_lives(conn, [RELIANCE, USDINR], START, START + timedelta(microseconds=40))
    found = with_symbols(table, lives).select(["tick_id", *NAMES]).to_pylist()
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT tick_id, trading_symbol, exchange, instrument_type, underlying_symbol, expiry, strike::float8, "
            "option_type FROM ticks_with_symbols ORDER BY instrument_token, time"
        )
        assert [tuple(row.values()) for row in found] == cursor.fetchall()
    assert len({row["trading_symbol"] for row in found}) > max(1, len(renamed) - 2)


def test_instruments_of_few_ticks_are_looked_up_one_by_one(conn: connection) -> None:
    table_of(conn)
    with conn.cursor() as cursor:
        for way in ("seqscan", "hashjoin", "mergejoin", "material"):  # what small tables are read by
            cursor.execute(f"SET LOCAL enable_{way} = off")
        cursor.execute("EXPLAIN SELECT trading_symbol FROM ticks_with_symbols")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    for index in ("instruments_pkey on instruments i", "instrument_versions_pkey on instrument_versions v"):
        assert re.search(rf"{index} .*\n\s+Index Cond: \(instrument_token = \S*tick\S*\)", plan), plan


def test_without_any_life_the_columns_are_null(conn: connection) -> None:
    table = with_symbols(table_of(conn), read_lives(conn, [], START, START))
    assert table.schema.names[-len(NAMES) :] == NAMES
    assert all(table[name].null_count == 40 for name in NAMES)
