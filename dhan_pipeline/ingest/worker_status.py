"""What a worker says about itself, once a second."""

import time
from collections import deque
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.ingest.status import WINDOW_S, rss_mb


class _Sample(NamedTuple):
    at_s: float
    cpu_s: float
    ticks: int
    blocks: int
    batches: int
    latency: NDArray[np.int64]


class WorkerReport:
    """Turns the running totals of a worker into status lines, with rates and latencies of the last seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._past: deque[_Sample] = deque(maxlen=WINDOW_S + 1)

    def line(self, counts: Counts, lanes: Collection[int], buried: int) -> dict[str, Any]:
        """The status now."""
        latency = counts.latency.counts.copy()
        sample = _Sample(time.monotonic(), time.process_time(), counts.ticks, counts.blocks, counts.batches, latency)
        self._past.append(sample)
        oldest = self._past[0]
        seconds = max(sample.at_s - oldest.at_s, 1e-3)
        recent = LatencyHistogram()
        recent.counts = sample.latency - oldest.latency
        return {
            "event": "status",
            "at": self._clock.now().isoformat(),
            "lanes": sorted(lanes),
            "packets": counts.packets,
            "ticks": counts.ticks,
            "state": counts.state,
            "control": counts.control,
            "rejected": counts.rejected,
            "blocks": counts.blocks,
            "batches": counts.batches,
            "buried": buried,
            "blocks_per_batch": round((sample.blocks - oldest.blocks) / max(sample.batches - oldest.batches, 1), 1),
            "ticks_per_second": round((sample.ticks - oldest.ticks) / seconds, 1),
            "latency_p50_ms": recent.percentile(50),
            "latency_p99_ms": recent.percentile(99),
            "latency_total_p50_ms": counts.latency.percentile(50),
            "latency_total_p99_ms": counts.latency.percentile(99),
            "rss_mb": round(rss_mb(), 1),
            "cpu_percent": round(100 * (sample.cpu_s - oldest.cpu_s) / seconds, 1),
        }
