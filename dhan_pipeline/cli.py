"""The person's door: `dhan-pipeline`. Parses arguments, calls the rooms, says errors in one sentence.

Exit codes: 0 success, 1 a failure that is explained in one sentence, 2 wrong usage. With `--json` a command prints
one JSON object (or JSON lines) on standard output and everything else on standard error. Modules are imported inside
the commands, so that `decode` does not wait for a database driver nor `ingest` for Dagster.
"""

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings

app = typer.Typer(
    name="dhan-pipeline",
    help="Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
db_app = typer.Typer(help="The embedded PostgreSQL.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db_app, name="db")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, the rest on standard error.")]
SourceOption = Annotated[str, typer.Option("--source", help="The broker whose wire protocol is spoken: dhan.")]
InstrumentsOption = Annotated[int, typer.Option("--instruments", min=1, max=25_000, help="How many instruments trade.")]
RateOption = Annotated[float, typer.Option("--rate", min=1, help="Ticks a second, over all instruments.")]


def main() -> None:
    """Run the command line. A `PipelineError` becomes one sentence and exit code 1."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("dhan_pipeline").setLevel(logging.INFO)  # what libraries say below a warning is theirs
    try:
        app()
    except PipelineError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.exit(1)


def _fail(sentence: str) -> None:
    print(f"dhan-pipeline: {sentence}", file=sys.stderr)
    sys.exit(1)


async def _until_signal(work: Callable[[asyncio.Event], Awaitable[None]], for_s: float | None = None) -> None:
    """Run `work`, which ends when the event it is given is set: by SIGINT, SIGTERM, or after `for_s` seconds."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if for_s is not None:
        loop.call_later(for_s, stop.set)
    await work(stop)


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """The URL of the database in use. An embedded server that this starts is stopped again."""
    from dhan_pipeline.store import embedded
    from dhan_pipeline.store.engine import libpq_url

    if settings.database_url:
        yield libpq_url(settings.database_url)
        return
    server = embedded.start(settings.data_dir, settings.postgres_bin_dir)
    try:
        yield server.url
    finally:
        if server.started:
            embedded.stop(settings.data_dir, settings.postgres_bin_dir)


def _settings(**overrides: Any) -> Settings:
    """The settings from the environment; raises PipelineError that names each variable that is wrong."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        raise PipelineError(f"The settings cannot be used: {wrong}.") from None


def _host_port(value: str, option: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter(f"{value} is not HOST:PORT", param_hint=option)
    return host.strip("[]"), int(port)


def _require_dhan(source: str) -> None:
    if source != "dhan":
        raise typer.BadParameter(f"{source} is not a source that exists; use dhan.", param_hint="--source")


@app.command(short_help="Run everything on this machine, over a simulated exchange.")
def demo(
    source: SourceOption = "dhan",
    instruments: InstrumentsOption = 500,
    rate: RateOption = 2000,
    for_s: Annotated[
        float | None, typer.Option("--for", min=1, help="Seconds to run; without it, until Ctrl-C.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where journal, database and Dagster's storage are kept.")] = Path(
        "data/demo"
    ),
    port: Annotated[int, typer.Option(help="Port of the Dagster UI on 127.0.0.1; 0 takes a free one.")] = 3000,
    as_json: JsonOption = False,
) -> None:
    """Run the main job over a simulated exchange: feed, journal, PostgreSQL, Dagster. Ctrl-C stops everything."""
    _require_dhan(source)
    from dhan_pipeline.demo.run import run_demo

    result = run_demo(
        data_dir=data_dir.resolve(), instruments=instruments, rate=rate, for_s=for_s, port=port, live_line=not as_json
    )
    if as_json:
        print(json.dumps(result))


@app.command(short_help="Run the simulated exchange.")
def simulate(
    source: SourceOption = "dhan",
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the feed listens; port 0 takes a free one.")
    ] = "127.0.0.1:8765",
    rest: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where REST listens, which serves the scrip master.")
    ] = "127.0.0.1:0",
    instruments: Annotated[
        str,
        typer.Option(metavar="N or FILE", help="How many instruments trade, or a file of resolved subscriptions."),
    ] = "500",
    rate: RateOption = 2000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same market.")] = 0,
    master: Annotated[
        Path | None, typer.Option(help="The scrip master to trade and to serve; without it, a synthetic one.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Write a token that the exchange accepts to this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the exchange: a server that speaks the broker's wire protocol over a synthetic market."""
    _require_dhan(source)
    import tempfile

    import uvloop

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.auth import save_token
    from dhan_pipeline.feeds.simulator.dhan import DhanSimulator, choose_instruments
    from dhan_pipeline.feeds.simulator.master import write_synthetic_master
    from dhan_pipeline.feeds.simulator.tokens import make_token
    from dhan_pipeline.sessions import IST
    from dhan_pipeline.subscriptions import read_subscriptions

    host, port = _host_port(listen, "--listen")
    rest_host, rest_port = _host_port(rest, "--rest")
    if instruments == "0":
        raise typer.BadParameter("at least one instrument has to trade", param_hint="--instruments")
    if token_file:
        try:
            save_token(token_file, make_token("1000000001", expires_in=30 * 86_400), "1000000001")
        except OSError as error:
            raise PipelineError(f"The token file {token_file} cannot be written: {error.strerror}.") from error
    with tempfile.TemporaryDirectory() as folder:
        if master is None:
            master = Path(folder) / "scrip_master.csv"
            write_synthetic_master(master, on=Clock().now().astimezone(IST).date(), seed=seed)
        if instruments.isdigit():
            tokens = choose_instruments(master, int(instruments))
        else:
            tokens = [subscription.instrument_token for subscription in read_subscriptions(Path(instruments))]
        simulator = DhanSimulator(
            tokens,
            rate=rate,
            seed=seed,
            host=host,
            port=port,
            rest_host=rest_host,
            rest_port=rest_port,
            master_csv=master,
        )

        async def run(stop: asyncio.Event) -> None:
            try:
                async with simulator:
                    urls = {"feed_url": simulator.feed_url, "rest_url": simulator.rest_url}
                    lines = [f"{name}: {url}" for name, url in urls.items()]
                    print(json.dumps(urls) if as_json else "\n".join(lines), flush=True)
                    await stop.wait()
            except OSError as error:
                raise PipelineError(f"The exchange cannot listen: {error.strerror}.") from error

        uvloop.run(_until_signal(run))
        sent = {code.name.lower(): count for code, count in simulator.sent.items()}
        print(json.dumps({"sent": sent, "skipped": simulator.skipped}), file=sys.stdout if as_json else sys.stderr)


@app.command(short_help="Capture the feed, without Dagster.")
def ingest(
    for_s: Annotated[
        float | None,
        typer.Option("--for", min=1, metavar="SECONDS", help="How long to capture; without it, until a signal."),
    ] = None,
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Print JSON lines, and stop when standard input closes.")
    ] = False,
) -> None:
    """Capture the feed into the journal and the database, without Dagster."""
    import uvloop

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.errors import DataPlanError
    from dhan_pipeline.ingest.run import Ingest

    emit = _print_json if supervised else _print_status

    async def run(stop: asyncio.Event) -> None:
        if supervised:
            os.set_blocking(sys.stdout.fileno(), False)
            _stop_when_stdin_closes(stop)
        capture = Ingest(settings, database_url, emit, Clock())
        try:
            await capture.run(stop)
        finally:
            capture.close()

    try:
        settings = _settings()
        with _database(settings) as database_url:
            uvloop.run(_until_signal(run, for_s))
    except (PipelineError, OSError) as error:
        if supervised:
            # Without a data plan trying again is of no use: a person has to act at the broker.
            _print_json({"event": "error", "message": str(error), "permanent": isinstance(error, DataPlanError)})
        raise error if isinstance(error, PipelineError) else PipelineError(str(error)) from error


def _print_json(event: dict[str, Any]) -> None:
    # A supervisor that does not read must not hold up the sockets: a full pipe takes a line whole or not at all, and
    # then it is dropped. One that has died closes standard input too, which ends the capture in order.
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(sys.stdout.fileno(), f"{json.dumps(event)}\n".encode())


def _print_status(event: dict[str, Any]) -> None:
    if event["event"] == "status":
        print(
            f"{event['messages_per_second']:>9,.0f} messages/s  {event['ticks']:>12,} ticks stored  "
            f"{event['rejected']:>6,} rejected  p50 {event['latency_p50_ms'] or 0:.0f} ms  "
            f"p99 {event['latency_p99_ms'] or 0:.0f} ms  backlog {event['backlog_seconds']:.1f} s",
            file=sys.stderr,
        )


def _stop_when_stdin_closes(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        with suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


@app.command("sync-instruments", short_help="Load the scrip master into the database.")
def sync_instruments(
    db_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the database; without it DATABASE_URL, else the embedded one.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download the scrip master first.")] = False,
    csv_path: Annotated[Path | None, typer.Option(help="A scrip master on disk, compact or detailed.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a COPY.")] = 50_000,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a master in which a segment vanished or the rows collapsed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Load the scrip master into the instruments table; what is missing from it is deactivated, never deleted."""
    if download == (csv_path is not None):
        raise typer.BadParameter("one of --download and --csv-path is needed", param_hint="--download")
    from dhan_pipeline.feeds.dhan.scrip_master import download_instruments_csv, parse_dhan_csv
    from dhan_pipeline.store.instruments import sync_to_database

    settings = _settings(database_url=db_url)
    if csv_path is None:
        with Progress(
            TextColumn("Scrip master"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=_stderr()
        ) as progress:
            task = progress.add_task("download", total=None)
            csv_path = download_instruments_csv(
                settings.dhan_scrip_master_url,
                settings.data_dir / "scrip_master.csv",
                lambda received, total: progress.update(task, completed=received, total=total),
            )
    master = parse_dhan_csv(csv_path)
    with _database(settings) as url:
        result = sync_to_database(url, master, batch_size=batch_size, force=force)
    facts = dataclasses.asdict(result)
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:>12}  {value:,.2f}" if isinstance(value, float) else f"{name:>12}  {value:,}")


@app.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL that would run, and run nothing.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from dhan_pipeline.store.migrate import migrate as run_migrations

    with _database(_settings()) as url:
        done = run_migrations(url, dry_run=dry_run)
    if not dry_run:
        print("\n".join(done) or "The schema is up to date.")


@db_app.command("start")
def db_start() -> None:
    """Start the embedded PostgreSQL; it runs until `db stop`."""
    from dhan_pipeline.store import embedded

    settings = _settings()
    embedded.start(settings.data_dir, settings.postgres_bin_dir)
    print(f"PostgreSQL runs; its data is below {settings.data_dir.resolve()}.")


@db_app.command("stop")
def db_stop() -> None:
    """Stop the embedded PostgreSQL."""
    from dhan_pipeline.store import embedded

    settings = _settings()
    print(
        "PostgreSQL stopped." if embedded.stop(settings.data_dir, settings.postgres_bin_dir) else "It was not running."
    )


@db_app.command("url")
def db_url_command() -> None:
    """Print the URL of the database in use, password included."""
    print(_running_database(_settings()))


@db_app.command("psql")
def db_psql() -> None:
    """Open psql on the database in use."""
    from dhan_pipeline.store import embedded

    settings = _settings()
    psql = embedded.client_program("psql", settings.postgres_bin_dir) or shutil.which("psql")
    if psql is None:
        raise PipelineError("psql is not installed; connect any client to the address of: dhan-pipeline db url.")
    # The URL holds the password, and arguments can be seen by every user: it travels in the environment.
    from psycopg2.extensions import parse_dsn

    parts = parse_dsn(_running_database(settings))
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


@app.command(short_help="Explain a message of the feed.")
def decode(
    frame: Annotated[str, typer.Argument(metavar="HEX", help="One message in hexadecimal; - reads standard input.")],
    source: SourceOption = "dhan",
    as_json: JsonOption = False,
) -> None:
    """Explain a message of the feed: every packet and every field."""
    _require_dhan(source)
    from dhan_pipeline.feeds.dhan.explain import explain

    try:
        message = bytes.fromhex(sys.stdin.read() if frame == "-" else frame)
    except ValueError:
        raise typer.BadParameter("that is not hexadecimal", param_hint="HEX") from None
    packets = explain(message)
    if not packets:
        raise PipelineError("The message is empty.")
    if as_json:
        print(json.dumps({"packets": packets}))
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


def _stderr() -> Console:
    return Console(stderr=True)


if __name__ == "__main__":
    main()
