"""A status line, as a capture says it that is well."""

from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline_tests.broker import RELIANCE, TCS


def mover(token: int, percent: float) -> dict[str, float]:
    return {"instrument_token": token, "last_price": 100.0, "change_percent": percent}


def status(**facts: Any) -> dict[str, Any]:
    """What a capture says that is well."""
    now = Clock().now().isoformat()
    segment = {"ticks": 900, "ticks_per_second": 90.0, "last_at": now, "instruments": 10, "heard": 9}
    return {
        "event": "status",
        "at": now,
        "connections_up": 2,
        "connections": 2,
        "messages": 1000,
        "packets": 1000,
        "ticks": 990,
        "state": 8,
        "control": 2,
        "rejected": 0,
        "backlog_seconds": 0.1,
        "latency_p50_ms": 10.0,
        "latency_p99_ms": 20.0,
        "messages_per_second": 100.0,
        "last_packet_at": now,
        "disk_free_gb": 100.0,
        "rss_mb": 150.0,
        "cpu_percent": 10.0,
        "trade_clock": "ok",
        "sessions": "always",
        "token_expires_at": None,
        "segments": {"NSE_EQ": segment},
        "movers": {"shares": {"up": [mover(RELIANCE, 2.5)], "down": [mover(TCS, -1.5)]}},
    } | facts
