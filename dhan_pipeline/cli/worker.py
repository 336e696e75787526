"""Stores what captures hand to RabbitMQ."""

import sys
from typing import Annotated, Any

import typer

from dhan_pipeline.cli.common import LONGEST_S, JsonOption, open_database, print_json, read_settings, until_signal
from dhan_pipeline.errors import redacted


def worker(
    for_s: Annotated[
        float | None,
        typer.Option(
            "--for",
            min=1,
            max=LONGEST_S,
            metavar="SECONDS",
            help="How long to work; without it, until a signal.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store what captures hand to RabbitMQ (TRANSPORT=rabbitmq, RABBITMQ_URL) in the database.

    Any number of workers share the lanes; three work at once, and others stand by. One that ends, however it does, is
    replaced by those that are left, and loses nothing. Neither the database nor the broker has to be there: a worker
    waits for both.
    """
    import uvloop

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.ingest.metrics import serving
    from dhan_pipeline.ingest.worker import Worker
    from dhan_pipeline.transport.broker import broker_url

    settings = read_settings()
    url = broker_url(settings)
    with open_database(settings, make=True) as database_url:
        process = Worker(settings, database_url, url, _print_json if as_json else _print_status, Clock())
        with serving(settings, process.metrics):
            uvloop.run(until_signal(process.run, for_s))


def _print_json(event: dict[str, Any]) -> None:
    print_json({name: redacted(fact) if isinstance(fact, str) else fact for name, fact in event.items()})


def _print_status(event: dict[str, Any]) -> None:
    if event["event"] != "status":
        return
    lanes = ", ".join(map(str, event["lanes"]))
    where = f"lane {lanes}" if len(event["lanes"]) == 1 else f"lanes {lanes}" if lanes else "standing by"
    print(
        f"{where:<13}  {event['ticks_per_second']:>9,.0f} ticks/s  {event['ticks']:>12,} ticks stored  "
        f"{event['rejected']:>6,} rejected  p50 {event['latency_p50_ms'] or 0:.0f} ms  "
        f"p99 {event['latency_p99_ms'] or 0:.0f} ms  {event['blocks_per_batch']:.0f} blocks a transaction",
        file=sys.stderr,
    )
