import json
from datetime import UTC, datetime

import numpy as np
import pytest

from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.status import MINUTE_S, StatusReport
from dhan_pipeline_tests.ingest.feed import HOUR, SECOND_NS, HandClock

FIELDS = (
    "event at hour connections_up connections messages packets ticks state control rejected blocks bytes "
    "backlog_seconds latency_p50_ms latency_p95_ms latency_p99_ms latency_p999_ms latency_counts "
    "latency_total_p50_ms latency_total_p99_ms messages_per_second "
    "rss_mb cpu_percent last_packet_at ticks_per_minute cpu_percent_minute"
)


class Reported:
    """A status report over counts that nobody makes."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.counts = Counts()
        self.report = StatusReport(self.clock)

    def line(self, messages: int = 0, last_received_ns: int = 0) -> dict[str, object]:
        return self.report.line(
            self.counts,
            messages=messages,
            received_bytes=10 * messages,
            last_received_ns=last_received_ns,
            last_message_ns=last_received_ns,
            connections=(1, 2),
        )


@pytest.fixture
def reported() -> Reported:
    return Reported()


def test_a_line_has_every_field_and_is_json(reported: Reported) -> None:
    line = reported.line()
    assert list(line) == FIELDS.split()
    assert json.loads(json.dumps(line)) == line
    assert line["event"] == "status"
    assert line["hour"] == HOUR
    assert line["at"] == datetime(2026, 11, 20, 3, 30, 1, tzinfo=UTC).isoformat()
    assert (line["connections_up"], line["connections"]) == (1, 2)
    assert line["last_packet_at"] is None
    assert line["latency_p99_ms"] is None
    assert isinstance(line["rss_mb"], float)
    assert 10 < line["rss_mb"] < 10_000


def test_counts_are_those_since_the_start(reported: Reported) -> None:
    counts = reported.counts
    counts.blocks, counts.packets, counts.ticks, counts.state, counts.control, counts.rejected = 1, 16, 8, 5, 2, 1
    line = reported.line(messages=7, last_received_ns=reported.clock.at_ns)
    expected = {
        "messages": 7,
        "bytes": 70,
        "blocks": 1,
        "packets": 16,
        "ticks": 8,
        "state": 5,
        "control": 2,
        "rejected": 1,
    }
    assert {name: line[name] for name in expected} == expected
    assert line["last_packet_at"] == line["at"]


def test_recent_latency_forgets_what_the_total_remembers(reported: Reported) -> None:
    reported.counts.latency.add(np.full(1000, 900.0))
    reported.line()
    for _ in range(10):
        reported.counts.latency.add(np.full(10, 5.0))
        line = reported.line()
    assert line["latency_p99_ms"] == pytest.approx(5.0, rel=0.05)
    assert line["latency_total_p99_ms"] == pytest.approx(900.0, rel=0.05)
    line = reported.line()
    assert line["latency_p50_ms"] == pytest.approx(5.0, rel=0.05)


def test_the_rate_is_that_of_the_last_lines(reported: Reported) -> None:
    assert reported.line(messages=0)["messages_per_second"] == 0.0
    rate = reported.line(messages=1000)["messages_per_second"]
    assert isinstance(rate, float)
    assert rate > 0.0
    for _ in range(11):
        line = reported.line(messages=1000)
    assert line["messages_per_second"] == 0.0


def test_the_backlog_is_as_old_as_what_follows_the_last_commit(reported: Reported) -> None:
    start_ns = reported.clock.at_ns
    reported.counts.committed_through_ns = start_ns
    assert reported.line(last_received_ns=start_ns)["backlog_seconds"] == 0.0
    reported.clock.at_ns += 5 * SECOND_NS
    assert reported.line(last_received_ns=start_ns + 4 * SECOND_NS)["backlog_seconds"] == 5.0
    reported.counts.committed_through_ns = start_ns + 3 * SECOND_NS
    assert reported.line(last_received_ns=start_ns + 4 * SECOND_NS)["backlog_seconds"] == 2.0
    reported.counts.committed_through_ns = start_ns + 4 * SECOND_NS
    assert reported.line(last_received_ns=start_ns + 4 * SECOND_NS)["backlog_seconds"] == 0.0


def test_the_first_message_after_a_quiet_night_is_no_backlog(reported: Reported) -> None:
    evening_ns = reported.clock.at_ns
    reported.counts.committed_through_ns = evening_ns
    reported.clock.at_ns = evening_ns + 17 * 3600 * SECOND_NS
    reported.line(last_received_ns=evening_ns)
    reported.clock.at_ns += SECOND_NS
    line = reported.line(last_received_ns=reported.clock.at_ns)
    assert line["backlog_seconds"] == 1.0


def test_before_anything_is_known_of_the_database_a_backlog_counts_from_the_start(reported: Reported) -> None:
    last_ns = reported.clock.at_ns - 3600 * SECOND_NS
    assert reported.line(last_received_ns=last_ns)["backlog_seconds"] == 0.0
    reported.clock.at_ns += 3 * SECOND_NS
    assert reported.line(last_received_ns=last_ns)["backlog_seconds"] == 3.0


def test_load_is_told_of_a_whole_minute_and_of_no_less(reported: Reported) -> None:
    lines = []
    for _ in range(MINUTE_S + 2):
        lines.append(reported.line())
        reported.counts.ticks += 100
    assert {line["ticks_per_minute"] for line in lines[:MINUTE_S]} == {None}
    assert {line["cpu_percent_minute"] for line in lines[:MINUTE_S]} == {None}
    for line in lines[MINUTE_S:]:  # which took a moment here
        assert isinstance(line["ticks_per_minute"], float)
        assert line["ticks_per_minute"] > 60 * 100
        assert isinstance(line["cpu_percent_minute"], float)


def test_latencies_of_the_last_lines_are_told_as_a_histogram(reported: Reported) -> None:
    reported.line()
    reported.counts.latency.add(np.array([0.5, 3.0, 3.0, 700.0, 1e7]))
    line = reported.line()
    assert isinstance(line["latency_counts"], list)
    assert {at: count for at, count in enumerate(line["latency_counts"]) if count} == {0: 1, 2: 2, 9: 1, 16: 1}
    assert line["latency_p95_ms"] == line["latency_p999_ms"]
