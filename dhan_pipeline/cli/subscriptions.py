"""What is captured: a person's rules, applied to the instruments of the day."""

import sys
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dhan_pipeline.amounts import first_of
from dhan_pipeline.cli.common import JsonOption, for_each_source, open_database, parse_source, print_json, read_settings
from dhan_pipeline.sources import Source

if TYPE_CHECKING:
    from dhan_pipeline.subscriptions import Resolution

#: So many names without an instrument are shown of a rule.
_SHOWN = 5


def subscriptions(
    source: Annotated[
        str | None, typer.Option(help="The broker, dhan or kite; without it those of DATA_SOURCE, one after the other.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the rules come to, and leave what is captured as it is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Apply the rules of the subscriptions file to the active instruments, and show what each comes to.

    Options around the price of their underlying are shown with the price that was used.
    A capture that runs takes the result over within seconds, without a reconnect. With both brokers, JSON has an object
    for each, and one that fails does not keep the other from being written.
    """
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.holidays import calendar_problem_left
    from dhan_pipeline.sessions import IST
    from dhan_pipeline.store.engine import connect
    from dhan_pipeline.store.resolved import resolve_rules
    from dhan_pipeline.subscriptions import MAX_SUBSCRIPTIONS, load_rules
    from dhan_pipeline.windows import write_resolution

    settings = read_settings()
    rules = load_rules(settings.subscriptions_file)
    sources = settings.sources if source is None else (parse_source(source),)
    clock = Clock()

    def of_one(each: Source) -> "Resolution":
        with closing(connect(url)) as conn:
            resolution = resolve_rules(conn, rules, each, clock)
        if not dry_run:
            write_resolution(settings.of(each), resolution)
        return resolution

    with open_database(settings) as url:
        done, failure = for_each_source(sources, of_one)
    if as_json:
        told: dict[Source, dict[str, Any]] = {
            each: {
                "subscriptions": len(resolution.subscriptions),
                "limit": MAX_SUBSCRIPTIONS[each],
                "rules": [asdict(rule) for rule in resolution.summary],
            }
            for each, resolution in done.items()
        }
        if told:
            print_json(told if len(sources) > 1 else told[sources[0]], default=datetime.isoformat)
    for each, resolution in done.items() if not as_json else ():
        _show(each, resolution, MAX_SUBSCRIPTIONS[each])
    if failure is not None:
        raise failure
    if problem := calendar_problem_left(settings, clock.now().astimezone(IST).date()):
        print(problem, file=sys.stderr)


def _show(source: Source, resolution: "Resolution", most: int) -> None:
    from dhan_pipeline.subscriptions import spot_in_words

    table = Table(
        title=f"{source}: {len(resolution.subscriptions):,} of {most:,} instruments",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("line", "selected", "added"):
        table.add_column(name, justify="right")
    table.add_column("rule")
    table.add_column("without an instrument")
    for rule in resolution.summary:
        table.add_row(
            str(rule.line), f"{rule.selected:,}", f"{rule.added:,}", rule.rule, first_of(rule.missing, _SHOWN)
        )
    console = Console()
    console.print(table)
    for rule in resolution.summary:
        for spot in rule.spots[:_SHOWN]:
            console.print(f"Line {rule.line}: around {spot_in_words(spot)}.", highlight=False, soft_wrap=True)
        if len(rule.spots) > _SHOWN:
            console.print(f"Line {rule.line}: and around {len(rule.spots) - _SHOWN:,} more.", highlight=False)
