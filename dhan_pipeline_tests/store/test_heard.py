from datetime import timedelta

from psycopg2.extensions import connection

from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.heard import count_ticks
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

NINE = instant(parse_hour_key("2026-11-20T09:00"))
TEN = NINE + timedelta(hours=1)
FIRST = 1 << 40  # the token of a block's first tick, and of its fourth with three a mode


def test_ticks_of_each_instrument_are_counted_up_to_a_limit(conn: connection) -> None:
    blocks = [make_block(1, ticks=1), make_block(2, ticks=2), make_block(3, hour="2026-11-20T10:00")]
    write_blocks(conn, blocks, StandingClock(8))
    tokens = [FIRST, FIRST + 1, FIRST + 2]
    assert count_ticks(conn, tokens, NINE, TEN, 100) == {FIRST: 4, FIRST + 1: 2, FIRST + 2: 0}
    assert count_ticks(conn, tokens, NINE, TEN, 1) == {FIRST: 1, FIRST + 1: 1, FIRST + 2: 0}
    assert count_ticks(conn, tokens, NINE, TEN + timedelta(hours=1), 100)[FIRST + 2] == 2
    assert count_ticks(conn, [], NINE, TEN, 1) == {}


def test_the_session_s_planner_is_left_as_it_was(conn: connection) -> None:
    count_ticks(conn, [FIRST], NINE, TEN, 1)
    with conn.cursor() as cursor:
        cursor.execute("SELECT current_setting('enable_seqscan')")
        assert cursor.fetchall() == [("on",)]
