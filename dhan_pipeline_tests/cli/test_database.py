import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
import typer
from click.testing import Result
from psycopg2.extensions import connection
from typer.testing import CliRunner

from dhan_pipeline.cli.database import sync_instruments
from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.kite.instruments_dump import InstrumentsDumpError
from dhan_pipeline.feeds.master_csv import InstrumentMasterError
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.rest import DETAILED_PATH, RestServer
from dhan_pipeline.feeds.simulator.tokens import API_KEY, make_kite_access_token

Sync = Callable[..., Result]


@dataclass(frozen=True)
class Masters:
    """One small market as both brokers list it, on disk and served."""

    dhan_csv: Path
    kite_csv: Path
    dhan_url: str
    kite_url: str


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Masters]:
    folder = tmp_path_factory.mktemp("masters")
    dhan_csv, kite_csv = folder / "dhan.csv", folder / "kite.csv"
    write_synthetic_master(dhan_csv, 2_000, on=date(2026, 11, 20))
    write_synthetic_dump(kite_csv, dhan_csv)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = RestServer(Clock(), dhan_csv), KiteRest(Clock(), kite_csv)
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield Masters(dhan_csv, kite_csv, *(f"http://127.0.0.1:{server.port}" for server in servers))
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def sync(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """The command, run in an empty folder, of a site that captures from both brokers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("DATA_SOURCE", "kite,dhan")
    monkeypatch.setenv("SESSIONS", "always")  # without a calendar, and so without a word of it
    app = typer.Typer()
    app.command()(sync_instruments)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def active(conn: connection) -> dict[str, int]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT source, count(*) FROM active_instruments GROUP BY 1 ORDER BY 1")
        return dict(cursor.fetchall())


def test_the_lists_of_both_brokers_are_downloaded_and_loaded(
    sync: Sync, masters: Masters, conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHAN_SCRIP_MASTER_URL", masters.dhan_url + DETAILED_PATH)
    monkeypatch.setenv("KITE_API_URL", masters.kite_url)
    monkeypatch.setenv("KITE_API_KEY", API_KEY)
    monkeypatch.setenv("KITE_ACCESS_TOKEN", make_kite_access_token())
    monkeypatch.setenv("KITE_TOKEN_FILE", str(tmp_path / "none.json"))
    done = sync("--download", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {source: facts["inserted"] for source, facts in told.items()} == active(conn)
    assert told["dhan"]["inserted"] == told["kite"]["inserted"] > 1_000
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"scrip_master.csv", "kite_instruments.csv"}


def test_with_a_token_that_kite_does_not_take_nothing_is_loaded(
    sync: Sync, masters: Masters, conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITE_API_URL", masters.kite_url)
    monkeypatch.setenv("KITE_API_KEY", API_KEY)
    monkeypatch.setenv("KITE_ACCESS_TOKEN", "of another app")
    monkeypatch.setenv("KITE_TOKEN_FILE", str(tmp_path / "none.json"))
    done = sync("--download", "--source", "kite")
    assert isinstance(done.exception, InstrumentsDumpError)
    assert "the server answered 403, it does not take the access token" in str(done.exception)
    assert active(conn) == {}


def test_a_list_on_disk_is_one_brokers(sync: Sync, masters: Masters, conn: connection) -> None:
    done = sync("--csv-path", str(masters.kite_csv))
    assert done.exit_code == 2
    assert "says whose list" in done.stderr
    done = sync("--csv-path", str(masters.kite_csv), "--source", "kite", "--json")
    assert json.loads(done.stdout)["inserted"] == active(conn)["kite"]
    done = sync("--csv-path", str(masters.dhan_csv), "--source", "kite")
    assert isinstance(done.exception, InstrumentsDumpError)


def test_every_row_of_a_list_is_accounted_for(sync: Sync, masters: Masters, tmp_path: Path) -> None:
    bad = [f"{number},1,NOWHERE{number},,0,,0,0.05,1,EQ,NSE,NSE" for number in range(200, 207)]
    kept = masters.kite_csv.read_text().splitlines()
    lines = [*kept, *bad, "2817,11,011NSETEST,,0,,0,0.05,1,EQ,NSE,NSE"]
    (tmp_path / "kite.csv").write_text("\n".join(lines))
    done = sync("--csv-path", "kite.csv", "--source", "kite", "--json")
    told = json.loads(done.stdout)
    names = ("inserted", "updated", "unchanged", "reactivated", "quarantined", "skipped")
    assert [told[name] for name in names] == [len(kept) - 1, 0, 0, 0, 7, 1]
    first = len(kept) + 1
    assert done.stderr.splitlines() == [
        *(f"kite, row {first + at}: an instrument token of an unknown segment" for at in range(5)),
        "kite, and 2 more",
    ]


@pytest.mark.parametrize("broken", ["dhan", "kite"])
def test_a_broker_whose_list_cannot_be_loaded_does_not_hold_the_other_one_up(
    sync: Sync, masters: Masters, conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setenv("DHAN_SCRIP_MASTER_URL", masters.dhan_url + (DETAILED_PATH if broken != "dhan" else "/none"))
    monkeypatch.setenv("KITE_API_URL", masters.kite_url + ("/none" if broken == "kite" else ""))
    monkeypatch.setenv("KITE_API_KEY", API_KEY)
    monkeypatch.setenv("KITE_ACCESS_TOKEN", make_kite_access_token())
    monkeypatch.setenv("KITE_TOKEN_FILE", str(tmp_path / "none.json"))
    done = sync("--download", "--json")
    assert isinstance(done.exception, InstrumentMasterError)
    told = json.loads(done.stdout)
    assert {source: facts["inserted"] for source, facts in told.items()} == active(conn)
    assert list(told) == [{"dhan": "kite", "kite": "dhan"}[broken]]


def test_of_two_brokers_that_both_fail_each_is_told(
    sync: Sync, masters: Masters, conn: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHAN_SCRIP_MASTER_URL", masters.dhan_url + "/none")
    monkeypatch.setenv("KITE_API_URL", masters.kite_url + "/none")
    done = sync("--download")
    assert isinstance(done.exception, PipelineError)
    for what in ("scrip master", "instruments dump"):
        assert f"The {what} could not be downloaded" in str(done.exception)
    assert (done.stdout, active(conn)) == ("", {})
