"""The channels that carry alerts: Slack, e-mail, a webhook, Telegram. Whichever is set is used.

A destination is what is told: `slack`, `webhook`, `telegram:CHAT`, `email:ADDRESS`. The addresses of Slack and of the
webhook, Telegram's token and the password of the mail server are secrets: no message, log line or exception holds one.
"""

import logging
import smtplib
import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid, parseaddr
from functools import cache
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from dhan_pipeline.alerts.messages import Alert, as_json, text, title
from dhan_pipeline.alerts.transitions import Level
from dhan_pipeline.settings import Settings

# They log every request with its address.
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)

#: A sensor's tick has a minute for all destinations.
HTTP_TIMEOUT_S = 5.0
SMTP_TIMEOUT_S = 10.0

#: What a message of Telegram may have at most: it refuses a longer one. Slack takes 40,000 and cuts off the rest.
TELEGRAM_CHARS = 4096

NOTHING_SET = (
    "No channel is set, so nobody is told: set ALERT_SLACK_WEBHOOK_URL, ALERT_SMTP_URL with ALERT_EMAIL_TO,"
    " ALERT_WEBHOOK_URL, or ALERT_TELEGRAM_TOKEN with ALERT_TELEGRAM_CHAT."
)

CHANNELS = ("slack", "email", "webhook", "telegram")

#: Destinations by the name of their channel.
Channels = Mapping[str, tuple[str, ...]]


class DeliveryError(Exception):
    """A destination did not take a message. Says why, and what to do about it, without any secret."""

    def __init__(self, sentence: str, retry_after_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s
        """For how long it wants to be left alone."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a test message."""

    destination: str
    problem: str
    """Empty where it was taken."""
    seconds: float


def configured(settings: Settings) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The channels that are set, and a sentence for each that is set by half."""
    channels: dict[str, tuple[str, ...]] = {}
    problems = []
    if settings.alert_slack_webhook_url:
        channels["slack"] = ("slack",)
    if settings.alert_smtp_url:
        to = _addresses(settings.alert_email_to)
        if not to:
            problems.append("ALERT_SMTP_URL is set, and ALERT_EMAIL_TO names nobody: no e-mail is sent.")
        elif not _sender(settings):
            problems.append("ALERT_EMAIL_FROM is not set, and the user in ALERT_SMTP_URL is no address to send from.")
        else:
            channels["email"] = tuple(f"email:{address}" for address in to)
    elif settings.alert_email_to:
        problems.append("ALERT_EMAIL_TO is set, and ALERT_SMTP_URL is not: no e-mail is sent.")
    if settings.alert_webhook_url:
        channels["webhook"] = ("webhook",)
    if settings.alert_telegram_token and settings.alert_telegram_chat:
        channels["telegram"] = (f"telegram:{settings.alert_telegram_chat}",)
    elif settings.alert_telegram_token or settings.alert_telegram_chat:
        missing = "CHAT" if settings.alert_telegram_token else "TOKEN"
        problems.append(f"ALERT_TELEGRAM_{missing} is not set: nothing is sent to Telegram.")
    return channels, problems


def send(settings: Settings, destination: str, alerts: Sequence[Alert], note: str = "") -> None:
    """Have a message taken by a destination. `note`: a sentence of ours below it. Raises DeliveryError."""
    channel, _, address = destination.partition(":")
    match channel:
        case "slack":
            _slack(settings, alerts, note)
        case "webhook":
            _post("The webhook", "ALERT_WEBHOOK_URL", _secret(settings.alert_webhook_url), as_json(alerts, note))
        case "telegram":
            _telegram(settings, address, alerts, note)
        case "email":
            _email(settings, address, alerts, note)
        case _:
            raise DeliveryError(f"{destination} is no destination.")


def try_out(settings: Settings, destinations: Iterable[str]) -> list[Attempt]:
    """Send a test message to each destination."""
    attempts = []
    for destination in destinations:
        began, problem = time.monotonic(), ""
        test = Alert(
            name="test", after=Level.OK, text="This is a test: alerts of dhan_pipeline get here.", at_s=time.time()
        )
        try:
            send(settings, destination, [test])
        except DeliveryError as error:
            problem = str(error)
        attempts.append(Attempt(destination, problem, time.monotonic() - began))
    return attempts


def _slack(settings: Settings, alerts: Sequence[Alert], note: str) -> None:
    def plain(words: str) -> str:
        return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    words = f"*{plain(title(alerts))}*\n{plain(text(alerts, note))}"
    url = _secret(settings.alert_slack_webhook_url)
    _post("Slack", "ALERT_SLACK_WEBHOOK_URL", url, {"text": words}, explained=True)


def _telegram(settings: Settings, chat: str, alerts: Sequence[Alert], note: str) -> None:
    words = f"{title(alerts)}\n{text(alerts, note)}"
    if len(words) > TELEGRAM_CHARS:
        words = f"{words[: TELEGRAM_CHARS - 1].rstrip()}…"
    _post(
        "Telegram",
        "ALERT_TELEGRAM_TOKEN",
        f"{settings.alert_telegram_api_url.rstrip('/')}/bot{_secret(settings.alert_telegram_token)}/sendMessage",
        {"chat_id": chat, "text": words, "link_preview_options": {"is_disabled": True}},
        explained=True,
    )


def _post(who: str, variable: str, url: str, body: Mapping[str, Any], *, explained: bool = False) -> None:
    """POST JSON. `explained`: the answer says what is wrong, and is shown."""
    problem = ""
    try:
        reply = httpx.post(url, json=body, timeout=HTTP_TIMEOUT_S, verify=_certificates())
    except httpx.TimeoutException:
        problem = f"does not answer within {HTTP_TIMEOUT_S:.0f} s"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        problem = f"cannot be reached; is {variable} right?"
    if problem:  # raised here, not where it was caught: the exceptions of the library know the address
        raise DeliveryError(f"{who} {problem}{'' if problem[-1] == '?' else '.'}")
    if reply.is_success:
        return
    said = f", {words}" if explained and (words := _said(reply, url)) else ""
    raise DeliveryError(
        f"{who} refuses the message (HTTP {reply.status_code}{said}).{_hint(who, variable, reply)}",
        _retry_after_s(reply),
    )


def _hint(who: str, variable: str, reply: httpx.Response) -> str:
    """Where to look after a refusal; empty where nobody knows."""
    status = reply.status_code
    if who == "Telegram" and status == 400:
        if moved := _telegram_says(reply, "migrate_to_chat_id"):
            return f" The group has another number now: set ALERT_TELEGRAM_CHAT={moved}."
        return " Is ALERT_TELEGRAM_CHAT right, and has the chat begun, or the bot been let in?"
    if who == "Telegram" and status == 403:
        return " Is the bot still in the chat of ALERT_TELEGRAM_CHAT, and not blocked there?"
    wrong = (401, 404) if who == "Telegram" else (301, 302, 307, 308, 401, 403, 404, 410)
    return f" Is {variable} right?" if status in wrong else ""


@cache
def _certificates() -> ssl.SSLContext:
    """Reading them takes longer than a request."""
    return httpx.create_ssl_context()


def _said(reply: httpx.Response, url: str) -> str:
    words: object = reply.text
    with suppress(ValueError):
        answer = reply.json()
        words = answer.get("description", "") if isinstance(answer, dict) else words
    line = " ".join(str(words).split())
    for secret in (url, *(part for part in urlsplit(url).path.split("/") if len(part) > 8)):
        line = line.replace(secret, "***")
    return line[:120].rstrip(". ")


def _retry_after_s(reply: httpx.Response) -> float:
    """When to come back: Slack says so in a header, Telegram in its answer, both in seconds."""
    words = reply.headers.get("Retry-After", "")
    seconds = float(words) if words.isascii() and words.isdigit() else float(_telegram_says(reply, "retry_after"))
    return min(max(seconds, 0.0), 3600.0)


def _telegram_says(reply: httpx.Response, parameter: str) -> int:
    """What a program should know of a refusal of Telegram's; 0 where it does not say."""
    with suppress(ValueError, KeyError, TypeError):
        return int(reply.json()["parameters"][parameter])
    return 0


def _email(settings: Settings, address: str, alerts: Sequence[Alert], note: str) -> None:
    sender = _sender(settings)
    mail = EmailMessage()
    problem = ""
    try:
        url = urlsplit(_secret(settings.alert_smtp_url))
        mail["Subject"] = " ".join(title(alerts).split())
        mail["From"] = sender
        mail["To"] = address
        mail["Date"] = formatdate()
        mail["Message-ID"] = make_msgid(domain=parseaddr(sender)[1].rpartition("@")[2] or "localhost")
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text(alerts, note))
        _through_server(url, mail)
    except smtplib.SMTPAuthenticationError as error:
        problem = f"refuses the login ({error.smtp_code}): are user and password in ALERT_SMTP_URL right?"
    except smtplib.SMTPRecipientsRefused as error:
        code = next((code for code, _ in error.recipients.values()), 0)
        problem = f"does not take mail to {address} ({code})."
    except smtplib.SMTPSenderRefused as error:
        problem = f"does not take mail from {sender} ({error.smtp_code}): is ALERT_EMAIL_FROM right?"
    except smtplib.SMTPResponseException as error:
        problem = f"refuses the message ({error.smtp_code})."
    except TimeoutError:
        problem = f"does not answer within {SMTP_TIMEOUT_S:.0f} s; is the port in ALERT_SMTP_URL right?"
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or "it speaks no TLS there"
        problem = f"cannot be trusted or speaks no TLS ({reason}); are scheme, host and port of ALERT_SMTP_URL right?"
    except smtplib.SMTPException:
        problem = "ends the conversation, or lacks what ALERT_SMTP_URL asks for."
    except (OSError, UnicodeError):
        problem = "cannot be reached; is ALERT_SMTP_URL right?"
    except ValueError:
        problem = "cannot be used: ALERT_SMTP_URL or an address is not well-formed."
    if problem:
        raise DeliveryError(f"The mail server {problem}")


def _through_server(url: SplitResult, mail: EmailMessage) -> None:
    if url.scheme not in ("smtp", "smtps") or not url.hostname:
        raise ValueError
    # Else Python asks the name server for our own name, which may take longer than all the rest.
    us = socket.gethostname()
    with (
        smtplib.SMTP_SSL(
            url.hostname, url.port or 465, us, timeout=SMTP_TIMEOUT_S, context=ssl.create_default_context()
        )
        if url.scheme == "smtps"
        else smtplib.SMTP(url.hostname, url.port or 587, us, timeout=SMTP_TIMEOUT_S)
    ) as server:
        server.ehlo()
        if url.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=ssl.create_default_context())
            server.ehlo()
        elif url.scheme == "smtp" and url.username and url.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise DeliveryError(
                "The mail server offers no TLS, and a password is not sent in the clear: use smtps://, or another port."
            )
        if url.username:
            server.login(unquote(url.username), unquote(url.password or ""))
        server.send_message(mail)


def _addresses(words: str | None) -> list[str]:
    return [address.strip() for address in (words or "").split(",") if address.strip()]


def _sender(settings: Settings) -> str:
    """Who mail comes from; empty where nobody is named."""
    try:
        user = unquote(urlsplit(_secret(settings.alert_smtp_url)).username or "")
    except ValueError:  # what is wrong with it is said when something is sent
        user = ""
    return settings.alert_email_from or (user if "@" in user else "")


def _secret(setting: Any) -> str:
    return str(setting.get_secret_value()) if setting is not None else ""
