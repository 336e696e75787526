"""Recovering from gaps by hand, against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from psycopg2.extensions import connection
from typer.testing import CliRunner, Result

from dhan_pipeline.cli.gaps import gaps
from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.broker_bars import BrokerBarsError
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline_tests.broker import RELIANCE, TCS, insert_instruments, serving

MINUTE_NS = 60_000_000_000


@pytest.fixture
def broker(
    database_url: str, conn: connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[connection]:
    """The environment of somebody who may ask, ten minutes after a gap."""
    clock = Clock()
    insert_instruments(conn, [RELIANCE, TCS])
    now_ns = clock.now_ns()
    gap = Gap(1, 0, now_ns - 11 * MINUTE_NS, Cause.RESET, "", (RELIANCE, TCS), now_ns - 10 * MINUTE_NS)
    with conn, conn.cursor() as cursor:
        apply_notes(cursor, 0, [(1, gap)])
    monkeypatch.chdir(tmp_path)
    with serving(Settings(_env_file=None), clock, Market([RELIANCE, TCS], clock=clock), tmp_path) as (_, settings):
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("DHAN_API_URL", settings.dhan_api_url)
        monkeypatch.setenv("DHAN_TOKEN_FILE", str(settings.dhan_token_file))
        monkeypatch.setenv("SESSIONS", "always")
        yield conn


def ask(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(gaps)
    return CliRunner().invoke(app, arguments)


def test_gaps_are_recovered_by_hand_and_the_second_time_there_is_nothing_to_do(broker: connection) -> None:
    done = ask("--recover")
    assert done.exit_code == 0
    assert done.stdout.startswith("1 gap was recovered: 0 bars of 2 instruments, 0 of which failed;")
    assert done.stdout.endswith("2 quotes were taken.\n")
    facts = json.loads(ask("--recover", "--json").stdout)
    assert (facts["gaps"], facts["quotes"], facts["failed"]) == (0, 0, 0)
    with broker, broker.cursor() as cursor:
        cursor.execute("SELECT instruments, failed FROM gap_recoveries")
        assert cursor.fetchall() == [(2, 0)]


def test_a_recovery_that_is_not_done_says_what_it_did_and_fails(
    broker: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHAN_API_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(RestPolicy, "pause_s", lambda self, failures: 0.0)
    done = ask("--recover", "--json")
    assert isinstance(done.exception, BrokerBarsError)
    assert json.loads(done.stdout)["unfinished"] == str(done.exception)


def test_a_capture_that_is_silent_now_is_told_for_nobody_notes_its_gap_yet(broker: connection) -> None:
    write_status(broker, 0, "dhan", {})
    write_status(broker, 16, "kite", {})
    assert "has said nothing" not in ask().stdout
    with broker, broker.cursor() as cursor:
        cursor.execute("UPDATE captures SET updated_at = timestamptz '2026-11-20 11:00:00.5+05:30'")
    told = (
        "Capture 0 (dhan) has said nothing since 2026-11-20 11:00:00 IST. What it misses is noted when it runs again."
    )
    assert ask().stdout.splitlines()[-1] == told
    assert json.loads(ask("--json").stdout)["silent_captures"] == [
        {"source": "dhan", "capture": 0, "since": "2026-11-20T11:00:00.500000+05:30"}
    ]
    assert "has said nothing" not in ask("--day", "2026-11-20").stdout
    with broker, broker.cursor() as cursor:
        cursor.execute("UPDATE captures SET status = '{\"stopped\": true}'")
    assert ask().stdout.splitlines()[-1] == told.replace("has said nothing since", "was stopped at")


def test_all_gaps_are_recovered_so_none_are_chosen(broker: connection) -> None:
    assert ask("--recover", "--day", "2026-11-20").exit_code == 2
