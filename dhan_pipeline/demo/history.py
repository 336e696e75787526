"""The hours before the demo: captured through the same wire by the same code as live ones, faster than real time."""

import asyncio
from datetime import date
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.ingest.run import Ingest
from dhan_pipeline.journal.reader import captures, hours
from dhan_pipeline.sessions import HOUR_NS, hour_key, hour_start_ns, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import read_subscriptions

#: Complete hours that there are to see at once, the real seconds in which each is captured, and its ticks a second.
HOURS = 3
SECONDS_AN_HOUR = 4.0
RATE = 10_000.0

#: Number of the capture that makes them. Of its own, because the live one has missed nothing when it begins.
CAPTURE = 1

#: The capture is asked to stop this long (of its clock) before the end, since stopping takes a moment.
_MARGIN_NS = 240_000_000_000


def capture_history(settings: Settings, database_url: str, console: Console) -> None:
    """Capture those of the last complete hours that come after the journal's last one."""
    end_ns = hour_start_ns(Clock().now_ns())
    start_ns = end_ns - HOURS * HOUR_NS
    if held := _held(settings):
        start_ns = max(start_ns, parse_hour_key(held[-1]) + HOUR_NS)
    if start_ns >= end_ns:
        return
    clock = Clock(start_ns, speed=HOUR_NS / 1e9 / SECONDS_AN_HOUR)
    asyncio.run(_capture(settings, database_url, clock, end_ns, console))


def first_day(settings: Settings) -> date:
    """The IST day of the first hour that there is, or will be once the last hours are captured."""
    first = hour_key(Clock().now_ns() - HOURS * HOUR_NS)
    return date.fromisoformat(min([first, *_held(settings)])[:10])


def _held(settings: Settings) -> list[str]:
    """The hours that the journal has, in order."""
    return sorted(hour for number in captures(settings.journal_dir) for hour in hours(settings.journal_dir, number))


async def _capture(settings: Settings, database_url: str, clock: Clock, end_ns: int, console: Console) -> None:
    tokens = [subscription.instrument_token for subscription in read_subscriptions(settings.subscriptions_path)]
    stop = asyncio.Event()
    start_ns = clock.now_ns()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=end_ns - start_ns)

        def show(event: dict[str, Any]) -> None:
            if event["event"] == "status":
                now_ns = min(clock.now_ns(), end_ns - 1)
                text = f"Captures the hour {hour_key(now_ns)} first, faster than real time: {event['ticks']:,} ticks"
                progress.update(task, completed=now_ns - start_ns, description=text)

        async with DhanSimulator(tokens, rate=RATE, clock=clock) as simulator:
            past = settings.model_copy(update={"dhan_feed_url": simulator.feed_url, "capture": CAPTURE})
            capture = Ingest(past, database_url, show, clock)
            try:
                seconds_left = -clock.elapsed_s(end_ns - _MARGIN_NS)
                asyncio.get_running_loop().call_later(seconds_left, stop.set)
                await capture.run(stop)
            finally:
                capture.close()
