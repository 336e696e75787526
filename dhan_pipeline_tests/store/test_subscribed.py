from datetime import UTC, datetime, timedelta

from psycopg2.extensions import connection

from dhan_pipeline.store.subscribed import Subscribed, change, current, forget, record, subscribed_during
from dhan_pipeline.ticks import Mode

NINE = datetime(2026, 11, 20, 3, 30, tzinfo=UTC)


def after(minutes: float) -> datetime:
    return NINE + timedelta(minutes=minutes)


def test_what_is_gone_ends_and_what_is_new_begins(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL, 2: Mode.QUOTE, 3: Mode.FULL}, NINE)
    record(conn, 0, {2: Mode.QUOTE, 3: Mode.TICKER, 4: Mode.FULL}, after(10))
    assert current(conn, 0) == {2: Mode.QUOTE, 3: Mode.TICKER, 4: Mode.FULL}
    assert subscribed_during(conn, NINE, after(60)) == [
        Subscribed(0, 1, Mode.FULL, NINE, after(10)),
        Subscribed(0, 2, Mode.QUOTE, NINE, None),
        Subscribed(0, 3, Mode.FULL, NINE, after(10)),
        Subscribed(0, 3, Mode.TICKER, after(10), None),
        Subscribed(0, 4, Mode.FULL, after(10), None),
    ]


def test_a_stretch_has_what_overlaps_it(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL}, NINE)
    record(conn, 0, {2: Mode.FULL}, after(10))
    assert [row.instrument_token for row in subscribed_during(conn, NINE, after(10))] == [1]
    assert [row.instrument_token for row in subscribed_during(conn, after(10), after(20))] == [2]
    assert [row.instrument_token for row in subscribed_during(conn, after(9), after(11))] == [1, 2]
    assert subscribed_during(conn, after(-10), NINE) == []


def test_what_the_process_before_had_ended_with_it(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL, 2: Mode.FULL}, NINE)
    record(conn, 0, {2: Mode.FULL, 3: Mode.FULL}, after(600), ended_at=after(300))
    assert [(row.instrument_token, row.since, row.until) for row in subscribed_during(conn, NINE, after(900))] == [
        (1, NINE, after(300)),
        (2, NINE, None),
        (3, after(600), None),
    ]


def test_captures_do_not_touch_each_others(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL}, NINE)
    record(conn, 16, {1: Mode.QUOTE}, NINE)
    record(conn, 16, {}, after(1))
    assert (current(conn, 0), current(conn, 16)) == ({1: Mode.FULL}, {})


def test_a_change_is_of_what_it_names_and_may_be_told_again(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL, 2: Mode.FULL, 3: Mode.FULL}, NINE)
    for _ in range(2):
        change(conn, 0, {1: None, 2: Mode.TICKER, 4: Mode.QUOTE, 5: None}, after(5))
    assert [
        (row.instrument_token, row.mode, row.since, row.until) for row in subscribed_during(conn, NINE, after(9))
    ] == [
        (1, Mode.FULL, NINE, after(5)),
        (2, Mode.FULL, NINE, after(5)),
        (2, Mode.TICKER, after(5), None),
        (3, Mode.FULL, NINE, None),
        (4, Mode.QUOTE, after(5), None),
    ]


def test_with_a_clock_that_was_set_back_nothing_ends_before_it_began(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL}, NINE)
    record(conn, 0, {}, after(-5))
    assert [(row.since, row.until) for row in subscribed_during(conn, after(-9), after(9))] == [(NINE, NINE)]


def test_what_ended_before_is_forgotten_and_what_lasts_is_not(conn: connection) -> None:
    record(conn, 0, {1: Mode.FULL, 2: Mode.FULL, 3: Mode.FULL}, NINE)
    change(conn, 0, {1: None}, after(5))
    change(conn, 0, {2: Mode.QUOTE}, after(10))
    assert forget(conn, after(10)) == 1
    assert [(row.instrument_token, row.until) for row in subscribed_during(conn, NINE, after(60))] == [
        (2, after(10)),
        (2, None),
        (3, None),
    ]


def test_neither_the_hour_of_a_check_nor_what_is_forgotten_needs_a_look_at_every_row(conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        # Windows that moved for a week, each move ending one of 1,000 instruments.
        cursor.execute(
            "INSERT INTO subscribed_instruments SELECT 0, n %% 1000, 'full', %(nine)s + n * interval '10 s',"
            " CASE WHEN n < 59000 THEN %(nine)s + (n + 1000) * interval '10 s' END FROM generate_series(0, 59999) AS n",
            {"nine": NINE},
        )
        cursor.execute("ANALYZE subscribed_instruments")
        last_hour = after(60_000 / 6 - 60)
        for statement, at in (
            ("SELECT FROM subscribed_instruments WHERE since < %s AND (until IS NULL OR until > %s)", last_hour),
            ("DELETE FROM subscribed_instruments WHERE until < %s AND until < %s", after(600)),
        ):
            cursor.execute(f"EXPLAIN {statement}", (at + timedelta(hours=1), at))
            plan = " ".join(line for (line,) in cursor.fetchall())
            assert "subscribed_instruments_until" in plan
            assert "Seq Scan" not in plan
