"""Each channel against a server that takes messages, refuses them, or says nothing."""

import json
import logging
import ssl
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dhan_pipeline.alerts import channels
from dhan_pipeline.alerts.channels import CHANNELS, DeliveryError, configured, send, try_out
from dhan_pipeline.alerts.messages import Alert
from dhan_pipeline.alerts.transitions import Level
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.receivers import Receiver, mail_server, receiver, slacks_rules, telegrams_rules

ALERT = Alert(
    name="live_feed/connected", after=Level.ERROR, before=Level.OK, text="1 < 2 & nothing comes.", at_s=1_800_000_000.0
)
TOKEN = "123456:AAbbCCddEEffGGhh"


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def refusal(with_settings: Settings, destination: str) -> DeliveryError:
    """What a destination says that does not take a message; nothing of it, traceback included, holds a secret."""
    with pytest.raises(DeliveryError) as refused:
        send(with_settings, destination, [ALERT])
    shown = "".join(traceback.format_exception(refused.value))
    secrets = [v.get_secret_value() for v in with_settings.model_dump().values() if isinstance(v, SecretStr)]
    assert not [secret for secret in (*secrets, "T000/B000", "p%40ss", "p@ss") if secret in shown]
    return refused.value


@pytest.fixture
def slack(there: Receiver) -> Settings:
    return settings(alert_slack_webhook_url=f"{there.url}/services/T000/B000/XXXXXXXXXXXX")


@pytest.fixture
def telegram(there: Receiver) -> Settings:
    return settings(alert_telegram_token=TOKEN, alert_telegram_chat="-1001", alert_telegram_api_url=there.url)


def test_slack_gets_the_title_and_the_text_in_its_own_spelling(there: Receiver, slack: Settings) -> None:
    send(slack, "slack", [ALERT])
    words = "*ERROR: live_feed/connected*\n1 &lt; 2 &amp; nothing comes."
    assert there.posts == [("/services/T000/B000/XXXXXXXXXXXX", {"text": words})]


def test_telegram_gets_plain_text_in_the_chat_that_is_meant(there: Receiver, telegram: Settings) -> None:
    send(telegram, "telegram:-1001", [ALERT])
    ((path, body),) = there.posts
    assert path == f"/bot{TOKEN}/sendMessage"
    assert body["chat_id"] == "-1001"
    assert body["text"] == "ERROR: live_feed/connected\n1 < 2 & nothing comes."


def test_a_webhook_gets_the_alert_field_by_field(there: Receiver) -> None:
    send(settings(alert_webhook_url=f"{there.url}/hook?key=secret"), "webhook", [ALERT])
    ((path, body),) = there.posts
    assert path == "/hook?key=secret"
    assert body["title"] == "ERROR: live_feed/connected"
    assert body["alerts"][0] == {
        "name": "live_feed/connected",
        "level": "ERROR",
        "was": "OK",
        "text": "1 < 2 & nothing comes.",
        "value": None,
        "limits": None,
        "partition": None,
        "since": None,
        "told": "2027-01-15T13:30:00+05:30",
        "url": None,
        "owners": [],
    }


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (404, b"no_service", "Slack refuses the message (HTTP 404, no_service). Is ALERT_SLACK_WEBHOOK_URL right?"),
        (500, b"", "Slack refuses the message (HTTP 500)."),
        (302, b"", "Slack refuses the message (HTTP 302). Is ALERT_SLACK_WEBHOOK_URL right?"),
        (403, b"XXXXXXXXXXXX is off", "Slack refuses the message (HTTP 403, *** is off). Is ALERT_SLACK_WEBHOOK_URL"),
    ],
)
def test_a_refusal_says_what_slack_said_and_where_to_look(
    there: Receiver, slack: Settings, status: int, body: bytes, sentence: str
) -> None:
    there.status, there.body = status, body
    assert str(refusal(slack, "slack")).startswith(sentence)


@pytest.mark.parametrize(
    ("status", "said", "hint"),
    [
        (401, "Unauthorized", "Is ALERT_TELEGRAM_TOKEN right?"),
        (400, "Bad Request: chat not found", "Is ALERT_TELEGRAM_CHAT right, and has the chat begun"),
        (403, "Forbidden: bot was kicked from the group chat", "Is the bot still in the chat of ALERT_TELEGRAM_CHAT"),
    ],
)
def test_telegram_s_refusals_say_which_setting_is_wrong(
    there: Receiver, telegram: Settings, status: int, said: str, hint: str
) -> None:
    there.status, there.body = status, f'{{"ok": false, "description": "{said}"}}'.encode()
    problem = str(refusal(telegram, "telegram:-1001"))
    assert f"(HTTP {status}, {said})" in problem
    assert hint in problem


def test_a_channel_that_wants_to_be_left_alone_is_heard(there: Receiver, slack: Settings) -> None:
    there.status, there.headers = 429, {"Retry-After": "42"}
    assert refusal(slack, "slack").retry_after_s == 42
    there.headers = {"Retry-After": "Fri, 27 Nov 2026 10:00:00 GMT"}
    assert refusal(slack, "slack").retry_after_s == 0


def test_telegram_says_in_its_answer_when_to_come_back(there: Receiver, telegram: Settings) -> None:
    there.status = 429
    for parameters, wait_s in (('{"retry_after": 35}', 35), ('{"retry_after": 86400}', 3600), ("{}", 0), ("null", 0)):
        there.body = f'{{"ok": false, "description": "Too Many Requests", "parameters": {parameters}}}'.encode()
        assert refusal(telegram, "telegram:-1001").retry_after_s == wait_s


def test_of_a_group_that_telegram_has_given_another_number_that_is_told(there: Receiver, telegram: Settings) -> None:
    said = "Bad Request: group chat was upgraded to a supergroup chat"
    there.status = 400
    there.body = json.dumps({"description": said, "parameters": {"migrate_to_chat_id": -1002003004005}}).encode()
    assert str(refusal(telegram, "telegram:-1001")).endswith("set ALERT_TELEGRAM_CHAT=-1002003004005.")


LONG_WORDS = "a <!channel> & *all* of <https://host|it>, `code` and _more_ :smile: नमस्ते\n\tof a table " * 40
#: As much as can be told at once, of each kind: one that says a lot, many that say the same, many that do not.
MOST = {
    "one": [ALERT.model_copy(update={"text": LONG_WORDS, "value": "1", "limits": "< 2 & > 1", "since_s": 1.0})],
    "alike": [ALERT.model_copy(update={"name": f"{'deep_' * 20}live_feed/{n}"}) for n in range(50)],
    "many": [
        ALERT.model_copy(
            update={
                "name": f"{'deep_' * 10}ticks/{n}",
                "text": f"{n} {LONG_WORDS}",
                "partition": f"2026-11-20T{n % 24:02}:00",
                "url": f"http://host:3000/assets/{n}?view=checks",
            }
        )
        for n in range(50)
    ],
    "nothing": [ALERT.model_copy(update={"text": ""})],
}


@pytest.mark.parametrize("several", MOST.values(), ids=MOST.keys())
def test_whatever_is_told_is_taken_by_the_rules_of_each_channel(
    there: Receiver, slack: Settings, telegram: Settings, several: list[Alert]
) -> None:
    note = "Before this, 3 alerts could not be delivered here."
    there.rules = slacks_rules
    send(slack, "slack", several, note)
    there.rules = telegrams_rules
    send(telegram, "telegram:-1001", several, note)
    (_, by_slack), (_, by_telegram) = there.posts
    assert by_slack["text"].endswith(note)
    assert by_telegram["text"].endswith((note, "…"))
    with mail_server() as mailbox:  # refuses lines longer than the standard has them
        send(settings(alert_smtp_url=f"smtp://127.0.0.1:{mailbox.port}", **MAIL), "email:ops@example.in", several, note)
    (mail,) = mailbox.mails
    assert mail.get_content().strip().endswith(note)
    assert "\n" not in mail["Subject"]


def test_a_name_with_a_line_break_puts_no_header_into_a_mail() -> None:
    evil = ALERT.model_copy(update={"name": "job\r\nBcc: all@example.in\r\n\r\nनमस्ते"})
    with mail_server() as mailbox:
        send(settings(alert_smtp_url=f"smtp://127.0.0.1:{mailbox.port}", **MAIL), "email:ops@example.in", [evil])
    (mail,) = mailbox.mails
    assert mail["Subject"] == "ERROR: job Bcc: all@example.in नमस्ते"
    assert mail["Bcc"] is None
    assert mail["X-Recipients"] == "ops@example.in"


def test_a_channel_that_does_not_answer_is_not_waited_for(
    there: Receiver, slack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "HTTP_TIMEOUT_S", 0.05)
    there.speaks.clear()
    assert str(refusal(slack, "slack")).startswith("Slack does not answer within")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/T000/B000", "T000/B000", "http://[T000/B000", "ftp://T000/B000"])
def test_an_address_that_leads_nowhere_is_not_shown(url: str) -> None:
    problem = str(refusal(settings(alert_slack_webhook_url=url), "slack"))
    assert problem == "Slack cannot be reached; is ALERT_SLACK_WEBHOOK_URL right?"


def test_no_log_line_has_the_address_of_a_channel(
    there: Receiver, slack: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        send(slack, "slack", [ALERT])
    assert "B000" not in caplog.text


MAIL = {"alert_email_to": "ops@example.in", "alert_email_from": "dhan@example.in"}


def test_a_mail_says_it_in_its_subject() -> None:
    with mail_server() as mailbox:
        send(settings(alert_smtp_url=f"smtp://127.0.0.1:{mailbox.port}", **MAIL), "email:ops@example.in", [ALERT])
    (mail,) = mailbox.mails
    assert mail["Subject"] == "ERROR: live_feed/connected"
    assert (mail["From"], mail["To"], mail["Auto-Submitted"]) == ("dhan@example.in", "ops@example.in", "auto-generated")
    assert mail.get_content().strip() == "1 < 2 & nothing comes."


def test_a_mailbox_that_does_not_exist_is_named() -> None:
    with mail_server() as mailbox:
        mailbox.refused.add("ops@example.in")
        problem = refusal(settings(alert_smtp_url=f"smtp://127.0.0.1:{mailbox.port}", **MAIL), "email:ops@example.in")
    assert str(problem) == "The mail server does not take mail to ops@example.in (550)."


@pytest.mark.parametrize(
    "url", ["smtp://127.0.0.1:1", "smtp://nobody.invalid", "smtp://[", "ops:p%40ss@host", "smtp://ops:p@ss:word@:x"]
)
def test_a_mail_server_that_is_not_there_is_explained(url: str) -> None:
    problem = str(refusal(settings(alert_smtp_url=url, **MAIL), "email:ops@example.in"))
    assert problem.startswith("The mail server can")
    assert "ALERT_SMTP_URL" in problem


@pytest.fixture
def server_side(certificates: Path | None, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What shows the certificate of `localhost`, whose authority is trusted."""
    if certificates is None:
        pytest.skip("openssl is not installed")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


LOGIN = "alerts%40example.in:p%40ss%20word"


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_login_goes_through_tls_alone(server_side: ssl.SSLContext, scheme: str) -> None:
    tls = {"starttls" if scheme == "smtp" else "tls": server_side}
    with mail_server(**tls) as mailbox:
        url = f"{scheme}://{LOGIN}@localhost:{mailbox.port}"
        mails = settings(alert_smtp_url=url, alert_email_to="ops@example.in")
        send(mails, "email:ops@example.in", [ALERT])
        wrong = settings(alert_smtp_url=url.replace("word", "wood"), alert_email_to="ops@example.in")
        assert "refuses the login (535)" in str(refusal(wrong, "email:ops@example.in"))
        monkeyed = settings(alert_smtp_url=url.replace("localhost", "127.0.0.1"), alert_email_to="ops@example.in")
        assert "cannot be trusted" in str(refusal(monkeyed, "email:ops@example.in"))
    (mail,) = mailbox.mails
    assert mail["From"] == "alerts@example.in"


def test_a_password_is_not_sent_in_the_clear_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server() as mailbox:
        url = f"smtp://{LOGIN}@127.1:{mailbox.port}"  # this machine, in a spelling that is not known to be it
        problem = refusal(settings(alert_smtp_url=url, alert_email_to="ops@example.in"), "email:ops@example.in")
    assert "offers no TLS, and a password is not sent in the clear" in str(problem)


def test_whichever_channel_is_set_is_used() -> None:
    found, wrong = configured(
        settings(
            alert_slack_webhook_url="http://slack",
            alert_smtp_url="smtp://host",
            alert_email_to="ops@example.in, trader@example.in",
            alert_email_from="dhan@example.in",
            alert_webhook_url="http://webhook",
            alert_telegram_token=TOKEN,
            alert_telegram_chat="-1001",
        )
    )
    assert wrong == []
    assert tuple(found) == CHANNELS
    assert found == {
        "slack": ("slack",),
        "email": ("email:ops@example.in", "email:trader@example.in"),
        "webhook": ("webhook",),
        "telegram": ("telegram:-1001",),
    }


@pytest.mark.parametrize(
    ("half", "missing"),
    [
        ({"alert_smtp_url": "smtp://host"}, "ALERT_EMAIL_TO"),
        ({"alert_email_to": "ops@example.in"}, "ALERT_SMTP_URL"),
        ({"alert_smtp_url": "smtp://ops@host", "alert_email_to": "ops@example.in"}, "ALERT_EMAIL_FROM"),
        ({"alert_telegram_token": TOKEN}, "ALERT_TELEGRAM_CHAT"),
        ({"alert_telegram_chat": "-1001"}, "ALERT_TELEGRAM_TOKEN"),
    ],
)
def test_a_channel_that_is_set_by_half_is_not_used_and_says_what_is_missing(half: dict[str, str], missing: str) -> None:
    found, (problem,) = configured(settings(**half))
    assert found == {}
    assert missing in problem


def test_trying_out_tells_which_destination_took_the_test(there: Receiver) -> None:
    with receiver() as broken:
        broken.status = 500
        both = settings(alert_slack_webhook_url=broken.url, alert_webhook_url=there.url)
        slack, webhook = try_out(both, ["slack", "webhook"])
    assert (slack.problem, webhook.problem) == ("Slack refuses the message (HTTP 500).", "")
    assert there.titles == ["OK: test"]
