from datetime import datetime, timedelta

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.instruments import ExchangeSegment, make_kite_token
from dhan_pipeline.quality.now import Now, read_now, session_in_words
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline_tests.broker import NIFTY, RELIANCE, TCS, insert_instruments
from dhan_pipeline_tests.status import mover, status

SECOND_NS = 1_000_000_000
KITE = make_kite_token(1, 7)  # type: ignore[arg-type]


def look(conn: connection, at: datetime | None = None) -> Now:
    """What there is to see now, or at a time that stands still."""
    clock = Clock(int(at.timestamp() * SECOND_NS), speed=1e-9) if at else Clock()
    return read_now(conn, Settings(_env_file=None), clock)


def fall_silent(conn: connection, capture: int, ago: str = "20 seconds") -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "UPDATE captures SET updated_at = now() - %s::interval WHERE capture = %s",
            (ago, capture),
        )


def test_where_no_capture_has_ever_reported_that_is_said(conn: connection) -> None:
    now = look(conn)
    assert (now.good, now.headline) == (False, "1 problem")
    assert now.problems[0].startswith("No capture has ever reported to this database:")
    assert (now.captures, now.segments, now.gaps) == ((), (), 0)


def test_a_capture_that_is_well_is_shown_as_it_says(conn: connection) -> None:
    insert_instruments(conn, [RELIANCE, TCS])
    write_status(conn, 0, "dhan", status())
    now = look(conn)
    assert (now.good, now.headline, now.problems) == (True, "All is well", ())
    (capture,) = now.captures
    assert (capture.source, capture.state, capture.connections_up, capture.ticks) == ("dhan", "live", 2, 990)
    assert (capture.ticks_per_second, capture.latency_p99_ms, capture.backlog_s) == (90.0, 20.0, 0.1)
    (segment,) = now.segments
    assert (segment.segment, segment.session, segment.trading, segment.late) == ("NSE_EQ", "always open", True, False)
    assert (segment.ticks_per_second, segment.heard, segment.instruments) == (90.0, 9, 10)
    (up,) = now.movers["shares"]["up"]
    assert (up.symbol, up.segment, up.change_percent) == ("S2885", "NSE_EQ", 2.5)
    assert up.instrument_token == str(RELIANCE)


def test_an_instrument_that_is_in_no_list_is_shown_by_its_token(conn: connection) -> None:
    write_status(conn, 0, "dhan", status())
    assert look(conn).movers["shares"]["up"][0].symbol == str(RELIANCE)


def test_captures_of_one_source_are_added_up_and_sources_are_kept_apart(conn: connection) -> None:
    insert_instruments(conn, [RELIANCE, TCS])
    write_status(conn, 0, "dhan", status())
    write_status(conn, 1, "dhan", status())
    write_status(conn, 16, "kite", status(movers={"shares": {"up": [mover(KITE, 9.0)], "down": []}}))
    now = look(conn)
    assert [(capture.source, capture.capture) for capture in now.captures] == [("dhan", 0), ("dhan", 1), ("kite", 16)]
    assert [(s.source, s.segment, s.ticks_per_second, s.instruments) for s in now.segments] == [
        ("dhan", "NSE_EQ", 180.0, 20),
        ("kite", "NSE_EQ", 90.0, 10),
    ]
    assert now.movers["shares"]["up"][0].change_percent == 2.5
    (only,) = read_now(conn, Settings(_env_file=None), Clock(), ("kite",)).captures
    assert only.source == "kite"


def test_a_lively_feed_that_stands_still_is_told_at_once(conn: connection) -> None:
    told = "Nothing has come of dhan for 20 s, after 6,000 ticks in a minute."
    for seconds, rate, expected in ((20, 6000, True), (5, 6000, False), (20, 599, False)):
        last_at = (Clock().now() - timedelta(seconds=seconds)).isoformat()
        write_status(conn, 0, "dhan", status(last_packet_at=last_at, ticks_per_minute=rate))
        assert (told in look(conn).problems) == expected


def test_what_is_not_connected_is_told_before_what_follows_from_it(conn: connection) -> None:
    last_at = (Clock().now() - timedelta(seconds=80)).isoformat()
    write_status(conn, 0, "dhan", status(last_packet_at=last_at, ticks_per_minute=0.0))
    first, second, *_ = look(conn).problems
    assert "nothing has arrived for 80 s" in first
    assert second.startswith("0 ticks came in the last minute")


def test_a_capture_that_says_nothing_any_more_is_dead_since_its_last_word(conn: connection) -> None:
    write_status(conn, 0, "dhan", status())
    fall_silent(conn, 0)
    said_at = look(conn).captures[0].said_at
    for days, since in ((0, f"{said_at:%H:%M:%S}"), (1, f"{said_at:%Y-%m-%d %H:%M:%S}")):
        now = look(conn, said_at + timedelta(days))
        (capture,) = now.captures
        assert (capture.state, capture.connections_up, capture.ticks_per_second) == ("silent", 0, 0.0)
        assert now.problems[0] == (
            f"Capture 0 (dhan) has said nothing since {since} IST: it is dead or hangs, or the database takes nothing."
        )
        assert now.segments[0].ticks_per_second == 0.0


def test_of_one_that_has_ended_on_a_full_disk_the_disk_is_told(conn: connection) -> None:
    write_status(conn, 0, "dhan", status(disk_free_gb=0.0))
    fall_silent(conn, 0)
    assert (
        look(conn)
        .problems[0]
        .endswith("The journal's disk has 0.0 GB left. The capture ends when it is full: make room.")
    )


def test_one_that_was_stopped_is_shown_only_where_no_other_runs(conn: connection) -> None:
    write_status(conn, 1, "dhan", status(stopped=True))
    now = look(conn)
    assert [capture.state for capture in now.captures] == ["stopped"]
    assert now.problems[0].startswith("The capture of dhan was stopped at ")
    write_status(conn, 0, "dhan", status())
    now = look(conn)
    assert [capture.capture for capture in now.captures] == [0]
    assert now.good


def test_one_that_died_on_another_day_is_forgotten_once_another_runs(conn: connection) -> None:
    write_status(conn, 1, "dhan", status())
    fall_silent(conn, 1, "3 days")
    assert [capture.state for capture in look(conn).captures] == ["silent"]
    write_status(conn, 0, "dhan", status())
    assert [capture.capture for capture in look(conn).captures] == [0]


def test_what_the_live_checks_find_is_a_problem_the_worst_first(conn: connection) -> None:
    write_status(conn, 0, "dhan", status(disk_free_gb=1.0, connections_up=1))
    problems = look(conn).problems
    assert len(problems) == 2
    assert problems[0].startswith("1 of 2 connections to the feed are up.")
    assert problems[1].startswith("The journal's disk has 1.0 GB left.")


def test_of_a_capture_that_says_less_than_is_needed_it_is_said_that_it_is_old(conn: connection) -> None:
    write_status(conn, 0, "dhan", {"event": "status"})
    assert look(conn).problems == ("Capture 0 (dhan) is of an earlier version of dhan-pipeline: start it again.",)


def test_a_segment_that_trades_and_brings_nothing_is_late(conn: connection) -> None:
    facts = {"ticks": 0, "ticks_per_second": 0.0, "last_at": None, "instruments": 10, "heard": 0}
    write_status(conn, 0, "dhan", status(segments={"NSE_EQ": facts}))
    (segment,) = look(conn).segments
    assert (segment.late, segment.last_at) == (True, None)


def test_gaps_of_today_are_told_the_latest_first_and_silences_of_one_instrument_counted(conn: connection) -> None:
    write_status(conn, 0, "dhan", status())
    at = datetime(2026, 11, 20, 12, tzinfo=IST)
    now_ns = int(at.timestamp()) * SECOND_NS
    long, lasts = (
        Gap(1, 0, now_ns - 9 * SECOND_NS, Cause.RESET, "it broke", (RELIANCE, TCS), now_ns - 5 * SECOND_NS, "back"),
        Gap(2, 1, now_ns - 2 * SECOND_NS, Cause.STALL, "", (NIFTY, TCS)),
    )
    silence = Gap(3, 0, now_ns - 3 * SECOND_NS, Cause.SILENT, "", (TCS,))
    with conn, conn.cursor() as cursor:
        apply_notes(cursor, 0, [(1, long), (2, lasts), (3, silence)])
    now = look(conn, at)
    assert (now.gaps, now.silences) == (2, 1)
    assert now.gap_s >= 6.0
    last, first = now.latest_gaps
    assert (last.ended_at, last.cause, last.connection, last.instruments) == (None, "stall", 1, 2)
    assert (first.cause, first.seconds, first.detail) == ("reset", 4.0, "it broke; back")
    assert first.ended_at is not None


@pytest.mark.parametrize(
    ("segment", "when", "trading", "words"),
    [
        ("NSE_EQ", "2026-11-20T09:05", False, "pre-open until 09:15"),
        ("NSE_EQ", "2026-11-20T10:00", True, "open until 15:30"),
        ("NSE_EQ", "2026-11-20T15:32", False, "closing auction until 15:35"),
        ("NSE_EQ", "2026-11-20T08:00", False, "opens 09:00"),
        ("NSE_EQ", "2026-11-20T18:00", False, "opens Mon 23 Nov 09:00"),
        ("MCX_COMM", "2026-11-20T18:00", True, "open until 23:55"),
    ],
)
def test_sessions_in_words(segment: str, when: str, trading: bool, words: str) -> None:
    at = datetime.fromisoformat(when).replace(tzinfo=IST)
    assert session_in_words(ExchangeSegment[segment], at) == (trading, words)


def test_where_sessions_never_end_every_segment_trades() -> None:
    at = datetime(2026, 11, 21, 3, 0, tzinfo=IST)
    assert session_in_words(ExchangeSegment.NSE_EQ, at, True) == (True, "always open")
