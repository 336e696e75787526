"""An hour's bars in a real database: made of its ticks alone, whatever else is there, and read back."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import HOUR_NS, IST, parse_hour_key
from dhan_pipeline.store.candles import (
    RELATIONS,
    CandleHour,
    CandlesRefusedError,
    hours_to_renew,
    read_candles,
    read_hour,
    rebuild_candles,
)
from dhan_pipeline.store.partitions import drop_expired, ensure_partitions

NINE, TEN, ELEVEN, NOON = (f"2026-11-20T{hour:02}:00" for hour in (9, 10, 11, 12))
LATER_NS = parse_hour_key(NOON) + 24 * HOUR_NS
SHARE = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
OTHER = generate_instrument_token(ExchangeSegment.NSE_EQ, 11536)
INDEX = generate_instrument_token(ExchangeSegment.IDX_I, 13)
GOLD = generate_instrument_token(ExchangeSegment.MCX_COMM, 1)


def at(clock: str, day: int = 20) -> datetime:
    """A time of day, IST."""
    return datetime.fromisoformat(f"2026-11-{day:02}T{clock}").replace(tzinfo=IST)


#: Token, receipt, price, cumulative volume; then the trade's time, which is a full second.
Row = tuple[int, datetime, float | None, int | None, datetime | None]


def tick(clock: str, volume: int | None, price: float = 100.0, token: int = SHARE, traded: str | None = None) -> Row:
    received = at(clock)
    return token, received, price, volume, at(traded) if traded else received.replace(microsecond=0)


def store(conn: connection, rows: Sequence[Row], mode: str = "full") -> None:
    ns = [int(row[1].timestamp() * 1e6) * 1000 for row in rows]
    ensure_partitions(conn, min(ns), max(ns) + 1)
    with conn, conn.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO tick_rows (tick_id, instrument_token, time, last_price, volume_traded, last_trade_time, oi, "
            "last_traded_quantity, tradable, mode) VALUES %s",
            [(n, *row, 7, 1, row[0] != INDEX, mode) for n, row in enumerate(rows)],
        )


def store_gap(
    conn: connection, start: datetime, end: datetime | None, *tokens: int, gap_id: int = 1, capture: int = 0
) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO feed_gaps VALUES (%s, %s, 0, %s::bigint[], %s, %s, 'stall', '', '')",
            (capture, gap_id, list(tokens), start, end),
        )


def store_broker_bar(conn: connection, clock: str, token: int = SHARE, volume: int = 77) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO broker_candles VALUES (%s, 1, %s, 1.0, 4.0, 0.5, 2.0, %s, 9, now())",
            (token, at(clock), volume),
        )


def candles(conn: connection) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT * FROM candles_1m ORDER BY instrument_token, time")
        return cursor.fetchall()


def short(conn: connection) -> list[tuple[Any, ...]]:
    """Time (IST), close, volume, ticks, source."""
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT to_char(time AT TIME ZONE 'Asia/Kolkata', 'HH24:MI'), close, volume, ticks, source FROM candles_1m "
            "ORDER BY instrument_token, time"
        )
        return cursor.fetchall()


def rebuild(conn: connection, *hours: str) -> list[CandleHour]:
    return [rebuild_candles(conn, hour, LATER_NS) for hour in hours]


def test_an_hour_becomes_bars(conn: connection) -> None:
    store(
        conn,
        [
            tick("10:00:01.5", 100, 101.0),
            tick("10:00:02.5", 130, 102.5),
            tick("10:00:59.9", 150, 99.25),
            tick("10:02:00.1", 160, 100.0),
            tick("10:02:01.1", 70, 55.0, OTHER),
            tick("10:02:01.2", 0, 25_000.0, INDEX),
        ],
    )
    (made,) = rebuild(conn, TEN)
    assert (made.bars, made.instruments, made.touching_gap, made.from_rest) == (4, 3, 0, 0)
    assert made.of_minute[:4] == (1, 0, 3, 0)
    ours = [row for row in candles(conn) if row[0] == SHARE]
    assert ours == [
        (SHARE, at("10:00"), 101.0, 102.5, 99.25, 99.25, 50, 30 * 102.5 + 20 * 99.25, 7, 3, False, True, "ticks"),
        (SHARE, at("10:02"), 100.0, 100.0, 100.0, 100.0, 10, 1000.0, 7, 1, False, False, "ticks"),
    ]
    (index,) = [row for row in candles(conn) if row[0] == INDEX]
    assert (index[5], index[6], index[7], index[11]) == (25_000.0, None, None, False)


def test_volume_goes_on_from_the_hours_before_however_far_back_an_instrument_was_heard_of_last(
    conn: connection,
) -> None:
    store(
        conn,
        [
            tick("09:20:00", 1000),
            tick("09:20:01", 40, token=OTHER),
            tick("11:30:00", 1500),
            (SHARE, at("11:31:00"), None, 9999, at("11:30:59")),  # without a price it is no trade
            tick("12:01:00", 1600),
            tick("12:02:00", 75, token=OTHER),
        ],
    )
    rebuild(conn, NOON)
    assert [row[1:3] for row in short(conn)] == [(100.0, 100), (100.0, 35)]
    assert not any(row[11] for row in candles(conn))


def test_volume_that_comes_hours_after_a_gap_touches_it(conn: connection) -> None:
    store(conn, [tick("09:20:00", 1000), tick("12:01:00", 1010), tick("12:02:00", 1020)])
    store_gap(conn, at("10:10:00"), at("10:20:00"), SHARE)
    rebuild(conn, NOON)
    assert [row[10] for row in candles(conn)] == [True, False]


def test_what_was_traded_before_yesterdays_snapshot_is_no_volume_of_today(conn: connection) -> None:
    store(conn, [(SHARE, at("10:20:00"), 99.0, 90_000, at("15:29:59", 19)), tick("12:01:00", 75)])
    rebuild(conn, NOON)
    assert [row[1:3] for row in short(conn)] == [(100.0, 75)]


def test_a_bar_starts_late_where_the_first_packet_came_hours_before_and_nobody_traded_since(conn: connection) -> None:
    store(
        conn,
        [
            tick("09:30:00", 500, traded="09:16:00"),  # a snapshot, on subscribing
            tick("11:30:00", 500, traded="09:16:00"),  # its order book
            tick("12:01:00", 600),
            tick("09:30:00", 500, token=OTHER),  # this one printed
            tick("11:30:00", 500, token=OTHER, traded="09:30:00"),
            tick("12:01:00", 600, token=OTHER),
        ],
    )
    rebuild(conn, NOON)
    assert [(row[0], row[6], row[11]) for row in candles(conn)] == [(SHARE, 100, True), (OTHER, 100, False)]


def test_packets_at_the_edges_are_of_the_hour_of_their_trade(conn: connection) -> None:
    store(
        conn,
        [
            tick("09:59:00", 100),
            tick("10:00:00.2", 110, 101.0, traded="09:59:59"),
            tick("10:59:58", 120, 102.0),
            tick("11:03:00", 150, 103.0, traded="10:59:59"),
            tick("11:06:00", 180, 104.0),
        ],
    )
    rebuild(conn, TEN)
    assert short(conn) == [("10:59", 103.0, 40, 2, "ticks")]
    rebuild(conn, NINE, ELEVEN)
    assert short(conn) == [
        ("09:59", 101.0, 10, 2, "ticks"),
        ("10:59", 103.0, 40, 2, "ticks"),
        ("11:06", 104.0, 30, 1, "ticks"),
    ]


def test_the_hours_may_be_made_in_any_order_and_again(conn: connection) -> None:
    rng = np.random.default_rng(20)
    rows, volumes = [], dict.fromkeys(range(19), 100)
    start = at("09:15:00")
    for second in sorted((rng.random(2000) * 9_800).tolist()):
        n = int(rng.integers(19))
        if n < 3 and rng.random() < 0.9:
            continue  # hardly trade
        received = start + timedelta(seconds=second)
        ago = timedelta(seconds=float(rng.choice([0, 0.4, 2, 150, 290, 700])))
        volumes[n] += int(rng.integers(0, 3))
        step_back = int(rng.random() < 0.1)
        rows.append((SHARE + n, received, 100.0 + n, volumes[n] - step_back, (received - ago).replace(microsecond=0)))
    store(conn, rows)
    store_gap(conn, at("10:30:00"), at("10:31:30"), SHARE + 10, SHARE + 11)
    store_gap(conn, at("11:01:00"), at("11:02:00"), gap_id=2)
    for clock in ("10:30", "10:31", "11:01"):
        store_broker_bar(conn, clock, SHARE + 10)
    first = rebuild(conn, NINE, TEN, ELEVEN)
    made = candles(conn)
    assert len(made) > 300
    assert {row[12] for row in made} == {"ticks", "rest"}
    assert rebuild(conn, ELEVEN, NINE, NINE, TEN)[::-1][0] == first[1]
    assert candles(conn) == made
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM candles_1m")
    assert rebuild(conn, TEN) == [first[1]]
    assert rebuild(conn, ELEVEN, NINE) == [first[2], first[0]]
    assert candles(conn) == made
    # Nothing is lost between the hours: but for the first packet, each unit of volume is in one bar.
    for n in range(12, 19):
        heard = [volume for token, _, _, volume, _ in rows if token == SHARE + n]
        assert sum(row[6] for row in made if row[0] == SHARE + n) == max(heard) - heard[0]


def test_the_bar_of_the_broker_stands_in_where_packets_were_missed_and_nowhere_else(conn: connection) -> None:
    store(conn, [tick("10:00:01", 100), tick("10:05:10", 110), tick("10:08:10", 190), tick("10:09:10", 200)])
    store_gap(conn, at("10:05:30"), at("10:07:00"), SHARE)
    for clock in ("10:00", "10:03", "10:05", "10:06", "10:07", "10:08"):
        store_broker_bar(conn, clock)
    store_broker_bar(conn, "10:06", OTHER)
    (made,) = rebuild(conn, TEN)
    assert short(conn) == [
        ("10:00", 100.0, 0, 1, "ticks"),
        ("10:05", 2.0, 77, 1, "rest"),
        ("10:06", 2.0, 77, 0, "rest"),
        # The volume of the gap came with the first packet after it.
        ("10:08", 2.0, 77, 1, "rest"),
        ("10:09", 100.0, 10, 1, "ticks"),
    ]
    assert (made.touching_gap, made.from_rest) == (3, 3)
    rest = [row for row in candles(conn) if row[12] == "rest"]
    assert {row[2:5] + row[7:9] + row[10:12] for row in rest} == {(1.0, 4.0, 0.5, None, 9, True, False)}


def test_a_gap_that_lasts_and_names_no_instrument_concerns_all_from_then_on(conn: connection) -> None:
    store(conn, [tick("10:00:01", 100), tick("10:58:10", 110, token=INDEX)])
    store_gap(conn, at("10:58:00"), None)
    for clock, token in (("10:57", SHARE), ("10:59", SHARE), ("10:58", INDEX)):
        store_broker_bar(conn, clock, token)
    rebuild(conn, TEN)
    found = {(row[0], row[1]): (row[6], row[10], row[12]) for row in candles(conn)}
    assert found == {
        (SHARE, at("10:00")): (0, False, "ticks"),
        (SHARE, at("10:59")): (77, True, "rest"),
        (INDEX, at("10:58")): (None, True, "rest"),  # an index is not traded
    }


def test_a_gap_of_one_broker_s_feed_concerns_none_of_the_other_s_instruments(conn: connection) -> None:
    kite = 738561
    store(conn, [tick("10:00:01", 100), tick("10:00:02", 100, token=kite)])
    store_gap(conn, at("10:00:00"), at("10:03:00"), capture=16)
    for token in (SHARE, kite):
        store_broker_bar(conn, "10:02", token)
    rebuild(conn, TEN)
    assert {(row[0], row[1], row[10], row[12]) for row in candles(conn)} == {
        (SHARE, at("10:00"), False, "ticks"),
        (kite, at("10:00"), True, "ticks"),
        (kite, at("10:02"), True, "rest"),
    }


def test_an_hour_that_nothing_came_of_is_the_brokers(conn: connection) -> None:
    store_gap(conn, at("09:50:00"), at("11:20:00"), SHARE)
    with pytest.raises(CandlesRefusedError, match=f"holds nothing of the hour {TEN}"):
        rebuild(conn, TEN)
    store_broker_bar(conn, "10:30")
    assert rebuild(conn, TEN)[0].from_rest == 1


def test_a_trade_in_a_gap_of_which_a_later_packet_tells_is_counted_once(conn: connection) -> None:
    store(conn, [tick("09:59:10", 100), tick("10:30:00", 180, traded="10:10:20"), tick("10:40:10", 190)])
    store_gap(conn, at("10:00:10"), at("10:30:00"), SHARE)
    rebuild(conn, TEN)
    assert short(conn) == [("10:25", 100.0, 80, 1, "ticks"), ("10:40", 100.0, 10, 1, "ticks")]
    store_broker_bar(conn, "10:10", volume=80)
    with conn, conn.cursor() as cursor:
        asked = "INSERT INTO broker_fetches VALUES (%s, %s, %s, %s, 1)"
        cursor.execute(asked, (SHARE, at("10:00"), at("10:31"), at("10:28")))
    rebuild(conn, TEN)
    assert [row[0] for row in short(conn)] == ["10:10", "10:25", "10:40"]  # it was too early for the bar of 10:25
    day_ns = parse_hour_key("2026-11-20T00:00")
    assert hours_to_renew(conn, day_ns, day_ns + 24 * HOUR_NS) == []
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE broker_fetches SET fetched_at = %s", (at("10:34"),))
    assert hours_to_renew(conn, day_ns, day_ns + 24 * HOUR_NS) == [TEN]
    rebuild(conn, TEN)
    assert short(conn) == [("10:10", 2.0, 80, 0, "rest"), ("10:40", 100.0, 10, 1, "ticks")]
    assert hours_to_renew(conn, day_ns, day_ns + 24 * HOUR_NS) == []


def test_a_minute_without_a_trade_is_no_bar_though_the_broker_gives_one_but_of_an_index(conn: connection) -> None:
    store_gap(conn, at("10:05:00"), at("10:10:00"))
    store_broker_bar(conn, "10:06", volume=0)
    store_broker_bar(conn, "10:07")
    store_broker_bar(conn, "10:08", INDEX, volume=0)
    rebuild(conn, TEN)
    assert [(row[0], row[1], row[6]) for row in candles(conn)] == [(INDEX, at("10:08"), None), (SHARE, at("10:07"), 77)]


def test_hours_are_to_be_made_again_while_other_bars_of_the_brokers_can_stand_in(conn: connection) -> None:
    day_ns = parse_hour_key("2026-11-20T00:00")

    def hours() -> list[str]:
        return hours_to_renew(conn, day_ns, day_ns + 24 * HOUR_NS)

    store(conn, [tick("09:49:00", 100), tick("10:01:00", 110), tick("12:20:10", 120)])
    store_gap(conn, at("11:05:00"), at("12:10:00"), SHARE)
    rebuild(conn, NINE, TEN, NOON)
    store_broker_bar(conn, "10:01")
    assert hours() == []
    store_broker_bar(conn, "11:30")  # nothing of ours is near
    store_broker_bar(conn, "12:20")  # volume of the gap is in ours
    assert hours() == [ELEVEN, NOON]
    rebuild(conn, ELEVEN, NOON)
    assert hours() == []
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE broker_candles SET close = 3.0 WHERE time = %s", (at("11:30"),))
    assert hours() == [ELEVEN]


def test_bars_are_kept_when_their_ticks_are_gone(conn: connection) -> None:
    store(conn, [tick("10:00:01", 100)])
    rebuild(conn, TEN)
    made = candles(conn)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ingest_ledger VALUES (1, 0, %s, 1, 1, 1, 0, 0, 0, 162, %s, %s, now(), 1)", (at("10:00"),) * 3
        )
    assert drop_expired(conn, 1, LATER_NS + 24 * HOUR_NS).dropped
    store_gap(conn, at("10:00:00"), at("10:20:00"), SHARE)
    store_broker_bar(conn, "10:00")
    with pytest.raises(CandlesRefusedError, match="no longer in the database"):
        rebuild(conn, TEN)
    assert candles(conn) == made


def test_an_hour_of_many_ticks_is_made_in_parts_of_its_instruments(
    conn: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [SHARE, OTHER, INDEX, GOLD]
    store(conn, [tick(f"10:0{minute}:01", 100 + minute, token=token) for minute in range(5) for token in tokens])
    store_gap(conn, at("10:01:00"), at("10:02:00"), SHARE)
    (at_once,) = rebuild(conn, TEN)
    expected = candles(conn)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ingest_ledger VALUES (1, 0, %s, 1, 1, 20, 0, 0, 0, 9, %s, %s, now(), 1)", (at("10:00"),) * 3
        )
    read: list[int] = []

    def noting(conn: connection, hour: str, part: int, parts: int) -> Any:
        ticks, *rest = read_hour(conn, hour, part, parts)
        read.append(len(ticks["time"]))
        return ticks, *rest

    monkeypatch.setattr("dhan_pipeline.store.candles.TICKS_AT_ONCE", 7)
    monkeypatch.setattr("dhan_pipeline.store.candles.read_hour", noting)
    assert (rebuild(conn, TEN), candles(conn)) == ([at_once], expected)
    assert len(read) == 3
    assert max(read) < sum(read) == 20


def test_an_hour_whose_packets_may_still_come_is_refused(conn: connection) -> None:
    store(conn, [tick("10:00:01", 100)])
    with pytest.raises(CandlesRefusedError, match=f"{TEN} cannot have its candles yet"):
        rebuild_candles(conn, TEN, parse_hour_key(ELEVEN) + 299 * 10**9)
    assert rebuild_candles(conn, TEN, parse_hour_key(ELEVEN) + 300 * 10**9).bars == 1


def insert_bars(conn: connection, *bars: tuple[Any, ...]) -> None:
    """Token, time, open, high, low, close, volume, turnover, oi, touches_gap, source."""
    with conn, conn.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO candles_1m (instrument_token, time, open, high, low, close, volume, turnover, oi, "
            "touches_gap, source, ticks, starts_late) VALUES %s",
            [(*bar, 3, False) for bar in bars],
        )


def read(conn: connection, token: int, minutes: int) -> list[dict[str, Any]]:
    table = read_candles(conn, [token], at("00:00"), at("00:00", 21), minutes)
    conn.rollback()
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row["time"] = row["time"].astimezone(IST).strftime("%H:%M")
        del row["instrument_token"]
    return rows


def test_longer_bars_are_made_of_minutes(conn: connection) -> None:
    insert_bars(
        conn,
        (SHARE, at("09:15"), 10.0, 12.0, 9.0, 11.0, 100, 1000.0, 50, False, "ticks"),
        (SHARE, at("09:19"), 11.0, 15.0, 10.5, 14.0, 50, 600.0, None, True, "ticks"),
        (SHARE, at("09:20"), 14.0, 14.0, 8.0, 8.5, 10, None, 40, True, "rest"),
        (SHARE, at("10:14"), 9.0, 9.0, 9.0, 9.0, 1, 9.0, None, False, "ticks"),
        (SHARE, at("10:15"), 9.5, 9.5, 9.5, 9.5, None, None, None, False, "ticks"),
    )
    bar = {
        "time": "09:15",
        "open": 10.0,
        "high": 15.0,
        "low": 9.0,
        "close": 14.0,
        "volume": 150,
        "turnover": 1600.0,
        "oi": 50,
        "ticks": 6,
        "touches_gap": True,
        "starts_late": False,
        "source": "ticks",
    }
    assert read(conn, SHARE, 5)[0] == bar
    assert [row["time"] for row in read(conn, SHARE, 5)] == ["09:15", "09:20", "10:10", "10:15"]
    merged = bar | {"low": 8.0, "close": 8.5, "volume": 160, "turnover": None, "oi": 40, "ticks": 9, "source": "mixed"}
    assert read(conn, SHARE, 15)[0] == merged
    assert read(conn, SHARE, 60)[0] == merged | {"close": 9.0, "volume": 161, "ticks": 12}
    assert [row["time"] for row in read(conn, SHARE, 60)] == ["09:15", "10:15"]
    assert read(conn, SHARE, 1440) == [merged | {"time": "00:00", "close": 9.5, "volume": None, "ticks": 15}]


@pytest.mark.parametrize(
    ("token", "begins"),
    [
        (SHARE, ["08:15", "09:15"]),
        (INDEX, ["08:15", "09:15"]),
        (GOLD, ["09:00"]),
        (generate_instrument_token(ExchangeSegment.NSE_CURRENCY, 1), ["09:00"]),
        (generate_instrument_token(ExchangeSegment.BSE_CURRENCY, 1), ["09:00"]),
        (generate_instrument_token(ExchangeSegment.NSE_FNO, 1), ["08:15", "09:15"]),
        (738561, ["08:15", "09:15"]),
    ],
)
def test_bars_of_an_hour_begin_with_the_session(conn: connection, token: int, begins: list[str]) -> None:
    insert_bars(
        conn, *((token, at(clock), 1.0, 1.0, 1.0, 1.0, 1, 1.0, 1, False, "ticks") for clock in ("09:14", "09:15"))
    )
    assert [row["time"] for row in read(conn, token, 60)] == begins


def test_bars_are_read_as_a_table_by_instrument_and_time(conn: connection) -> None:
    store(
        conn, [tick("10:00:01", 100), tick("10:00:02", 5, token=OTHER), tick("10:01:02", None), tick("10:02:02", 110)]
    )
    rebuild(conn, TEN)
    table = read_candles(conn, [OTHER, SHARE], at("10:00"), at("10:02"))
    assert table["instrument_token"].to_pylist() == [SHARE, SHARE, OTHER]
    assert table["volume"].to_pylist() == [0, None, 0]
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert table["source"].to_pylist() == ["ticks"] * 3
    assert read_candles(conn, [SHARE], at("11:00"), at("12:00"), 5).num_rows == 0
    with pytest.raises(ValueError, match="bars of 1, 5, 15, 60, 1440 minutes, not of 3"):
        read_candles(conn, [SHARE], at("10:00"), at("10:02"), 3)


@pytest.mark.parametrize("relation", RELATIONS.values())
def test_a_day_of_an_instrument_is_found_by_the_key(conn: connection, relation: str) -> None:
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO candles_1m SELECT %s + i, day + m * interval '1 minute', 1, 1, 1, 1, 1, 1, 1, 1, false, "
            "false, 'ticks' FROM generate_series(%s, %s, interval '1 day') AS day, generate_series(0, 374) AS m, "
            "generate_series(0, 9) AS i",
            (SHARE, at("09:15", 16), at("09:15", 20)),
        )
        cursor.execute("VACUUM ANALYZE candles_1m")
        cursor.execute(
            f"EXPLAIN SELECT * FROM {relation} WHERE instrument_token = %s AND time >= %s AND time < %s",
            (SHARE, at("00:00", 18), at("00:00", 19)),
        )
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "candles_1m_pkey" in plan
    assert "Seq Scan" not in plan
