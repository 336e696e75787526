"""Hours in a real database: which instruments were due, which came, which are quiet."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.quality.completeness import (
    Completeness,
    Missing,
    hour_completeness,
    live_completeness,
    measure_completeness,
)
from dhan_pipeline.quality.due import due_in_hour
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.partitions import ensure_partitions, instant
from dhan_pipeline.store.subscribed import Subscribed
from dhan_pipeline.ticks import Mode

SETTINGS = Settings(_env_file=None)
YESTERDAY, EARLY, HOUR = "2026-11-19T14:00", "2026-11-20T08:00", "2026-11-20T10:00"
SHARES = [generate_instrument_token("NSE_EQ", number) for number in range(1, 5)]
OPTIONS = [generate_instrument_token("NSE_FNO", number) for number in range(1, 5)]


def came(conn: connection, hour: str, ticks: dict[int, int]) -> None:
    """So many ticks of each instrument in an hour, and a block of them in the ledger."""
    start_ns = parse_hour_key(hour)
    ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
    times = [(token, instant(start_ns) + timedelta(seconds=n)) for token, count in ticks.items() for n in range(count)]
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode) "
            "SELECT 0, time, token, true, 'full' FROM unnest(%s::bigint[], %s::timestamptz[]) AS new (token, time)",
            ([token for token, _ in times], [at for _, at in times]),
        )
        cursor.execute(
            "INSERT INTO ingest_ledger (block_id, capture, hour, messages, packets, ticks, state, control, rejected, "
            "payload_bytes, first_received, last_received, stored_at) "
            "VALUES (%s, 0, %s, 1, 1, 1, 0, 0, 0, 1, %s, %s, now())",
            (start_ns // 10**9, *[instant(start_ns)] * 3),
        )


def measured(conn: connection, tokens: list[int], hour: str = HOUR, since: str = EARLY) -> Completeness:
    since_at = instant(parse_hour_key(since))
    stretches = [Subscribed(0, token, Mode.FULL, since_at, None) for token in tokens]
    return measure_completeness(conn, hour, due_in_hour(stretches, parse_hour_key(hour), False), False)


def test_an_hour_in_which_something_came_of_all_is_complete(conn: connection) -> None:
    came(conn, HOUR, dict.fromkeys(SHARES, 1))
    found = measured(conn, SHARES)
    assert found == Completeness(subscribed=4, came=4)
    outcome = hour_completeness(HOUR, found, SETTINGS)
    assert (outcome.passed, outcome.value, outcome.table) == (True, 100.0, "")
    assert outcome.description == f"4 of the 4 instruments that traded continuously in {HOUR} sent ticks."


def test_who_was_never_heard_is_missing_and_named(conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO instruments (instrument_token, source, trading_symbol, exchange_segment, exchange) "
            "VALUES (%s, 'dhan', 'RELIANCE', 'NSE_EQ', 'NSE')",
            (SHARES[3],),
        )
    came(conn, EARLY, dict.fromkeys(SHARES[:3], 1))
    came(conn, HOUR, dict.fromkeys(SHARES[:3], 5))
    found = measured(conn, SHARES)
    assert (found.came, found.quiet, found.missing) == (3, 0, {"NSE_EQ": 1})
    assert found.examples == (Missing(SHARES[3], "RELIANCE", 0),)
    outcome = hour_completeness(HOUR, found, SETTINGS)
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 75.0)
    assert "Nothing came of 1 of NSE_EQ" in outcome.description
    assert f"| RELIANCE | NSE_EQ | {SHARES[3]} | never heard |" in outcome.table


def test_who_trades_seldom_may_send_nothing_and_who_is_lively_may_not(conn: connection) -> None:
    lively, seldom, _, busy = OPTIONS
    came(conn, YESTERDAY, {lively: 30, seldom: 5, busy: 400})
    came(conn, EARLY, dict.fromkeys(OPTIONS, 1))  # when they were subscribed
    came(conn, HOUR, {busy: 400})
    found = measured(conn, OPTIONS)
    assert (found.came, found.quiet, found.missing) == (1, 2, {"NSE_FNO": 1})
    assert [one.instrument_token for one in found.examples] == [lively]
    assert "2 more, which trade seldom, sent nothing" in hour_completeness(HOUR, found, SETTINGS).description


def test_the_day_before_is_the_last_one_with_ticks_and_older_days_do_not_count(conn: connection) -> None:
    came(conn, "2026-11-13T14:00", {OPTIONS[0]: 400})
    came(conn, "2026-11-16T14:00", dict.fromkeys(OPTIONS, 5))
    came(conn, HOUR, {OPTIONS[3]: 1})
    assert measured(conn, OPTIONS, since="2026-11-16T14:00").quiet == 3


def test_of_a_segment_that_sent_nothing_at_all_nobody_is_excused(conn: connection) -> None:
    came(conn, EARLY, dict.fromkeys([*SHARES, *OPTIONS], 1))
    came(conn, HOUR, dict.fromkeys(SHARES, 1))
    found = measured(conn, [*SHARES, *OPTIONS])
    assert (found.came, found.quiet, found.missing) == (4, 0, {"NSE_FNO": 4})
    assert [one.ticks_before for one in found.examples] == [None] * 4


def test_a_short_time_of_trading_says_little_of_who_sends_seldom(conn: connection) -> None:
    last = "2026-11-20T15:00"  # shares trade for a quarter of an hour, then comes their auction
    came(conn, YESTERDAY, dict.fromkeys(SHARES, 30))
    came(conn, last, {SHARES[0]: 1})
    assert measured(conn, SHARES, last).quiet == 3
    came(conn, HOUR, dict.fromkeys(SHARES, 60))
    assert measured(conn, SHARES, last).missing == {"NSE_EQ": 3}


def test_before_the_open_nothing_is_due(conn: connection) -> None:
    found = measured(conn, SHARES, EARLY)
    assert found == Completeness(subscribed=4)
    outcome = hour_completeness(EARLY, found, SETTINGS)
    assert (outcome.passed, outcome.value) == (True, None)
    assert "nothing was due" in outcome.description


def test_what_is_not_on_record_or_has_left_the_database_is_not_judged() -> None:
    for found, said in ((Completeness(), "not on record"), (None, "older than the retention")):
        outcome = hour_completeness(HOUR, found, SETTINGS)
        assert (outcome.passed, outcome.value) == (True, None)
        assert said in outcome.description


@pytest.mark.parametrize(
    ("missing", "passed", "severity"), [(1, True, "WARN"), (2, False, "WARN"), (5, False, "WARN"), (6, False, "ERROR")]
)
def test_shares_are_judged_against_the_limits(missing: int, passed: bool, severity: str) -> None:
    found = Completeness(subscribed=100, came=100 - missing, missing={"NSE_EQ": missing})
    outcome = hour_completeness(HOUR, found, SETTINGS)
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, 100 - missing)


def test_of_many_that_are_missing_the_first_are_listed(conn: connection) -> None:
    tokens = [generate_instrument_token("NSE_EQ", number) for number in range(1, 31)]
    came(conn, HOUR, {tokens[0]: 1})
    outcome = hour_completeness(HOUR, measured(conn, tokens), SETTINGS)
    assert outcome.table.count("| NSE_EQ |") == 20
    assert outcome.table.endswith("9 more are missing.")


def status(heard: int, at: str = "10:00:00", **facts: Any) -> dict[str, Any]:
    """Of 200 shares, so many heard, and 100 futures of commodities, all heard."""
    return {
        "at": f"2026-11-20T{at}+05:30",
        "backlog_seconds": 0.0,
        "ticks_per_minute": 18_000.0,
        "segments": {
            "NSE_EQ": {"instruments": 200, "heard": heard},
            "MCX_COMM": {"instruments": 100, "heard": 100},
        },
        **facts,
    }


@pytest.mark.parametrize(
    ("heard", "passed", "severity"), [(197, True, "WARN"), (196, False, "WARN"), (184, False, "ERROR")]
)
def test_now_those_count_that_were_heard_since_the_start(heard: int, passed: bool, severity: str) -> None:
    outcome = live_completeness(status(heard), SETTINGS)
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, round((100 + heard) / 3, 3))
    assert f"Nothing came of {200 - heard} of NSE_EQ" in outcome.description


def test_now_those_count_that_trade() -> None:
    assert live_completeness(status(0, "20:00:00"), SETTINGS).value == 100.0
    assert live_completeness(status(0, "03:00:00"), SETTINGS).value is None


@pytest.mark.parametrize("facts", [{"ticks_per_minute": None}, {"backlog_seconds": 6.0}, {"segments": {}}])
def test_where_now_is_not_known_nothing_is_judged(facts: dict[str, Any]) -> None:
    outcome = live_completeness(status(0) | facts, SETTINGS)
    assert (outcome.passed, outcome.value) == (True, None)
