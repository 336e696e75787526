"""The capture without Dagster, and a message of its feed explained."""

import asyncio
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dhan_pipeline.cli.common import (
    LONGEST_S,
    JsonOption,
    SourceOption,
    open_database,
    parse_source,
    print_json,
    read_settings,
    until_signal,
)
from dhan_pipeline.errors import PipelineError, explain, redacted
from dhan_pipeline.settings import Settings

log = logging.getLogger(__name__)

_STDOUT = 1

#: Lines that wait for a supervisor: a day of gaps, a few MB.
_LINES_KEPT = 10_000

#: How long a capture that ends waits for its supervisor to read on.
_FINISH_S = 1.0


def ingest(
    for_s: Annotated[
        float | None,
        typer.Option(
            "--for",
            min=1,
            max=LONGEST_S,
            metavar="SECONDS",
            help="How long to capture; without it, until a signal.",
        ),
    ] = None,
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Print JSON lines, and stop when standard input closes.")
    ] = False,
) -> None:
    """Capture the feed into the journal and the database, without Dagster."""
    import uvloop

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.errors import DataPlanError
    from dhan_pipeline.ingest.metrics import serving
    from dhan_pipeline.ingest.run import Ingest

    lines = _Lines() if supervised else None
    emit = lines.say if lines else _print_status

    async def run(stop: asyncio.Event) -> None:
        if supervised:
            _stop_when_stdin_closes(stop)
        if len(settings.sources) == 1:
            await capture(settings, emit, stop)
            return
        # One that cannot go on, such as for want of the day's login, costs the other nothing.
        captures = [beside_another(settings.of(source), stop) for source in settings.sources]
        failures = [failure for failure in await asyncio.gather(*captures) if failure is not None]
        if failures:
            raise failures[0]

    async def beside_another(settings: Settings, stop: asyncio.Event) -> Exception | None:
        try:
            await capture(settings, lambda event: emit({**event, "source": settings.source}), stop)
        except Exception as error:
            log.error("%s's capture has ended. %s", settings.source, explain(error) or error)
            return error
        return None

    async def capture(settings: Settings, emit: Callable[[dict[str, Any]], None], stop: asyncio.Event) -> None:
        capture = Ingest(settings, database_url, emit, Clock())
        try:
            with serving(settings, capture.metrics):
                await capture.run(stop)
        finally:
            capture.close()

    try:
        settings = read_settings()
        with open_database(settings, make=True) as database_url:
            uvloop.run(until_signal(run, for_s))
    except (PipelineError, OSError) as error:
        # An error of the system that says nothing of a file is one of the journal, at which all else ends.
        message = explain(error) or f"The capture cannot go on: {getattr(error, 'strerror', None) or error}."
        if lines:
            # Without a data plan trying again is of no use: a person has to act at the broker.
            lines.say({"event": "error", "message": message, "permanent": isinstance(error, DataPlanError)})
        raise PipelineError(message) from error
    finally:
        if lines:
            lines.finish()


class _Lines:
    """Events as JSON lines for a supervisor, without secrets. One that does not read must not hold up the sockets.

    What its pipe does not take waits until it does. A status line does not: the next one says more.
    """

    def __init__(self) -> None:
        os.set_blocking(_STDOUT, False)
        self._waiting: deque[bytes] = deque()

    def say(self, event: dict[str, Any]) -> None:
        """Print the event as soon as the pipe takes it, after those that wait."""
        shown = {name: redacted(fact) if isinstance(fact, str) else fact for name, fact in event.items()}
        self._write()
        if len(self._waiting) < (1 if event["event"] == "status" else _LINES_KEPT):
            self._waiting.append(f"{json.dumps(shown)}\n".encode())
            self._write()

    def finish(self) -> None:
        """Give a supervisor that reads late a moment for what still waits."""
        deadline = time.monotonic() + _FINISH_S
        while self._waiting and (left_s := deadline - time.monotonic()) > 0:
            select.select([], [_STDOUT], [], left_s)
            self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                line = self._waiting[0]
                if rest := line[os.write(_STDOUT, line) :]:
                    self._waiting[0] = rest
                else:
                    self._waiting.popleft()
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it has died, which closes standard input too and ends the capture in order
            self._waiting.clear()


def _print_status(event: dict[str, Any]) -> None:
    if event["event"] == "status":
        whose = f"{event['source']}:" if "source" in event else ""
        print(
            f"{whose}{event['messages_per_second']:>9,.0f} messages/s  {event['ticks']:>12,} ticks stored  "
            f"{event['rejected']:>6,} rejected  p50 {event['latency_p50_ms'] or 0:.0f} ms  "
            f"p99 {event['latency_p99_ms'] or 0:.0f} ms  backlog {event['backlog_seconds']:.1f} s",
            file=sys.stderr,
        )
    elif event["event"] == "subscriptions":
        log.info(event["message"])


def _stop_when_stdin_closes(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        with suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def decode(
    frame: Annotated[str, typer.Argument(metavar="HEX", help="One message in hexadecimal; - reads standard input.")],
    source: SourceOption = "dhan",
    as_json: JsonOption = False,
) -> None:
    """Explain a message of the feed: every packet and every field."""
    from dhan_pipeline.feeds.by_source import explainer

    explain_frame = explainer(parse_source(source))

    try:
        message = bytes.fromhex(sys.stdin.read() if frame == "-" else frame)
    except ValueError:
        raise typer.BadParameter("that is not hexadecimal", param_hint="HEX") from None
    packets = explain_frame(message)
    if not packets:
        raise PipelineError("The message is empty.")
    if as_json:
        print_json({"packets": packets})
        return
    console = Console()
    for packet in packets:
        error = f": {packet['error']}" if packet["error"] else ""
        table = Table(
            title=f"{packet['kind']} at {packet['offset']}, {packet['size']} bytes{error}", title_justify="left"
        )
        table.add_column("offset", justify="right")
        table.add_column("field")
        table.add_column("raw", justify="right")
        table.add_column("meaning")
        for row in packet["rows"]:
            table.add_row(str(row["offset"]), row["field"], str(row["raw"]), row["meaning"])
        console.print(table)
