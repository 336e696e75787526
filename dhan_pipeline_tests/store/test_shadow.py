"""Both brokers' ticks read, and the rows of a comparison replaced, in a real database."""

from typing import Any

import numpy as np
from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.store.shadow import COLUMNS, count_ticks, read_ticks, replace_shadow_comparisons
from dhan_pipeline.ticks import NULL_INT
from dhan_pipeline_tests.two_feeds import HOUR, RELIANCE, START_NS, START_US, TCS, columns, honest, store


def test_ticks_come_back_as_they_are(conn: connection) -> None:
    dhan, kite = honest(RELIANCE, trades=50)
    store(conn, dhan, kite, *honest(TCS, 1, trades=20))
    counts = count_ticks(conn, START_NS, START_NS + HOUR_NS)
    assert counts[RELIANCE.kite_token] == len(kite.time_us)
    assert len(counts) == 4
    found = read_ticks(conn, [RELIANCE.dhan_token, RELIANCE.kite_token], START_NS, START_NS + HOUR_NS)
    order = found["tick_id"].argsort()
    for name, expected in columns([dhan, kite]).items():
        np.testing.assert_array_equal(found[name][order], expected, name)
    assert len(read_ticks(conn, [1], START_NS, START_NS + HOUR_NS)["time"]) == 0


def test_what_is_absent_stays_absent(conn: connection) -> None:
    store(conn, *honest(RELIANCE, trades=5))
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE tick_rows SET last_price = NULL, volume_traded = NULL, last_trade_time = NULL")
    found = read_ticks(conn, [RELIANCE.dhan_token], START_NS, START_NS + HOUR_NS)
    assert np.isnan(found["last_price"]).all()
    assert (found["volume_traded"] == NULL_INT).all()
    assert (found["last_trade_time"] == NULL_INT).all()


def rows(conn: connection) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT * FROM shadow_comparisons ORDER BY hour, dhan_token")
        return cursor.fetchall()


def test_an_hours_rows_are_replaced_and_those_of_others_are_not(conn: connection) -> None:
    pairs = [RELIANCE, TCS]
    found: dict[str, Any] = {name: np.arange(2) + at for at, name in enumerate(COLUMNS)}
    found["dhan_token"] = np.array([pair.dhan_token for pair in pairs])
    found["price_difference"] = np.array([np.nan, -0.05])
    found["price_differs_most_at"] = np.array([NULL_INT, START_US])
    found["kite_volume"] = np.array([2**40, NULL_INT])
    replace_shadow_comparisons(conn, HOUR, found)
    replace_shadow_comparisons(conn, "2026-11-20T11:00", found)
    first = rows(conn)
    assert len(first) == 4
    names = list(COLUMNS)
    by_name = [dict(zip(["hour", *names], row, strict=True)) for row in first[:2]]
    assert [row["price_difference"] for row in by_name] == [None, -0.05]
    assert by_name[0]["price_differs_most_at"] is None
    assert by_name[1]["price_differs_most_at"] == by_name[1]["hour"]
    assert [row["kite_volume"] for row in by_name] == [2**40, None]
    replace_shadow_comparisons(conn, HOUR, found)
    assert rows(conn) == first
    replace_shadow_comparisons(conn, HOUR, {name: column[:0] for name, column in found.items()})
    assert rows(conn) == first[2:]
