"""All commands under one program, and what becomes of errors."""

import logging
import os
import sys
import threading
import traceback

import typer

from dhan_pipeline.cli.capture import decode, ingest
from dhan_pipeline.cli.database import db_app, migrate, redrive, sync_instruments
from dhan_pipeline.cli.gaps import gaps
from dhan_pipeline.cli.simulated import WithFaults, demo, simulate
from dhan_pipeline.cli.token import token_app
from dhan_pipeline.errors import PipelineError, redacted

app = typer.Typer(
    name="dhan-pipeline",
    help="Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(short_help="Run everything on this machine, over a simulated exchange.")(demo)
app.command(cls=WithFaults, short_help="Run the simulated exchange.")(simulate)
app.command(short_help="Capture the feed, without Dagster.")(ingest)
app.command("sync-instruments", short_help="Load the scrip master into the database.")(sync_instruments)
app.command()(migrate)
app.add_typer(db_app, name="db")
app.command(short_help="List the times in which packets may be missing.")(gaps)
app.command(short_help="Process rejected packets again, after a fix.")(redrive)
app.add_typer(token_app, name="token")
app.command(short_help="Explain a message of the feed.")(decode)


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
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except PipelineError as error:
        # One sentence is one line, whatever a library has said in it.
        print(f"dhan-pipeline: {' '.join(redacted(str(error)).split())}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        code = 1
    except Exception as error:
        if type(error).__name__ in ("UndefinedTable", "UndefinedColumn"):  # psycopg2's, which not every command imports
            print(
                "dhan-pipeline: The database lacks our tables, or has old ones; run: dhan-pipeline migrate.",
                file=sys.stderr,
            )
            return 1
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        code = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # Nobody reads any more (`| head`), or the disk is full: Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    return code


def _report_thread(args: threading.ExceptHookArgs) -> None:
    lines = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
    print(redacted("".join(lines)), end="", file=sys.stderr)
