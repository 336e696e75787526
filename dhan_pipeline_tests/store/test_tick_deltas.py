"""What each tick adds to volume and open interest: the function `tick_deltas`."""

import random
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from dhan_pipeline.sessions import IST
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.store.batches import RELIANCE, USDINR

DAY = date(2026, 11, 20)
NINE = datetime(2026, 11, 20, 9, tzinfo=IST)
COLUMNS = "tick_id, time, instrument_token, volume_traded, oi, last_trade_time, tradable, mode"

#: tick_id, time, instrument_token, volume_traded, oi, last_trade_time.
Tick = tuple[int, datetime, int, int | None, int | None, datetime | None]


def tick(number: int, seconds: float, volume: int | None, oi: int | None = None, **other: Any) -> Tick:
    at = NINE + timedelta(seconds=seconds)
    return number, at, other.get("token", RELIANCE), volume, oi, other.get("traded", at)


def deltas(conn: connection, ticks: list[Tick], *arguments: Any) -> dict[int, tuple[Any, ...]]:
    """(volume_delta, oi_delta) by tick_id, of ticks that are stored in any order."""
    for at in {tick[1].replace(minute=0, second=0, microsecond=0) for tick in ticks}:
        start_ns = int(at.timestamp()) * 10**9
        ensure_partitions(conn, start_ns, start_ns + 1)
    stored = random.Random(0).sample(ticks, len(ticks))
    with conn, conn.cursor() as cursor:
        execute_values(cursor, f"INSERT INTO tick_rows ({COLUMNS}) VALUES %s", [(*t, True, "quote") for t in stored])
        marks = ", ".join(["%s"] * (len(arguments) or 1))
        cursor.execute(f"SELECT tick_id, volume_delta, oi_delta FROM tick_deltas({marks})", arguments or (DAY,))
        return {tick_id: tuple(rest) for tick_id, *rest in cursor.fetchall()}


def test_each_is_the_difference_to_the_tick_before_it_of_the_same_instrument(conn: connection) -> None:
    numbers = random.Random(1)
    ticks: list[Tick] = []
    volume, oi = {RELIANCE: 1_000, USDINR: 2**40}, {RELIANCE: 500, USDINR: 7}
    for number in range(200):
        token = numbers.choice([RELIANCE, USDINR])
        volume[token] += numbers.choice([0, 0, 75, 2**33])  # a packet is not a trade
        oi[token] += numbers.choice([-50, 0, 0, 25])
        ticks.append(tick(number, number // 3, volume[token], oi[token], token=token))  # several a second
    found = deltas(conn, ticks)
    for token in (RELIANCE, USDINR):
        mine = [tick for tick in ticks if tick[2] == token]
        assert found[mine[0][0]] == (None, None), "nobody knows what was before the first"
        for before, after in pairwise(mine):
            assert found[after[0]] == (after[3] - before[3], after[4] - before[4])  # type: ignore[operator]
        traded = sum(found[tick[0]][0] or 0 for tick in mine)
        assert traded == mine[-1][3] - mine[0][3]  # type: ignore[operator]


def test_ticks_without_volume_or_interest_are_passed_over(conn: connection) -> None:
    ticks = [tick(1, 1, 100, 10), tick(2, 2, None), tick(3, 3, 130), tick(4, 4, 130, 7)]
    assert deltas(conn, ticks) == {1: (None, None), 2: (None, None), 3: (30, None), 4: (0, -3)}


def test_captures_of_one_instrument_are_put_in_order_of_receipt(conn: connection) -> None:
    other = 1 << 58
    assert deltas(conn, [tick(other, 1, 100), tick(2, 2, 110), tick(other + 1, 3, 150)]) == {
        other: (None, None),
        2: (10, None),
        other + 1: (40, None),
    }


def test_what_is_left_of_yesterday_is_no_volume_of_today(conn: connection) -> None:
    yesterday = NINE - timedelta(hours=18)
    ticks = [tick(1, 1, 9_000, traded=yesterday), tick(2, 2, 0, traded=None), tick(3, 900, 75), tick(4, 901, 80)]
    assert deltas(conn, ticks) == {1: (None, None), 2: (None, None), 3: (75, None), 4: (5, None)}


def test_a_day_is_indias_and_an_instrument_may_be_asked_for_alone(conn: connection) -> None:
    night = 15 * 3600
    ticks = [tick(1, night - 1, 1), tick(2, night, 5), tick(3, night + 1, 6), tick(4, night + 2, 6, token=USDINR)]
    assert deltas(conn, ticks) == {1: (None, None)}
    assert deltas(conn, [], date(2026, 11, 21)) == {2: (None, None), 3: (1, None), 4: (None, None)}
    assert deltas(conn, [], date(2026, 11, 21), RELIANCE) == {2: (None, None), 3: (1, None)}


def test_other_hours_than_those_of_the_day_are_not_read(conn: connection) -> None:
    deltas(conn, [tick(1, 1, 1), tick(2, 86_401, 1)])
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM tick_rows ORDER BY time")
        today, tomorrow = (name for (name,) in cursor.fetchall())
        cursor.execute("EXPLAIN SELECT * FROM tick_deltas('2026-11-20', %s)", (RELIANCE,))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert today.rpartition(".")[2] in plan
    assert tomorrow.rpartition(".")[2] not in plan
    assert "instrument_token" in plan
