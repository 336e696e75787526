"""The database: its server, its schema, the instruments in it."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from dhan_pipeline.cli.common import (
    JsonOption,
    for_each_source,
    open_database,
    parse_source,
    print_json,
    read_settings,
)
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source

if TYPE_CHECKING:
    from dhan_pipeline.feeds.master_csv import InstrumentMaster

#: So many of the rows that cannot be read are shown.
_SHOWN = 5

db_app = typer.Typer(help="The embedded PostgreSQL.", no_args_is_help=True, rich_markup_mode=None)


def sync_instruments(
    db_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the database; without it DATABASE_URL, else the embedded one.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The broker, dhan or kite; without it those of DATA_SOURCE, one after the other.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download the list of all instruments first.")] = False,
    csv_path: Annotated[
        Path | None,
        typer.Option(help="The list on disk: Dhan's scrip master, compact or detailed, or Kite's instruments dump."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a COPY.")] = 50_000,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a list in which a segment vanished or the rows collapsed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Load a broker's list into the instruments table; what is missing from it is deactivated, never deleted.

    The rows of another broker are left alone. With both, JSON has an object for each, and one that fails does not keep
    the other from being loaded.
    """
    if download == (csv_path is not None):
        raise typer.BadParameter("one of --download and --csv-path is needed", param_hint="--download")
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.masters import parse_master
    from dhan_pipeline.holidays import calendar_problem_left
    from dhan_pipeline.sessions import IST
    from dhan_pipeline.store.instruments import sync_to_database

    settings = read_settings(database_url=db_url)
    sources = settings.sources if source is None else (parse_source(source),)
    if csv_path is not None and len(sources) > 1:
        raise typer.BadParameter("it says whose list --csv-path is", param_hint="--source")

    def of_one(each: Source) -> dict[str, Any]:
        master = parse_master(each, csv_path or _download_master(settings.of(each)))
        _show_quarantined(each, master)
        with open_database(settings, make=True) as url:
            return dataclasses.asdict(sync_to_database(url, master, source=each, batch_size=batch_size, force=force))

    done, failure = for_each_source(sources, of_one)
    if as_json and done:
        print_json(done if len(sources) > 1 else done[sources[0]])
    for each, facts in done.items() if not as_json else ():
        if len(sources) > 1:
            print(each)
        for name, value in facts.items():
            print(f"{name:>12}  {value:,.2f}" if isinstance(value, float) else f"{name:>12}  {value:,}")
    if failure is not None:
        raise failure
    if problem := calendar_problem_left(settings, Clock().now().astimezone(IST).date()):
        print(problem, file=sys.stderr)


def _show_quarantined(source: Source, master: "InstrumentMaster") -> None:
    for row in master.quarantined.head(_SHOWN).itertuples():
        print(f"{source}, row {row.row}: {row.reason}", file=sys.stderr)
    if len(master.quarantined) > _SHOWN:
        print(f"{source}, and {len(master.quarantined) - _SHOWN:,} more", file=sys.stderr)


def _download_master(settings: Settings) -> Path:
    from dhan_pipeline.feeds.masters import download_master

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(f"Instruments of {settings.source}", total=None)
        return download_master(settings, lambda received, total: progress.update(task, completed=received, total=total))


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL that would run, and run nothing.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from dhan_pipeline.store.migrate import migrate as run_migrations

    with open_database(read_settings(), make=not dry_run) as url:
        done = run_migrations(url, dry_run=dry_run)
    if not dry_run:
        print("\n".join(done) or "The schema is up to date.")


def redrive(
    reason: Annotated[
        str | None, typer.Option(help="Only packets that were rejected for this reason; without it, all.")
    ] = None,
    only_dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Only put back what RabbitMQ's workers could not store.")
    ] = False,
    only_list: Annotated[
        bool, typer.Option("--list", help="List what RabbitMQ's workers could not store, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Process rejected packets again, after a fix: a new decoder, or instruments that were synced since.

    Their days are recomputed from the journal, each in one transaction. Done twice, nothing changes the second time.
    The capture may run meanwhile. Where RABBITMQ_URL is set, messages that workers could not store (dead letters) go
    back into their lanes first.
    """
    from dhan_pipeline.cli.dead_letters import list_dead_letters, put_back_dead_letters
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.ingest.redrive import redrive as drive_again
    from dhan_pipeline.transport.broker import broker_url

    settings = read_settings()
    if only_list:
        list_dead_letters(broker_url(settings), as_json)
        return
    facts: dict[str, int] = {}
    if only_dead_letters or settings.rabbitmq_url is not None:
        facts["dead_letters"] = put_back_dead_letters(broker_url(settings))
        if not as_json:
            print(f"Dead letters that are back in their lanes: {facts['dead_letters']:,}.")
    if not only_dead_letters:
        with open_database(settings) as url:
            result = drive_again(
                settings, url, Clock(), reason=reason, progress=lambda sentence: print(sentence, file=sys.stderr)
            )
        facts |= dataclasses.asdict(result)
        if not as_json:
            print(f"{result.driven:,} of {result.examined:,} rejected packets are accepted now.")
            if result.no_journal:
                print(f"{result.no_journal:,} stay as they are: the journal no longer has their blocks.")
    if as_json:
        print_json(facts)


@db_app.command("start")
def db_start() -> None:
    """Start the embedded PostgreSQL; it runs until `db stop`."""
    from dhan_pipeline.store import embedded

    settings = read_settings()
    embedded.start(settings.data_dir, settings.postgres_bin_dir)
    print(f"PostgreSQL runs; its data is below {settings.data_dir.resolve()}.")


@db_app.command("stop")
def db_stop() -> None:
    """Stop the embedded PostgreSQL."""
    from dhan_pipeline.store import embedded

    settings = read_settings()
    print(
        "PostgreSQL stopped." if embedded.stop(settings.data_dir, settings.postgres_bin_dir) else "It was not running."
    )


@db_app.command("url")
def db_url_command() -> None:
    """Print the URL of the database in use, password included."""
    print(_running_database(read_settings()))


@db_app.command("psql")
def db_psql() -> None:
    """Open psql on the database in use."""
    from dhan_pipeline.store import embedded

    settings = read_settings()
    psql = embedded.client_program("psql", settings.postgres_bin_dir) or shutil.which("psql")
    if psql is None:
        raise PipelineError("psql is not installed; connect any client to the address of: dhan-pipeline db url.")
    # The URL holds the password, and arguments can be seen by every user: it travels in the environment.
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    from dhan_pipeline.store.engine import NO_ADDRESS

    try:
        parts = parse_dsn(_running_database(settings))
    except ProgrammingError:  # its message has the password
        raise PipelineError(NO_ADDRESS) from None
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
        "sslmode": "PGSSLMODE",
    }
    environment = {names[key]: str(value) for key, value in parts.items() if key in names}
    os.execve(psql, [str(psql)], {**os.environ, **environment})  # no shell is wanted


def _running_database(settings: Settings) -> str:
    from dhan_pipeline.store import embedded
    from dhan_pipeline.store.engine import libpq_url

    if settings.database_url:
        return libpq_url(settings.database_url)
    if url := embedded.url(settings.data_dir, settings.postgres_bin_dir):
        return url
    raise PipelineError("The embedded PostgreSQL does not run; start it with: dhan-pipeline db start.")
