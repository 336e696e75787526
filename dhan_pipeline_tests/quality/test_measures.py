"""Hours and status lines are judged against the thresholds, in words that say what to do."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from dhan_pipeline.gaps import Cause
from dhan_pipeline.quality.completeness import Completeness
from dhan_pipeline.quality.gap_words import ADVICE
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.measures import (
    HOUR_CHECKS,
    LIVE_CHECKS,
    HourMeasures,
    absent_outcomes,
    closed_outcomes,
    hour_outcomes,
    live_outcomes,
)
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.quality.pictures import Picture
from dhan_pipeline.sessions import IST, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.digests import DigestRecord, Origin
from dhan_pipeline.store.flow import HourFlow

SETTINGS = Settings(_env_file=None)
GOOD_HOUR = HourMeasures(
    hour="2026-11-20T09:00",
    journal_blocks=10,
    journal_messages=500,
    journal_bytes=80_000,
    journal_damage=(),
    first_received_ns=1,
    last_received_ns=2,
    blocks=10,
    messages=500,
    packets=1000,
    ticks=900,
    state=80,
    control=20,
    rejected=0,
    rows=900,
    latency_p50_ms=4.0,
    latency_p95_ms=8.0,
    latency_p99_ms=12.0,
    latency_p999_ms=30.0,
    flow=HourFlow(ticks_by_minute=(15,) * 60),
    trading=(1,) * 60,
    completeness=Completeness(subscribed=1, came=1),
)
GOOD_STATUS: dict[str, Any] = {
    "event": "status",
    "at": "2026-11-20T04:00:00+00:00",
    "hour": "2026-11-20T09:00",
    "connections_up": 2,
    "connections": 2,
    "messages": 500,
    "packets": 1000,
    "ticks": 900,
    "state": 80,
    "control": 20,
    "rejected": 0,
    "backlog_seconds": 0.0,
    "latency_p50_ms": 4.0,
    "latency_p95_ms": 8.0,
    "latency_p99_ms": 12.0,
    "latency_p999_ms": 30.0,
    "latency_counts": [0, 10, 400, 480, 10, *[0] * 12],
    "rss_mb": 150.0,
    "ticks_per_minute": 18_000.0,
    "cpu_percent_minute": 7.5,
    "segments": {"NSE_EQ": {"instruments": 600, "heard": 600}, "NSE_FNO": {"instruments": 400, "heard": 398}},
    "last_packet_at": "2026-11-20T03:59:59.500000+00:00",
    "gaps": 0,
    "gap_open_s": 0.0,
    "gap_recent_s": 0.0,
    "silent": [],
    "silent_count": 0,
    "trade_clock": "ok",
    "token_expires_at": None,
    "disk_free_gb": 100.0,
}


def named(outcomes: list[CheckOutcome], name: str) -> CheckOutcome:
    return next(outcome for outcome in outcomes if outcome.name == name)


def hour(name: str, **changes: Any) -> CheckOutcome:
    return named(hour_outcomes(replace(GOOD_HOUR, **changes), SETTINGS), name)


def live(name: str, earlier: dict[str, Any] | None = None, **changes: Any) -> CheckOutcome:
    return named(live_outcomes({**GOOD_STATUS, **changes}, SETTINGS, earlier=earlier), name)


def recorded(*rows: tuple[Origin, str] | tuple[Origin, str, tuple[int, int, int]]) -> tuple[DigestRecord, ...]:
    """Records of a good hour's 900 rows, a minute apart: origin, digest, and what was added, removed and changed."""
    ten = datetime.fromisoformat("2026-11-20T10:00+05:30")
    return tuple(
        DigestRecord(ten + timedelta(minutes=at), origin, 900, digest, *(changes[0] if changes else ()))
        for at, (origin, digest, *changes) in enumerate(rows)
    )


def test_a_good_hour_passes_every_check_in_their_order() -> None:
    outcomes = hour_outcomes(GOOD_HOUR, SETTINGS)
    assert [outcome.name for outcome in outcomes] == list(HOUR_CHECKS)
    assert all(outcome.passed for outcome in outcomes)


@pytest.mark.parametrize(
    ("rejected", "passed", "severity"),
    [(10, True, "WARN"), (11, False, "WARN"), (50, False, "WARN"), (51, False, "ERROR")],
)
def test_rejected_packets_warn_above_one_percent_and_are_critical_above_five(
    rejected: int, passed: bool, severity: str
) -> None:
    outcome = hour("parser_error_rate", rejected=rejected)
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, rejected / 10)
    assert f"{rejected} of 1,000 packets" in outcome.description


@pytest.mark.parametrize(
    ("p99", "passed", "severity"),
    [(1000.0, True, "WARN"), (1001.0, False, "WARN"), (2000.0, False, "WARN"), (2001.0, False, "ERROR")],
)
def test_latency_warns_above_one_second_and_is_critical_above_two(p99: float, passed: bool, severity: str) -> None:
    outcome = hour("latency_p99", latency_p99_ms=p99)
    assert (outcome.passed, outcome.severity, outcome.value, outcome.unit) == (passed, severity, p99, "ms")


def test_an_hour_that_was_only_rebuilt_has_no_latency_to_judge() -> None:
    outcome = hour("latency_p99", latency_p99_ms=None)
    assert outcome.passed
    assert outcome.value is None


def test_an_hour_without_packets_has_no_errors() -> None:
    assert hour("parser_error_rate", packets=0, rejected=0).value == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": 9}, "journal blocks = ledger blocks does not hold: 10 and 9"),
        ({"messages": 499}, "journal messages = ledger messages does not hold: 500 and 499"),
        ({"control": 19}, "packets = ticks + state + control + rejected does not hold: 1,000 and 999"),
        ({"rows": 901}, "ticks = rows stored does not hold: 900 and 901"),
    ],
)
def test_any_difference_breaks_conservation_and_names_both_numbers(changes: dict[str, int], words: str) -> None:
    outcome = hour("conservation", **changes)
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 1)
    assert words in outcome.description
    assert "Materialise `ticks` for 2026-11-20T09:00 again" in outcome.description


def test_damage_in_the_journal_breaks_conservation_and_is_told() -> None:
    outcome = hour("conservation", journal_blocks=9, journal_damage=("09.arrows: 512 bytes are lost",))
    assert not outcome.passed
    assert "09.arrows: 512 bytes are lost" in outcome.description


def test_thresholds_come_from_the_settings() -> None:
    strict = SETTINGS.model_copy(update={"latency_p99_ms_warn": 5.0, "latency_p99_ms_error": 10.0})
    outcome = named(hour_outcomes(GOOD_HOUR, strict), "latency_p99")
    assert (outcome.passed, outcome.severity) == (False, "ERROR")
    assert "warning above 5 ms, critical above 10 ms" in outcome.limits


def test_a_healthy_capture_passes_every_live_check_in_their_order() -> None:
    outcomes = live_outcomes(GOOD_STATUS, SETTINGS)
    assert [outcome.name for outcome in outcomes] == list(LIVE_CHECKS)
    assert all(outcome.passed for outcome in outcomes)


def test_the_live_error_rate_forgets_what_was_before_the_earlier_status() -> None:
    earlier = {**GOOD_STATUS, "packets": 900, "rejected": 90}
    assert not live("parser_error_rate", ticks=810, rejected=90).passed
    assert live("parser_error_rate", earlier, ticks=810, rejected=90).value == 0


def test_since_when_errors_are_counted_is_told_in_the_time_of_india() -> None:
    earlier = {**GOOD_STATUS, "packets": 900, "at": "2026-11-20T03:59:00+00:00"}
    assert "packets since 09:29:00 IST were rejected" in live("parser_error_rate", earlier).description


def test_one_connection_is_told_as_one() -> None:
    assert live("connected", connections=1, connections_up=1).description.startswith(
        "The connection to the feed is up,"
    )


def test_a_restarted_capture_is_not_compared_with_its_predecessor() -> None:
    assert live("parser_error_rate", {**GOOD_STATUS, "packets": 5000}).value == 0


def test_a_backlog_counts_as_latency_when_the_database_is_away() -> None:
    outcome = live("latency_p99", latency_p99_ms=None, backlog_seconds=30.0)
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 30_000)
    assert "the journal holds what waits" in outcome.description


def test_what_a_capture_catches_up_with_at_its_start_is_no_latency() -> None:
    outcome = live("latency_p99", latency_p99_ms=3286.0, backlog_seconds=30.0, ticks_per_minute=None)
    assert (outcome.passed, outcome.value) == (True, None)
    assert outcome.description == "The capture has not run for a minute yet."


def test_a_quiet_capture_has_no_latency_to_judge() -> None:
    assert live("latency_p99", latency_p99_ms=None).value is None


def test_a_connection_that_is_down_is_critical() -> None:
    outcome = live("connected", connections_up=1)
    assert (outcome.passed, outcome.severity) == (False, "ERROR")
    assert "1 of 2 connections" in outcome.description


def test_a_socket_that_is_up_and_silent_is_critical() -> None:
    outcome = live("connected", last_packet_at="2026-11-20T03:58:00+00:00")
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 120)


def test_out_of_session_a_silent_feed_is_no_fault() -> None:
    silent = {**GOOD_STATUS, "connections_up": 0, "last_packet_at": "2026-11-20T03:00:00+00:00"}
    assert named(live_outcomes(silent, SETTINGS, feed_expected=False), "connected").passed


def test_a_capture_that_has_just_connected_may_wait_for_its_first_packet() -> None:
    assert live("connected", last_packet_at=None).passed


def test_every_live_check_fails_where_the_capture_is_missed_and_passes_where_none_is_expected() -> None:
    assert [outcome.name for outcome in absent_outcomes("Gone.")] == list(LIVE_CHECKS)
    assert {(outcome.passed, outcome.severity) for outcome in absent_outcomes("Gone.")} == {(False, "ERROR")}
    assert all(outcome.passed for outcome in closed_outcomes("Closed."))


HOUR_NS = parse_hour_key(GOOD_HOUR.hour)


def gap(seconds: float, cause: Cause = Cause.RESET, at_s: float = 60, **facts: Any) -> GapPart:
    start_ns = HOUR_NS + int(at_s * 1e9)
    end_ns = start_ns + int(seconds * 1e9)
    facts = {"capture": 0, "connection": 1, "detail": "", "recovery": "", "instruments": 5, **facts}
    facts = {"lasts": False, "gap_started_ns": start_ns, "gap_ended_ns": end_ns, **facts}
    return GapPart(started_ns=start_ns, ended_ns=end_ns, seconds=seconds, cause=cause, **facts)


def gaps(*found: GapPart) -> CheckOutcome:
    return hour("gaps", gaps=found)


@pytest.mark.parametrize(
    ("seconds", "passed", "severity"), [(4.9, True, "WARN"), (5.1, False, "WARN"), (60.5, False, "ERROR")]
)
def test_the_longest_gap_of_an_hour_is_judged(seconds: float, passed: bool, severity: str) -> None:
    outcome = gaps(gap(1.0), gap(seconds))
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, seconds)
    assert f"2 gaps of 2026-11-20T09:00, {seconds + 1:.1f} s of the session in all" in outcome.description
    assert f"{seconds} s on connection dhan 1, from 09:01:00.000 to 09:0" in outcome.description


def test_an_hour_without_gaps_passes_and_says_so() -> None:
    outcome = gaps()
    assert (outcome.passed, outcome.value, outcome.table) == (True, 0.0, "")
    assert outcome.description == "No connection missed a second of 2026-11-20T09:00 in session."


@pytest.mark.parametrize("cause", Cause)
def test_what_to_do_is_said_of_every_cause(cause: Cause) -> None:
    assert ADVICE[cause].endswith(".")
    if cause is not Cause.SILENT:
        assert ADVICE[cause] in gaps(gap(9.0, cause)).description


def test_the_worst_gap_is_told_from_its_real_beginning_to_its_real_end() -> None:
    before = HOUR_NS - 16 * 3600 * 10**9
    reaching = gap(600.0, Cause.HOST_DOWN, at_s=0, gap_started_ns=before, detail="it was off")
    assert (
        "from 2026-11-19 17:00:00.000 to 2026-11-20 09:10:00.000 IST: host down, it was off."
        in gaps(reaching).description
    )
    lasting = gap(3540.0, lasts=True, gap_ended_ns=None)
    assert "from 09:01:00.000 on, and lasts: reset." in gaps(lasting).description


def test_the_gaps_of_an_hour_are_shown_as_a_table_in_indian_time() -> None:
    stalled = gap(2.5, Cause.STALL, at_s=90, detail="nothing came for 90 s", recovery="connected again")
    lasting = gap(9.0, lasts=True, gap_ended_ns=None, capture=2)
    assert gaps(stalled, lasting).table.splitlines() == [
        "| connection | instruments | from (IST) | to | seconds in session | cause | what happened, and how it ended |",
        "|---:|---:|---|---|---:|---|---|",
        "| dhan 2/1 | 5 | 09:01:00.000 | lasts | 9.0 | reset |  |",
        "| dhan 1 | 5 | 09:01:30.000 | 09:01:32.500 | 2.5 | stall | nothing came for 90 s; connected again |",
    ]


def test_words_of_a_server_cannot_break_the_table() -> None:
    [row] = gaps(gap(2.5, detail="bad | gate\nway")).table.splitlines()[2:]
    assert row == "| dhan 1 | 5 | 09:01:00.000 | 09:01:02.500 | 2.5 | reset | bad \\| gate way |"


def test_of_hundreds_of_gaps_the_longest_are_shown() -> None:
    table = gaps(*(gap(1.0 + n / 100, at_s=n) for n in range(300))).table
    assert table.count("| reset |") == 50
    assert "| 09:04:59.000 |" in table
    assert table.endswith("\n\n250 shorter gaps are left out.")


def test_silent_instruments_of_an_hour_are_counted_apart_and_warn_however_long_they_were_silent() -> None:
    outcome = gaps(gap(900.0, Cause.SILENT, instruments=1), gap(800.0, Cause.SILENT, instruments=1), gap(2.0))
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "WARN", 2.0)
    assert "1 gap of" in outcome.description
    assert "2 lively instruments fell silent" in outcome.description
    assert "| silent |" not in outcome.table
    assert outcome.table.endswith("2 lively instruments fell silent.")


def test_a_segment_that_fell_silent_is_judged_like_a_connection_that_was_lost() -> None:
    outcome = gaps(gap(900.0, Cause.SILENT, instruments=2000, detail="nothing came of NSE_FNO"), gap(2.0))
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 900.0)
    assert "| silent | nothing came of NSE_FNO" in outcome.table


def test_an_open_gap_of_the_session_is_judged_while_it_lasts_and_one_that_ended_for_a_while() -> None:
    assert live("gaps").passed
    lasts = live("gaps", gap_open_s=61.0, gap_cause="token")
    assert (lasts.severity, "Cause: token. Have a new token in time" in lasts.description) == ("ERROR", True)
    recent = live("gaps", gap_recent_s=7.0)
    assert (recent.passed, recent.severity, recent.value) == (False, "WARN", 7.0)


def test_a_stop_that_was_asked_for_warns_and_does_not_hide_a_fault() -> None:
    stopped = live("gaps", gap_stopped_s=130.0)
    assert (stopped.passed, stopped.severity, stopped.value) == (False, "WARN", 130.0)
    assert stopped.description == (
        "The capture was asked to stop, and missed 2 min of the session until it was started again: what came meanwhile"
        " is in no journal, and no rebuild brings it back."
    )
    both = live("gaps", gap_stopped_s=130.0, gap_recent_s=61.0)
    assert (both.passed, both.severity, both.value) == (False, "ERROR", 130.0)
    assert "took 61.0 s" in both.description
    assert live("gaps", gap_stopped_s=4.0).passed
    [row] = gaps(gap(130.0, Cause.STOP)).table.splitlines()[2:]
    assert (gaps(gap(130.0, Cause.STOP)).severity, "| stop |" in row) == ("ERROR", True)


def test_instruments_that_fell_silent_are_named_as_far_as_they_are_told() -> None:
    outcome = live("silent_instruments", silent=[1103806597957], silent_count=1)
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "WARN", 1.0)
    assert ": 1103806597957. " in outcome.description
    many = live("silent_instruments", silent=[1103806597957, 1103806597958], silent_count=30)
    assert "1103806597957, 1103806597958 and 28 more." in many.description


def test_trade_times_in_true_utc_are_critical_and_too_few_packets_are_no_fault() -> None:
    outcome = live("trade_clock", trade_clock="moved")
    assert (outcome.passed, outcome.severity) == (False, "ERROR")
    assert "5.5 h too early" in outcome.description
    assert "DHAN_TRADE_TIME_OFFSET_S=0" in outcome.description
    assert live("trade_clock", trade_clock=None).passed


@pytest.mark.parametrize(
    ("expires", "passed", "severity"),
    [
        (None, True, "WARN"),
        ("2026-11-20T18:25:00+00:00", True, "WARN"),  # when the last session closes
        ("2026-11-20T18:24:00+00:00", False, "WARN"),
        ("2026-11-20T03:59:00+00:00", False, "ERROR"),
    ],
)
def test_a_token_that_does_not_last_for_the_day_warns(expires: str | None, passed: bool, severity: str) -> None:
    closes = datetime(2026, 11, 20, 23, 55, tzinfo=IST)
    status = {**GOOD_STATUS, "token_expires_at": expires}
    outcome = named(live_outcomes(status, SETTINGS, token_until=closes), "token")
    assert (outcome.passed, outcome.severity) == (passed, severity)
    assert ("needed until 2026-11-20 23:55 IST" in outcome.description) is (
        expires is not None and expires < "2026-11-20T18:25"
    )


@pytest.mark.parametrize(("source", "what_to_do"), [("dhan", "With DHAN_PIN"), ("kite", "Log in for another")])
def test_what_to_do_about_a_token_is_its_brokers_way(source: str, what_to_do: str) -> None:
    status = {**GOOD_STATUS, "token_expires_at": "2020-01-01T00:00:00+00:00"}
    settings = SETTINGS.model_copy(update={"data_source": source})
    assert f" {what_to_do}" in named(live_outcomes(status, settings), "token").description


def test_a_token_that_the_broker_refuses_is_critical_however_long_it_is_good() -> None:
    problem = "Dhan refused the connection (809, access token invalid)."
    outcome = live("token", token_expires_at="2026-11-21T04:01:00+00:00", token_problem=problem)
    assert (outcome.passed, outcome.severity) == (False, "ERROR")
    assert outcome.description.startswith(f"{problem} The capture waits for another token")


def test_after_the_last_session_of_the_day_a_token_may_end() -> None:
    assert live("token", token_expires_at="2026-11-20T04:01:00+00:00").passed
    assert "unknown" in live("token", token_expires_at=None).description


def test_a_status_line_of_an_older_capture_is_judged_by_what_it_says() -> None:
    fields = ("latency_p95_ms", "latency_p999_ms", "latency_counts", "ticks_per_minute", "cpu_percent_minute")
    fields += (
        "subscribed",
        "gaps",
        "gap_open_s",
        "gap_recent_s",
        "silent",
        "silent_count",
        "trade_clock",
        "token_expires_at",
    )
    old = {name: value for name, value in GOOD_STATUS.items() if name not in fields}
    assert all(outcome.passed for outcome in live_outcomes(old, SETTINGS))


def test_what_a_database_says_that_takes_nothing_stands_in_the_words() -> None:
    outcome = live("latency_p99", latency_p99_ms=None, backlog_seconds=30.0, store_problem="No space left on device")
    assert not outcome.passed
    assert "The database takes nothing (No space left on device): mend that" in outcome.description


@pytest.mark.parametrize(
    ("free_gb", "passed", "severity"), [(2.1, True, "WARN"), (1.9, False, "WARN"), (0.4, False, "ERROR")]
)
def test_a_disk_that_is_nearly_full_is_told_early(free_gb: float, passed: bool, severity: str) -> None:
    outcome = live("disk", disk_free_gb=free_gb)
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, free_gb)
    assert ("make room" in outcome.description) is not passed


@pytest.mark.parametrize(
    ("used_mb", "passed", "severity"), [(400.0, True, "WARN"), (401.0, False, "WARN"), (601.0, False, "ERROR")]
)
def test_memory_of_the_capture_is_judged_in_megabytes(used_mb: float, passed: bool, severity: str) -> None:
    outcome = live("memory", rss_mb=used_mb)
    assert (outcome.passed, outcome.severity, outcome.value, outcome.unit) == (passed, severity, used_mb, "MB")
    assert ("Usual is below 200 MB" in outcome.description) is not passed


@pytest.mark.parametrize(
    ("percent", "passed", "severity"), [(30.0, True, "WARN"), (30.1, False, "WARN"), (50.1, False, "ERROR")]
)
def test_processor_time_is_judged_over_a_minute(percent: float, passed: bool, severity: str) -> None:
    outcome = live("cpu", cpu_percent=99.0, cpu_percent_minute=percent)
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, percent)
    assert "for 300 ticks a second" in outcome.description
    assert ("Catching up after an outage" in outcome.description) is not passed
    young = live("cpu", cpu_percent=99.0, cpu_percent_minute=None)
    assert (young.passed, young.value) == (True, None)


def test_latencies_are_shown_as_percentiles_and_as_a_histogram() -> None:
    for outcome in (hour("latency_p99", latencies=Picture("", "")), live("latency_p99")):
        assert outcome.description.endswith("Of those stored: p50 4 ms, p95 8 ms, p99 12 ms, p99.9 30 ms.")
        assert outcome.picture is not None


def test_the_ticks_of_an_hour_are_shown_with_its_gaps() -> None:
    picture = hour("tick_rate", gaps=(gap(90.0), gap(3.0, Cause.SILENT, instruments=1))).picture
    assert picture is not None
    assert picture.words == "ticks a minute, up to 15, and 1 gap"


@pytest.mark.parametrize(
    ("facts", "passed", "severity", "told"),
    [
        (
            {"queue_depth": 12, "workers": 3, "dead_letters": 0},
            True,
            "WARN",
            "RabbitMQ holds 12 messages",
        ),
        ({"queue_depth": 5001, "workers": 3, "dead_letters": 0}, False, "WARN", "do not keep up"),
        ({"queue_depth": 10_001, "workers": 3, "dead_letters": 0}, False, "ERROR", "do not keep up"),
        ({"queue_depth": 1, "workers": 0, "dead_letters": 0}, False, "ERROR", "dhan-pipeline worker"),
        ({"queue_depth": 0, "workers": 0, "dead_letters": 0}, True, "WARN", "0 workers"),
        ({"queue_depth": 0, "workers": 3, "dead_letters": 2}, False, "WARN", "redrive --dead-letters"),
        ({"queue_depth": None, "workers": 3, "dead_letters": None}, False, "ERROR", "RabbitMQ is away"),
    ],
)
def test_queues_are_judged_where_blocks_go_through_them(
    facts: dict[str, object], passed: bool, severity: str, told: str
) -> None:
    settings = Settings(_env_file=None, transport="rabbitmq")
    [outcome] = [o for o in live_outcomes({**GOOD_STATUS, **facts}, settings) if o.name == "queue_depth"]
    assert (outcome.passed, outcome.severity) == (passed, severity)
    assert told in outcome.description


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({}, "The database does not keep up"),
        ({"queue_depth": None, "workers": 0}, "RabbitMQ is away: start it"),
        ({"queue_depth": 9, "workers": 0}, "No worker runs: start one"),
        ({"queue_depth": 9, "workers": None}, "The database does not keep up"),
        ({"queue_depth": 9, "workers": 2}, "The workers or the database do not keep up"),
    ],
)
def test_what_waits_is_laid_to_what_holds_it_up(facts: dict[str, object], cause: str) -> None:
    waits = {"latency_p99_ms": None, "backlog_seconds": 70.0, "ticks_per_minute": 0.0, **facts}
    for name in ("latency_p99", "insert_rate"):
        outcome = live(name, **waits)
        assert not outcome.passed
        assert cause.casefold() in outcome.description.casefold()


def test_an_hour_is_late_for_the_reason_that_the_capture_noted() -> None:
    late = HourFlow(waited_ticks=1, waited_s=300.0, waited_in_parts=True)
    for name in ("latency_p99", "insert_rate"):
        facts = {"latency_p99_ms": 90_000.0, "flow": late, "trading": (1000,) * 60}
        assert "RabbitMQ was away" in hour(name, **facts, waits={"rabbitmq": 290}).description
        unknown = hour(name, **facts)
        assert not unknown.passed
        assert "RabbitMQ, the workers or the database were away" in unknown.description


def test_a_queue_is_judged_also_by_who_has_no_settings_of_it() -> None:
    assert not live("queue_depth", queue_depth=9, workers=0, dead_letters=0).passed


def test_no_queue_is_judged_where_the_capture_writes_itself() -> None:
    outcome = live("queue_depth")
    assert outcome.passed
    assert "no queue is used" in outcome.description


@pytest.mark.parametrize(
    "records",
    [
        recorded(),
        recorded(("capture", "a")),
        recorded(("capture", "b"), ("capture", "a")),  # late blocks
        recorded(("capture", "a"), ("rebuild", "a", (0, 0, 0))),
        recorded(("capture", "a"), ("rebuild", "a", (1, 2, 3))),  # it mended what others had done
        recorded(("capture", "b"), ("rebuild", "a", (0, 0, 0))),  # late blocks, which it found there
        recorded(("rebuild", "a", (0, 0, 9)), ("rebuild", "a", (0, 0, 0))),
        recorded(("redrive", "a"), ("rebuild", "a", (0, 0, 0))),
        recorded(("rebuild", "a", (900, 0, 0))),
    ],
)
def test_rows_that_are_what_they_were_pass(records: tuple[DigestRecord, ...]) -> None:
    outcome = hour("digest", digest="a", recorded=records)
    assert (outcome.passed, outcome.value) == (True, 0.0)


def test_rows_that_others_changed_are_critical() -> None:
    outcome = hour("digest", digest="b", recorded=recorded(("capture", "b"), ("rebuild", "a", (0, 0, 0))), rows=890)
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 10)
    assert "The 890 rows of 2026-11-20T09:00 are not the 900 that were there at 2026-11-20 10:01 IST" in (
        outcome.description
    )
    assert "`dhan-pipeline replay --hour 2026-11-20T09:00 --diff`" in outcome.description


def test_a_rebuild_that_left_other_rows_warns_with_their_numbers() -> None:
    outcome = hour("digest", digest="a", recorded=recorded(("capture", "b"), ("rebuild", "a", (1, 2, 1000))))
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "WARN", 1003)
    assert outcome.description.startswith(
        "The rebuild of 2026-11-20 10:01 IST left other rows of 2026-11-20T09:00 than were there: 1 added, 2 removed,"
        " 1,000 changed."
    )
    assert "Materialise `ticks` for 2026-11-20T09:00 once more" in outcome.description


def test_a_redrive_that_left_other_rows_warns() -> None:
    outcome = hour("digest", digest="a", recorded=recorded(("capture", "b"), ("redrive", "a")))
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert "The redrive of 2026-11-20 10:01 IST" in outcome.description


def test_ticks_that_left_the_database_by_their_age_are_no_fault() -> None:
    gone = {"rows": 0, "digest": 16 * "0", "expired": True}
    outcome = hour("digest", recorded=recorded(("capture", "a")), **gone)
    assert (outcome.passed, outcome.value) == (True, 0.0)
    assert outcome.description.startswith("The 900 ticks of 2026-11-20T09:00 have left the database")
    assert hour("conservation", **gone).passed
    assert not hour("conservation", **gone, state=81).passed
