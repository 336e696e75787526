"""A database of the existing system, upgraded; then the variable is changed, ingest restarted, and changed back."""

from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate, migration_files
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.ingest.feed import prepare_capture, query, simulator_of
from dhan_pipeline_tests.ingest.running import ingest
from dhan_pipeline_tests.store import existing_system


async def test_the_source_is_switched_and_switched_back_and_the_other_sources_rows_stay(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings() -> Settings:
        """As a process reads them that starts now."""
        return Settings(_env_file=None)

    def ticks() -> int:
        with closing(connect(database_url)) as conn, conn.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM tick_rows")
            return int(cursor.fetchall()[0][0])

    async def capture(source: Source) -> int:
        """Capture for a while with the variable set so. Returns the ticks that came."""
        monkeypatch.setenv("DATA_SOURCE", source)
        before = ticks()
        async with simulator_of(settings(), rate=2000) as simulator:
            url = {f"{source}_feed_url": simulator.feed_url}
            async with ingest(settings().model_copy(update=url)) as running:
                await until(lambda: ticks() > before + 300)
            assert running.of_kind("warning") == []
        return ticks() - before

    def everything_of(source: Source) -> dict[str, tuple[int, str]]:
        with closing(connect(database_url)) as conn:
            return existing_system.everything_of(conn, source)

    query(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public; COMMIT; SELECT 1")
    with closing(connect(database_url)) as conn:
        existing_system.build(conn)
    migrate(database_url)
    for name, value in {
        "DATABASE_URL": database_url,
        "DATA_DIR": str(tmp_path / "data"),
        "DHAN_TOKEN_FILE": str(tmp_path / "dhan.json"),
        "KITE_TOKEN_FILE": str(tmp_path / "kite.json"),
        "SESSIONS": "always",
    }.items():
        monkeypatch.setenv(name, value)
    for source in ("kite", "dhan"):
        monkeypatch.setenv("DATA_SOURCE", source)
        prepare_capture(settings())

    first = await capture("kite")
    of_kite = everything_of("kite")
    second = await capture("dhan")
    of_dhan = everything_of("dhan")
    assert everything_of("kite") == of_kite
    third = await capture("kite")
    assert everything_of("dhan") == of_dhan
    of_kite = everything_of("kite")

    by_source = "SELECT tick_id >> 58 AS capture, count(*)::int FROM ticks GROUP BY 1 ORDER BY 1"
    assert query(database_url, by_source) == [(0, second), (16, first + third), (None, 6000)]
    assert query(database_url, "SELECT capture, sum(ticks)::int FROM ingest_ledger GROUP BY 1 ORDER BY 1") == [
        (0, second),
        (16, first + third),
    ]

    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(migration_files()[0].with_name("remove_dhan_data.sql").read_text())
    assert everything_of("kite") == of_kite
    assert query(database_url, by_source) == [(16, first + third), (None, 6000)]
    assert not any(rows for rows, _ in everything_of("dhan").values())
    fourth = await capture("kite")
    assert query(database_url, by_source) == [(16, first + third + fourth), (None, 6000)]
