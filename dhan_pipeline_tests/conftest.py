"""Fixtures that every room uses: one real PostgreSQL and RabbitMQ a session, an empty migrated database a test."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, Page
from psycopg2 import sql
from psycopg2.extensions import connection

from dhan_pipeline.sources import Source
from dhan_pipeline.store import embedded, timescale
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline_tests.browser import ChromiumMissingError, chromium, in_india
from dhan_pipeline_tests.rabbitmq import Node, RabbitMQMissingError, make_certificates
from dhan_pipeline_tests.rabbitmq import rabbitmq as private_rabbitmq

# The same examples each time, and none fails because the machine is busy.
settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")

# Else each of a thousand processes compiles anew what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tests that do not say whose feed they mean, mean Dhan's.
os.environ["DATA_SOURCE"] = "dhan"

_numbers = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that may take longest, so that no process is left with one of them at the end.

    Then come those that are of the whole: they wait for processes, which leaves time for the others' computing.
    """
    longest: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0.0), mark.args[0] if mark else 0.0)
    whole = Path(__file__).parent
    items.sort(key=lambda item: (-longest[item.path], item.path.parent != whole))


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Source:
    """Whose feed it is; tests that do not care ask for both."""
    named: Source = getattr(request, "param", "dhan")
    return named


@pytest.fixture(scope="session")
def open_dir() -> Iterator[Path]:
    """A temporary directory that other users may enter, unlike pytest's own: root's server runs as another user."""
    with _open_dir() as folder:
        yield folder


@contextmanager
def _open_dir(parent: Path | None = None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dhan-pipeline-tests-", dir=parent))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the session's own server; or of TEST_DATABASE_URL, where databases are made and dropped."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.fail("TEST_DATABASE_URL is one server, for one process: run pytest with -n 0.")
        before = _databases(url)
        yield url
        for name in _databases(url) - before:
            _execute(url, "DROP DATABASE {} WITH (FORCE)", name)
        return
    with _open_dir(_memory()) as folder, pytest.MonkeyPatch.context() as patch:
        # What it holds may go with the machine, and a password's 4096 rounds take longer than the rest of a connection.
        hasty = {"fsync": "off", "full_page_writes": "off", "scram_iterations": "1"}
        patch.setattr(embedded, "SETTINGS", embedded.SETTINGS | hasty)
        server = embedded.start(folder)
        patch.undo()
        with closing(connect(server.url)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(f"ALTER ROLE {embedded.USER} PASSWORD %s", (urlsplit(server.url).password,))
        yield server.url
        embedded.stop(folder)


def _memory() -> Path | None:
    """A folder in memory, where there are some gigabytes: a thousand databases are made and dropped, file by file.

    Each takes five times as long on a disk.
    """
    folder = Path("/dev/shm")
    roomy = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 4e9
    return folder if roomy else None


def _databases(url: str) -> set[str]:
    with closing(connect(url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        return {name for (name,) in cursor.fetchall()}


def _execute(url: str, statement: str, name: str) -> None:
    with closing(connect(url)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(sql.Identifier(name)), {"name": name})


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    migrate(create_database(postgres_url, "migrated"))
    # A template has to be without connections; TimescaleDB's scheduler keeps one to every database.
    _execute(postgres_url, "ALTER DATABASE {} ALLOW_CONNECTIONS false", "migrated")
    _execute(
        postgres_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %(name)s", "migrated"
    )
    return "migrated"


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """URL of a database of the test's own, with the whole schema and no rows."""
    name = f"test_{next(_numbers)}"
    yield create_database(postgres_url, name, template=template)
    _execute(postgres_url, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def conn(database_url: str) -> Iterator[connection]:
    """A connection to the test's database."""
    with closing(connect(database_url)) as opened:
        yield opened


@pytest.fixture
def partitions_ahead(conn: connection) -> None:
    """Skips a test of partitions that are made ahead of rows, where they are not: see `ensure_partitions`."""
    if timescale.licence(conn) == "apache":
        pytest.skip("under the Apache licence, TimescaleDB makes chunks as rows come")


@pytest.fixture(scope="session")
def certificates(open_dir: Path) -> Path | None:
    """A folder with `ca.pem`, which has signed what the session's broker shows; None where there is no openssl."""
    folder = open_dir / "certificates"
    folder.mkdir()
    try:
        make_certificates(folder)
    except FileNotFoundError:
        return None
    return folder


@pytest.fixture(scope="session")
def rabbitmq(certificates: Path | None) -> Iterator[Node]:
    """The session's own broker."""
    try:
        with private_rabbitmq(certificates) as node:
            yield node
    except RabbitMQMissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def rabbitmq_url(rabbitmq: Node) -> str:
    """URL of a virtual host of the test's own, without any queue."""
    rabbitmq.start()
    return rabbitmq.new_url()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The module's own Chromium. While it runs, this thread has an event loop: no test beside it may be async."""
    try:
        with chromium() as launched:
            yield launched
    except ChromiumMissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page. The test fails where a script of what it opens does."""
    errors: list[str] = []
    with in_india(browser) as context:
        opened = context.new_page()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        yield opened
    assert not errors
