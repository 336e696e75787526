"""The capture as `dhan-pipeline ingest` runs it, with instruments fitted: what it says of itself on request.

Started by `end_to_end`, as a process of its own, with its settings in the environment. Each line on standard input is
answered by one JSON object: running totals, to be subtracted from one another. It ends when standard input closes.

Two things are measured here that a capture does not measure itself: how late the event loop runs a timer that is due
every few milliseconds, and how long the garbage collector holds everything up.
"""

import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
from typing import Any

import uvloop

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.run import Ingest
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import database_url

#: How often the event loop is asked for a sign of life. It costs the capture some 0.3 % of a core.
PULSE_S = 0.005


#: What threads of a capture do, by their names. The others decode, enrich, and send to the database.
_STAGES = {"MainThread": "receive", "journal": "journal"}


class Pauses:
    """The longest time since the last reading that the loop was late, and that the collector ran. In ms."""

    def __init__(self) -> None:
        self.loop_ms = self.collector_ms = 0.0
        self.collections = 0
        self._began = 0.0
        gc.callbacks.append(self._collect)

    async def pulse(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.perf_counter() + PULSE_S
            await asyncio.sleep(PULSE_S)
            self.loop_ms = max(self.loop_ms, 1000 * (time.perf_counter() - due))

    def read(self) -> dict[str, float]:
        """What was longest, and begin anew."""
        read = {"loop_pause_ms": self.loop_ms, "gc_pause_ms": self.collector_ms, "collections": self.collections}
        self.loop_ms = self.collector_ms = 0.0
        return read

    def _collect(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.collector_ms = max(self.collector_ms, 1000 * (time.perf_counter() - self._began))
            self.collections += 1


async def main() -> None:
    """Capture until standard input closes."""
    settings = Settings()
    pauses = Pauses()
    capture = Ingest(settings, database_url(settings), lambda event: None, Clock())
    stop = asyncio.Event()
    running = asyncio.create_task(capture.run(stop))
    pulse = asyncio.create_task(pauses.pulse())

    def state() -> dict[str, Any]:
        status = capture.status()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **{name: status[name] for name in ("connections_up", "messages", "packets", "ticks", "rejected", "blocks")},
            **{name: status[name] for name in ("rss_mb", "gaps", "backlog_seconds", "bytes")},
            "pid": os.getpid(),
            "latency_counts": capture.latency.counts.tolist(),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "cpu_s_by_thread": {
                stage: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                for thread in threading.enumerate()
                if (stage := _STAGES.get(thread.name)) and thread.ident
            },
            **pauses.read(),
        }

    while await asyncio.to_thread(sys.stdin.readline):
        if running.done():
            break
        print(json.dumps(state()), flush=True)
    pulse.cancel()
    stop.set()
    await running
    capture.close()


if __name__ == "__main__":
    uvloop.run(main())
