import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dhan_pipeline.alerts.channels import CHANNELS
from dhan_pipeline.cli.alert import alert_app
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.receivers import Receiver, receiver

Run = Callable[..., Result]


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as received:
        yield received


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in Settings.model_fields:
        if name.startswith("alert"):
            monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(alert_app, ["test", *arguments])


@pytest.fixture
def both(run: Run, there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slack, which is away, and a webhook, once `run` has cleared what was set."""
    monkeypatch.setenv("ALERT_SLACK_WEBHOOK_URL", "http://127.0.0.1:1/s3cret")
    monkeypatch.setenv("ALERT_WEBHOOK_URL", there.url)


def test_each_channel_that_is_set_is_sent_a_test(run: Run, there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_WEBHOOK_URL", there.url)
    result = run()
    assert result.exit_code == 0
    assert result.stdout.startswith("webhook: taken after ")
    assert there.titles == ["OK: test"]


@pytest.mark.usefixtures("both")
def test_one_that_fails_fails_the_command_and_is_explained_without_its_address(run: Run, there: Receiver) -> None:
    result = run()
    assert result.exit_code == 1
    slack, webhook = result.stdout.splitlines()
    assert slack == "slack: Slack cannot be reached; is ALERT_SLACK_WEBHOOK_URL right?"
    assert webhook.startswith("webhook: taken after ")
    assert str(result.exception) == "The test message was not taken by slack."
    assert "s3cret" not in result.output


@pytest.mark.usefixtures("both")
def test_one_channel_alone_is_sent_it(run: Run, there: Receiver) -> None:
    assert run("--channel", "webhook").exit_code == 0
    assert len(there.posts) == 1
    unset = run("--channel", "telegram")
    assert unset.exit_code == 1
    assert str(unset.exception) == "The channel telegram is not set."
    assert run("--channel", "pigeon").exit_code == 2
    assert all(channel in run("--help").output for channel in CHANNELS)


@pytest.mark.usefixtures("both")
def test_json_has_a_line_for_each_destination(run: Run) -> None:
    slack, webhook = map(json.loads, run("--json").stdout.splitlines())
    assert (slack["destination"], slack["ok"], webhook["ok"], webhook["problem"]) == ("slack", False, True, None)
    assert "cannot be reached" in slack["problem"]


def test_without_a_channel_it_says_what_to_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_TELEGRAM_CHAT", "-1")
    result = run()
    assert result.exit_code == 1
    assert "ALERT_TELEGRAM_TOKEN is not set" in str(result.exception)
    assert "set ALERT_SLACK_WEBHOOK_URL" in str(result.exception)


@pytest.mark.usefixtures("both")
def test_rules_that_are_wrong_are_said(run: Run) -> None:
    Path("alerts.yaml").write_text("mute: [")
    assert "alerts.yaml, line 1" in str(run().exception)
    Path("alerts.yaml").write_text("routes:\n  team:x: [telegram]\n")
    assert "team:x is routed to telegram, which is not set." in str(run("--channel", "webhook").exception)
