"""Connections to PostgreSQL. One place derives the two spellings of its URL and decides which server is meant."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded

if TYPE_CHECKING:
    import sqlalchemy

#: Said of a DATABASE_URL that is none, without a part of it.
NO_ADDRESS = (
    "DATABASE_URL is no address of the form postgresql://user:password@host:port/database;"
    " special characters in user and password have to be percent-encoded, @ as %40."
)

_HOST = r"(?:[\w.%-]*|\[[\w.:%]+\])(?::[0-9]{0,5})?"

#: What everybody reads alike. Of anything else libpq may take a part of the password for the host or the port, and say
#: it in its errors.
_ADDRESS = re.compile(rf"(?:postgres|postgresql|postgresql\+psycopg2)://(?:[^@/]*@)?{_HOST}(?:,{_HOST})*(?:[/?][^@]*)?")


class DatabaseError(PipelineError, psycopg2.OperationalError):
    """The database cannot be reached, or does not let us in. The message never holds the address's password."""


def libpq_url(url: str) -> str:
    """The URL as libpq and psycopg2 take it: `postgresql://…`. Raises DatabaseError where it is none."""
    if not _ADDRESS.fullmatch(url):
        raise DatabaseError(NO_ADDRESS)
    return f"postgresql://{url.partition('://')[2]}"


def sqlalchemy_url(url: str) -> str:
    """The URL as SQLAlchemy takes it: `postgresql+psycopg2://…`. Raises DatabaseError where it is none."""
    return f"postgresql+psycopg2://{libpq_url(url).partition('://')[2]}"


def connect(url: str) -> connection:
    """A psycopg2 connection to either spelling of the URL. Raises DatabaseError.

    A server whose machine vanished is noticed within a minute, also while it is being written to.
    """
    address = libpq_url(url)
    try:
        return psycopg2.connect(
            address,
            application_name="dhan_pipeline",
            connect_timeout=10,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
    except psycopg2.OperationalError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        problem = f"The database cannot be used: {reason}. Is DATABASE_URL right, and does the server run?"
    except psycopg2.ProgrammingError:  # its message quotes the address, password included
        problem = NO_ADDRESS
    raise DatabaseError(problem)


def limit_statements(conn: connection, seconds: int) -> None:
    """Have the server give up each statement that takes longer. Of an autocommit connection."""
    with conn.cursor() as cursor:
        cursor.execute("SET statement_timeout = %s", (f"{seconds}s",))


def server_version(conn: connection) -> str:
    """What the server calls its version, such as `18.6`."""
    with conn.cursor() as cursor:
        cursor.execute("SHOW server_version")
        version: str = cursor.fetchall()[0][0]
    return version.partition(" ")[0]


def server_directory(conn: connection) -> Path | None:
    """Where a server on this machine keeps its data; None for another machine's, or one that we cannot see.

    Raises psycopg2.errors.InsufficientPrivilege, for not everybody may ask.
    """
    with conn.cursor() as cursor:
        cursor.execute("SELECT inet_server_addr() = inet_client_addr(), current_setting('data_directory')")
        here, directory = cursor.fetchall()[0]
    return Path(directory) if here and Path(directory).exists() else None


def engine(url: str) -> "sqlalchemy.Engine":
    """A SQLAlchemy engine over either spelling of the URL. Dispose of it when done."""
    import sqlalchemy  # 11 MB, which a capture does without

    return sqlalchemy.create_engine(sqlalchemy_url(url), pool_pre_ping=True)


def database_url(settings: Settings) -> str:
    """The libpq URL of the database in use: the one set, else the embedded server's, which is started on demand.

    Raises DatabaseError where the one set is no address, embedded.EmbeddedPostgresError where the embedded server
    cannot start.
    """
    if settings.database_url:
        return libpq_url(settings.database_url)
    return embedded.start(settings.data_dir, settings.postgres_bin_dir).url


def require_database(settings: Settings) -> None:
    """Raises DatabaseError where DATABASE_URL names none, and no embedded one was made yet."""
    if not settings.database_url and not embedded.exists(settings.data_dir, settings.postgres_bin_dir):
        raise DatabaseError(
            f"There is no database below {settings.data_dir.resolve()} yet, and DATABASE_URL names none: `dhan-pipeline"
            " demo` or `up` makes one, if this is the right folder."
        )


def running_url(settings: Settings) -> str:
    """The libpq URL of the database in use; an embedded server is neither made nor started. Raises DatabaseError."""
    if settings.database_url:
        return libpq_url(settings.database_url)
    try:
        require_database(settings)
        url = embedded.url(settings.data_dir, settings.postgres_bin_dir)
    except embedded.EmbeddedPostgresError as error:
        raise DatabaseError(str(error)) from None
    if url is None:
        raise DatabaseError(f"The embedded PostgreSQL below {settings.data_dir} does not run.")
    return url


def create_database(url: str, name: str, template: str | None = None) -> str:
    """Create the database `name` on the server of `url` unless it exists. Returns its libpq URL."""
    conn = connect(url)
    try:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                copied = sql.SQL(" TEMPLATE {} STRATEGY file_copy")
                options = copied.format(sql.Identifier(template)) if template else sql.SQL("")
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)) + options)
    finally:
        conn.close()
    parts = urlsplit(libpq_url(url))
    return parts._replace(path=f"/{quote(name)}").geturl()
