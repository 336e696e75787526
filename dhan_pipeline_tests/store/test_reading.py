from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.store.reading import Reader
from dhan_pipeline_tests.ingest.feed import end_sessions, outage


def pid(conn: connection) -> int:
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        found: int = cursor.fetchall()[0][0]
    return found


@pytest.fixture
def reader(database_url: str) -> Iterator[Reader]:
    with closing(Reader(database_url)) as opened:
        yield opened


def test_a_connection_is_kept_from_one_question_to_the_next(reader: Reader) -> None:
    assert reader.read(pid) == reader.read(pid)


def test_nothing_can_be_changed(reader: Reader) -> None:
    def change(conn: connection) -> None:
        with conn.cursor() as cursor:
            cursor.execute("DELETE FROM captures")

    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        reader.read(change)


def test_a_question_that_fails_costs_no_connection(reader: Reader) -> None:
    asked = []

    def fail(conn: connection) -> None:
        asked.append(pid(conn))
        raise KeyError

    with pytest.raises(KeyError):
        reader.read(fail)
    assert reader.read(pid) == asked[0]


def test_a_connection_that_was_lost_is_made_again(reader: Reader, postgres_url: str, database_url: str) -> None:
    before = reader.read(pid)
    end_sessions(postgres_url, database_url)
    assert reader.read(pid) != before


def test_while_the_database_is_away_it_says_so(reader: Reader, postgres_url: str, database_url: str) -> None:
    reader.read(pid)
    with outage(postgres_url, database_url), pytest.raises(psycopg2.OperationalError):
        reader.read(pid)
    reader.read(pid)
