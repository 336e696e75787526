"""`doctor` and `why` as a person runs them: what is printed, and the exit codes."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline import special_days
from dhan_pipeline.clock import Clock
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline_tests.broker import RELIANCE
from dhan_pipeline_tests.diagnosis.conftest import Site, well
from dhan_pipeline_tests.program import Done, Here, last_sentence, wrong_usage

Run = Callable[..., Done]

STATUS = {"connections_up": 1, "connections": 1, "messages_per_second": 10.0, "backlog_seconds": 0.0}


def of(site: Site) -> dict[str, object]:
    names = ("data_dir", "database_url", "dhan_token_file", "dhan_api_url", "dhan_feed_url", "subscriptions_file")
    return {"sessions": "always"} | {name: getattr(site.settings, name) for name in names}


def words(done: Done) -> str:
    """What was printed, however it was set."""
    return " ".join(done.stdout.split())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(special_days, "_of_site", ())  # what a command sets is undone
    return Here(tmp_path, monkeypatch, capsys)


def test_doctor_prints_a_line_each_and_exits_with_what_it_found(
    run: Run, tmp_path: Path, database_url: str, conn: connection
) -> None:
    with well(tmp_path, database_url, conn, Clock()) as site:
        write_status(conn, 0, "dhan", STATUS)
        done = run("doctor", **of(site))
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1] == "Ready."
        assert "ok clock Dhan's REST API answers in " in words(done)
        told = json.loads(run("doctor", "--json", "--source", "dhan", **of(site)).stdout)
        assert (told["ready"], told["red"], len(told["findings"])) == (True, [], 12)
        assert told["findings"][0].keys() == {"name", "state", "found", "fix", "source"}
        bad = run("doctor", "--json", **of(site) | {"dhan_feed_url": "ws://127.0.0.1:1"})
        assert last_sentence(bad) == "Not ready: feed."
        assert json.loads(bad.stdout)["red"] == ["feed"]
        shown = run("doctor", **of(site) | {"dhan_feed_url": "ws://127.0.0.1:1"})
        assert "BAD feed The feed's server takes no connection: Connection refused. -> Look at" in words(shown)
    assert "upstox is not a source" in wrong_usage(run("doctor", "--source", "upstox"))


def test_doctor_in_an_empty_folder_says_what_is_missing_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    away = {"dhan_api_url": "http://127.0.0.1:1", "dhan_feed_url": "ws://127.0.0.1:1", "dhan_token_file": "token.json"}
    done = run("doctor", sessions="always", **away)  # whether or not the holidays of the year are known
    assert last_sentence(done) == "Not ready: clock, feed, token, database, subscriptions."
    assert [*tmp_path.iterdir()] == []


def test_why_says_which_link_broke(run: Run, tmp_path: Path, database_url: str, conn: connection) -> None:
    with well(tmp_path, database_url, conn, Clock()) as site:
        done = run("why", "S2885", **of(site))
        assert last_sentence(done).startswith("The link that broke is `capture`: Capture 0 does not run, and should.")
        assert "BAD capture Capture 0 does not run, and should. -> Run `dhan-pipeline up`" in words(done)
        told = json.loads(run("why", "NSE:S2885", "--json", **of(site)).stdout)
        assert (told["symbol"], told["source"], told["instrument_token"]) == ("NSE:S2885", "dhan", RELIANCE)
        assert told["broken"] == "capture"
        assert [link["name"] for link in told["links"]][:3] == ["instrument", "subscription", "session"]
        closed = run("why", "S2885", **of(site) | {"sessions": "exchange", "sessions_file": closed_for_ever(tmp_path)})
        assert closed.returncode == 0, closed.stderr
        assert closed.stdout.splitlines()[-1].startswith("No link is broken: NSE_EQ is closed, and ")
    assert "Missing argument" in wrong_usage(run("why"))


def closed_for_ever(folder: Path) -> Path:
    """Special days that close the exchanges today and in the days around it."""
    today = Clock().now().date()
    days = [today + timedelta(days=day) for day in range(-1, 30)]
    path = folder / "closed.csv"
    path.write_text("date,equity,currency,commodity\n" + "".join(f"{day},closed,closed,closed\n" for day in days))
    return path
