"""What a capture says about itself, once a second: one JSON object, the same on its output and in `captures.status`."""

import resource
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.sessions import hour_key

#: Seconds over which rates and latencies of a status line are taken.
WINDOW_S = 10


def rss_mb() -> float:
    """Resident memory of this process, in megabytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:  # macOS has no /proc; the peak is the nearest that the standard library tells
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


class StatusReport:
    """Turns the running totals of a capture into status lines, with rates over the last seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._caught_up_ns = 0
        self._past: deque[tuple[float, float, int, np.ndarray[Any, Any]]] = deque(maxlen=WINDOW_S + 1)

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
        sample = (time.monotonic(), time.process_time(), messages, counts.latency.counts.copy())
        self._past.append(sample)
        oldest = self._past[0]
        seconds = max(sample[0] - oldest[0], 1e-3)
        recent = LatencyHistogram()
        recent.counts = sample[3] - oldest[3]
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
            "latency_p99_ms": recent.percentile(99),
            "latency_total_p50_ms": counts.latency.percentile(50),
            "latency_total_p99_ms": counts.latency.percentile(99),
            "messages_per_second": round((messages - oldest[2]) / seconds, 1),
            "rss_mb": round(rss_mb(), 1),
            "cpu_percent": round(100 * (sample[1] - oldest[1]) / seconds, 1),
            "last_packet_at": (
                datetime.fromtimestamp(last_message_ns / 1e9, UTC).isoformat() if last_message_ns else None
            ),
        }
