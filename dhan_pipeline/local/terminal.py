"""What a person sees in the terminal while everything runs, and how Ctrl-C ends it."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg2
from rich.console import Console

from dhan_pipeline.clock import Clock
from dhan_pipeline.local.services import Services
from dhan_pipeline.store import ledger
from dhan_pipeline.store.engine import connect

#: A capture says how it is once a second. What it said longer ago it says no more.
_FRESH = timedelta(seconds=5)

#: Where nobody looks on, such as in a file, a line comes this often.
_LINE_S = 10.0


class _Interrupted(BaseException):
    """SIGINT or SIGTERM came: stop everything, in order."""


def stderr_console() -> Console:
    """Where progress is shown."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def interruptible(console: Console) -> Iterator[None]:
    """Until the end of the block, SIGINT and SIGTERM end it in order; what stops is not interrupted again."""

    def interrupt(_number: int, _frame: object) -> None:
        # Once is enough: what follows must not be cut short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        console.print("\nStopping.")
        raise _Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with suppress(_Interrupted):
        yield


def statuses(
    services: Services, database_url: str, revive_database: Callable[[], bool] | None, console: Console
) -> Iterator[list[dict[str, Any]]]:
    """Once a second, for ever: what the captures that run say of themselves.

    What ends by itself meanwhile is started again, and that is said; so is a database that is away. `revive_database`
    starts one of ours again, and tells whether it had to.
    """
    began = Clock().now()
    away = False
    while True:
        time.sleep(1)
        for name in services.revive():
            console.print(f"The {name} had ended, and is started again; see {services.log(name)}.")
        try:
            with closing(connect(database_url)) as conn:
                since = max(began, Clock().now() - _FRESH)
                found = [s.status for s in ledger.statuses(conn) if s.updated_at > since]
        except psycopg2.Error as error:
            if revive_database is None and not away:
                console.print(f"{error} The capture goes on into the journal.")
            elif revive_database is not None and revive_database():
                console.print("PostgreSQL had ended, and is started again.")
            away = True
            continue
        away = False
        yield found


class LiveLine:
    """One line that says how the captures are, kept up to date."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def show(self, statuses: Sequence[dict[str, Any]]) -> None:
        """Write the line anew, or, where no terminal is, another one after a while."""
        if self._console.is_terminal or time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LINE_S
            self._console.print(_line(statuses), end="\r" if self._console.is_terminal else "\n")


def _line(statuses: Sequence[dict[str, Any]]) -> str:
    """What all captures come to; the slowest one's latency and backlog."""
    rate, ticks, rejected = (
        sum(status[name] for status in statuses) for name in ("messages_per_second", "ticks", "rejected")
    )
    p50, p99 = (
        f"{max(known):>4.0f} ms"
        if (known := [status[name] for status in statuses if status[name] is not None])
        else "-"
        for name in ("latency_p50_ms", "latency_p99_ms")
    )
    backlog_s = max(status["backlog_seconds"] or 0 for status in statuses)
    return (
        f"{rate:>9,.0f} messages/s  {ticks:>11,} ticks stored  {rejected:>4,} rejected  "
        f"p50 {p50:>7}  p99 {p99:>7}  backlog {backlog_s:.1f} s  "
    )
