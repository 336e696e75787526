"""What was found, a line each, and what both the probes and the walk need: the database, and errors in a sentence."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import psycopg2
from psycopg2.extensions import connection

from dhan_pipeline.errors import LACKS_TABLES, PipelineError, redacted
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import DatabaseError, connect, libpq_url, limit_statements

State = Literal["ok", "warn", "bad"]

#: How long the database may take to answer one question.
_STATEMENT_S = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report."""

    name: str
    state: State
    found: str
    """A sentence, with numbers. Never a token, nor a URL."""
    fix: str = ""
    """What to do about it, or to type; empty where nothing is to be done."""
    source: Source | None = None
    """Whose it is, where it is one broker's and several are captured."""


#: What to do about what only the database can tell, while it cannot be asked.
DATABASE_FIRST = "Mend `database` first."


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Finding:
    """It will do, but somebody should know."""
    return Finding(name, "warn", found, fix)


def bad(name: str, found: str, fix: str) -> Finding:
    """A red line."""
    return Finding(name, "bad", found, fix)


def red(findings: Sequence[Finding]) -> list[str]:
    """The names of the red lines, in order, each once."""
    return list(dict.fromkeys(finding.name for finding in findings if finding.state == "bad"))


@contextmanager
def asked_database(settings: Settings) -> Iterator[connection]:
    """A connection to the database in use, closed with the context; it waits for no answer longer than 10 s.

    An embedded server that does not run is not started: a diagnosis changes nothing. Raises DatabaseError.
    """
    with closing(connect(database_address(settings))) as conn:
        conn.autocommit = True  # a question that fails is nothing to the next
        limit_statements(conn, _STATEMENT_S)
        yield conn


def database_address(settings: Settings) -> str:
    """The libpq URL of the database in use, which holds the password: never say it. Raises DatabaseError."""
    if settings.database_url:
        return libpq_url(settings.database_url)
    url = embedded.url(settings.data_dir, settings.postgres_bin_dir)
    if url is None:
        raise DatabaseError(f"The embedded PostgreSQL below {settings.data_dir} does not run.")
    return url


def start_database(settings: Settings) -> str:
    """What to do about a database that cannot be used."""
    if settings.database_url:
        return "Start the server, or correct DATABASE_URL."
    return "Run `dhan-pipeline db start`. Dagster and a capture start it, too."


def in_words(error: BaseException) -> str:
    """An error as a sentence for a person, without secrets."""
    if isinstance(error, psycopg2.errors.UndefinedTable | psycopg2.errors.UndefinedColumn):
        return LACKS_TABLES
    words = " ".join(str(error).strip().partition("\n")[0].split()) or type(error).__name__
    if not isinstance(error, PipelineError | OSError | psycopg2.Error):
        words = f"{type(error).__name__}: {words}"
    return redacted(words if words.endswith((".", "?")) else f"{words}.")
