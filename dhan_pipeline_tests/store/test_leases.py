import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from threading import Thread

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.leases import join, leave_lane, take_lane, workers
from dhan_pipeline_tests.ingest.feed import end_sessions, query, until

#: Sessions that wait for a lock.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def others(database_url: str) -> Iterator[list[connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(connect(database_url))) for _ in range(2)]


def test_workers_are_counted_while_they_live(conn: connection, others: list[connection]) -> None:
    assert workers(conn) == 0
    for number, each in enumerate((conn, *others), 1):
        join(each)
        assert workers(conn) == number
    others[0].close()
    until(lambda: workers(conn) == 2)


def test_a_worker_counts_once_however_often_it_joins(conn: connection) -> None:
    join(conn)
    join(conn)
    assert workers(conn) == 1


def test_workers_of_another_database_do_not_count(conn: connection, postgres_url: str) -> None:
    join(conn)
    with closing(connect(create_database(postgres_url, "elsewhere"))) as other:
        join(other)
        assert workers(conn) == workers(other) == 1


def test_a_lane_has_one_worker_until_it_is_left(conn: connection, others: list[connection]) -> None:
    first, second = others
    assert take_lane(first, 1)
    assert not take_lane(second, 1)
    assert take_lane(second, 2)
    leave_lane(first, 1)
    assert take_lane(second, 1)
    assert not take_lane(conn, 1)


def test_who_loses_the_connection_loses_worker_and_lanes(
    conn: connection, others: list[connection], postgres_url: str, database_url: str
) -> None:
    join(others[0])
    assert take_lane(others[0], 3)
    conn.close()
    end_sessions(postgres_url, database_url)
    with closing(connect(database_url)) as successor:
        until(lambda: take_lane(successor, 3))
        assert workers(successor) == 0


def test_no_transaction_is_left_open_and_none_undoes_a_lease(conn: connection, others: list[connection]) -> None:
    join(conn)
    assert take_lane(conn, 1)
    assert workers(conn) == 1
    assert conn.info.transaction_status == 0
    conn.rollback()
    assert not take_lane(others[0], 1)


def test_the_server_gives_up_a_worker_that_is_silent(conn: connection) -> None:
    join(conn)
    with conn.cursor() as cursor:
        cursor.execute("SHOW idle_session_timeout")
        assert cursor.fetchall() == [("30s",)]


def test_a_worker_that_is_killed_while_the_server_waits_for_a_lock_loses_its_lanes(
    conn: connection, others: list[connection], database_url: str
) -> None:
    killed, other = others
    join(killed)
    assert take_lane(killed, 1)
    with other.cursor() as cursor:
        cursor.execute("LOCK TABLE ingest_ledger")

    def write() -> None:
        with killed.cursor() as cursor, suppress(psycopg2.OperationalError):
            cursor.execute("LOCK TABLE ingest_ledger")

    thread = Thread(target=write)
    thread.start()
    until(lambda: query(database_url, WAITING) == [(1,)])
    with socket.socket(fileno=os.dup(killed.fileno())) as connected:
        connected.shutdown(socket.SHUT_RDWR)
    thread.join()
    until(lambda: take_lane(conn, 1))
