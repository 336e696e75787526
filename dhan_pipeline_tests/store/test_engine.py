from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect, create_database, database_url, engine, libpq_url, sqlalchemy_url

PLAIN = "postgresql://a:b%40c@host:5433/d?sslmode=disable"
DRIVER = "postgresql+psycopg2://a:b%40c@host:5433/d?sslmode=disable"


@pytest.mark.parametrize("url", [PLAIN, DRIVER, PLAIN.replace("postgresql", "postgres")])
def test_both_spellings_come_from_either(url: str) -> None:
    assert libpq_url(url) == PLAIN
    assert sqlalchemy_url(url) == DRIVER


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
