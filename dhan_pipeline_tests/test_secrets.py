"""No token, PIN, TOTP secret, password or address with a token anywhere but where a person put it."""

import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.tokens import PIN, TOTP_SECRET
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.child import capture, until
from dhan_pipeline_tests.ingest.feed import SUBSCRIBED, prepare_capture, query


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", database_url=database_url, dhan_token_file=tmp_path / "token.json"
    )
    prepare_capture(settings)
    return settings


def stored_words(database_url: str) -> str:
    """Everything in the database that is words."""
    columns = query(
        database_url,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND data_type IN ('text', 'jsonb') AND table_name NOT LIKE 'ticks%%'",
    )
    return "\n".join(
        str(row) for table, column in columns for row in query(database_url, f'SELECT "{column}" FROM "{table}"')
    )


def arguments_of(pid: int) -> str:
    """What `ps` shows of a process; nothing where the system has no /proc."""
    command = Path(f"/proc/{pid}/cmdline")
    return command.read_text() if command.exists() else ""


async def test_a_capture_through_trouble_leaves_its_secrets_nowhere(settings: Settings, database_url: str) -> None:
    token = get_dhan_credentials(settings).access_token.get_secret_value()
    password = urlsplit(database_url).password or ""
    assert password
    async with DhanSimulator(SUBSCRIBED, rate=2000) as simulator, capture(settings, simulator.feed_url) as child:
        await until(lambda: child.stored > 1000)
        arguments = arguments_of(child.process.pid)
        simulator.reset()
        await until(lambda: child.last_status["gaps"] == 1 and not child.last_status["gap_open_s"])
        await simulator.disconnect(807)
        await until(lambda: any("Waiting for another token" in str(event) for event in child.events))
        child.process.send_signal(signal.SIGTERM)
        assert await child.ended() == 0
    journal = b"".join(path.read_bytes() for path in settings.journal_dir.rglob("*") if path.is_file())
    said = "\n".join([child.log, str(child.events), arguments, stored_words(database_url), repr(journal)])
    for secret in (token, password, "token=", "clientId="):
        assert secret not in said


async def test_a_capture_that_cannot_start_says_why_without_what_it_was_given(settings: Settings) -> None:
    settings.dhan_token_file.unlink()
    secrets = {
        "DHAN_PIN": PIN,
        "DHAN_TOTP_SECRET": TOTP_SECRET,
        "DHAN_CLIENT_ID": "1000000001",
        "DHAN_AUTH_URL": "http://127.0.0.1:1",
    }
    async with DhanSimulator(SUBSCRIBED) as simulator, capture(settings, simulator.feed_url, **secrets) as child:
        assert await child.ended() == 1
    said = child.log + str(child.events)
    assert "(DHAN_TOKEN_FILE), and DHAN_ACCESS_TOKEN is not set" in child.events[-1]["message"]
    assert "Dhan does not give a token: it cannot be reached" in said
    assert not [secret for secret in (PIN, TOTP_SECRET, "totp=", "Traceback") if secret in said]


async def test_an_account_without_a_data_plan_ends_the_capture_for_good(settings: Settings) -> None:
    async with (
        DhanSimulator(SUBSCRIBED, accept=lambda *_: 806) as simulator,
        capture(settings, simulator.feed_url) as child,
    ):
        assert await child.ended() == 1
    sentence = "Dhan refused the connection (806, data APIs are not subscribed)"
    assert child.events[-1] == {"event": "error", "message": sentence, "permanent": True}
    assert child.log.endswith(f"dhan-pipeline: {sentence}\n")
