"""The metrics of a process that has all that there are."""

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.metrics import Metrics
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.ingest.feed import TOKENS, HandClock

#: All that a status line may say, of a capture with either transport, or of a worker.
STATUS: dict[str, Any] = {
    "event": "status",
    "at": "2026-11-20T03:30:01+00:00",
    "hour": "2026-11-20T09:00",
    "connections_up": 1,
    "connections": 2,
    "messages": 70,
    "bytes": 700,
    "reconnects": 3,
    "gaps": 4,
    "backlog_blocks": 5,
    "backlog_seconds": 1.5,
    "gap_open_s": 6.5,
    "gap_recent_s": 7.5,
    "silent_count": 8,
    "silent": [1, 2],
    "trade_clock": "ok",
    "token_expires_at": "2026-11-21T02:30:00+00:00",
    "disk_free_gb": 9.5,
    "last_packet_at": "2026-11-20T03:30:00.500000+00:00",
    "latency_p99_ms": None,
    "queue_depth": 10,
    "dead_letters": 11,
    "workers": 12,
    "lanes": [1, 3],
    "buried": 13,
}


def all_metrics(settings: Settings) -> Metrics:
    metrics = Metrics(settings, HandClock(), "capture", Counts(), TOKENS)
    metrics.status = STATUS
    return metrics


def exposition() -> str:
    """What a scrape gets."""
    registry = CollectorRegistry()
    registry.register(all_metrics(Settings(_env_file=None, data_dir=Path("none"), sessions="always")))
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()


def series_names() -> set[str]:
    """Names of all series that there are, `_total` and `_bucket` included."""
    return {line.replace("{", " ").split()[0] for line in exposition().splitlines() if not line.startswith("#")}
