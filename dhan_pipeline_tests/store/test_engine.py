from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from psycopg2.extensions import parse_dsn
from sqlalchemy import text

from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import (
    NO_ADDRESS,
    DatabaseError,
    connect,
    create_database,
    database_url,
    engine,
    libpq_url,
    sqlalchemy_url,
)

PLAIN = "postgresql://a:b%40c@host:5433/d?sslmode=disable"
DRIVER = "postgresql+psycopg2://a:b%40c@host:5433/d?sslmode=disable"


@pytest.mark.parametrize("url", [PLAIN, DRIVER, PLAIN.replace("postgresql", "postgres")])
def test_both_spellings_come_from_either(url: str) -> None:
    assert libpq_url(url) == PLAIN
    assert sqlalchemy_url(url) == DRIVER


@pytest.mark.parametrize(
    "rest",
    [
        "user:hunter2@host/db",
        "user:hun:ter#2?@host:5432/db",
        "user:hunter%402%2F@[::1]:5432/db?sslmode=disable",
        "user@one:5432,two:5433/db",
        "user@/db?host=/var/run/postgresql",
        "%2Fvar%2Frun%2Fpostgresql",
        "localhost?dbname=db",
        "",
    ],
)
def test_an_address_that_can_be_read_in_one_way_is_taken_as_libpq_takes_it(rest: str) -> None:
    assert parse_dsn(libpq_url(f"postgres://{rest}")) == parse_dsn(f"postgresql://{rest}")


@pytest.mark.parametrize(
    "rest",
    [
        "user:hunter2@ss#word@host/db",
        "user:hunter2@word@host/db",
        "user:hunter2/cret@host/db",
        "us/er:hunter2@host/db",
        "user:hunter2/db",
        "user:12345678/db",
        "user:pass@hunter2#word",
        "user:pass@host:hunter2/db",
        "user:pass@host/hunter2@db",
    ],
)
@pytest.mark.parametrize("take", [connect, engine, libpq_url])
def test_an_address_that_can_be_read_in_two_ways_is_refused_without_a_part_of_it(
    take: Callable[[str], object], rest: str
) -> None:
    with pytest.raises(DatabaseError, match="have to be percent-encoded") as caught:
        take(f"postgresql://{rest}")
    assert str(caught.value) == NO_ADDRESS
    assert caught.value.__context__ is None


def test_both_drivers_reach_the_database(postgres_url: str) -> None:
    with closing(connect(sqlalchemy_url(postgres_url))) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT current_setting('application_name')")
        assert cursor.fetchone() == ("dhan_pipeline",)
    pool = engine(postgres_url)
    with pool.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    pool.dispose()


def test_a_database_is_created_once(postgres_url: str) -> None:
    first = create_database(postgres_url, "of its own")
    assert create_database(postgres_url, "of its own") == first
    with closing(connect(first)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        assert cursor.fetchone() == ("of its own",)


def test_the_database_that_is_set_is_the_one_in_use() -> None:
    assert database_url(Settings(database_url=DRIVER, _env_file=None)) == PLAIN


def test_without_a_setting_the_embedded_server_is_started_on_demand(open_dir: Path) -> None:
    settings = Settings(database_url=None, data_dir=open_dir / "on-demand", _env_file=None)
    try:
        url = database_url(settings)
        assert url == embedded.url(settings.data_dir)
        with closing(connect(url)) as conn:
            assert conn.closed == 0
    finally:
        embedded.stop(settings.data_dir)
