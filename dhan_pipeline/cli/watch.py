"""A live view of what is happening now, in the terminal."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dhan_pipeline.amounts import counted, duration
from dhan_pipeline.cli.common import JsonOption, open_database, parse_source, print_json, read_settings
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import CAPTURES, Source

if TYPE_CHECKING:
    from dhan_pipeline.quality.now import Capture, Mover, Now

#: Longest wait for an answer of the database before it is said to be away.
_PATIENCE_S = 12.0


class _Stopped(BaseException):
    """SIGINT or SIGTERM came."""


def watch(
    source: Annotated[
        str | None, typer.Option(help="Only one broker, dhan or kite; without it, all there are.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="How often to look.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show what is happening now: is the data good, connections, rates by segment, latency, movers, gaps. Ctrl-C ends.

    It reads what captures say of themselves in the database each second, and changes nothing. Without a terminal it
    prints a line each time; with --json, a JSON object each time.
    """
    settings = read_settings()
    sources = (parse_source(source),) if source else None

    def stop(_number: int, _frame: object) -> None:
        raise _Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with open_database(settings) as url:
            looks = _looks(settings, url, sources, every)
            if as_json or not sys.stdout.isatty():
                for look in looks:
                    if as_json:
                        print_json(_facts(look), default=_iso)
                    else:
                        print(_line(look), flush=True)
            else:
                _show(looks)
    except _Stopped:
        pass


def _looks(settings: "Settings", url: str, sources: "Sequence[Source] | None", every_s: float) -> "Iterator[Now | str]":
    """What is happening, again and again; a sentence where the database does not tell. Never ends."""
    import psycopg2

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.errors import explain
    from dhan_pipeline.quality.now import read_now
    from dhan_pipeline.sources import SOURCES
    from dhan_pipeline.store.reading import Reader
    from dhan_pipeline.threads import in_thread

    clock = Clock()
    reader = Reader(url)
    pause = threading.Event()
    while True:
        began_s = time.monotonic()
        # In a thread: a signal ends the wait for a server that does not answer.
        asked = in_thread(
            partial(reader.read, lambda conn: read_now(conn, settings, clock, sources or SOURCES)), "look"
        )
        try:
            yield asked.result(_PATIENCE_S)
        except TimeoutError:
            yield f"The database has not answered for {_PATIENCE_S:.0f} s."
        except (psycopg2.Error, PipelineError) as error:
            yield explain(error) or "The database cannot be asked."
        pause.wait(max(0.0, began_s + every_s - time.monotonic()))


def _facts(look: "Now | str") -> dict[str, Any]:
    return {"problem": look} if isinstance(look, str) else asdict(look)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def _line(look: "Now | str") -> str:
    """A line for a file: the time, the headline, and what all captures come to."""
    from dhan_pipeline.times import to_second

    if isinstance(look, str):
        return f"{to_second(datetime.now(UTC))}  {look}"
    captures = look.captures
    p99_ms = max((capture.latency_p99_ms or 0 for capture in captures), default=0)
    return (
        f"{to_second(look.at)}  {look.headline}:  "
        f"{sum(capture.connections_up for capture in captures)} of {sum(c.connections for c in captures)} connections  "
        f"{sum(capture.ticks_per_second for capture in captures):,.0f} ticks/s  p99 {p99_ms:,.0f} ms  "
        f"backlog {max((capture.backlog_s for capture in captures), default=0):,.1f} s  "
        f"{counted(look.gaps, 'gap')} of {look.gap_s:,.1f} s today"
    )


def _show(looks: "Iterator[Now | str]") -> None:
    console = Console()
    last: Now | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for look in looks:
            if isinstance(look, str):
                problem = Text(f" ✗ {look}", style="bold red")
                stale = f" What follows is of {last.at:%H:%M:%S} IST." if last else " Trying again."
                live.update(_screen(last, console, problem + Text(stale)), refresh=True)
            else:
                last = look
                live.update(_screen(look, console), refresh=True)


def _screen(now: "Now | None", console: Console, problem: Text | None = None) -> Group:
    """One screen: what is wrong first, movers as many as there is room for."""
    blank = Text()
    if now is None:
        return Group(problem or blank)
    title = Table.grid(expand=True)
    title.add_column()
    title.add_column(justify="right")
    verdict = (
        Text(f" ✓ {now.headline}", style="bold green") if now.good else Text(f" ✗ {now.headline}", style="bold red")
    )
    title.add_row(verdict, Text(f"{now.at:%a %d %b %H:%M:%S} IST ", style="dim"))
    top: list[RenderableType] = [title]
    if problem is not None:
        top.append(problem)
    room = max(console.height // 4, 3)
    one = len(now.problems) == 1
    top += [Text(f"   {sentence}", overflow="ellipsis", no_wrap=not one) for sentence in now.problems[:room]]
    top += [blank, _captures(now), blank, _segments(now), blank]
    bottom = _gaps(now)
    used = len(console.render_lines(Group(*top, bottom), console.options, pad=False))
    if movers := _movers(now, console.height - used - 3):
        top += [movers, blank]
    return Group(*top, bottom)


def _table(*names: str) -> Table:
    """Of figures, but for the first column."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("capture", "segment", "session") else "right", no_wrap=True)
    return table


def _captures(now: "Now") -> Table:
    table = _table(" capture", "connections", "ticks/s", "stored", "rejected", "backlog", "p50", "p99")
    table.columns[0].justify = "left"
    for capture in now.captures:
        if capture.state == "live":
            up, good = (
                f"{capture.connections_up} of {capture.connections}",
                capture.connections_up == capture.connections,
            )
        else:
            up, good = f"{capture.state} since {capture.said_at:%H:%M:%S}", False
        table.add_row(
            f" {_name(capture)}",
            Text(up, style="green" if good else "red"),
            f"{capture.ticks_per_second:,.0f}",
            f"{capture.ticks:,}",
            f"{capture.rejected:,}",
            f"{capture.backlog_s:,.1f} s",
            _ms(capture.latency_p50_ms),
            _ms(capture.latency_p99_ms),
        )
    return table


def _name(capture: "Capture") -> str:
    shard = capture.capture % CAPTURES
    return f"{capture.source}{f'/{shard}' if shard else ''}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"


def _segments(now: "Now") -> Table:
    table = _table(" segment", "session", "ticks/s", "last tick", "instruments heard")
    table.columns[0].justify = "left"
    several = len({segment.source for segment in now.segments}) > 1
    for segment in now.segments:
        age_s = None if segment.last_at is None else max((now.at - segment.last_at).total_seconds(), 0.0)
        table.add_row(
            f" {segment.source + ' ' if several else ''}{segment.segment}",
            Text(segment.session, style="" if segment.trading else "dim"),
            f"{segment.ticks_per_second:,.1f}" if segment.ticks_per_second < 10 else f"{segment.ticks_per_second:,.0f}",
            Text("none yet" if age_s is None else _ago(age_s), style="red" if segment.late else ""),
            f"{segment.heard:,} of {segment.instruments:,}",
        )
    return table


def _ago(seconds: float) -> str:
    """What a capture says is up to two seconds old when it is shown."""
    return "now" if seconds < 3 else f"{duration(seconds)} ago"


def _movers(now: "Now", rows: int) -> Table | None:
    """The most of one group, up and down: shares, or else what there is."""
    group = next((name for name in ("shares", "futures", "indices") if any(now.movers.get(name, {}).values())), None)
    if group is None or rows < 1:
        return None
    table = _table(f" {group} up", "", "", f"{group} down", "", "")
    for at in (0, 3):
        table.columns[at].justify = "left"
        table.columns[at].min_width = 16
    table.columns[2].min_width = 12
    ways = now.movers[group]
    for up, down in list(zip_longest(ways["up"], ways["down"]))[:rows]:
        table.add_row(*_mover(up, "green", " "), *_mover(down, "red"))
    return table


def _mover(mover: "Mover | None", style: str, indent: str = "") -> tuple[str, str, Text]:
    if mover is None:
        return "", "", Text()
    exchange = "" if mover.segment in ("NSE_EQ", "NSE_FNO", "IDX_I", "MCX_COMM") else f" {mover.segment[:3]}"
    return (
        f"{indent}{mover.symbol}{exchange}",
        f"{mover.last_price:,.2f}",
        Text(f"{mover.change_percent:+.2f} %", style=style),
    )


def _gaps(now: "Now") -> Text:

    if not now.gaps and not now.silences:
        return Text(" No gap in session today.", style="green")
    text = Text(f" Gaps in session today: {now.gaps}, {now.gap_s:,.1f} s in all.")
    if now.silences:
        text.append(f" {counted(now.silences, 'lively instrument')} fell silent.")
    for gap in now.latest_gaps[:1]:
        until = f"to {gap.ended_at:%H:%M:%S}" if gap.ended_at else "and lasts"
        text.append(f" Last: {gap.started_at:%H:%M:%S} {until}, {gap.source} {gap.connection}, {gap.cause}.")
    return text
