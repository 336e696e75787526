"""The hours before the demo: captured through the same wire by the same code as live ones, faster than real time."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import date
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.exchanges import make_exchanges
from dhan_pipeline.ingest.run import Ingest
from dhan_pipeline.journal.reader import captures, hours
from dhan_pipeline.sessions import HOUR_NS, hour_key, hour_start_ns, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.subscriptions import read_subscriptions

#: Complete hours that there are to see at once, the real seconds in which each is captured, and its ticks a second.
HOURS = 3
SECONDS_AN_HOUR = 4.0
RATE = 10_000.0

#: Shard of the captures that make them. Of its own, because the live one has missed nothing when it begins.
CAPTURE = 1

#: The capture is asked to stop this long (of its clock) before the end, since stopping takes a moment.
_MARGIN_NS = 240_000_000_000


def capture_history(settings: Settings, database_url: str, console: Console, now_ns: int) -> None:
    """Capture those of the last complete hours that come after the last one in the journal, of all sources at once.

    Hours that one source has already are not captured of another one: that would be another market, and a comparison
    of the two would find nothing but differences. `now_ns` is in ns since the Unix epoch, UTC.
    """
    end_ns = hour_start_ns(now_ns)
    held = _held(settings)
    start_ns = max(end_ns - HOURS * HOUR_NS, parse_hour_key(held[-1]) + HOUR_NS if held else 0)
    if start_ns < end_ns:
        clock = Clock(start_ns, speed=HOUR_NS / 1e9 / SECONDS_AN_HOUR)
        asyncio.run(_capture(settings, settings.sources, database_url, clock, end_ns, console))


def first_day(settings: Settings) -> date:
    """The IST day of the first hour that there is, or will be once the last hours are captured."""
    first = hour_key(Clock().now_ns() - HOURS * HOUR_NS)
    return date.fromisoformat(min([first, *_held(settings)])[:10])


def _held(settings: Settings) -> list[str]:
    """The hours that the journal has of any source, in order."""
    return sorted({hour for number in captures(settings.journal_dir) for hour in hours(settings.journal_dir, number)})


async def _capture(
    settings: Settings, sources: Sequence[Source], database_url: str, clock: Clock, end_ns: int, console: Console
) -> None:
    own = {source: settings.of(source) for source in sources}
    tokens = [subscription.instrument_token for subscription in read_subscriptions(own[sources[0]].subscriptions_path)]
    stop = asyncio.Event()
    start_ns = clock.now_ns()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    ticks = dict.fromkeys(sources, 0)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=end_ns - start_ns)

        def show(source: Source, event: dict[str, Any]) -> None:
            if event["event"] == "status":
                ticks[source] = event["ticks"]
                now_ns = min(clock.now_ns(), end_ns - 1)
                text = (
                    f"Captures the hour {hour_key(now_ns)} first, faster than real time: {sum(ticks.values()):,} ticks"
                )
                progress.update(task, completed=now_ns - start_ns, description=text)

        async with AsyncExitStack() as running:
            working = []
            for source, exchange in make_exchanges(sources, tokens, rate=RATE / len(sources), clock=clock).items():
                await running.enter_async_context(exchange)
                past = own[source].model_copy(update={f"{source}_feed_url": exchange.feed_url, "capture": CAPTURE})
                working.append(Ingest(past, database_url, partial(show, source), clock))
                running.callback(working[-1].close)
            asyncio.get_running_loop().call_later(-clock.elapsed_s(end_ns - _MARGIN_NS), stop.set)
            await asyncio.gather(*(capture.run(stop) for capture in working))
