from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.ingest.logbook import Logbook
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.subscribed import current, subscribed_during
from dhan_pipeline.ticks import Mode

NINE = datetime(2026, 11, 20, 3, 30, tzinfo=UTC)


def test_changes_wait_for_the_database_and_keep_their_order_and_time(conn: connection, database_url: str) -> None:
    book = Logbook(Settings())
    book.begin({1: Mode.FULL, 2: Mode.FULL}, NINE, None)
    for minutes, changes in enumerate(({1: None}, {1: Mode.QUOTE}, {3: Mode.FULL}), 1):
        book.change(changes, NINE + timedelta(minutes=minutes))  # type: ignore[arg-type]
    with closing(connect(database_url)) as lost:
        lost.close()
        with pytest.raises(psycopg2.InterfaceError):
            book.write(lost)
    book.write(conn)
    book.write(conn)
    assert current(conn, 0) == {1: Mode.QUOTE, 2: Mode.FULL, 3: Mode.FULL}
    assert [
        (row.instrument_token, row.mode, (row.since - NINE).seconds // 60)
        for row in subscribed_during(conn, NINE, NINE + timedelta(hours=1))
    ] == [(1, Mode.FULL, 0), (1, Mode.QUOTE, 2), (2, Mode.FULL, 0), (3, Mode.FULL, 3)]
