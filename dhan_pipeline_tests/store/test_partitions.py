import threading
from contextlib import closing
from datetime import date, datetime

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import timescale
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import (
    HOUR_LOCK,
    Expired,
    drop_expired,
    ensure_partitions,
    instant,
    partition_name,
)

NINE = parse_hour_key("2026-11-20T09:00")


pytestmark = pytest.mark.usefixtures("partitions_ahead")


def _bounds(conn: connection) -> dict[str, tuple[datetime, datetime]]:
    """Of each partition, or chunk."""
    with conn, conn.cursor() as cursor:
        if timescale.is_hypertable(conn):
            cursor.execute(timescale.CHUNKS)
        else:
            cursor.execute(
                "SELECT relname, (regexp_matches(bounds, $$FROM \\('(.*?)'$$))[1]::timestamptz, "
                "(regexp_matches(bounds, $$TO \\('(.*?)'$$))[1]::timestamptz FROM pg_inherits "
                "JOIN pg_class ON pg_class.oid = inhrelid, pg_get_expr(relpartbound, pg_class.oid) AS bounds "
                "WHERE inhparent = 'tick_rows'::regclass ORDER BY 1"
            )
        return {name: (start, end) for name, start, end in cursor.fetchall()}


def test_a_partition_is_named_by_its_hour_in_ist() -> None:
    assert partition_name(NINE) == "ticks_20261120_09"
    assert partition_name(NINE + HOUR_NS - 1) == "ticks_20261120_09"
    assert partition_name(parse_hour_key("2026-11-21T00:00")) == "ticks_20261121_00"


def test_partitions_cover_a_range_of_hours_cut_in_ist(conn: connection) -> None:
    assert ensure_partitions(conn, NINE + 1, NINE + HOUR_NS + 1) == ["ticks_20261120_09", "ticks_20261120_10"]
    assert _bounds(conn) == {
        "ticks_20261120_09": (instant(NINE), instant(NINE + HOUR_NS)),
        "ticks_20261120_10": (instant(NINE + HOUR_NS), instant(NINE + 2 * HOUR_NS)),
    }


def test_what_exists_is_left_alone(conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    assert ensure_partitions(conn, NINE, NINE + HOUR_NS) == []
    assert ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS) == ["ticks_20261120_10"]


def test_concurrent_callers_make_each_partition_once(database_url: str, conn: connection) -> None:
    made: list[str] = []

    def make() -> None:
        with closing(connect(database_url)) as own:
            made.extend(ensure_partitions(own, NINE, NINE + 6 * HOUR_NS))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(_bounds(conn))
    assert len(made) == 6


def test_readers_and_writers_do_not_wait_for_a_new_partition(database_url: str, conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    with closing(connect(database_url)) as busy, busy.cursor() as cursor:
        # The locks of an open query and of an open COPY, in a transaction that does not end.
        cursor.execute("SELECT count(*) FROM ticks")
        cursor.execute("LOCK TABLE ticks IN ROW EXCLUSIVE MODE")
        with conn.cursor() as impatient:
            impatient.execute("SET lock_timeout = '2s'")
        conn.commit()
        assert ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS) == ["ticks_20261120_10"]


def test_a_day_expires_when_it_ended_too_many_days_ago(conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + 3 * HOUR_NS)
    ensure_partitions(conn, NINE + 15 * HOUR_NS, NINE + 16 * HOUR_NS)
    seven_days_on = NINE + 7 * 24 * HOUR_NS + 15 * HOUR_NS
    assert drop_expired(conn, 7, seven_days_on - 1) == Expired([], [])
    dropped = ["ticks_20261120_09", "ticks_20261120_10", "ticks_20261120_11"]
    assert drop_expired(conn, 7, seven_days_on) == Expired(dropped, [])
    assert list(_bounds(conn)) == ["ticks_20261121_00"]


def test_an_expired_day_that_may_not_be_dropped_is_kept(conn: connection) -> None:
    for days in range(3):
        ensure_partitions(conn, NINE + 24 * days * HOUR_NS, NINE + (24 * days + 2) * HOUR_NS)
    asked: list[date] = []

    def may_drop(day: date) -> bool:
        asked.append(day)
        return day != date(2026, 11, 20)

    expired = drop_expired(conn, 1, NINE + 3 * 24 * HOUR_NS, may_drop)
    assert expired == Expired(["ticks_20261121_09", "ticks_20261121_10"], [date(2026, 11, 20)])
    assert asked == [date(2026, 11, 20), date(2026, 11, 21)]


def test_dropping_gives_way_to_a_long_query_and_succeeds_later(database_url: str, conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    with closing(connect(database_url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ticks")
        assert drop_expired(conn, 1, NINE + 48 * HOUR_NS) == Expired([], [], [date(2026, 11, 20)])
    assert drop_expired(conn, 1, NINE + 48 * HOUR_NS) == Expired(["ticks_20261120_09"], [])


def test_dropping_gives_way_to_who_writes_to_the_hour(database_url: str, conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    with closing(connect(database_url)) as writer, writer.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (HOUR_LOCK, NINE // HOUR_NS))
        assert drop_expired(conn, 1, NINE + 48 * HOUR_NS) == Expired([], [], [date(2026, 11, 20)])
