"""The command `python -m dhan_pipeline.sync_dhan_instruments`, and the functions that scripts import from it."""

import asyncio
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline import load_instruments_cache, sync_dhan_instruments
from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.rest import DETAILED_PATH, RestServer
from dhan_pipeline.sync_dhan_instruments import (
    download_instruments_csv,
    generate_instrument_token,
    parse_dhan_csv,
    sync_to_database,
)
from dhan_pipeline_tests.program import environment, sentence


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("master") / "master.csv"
    write_synthetic_master(path, 2_000, on=date(2026, 11, 20))
    return path


def count(conn: connection) -> dict[str, int]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT source, count(*) FROM active_instruments GROUP BY source")
        return dict(cursor.fetchall())


def test_the_command_of_old_loads_dhans_rows_whatever_the_source_is(
    master: Path, database_url: str, conn: connection, tmp_path: Path
) -> None:
    module = [sys.executable, "-m", "dhan_pipeline.sync_dhan_instruments"]
    options = ["--db-url", database_url, "--csv-path", str(master), "--batch-size", "500", "--json"]
    done = subprocess.run(
        [*module, *options], cwd=tmp_path, env=environment(data_source="kite"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"dhan": json.loads(done.stdout)["inserted"]} == count(conn)


@pytest.mark.parametrize(
    ("options", "code"),
    [([], 2), (["--download", "--csv-path", "a.csv"], 2), (["--batch-size", "0"], 2), (["--csv-path", "a.csv"], 1)],
)
def test_it_exits_as_the_command_does(
    options: list[str],
    code: int,
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sync_dhan_instruments", "--db-url", database_url, *options])
    with pytest.raises(SystemExit) as end:
        sync_dhan_instruments.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (code, "")
    if code == 1:
        done = subprocess.CompletedProcess([], 1, out, err)
        assert sentence(done) == "The scrip master a.csv cannot be read: No such file or directory."


async def test_the_functions_do_what_the_command_does(master: Path, database_url: str, tmp_path: Path) -> None:
    server = RestServer(Clock(), master)
    await server.start()
    url = f"http://127.0.0.1:{server.port}{DETAILED_PATH}"
    path = await asyncio.to_thread(download_instruments_csv, url, tmp_path / "got.csv")
    await server.aclose()
    parsed = parse_dhan_csv(path)
    assert sync_to_database(database_url, parsed, batch_size=700).inserted == len(parsed.rows)
    cache = load_instruments_cache(database_url)
    assert cache["NSE_EQ", 2885].instrument_token == generate_instrument_token("NSE_EQ", "2885")
