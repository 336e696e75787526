"""What several commands need: options, the settings, the database, an end by signal."""

import asyncio
import json
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.special_days import use_special_days

if TYPE_CHECKING:
    from dhan_pipeline.diagnosis.findings import Finding

_Done = TypeVar("_Done")

#: The most that `--for` takes: 90 days. The event loop knows no timer that is much longer.
LONGEST_S = 7_776_000

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, the rest on standard error.")]
SourceOption = Annotated[str, typer.Option("--source", help="The broker whose wire protocol is spoken: dhan or kite.")]
SourcesOption = Annotated[
    str, typer.Option("--source", help="The broker whose wire protocol is spoken: dhan or kite; or both: dhan,kite.")
]


#: Whether this program has printed JSON: then an error is not said in JSON, too.
json_printed = threading.Event()


def print_json(facts: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Print an object on standard output, at once."""
    json_printed.set()
    print(json.dumps(facts, default=default), flush=True)


def parse_source(text: str) -> Source:
    """The source of that name. Raises typer.BadParameter."""
    for source in SOURCES:
        if text == source:
            return source
    raise typer.BadParameter(f"{text} is not a source that exists; use dhan or kite.", param_hint="--source")


def parse_sources(text: str) -> tuple[Source, ...]:
    """One source or several, with commas between, each once. Raises typer.BadParameter."""
    sources = tuple(parse_source(name.strip()) for name in text.split(","))
    if len(set(sources)) < len(sources):
        raise typer.BadParameter(f"{text} names a source twice.", param_hint="--source")
    return sources


def read_settings(**overrides: Any) -> Settings:
    """The settings from the environment; raises PipelineError that names each variable that is wrong.

    From then on this process follows their calendar.
    """
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except UnicodeDecodeError:
        raise PipelineError("The file .env is not a text file.") from None
    except ValidationError as error:
        # Its own message would show the value, which may be a secret in the wrong place.
        wrong = "; ".join(f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        raise PipelineError(f"The settings cannot be used: {wrong}.") from None
    use_special_days(settings.holidays_path, settings.sessions_file)
    return settings


def for_each_source(
    sources: Sequence[Source], work: Callable[[Source], _Done]
) -> tuple[dict[Source, _Done], PipelineError | None]:
    """What work gave for each source, and what went wrong: a source that fails does not keep the next from its turn."""
    done: dict[Source, _Done] = {}
    failures: list[PipelineError] = []
    for source in sources:
        try:
            done[source] = work(source)
        except PipelineError as error:
            failures.append(error)
    if len(failures) < 2:
        return done, failures[0] if failures else None
    return done, PipelineError(" ".join(dict.fromkeys(map(str, failures))))


@contextmanager
def open_database(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """The URL of the database in use. An embedded server that this starts is stopped again.

    With `make`, an embedded one that there is not is made; else DatabaseError says that there is none.
    """
    from dhan_pipeline.store import embedded
    from dhan_pipeline.store.engine import libpq_url, require_database

    if settings.database_url:
        with _interrupted_at_once():
            yield libpq_url(settings.database_url)
        return
    if not make:
        require_database(settings)
    server = embedded.start(settings.data_dir, settings.postgres_bin_dir)
    try:
        yield server.url
    finally:
        if server.started:
            embedded.stop(settings.data_dir, settings.postgres_bin_dir)


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process while it waits for a database, which Python would only notice afterwards.

    What a command has not committed by then, the server undoes.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


async def until_signal(work: Callable[[asyncio.Event], Awaitable[None]], for_s: float | None = None) -> None:
    """Run `work`, which ends when the event it is given is set: by SIGINT, SIGTERM, or after `for_s` seconds."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if for_s is not None:
        loop.call_later(for_s, stop.set)
    await work(stop)


#: How a line of a diagnosis begins, and its colour on a terminal.
_STATES = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "bad": ("BAD", "bold red")}


def print_findings(findings: "Sequence[Finding]") -> None:
    """A table of what was found, a line each; below what is not well, what to do about it."""
    several = any(finding.source is not None for finding in findings)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    if several:
        table.add_column("broker", no_wrap=True)
    table.add_column("look at", no_wrap=True)
    table.add_column("found, and -> what to do")
    for finding in findings:
        word, colour = _STATES[finding.state]
        told = Text(finding.found)
        if finding.fix:
            told.append(f"\n-> {finding.fix}", "bold")
        whose = [finding.source or ""] if several else []
        table.add_row(Text(word, colour), *whose, finding.name, told)
    Console().print(table)
