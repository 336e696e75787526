"""The database in use, asked by a diagnosis: which starts none, and waits for no answer for long."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from psycopg2.extensions import connection

from dhan_pipeline.errors import in_words
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import DatabaseError, connect, limit_statements, running_url

#: How long the database may take to answer one question.
_STATEMENT_S = 10

#: What to do about what only the database can tell, while it cannot be asked.
DATABASE_FIRST = "Mend `database` first."


@contextmanager
def asked_database(settings: Settings) -> Iterator[connection]:
    """A connection to the database in use, closed with the context; it waits for no answer longer than 10 s.

    An embedded server that does not run is not started: a diagnosis changes nothing. Raises DatabaseError.
    """
    try:
        url = running_url(settings)
    except OSError as error:  # the folder of an embedded server, which is somebody else's
        raise DatabaseError(in_words(error)) from None
    with closing(connect(url)) as conn:
        conn.autocommit = True  # a question that fails is nothing to the next
        limit_statements(conn, _STATEMENT_S)
        yield conn


def start_database(settings: Settings) -> str:
    """What to do about a database that cannot be used."""
    if settings.database_url:
        return "Start the server, or correct DATABASE_URL."
    return "Run `dhan-pipeline db start`. Dagster and a capture start it, too."
