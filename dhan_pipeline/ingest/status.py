"""What a capture says about itself, once a second: one JSON object, the same on its output and in `captures.status`."""

import resource
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.sessions import hour_key

#: Seconds over which rates and latencies of a status line are taken.
WINDOW_S = 10

#: Those over which the load is judged: a second of catching up says nothing.
MINUTE_S = 60


def rss_mb() -> float:
    """Resident memory of this process, in megabytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:  # macOS has no /proc; the peak is the nearest that the standard library tells
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


class _Sample(NamedTuple):
    at_s: float
    cpu_s: float
    messages: int
    ticks: int
    latency: NDArray[np.int64]


class StatusReport:
    """Turns the running totals of a capture into status lines, with rates over the last seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._caught_up_ns = 0
        self._past: deque[_Sample] = deque(maxlen=MINUTE_S + 1)

    def line(
        self,
        counts: Counts,
        *,
        messages: int,
        received_bytes: int,
        last_received_ns: int,
        last_message_ns: int,
        connections: tuple[int, int],
    ) -> dict[str, Any]:
        """The status now. `connections`: how many are up, of how many. What is received last may be a note of ours."""
        now_ns = self._clock.now_ns()
        sample = _Sample(time.monotonic(), time.process_time(), messages, counts.ticks, counts.latency.counts.copy())
        self._past.append(sample)
        oldest = self._past[max(len(self._past) - 1 - WINDOW_S, 0)]
        seconds = max(sample.at_s - oldest.at_s, 1e-3)
        recent = LatencyHistogram()
        recent.counts = sample.latency - oldest.latency
        minute_ago = self._past[0] if len(self._past) > MINUTE_S else None
        # The oldest message that waits came after the last that is committed, and after all was committed last.
        # Before anything is known to be committed, a backlog counts from the start.
        committed_ns = counts.committed_through_ns
        behind = last_received_ns > committed_ns
        if not behind:
            self._caught_up_ns = now_ns
        waiting_since_ns = max(committed_ns or self._started_ns, self._caught_up_ns)
        return {
            "event": "status",
            "at": datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat(),
            "hour": hour_key(now_ns),
            "connections_up": connections[0],
            "connections": connections[1],
            "messages": messages,
            "packets": counts.packets,
            "ticks": counts.ticks,
            "state": counts.state,
            "control": counts.control,
            "rejected": counts.rejected,
            "blocks": counts.blocks,
            "bytes": received_bytes,
            "backlog_seconds": round(self._clock.elapsed_s(waiting_since_ns), 3) if behind else 0.0,
            "latency_p50_ms": recent.percentile(50),
            "latency_p95_ms": recent.percentile(95),
            "latency_p99_ms": recent.percentile(99),
            "latency_p999_ms": recent.percentile(99.9),
            "latency_counts": recent.columns(),
            "latency_total_p50_ms": counts.latency.percentile(50),
            "latency_total_p99_ms": counts.latency.percentile(99),
            "messages_per_second": round((messages - oldest.messages) / seconds, 1),
            "rss_mb": round(rss_mb(), 1),
            "cpu_percent": round(100 * (sample.cpu_s - oldest.cpu_s) / seconds, 1),
            "last_packet_at": (
                datetime.fromtimestamp(last_message_ns / 1e9, UTC).isoformat() if last_message_ns else None
            ),
            **_of_minute(sample, minute_ago),
        }


def _of_minute(now: _Sample, minute_ago: _Sample | None) -> dict[str, float | None]:
    """What was stored in the last minute and what that took; None where the capture is younger."""
    if minute_ago is None:
        return {"ticks_per_minute": None, "cpu_percent_minute": None}
    seconds = max(now.at_s - minute_ago.at_s, 1e-3)
    return {
        "ticks_per_minute": round(60 * (now.ticks - minute_ago.ticks) / seconds, 1),
        "cpu_percent_minute": round(100 * (now.cpu_s - minute_ago.cpu_s) / seconds, 1),
    }
