import re
import socket
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import enumerate as threads

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dhan_pipeline import enrich
from dhan_pipeline.feeds.dhan.framing import split
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.metrics import (
    KINDS,
    LATENCY_BUCKETS_S,
    OTHER_REASON,
    REASONS,
    Metrics,
    MetricsError,
    reason_label,
    serving,
)
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.exposition import STATUS, all_metrics
from dhan_pipeline_tests.ingest.feed import TOKENS, HandClock

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "metrics.md"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path, metrics_port=0)


def counts_of(**facts: int) -> Counts:
    counts = Counts()
    for name, value in facts.items():
        setattr(counts, name, value)
    return counts


def shown(metrics: Metrics) -> dict[str, float]:
    """Every sample, as `name` or `name{label="value"}`."""
    return {
        sample.name + (f"{{{','.join(f'{k}={v}' for k, v in sample.labels.items())}}}" if sample.labels else ""): float(
            sample.value
        )
        for family in metrics.collect()
        for sample in family.samples
    }


def scraped(address: str | None) -> list[Metric]:
    assert address
    with urllib.request.urlopen(address, timeout=10) as response:
        return list(text_string_to_metric_families(response.read().decode()))


@pytest.fixture
def families(settings: Settings) -> Iterator[list[Metric]]:
    with serving(settings, all_metrics(settings)) as address:
        yield scraped(address)


def test_counts_are_shown_as_they_are_at_the_scrape(settings: Settings) -> None:
    counts = counts_of(blocks=3, batches=2, packets=20, ticks=9, state=5, control=4, rejected=2)
    metrics = Metrics(settings, HandClock(), "worker", counts)
    found = shown(metrics)
    names = "stored_blocks stored_batches packets ticks state_packets control_packets"
    assert [found[f"dhan_{name}_total"] for name in names.split()] == [3, 2, 20, 9, 5, 4]
    counts.packets += 5
    assert shown(metrics)["dhan_packets_total"] == 25


def test_packets_are_shown_by_kind_and_a_kind_that_never_came_as_zero(settings: Settings) -> None:
    counts = Counts()
    counts.kinds.update({"full": 7, "text": 1})
    found = shown(Metrics(settings, HandClock(), "worker", counts))
    by_kind = {kind: found[f"dhan_accepted_packets_total{{kind={kind}}}"] for kind in KINDS}
    assert by_kind == dict.fromkeys(KINDS, 0) | {"full": 7, "text": 1}


def test_rejections_are_shown_by_reasons_that_are_few(settings: Settings) -> None:
    counts = Counts()
    counts.reasons.update({"unknown code 77": 2, "unknown code 78": 3, "torn full packet: 9 of 162 bytes": 4, "new": 1})
    found = shown(Metrics(settings, HandClock(), "worker", counts))
    by_reason = {reason: found[f"dhan_rejected_packets_total{{reason={reason}}}"] for reason in REASONS}
    assert by_reason == dict.fromkeys(REASONS, 0) | {"unknown_code": 5, "torn_packet": 4, OTHER_REASON: 1}


def test_every_reason_that_there_is_has_a_label() -> None:
    tails = (b"", b"\0" * 4, b"\0" * 300)
    frames = [bytes([code, *size.to_bytes(2, "little"), 1, 0, 0, 0, 0]) for code in range(256) for size in (0, 9, 308)]
    packets = [packet for frame in frames for tail in tails for packet in split(frame + tail)]
    reasons = {reason for *_, reason in [*packets, *split(b"\2\0\0")] if reason is not None}
    reasons |= {enrich.UNKNOWN_INSTRUMENT, enrich.IMPOSSIBLE_PRICE, enrich.FUTURE_TRADE_TIME, "empty message"}
    assert {reason_label(reason) for reason in reasons} == {*REASONS} - {OTHER_REASON}


def test_latency_is_a_histogram_in_seconds_whose_buckets_are_exact_to_their_limits(settings: Settings) -> None:
    counts = Counts()
    for limit_s in LATENCY_BUCKETS_S:
        counts.latency.add(np.array([970.0, 970.0, 1030.0]) * limit_s)
    counts.latency.add(np.array([1e6]))
    found = shown(Metrics(settings, HandClock(), "worker", counts))
    for number, limit_s in enumerate(LATENCY_BUCKETS_S):
        assert found[f"dhan_latency_seconds_bucket{{le={limit_s}}}"] == 3 * number + 2
    everything_s = 1000.0 + 2.97 * sum(LATENCY_BUCKETS_S)
    assert found["dhan_latency_seconds_bucket{le=+Inf}"] == found["dhan_latency_seconds_count"]
    assert found["dhan_latency_seconds_count"] == 3 * len(LATENCY_BUCKETS_S) + 1
    assert found["dhan_latency_seconds_sum"] == pytest.approx(everything_s, rel=0.02)


def test_the_status_line_is_shown_in_seconds_bytes_and_numbers(settings: Settings) -> None:
    found = shown(all_metrics(settings))
    at = datetime(2026, 11, 20, 3, 30, 1, tzinfo=UTC).timestamp()
    expected = {
        "status_timestamp_seconds": at,
        "last_message_timestamp_seconds": at - 0.5,
        "token_expires_timestamp_seconds": at + 23 * 3600 - 1,
        "connections": 2,
        "connections_up": 1,
        "messages_total": 70,
        "received_bytes_total": 700,
        "reconnects_total": 3,
        "gaps_total": 4,
        "backlog_blocks": 5,
        "backlog_seconds": 1.5,
        "gap_open_seconds": 6.5,
        "gap_recent_seconds": 7.5,
        "silent_instruments": 8,
        "trade_clock_ok": 1,
        "disk_free_bytes": 9.5e9,
        "queue_messages": 10,
        "dead_letters": 11,
        "workers": 12,
        "lanes_held": 2,
        "buried_messages_total": 13,
    }
    assert {name: found[f"dhan_{name}"] for name in expected} == expected


def test_what_is_unknown_is_not_shown(settings: Settings) -> None:
    metrics = Metrics(settings, HandClock(), "worker")
    assert [*shown(metrics)] == ["dhan_process_info{role=worker,capture=,source=dhan,transport=direct}"]
    metrics.status = {"event": "status", "at": STATUS["at"], "token_expires_at": None, "trade_clock": None}
    assert {*shown(metrics)} - {*shown(Metrics(settings, HandClock(), "worker"))} == {"dhan_status_timestamp_seconds"}


def test_trade_times_that_moved_are_shown_as_zero(settings: Settings) -> None:
    metrics = all_metrics(settings)
    metrics.status = STATUS | {"trade_clock": "moved"}
    assert shown(metrics)["dhan_trade_clock_ok"] == 0


def test_what_workers_commit_is_shown_by_them_and_not_by_the_capture_as_well(settings: Settings) -> None:
    handing_over = settings.model_copy(update={"transport": "rabbitmq"})
    assert "dhan_ticks_total" in shown(Metrics(handing_over, HandClock(), "worker", Counts()))
    assert "dhan_ticks_total" not in shown(Metrics(handing_over, HandClock(), "capture", Counts()))


def at_ist(hour: int, minute: int = 0, day: int = 20) -> int:
    """Of November 2026, in which the 20th is a Friday and the 24th a holiday: ns since the Unix epoch."""
    return int(datetime.fromisoformat(f"2026-11-{day}T{hour:02}:{minute:02}+05:30").timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("at_ns", "equities", "currencies", "closes", "opens"),
    [
        (at_ist(8, 59), 0, 0, None, at_ist(9)),
        (at_ist(9, 5), 0, 1, at_ist(19, 30), at_ist(9, day=23)),
        (at_ist(12), 1, 1, at_ist(19, 30), at_ist(9, day=23)),
        (at_ist(16, 30), 0, 1, at_ist(19, 30), at_ist(9, day=23)),
        (at_ist(19, 30), 0, 0, None, at_ist(9, day=23)),
        (at_ist(20, day=23), 0, 0, None, at_ist(9, day=25)),
    ],
)
def test_sessions_are_those_of_what_is_subscribed(
    settings: Settings, at_ns: int, equities: int, currencies: int, closes: int | None, opens: int
) -> None:
    found = shown(Metrics(settings, HandClock(at_ns), "capture", subscribed=[*TOKENS, TOKENS[1] + 1]))
    assert found["dhan_session_open{segment=NSE_EQ}"] == equities
    assert found["dhan_session_open{segment=NSE_CURRENCY}"] == currencies
    assert found["dhan_subscribed_instruments{segment=NSE_EQ}"] == 2
    assert found["dhan_subscribed_instruments{segment=NSE_CURRENCY}"] == 1
    assert found.get("dhan_session_close_timestamp_seconds") == (closes and closes / 1e9)
    assert found["dhan_next_session_timestamp_seconds"] == opens / 1e9


def test_an_exchange_that_never_closes_is_always_in_session(settings: Settings) -> None:
    always = settings.model_copy(update={"sessions": "always"})
    sunday_ns = at_ist(3, day=22)
    found = shown(Metrics(always, HandClock(sunday_ns), "capture", subscribed=TOKENS))
    assert found["dhan_session_open{segment=NSE_EQ}"] == 1
    assert found["dhan_session_close_timestamp_seconds"] > sunday_ns / 1e9
    assert found["dhan_next_session_timestamp_seconds"] == sunday_ns / 1e9


def test_metrics_are_served_on_loopback_with_those_of_the_process_and_gone_afterwards(settings: Settings) -> None:
    before = {*threads()}
    with serving(settings, all_metrics(settings)) as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", address or "")
        names = {family.name for family in scraped(address)}
        assert {"dhan_messages", "process_resident_memory_bytes", "process_cpu_seconds"} <= names
    assert {*threads()} <= before
    with pytest.raises(OSError, match="refused"):
        scraped(address)


def test_without_a_port_nothing_is_served(settings: Settings) -> None:
    before = {*threads()}
    unset = settings.model_copy(update={"metrics_port": None})
    with serving(unset, all_metrics(unset)) as address:
        assert address is None
        assert {*threads()} == before


@pytest.mark.parametrize("host", ["127.0.0.1", "no such host"])
def test_an_address_that_cannot_be_had_is_one_clear_sentence(settings: Settings, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = settings.model_copy(update={"metrics_port": port, "metrics_host": host})
        with (
            pytest.raises(MetricsError, match=f"cannot be shown on {host}:{port} .*METRICS_PORT"),
            serving(other, all_metrics(other)),
        ):
            pass


def test_the_document_lists_every_metric_with_its_type_labels_and_meaning(families: list[Metric]) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    listed = {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| `((?:dhan|process)_\w+)` \|(.*)\|$", document, re.MULTILINE)
    }
    named = {family.name + "_total" * (family.type == "counter"): family for family in families}
    assert listed.keys() == named.keys()
    for name, (kind, labels, _unit, meaning) in listed.items():
        family = named[name]
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert (kind, {*re.findall(r"`(\w+)`", labels)}) == (family.type, found), name
        if name.startswith("dhan_"):
            assert meaning == family.documentation
