"""Hours of ticks made anew from the journal, or compared with it."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dhan_pipeline.cli.common import JsonOption, open_database, print_json, read_settings

if TYPE_CHECKING:
    from dhan_pipeline.settings import Settings
    from dhan_pipeline.store.differences import Difference
    from dhan_pipeline.store.rebuilds import HourRebuild


def replay(
    hour: Annotated[
        str, typer.Option(metavar="HOUR", help="The hour (IST), such as 2026-11-20T09:00; or a day, for all its hours.")
    ],
    to: Annotated[
        str | None, typer.Option(metavar="HOUR", help="The last hour, or the last day; without it, only the first.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show every row that differs from what the journal says, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rebuild hours of ticks from the journal: each in one transaction, and only rows that differ are written.

    The capture may run meanwhile. Hours that are still open are refused.
    """
    first, last = _span(hour, to)
    settings = read_settings()
    with open_database(settings) as url:
        _replay(settings, url, first, last, diff, as_json)


def _replay(settings: "Settings", url: str, first: str, last: str, diff: bool, as_json: bool) -> None:
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.ingest.rebuild import held_hours, rebuild_hours

    held = held_hours(settings, first, last)
    console = Console(stderr=True)
    with Progress(
        TextColumn("Hours"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Lines on the same terminal go above the bar; into a file or a pipe they must go as they are.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task("hours", total=len(held), words="")
        ticks = 0

        def count(hour: str, more: int) -> None:
            nonlocal ticks
            ticks += more
            speed = ticks / (progress.tasks[0].elapsed or 1.0)
            progress.update(task, words=f"{hour}  {ticks:,} ticks, {speed:,.0f} ticks/s")

        def show(of_row: Sequence["Difference"]) -> None:
            if as_json:
                print_json(_row_json(of_row))
            else:
                print(_row_words(of_row))

        for rebuilt in rebuild_hours(
            settings, url, first, last, Clock(), count, compare_only=diff, each_row=show if diff else None
        ):
            if as_json:
                print_json(_hour_json(rebuilt))
            else:
                print(_hour_words(rebuilt))
            progress.advance(task)
    if missing := _hours_between(first, last, held):
        print(f"The journal holds nothing of {', '.join(missing)}.", file=sys.stderr)
    if diff:
        print("Nothing was changed.", file=sys.stderr)


def _span(hour: str, to: str | None) -> tuple[str, str]:
    """Keys of the first and the last hour. Raises typer.BadParameter."""
    from dhan_pipeline.sessions import parse_hour_key

    bounds = []
    for text, option in ((hour, "--hour"), (hour if to is None else to, "--to")):
        key = text if "T" in text else f"{text}T{'00' if option == '--hour' else '23'}:00"
        try:
            parse_hour_key(key)
        except (ValueError, OverflowError):
            raise typer.BadParameter(
                f"{text} is neither an hour such as 2026-11-20T09:00 nor a day such as 2026-11-20", param_hint=option
            ) from None
        bounds.append(key)
    first, last = bounds
    if last < first:
        raise typer.BadParameter(f"{to} is before {hour}", param_hint="--to")
    return first, last


def _hours_between(first: str, last: str, held: Iterable[str]) -> list[str]:
    """The hours of a span that are not held, each stretch of them in words. `held` is in order."""
    from dhan_pipeline.sessions import HOUR_NS, hour_key, parse_hour_key

    starts = [parse_hour_key(first) - HOUR_NS, *map(parse_hour_key, held), parse_hour_key(last) + HOUR_NS]
    stretches = [
        (hour_key(before + HOUR_NS), hour_key(after - HOUR_NS))
        for before, after in pairwise(starts)
        if after - before > HOUR_NS
    ]
    return [begin if begin == end else f"{begin} to {end}" for begin, end in stretches]


def _hour_words(rebuilt: "HourRebuild") -> str:
    found = rebuilt.differences
    if rebuilt.same:
        return f"{rebuilt.hour}  {rebuilt.rows:>12,} rows, the same"
    columns = ", ".join(f"{name} {rows:,}" for name, rows in found.columns)
    return (
        f"{rebuilt.hour}  {rebuilt.rows:>12,} rows, different: {found.added:,} added, {found.removed:,} removed,"
        f" {found.changed:,} changed{f' ({columns})' if columns else ''}"
    )


def _hour_json(rebuilt: "HourRebuild") -> dict[str, Any]:
    found = rebuilt.differences
    return {
        "hour": rebuilt.hour,
        "rows": rebuilt.rows,
        "same": rebuilt.same,
        "digest": rebuilt.digest,
        "digest_before": rebuilt.digest_before,
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "columns": dict(found.columns),
    }


def _row_words(of_row: Sequence["Difference"]) -> str:
    from dhan_pipeline.sessions import IST

    row = of_row[0]
    changes = ", ".join(
        f"{difference.column or 'row'} {_word(difference.before)} -> {_word(difference.after)}" for difference in of_row
    )
    return f"{row.time.astimezone(IST):%Y-%m-%d %H:%M:%S.%f}  {row.tick_id}  {row.instrument_token}  {changes}"


def _word(value: object) -> str:
    from dhan_pipeline.sessions import IST

    if isinstance(value, datetime):
        return f"{value.astimezone(IST):%Y-%m-%d %H:%M:%S.%f}"
    return "NULL" if value is None else str(value)


def _row_json(of_row: Sequence["Difference"]) -> dict[str, Any]:
    row = of_row[0]
    whole = next((str(difference.after) for difference in of_row if difference.column is None), None)
    return {
        "tick_id": row.tick_id,
        "time": row.time.isoformat(),
        "instrument_token": row.instrument_token,
        "what": {"present": "added", "absent": "removed", None: "changed"}[whole],
        "columns": {
            difference.column: [_plain(difference.before), _plain(difference.after)]
            for difference in of_row
            if difference.column is not None
        },
    }


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
