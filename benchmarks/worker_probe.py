"""A worker as `dhan-pipeline worker` runs it, with instruments fitted: what it says of itself on request.

Started by `running`, as a process of its own, with its settings in the environment. Each line on standard input is
answered by one JSON object: running totals, to be subtracted from one another. It ends when standard input closes.
"""

import asyncio
import json
import resource
import sys

import uvloop

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.status import rss_mb
from dhan_pipeline.ingest.worker import Worker
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import database_url
from dhan_pipeline.transport.broker import broker_url


async def main() -> None:
    """Work until standard input closes."""
    settings = Settings()
    worker = Worker(settings, database_url(settings), broker_url(settings), lambda event: None, Clock())
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    while await asyncio.to_thread(sys.stdin.readline):
        if running.done():
            break
        usage = resource.getrusage(resource.RUSAGE_SELF)
        state = {
            "lanes": sorted(worker.lanes),
            "ticks": worker.counts.ticks,
            "batches": worker.counts.batches,
            "latency_counts": worker.counts.latency.counts.tolist(),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "rss_mb": round(rss_mb(), 1),
        }
        print(json.dumps(state), flush=True)
    stop.set()
    await running


if __name__ == "__main__":
    uvloop.run(main())
