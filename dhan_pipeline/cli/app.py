"""All commands under one program, and what becomes of errors."""

import logging
import os
import re
import sys
import threading
import traceback
from contextlib import suppress
from typing import Annotated

import typer

from dhan_pipeline.cli.alert import alert_app
from dhan_pipeline.cli.capture import decode, ingest
from dhan_pipeline.cli.common import json_printed, print_json
from dhan_pipeline.cli.database import db_app, migrate, redrive, sync_instruments
from dhan_pipeline.cli.doctor import doctor
from dhan_pipeline.cli.find import find
from dhan_pipeline.cli.gaps import gaps
from dhan_pipeline.cli.live import live
from dhan_pipeline.cli.replay import replay
from dhan_pipeline.cli.simulated import WithFaults, demo, simulate
from dhan_pipeline.cli.subscriptions import subscriptions
from dhan_pipeline.cli.timescale import db_to_timescaledb
from dhan_pipeline.cli.token import token_app
from dhan_pipeline.cli.up import up
from dhan_pipeline.cli.watch import watch
from dhan_pipeline.cli.why import why
from dhan_pipeline.cli.worker import worker
from dhan_pipeline.errors import explain, redacted

app = typer.Typer(
    name="dhan-pipeline",
    help="Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(short_help="Run everything on this machine, over a simulated exchange.")(demo)
app.command(short_help="Run everything on this machine, over the real feed.")(up)
app.command(cls=WithFaults, short_help="Run the simulated exchange.")(simulate)
app.command(short_help="Capture the feed, without Dagster.")(ingest)
app.command(short_help="Store what captures hand to RabbitMQ.")(worker)
app.command("sync-instruments", short_help="Load the scrip master into the database.")(sync_instruments)
app.command(short_help="Say what the rules come to, and what is captured.")(subscriptions)
app.command(short_help="Find instruments by what a trader writes.")(find)
app.command()(migrate)
db_app.command("to-timescaledb", short_help="Move ticks into a hypertable of TimescaleDB.")(db_to_timescaledb)
app.add_typer(db_app, name="db")
app.command(short_help="Is everything fit for the session?")(doctor)
app.command(short_help="Why does nothing come of an instrument?")(why)
app.command(short_help="Show what is happening now, in the terminal.")(watch)
app.command(short_help="Serve a page that shows what is happening now.")(live)
app.command(short_help="List the times in which packets may be missing.")(gaps)
app.command(short_help="Rebuild hours of ticks from the journal, or only compare.")(replay)
app.command(short_help="Process rejected packets again, after a fix.")(redrive)
app.add_typer(token_app, name="token")
app.add_typer(alert_app, name="alert")
app.command(short_help="Explain a message of the feed.")(decode)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"dhan-pipeline {version('dhan-pipeline')}")
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    pass


class _Discreet(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def set_up_logging() -> None:
    """Log to standard error, tracebacks of threads included, without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Discreet("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    ours = logging.getLogger("dhan_pipeline")  # what libraries say below a warning is theirs
    ours.setLevel(ours.level or logging.INFO)
    threading.excepthook = _report_thread


def run() -> int:
    """Run the command of `sys.argv` and return the exit code. Errors are said on standard error."""
    code = 1
    json_printed.clear()
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        pass
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            _complain(traceback.format_exc())
        else:
            # One sentence is one line, whatever a library has said in it.
            sentence = re.sub(r"([.?!])\.+$", r"\1", " ".join(sentence.split()))
            _complain(f"dhan-pipeline: {sentence}\n")
            if "--json" in sys.argv and not json_printed.is_set():
                with suppress(OSError, ValueError):
                    print_json({"problem": redacted(sentence)})
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # Nobody reads any more (`| head`), or the disk is full: Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    return code


def _complain(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it
        print(redacted(text), end="", file=sys.stderr, flush=True)


def _report_thread(args: threading.ExceptHookArgs) -> None:
    _complain("".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)))
