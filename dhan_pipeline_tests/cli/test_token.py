import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dhan_pipeline.cli.token import token_app
from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.kite.auth import get_kite_credentials, save_kite_token
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.feeds.simulator.tokens import API_KEY, API_SECRET, CLIENT_ID, make_kite_access_token, make_token
from dhan_pipeline.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def brokers() -> Iterator[tuple[RestServer, KiteRest]]:
    """Both brokers' REST faces, on a loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = RestServer(Clock()), KiteRest(Clock())
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield servers
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def run(brokers: tuple[RestServer, KiteRest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The commands, with an account of both brokers and no token of either."""
    dhan, kite = brokers
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "DATA_SOURCE": "kite",
        "DHAN_API_URL": f"http://127.0.0.1:{dhan.port}",
        "DHAN_TOKEN_FILE": "dhan.json",
        "KITE_API_URL": f"http://127.0.0.1:{kite.port}",
        "KITE_TOKEN_FILE": "kite.json",
        "KITE_API_KEY": API_KEY,
        "KITE_API_SECRET": API_SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(token_app, arguments)


def failure(done: Result) -> str:
    """The sentence with which the command failed."""
    assert done.exit_code == 1
    assert isinstance(done.exception, PipelineError)
    return str(done.exception)


def test_without_a_request_token_a_person_is_told_where_to_log_in(run: Run) -> None:
    done = run("generate")
    assert done.stdout == f"https://kite.zerodha.com/connect/login?v=3&api_key={API_KEY}\n"
    assert failure(done).startswith("Log in there.")
    assert json.loads(run("generate", "--json").stdout) == {"login_url": done.stdout.strip()}


def test_a_login_gives_a_token_that_is_saved_good_and_never_shown(
    run: Run, brokers: tuple[RestServer, KiteRest]
) -> None:
    done = run("generate", "--request-token", "https://127.0.0.1/?action=login&request_token=abc&status=success")
    assert done.exit_code == 0, done.exception
    token = get_kite_credentials(Settings()).access_token.get_secret_value()
    assert token == brokers[1].active_token
    assert done.stdout.startswith(f"A new token of API key {API_KEY}, good until ")
    assert done.stdout.endswith(" 06:00 IST, is in the token file kite.json.\n")
    checked = run("check")
    assert checked.exit_code == 0, checked.exception
    assert checked.stdout.startswith(f"API key {API_KEY}, from the token file kite.json.\nIts time is over at ")
    assert checked.stdout.endswith("The token is good, and it is that of user AB1234.\n")
    report = json.loads(run("check", "--json").stdout)
    assert (report["good"], report["problem"], report["user_id"]) == (True, None, "AB1234")
    assert token not in done.output + checked.output
    again = failure(run("generate", "--request-token", "abc"))
    assert again == "Kite does not give a token: TokenException Token is invalid or has expired."


def test_a_token_that_kite_refuses_is_not_good(run: Run) -> None:
    save_kite_token(Path("kite.json"), "nonsense", API_KEY)
    assert "not found to be good: Kite does not give the profile: TokenException" in failure(run("check"))
    assert json.loads(run("check", "--json").stdout)["good"] is False


def test_kite_renews_none(run: Run) -> None:
    assert failure(run("renew")).startswith("Kite renews no token: log in")


def test_of_both_brokers_each_token_is_checked_and_what_is_made_says_whose_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_SOURCE", "kite,dhan")
    assert "There is no token file dhan.json" in failure(run("check", "--source", "dhan"))
    save_kite_token(Path("kite.json"), make_kite_access_token(), API_KEY)
    missing = failure(run("check"))
    assert missing.startswith("The access token was not found to be good: dhan: There is no token file dhan.json")
    save_token(Path("dhan.json"), make_token(CLIENT_ID), CLIENT_ID)
    both = run("check")
    assert both.exit_code == 0, both.exception
    assert "kite:\nAPI key " in both.stdout
    assert "dhan:\nClient id " in both.stdout
    reports = json.loads(run("check", "--json").stdout)
    assert [(source, report["good"]) for source, report in sorted(reports.items())] == [("dhan", True), ("kite", True)]
    assert run("generate").exit_code == 2
    assert run("generate", "--source", "upstox").exit_code == 2
    assert run("generate", "--source", "dhan", "--request-token", "abc").exit_code == 2
    assert failure(run("generate", "--source", "kite")).startswith("Log in there.")
