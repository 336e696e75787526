from datetime import UTC, datetime, timedelta

from psycopg2.extensions import connection

from dhan_pipeline.store.subscribed import Subscribed, change, current, record, subscribed_during
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
