"""`up`: what it says is missing, and the whole of it over the simulated exchange."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.auth import save_kite_token
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.local import up as up_module
from dhan_pipeline.local.terminal import stderr_console
from dhan_pipeline.local.up import _closed, cautions, missing, synced_today
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.store.ticks import count_ticks
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.program import running

RULES = "rules:\n  - symbols: [RELIANCE, TCS]\n    segment: NSE_EQ\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything is there that `up` needs."""
    (tmp_path / "subscriptions.yaml").write_text(RULES)
    token_file = tmp_path / "token.json"
    save_token(token_file, make_token(CLIENT_ID, expires_in=86_400), CLIENT_ID)
    return Settings(
        _env_file=None,
        data_source="dhan",
        data_dir=tmp_path / "data",
        dhan_token_file=token_file,
        kite_token_file=tmp_path / "kite_token.json",
        subscriptions_file=tmp_path / "subscriptions.yaml",
    )


def at(text: str) -> Clock:
    """A clock that stands at an IST time."""
    return Clock(int(datetime.fromisoformat(text).replace(tzinfo=IST).timestamp()) * 10**9, speed=1e-9)


def test_nothing_is_missing_where_rules_and_token_are_there(settings: Settings) -> None:
    assert missing(settings, None) == []


def test_all_that_is_missing_is_said_at_once(settings: Settings, tmp_path: Path) -> None:
    settings.subscriptions_file.unlink()
    settings.dhan_token_file.unlink()
    changes = {
        "data_source": "dhan,kite",
        "database_url": "mysql://host/database",
        "transport": "rabbitmq",
    }
    rules, dhan, kite, database, broker, home = missing(settings.model_copy(update=changes), str(tmp_path))
    assert rules.startswith("There is no file of rules")
    assert dhan.startswith(f"There is no token file {settings.dhan_token_file} (DHAN_TOKEN_FILE)")
    assert kite.startswith(f"There is no token file {settings.kite_token_file} (KITE_TOKEN_FILE)")
    assert database.startswith("DATABASE_URL is no address")
    assert broker.startswith("RABBITMQ_URL is not set")
    assert home == (
        f"DAGSTER_HOME is {tmp_path}, where no dagster.yaml is: unset it, or copy deploy/local/dagster.yaml there."
    )


def test_a_token_that_is_made_here_need_not_be_there_yet(settings: Settings) -> None:
    settings.dhan_token_file.unlink()
    secrets = {"dhan_pin": "123456", "dhan_totp_secret": "JBSWY3DPEHPK3PXP", "dhan_client_id": CLIENT_ID}
    making = Settings(_env_file=None, **(settings.model_dump() | secrets))
    assert missing(making, None) == []
    assert cautions(making, at("2026-11-27T10:00")) == []
    assert len(missing(making.model_copy(update={"dhan_client_id": None}), None)) == 1


def test_a_token_whose_time_is_over_and_a_calendar_that_ends_hold_nothing_up_but_are_said(settings: Settings) -> None:
    save_kite_token(settings.kite_token_file, "t" * 32, "key", datetime(2026, 11, 30, 9, tzinfo=IST))
    save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=60, clock=at("2026-11-30T09:00")), CLIENT_ID)
    both = settings.model_copy(update={"data_source": "dhan,kite"})
    assert missing(both, None) == []
    dhan, kite, calendar = cautions(both, at("2026-12-01T08:00"))
    assert "expired at 2026-11-30 09:01 IST. Write a new one there" in dhan
    assert "expired at 2026-12-01 06:00 IST. Log in: dhan-pipeline token generate --source kite." in kite
    assert calendar.startswith("The calendar ends on 2026-12-31")


def test_instruments_are_synced_once_a_day_and_again_when_the_rules_have_changed(
    settings: Settings, database_url: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    assert not synced_today(settings, database_url, now)
    chosen = [Subscription(generate_instrument_token("NSE_EQ", 2885), Mode.FULL, "RELIANCE")]
    write_subscriptions(settings.subscriptions_path, chosen)
    assert not synced_today(settings, database_url, now)  # the table is empty
    write_synthetic_master(tmp_path / "master.csv", 2_000, on=date(2080, 11, 20))
    sync_to_database(database_url, parse_dhan_csv(tmp_path / "master.csv"))
    assert synced_today(settings, database_url, now)
    assert not synced_today(settings, database_url, now + timedelta(days=1))
    os.utime(settings.subscriptions_file, (now.timestamp() + 60, now.timestamp() + 60))
    assert not synced_today(settings, database_url, now)


def test_a_person_who_starts_it_on_a_weekend_is_told_when_the_next_session_opens(settings: Settings) -> None:
    chosen = [Subscription(generate_instrument_token("NSE_EQ", 2885), Mode.FULL, "RELIANCE")]
    write_subscriptions(settings.subscriptions_path, chosen)
    assert _closed(settings, at("2026-11-28T12:00")) == (
        "No session is open. The next one opens on Monday, 30 November, at 09:00 IST; the capture begins before that."
    )


def test_a_capture_whose_run_is_on_its_way_is_late_and_one_without_a_run_does_not_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up_module, "CAPTURE_START_S", 0.0)
    always = settings.model_copy(update={"sessions": "always"})
    runs = iter([1, 1, 0, 0])
    up_module._watch([[]] * 4, always, stderr_console(), lambda: next(runs), None)
    late, missing = capsys.readouterr().err.splitlines()
    assert late.startswith("A capture takes long to start")
    assert missing.startswith("A capture does not run, though it should")


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings that lead to an exchange which trades a few instruments, as text."""
    write_synthetic_master(tmp_path / "master.csv", 2_000, on=datetime.now(IST).date())
    options = ("--master", str(tmp_path / "master.csv"), "--token-file", str(tmp_path / "token.json"))
    where = ("--listen", "127.0.0.1:0", "--rest", "127.0.0.1:0")
    with running(
        "simulate", *where, *options, "--instruments", "20", "--rate", "200", "--json", cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield {
            "dhan_feed_url": said["feed_url"],
            "dhan_api_url": said["rest_url"],
            "dhan_auth_url": said["rest_url"],
            "dhan_scrip_master_url": f"{said['rest_url']}/api-data/api-scrip-master-detailed.csv",
            "dhan_token_file": str(tmp_path / "token.json"),
        }


def until_ticks_are_stored(database_url: str) -> None:
    deadline = time.monotonic() + 120
    with closing(connect(database_url)) as conn:
        conn.autocommit = True
        while not count_ticks(conn):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.timeout(400)
def test_everything_runs_over_the_feed_of_the_settings_until_it_is_asked_to_stop(
    exchange: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "subscriptions.yaml").write_text("rules:\n  - symbols: all\n    segment: NSE_EQ\n    limit: 50\n")
    given = {
        **exchange,
        "database_url": database_url,
        "sessions": "always",
        "partitions_start": f"{datetime.now(IST).date()}",
    }
    with running("up", "--port", "0", cwd=tmp_path, **given) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "messages/s" in line:
                break
        assert "Dagster   http://127.0.0.1:" in said, said
        until_ticks_are_stored(database_url)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert rest.splitlines()[-1] == "Stopping."
    listed = subprocess.run(["ps", "-axo", "args="], capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}/data" not in listed
