"""Brings the schema up to date, ours or the existing system's: files of `sql/`, each in one transaction, each once."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection

import dhan_pipeline
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.store.engine import connect

log = logging.getLogger(__name__)

#: Key of the advisory lock that lets one migration run at a time.
_LOCK = 0x6468616E

#: How long a migration waits for a table that another program uses. Whoever wants the table meanwhile waits behind it.
LOCK_WAIT_S = 30.0


class MigrationError(PipelineError):
    """A migration could not run; it changed nothing."""


def migration_files() -> list[Path]:
    """The migrations in order: what instruments of the existing system lack, then those with numbers.

    They are in the package once installed, and beside it in a checkout. Other files there are a person's to run.
    """
    package = Path(dhan_pipeline.__file__).parent
    folder = package / "sql" if (package / "sql").is_dir() else package.parent / "sql"
    return [folder / "add_dhan_security_id.sql", *sorted(folder.glob("[0-9]*.sql"))]


def migrate(url: str, dry_run: bool = False) -> list[str]:
    """Run the migrations that the database lacks and return their names; with `dry_run` print their SQL instead.

    What they warn of is logged. Raises MigrationError: the failing migration changed nothing, those before it stay; and
    where a later version of this program brought the database up to date. Raises DatabaseError where that is away.
    """
    with _connected(url) as conn:
        files = lacking(conn)
        for file in files:
            if dry_run:
                print(f"-- {file.name}\n{file.read_text()}")
            else:
                _run(conn, file)
    return [file.stem for file in files]


def lacking(conn: connection) -> list[Path]:
    """The migrations that the database lacks, in order.

    Raises MigrationError where a later version of this program brought it up to date.
    """
    applied = _applied(conn)
    if unknown := applied - {file.stem for file in migration_files()}:
        names = ", ".join(sorted(unknown))
        raise MigrationError(f"The database is newer than this program, which knows no {names}; update it.")
    return [file for file in migration_files() if file.stem not in applied]


@contextmanager
def _connected(url: str) -> Iterator[connection]:
    with closing(connect(url)) as conn:
        with conn.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        conn.commit()
        yield conn


def _applied(conn: connection) -> set[str]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
        if not cursor.fetchall()[0][0]:
            return set()
        cursor.execute("SELECT name FROM schema_migrations")
        return {name for (name,) in cursor.fetchall()}


def _run(conn: connection, file: Path) -> None:
    try:
        with conn, conn.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S * 1000:.0f}ms'")
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations ("
                "name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            cursor.execute(file.read_text())
            cursor.execute("INSERT INTO schema_migrations (name) VALUES (%s)", (file.stem,))
        for notice in conn.notices:
            level, _, sentence = notice.partition("\n")[0].partition(":  ")
            if level == "WARNING":
                log.warning("%s", sentence)
        conn.notices.clear()
    except psycopg2.errors.LockNotAvailable:
        raise MigrationError(
            f"Migration {file.name} changed nothing: another program uses a table that it changes, and did not end its"
            f" transaction in {LOCK_WAIT_S:.0f} s. Stop it, then migrate again."
        ) from None
    except (psycopg2.errors.InsufficientPrivilege, psycopg2.errors.InvalidSchemaName) as error:
        raise MigrationError(
            f"Migration {file.name} changed nothing: {_first_line(error)}. Migrate as a role that owns the tables and"
            " views that are there, and may create more in their schema."
        ) from None
    except psycopg2.Error as error:
        raise MigrationError(f"Migration {file.name} failed and changed nothing: {_first_line(error)}") from error


def _first_line(error: psycopg2.Error) -> str:
    return str(error).strip().partition("\n")[0]
